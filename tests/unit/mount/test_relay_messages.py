"""Messages that no kernel sends: each gets an errno, none harms the relay, and none of it reaches the control plane."""

from __future__ import annotations

import errno
import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.support import fusewire as w
from tests.support.fakekernel import ROOT, FakeKernel, Reply
from tests.support.fakemount import FakeMount
from tests.support.fusewire import Op

NAME = b"name\0"
LONG = b"x" * 256 + b"\0"
HUGE = (1 << 64) - 1


@pytest.fixture(scope="module")
def shared(scratch_root: Path) -> Iterator[FakeMount]:
    with (
        tempfile.TemporaryDirectory(dir=scratch_root) as directory,
        Volume.create(Path(directory) / "volume", MemoryCas(), commit_interval=None) as volume,
        FakeMount(volume) as made,
    ):
        use(made)
        use(made)  # two commits: every file that the volume has is open now
        yield made


@pytest.fixture
def mounted(shared: FakeMount) -> Iterator[FakeMount]:
    """One mount for all tests of this file: each leaves it as empty, and as able to work, as it was."""
    yield shared
    empty(shared)
    use(shared)


def empty(mounted: FakeMount) -> None:
    kernel = mounted.kernel
    for name, found in kernel.listdir(ROOT).items():
        (kernel.rmdir if found.kind == stat.S_IFDIR >> 12 else kernel.unlink)(ROOT, name)


def use(mounted: FakeMount) -> None:
    """Show that everything still works."""
    kernel = mounted.kernel
    made = kernel.mkdir(ROOT, b"works")
    file = kernel.create(made.ino, b"file")
    assert kernel.write(file.ino, 5, b"bytes") == 5
    assert kernel.read(file.ino, 0, 99) == b"\0" * 5 + b"bytes"
    assert kernel.listdir(made.ino).keys() == {b"file"}
    kernel.unlink(made.ino, b"file")
    kernel.rmdir(ROOT, b"works")
    kernel.fsyncdir(ROOT)


