"""INIT as the relay edits it: what an older or poorer kernel does not offer is not used, and everything works all the same."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from fspf.volume.volume import Volume
from tests.support import fusewire as w
from tests.support.fakekernel import ROOT, FakeKernel
from tests.support.fakemount import FakeMount
from tests.support.fusewire import LINUX_6_18, Flag, Op

GRANTED = (
    Flag.ASYNC_READ
    | Flag.EXPORT_SUPPORT
    | Flag.BIG_WRITES
    | Flag.DONT_MASK
    | Flag.DO_READDIRPLUS
    | Flag.READDIRPLUS_AUTO
    | Flag.ASYNC_DIO
    | Flag.WRITEBACK_CACHE
    | Flag.NO_OPEN_SUPPORT
    | Flag.PARALLEL_DIROPS
    | Flag.POSIX_ACL
    | Flag.MAX_PAGES
    | Flag.CACHE_SYMLINKS
    | Flag.NO_OPENDIR_SUPPORT
    | Flag.EXPLICIT_INVAL_DATA
    | Flag.HANDLE_KILLPRIV_V2
    | Flag.INIT_EXT
    | Flag.DIRECT_IO_ALLOW_MMAP
)


def use(kernel: FakeKernel) -> None:
    """What works whatever was negotiated."""
    made = kernel.create(ROOT, b"file", 0o600)
    handle = kernel.open(made.ino)
    assert kernel.write(made.ino, 0, b"text") == 4
    assert kernel.read(made.ino, 0, 10) == b"text"
    kernel.fsync(made.ino)
    kernel.close_file(made.ino, handle)
    assert kernel.listdir(ROOT, plus=False).keys() == {b"file"}
    assert kernel.getattr(made.ino).mode & 0o777 == 0o600


def test_everything_that_wins_is_granted(volume: Volume) -> None:
    with FakeMount(volume) as mounted:
        answer = mounted.kernel.negotiated
        assert answer is not None
        assert answer.flags == GRANTED
        assert (answer.minor, answer.max_write, answer.max_pages, answer.max_readahead) == (42, 1 << 20, 256, 4 << 20)
        asked = next(a for a in mounted.control.asked if a.opcode == Op.INIT)
        _, _, _, flags = struct.unpack_from("<4I", asked.body)
        assert not flags & (Flag.SPLICE_READ | Flag.SPLICE_WRITE | Flag.SPLICE_MOVE)  # its end is a socket
        use(mounted.kernel)


@pytest.mark.parametrize("missing", list(GRANTED), ids=lambda f: f.name)
def test_what_the_kernel_does_not_offer_is_not_used(volume: Volume, missing: Flag) -> None:
    offered = LINUX_6_18 & ~missing
    with FakeMount(volume, flags=offered) as mounted:
        answer = mounted.kernel.negotiated
        assert answer is not None
        if missing == Flag.INIT_EXT:
            assert answer.flags == GRANTED & 0xFFFFFFFF & ~Flag.INIT_EXT  # without it there are no more than 32
        else:
            assert answer.flags == GRANTED & ~missing
        use(mounted.kernel)


def test_a_kernel_that_offers_nothing(volume: Volume) -> None:
    with FakeMount(volume, flags=Flag(0)) as mounted:
        assert mounted.kernel.negotiated is not None
        assert mounted.kernel.negotiated.flags == Flag(0)
        use(mounted.kernel)
        assert not mounted.kernel.no_open
        assert not mounted.kernel.no_create
        assert not mounted.kernel.no_flush


def test_a_kernel_that_needs_no_opening_is_told_once(volume: Volume) -> None:
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        use(kernel)
        assert kernel.no_open
        assert kernel.no_create
        assert kernel.no_flush
        assert kernel.call(Op.OPENDIR, ROOT, w.OPEN_IN.pack(os.O_RDONLY, 0)).error == errno.ENOSYS


def test_without_support_for_no_opendir_a_directory_is_opened(volume: Volume) -> None:
    with FakeMount(volume, flags=LINUX_6_18 & ~Flag.NO_OPENDIR_SUPPORT) as mounted:
        assert mounted.kernel.call(Op.OPENDIR, ROOT, w.OPEN_IN.pack(os.O_RDONLY, 0)).error == 0


@pytest.mark.parametrize(
    ("minor", "answered", "length"),
    [(45, 42, 64), (42, 42, 64), (38, 38, 64), (31, 31, 64), (23, 23, 64), (22, 22, 24), (12, 12, 24)],
)
def test_older_protocols(volume: Volume, minor: int, answered: int, length: int) -> None:
    flags = LINUX_6_18 if minor >= 36 else LINUX_6_18 & 0xFFFFFFFF & ~Flag.INIT_EXT
    with FakeMount(volume, started=False) as mounted:
        mounted.plane.start()
        answer = mounted.kernel.init(minor=minor, flags=flags, short=minor < 36)
        assert (answer.minor, answer.length) == (answered, length)
        use(mounted.kernel)


def test_a_larger_read_ahead_of_the_kernels_stays(volume: Volume) -> None:
    with FakeMount(volume, started=False) as mounted:
        mounted.plane.start()
        assert mounted.kernel.init(max_readahead=16 << 20).max_readahead == 16 << 20


def test_nothing_is_answered_before_init(volume: Volume) -> None:
    with FakeMount(volume, started=False) as mounted:
        mounted.plane.start()
        kernel = mounted.kernel
        assert kernel.call(Op.GETATTR, ROOT, w.GETATTR_IN.pack(0, 0, 0)).error == errno.EIO
        kernel.tell(Op.FORGET, ROOT, w.FORGET_IN.pack(1))
        assert kernel.call(Op.INIT, 0, bytes(15)).error == errno.EINVAL
        kernel.init()
        use(kernel)


def test_a_control_plane_that_refuses_init(volume: Volume) -> None:
    with FakeMount(volume, started=False) as mounted:
        mounted.control._init = lambda _asked: errno.EPROTO  # type: ignore[method-assign, assignment, return-value]
        mounted.plane.start()
        with pytest.raises(OSError, match="Protocol error"):
            mounted.kernel.init()
        assert mounted.kernel.call(Op.GETATTR, ROOT, w.GETATTR_IN.pack(0, 0, 0)).error == errno.EIO
