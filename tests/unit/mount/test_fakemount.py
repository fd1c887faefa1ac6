"""The data plane without a mount: what the kernel of `fakekernel` asks is answered, counted and kept."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fspf.core.types import ROOT_INO
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.support.fakekernel import ROOT
from tests.support.fakemount import FakeMount


@pytest.fixture
def mounted(volume: Volume) -> Iterator[FakeMount]:
    with FakeMount(volume) as made:
        yield made


def test_everything_the_kernel_asks(mounted: FakeMount) -> None:
    kernel = mounted.kernel
    directory = kernel.mkdir(ROOT, b"d")
    made = kernel.create(directory.ino, b"f", 0o640)
    assert stat.S_IMODE(made.attr.mode) == 0o640 & ~kernel.umask
    assert kernel.open(made.ino) == 0
    assert kernel.write(made.ino, 0, b"hello" * 1000) == 5000
    assert kernel.read(made.ino, 4990, 4096) == b"hellohello"
    kernel.fsync(made.ino)
    kernel.truncate(made.ino, 100)
    assert kernel.getattr(made.ino).size == 100
    kernel.close_file(made.ino)
    kernel.link(made.ino, ROOT, b"g")
    link = kernel.symlink(ROOT, b"s", b"d/f")
    assert kernel.readlink(link.ino) == b"d/f"
    assert kernel.walk(b"d/f").attr.nlink == 2
    kernel.rename(directory.ino, b"f", ROOT, b"h")
    with pytest.raises(FileNotFoundError):
        kernel.lookup(directory.ino, b"f")
    assert kernel.listdir(ROOT).keys() == {b"d", b"g", b"h", b"s"}
    kernel.setxattr(made.ino, b"user.a", b"b")
    assert kernel.getxattr(made.ino, b"user.a") == b"b"
    assert kernel.listxattr(made.ino) == [b"user.a"]
    kernel.removexattr(made.ino, b"user.a")
    assert kernel.lookup(directory.ino, b"..").ino == ROOT
    kernel.rmdir(ROOT, b"d")
    nameless = kernel.tmpfile(ROOT)
    kernel.write(nameless.ino, 0, b"x" * 10)
    assert kernel.copy_file_range(nameless.ino, 0, made.ino, 0, 10) == 10
    assert kernel.lseek(made.ino, 0, os.SEEK_HOLE) == 100
    kernel.fallocate(made.ino, 0, 0, 5000)
    assert kernel.getattr(made.ino).size == 5000
    assert kernel.statfs()[0] > 0
    kernel.unlink(ROOT, b"g")
    assert kernel.getattr(made.ino).nlink == 1
    kernel.fsyncdir(ROOT)
    with pytest.raises(OSError, match="getxattr") as info:
        kernel.getxattr(made.ino, b"user.fspf.status")
    assert info.value.errno == errno.ENODATA


def test_what_was_done_is_in_the_volume(volume: Volume, cas: MemoryCas, scratch: Path) -> None:
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        kernel.create(ROOT, b"f")
        kernel.write(kernel.walk(b"f").ino, 0, b"data")
        kernel.symlink(ROOT, b"s", b"f")
    volume.close()
    with Volume.open(scratch / "volume", cas, commit_interval=None) as again:
        ino = again.lookup(ROOT_INO, b"f").ino
        file = again.open_file(ino, write=False)
        assert file.read(0, 10) == b"data"
        file.close()
        assert again.readlink(again.lookup(ROOT_INO, b"s").ino) == b"f"


def test_a_file_without_a_name_goes_with_its_last_lookup(mounted: FakeMount) -> None:
    kernel = mounted.kernel
    made = kernel.create(ROOT, b"f")
    kernel.write(made.ino, 0, b"x" * 100_000)
    kernel.unlink(ROOT, b"f")
    assert kernel.read(made.ino, 0, 5) == b"xxxxx"
    kernel.forget(made.ino)
    while mounted.plane.relay.in_use(made.ino):
        kernel.statfs()  # a FORGET has no reply, and may be handled after what follows it
    with pytest.raises(FileNotFoundError):
        kernel.getattr(made.ino)
