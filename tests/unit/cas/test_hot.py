"""The hot file beside the embedded CAS: the newest whole version counts, and nobody passes its lock."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest
import xxhash

from fspf.cas.embedded import EmbeddedCas
from fspf.cas.hot import RING_LEN, HotFile, Version, read_newest
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


def newest_place(path: Path) -> int:
    with HotFile.locked(str(path)) as hot:
        assert hot is not None
        return hot.versions()[-1][0]


def test_a_busy_volume_gets_one_and_a_release_takes_it_away(scratch: Path) -> None:
    cas, record, lease = begun(scratch / "cas.sqlite", advances=3)
    assert not hot_files(scratch)
    assert record.anchor == anchor(4)
    for generation in range(4, 40):
        cas.advance(VOLUME, lease, anchor(generation), anchor(generation + 1))
    (path,) = hot_files(scratch)
    assert path.stat().st_size == RING_LEN
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
    assert read_newest(str(hot_files(scratch)[0])) is not None


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
    before = hot_files(scratch)[0].read_bytes()[4096:]
    with pytest.raises(AnchorMovedError):
        cas.advance(VOLUME, lease, anchor(20), anchor(22))
    assert hot_files(scratch)[0].read_bytes()[4096:] == before
    cas.advance(VOLUME, lease, anchor(21), anchor(22))
    assert cas.fetch(VOLUME).anchor == anchor(22)


@pytest.mark.parametrize("place", [0, 1])
def test_a_torn_write_leaves_the_version_before(scratch: Path, place: int) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20 + place)
    path = hot_files(scratch)[0]
    cas.close()
    raw = bytearray(path.read_bytes())
    raw[newest_place(path) + 100] ^= 1
    path.write_bytes(raw)
    assert EmbeddedCas(str(scratch / "cas.sqlite")).fetch(VOLUME).anchor == anchor(20 + place)
    del lease


def test_an_altered_file_is_refused(scratch: Path) -> None:
    cas, _, _ = begun(scratch / "cas.sqlite", advances=20)
    path = str(hot_files(scratch)[0])
    newest = read_newest(path)
    assert newest is not None
    forged = newest.sealed[:-1] + bytes([newest.sealed[-1] ^ 1])
    with HotFile.locked(path) as hot:
        assert hot is not None
        hot.write(hot.versions()[0][0], Version(newest.number + 1, forged))
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


# -- records


def record(generation: int, length: int = 5000) -> bytes:
    return generation.to_bytes(4, "big") * (length // 4)


def test_a_record_is_kept_with_its_anchor_until_the_volume_has_it(scratch: Path) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    for generation in range(21, 25):
        assert cas.advance_with(
            VOLUME, lease, anchor(generation), anchor(generation + 1), record=record(generation), synced=20
        )
    assert EmbeddedCas(str(scratch / "cas.sqlite")).kept_records(VOLUME) == [record(each) for each in range(21, 25)]
    cas.release(VOLUME, lease)
    assert hot_files(scratch), "nobody said that the volume has them"
    other = EmbeddedCas(str(scratch / "cas.sqlite"))
    assert other.fetch(VOLUME).anchor == anchor(25)
    again = other.acquire(VOLUME, expected=anchor(25), expected_epoch=1, adopt=anchor(25), holder=holder("second"))
    assert len(other.kept_records(VOLUME)) == 4
    other.settle(VOLUME)
    other.release(VOLUME, again)
    assert not hot_files(scratch)
    assert other.kept_records(VOLUME) == []
    assert other.fetch(VOLUME).anchor == anchor(25)


def test_an_advance_without_a_record_says_that_none_is_needed(scratch: Path) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    assert cas.advance_with(VOLUME, lease, anchor(21), anchor(22), record=record(21), synced=0)
    cas.advance(VOLUME, lease, anchor(22), anchor(23))
    cas.release(VOLUME, lease)
    assert not hot_files(scratch)


@pytest.mark.parametrize("length", [100, 5000, 60_000])
def test_no_needed_record_is_overwritten(scratch: Path, length: int) -> None:
    """Round and round: the ring says no when it is full, and goes on when the volume has synced."""
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    synced, full = 20, 0
    for generation in range(21, 600):
        arguments = (VOLUME, lease, anchor(generation), anchor(generation + 1))
        if not cas.advance_with(*arguments, record=record(generation, length), synced=synced):
            full += 1
            kept = cas.kept_records(VOLUME)
            assert set(kept) >= {record(each, length) for each in range(synced + 1, generation)}
            synced = generation if generation % 3 else generation - 2  # it may be behind by some
            assert cas.advance_with(*arguments, record=record(generation, length), synced=synced)
        assert record(generation, length) in cas.kept_records(VOLUME)[-1:]
        if generation % 50 == 0:
            lease = cas.renew(VOLUME, lease)
    assert full >= 2
    assert cas.fetch(VOLUME).anchor == anchor(600)


def test_a_record_is_refused_where_it_cannot_be_kept(scratch: Path) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=1)
    assert not cas.advance_with(VOLUME, lease, anchor(2), anchor(3), record=record(2), synced=0), "not busy"
    for generation in range(2, 20):
        cas.advance(VOLUME, lease, anchor(generation), anchor(generation + 1))
    assert not cas.advance_with(VOLUME, lease, anchor(20), anchor(21), record=bytes(RING_LEN), synced=0)
    assert not cas.advance_with(VOLUME, lease, anchor(19), anchor(21), record=record(2), synced=0), "not the anchor"
    other = EmbeddedCas(str(scratch / "cas.sqlite"))
    other.set_freshness(VOLUME, Freshness.bounded(100))
    assert not cas.advance_with(VOLUME, lease, anchor(20), anchor(21), record=record(2), synced=0), "another changed it"
    assert cas.fetch(VOLUME).anchor == anchor(20)
    cas.advance(VOLUME, lease, anchor(20), anchor(21))
    assert cas.advance_with(VOLUME, lease, anchor(21), anchor(22), record=record(2), synced=21)
    assert cas.fetch(VOLUME).freshness == Freshness.bounded(100)


def test_a_torn_entry_takes_its_record_along(scratch: Path) -> None:
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    for generation in (21, 22):
        assert cas.advance_with(
            VOLUME, lease, anchor(generation), anchor(generation + 1), record=record(generation), synced=20
        )
    path = hot_files(scratch)[0]
    raw = bytearray(path.read_bytes())
    raw[newest_place(path) + 4096 : newest_place(path) + 4608] = bytes(512)
    path.write_bytes(raw)
    other = EmbeddedCas(str(scratch / "cas.sqlite"))
    assert other.fetch(VOLUME).anchor == anchor(22)
    assert other.kept_records(VOLUME) == [record(21)]


def test_the_hot_file_of_an_older_version_is_read_and_gives_way(scratch: Path) -> None:
    """ADR 10: two places of a sector each; left by a kill."""
    cas, _, lease = begun(scratch / "cas.sqlite", advances=20)
    path = hot_files(scratch)[0]
    newest = read_newest(str(path))
    assert newest is not None
    cas.close()
    body = struct.pack("<8sQI", b"FSPC-HOT", newest.number, len(newest.sealed)) + newest.sealed
    body = body.ljust(504, b"\0")
    place = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    path.write_bytes((bytes(4096 * (newest.number % 2)) + place).ljust(8192, b"\0"))
    again = EmbeddedCas(str(scratch / "cas.sqlite"))
    assert again.fetch(VOLUME).anchor == anchor(21)
    assert again.kept_records(VOLUME) == []
    again.advance(VOLUME, lease, anchor(21), anchor(22))
    assert not hot_files(scratch)
    for generation in range(22, 30):
        again.advance(VOLUME, lease, anchor(generation), anchor(generation + 1))
    assert again.advance_with(VOLUME, lease, anchor(30), anchor(31), record=record(30), synced=30)
    assert again.fetch(VOLUME).anchor == anchor(31)
