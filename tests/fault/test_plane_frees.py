"""The data plane and space: what is deleted is freed once and at the right moment, what cannot be written is told."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fspf.core.types import ROOT_INO, Ino
from fspf.volume.check import verify_volume
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.fault.sabotage import Instead
from tests.fault.slots_truth import slot_problems
from tests.support import fusewire as w
from tests.support import leftovers
from tests.support.fakekernel import ROOT
from tests.support.fakemount import FakeMount
from tests.support.fusewire import Op
from tests.support.logs import Quiet

CHUNK = 4096


@pytest.fixture
def cas() -> MemoryCas:
    return MemoryCas()


def create(path: Path, cas: MemoryCas) -> Volume:
    return Volume.create(path, cas, segment_slots=64, commit_interval=None)


def check_closed(path: Path, cas: MemoryCas) -> None:
    with Volume.open(path, cas, read_only=True) as volume:
        assert list(verify_volume(volume, threads=1)) == []
        assert slot_problems(volume) == []


def test_a_file_that_is_forgotten_while_somebody_uses_it_is_deleted_by_whoever_lets_go(
    scratch: Path, cas: MemoryCas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background thread flushes a file in the moment in which its last user goes: it must not stay for ever."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(_: int) -> int:
        inside.set()
        assert go_on.wait(30)
        return 0

    with create(scratch / "v", cas) as volume, FakeMount(volume) as mounted:
        kernel = mounted.kernel
        made = kernel.create(ROOT, b"f")
        kernel.write(made.ino, 0, b"data" * 10 * CHUNK)
        kernel.setxattr(made.ino, b"user.x", b"y")
        volume.commit()
        used = volume.store.stats()["slots_used"]
        monkeypatch.setattr(mounted.plane, "drop_capability", wait)
        body = w.SETATTR_IN.pack(w.FATTR_SIZE, 0, 0, 100, *[0] * 12)
        waiting = kernel.submit(Op.SETATTR, made.ino, body)  # it pins the inode
        assert inside.wait(30)
        kernel.unlink(ROOT, b"f")
        kernel.forget(made.ino)
        kernel.getattr(ROOT)  # the one after it is answered: so FORGET was read
        go_on.set()
        waiting.result(30)
        volume.commit()
        volume.commit()
        assert volume.namespace.inode(Ino(made.ino)) is None
        assert volume.store.stats()["slots_used"] < used - 9
    check_closed(scratch / "v", cas)


def test_what_is_flushed_while_the_plane_ends_is_not_freed_by_the_commit_under_way(
    scratch: Path, cas: MemoryCas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit's state still names the old slots: they are free with the next commit, not with this one."""
    path, old = scratch / "v", os.urandom(8 * CHUNK)
    volume = create(path, cas)
    mounted = FakeMount(volume)
    kernel = mounted.kernel
    filler = kernel.create(ROOT, b"filler")
    kernel.write(filler.ino, 0, b"f" * 150 * CHUNK)
    made = kernel.create(ROOT, b"f")
    kernel.write(made.ino, 0, old)
    volume.commit()
    kernel.unlink(ROOT, b"filler")  # so much that is free that it is used before the volume grows
    kernel.forget(filler.ino)
    volume.commit()
    kernel.mknod(ROOT, b"another", 0o100600)  # so that there is something to commit
    commit = volume.namespace.commit

    def and_meanwhile() -> None:
        commit()
        kernel.write(made.ino, 0, os.urandom(8 * CHUNK))
        mounted.plane.relay.flush_all()
        mounted.plane.relay.stop()

    with monkeypatch.context() as patched:
        patched.setattr(volume.namespace, "commit", and_meanwhile)
        volume.commit()
    other = volume.mknod(ROOT_INO, b"more", 0o100600).ino
    with volume.open_file(other, write=True) as file:
        file.write(0, os.urandom(250 * CHUNK))  # takes every slot that is free
        file.flush()
    volume.abandon()  # killed here: the last commit is what counts
    mounted.break_off()
    with Volume.open(path, cas) as again, again.open_file(again.lookup(ROOT_INO, b"f").ino) as file:
        assert file.read(0, 8 * CHUNK) == old


