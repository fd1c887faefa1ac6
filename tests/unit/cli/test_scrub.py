"""`fspf scrub` finds every torn or missing byte in use, and nothing else. No key, no engine: the files are made by hand."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from pathlib import Path

import pytest
import xxhash

from fspf.cli.main import main
from fspf.core.errors import NotAVolumeError, UnsupportedFormatError
from fspf.core.format import Header, KeyringRecord, RootFrame
from fspf.volume.finding import Finding, Totals
from fspf.volume.scrub import scrub, writer_is_live

CHUNK, SLOTS = 4096, 64
LENGTH = SLOTS * (CHUNK + 16)
Row = tuple[str, int, int, str]


def entry(data: bytes, epoch: int, counter: int) -> bytes:
    return (
        xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")
        + epoch.to_bytes(3, "little")
        + counter.to_bytes(5, "little")
    )


def write_slot(volume: Path, slot: int, data: bytes, *, epoch: int = 1) -> None:
    with (volume / "segments" / f"{slot // SLOTS:08x}").open("r+b") as file:
        file.seek(slot % SLOTS * CHUNK)
        file.write(data)
        file.seek(SLOTS * CHUNK + slot % SLOTS * 16)
        file.write(entry(data, epoch, slot))


@pytest.fixture
def volume(scratch: Path) -> Path:
    path = scratch / "v"
    (path / "segments").mkdir(parents=True)
    (path / "lock").touch()
    (path / "header").write_bytes(Header(bytes(range(16)), CHUNK, SLOTS).pack())
    keyring = b"".join(KeyringRecord(epoch, 1, bytes([epoch]) * 48).pack() for epoch in (1, 2))
    (path / "keyring").write_bytes(keyring)
    (path / "keyring.bak").write_bytes(keyring)
    for name, epoch in (("root.a", 2), ("root.b", 1)):
        (path / name).write_bytes(RootFrame(1, epoch, bytes(12), bytes(16), b"sealed").pack())
    for number in range(3):
        with (path / "segments" / f"{number:08x}").open("wb") as file:
            file.truncate(LENGTH)
    for slot in (0, 1, 2, 63, 64, 130, 131, 150):
        write_slot(path, slot, os.urandom(CHUNK))
    return path


def rows(volume: Path, totals: Totals | None = None) -> list[Row]:
    return [(f.path.decode(), f.offset, f.length, f.kind) for f in scrub(volume, totals=totals)]


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_whole_volume_has_no_findings(volume: Path) -> None:
    totals = Totals()
    seen: list[tuple[int, int | None]] = []
    assert list(scrub(volume, lambda done, total: seen.append((done, total)), totals)) == []
    assert (totals.slots, totals.notes) == (8, [])
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("name", "offset", "expected"),
    [
        pytest.param("header", 30, ("header", 0, 0, "torn"), id="header"),
        pytest.param("keyring", 70, ("keyring", 64, 64, "torn"), id="keyring"),
        pytest.param("keyring.bak", 0, ("keyring.bak", 0, 64, "torn"), id="second copy of the keyring"),
        pytest.param("root.a", 4095, ("root.a", 0, 4096, "torn"), id="root"),
        pytest.param("segments/00000000", CHUNK, ("segments/00000000", CHUNK, CHUNK, "torn"), id="slot, first byte"),
        pytest.param(
            "segments/00000000", 2 * CHUNK - 1, ("segments/00000000", CHUNK, CHUNK, "torn"), id="slot, last byte"
        ),
        pytest.param(
            "segments/00000001", SLOTS * CHUNK, ("segments/00000001", 0, CHUNK, "torn"), id="checksum of a slot"
        ),
    ],
)
def test_one_flipped_bit_is_one_finding(volume: Path, name: str, offset: int, expected: Row) -> None:
    flip(volume / name, offset)
    assert rows(volume) == [expected]


def test_every_slot_in_use_is_read(volume: Path) -> None:
    for slot in (0, 1, 2, 63, 64, 130, 131, 150):
        flip(volume / "segments" / f"{slot // SLOTS:08x}", slot % SLOTS * CHUNK + 17)
    found = [(f.slot, f.length // CHUNK) for f in scrub(volume)]
    assert found == [(0, 3), (63, 1), (64, 1), (130, 2), (150, 1)]


def test_a_slot_that_was_freed_is_not_read(volume: Path) -> None:
    with (volume / "segments" / "00000000").open("r+b") as file:
        file.write(b"rest of something")
        file.seek(SLOTS * CHUNK)
        file.write(bytes(16))
    assert rows(volume) == []


def test_a_punched_slot_in_use_is_torn(volume: Path) -> None:
    with (volume / "segments" / "00000000").open("r+b") as file:
        file.write(bytes(CHUNK))
    assert rows(volume) == [("segments/00000000", 0, CHUNK, "torn")]


@pytest.mark.parametrize("name", ["keyring", "keyring.bak", "root.a", "root.b"])
def test_a_missing_file_is_missing(volume: Path, name: str) -> None:
    (volume / name).unlink()
    assert [(f.path.decode(), f.kind) for f in scrub(volume)] == [(name, "missing")]


def test_a_missing_segment_is_missing(volume: Path) -> None:
    (volume / "segments" / "00000001").unlink()
    assert rows(volume) == [("segments/00000001", 0, LENGTH, "missing")]


def test_a_segment_that_is_cut_off(volume: Path) -> None:
    os.truncate(volume / "segments" / "00000002", 10 * CHUNK)
    assert rows(volume) == [("segments/00000002", 10 * CHUNK, LENGTH - 10 * CHUNK, "missing")]


def test_a_keyring_copy_that_is_cut_off(volume: Path) -> None:
    os.truncate(volume / "keyring.bak", 64)
    assert rows(volume) == [("keyring.bak", 64, 64, "missing")]


def test_a_volume_with_one_commit_has_one_root(volume: Path) -> None:
    (volume / "root.a").unlink()
    for name in ("keyring", "keyring.bak"):
        os.truncate(volume / name, 64)
    totals = Totals()
    assert rows(volume, totals) == []
    assert any("root.a" in note for note in totals.notes)


def test_with_a_torn_header_the_rest_is_still_checked(volume: Path) -> None:
    flip(volume / "header", 12)
    flip(volume / "segments" / "00000001", 0)
    assert rows(volume) == [("header", 0, 0, "torn"), ("segments/00000001", 0, CHUNK, "torn")]


def test_what_a_crash_may_have_left_is_noted(volume: Path) -> None:
    write_slot(volume, 3, os.urandom(CHUNK), epoch=2)
    flip(volume / "segments" / "00000000", 3 * CHUNK)
    totals = Totals()
    assert rows(volume, totals) == [("segments/00000000", 3 * CHUNK, CHUNK, "torn")]
    assert any("newest epoch (2)" in note for note in totals.notes)


def test_a_slot_under_a_live_writer_is_looked_at_again(volume: Path) -> None:
    data = os.urandom(CHUNK)
    write_slot(volume, 5, bytes(CHUNK))
    with (volume / "segments" / "00000000").open("r+b") as file:
        file.seek(5 * CHUNK)
        file.write(data)  # the writer's data is there, its checksum not yet
    with (volume / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert writer_is_live(volume)
        writer = threading.Timer(0.07, write_slot, (volume, 5, data))
        writer.start()
        totals = Totals()
        assert rows(volume, totals) == []
        writer.join()
    assert any("open for writing" in note for note in totals.notes)
    assert not writer_is_live(volume)


def test_what_is_no_volume_is_refused(scratch: Path, volume: Path) -> None:
    with pytest.raises(NotAVolumeError):
        list(scrub(scratch))
    (volume / "header").unlink()
    assert ("header", 0, 0, "missing") in rows(volume)


def test_a_newer_format_is_refused(volume: Path) -> None:
    raw = bytearray((volume / "header").read_bytes())
    raw[8] = 2
    raw[-8:] = xxhash.xxh3_64_intdigest(bytes(raw[:-8])).to_bytes(8, "little")
    (volume / "header").write_bytes(raw)
    with pytest.raises(UnsupportedFormatError):
        list(scrub(volume))
    assert main(["scrub", str(volume)]) == 1


def test_command(volume: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["scrub", str(volume)]) == 0
    assert b"no damage found" in capsysbinary.readouterr().out
    flip(volume / "segments" / "00000000", 0)
    assert main(["scrub", str(volume)]) == 20
    assert capsysbinary.readouterr().out.startswith(b"torn: segments/00000000 bytes 0 to 4095: slot 0")
    assert main(["scrub", "--json", str(volume)]) == 20
    document = json.loads(capsysbinary.readouterr().out)
    assert (document["ok"], document["complete"], document["findings"][0]["slot"]) == (False, True, 0)


def test_nothing_is_changed(volume: Path) -> None:
    def snapshot() -> dict[str, tuple[int, bytes]]:
        files = sorted(p for p in volume.rglob("*") if p.is_file())
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = snapshot()
    flip(volume / "segments" / "00000000", 0)
    flip(volume / "segments" / "00000000", 0)
    after = snapshot()
    time.sleep(0.01)
    list(scrub(volume))
    assert snapshot() == after
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}


def test_a_finding_is_a_value() -> None:
    assert Finding(b"a", 0, 1, "torn", "x") == Finding(b"a", 0, 1, "torn", "x")