# Arguments that are wrong by themselves, and the errno.
MALFORMED: dict[str, tuple[Op, bytes, int]] = {
    "lookup: nothing": (Op.LOOKUP, b"", errno.EINVAL),
    "lookup: no end": (Op.LOOKUP, b"name", errno.EINVAL),
    "lookup: empty": (Op.LOOKUP, b"\0\0", errno.EINVAL),
    "lookup: too long": (Op.LOOKUP, LONG, errno.ENAMETOOLONG),
    "getattr: short": (Op.GETATTR, bytes(15), errno.EINVAL),
    "setattr: short": (Op.SETATTR, bytes(87), errno.EINVAL),
    "setattr: size of a directory": (Op.SETATTR, w.SETATTR_IN.pack(8, 0, 0, HUGE, *([0] * 12)), errno.EISDIR),
    "symlink: no target": (Op.SYMLINK, NAME, errno.EINVAL),
    "symlink: no end": (Op.SYMLINK, NAME + b"target", errno.EINVAL),
    "symlink: empty target": (Op.SYMLINK, NAME + b"\0", errno.EINVAL),
    "symlink: long target": (Op.SYMLINK, NAME + b"t" * 4096 + b"\0", errno.ENAMETOOLONG),
    "symlink: no end at all": (Op.SYMLINK, b"name", errno.EINVAL),
    "symlink: ..": (Op.SYMLINK, b"..\0t\0", errno.EINVAL),
    "mknod: short": (Op.MKNOD, bytes(16), errno.EINVAL),
    "mknod: no end": (Op.MKNOD, w.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"name", errno.EINVAL),
    "mknod: a directory": (Op.MKNOD, w.MKNOD_IN.pack(stat.S_IFDIR, 0, 0, 0) + NAME, errno.EINVAL),
    "mknod: a link": (Op.MKNOD, w.MKNOD_IN.pack(stat.S_IFLNK, 0, 0, 0) + NAME, errno.EINVAL),
    "mknod: no type": (Op.MKNOD, w.MKNOD_IN.pack(0o170000, 0, 0, 0) + NAME, errno.EINVAL),
    "mknod: .": (Op.MKNOD, w.MKNOD_IN.pack(0o100644, 0, 0, 0) + b".\0", errno.EINVAL),
    "mknod: a slash": (Op.MKNOD, w.MKNOD_IN.pack(0o100644, 0, 0, 0) + b"a/b\0", errno.EINVAL),
    "mkdir: no end": (Op.MKDIR, w.MKDIR_IN.pack(0o755, 0) + b"name", errno.EINVAL),
    "mkdir: ..": (Op.MKDIR, w.MKDIR_IN.pack(0o755, 0) + b"..\0", errno.EINVAL),
    "mkdir: too long": (Op.MKDIR, w.MKDIR_IN.pack(0o755, 0) + LONG, errno.ENAMETOOLONG),
    "unlink: no end": (Op.UNLINK, b"name", errno.EINVAL),
    "rmdir: .": (Op.RMDIR, b".\0", errno.EINVAL),
    "rename: one name": (Op.RENAME, w.RENAME_IN.pack(ROOT) + b"one\0", errno.EINVAL),
    "rename: no end": (Op.RENAME, w.RENAME_IN.pack(ROOT) + b"one\0two", errno.EINVAL),
    "rename: empty": (Op.RENAME, w.RENAME_IN.pack(ROOT) + b"one\0\0", errno.EINVAL),
    "rename: too long": (Op.RENAME, w.RENAME_IN.pack(ROOT) + b"one\0" + LONG, errno.ENAMETOOLONG),
    "rename: to ..": (Op.RENAME, w.RENAME_IN.pack(ROOT) + b"one\0..\0", errno.EINVAL),
    "rename2: flags": (Op.RENAME2, w.RENAME2_IN.pack(ROOT, 1 << 31, 0) + b"one\0two\0", errno.EINVAL),
    "rename2: both": (Op.RENAME2, w.RENAME2_IN.pack(ROOT, 3, 0) + b"one\0two\0", errno.EINVAL),
    "rename2: whiteout of nothing": (Op.RENAME2, w.RENAME2_IN.pack(ROOT, 4, 0) + b"one\0two\0", errno.ENOENT),
    "link: no end": (Op.LINK, w.LINK_IN.pack(ROOT) + b"name", errno.EINVAL),
    "link: a directory": (Op.LINK, w.LINK_IN.pack(ROOT) + NAME, errno.EPERM),
    "link: from nowhere": (Op.LINK, w.LINK_IN.pack(HUGE) + NAME, errno.ENOENT),
    "read: short": (Op.READ, bytes(39), errno.EINVAL),
    "read: too much": (Op.READ, w.READ_IN.pack(0, 0, (1 << 20) + 1, 0, 0, 0, 0), errno.EINVAL),
    "read: a directory": (Op.READ, w.READ_IN.pack(0, 0, 10, 0, 0, 0, 0), errno.EISDIR),
    "write: more than there is": (Op.WRITE, w.WRITE_IN.pack(0, 0, 11, 0, 0, 0, 0) + bytes(10), errno.EINVAL),
    "write: as much as can be": (Op.WRITE, w.WRITE_IN.pack(0, 0, 0xFFFFFFFF, 0, 0, 0, 0), errno.EINVAL),
    "write: a directory": (Op.WRITE, w.WRITE_IN.pack(0, 0, 1, 0, 0, 0, 0) + b"x", errno.EISDIR),
    "fsync: short": (Op.FSYNC, bytes(15), errno.EINVAL),
    "setxattr: no end": (Op.SETXATTR, w.SETXATTR_IN.pack(0, 0) + b"user.a", errno.EINVAL),
    "setxattr: more than there is": (Op.SETXATTR, w.SETXATTR_IN.pack(6, 0) + b"user.a\0value", errno.EINVAL),
    "setxattr: as much as can be": (Op.SETXATTR, w.SETXATTR_IN.pack(0xFFFFFFFF, 0) + b"user.a\0v", errno.EINVAL),
    "setxattr: too much": (Op.SETXATTR, w.SETXATTR_IN.pack(65537, 0) + b"user.a\0" + bytes(65537), errno.E2BIG),
    "getxattr: no end": (Op.GETXATTR, w.GETXATTR_IN.pack(9, 0) + b"user.a", errno.EINVAL),
    "getxattr: short": (Op.GETXATTR, bytes(9), errno.EINVAL),
    "listxattr: short": (Op.LISTXATTR, bytes(7), errno.EINVAL),
    "removexattr: no end": (Op.REMOVEXATTR, b"user.a", errno.EINVAL),
    "readlink: a directory": (Op.READLINK, b"", errno.EINVAL),
    "readdir: short": (Op.READDIR, bytes(39), errno.EINVAL),
    "fallocate: a directory": (Op.FALLOCATE, w.FALLOCATE_IN.pack(0, 0, 1, 0, 0), errno.EISDIR),
    "lseek: whence": (Op.LSEEK, w.LSEEK_IN.pack(0, 0, os.SEEK_END, 0), errno.EINVAL),
    "copy_file_range: to nowhere": (Op.COPY_FILE_RANGE, w.COPY_IN.pack(0, 0, HUGE, 0, 0, 1, 0), errno.ENOENT),
    "statx: short": (Op.STATX, bytes(23), errno.EINVAL),
    "tmpfile: short": (Op.TMPFILE, bytes(15), errno.EINVAL),
    "getlk: never asked for": (Op.GETLK, bytes(48), errno.ENOSYS),
    "ioctl: never asked for": (Op.IOCTL, bytes(32), errno.ENOSYS),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_argument_gets_an_errno(mounted: FakeMount, case: str) -> None:
    opcode, body, number = MALFORMED[case]
    before = mounted.control.counts.total()
    assert errno.errorcode.get(mounted.kernel.call(opcode, ROOT, body).error) == errno.errorcode[number]
    assert mounted.control.counts.total() == before


@pytest.mark.parametrize("opcode", [0, 7, 19, 48, 49, 50, 53, 63, 64, 65, 4096, 0xFFFFFFFF])
def test_an_unknown_opcode_is_not_implemented(mounted: FakeMount, opcode: int) -> None:
    assert mounted.kernel.call(opcode, ROOT, bytes(100)).error == errno.ENOSYS


@pytest.mark.parametrize("ino", [0, 1 << 20, 1 << 40, (1 << 63) - 1, 1 << 63, HUGE - 1, HUGE])
def test_an_unknown_inode_does_not_exist(mounted: FakeMount, ino: int) -> None:
    kernel = mounted.kernel
    for opcode, body in (
        (Op.GETATTR, bytes(16)),
        (Op.SETATTR, bytes(88)),
        (Op.LOOKUP, NAME),
        (Op.MKDIR, w.MKDIR_IN.pack(0o755, 0) + NAME),
        (Op.MKNOD, w.MKNOD_IN.pack(0o100644, 0, 0, 0) + NAME),
        (Op.TMPFILE, bytes(16)),
        (Op.UNLINK, NAME),
        (Op.RENAME, w.RENAME_IN.pack(ROOT) + b"one\0two\0"),
        (Op.LINK, w.LINK_IN.pack(ino) + NAME),
        (Op.READ, w.READ_IN.pack(0, 0, 1, 0, 0, 0, 0)),
        (Op.WRITE, w.WRITE_IN.pack(0, 0, 1, 0, 0, 0, 0) + b"x"),
        (Op.FSYNC, bytes(16)),
        (Op.READDIRPLUS, w.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0)),
        (Op.READLINK, b""),
        (Op.GETXATTR, bytes(8) + b"user.a\0"),
        (Op.STATX, bytes(24)),
        (Op.COPY_FILE_RANGE, w.COPY_IN.pack(0, 0, ino, 0, 0, 1, 0)),
    ):
        assert kernel.call(opcode, ino, body).error == errno.ENOENT, opcode.name
    kernel.tell(Op.FORGET, ino, w.FORGET_IN.pack(HUGE))
    kernel.tell(Op.BATCH_FORGET, 0, w.BATCH_FORGET_IN.pack(1, 0) + w.FORGET_ONE.pack(ino, HUGE))
    assert kernel.call(Op.LOOKUP, ino, b"..\0").error == errno.ENOENT


