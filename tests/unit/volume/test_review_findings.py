"""Defects that a review of 2026-11-21 proved, each as the test that would have shown it."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from fspf.cas import open_cas
from fspf.core.errors import IntegrityError, LeaseError, ReadOnlyError
from fspf.core.types import ROOT_INO, Ino
from fspf.volume import inodes
from fspf.volume.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fspf.core.anchor import Cas

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {"segment_slots": 64, "commit_interval": None}


@pytest.fixture
def cas(tmp_path: Path) -> Iterator[Cas]:
    opened = open_cas(f"sqlite://{tmp_path}/cas.sqlite")
    yield opened
    opened.close()


def make(volume: Volume, name: bytes, data: bytes = b"", parent: Ino = ROOT_INO) -> Ino:
    ino = volume.create_inode(parent, name, stat.S_IFREG | 0o644, uid=0, gid=0)
    if data:
        with volume.open_file(ino, write=True) as file:
            file.write(0, data)
    return ino


def test_damaged_directory_page_does_not_drop_what_is_not_committed(tmp_path: Path, cas: Cas) -> None:
    """SQLITE_IOERR, even for a SELECT, rolls the whole transaction back: a read must not raise it."""
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        directories = [volume.mkdir(ROOT_INO, b"d%d" % number, 0o755).ino for number in range(20)]
        for number, directory in enumerate(directories):
            for each in range(60):
                make(volume, b"%03d-%03d-" % (number, each) + b"n" * 200, parent=directory)
    segments = sorted((tmp_path / "v/segments").iterdir())
    volume = Volume.open(tmp_path / "v", cas, cache_bytes=1 << 20, commit_interval=None)
    make(volume, b"new", b"data")
    originals = [path.read_bytes() for path in segments]
    for path, raw in zip(segments, originals, strict=True):
        path.write_bytes(bytes(byte ^ 1 for byte in raw[: 48 * 4096]) + raw[48 * 4096 :])
    refused = 0
    for directory in directories:
        try:
            volume.readdir(directory)
        except IntegrityError:
            refused += 1
    for path, raw in zip(segments, originals, strict=True):
        path.write_bytes(raw)
    assert refused > 0
    assert volume.failed is None
    assert volume.lookup(ROOT_INO, b"new").size == 4
    volume.close()
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        assert volume.lookup(ROOT_INO, b"new").size == 4


def test_full_quota_keeps_what_was_created(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, max_bytes=3 << 20, cache_bytes=1 << 20, **SMALL)
    made = 0
    with pytest.raises(OSError, match="No space") as caught:
        for number in range(40_000):
            make(volume, b"%06d" % number + b"x" * 150)
            made += 1
            if number % 20 == 19:
                volume.commit()
    assert caught.value.errno == errno.ENOSPC
    assert volume.failed is None
    kept = sum(1 for _ in iter_names(volume))
    assert kept >= made
    for number, name in enumerate(list(iter_names(volume))[: kept // 2]):
        volume.unlink(ROOT_INO, name)
        if number % 20 == 19:
            with suppress(OSError):
                volume.commit()
    volume.commit()
    make(volume, b"room again", b"data")
    volume.close()
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        assert sum(1 for _ in iter_names(volume)) == kept - kept // 2 + 1


def iter_names(volume: Volume) -> Iterator[bytes]:
    after = 0
    while entries := volume.readdir(ROOT_INO, after):
        for entry in entries:
            yield entry.name
            after = entry.cookie


def test_very_many_changes_do_not_commit_under_the_lock(
    tmp_path: Path, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inodes, "_MAX_OPERATIONS", 20)
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file")
        stop = threading.Event()

        def syncs() -> None:
            while not stop.is_set():
                volume.fsync()

        thread = threading.Thread(target=syncs)
        thread.start()
        for number in range(300):
            with volume.lock:
                volume.setattr(ino, size=number)
        stop.set()
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_commit_comes_soon_after_very_many_changes(tmp_path: Path, cas: Cas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodes, "_MAX_OPERATIONS", 20)
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        before = volume.status()["generation"]
        for number in range(50):
            make(volume, b"%d" % number)
        for _ in range(500):
            if volume.status()["generation"] > before:
                break
            threading.Event().wait(0.01)
        assert volume.status()["generation"] > before


def test_exchange_takes_the_data_along(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    make(volume, b"config", b"old")
    new = make(volume, b"config.new")
    other = make(volume, b"other")
    volume.commit()
    handle = volume.open_file(new, write=True)
    handle.write(0, b"new")
    volume.rename(ROOT_INO, b"config.new", ROOT_INO, b"config", inodes.RENAME_EXCHANGE)
    volume.setattr(other, mode=0o600)
    volume.fsync(other)
    volume.abandon()
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        with volume.open_file(volume.lookup(ROOT_INO, b"config").ino) as file:
            assert file.read(0, 10) == b"new"


def test_writer_that_slept_through_its_lease_leaves_the_disk_alone(
    tmp_path: Path, cas: Cas, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", logger="fspf")
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    make(volume, b"file", b"words")
    volume.commit()
    commits = volume._commits
    assert commits is not None
    cas.release(volume.header.volume_id, commits._lease)  # as if it had run out, and another took over:
    record = cas.fetch(volume.header.volume_id)
    cas.acquire(
        record.volume_id, expected=record.anchor, expected_epoch=record.epoch, adopt=record.anchor,
        holder=commits._lease.holder,
    )  # fmt: skip
    commits._contact -= 3600
    roots = [(tmp_path / "v" / name).read_bytes() for name in ("root.a", "root.b")]
    make(volume, b"late", b"words")
    with pytest.raises(LeaseError):
        volume.commit()
    assert [(tmp_path / "v" / name).read_bytes() for name in ("root.a", "root.b")] == roots
    with pytest.raises(ReadOnlyError):
        make(volume, b"later")
    volume.abandon()


def test_nothing_follows_the_last_commit(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    ino = make(volume, b"file", b"words")
    handle = volume.open_file(ino, write=True)
    volume.close()
    with pytest.raises(ReadOnlyError):
        handle.write(0, b"late")
    with pytest.raises(ReadOnlyError):
        volume.commit()
    with pytest.raises(RuntimeError, match="lock"):
        volume._layout.write_root(9, bytes(4096))


def test_failed_append_to_a_damaged_file_leaves_its_size(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file", os.urandom(120))
        volume.commit()
    volume = Volume.open(tmp_path / "v", cas, commit_interval=None)
    row = volume.namespace.inode(ino)
    assert row is not None
    assert row.pointer is not None
    segment, place = divmod(int.from_bytes(row.pointer[:5], "little"), 64)
    with (tmp_path / "v/segments" / f"{segment:08x}").open("r+b") as host:
        host.seek(place * 4096 + 7)
        host.write(b"!")
    with volume.open_file(ino, write=True) as file:
        try:
            file.write(120, os.urandom(9000))
        except IntegrityError:
            assert file.size == 120
        else:
            pytest.fail("the damage was not noticed")
    volume.abandon()


def test_closing_the_volume_closes_streams_left_open(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        binary = volume.open_stream("/binary", "wb")
        binary.write(b"buffered")
        text = volume.open_stream("/text", "w", encoding="utf-8")
        text.write("buffered, and encoded late")
    assert binary.closed
    assert text.closed
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        assert volume.read_bytes("/binary") == b"buffered"
        assert volume.read_bytes("/text") == b"buffered, and encoded late"


def test_use_after_close_is_no_damage(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    volume.close()
    with pytest.raises(ValueError, match="the volume is closed"):
        volume.stat("/")
    with pytest.raises(ValueError, match="the volume is closed"):
        volume.status()
