"""What the data plane has answered, and what of it is in the volume after a commit, a failure or an unmount."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fspf.core.errors import FspfError
from fspf.core.types import ROOT_INO, Ino
from fspf.mount.control import Control
from fspf.mount.operations import Operations
from fspf.mount.plane import Plane
from fspf.volume.volume import Volume
from fspf_native import Relay, Tree
from tests.fault.memcas import MemoryCas
from tests.support.fakekernel import ROOT, FakeKernel
from tests.support.fakemount import FakeMount, Scripted, ThroughOperations
from tests.support.logs import Quiet

SMALL: dict[str, Any] = {"commit_interval": None}


@pytest.fixture
def cas() -> MemoryCas:
    return MemoryCas()


def test_numbers_that_the_control_plane_takes_are_never_given_again(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        mounted.kernel.symlink(ROOT, b"s", b"target")  # nothing else waits: no drain tells the volume of numbers
    with Volume.open(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        made = mounted.kernel.create(ROOT, b"f")
        assert mounted.kernel.lookup(ROOT, b"s").ino != made.ino
    with Volume.open(scratch / "volume", cas, read_only=True) as volume:
        assert volume.readlink(volume.lookup(ROOT_INO, b"s").ino) == b"target"
        assert [entry.name for entry in volume.readdir(ROOT_INO)] == [b"s", b"f"]


def committed(volume: Volume, cas: MemoryCas, name: bytes) -> bytes:
    """What a crash now would leave in a file."""
    with Volume.open(volume.path, cas, read_only=True) as state:
        with state.open_file(state.lookup(ROOT_INO, name).ino) as file:
            return file.read(0, file.size)


@contextmanager
def flushing(relay: Relay) -> Iterator[None]:
    """Flush all contents again and again on other threads."""
    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            relay.flush_all()

    threads = [threading.Thread(target=flush) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_fsync_waits_for_a_flush_that_is_under_way(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        kernel = mounted.kernel
        ino = kernel.create(ROOT, b"f").ino
        with flushing(mounted.plane.relay):
            for round_ in range(60):
                data = bytes([round_]) * 800_000
                for offset in range(0, len(data), 50_000):  # small: they stay in memory
                    kernel.write(ino, offset, data[offset : offset + 50_000], cached=True)
                kernel.fsync(ino)
                assert committed(volume, cas, b"f") == data


def test_flushes_of_one_content_are_noted_in_their_order(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        kernel, relay = mounted.kernel, mounted.plane.relay
        ino = kernel.create(ROOT, b"f").ino
        with flushing(relay):
            for round_ in range(1500):
                data = round_.to_bytes(8, "big") * 2049
                kernel.write(ino, 0, data[8:], cached=True)
                kernel.write(ino, 0, data, cached=True)
                assert relay.flush_all() == 0
                with volume.lock:
                    row = volume.namespace.inode(Ino(ino))
                    assert row is not None
                    tree = Tree(volume.store, row.root, protection=row.protection, allocated=row.chunks)
                    assert tree.read(0, 20000) == data


def test_what_finds_no_room_at_the_unmount_is_told_and_hinders_nothing_else(
    scratch: Path, cas: MemoryCas, quiet: Quiet
) -> None:
    quiet.require("flush: .*quota is used up")
    volume = Volume.create(scratch / "volume", cas, max_bytes=8 << 20, **SMALL)
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        large = [kernel.create(ROOT, b"%d" % i).ino for i in range(8)]
        small = kernel.create(ROOT, b"small").ino
        kernel.fsyncdir(ROOT)
        for ino in large:
            for offset in range(0, 200 * 4096, 32768):
                kernel.write(ino, offset, b"x" * 32768, cached=True)
        kernel.write(small, 0, b"small", cached=True)
        for number in range(6000):  # the namespace takes the room that there was for the data
            kernel.mknod(ROOT, b"%0250d" % number, 0o100644)
        kernel.fsyncdir(ROOT)
    with pytest.raises(OSError, match="No space left") as info:
        volume.close()
    assert info.value.errno == errno.ENOSPC
    with Volume.open(scratch / "volume", cas, read_only=True) as again:
        sizes = {entry.name: entry.attr.size for entry in again.readdir(ROOT_INO, limit=9)}
    assert sizes[b"small"] == 5
    assert sizes[b"0"] == 200 * 4096


def test_nothing_is_sealed_for_a_volume_that_has_failed(scratch: Path, cas: MemoryCas, quiet: Quiet) -> None:
    quiet.allow("turned read-only: somebody else writes")
    volume = Volume.create(scratch / "volume", cas, **SMALL)
    with FakeMount(volume) as mounted:
        kernel, relay = mounted.kernel, mounted.plane.relay
        ino = kernel.create(ROOT, b"f").ino
        kernel.write(ino, 0, b"data")
        volume.fail("somebody else writes")
        before = volume.store.stats()["bytes_sealed"]
        relay.relieve(0)
        with pytest.raises(OSError, match="fsync") as info:
            kernel.fsync(ino)
        assert info.value.errno == errno.EROFS
        for thread in threading.enumerate():
            if thread.name == "fspf-apply":
                thread.join(60)  # it has nothing to do any more
                assert not thread.is_alive()
        assert kernel.read(ino, 0, 10) == b"data"
    assert volume.store.stats()["bytes_sealed"] == before
    with pytest.raises(FspfError, match="somebody else writes"):
        volume.close()


def test_a_change_that_was_taken_back_leaves_no_trace_in_memory(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        kernel, namespace = mounted.kernel, volume.namespace
        made = kernel.create(ROOT, b"f", 0o640)
        with volume.lock, suppress(InterruptedError), namespace.change():
            namespace.update(Ino(made.ino), mode=0o104777, nlink=7)
            kernel.write(made.ino, 0, b"data")  # meanwhile the row waits for the next drain, whole
            raise InterruptedError
        assert kernel.getattr(made.ino).mode == made.attr.mode
        assert kernel.getattr(made.ino).nlink == 1
        with volume.lock:
            row = namespace.inode(Ino(made.ino))
            assert row is not None
            assert row.mode == made.attr.mode


def test_replies_know_what_is_only_in_memory(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        kernel = mounted.kernel
        directory = kernel.mkdir(ROOT, b"d").ino
        ino = kernel.create(directory, b"f").ino
        kernel.setxattr(ino, b"user.a", b"b")  # a change of mode is now the control plane's, too
        kernel.write(ino, 0, b"x" * 5000)
        assert kernel.setattr(ino, mode=0o600).size == 5000
        assert kernel.lookup(ino, b".").attr.size == 5000  # as a server of NFS asks, who has a handle and no path
        assert kernel.lookup(directory, b"..").ino == ROOT
        assert kernel.lookup(ROOT, b"..").ino == ROOT
        with pytest.raises(NotADirectoryError):
            kernel.lookup(ino, b"..")
        kernel.unlink(directory, b"f")
        with pytest.raises(OSError, match=r"[Ss]tale"):  # as ext4 has it: what has no name is nobody's any more
            kernel.lookup(ino, b".")


def test_the_view_is_in_every_reply(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume:
        operations = Operations(volume, Control(volume, mountpoint="/nowhere"), atime=False)
        operations.native = True
        kernel = FakeKernel()
        control = Scripted(ThroughOperations(operations))
        plane = Plane(
            volume, operations, kernel.device, control.relay_end, atime=False, cache_bytes=1 << 20, uid=77, gid=78, umask=0o077
        )  # fmt: skip
        plane.start()
        kernel.init()
        ino = kernel.create(ROOT, b"f").ino
        kernel.setxattr(ino, b"user.a", b"b")
        changed = kernel.setattr(ino, mode=0o4777)
        assert (changed.uid, changed.gid, changed.mode) == (77, 78, 0o100700)
        link = kernel.symlink(ROOT, b"s", b"f").attr
        assert (link.uid, link.gid, link.mode) == (77, 78, 0o120777)
        kernel.destroy()
        plane.stop()
        control.close()
        operations.forget_all()
        kernel.close()


def test_times_that_wait_for_the_commit_survive_eviction(scratch: Path, cas: MemoryCas) -> None:
    with (
        Volume.create(scratch / "volume", cas, **SMALL) as volume,
        FakeMount(volume, cache_bytes=1 << 16) as mounted,
    ):
        kernel = mounted.kernel
        parent = kernel.mkdir(ROOT, b"parent").ino
        kernel.mkdir(parent, b"first")  # an entry that is let go as soon as it is loaded
        child = kernel.mkdir(parent, b"child").ino
        kernel.statfs()
        kernel.symlink(child, b"s", b"target")
        changed = kernel.getattr(child).mtime_ns
        for number in range(2000):
            kernel.create(ROOT, b"%d" % number)
            if number % 50 == 0:
                kernel.statfs()  # stores rows: they can be let go then
        assert mounted.plane.relay.stats()["evictions"] > 1000
        assert kernel.lookup(parent, b"child").attr.mtime_ns == changed


def test_a_directory_that_exceeds_the_cache_is_read_once(scratch: Path, cas: MemoryCas) -> None:
    with (
        Volume.create(scratch / "volume", cas, **SMALL) as volume,
        FakeMount(volume, cache_bytes=1 << 16) as mounted,
    ):
        kernel = mounted.kernel
        directory = kernel.mkdir(ROOT, b"d").ino
        for number in range(1500):
            kernel.create(directory, b"%d" % number)
        kernel.statfs()
        for number in range(20):
            assert kernel.lookup(directory, b"%d" % number).ino
        before = mounted.plane.relay.stats()["upcalls"]
        for number in range(20):
            assert kernel.lookup(directory, b"%d" % (100 + number)).ino
        assert mounted.plane.relay.stats()["upcalls"] - before <= 20  # one for each inode


def test_the_part_of_a_change_that_failed_is_flushed_like_any_other(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, max_bytes=4 << 20, **SMALL) as volume, FakeMount(volume) as mounted:
        kernel, relay = mounted.kernel, mounted.plane.relay
        holes = kernel.create(ROOT, b"holes").ino
        kernel.truncate(holes, 1 << 20)
        kernel.write(holes, 0, b"x" * 4096)
        kernel.write(holes, 999 * 1024, b"x" * 4096)
        volume.commit()  # an fsync would leave it to the intent log
        full = kernel.create(ROOT, b"full").ino
        with pytest.raises(OSError, match="write"):
            for offset in range(0, 4 << 20, 4096):
                kernel.write(full, offset, b"y" * 4096)
        assert relay.changed_contents == 1
        kernel.truncate(full, offset - 4096)  # room for one edge of two
        with pytest.raises(OSError, match="fallocate"):
            kernel.fallocate(holes, 3, 100, 999 * 1024)
        assert relay.changed_contents == 2
        kernel.truncate(full, 0)


def test_a_state_that_could_not_be_prepared_is_prepared_by_the_next_commit(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume:
        volume.mkdir(ROOT_INO, b"d", 0o755)
        (scratch / "volume").rename(scratch / "away")
        with pytest.raises(FileNotFoundError):
            volume.commit()
        (scratch / "away").rename(scratch / "volume")
        volume.commit()
        with Volume.open(scratch / "volume", cas, read_only=True) as state:
            assert state.lookup(ROOT_INO, b"d").mode