OFFSETS = (1 << 40, 1 << 52, (1 << 63) - 1, 1 << 63, HUGE - 4096, HUGE)


@pytest.mark.parametrize("offset", OFFSETS)
def test_offsets_beyond_everything(mounted: FakeMount, offset: int) -> None:
    kernel = mounted.kernel
    file = kernel.create(ROOT, b"file").ino
    other = kernel.create(ROOT, b"other").ino
    kernel.write(other, 0, b"data")
    assert kernel.read(file, offset, 1 << 20) == b""
    for opcode, body, allowed in (
        (Op.WRITE, w.WRITE_IN.pack(0, offset, 4, 0, 0, 0, 0) + b"data", {errno.EFBIG}),
        (Op.SETATTR, w.SETATTR_IN.pack(8, 0, 0, offset, *([0] * 12)), {errno.EFBIG}),
        (Op.FALLOCATE, w.FALLOCATE_IN.pack(0, offset, 1, 0, 0), {errno.EINVAL, errno.EFBIG}),
        (Op.FALLOCATE, w.FALLOCATE_IN.pack(0, 1, offset, 0, 0), {errno.EFBIG, errno.ENOSPC}),
        (Op.FALLOCATE, w.FALLOCATE_IN.pack(0, offset, HUGE, 3, 0), {errno.EINVAL, errno.EFBIG}),
        (Op.FALLOCATE, w.FALLOCATE_IN.pack(0, 1, offset, 16, 0), {errno.EFBIG, errno.ENOSPC}),
        (Op.LSEEK, w.LSEEK_IN.pack(0, offset, os.SEEK_DATA, 0), {errno.ENXIO}),
        (Op.LSEEK, w.LSEEK_IN.pack(0, offset, os.SEEK_HOLE, 0), {errno.ENXIO}),
        (Op.COPY_FILE_RANGE, w.COPY_IN.pack(0, 0, file, 0, offset, HUGE, 0), {errno.EINVAL, errno.EFBIG}),
    ):
        node = other if opcode == Op.COPY_FILE_RANGE else file
        reply = kernel.call(opcode, node, body)
        if reply.error == 0 and offset < 1 << 63:
            kernel.truncate(file, 0)  # files may be that large
            continue
        assert reply.error in allowed, (opcode.name, errno.errorcode.get(reply.error))
    assert kernel.call(Op.COPY_FILE_RANGE, other, w.COPY_IN.pack(0, offset, file, 0, 0, HUGE, 0)).error in {
        0,
        errno.EINVAL,
    }
    assert kernel.read(file, 0, 10) == b""


