"""The engine's promises that need no mount, no crash and no attacker."""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fspf.cas import open_cas
from fspf.core.errors import (
    CasUnreachableError,
    DamagedFileError,
    LeaseHeldError,
    NotAVolumeError,
    ReadOnlyError,
    UnknownVolumeError,
    VolumeExistsError,
)
from fspf.core.freshness import Freshness
from fspf.core.types import ROOT_INO, Ino, Protection
from fspf.volume.rekey import rekey
from fspf.volume.volume import Volume
from fspf_native import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fspf.core.anchor import Anchor, Cas, CasRecord, Lease

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


def content(volume: Volume, ino: Ino) -> bytes:
    with volume.open_file(ino) as file:
        return file.read(0, file.size)


def test_what_was_written_is_there_after_reopening(tmp_path: Path, cas: Cas) -> None:
    data = os.urandom(3_000_001)
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file", data)
        volume.setxattr(ino, b"user.colour", b"green")
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        attr = volume.lookup(ROOT_INO, b"file")
        assert attr.size == len(data)
        assert content(volume, attr.ino) == data
        assert volume.getxattr(attr.ino, b"user.colour") == b"green"
        assert volume.problems == ()


def test_reading_needs_no_lease_and_changes_nothing(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file", b"words")
        volume.commit()
        before = {path: path.read_bytes() for path in (tmp_path / "v").rglob("*") if path.is_file()}
        with Volume.open(tmp_path / "v", cas, read_only=True) as reader:
            assert content(reader, ino) == b"words"
            with pytest.raises(ReadOnlyError):
                reader.create_inode(ROOT_INO, b"x", stat.S_IFREG, uid=0, gid=0)
        assert {path: path.read_bytes() for path in (tmp_path / "v").rglob("*") if path.is_file()} == before


def test_second_writer_is_refused(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL), pytest.raises(LeaseHeldError):
        Volume.open(tmp_path / "v", cas)


def test_copy_is_refused_while_the_original_is_leased(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, label="original", **SMALL) as volume:
        make(volume, b"file", b"words")
        volume.commit()
        os.system(f"cp -a {tmp_path}/v {tmp_path}/copy")
        with pytest.raises(LeaseHeldError, match="original"):
            Volume.open(tmp_path / "copy", cas)


def test_abandoned_changes_are_gone_and_committed_ones_stay(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    make(volume, b"kept", b"kept")
    volume.commit()
    make(volume, b"lost", b"lost")
    volume.abandon()
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        assert [entry.name for entry in volume.readdir(ROOT_INO)] == [b"kept"]


def test_fsync_of_one_file_leaves_the_others_data_in_memory(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    first, second = make(volume, b"first"), make(volume, b"second")
    one, two = volume.open_file(first, write=True), volume.open_file(second, write=True)
    one.write(0, b"durable")
    two.write(0, b"in memory")
    one.fsync()
    volume.abandon()
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        assert content(volume, first) == b"durable"
        assert content(volume, second) == b""


def test_replacing_by_rename_without_fsync_gives_old_or_new_data(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    make(volume, b"config", b"old")
    other = make(volume, b"other", b"x")
    new = make(volume, b"config.new")
    volume.commit()
    handle = volume.open_file(new, write=True)  # never closed: RELEASE comes late through FUSE
    handle.write(0, b"new")
    volume.rename(ROOT_INO, b"config.new", ROOT_INO, b"config")
    volume.setattr(other, mode=0o600)
    volume.fsync(other)
    volume.abandon()
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        assert content(volume, volume.lookup(ROOT_INO, b"config").ino) == b"new"


def test_concurrent_fsyncs_share_commits(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        files = [volume.open_file(make(volume, b"%d" % number), write=True) for number in range(16)]
        before = volume.status()["commits"]
        barrier = threading.Barrier(len(files))

        def work(number: int) -> None:
            for step in range(10):
                barrier.wait()
                files[number].write(step * 4096, bytes([number]) * 4096)
                files[number].fsync()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(len(files))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert volume.status()["commits"] - before <= 80  # 160 fsyncs; two commits a round would be 20
        for file in files:
            file.close()


def test_fsync_of_a_clean_volume_commits_nothing(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file", b"words")
        volume.fsync(ino)
        generation = volume.status()["generation"]
        volume.fsync(ino)
        volume.commit()
        assert volume.status()["generation"] == generation


def test_opening_and_closing_without_a_change_commits_nothing(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        make(volume, b"file", b"words")
    generations = []
    for _ in range(3):
        with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
            generations.append(volume.status()["generation"])
    assert len(set(generations)) == 1


def test_deleted_files_give_their_slots_back(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        volume.commit()
        empty = volume.store.stats()["slots_used"]
        for number in range(20):
            make(volume, b"%d" % number, os.urandom(700_000))
        volume.commit()
        assert volume.store.stats()["slots_used"] > 20 * 170
        for number in range(20):
            volume.unlink(ROOT_INO, b"%d" % number)
        volume.commit()
        volume.commit()
        assert volume.store.stats()["slots_used"] <= empty + 8


@pytest.mark.parametrize("crash", [False, True], ids=["clean", "crashed"])
def test_space_is_known_again_after_reopening(tmp_path: Path, cas: Cas, *, crash: bool) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    for number in range(10):
        make(volume, b"%d" % number, os.urandom(100_000))
    volume.commit()
    for number in range(5):
        volume.unlink(ROOT_INO, b"%d" % number)
    volume.commit()
    volume.commit()
    truth = volume.store.stats()["slots_used"]
    if crash:
        make(volume, b"lost", os.urandom(500_000))
        volume.abandon()
    else:
        volume.close()
    volume = Volume.open(tmp_path / "v", cas, commit_interval=None)
    if volume._rebuild is not None:
        assert volume._rebuild.wait()
    assert crash == (volume._rebuild is not None)
    assert volume.store.stats()["slots_used"] <= truth + 8
    data = os.urandom(400_000)
    ino = make(volume, b"new", data)
    volume.close()
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        assert content(volume, ino) == data
        assert sorted(entry.name for entry in volume.readdir(ROOT_INO)) == [b"5", b"6", b"7", b"8", b"9", b"new"]
        for entry in volume.readdir(ROOT_INO):
            content(volume, entry.attr.ino)


def test_unlinked_file_lives_as_long_as_its_handle(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file", b"still here")
        handle = volume.open_file(ino, write=True)
        volume.unlink(ROOT_INO, b"file")
        volume.commit()
        assert handle.read(0, 100) == b"still here"
        assert volume.getattr(ino).nlink == 0
        handle.write(5, b" HERE")
        handle.close()
        with pytest.raises(OSError, match="No such file") as caught:
            volume.getattr(ino)
        assert caught.value.errno == errno.ENOENT


def test_unlinked_open_file_is_purged_after_a_crash(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, **SMALL)
    ino = make(volume, b"file", os.urandom(50_000))
    volume.hold(ino)
    volume.unlink(ROOT_INO, b"file")
    volume.commit()
    volume.abandon()
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        assert volume.namespace.unlinked() == []
        assert volume.status()["files"] == 1


def test_quota_gives_enospc_and_deleting_helps(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, max_bytes=4 << 20, **SMALL) as volume:
        small = make(volume, b"small", b"x" * 4096)
        volume.commit()
        big = make(volume, b"big")
        with pytest.raises(OSError, match="No space") as caught, volume.open_file(big, write=True) as file:
            for offset in range(0, 16 << 20, 1 << 20):
                file.write(offset, os.urandom(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        volume.unlink(ROOT_INO, b"big")
        volume.commit()
        volume.commit()
        data = os.urandom(1 << 20)
        again = make(volume, b"again", data)
        volume.commit()
        assert content(volume, small) == b"x" * 4096
        assert content(volume, again) == data


def test_authenticated_content_is_readable_in_storage_but_not_alterable(tmp_path: Path, cas: Cas) -> None:
    needle = b"PUBLIC-BUT-AUTHENTIC" * 200
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        directory = volume.mkdir(ROOT_INO, b"public", 0o755).ino
        volume.set_protection(directory, Protection.AUTHENTICATED)
        ino = make(volume, b"file", needle, directory)
        assert volume.getattr(ino).protection is Protection.AUTHENTICATED
        secret = make(volume, b"secret", needle[::-1])
        with pytest.raises(OSError, match="cross-device") as caught:
            volume.rename(ROOT_INO, b"secret", directory, b"secret")
        assert caught.value.errno == errno.EXDEV
        assert content(volume, secret) == needle[::-1]
    segment = tmp_path / "v/segments/00000000"
    raw = bytearray(segment.read_bytes())
    place = raw.find(needle[:100])
    assert place >= 0
    assert raw.find(needle[::-1][:100]) < 0
    raw[place] ^= 1
    segment.write_bytes(raw)
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        with pytest.raises(DamagedFileError, match="torn") as damage:
            content(volume, ino)
        assert damage.value.path == b"/public/file"
        assert content(volume, secret) == needle[::-1]


def test_wrong_places_are_told(tmp_path: Path, cas: Cas) -> None:
    with pytest.raises(NotAVolumeError):
        Volume.open(tmp_path / "missing", cas)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotAVolumeError):
        Volume.open(tmp_path / "empty", cas)
    assert list((tmp_path / "empty").iterdir()) == []
    Volume.create(tmp_path / "v", cas, **SMALL).close()
    with pytest.raises(VolumeExistsError):
        Volume.create(tmp_path / "v", cas)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(VolumeExistsError, match="not empty"):
        Volume.create(tmp_path / "full", cas)
    other = open_cas(f"sqlite://{tmp_path}/other.sqlite")
    Volume.create(tmp_path / "others", other, **SMALL).close()
    with pytest.raises(UnknownVolumeError):
        Volume.open(tmp_path / "v", other)
    other.close()


def test_failed_creation_leaves_nothing(tmp_path: Path, cas: Cas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Volume, "commit", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        Volume.create(tmp_path / "v", cas, **SMALL)
    assert not (tmp_path / "v").exists()
    assert cas.list() == []


@pytest.mark.parametrize("times", [1, 3])
def test_rekey_keeps_content_and_shuts_the_old_key_out(tmp_path: Path, cas: Cas, times: int) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file", b"words" * 3000)
        old_key = volume.record.key
    for expected in range(2, times + 2):
        assert rekey(tmp_path / "v", cas) == expected
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        assert content(volume, ino) == b"words" * 3000
        assert volume.record.key != old_key
        assert volume._rebuild is None  # the space map survived
        make(volume, b"more", b"words")
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        assert len(volume.readdir(ROOT_INO)) == 2


class AwayCas:
    """A CAS whose network can be cut; everything else is the real one's."""

    def __init__(self, cas: Cas) -> None:
        self._cas = cas
        self.away = False
        self.url = cas.url

    def __getattr__(self, name: str) -> object:
        if self.away:
            raise CasUnreachableError("the network is cut")
        return getattr(self._cas, name)

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        if self.away:
            raise CasUnreachableError("the network is cut")
        self._cas.advance(volume_id, lease, expected, new)

    def fetch(self, volume_id: bytes) -> CasRecord:
        if self.away:
            raise CasUnreachableError("the network is cut")
        return self._cas.fetch(volume_id)


def test_strict_fsync_waits_for_the_cas_and_then_turns_read_only(
    tmp_path: Path, cas: Cas, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", logger="fspf")
    away = AwayCas(cas)
    volume = Volume.create(tmp_path / "v", away, cas_timeout_s=0.3, **SMALL)  # type: ignore[arg-type]
    ino = make(volume, b"file", b"anchored")
    volume.commit()
    away.away = True
    with volume.open_file(ino, write=True) as file:
        file.write(0, b"DURABLE!")
        with pytest.raises(CasUnreachableError, match="not anchored"):
            file.fsync()
        with pytest.raises(ReadOnlyError):
            file.write(0, b"x")
        assert file.read(0, 10) == b"DURABLE!"
    away.away = False
    volume.abandon()
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        assert content(volume, ino) == b"DURABLE!"


def test_bounded_fsync_returns_before_the_cas_and_the_window_is_kept(tmp_path: Path, cas: Cas) -> None:
    volume = Volume.create(tmp_path / "v", cas, freshness=Freshness.parse("bounded:60000ms,4"), **SMALL)
    ino = make(volume, b"file")
    with volume.open_file(ino, write=True) as file:
        for step in range(20):
            file.write(step, b"x")
            file.fsync()
            status = volume.status()
            assert 0 <= status["generation"] - status["anchored_generation"] <= 5
    volume.close()
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        assert content(volume, ino) == b"x" * 20


@pytest.mark.parametrize("mode", ["strict", "bounded:100ms", "none"])
def test_every_mode_survives_a_crash(tmp_path: Path, cas: Cas, mode: str) -> None:
    volume = Volume.create(tmp_path / "v", cas, freshness=Freshness.parse(mode), **SMALL)
    inos = []
    for number in range(12):
        inos.append(make(volume, b"%d" % number, os.urandom(9000)))
        volume.commit()
    truth = [content(volume, ino) for ino in inos]
    volume.abandon()
    with Volume.open(tmp_path / "v", cas, commit_interval=None) as volume:
        assert [content(volume, ino) for ino in inos] == truth


def test_larger_chunks_work(tmp_path: Path, cas: Cas) -> None:
    data = os.urandom(1_000_000)
    with Volume.create(tmp_path / "v", cas, chunk_size=16384, segment_slots=64, commit_interval=None) as volume:
        ino = make(volume, b"file", data)
    with Volume.open(tmp_path / "v", cas, read_only=True) as volume:
        assert content(volume, ino) == data


def test_small_volume_takes_little_space_when_closed(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, commit_interval=None) as volume:
        make(volume, b"file", b"words")
        assert volume.store.stats()["slots_reserved"] > 0
    used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "v").rglob("*"))
    assert used < 200_000


def in_child(action: Callable[[], object]) -> str:
    """Run *action* in a forked child; the name of what it raised."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            name = "nothing"
        except BaseException as exc:  # noqa: BLE001  # the name of it is the result
            name = type(exc).__name__
        os.write(write_end, name.encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as file:
        return file.read()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_child_cannot_seal_nor_end_the_lease(tmp_path: Path, cas: Cas) -> None:
    with Volume.create(tmp_path / "v", cas, **SMALL) as volume:
        ino = make(volume, b"file", b"words")
        volume.commit()
        with volume.open_file(ino, write=True) as file:
            assert in_child(lambda: file.read(0, 5)) == "nothing"
            assert in_child(lambda: file.write(0, b"x")) == "ReadOnlyError"
            assert in_child(lambda: Tree(volume.store).write(b"x" * 100_000, 0)) == "RuntimeError"
            assert in_child(volume.commit) == "ReadOnlyError"
            assert in_child(volume.close) == "nothing"
            assert in_child(volume.abandon) == "nothing"
            file.write(0, b"WORDS")
            file.fsync()
        record = cas.fetch(volume.header.volume_id)
        assert record.lease is not None
        assert content(volume, ino) == b"WORDS"
