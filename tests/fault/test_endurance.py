"""The short form of tools/endurance: everything happens once, within about a minute."""

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