@pytest.mark.parametrize("offset", [3, 10**6, (1 << 63) - 1, 1 << 63, HUGE])
@pytest.mark.parametrize("plus", [True, False])
def test_odd_places_in_a_directory(mounted: FakeMount, offset: int, *, plus: bool) -> None:
    kernel = mounted.kernel
    for i in range(20):
        kernel.mkdir(ROOT, b"%d" % i)
    names = kernel.read_directory(ROOT, offset, plus=plus)
    assert len(names) <= 20
    assert kernel.read_directory(ROOT, 0, 0, plus=plus) == []
    assert kernel.read_directory(ROOT, 0, 31, plus=plus) == []
    assert len(kernel.read_directory(ROOT, 0, 160, plus=plus)) == (1 if plus else 5)
    assert len(kernel.listdir(ROOT, 0xFFFFFFFF, plus=plus)) == 20


@pytest.mark.parametrize(
    "body",
    [
        b"",
        bytes(7),
        w.BATCH_FORGET_IN.pack(0xFFFFFFFF, 0),
        w.BATCH_FORGET_IN.pack(0xFFFFFFFF, 0) + bytes(15),
        w.BATCH_FORGET_IN.pack(0xFFFFFFFF, 0) + w.FORGET_ONE.pack(ROOT, HUGE) * 3,
        w.BATCH_FORGET_IN.pack(2, 0) + w.FORGET_ONE.pack(HUGE, 1) * 3,
    ],
)
def test_a_batch_of_forgets_that_lies(mounted: FakeMount, body: bytes) -> None:
    mounted.kernel.tell(Op.BATCH_FORGET, 0, body)
    mounted.kernel.tell(Op.FORGET, ROOT, body[:8])


@pytest.mark.parametrize("length", [0, 16, 39, 41, 57, 1 << 20, 0xFFFFFFFF])
def test_a_length_that_is_not_the_messages(mounted: FakeMount, length: int) -> None:
    kernel = mounted.kernel
    done: Future[Reply] = Future()
    unique = kernel.take_unique()
    kernel.expect(unique, Op.GETATTR, ROOT, done)
    kernel.send(w.IN_HEADER.pack(length, Op.GETATTR, unique, ROOT, 0, 0, 0, 0, 0) + bytes(16))
    assert done.result(60).error == errno.EINVAL


def test_messages_shorter_than_a_header_are_dropped(mounted: FakeMount) -> None:
    before = mounted.plane.relay.stats()["errors"]
    for size in (1, 8, 39):
        mounted.kernel.send(bytes(size))
    use(mounted)
    assert mounted.plane.relay.stats()["errors"] - before == 3


