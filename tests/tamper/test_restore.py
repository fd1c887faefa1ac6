"""A restore statement lets one older state of a real volume in, and no other: neither older ones nor the newer ones that were given up.

Who may make such a statement is tested in tests/unit/cas/test_policies.py, the rule itself in tests/unit/cas/test_rules.py.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fspf.cas import rules
from fspf.core.anchor import Anchor
from fspf.core.errors import ConflictError, FreshnessError, IntegrityError
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas


def write(path: Path, cas: MemoryCas, text: str) -> Anchor:
    with Volume.open(path, cas, commit_interval=None) as volume:
        volume.write_text("/state", text)
    return cas.fetch(volume.header.volume_id).anchor


def read(path: Path, cas: MemoryCas) -> str:
    with Volume.open(path, cas, read_only=True, commit_interval=None) as volume:
        return volume.read_text("/state")


def restore(cas: MemoryCas, volume_id: bytes, old: Anchor, epoch: int) -> None:
    cas._change(
        "restore",
        volume_id,
        lambda state: rules.restore(state, old, epoch, now_ns=time.time_ns(), is_gone=lambda _holder: False),
    )


def test_one_older_state_is_let_in_and_no_other(tmp_path: Path) -> None:
    cas = MemoryCas()
    where = tmp_path / "volume"
    with Volume.create(where, cas, commit_interval=None) as volume:
        volume_id = volume.header.volume_id
    anchors = {}
    for text in ("monday", "tuesday", "wednesday"):
        anchors[text] = write(where, cas, text)
        shutil.copytree(where, tmp_path / text)
    for text in ("monday", "tuesday"):
        with pytest.raises(FreshnessError):
            read(tmp_path / text, cas)
    epoch = cas.fetch(volume_id).epoch + 1
    restore(cas, volume_id, anchors["tuesday"], epoch)

    assert read(tmp_path / "tuesday", cas) == "tuesday"
    # Wednesday's files still have tuesday's root record, but not all that it leads to: tuesday, or nothing, is what they show.
    for text, error in (("monday", FreshnessError), ("wednesday", IntegrityError)):
        with pytest.raises(error):
            read(tmp_path / text, cas)
        with pytest.raises(error):
            write(tmp_path / text, cas, "mine")

    assert write(tmp_path / "tuesday", cas, "thursday").generation > anchors["tuesday"].generation
    assert read(tmp_path / "tuesday", cas) == "thursday"
    with pytest.raises(FreshnessError):  # of the same generation as thursday's, but of the history that was given up
        read(tmp_path / "wednesday", cas)
    with pytest.raises(ConflictError):  # and the statement has had its effect
        restore(cas, volume_id, anchors["monday"], epoch)
    assert read(tmp_path / "tuesday", cas) == "thursday"
