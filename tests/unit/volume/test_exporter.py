"""What is decrypted to the host is whole or not there, and is nowhere else."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fspf.cas import open_cas
from fspf.core.errors import UsageError
from fspf.volume import exporter
from fspf.volume.exporter import decrypt_tree
from fspf.volume.importer import encrypt_tree
from fspf.volume.transfer import Progress
from fspf.volume.volume import Volume
from tests.support.compare import assert_same

SMALL: dict[str, Any] = {"segment_slots": 64, "commit_interval": None}


@pytest.fixture
def volume(scratch: Path) -> Iterator[Volume]:
    cas = open_cas(f"sqlite://{scratch}/cas.sqlite")
    with Volume.create(scratch / "volume", cas, **SMALL) as made:
        yield made
    cas.close()


@pytest.fixture
def dest(scratch: Path) -> Path:
    return scratch / "dest"


def leftovers(dest: Path) -> list[Path]:
    return [path for path in dest.rglob("*") if path.name.endswith(".part")]


def damage(volume: Volume, path: str) -> None:
    """Overwrite the chunks of a small file (up to one node) on storage."""
    volume.commit()
    ino = volume.stat(path).st_ino
    found: Any = volume.namespace.connection.execute("SELECT pointer FROM inode WHERE ino = ?", (ino,)).fetchone()
    slot = int.from_bytes(found[0][:5], "little")
    slots, chunk = volume.header.segment_slots, volume.header.chunk_size
    with open(volume.path / "segments" / f"{slot // slots:08x}", "r+b") as file:
        file.seek(slot % slots * chunk)
        file.write(os.urandom(chunk))


def reopened(volume: Volume) -> Volume:
    """Open the volume again, for reading: nothing is in a cache."""
    return Volume.open(volume.path, volume.cas, read_only=True)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_damaged_file_is_left_out_and_all_else_is_there(volume: Volume, dest: Path, threads: int) -> None:
    for name in ("a", "bad", "z"):
        volume.write_bytes(f"/{name}", name.encode() * 1000)
    volume.makedirs("/d/e")
    volume.link("/bad", "/d/e/bad-too")
    volume.write_bytes("/d/e/f", b"1")
    damage(volume, "/bad")
    with reopened(volume) as found:
        summary = decrypt_tree(found, dest, threads=threads)
    assert summary.exit_code == 20
    assert sorted(each.path for each in summary.damaged) == [b"bad", b"d/e/bad-too"]
    assert sorted(str(path.relative_to(dest)) for path in dest.rglob("*")) == ["a", "d", "d/e", "d/e/f", "z"]
    assert (dest / "z").read_bytes() == b"z" * 1000


def test_a_damaged_single_file_leaves_nothing(volume: Volume, dest: Path, scratch: Path) -> None:
    volume.write_bytes("/bad", b"x" * 1000)
    damage(volume, "/bad")
    before = set(os.listdir(scratch))
    with reopened(volume) as found:
        assert decrypt_tree(found, dest, path="/bad").exit_code == 20
    assert set(os.listdir(scratch)) == before


def test_a_part_of_the_volume(volume: Volume, dest: Path) -> None:
    volume.makedirs("/a/b")
    volume.write_bytes("/a/b/f", b"1")
    volume.write_bytes("/other", b"1")
    assert decrypt_tree(volume, dest, path="/a").exit_code == 0
    assert (dest / "b/f").read_bytes() == b"1"
    assert os.listdir(dest) == ["b"]


def test_a_single_file(volume: Volume, dest: Path) -> None:
    volume.write_bytes("/f", b"1")
    volume.utime("/f", ns=(5, 7))
    volume.chmod("/f", 0o640)
    summary = decrypt_tree(volume, dest, path="/f")
    assert summary.files == 1
    assert dest.read_bytes() == b"1"
    assert (dest.stat().st_mtime_ns, stat.S_IMODE(dest.stat().st_mode)) == (7, 0o640)
    with pytest.raises(UsageError):
        decrypt_tree(volume, dest, path="/f")


def test_destinations(volume: Volume, dest: Path, scratch: Path) -> None:
    volume.write_bytes("/f", b"1")
    dest.mkdir()
    (scratch / "link").symlink_to(dest)
    assert decrypt_tree(volume, scratch / "link").files == 1  # an empty directory, reached as the user says
    with pytest.raises(UsageError):
        decrypt_tree(volume, dest)
    (scratch / "file").touch()
    with pytest.raises(UsageError):
        decrypt_tree(volume, scratch / "file")
    (scratch / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError):
        decrypt_tree(volume, scratch / "dangling")
    with pytest.raises(FileNotFoundError):
        decrypt_tree(volume, scratch / "no" / "such")
    with pytest.raises(FileNotFoundError):
        decrypt_tree(volume, scratch / "new", path="/no")
    assert not (scratch / "new").exists()


def test_nothing_is_written_through_a_link_that_somebody_puts_there(volume: Volume, dest: Path, scratch: Path) -> None:
    for number in range(3):
        volume.makedirs(f"/d{number}/e")
        volume.write_bytes(f"/d{number}/e/f", b"1")
    outside = scratch / "outside"
    outside.mkdir()

    def attack(_: Progress) -> None:
        for path in dest.glob("d*"):
            if not path.is_symlink():
                shutil.rmtree(path)
                path.symlink_to(outside)

    summary = decrypt_tree(volume, dest, progress=attack)
    assert summary.exit_code == 1
    assert list(outside.rglob("*")) == []


def test_names_come_after_the_sync(volume: Volume, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        volume.write_bytes(f"/{number}", b"x" * 5000)
    volume.link("/1", "/link")
    events: list[str] = []
    sync, rename, link = exporter._syncfs, os.rename, os.link

    def note_sync(tree: Any) -> None:
        assert all(path.name.endswith(".part") for path in dest.iterdir()) or "rename" in events
        events.append("sync")
        sync(tree)

    monkeypatch.setattr(exporter, "_syncfs", note_sync)

    def noted(call: Any, name: str) -> Any:
        def wrapper(*arguments: Any, **options: Any) -> None:
            events.append(name)
            call(*arguments, **options)

        return wrapper

    monkeypatch.setattr(os, "rename", noted(rename, "rename"))
    monkeypatch.setattr(os, "link", noted(link, "link"))
    assert decrypt_tree(volume, dest).exit_code == 0
    assert sorted(events[1:-1]) == ["link"] + ["rename"] * 20
    assert (events[0], events[-1]) == ("sync", "sync")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_full_disk_leaves_no_temporary_files(
    volume: Volume, dest: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    for number in range(200):
        volume.write_bytes(f"/{number}", b"x" * 5000)
    real = os.pwrite
    left = iter(range(150))

    def full(fd: int, data: Any, offset: int) -> int:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space") as caught:
        decrypt_tree(volume, dest, threads=threads)
    assert caught.value.errno == errno.ENOSPC
    assert list(dest.iterdir()) == []


def test_refused_owners_and_attributes_are_warnings(
    volume: Volume, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.write_bytes("/f", b"1")
    volume.chown("/f", 12, 13)
    volume.chmod("/f", 0o6755)
    volume.setxattr("/f", "trusted.a", b"1")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "setxattr", refuse)
    summary = decrypt_tree(volume, dest)
    assert summary.exit_code == 0
    assert [each.path for each in summary.warnings] == [b"f", b"f", b"."]
    assert stat.S_IMODE((dest / "f").stat().st_mode) == 0o755  # suid of another owner would be a gift


def test_refused_devices_are_errors(volume: Volume, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fspf.core.types import ROOT_INO

    volume.mknod(ROOT_INO, b"null", stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    volume.write_bytes("/f", b"1")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    summary = decrypt_tree(volume, dest)
    assert [str(each) for each in summary.errors] == ["'null': Operation not permitted"]
    assert summary.exit_code == 1
    assert os.listdir(dest) == ["f"]


def test_many_files_in_several_batches(
    volume: Volume, dest: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scratch / "source"
    for number in range(40):
        (source / f"d{number % 7}").mkdir(parents=True, exist_ok=True)
        (source / f"d{number % 7}" / str(number)).write_bytes(os.urandom(number * 1000))
        if number % 5 == 0:
            os.link(source / f"d{number % 7}" / str(number), source / f"link{number}")
    os.truncate(source / "d0" / "0", 5 << 20)
    encrypt_tree(source, volume)
    monkeypatch.setattr(exporter, "_BATCH_FILES", 5)
    monkeypatch.setattr(exporter, "_UNIT_FILES", 2)
    assert decrypt_tree(volume, dest, threads=2).exit_code == 0
    assert_same(source, dest)
    assert leftovers(dest) == []