def test_a_message_larger_than_any(mounted: FakeMount) -> None:
    kernel = mounted.kernel
    done: Future[Reply] = Future()
    unique = kernel.take_unique()
    kernel.expect(unique, Op.WRITE, ROOT, done)
    kernel.send(w.request(Op.WRITE, unique, ROOT, bytes((1 << 20) + 16384)))
    assert done.result(60).error == errno.EINVAL


def test_a_number_in_use_is_refused(volume: Volume) -> None:
    """Two requests with one number: the second one fails; the first one gets its answer."""
    with FakeMount(volume, script=lambda _asked: None) as mounted:
        kernel = mounted.kernel
        first, second = Future[Reply](), Future[Reply]()
        unique = kernel.take_unique()
        kernel.expect(unique, Op.STATFS, ROOT, first)
        kernel.send(w.request(Op.STATFS, unique, ROOT, b""))
        mounted.control.wait_for(Op.STATFS)
        kernel.send(w.request(Op.STATFS, unique, ROOT, b""))
        assert first.result(60).error == errno.EINVAL
        kernel.expect(unique, Op.STATFS, ROOT, second)
        kernel._answered.clear()
        mounted.control.reply(unique, errno.EXDEV)
        assert second.result(60).error == errno.EXDEV
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        last: Future[Reply] = Future()
        kernel.expect(HUGE, Op.STATFS, ROOT, last)
        kernel.send(w.request(Op.STATFS, HUGE, ROOT, b""))
        assert last.result(60).error == errno.EINVAL


def test_random_arguments(volume: Volume, assert_sound: Callable[[], None]) -> None:
    """Any opcode with any argument is answered, once, and whatever it did leaves a sound volume."""
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    with FakeMount(volume) as mounted:
        ask_at_random(mounted.kernel, random.Random(seed))
        use(mounted)
    assert_sound()


def ask_at_random(kernel: FakeKernel, rng: random.Random) -> None:
    known = [kernel.create(ROOT, b"file%d" % i).ino for i in range(3)] + [kernel.mkdir(ROOT, b"d").ino, ROOT]
    interesting = [*known, 0, 1, 2, 3, 8, 4096, 1 << 20, 1 << 31, 1 << 32, 1 << 63, HUGE]
    opcodes = [op for op in Op if op not in w.NO_REPLY and op not in {Op.INIT, Op.DESTROY}]
    pending = []
    for _ in range(4000):
        body = b"".join(rng.choice(interesting).to_bytes(8, "little") for _ in range(rng.randrange(13)))
        body += rng.choice(
            [b"", b"\0", b"file0\0", b"file1\0file2\0", b"a\0b\0", b"new\0", rng.randbytes(rng.randrange(40))]
        )
        pending.append(kernel.submit(rng.choice(opcodes), rng.choice(interesting), body))
        if len(pending) > 50:
            pending.pop(0).result(60)
    for done in pending:
        done.result(60)
    assert kernel.waiting == 0


def test_a_reply_of_the_control_plane_that_the_kernel_would_refuse_becomes_an_error(volume: Volume) -> None:
    with FakeMount(volume, script=lambda _asked: None) as mounted:
        kernel, control = mounted.kernel, mounted.control

        def answered(make: bytes) -> int:
            done = kernel.submit(Op.STATFS)
            control.wait_for(Op.STATFS, kernel.requests[Op.STATFS])
            unique = control.asked[-1].unique
            control.send(make[:8] + unique.to_bytes(8, "little") + make[16:])
            return done.result(60).error

        good = w.reply(0, 0, bytes(80))
        assert answered(good) == 0
        assert answered(w.OUT_HEADER.pack(95, 0, 0) + bytes(80)) == errno.EIO  # not its length
        assert answered(w.OUT_HEADER.pack(96, -5, 0) + bytes(80)) == errno.EIO  # an error with a body
        assert answered(w.OUT_HEADER.pack(16, 5, 0)) == errno.EIO  # a positive one
        control.send(bytes(15))
        control.send(w.reply(12345, errno.EIO))  # nobody asked
        assert answered(good) == 0


def test_notifications_are_passed_back(volume: Volume) -> None:
    with FakeMount(volume) as mounted:
        body = (7).to_bytes(8, "little") + bytes(16)
        mounted.control.send(w.OUT_HEADER.pack(w.OUT_HEADER.size + len(body), 2, 0) + body)
        mounted.control.send(w.OUT_HEADER.pack(1, 2, 0) + body)  # not its length
        mounted.kernel.statfs()
        assert mounted.kernel.notifications == [(2, body)]
