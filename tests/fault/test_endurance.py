"""The short form of tools/endurance: everything happens once, within about a minute; kills, and crowds, by themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fault.endurance.run import Endurance
from tests.support.mounted import need_fuse
from tests.support.plugin import NIGHTLY

SEED = int(os.environ.get("FSPF_SEED", "1"))


@pytest.mark.timeout(5400)
def test_nothing_acknowledged_is_lost_and_no_wrong_byte_is_read(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_fuse()
    run = Endurance(scratch, seconds=3600 if NIGHTLY else 40, workers=6 if NIGHTLY else 3, seed=SEED, verbose=False)
    try:
        run.run()
    finally:
        with capsys.disabled():
            print("\n" + run.report())
    happened = {"kill", "end_by_signal", "umount", "umount_lazily", "fill_disk", "take_cas_away"}
    assert happened <= set(run.events)
    assert run.fio.runs
    assert run.tampered["rounds"] + run.tampered["mount refused"]


@pytest.mark.timeout(600)
def test_killed_at_any_instant_under_a_mount(scratch: Path) -> None:
    """The daemon is killed among requests and within commits: every fsync that had returned is there after the next mount."""
    need_fuse()
    run = Endurance(scratch, seconds=600 if NIGHTLY else 15, workers=4, seed=SEED, verbose=False, only="kill")
    run.run()
    assert run.events["kill"] >= 2
    assert sum(member.last["promises"] for member in run.members) > 100


@pytest.mark.timeout(600)
def test_many_clients_are_all_answered(scratch: Path) -> None:
    """Sixteen fsync, unlink, list and set attributes while commits come every 20 ms, the status is asked, and it ends.

    A request that is not answered fails the run, with the stacks of all threads.
    """
    need_fuse()
    run = Endurance(
        scratch, seconds=300 if NIGHTLY else 12, workers=16, seed=SEED, verbose=False, only="umount",
        options=("cache=16M", "commit=20ms"),
    )  # fmt: skip
    run.run()
    assert run.events["umount"] >= 1
    assert all(member.last["promises"] for member in run.members)
