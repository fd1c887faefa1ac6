"""docs/THREATS.md names tests that exist; and here are those of its claims that have no better place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from fspf import Volume
from fspf.cas import EmbeddedCas
from fspf.core.format import Header, Keyring, RootFrame
from fspf.core.log import LogFrame
from tests.fault.memcas import MemoryCas
from tests.support.fakemount import FakeMount

ROOT: Final = Path(__file__).resolve().parents[3]
THREATS: Final = (ROOT / "docs/THREATS.md").read_text(encoding="utf-8")
NAMED: Final = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", THREATS)))

MARK: Final = "kangaroo"  # what is searched for; 8 letters do not come about by chance


def test_the_document_names_tests() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part.removeprefix("tests/"))
def test_named_test_exists(path: str, name: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    if name:
        assert re.search(rf"^ *(async )?def {name}\(", text, re.MULTILINE)


@pytest.fixture
def directory(scratch: Path) -> Path:
    return scratch / "volume"


def fill(directory: Path, files: int, length: int) -> None:
    """Make a volume in which everything that can hold text says `MARK`."""
    cas = EmbeddedCas(str(directory.parent / "cas.sqlite"))
    with Volume.create(directory, cas, name=f"{MARK} volume", segment_slots=64, commit_interval=None) as volume:
        volume.mkdir(f"/{MARK} directory")
        for number in range(files):
            path = f"/{MARK} directory/{MARK} {number}"
            volume.write_bytes(path, (MARK.encode() * (length // 8 + 1))[:length])
            volume.setxattr(path, f"user.{MARK}", f"{MARK} value".encode())
        volume.symlink(f"{MARK} target", f"/{MARK} link")
        volume.commit()
        inside = stored(directory)  # while it is open, too
        assert not any(MARK.encode() in content for content in inside.values())
    cas.close()


def stored(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_nothing_readable_reaches_storage(directory: Path) -> None:
    fill(directory, files=20, length=10_000)
    for name, content in stored(directory).items():
        assert MARK.encode() not in content, name
        assert MARK not in name
        assert b"SQLite format" not in content, name


def test_stored_files_do_not_tell_sizes_and_counts(scratch: Path) -> None:
    shapes = []
    for number, (files, length) in enumerate([(1, 40_000), (9, 3_000)]):
        directory = scratch / str(number) / "volume"
        directory.parent.mkdir()
        fill(directory, files, length)
        shapes.append({name: len(content) for name, content in stored(directory).items() if name != "keyring"})
    assert shapes[0] == shapes[1]


def test_the_database_leaves_no_journal(directory: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = scratch / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("SQLITE_TMPDIR", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    fill(directory, files=300, length=10)
    assert os.listdir(temporary) == []
    assert set(stored(directory)) == {
        *("header", "keyring", "keyring.bak", "root.a", "root.b", "lock"),
        *(f"segments/{path.name}" for path in (directory / "segments").iterdir()),
    }


def test_equal_content_is_sealed_differently(directory: Path) -> None:
    fill(directory, files=8, length=4096)  # eight times the same chunk
    chunks = [
        content[offset : offset + 4096]
        for name, content in stored(directory).items()
        if name.startswith("segments/")
        for offset in range(0, 64 * 4096, 4096)
    ]
    written = [chunk for chunk in chunks if any(chunk)]
    assert len(written) >= 8
    assert len(set(written)) == len(written)


def test_every_writer_has_an_epoch_and_a_key_of_its_own(directory: Path) -> None:
    cas = EmbeddedCas(str(directory.parent / "cas.sqlite"))
    Volume.create(directory, cas, commit_interval=None).close()
    for _ in range(3):
        with Volume.open(directory, cas, commit_interval=None) as volume:
            volume.write_bytes("/file", b"x")
    files = stored(directory)
    keyring = Keyring.parse(files["keyring"], files["keyring.bak"])
    header = Header.parse(files["header"])
    (record,) = cas.list()
    keys = {entry.epoch: entry.unwrap(record.key, header.volume_id) for entry in keyring.records}
    assert sorted(keys) == [1, 2, 3, 4]
    assert len({key.fingerprint for key in keys.values()}) == 4
    cas.close()


def test_what_storage_does_see(directory: Path) -> None:
    """The limits of the claim, so that nobody takes it for more."""
    fill(directory, files=3, length=4096)
    files = stored(directory)
    header = Header.parse(files["header"])
    assert (len(header.volume_id), header.chunk_size, header.segment_slots) == (16, 4096, 64)
    frames = [RootFrame.parse(files[name]) for name in ("root.a", "root.b") if files[name]]
    assert {(frame.epoch, frame.key_version) for frame in frames} == {(1, 1)}
    table = files["segments/00000000"][64 * 4096 :]
    entries = [table[offset : offset + 16] for offset in range(0, len(table), 16)]
    used = [
        (int.from_bytes(entry[8:11], "little"), int.from_bytes(entry[11:], "little")) for entry in entries if any(entry)
    ]
    assert len(used) >= 3
    assert {epoch for epoch, _ in used} == {1}
    assert len({counter for _, counter in used}) == len(used)  # the order of writing


def _synced_files(directory: Path, lengths: list[int]) -> bytes:
    """Write files through a mount's data plane and fsync each; returns the log."""
    with (
        Volume.create(directory, MemoryCas(), segment_slots=64, commit_interval=None) as volume,
        FakeMount(volume) as mounted,
    ):
        for number, length in enumerate(lengths):
            ino = mounted.kernel.create(1, f"{MARK} {number}".encode()).ino
            mounted.kernel.write(ino, 0, (MARK.encode() * (length // 8 + 1))[:length])
            mounted.kernel.fsync(ino)
        return (directory / "log").read_bytes()


def test_nothing_readable_reaches_the_log(directory: Path) -> None:
    log = _synced_files(directory, [8, 100, 5000])
    assert log.startswith(b"FSPF-LOG")
    assert MARK.encode() not in log


def test_what_the_log_shows(directory: Path) -> None:
    lengths = [8, 20_000, 100]
    log = _synced_files(directory, lengths)
    offset, seen = 0, []
    while log[offset : offset + 8] == b"FSPF-LOG":
        frame = LogFrame.parse(log, offset)
        assert (frame.epoch, frame.key_version) == (1, 1)
        seen.append(len(frame.sealed))
        offset += frame.length
    assert len(seen) == len(lengths)  # one for each fsync
    assert all(0 <= sealed - length < 1000 for sealed, length in zip(seen, lengths, strict=True))


def test_the_daemon_gives_no_core_dump() -> None:
    script = """
import ctypes, resource
from fspf.mount import system
system.harden()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == "0 (0, 0)\n"
