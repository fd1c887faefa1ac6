"""The hot file beside the embedded CAS: the newest whole version counts, and nobody passes its lock."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from fspf.cas.embedded import EmbeddedCas
from fspf.cas.hot import FILE_LEN, HotFile, Version, read_hot
from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import AnchorMovedError, CasError, LeaseError
from fspf.core.freshness import Freshness

VOLUME = bytes(range(16))


def holder(label: str) -> Holder:
    return Holder("host", "boot", os.getpid(), 0, 0, label)


def anchor(generation: int) -> Anchor:
    return Anchor(generation, generation.to_bytes(16, "big"))


def begun(path: Path, *, advances: int) -> tuple[EmbeddedCas, CasRecord, Lease]:
    """A CAS with one volume, leased and advanced so many times."""
    cas = EmbeddedCas(str(path))
    record = cas.create(VOLUME, "volume", Freshness.strict())
    lease = cas.acquire(
        VOLUME, expected=record.anchor, expected_epoch=record.epoch, adopt=anchor(1), holder=holder("first")
    )
    for generation in range(1, advances + 1):
        cas.advance(VOLUME, lease, anchor(generation), anchor(generation + 1))
    return cas, cas.fetch(VOLUME), lease


def hot_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("cas.sqlite-hot-*"))


def test_a_busy_volume_gets_one_and_a_release_takes_it_away(scratch: Path) -> None:
    cas, record, lease = begun(scratch / "cas.sqlite", advances=3)
    assert not hot_files(scratch)
    assert record.anchor == anchor(4)
    for generation in range(4, 40):
        cas.advance(VOLUME, lease, anchor(generation), anchor(generation + 1))
    (path,) = hot_files(scratch)
    assert path.stat().st_size == FILE_LEN
    assert VOLUME not in path.read_bytes()
    assert cas.fetch(VOLUME).anchor == anchor(40)
    assert [each.anchor for each in cas.list()] == [anchor(40)]
    cas.release(VOLUME, lease)
    assert not hot_files(scratch)
    cas.close()
    assert EmbeddedCas(str(scratch / "cas.sqlite")).fetch(VOLUME).anchor == anchor(40)


def test_another_process_sees_what_only_the_file_has(scratch: Path) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    other = EmbeddedCas(str(scratch / "cas.sqlite"))
    for generation in range(21, 30):
        assert other.fetch(VOLUME).anchor == anchor(generation)
        cas.advance(VOLUME, lease, anchor(generation), anchor(generation + 1))
    assert read_hot(str(hot_files(scratch)[0])) is not None


def test_after_a_kill_the_next_holder_starts_from_the_file(scratch: Path) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    other = EmbeddedCas(str(scratch / "cas.sqlite"), is_gone=lambda _holder: True)
    with pytest.raises(AnchorMovedError):
        other.acquire(VOLUME, expected=anchor(5), expected_epoch=1, adopt=anchor(6), holder=holder("second"))
    granted = other.acquire(VOLUME, expected=anchor(21), expected_epoch=1, adopt=anchor(21), holder=holder("second"))
    with pytest.raises(LeaseError):  # the first holder was not gone after all
        cas.advance(VOLUME, lease, anchor(21), anchor(22))
    for generation in range(21, 30):
        other.advance(VOLUME, granted, anchor(generation), anchor(generation + 1))
    with pytest.raises(LeaseError):
        cas.advance(VOLUME, lease, anchor(21), anchor(22))
    assert cas.fetch(VOLUME).anchor == anchor(30)


def test_a_wrong_expectation_changes_nothing(scratch: Path) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    before = hot_files(scratch)[0].read_bytes()
    with pytest.raises(AnchorMovedError):
        cas.advance(VOLUME, lease, anchor(20), anchor(22))
    assert hot_files(scratch)[0].read_bytes() == before
    cas.advance(VOLUME, lease, anchor(21), anchor(22))
    assert cas.fetch(VOLUME).anchor == anchor(22)


@pytest.mark.parametrize("place", [0, 1])
def test_a_torn_write_leaves_the_version_before(scratch: Path, place: int) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20 + place)
    path = hot_files(scratch)[0]
    newest = read_hot(str(path))
    assert newest is not None
    cas.close()
    raw = bytearray(path.read_bytes())
    raw[newest.number % 2 * 4096 + 100] ^= 1
    path.write_bytes(raw)
    assert EmbeddedCas(str(scratch / "cas.sqlite")).fetch(VOLUME).anchor == anchor(20 + place)
    del lease


def test_an_altered_file_is_refused(scratch: Path) -> None:
    cas, _, _ = begun(scratch / "cas.sqlite", advances=20)
    path = str(hot_files(scratch)[0])
    newest = read_hot(path)
    assert newest is not None
    forged = newest.sealed[:-1] + bytes([newest.sealed[-1] ^ 1])
    with HotFile.locked(path) as hot:
        assert hot is not None
        hot.write(Version(newest.number + 1, forged))
    with pytest.raises(CasError, match="altered or is damaged"):
        cas.fetch(VOLUME)


def test_removing_a_volume_removes_its_file(scratch: Path) -> None:
    cas, _, _ = begun(scratch / "cas.sqlite", advances=20)
    cas.remove(VOLUME)
    assert not hot_files(scratch)


def test_two_who_advance_at_once_take_turns(scratch: Path) -> None:
    """One lease used by two connections: each anchor is moved from exactly once."""
    first, _, lease = begun(scratch / "cas.sqlite", advances=20)
    second = EmbeddedCas(str(scratch / "cas.sqlite"))
    moved: list[int] = []

    def advance(cas: EmbeddedCas) -> None:
        while (now := cas.fetch(VOLUME).anchor.generation) < 200:
            try:
                cas.advance(VOLUME, lease, anchor(now), anchor(now + 1))
            except AnchorMovedError:
                continue
            moved.append(now)

    threads = [threading.Thread(target=advance, args=(cas,)) for cas in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(moved) == list(range(21, 200))