def test_data_that_cannot_be_written_at_the_end_is_an_error_of_closing(
    scratch: Path, cas: MemoryCas, quiet: Quiet, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = create(scratch / "v", cas)
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        made = kernel.create(ROOT, b"f")
        kernel.write(made.ino, 0, b"x" * CHUNK)
        assert volume.mirror is not None
        volume.mirror = Instead(volume.mirror, flush_all=lambda: errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        volume.close()


def test_files_without_a_name_go_with_the_mount(scratch: Path, cas: MemoryCas) -> None:
    """The kernel forgets nothing when it unmounts, and a crash of the kernel's side forgets nothing either."""
    volume = create(scratch / "v", cas)
    mounted = FakeMount(volume)
    kernel = mounted.kernel
    made = kernel.create(ROOT, b"f")
    kernel.write(made.ino, 0, b"x" * 20 * CHUNK)
    volume.commit()
    kernel.unlink(ROOT, b"f")
    kernel.tmpfile(ROOT)
    mounted.break_off()
    assert volume.namespace.files == 1
    volume.close()
    check_closed(scratch / "v", cas)
    with Volume.open(scratch / "v", cas, read_only=True) as again:
        assert again.namespace.unlinked() == []


def test_files_made_beside_an_access_list_leave_nothing_in_memory(scratch: Path, cas: MemoryCas) -> None:
    with create(scratch / "v", cas) as volume, FakeMount(volume) as mounted:
        kernel = mounted.kernel
        directory = kernel.mkdir(ROOT, b"d")
        kernel.setxattr(directory.ino, b"user.x", b"y")  # from now on the control plane makes its files
        for number in range(20):
            made = kernel.create(directory.ino, b"%d" % number)
            kernel.unlink(directory.ino, b"%d" % number)
            kernel.forget(made.ino)
        operations = mounted.operations
        assert (len(operations._absent), len(operations._known), len(volume._orphans)) == (0, 0, 0)


def test_a_file_that_was_logged_and_deleted_is_not_remembered(scratch: Path, cas: MemoryCas) -> None:
    """Each root would look for all that ever were."""
    with create(scratch / "v", cas) as volume, FakeMount(volume) as mounted:
        kernel = mounted.kernel
        kernel.mknod(ROOT, b"first", 0o100600)
        volume.commit()
        for number in range(10):
            made = kernel.create(ROOT, b"%d" % number)
            kernel.write(made.ino, 0, b"x")
            kernel.fsync(made.ino)
            kernel.unlink(ROOT, b"%d" % number)
            kernel.forget(made.ino)
        volume.commit()
        assert not volume.intent.logged


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("no-root: mounting a small disk")
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(point)], check=True)
    try:
        yield point
    finally:
        for mounted in leftovers.mounts_below(str(point)):
            leftovers.unmount(mounted)


def test_no_fsync_succeeds_while_another_one_fails_to_write_the_file(
    small_disk: Path, cas: MemoryCas, quiet: Quiet
) -> None:
    """Who comes while a flush of the same file is under way must not take it for done."""
    quiet.allow("No space left")
    with Volume.create(small_disk / "v", cas, segment_slots=64, commit_interval=None) as volume:
        with FakeMount(volume) as mounted, ThreadPoolExecutor(12) as pool:
            kernel = mounted.kernel
            made = kernel.create(ROOT, b"f")
            kernel.fsync(made.ino)
            for number in range(250):  # no more than stays in memory
                kernel.write(made.ino, number * CHUNK, os.urandom(CHUNK - 1))
            ballast = small_disk / "ballast"
            space = os.statvfs(small_disk)
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - (1 << 16))
            results: list[Any] = []
            for _ in range(20):
                calls = [pool.submit(kernel.call, Op.FSYNC, made.ino, bytes(16)) for _ in range(12)]
                results += [call.result(60).error for call in calls]
            assert set(results) == {errno.ENOSPC}
            ballast.unlink()
            kernel.fsync(made.ino)
