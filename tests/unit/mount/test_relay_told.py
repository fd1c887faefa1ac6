"""Attributes that the kernel was told but perhaps not yet took over: a change by another thread makes it forget them.

The kernel takes a reply over when the thread that asked runs again, without looking whether the directory was changed
meanwhile; valid for an hour, old times would stay. What a notification looks like is `test_relay_messages`'s.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator

import pytest

from fspf.volume.volume import Volume
from tests.support.fakekernel import ROOT, FakeKernel
from tests.support.fakemount import FakeMount
from tests.support.fusewire import Op

INVAL_INODE = 2
ONE, OTHER, THIRD = 100, 200, 300


@pytest.fixture
def kernel(volume: Volume) -> Iterator[FakeKernel]:
    with FakeMount(volume) as mounted:
        yield mounted.kernel


def forgotten(kernel: FakeKernel) -> list[int]:
    """Return the inodes whose attributes the kernel was to forget since the last call."""
    found = []
    for kind, body in kernel.notifications:
        ino, offset, _ = struct.unpack("<Qqq", body)
        assert (kind, offset) == (INVAL_INODE, -1)
        found.append(ino)
    kernel.notifications.clear()
    return found


def tell_by_getattr(kernel: FakeKernel, parent: int, name: bytes, ino: int) -> None:
    kernel.getattr(ino)


def tell_by_lookup(kernel: FakeKernel, parent: int, name: bytes, ino: int) -> None:
    kernel.lookup(parent, name)


def tell_by_statx(kernel: FakeKernel, parent: int, name: bytes, ino: int) -> None:
    kernel.statx(ino)


def tell_by_readdirplus(kernel: FakeKernel, parent: int, name: bytes, ino: int) -> None:
    assert name in kernel.listdir(parent)


Teller = Callable[[FakeKernel, int, bytes, int], None]
TELLERS: dict[str, Teller] = {
    "getattr": tell_by_getattr,
    "lookup": tell_by_lookup,
    "statx": tell_by_statx,
    "readdirplus": tell_by_readdirplus,
}


@pytest.mark.parametrize("teller", TELLERS)
def test_a_change_by_another_thread_makes_the_kernel_forget(kernel: FakeKernel, teller: str) -> None:
    kernel.pid = ONE
    made = kernel.mkdir(ROOT, b"dir")
    forgotten(kernel)
    kernel.pid = OTHER
    TELLERS[teller](kernel, ROOT, b"dir", made.ino)
    kernel.pid = THIRD
    kernel.create(made.ino, b"file")
    assert made.ino in forgotten(kernel)
    kernel.create(made.ino, b"again")
    assert forgotten(kernel) == []  # nobody was told anything since


def test_who_is_alone_costs_no_notification(kernel: FakeKernel) -> None:
    kernel.pid = ONE
    made = kernel.mkdir(ROOT, b"dir")
    for number in range(3):
        kernel.getattr(made.ino)
        kernel.create(made.ino, b"%d" % number)
        kernel.listdir(ROOT)
        kernel.unlink(made.ino, b"%d" % number)
    kernel.rmdir(ROOT, b"dir")
    assert forgotten(kernel) == []


def test_a_thread_that_is_not_known_is_another_one(kernel: FakeKernel) -> None:
    """Threads outside the mount's pid namespace all have the number 0."""
    made = kernel.mkdir(ROOT, b"dir")
    forgotten(kernel)
    kernel.pid = 0
    kernel.getattr(made.ino)
    kernel.create(made.ino, b"file")
    assert forgotten(kernel) == [made.ino]


def change_create(kernel: FakeKernel, one: int, two: int) -> set[int]:
    kernel.create(one, b"new")
    return {one}


def change_mkdir(kernel: FakeKernel, one: int, two: int) -> set[int]:
    kernel.mkdir(one, b"new")
    return {one}


def change_symlink(kernel: FakeKernel, one: int, two: int) -> set[int]:
    kernel.symlink(one, b"new", b"target")
    return {one}


def change_link(kernel: FakeKernel, one: int, two: int) -> set[int]:
    kernel.link(kernel.lookup(one, b"file").ino, two, b"new")
    return {two}


def change_unlink(kernel: FakeKernel, one: int, two: int) -> set[int]:
    kernel.unlink(one, b"file")
    return {one}


def change_rmdir(kernel: FakeKernel, one: int, two: int) -> set[int]:
    kernel.rmdir(one, b"sub")
    return {one}


def change_rename(kernel: FakeKernel, one: int, two: int) -> set[int]:
    moved = kernel.lookup(one, b"sub").ino  # asked by the thread that moves it, but it was told to others before
    kernel.rename(one, b"sub", two, b"sub")
    return {one, two, moved}


Change = Callable[[FakeKernel, int, int], set[int]]
CHANGES: dict[str, Change] = {
    "create": change_create,
    "mkdir": change_mkdir,
    "symlink": change_symlink,
    "link": change_link,
    "unlink": change_unlink,
    "rmdir": change_rmdir,
    "rename": change_rename,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_names(kernel: FakeKernel, change: str) -> None:
    kernel.pid = ONE
    one, two = (kernel.mkdir(ROOT, name).ino for name in (b"one", b"two"))
    kernel.create(one, b"file")
    kernel.mkdir(one, b"sub")
    for ino in (one, two):
        assert stat.S_ISDIR(kernel.getattr(ino).mode)
    forgotten(kernel)
    kernel.pid = OTHER
    expected = CHANGES[change](kernel, one, two)
    assert set(forgotten(kernel)) == expected


def test_the_kernel_forgets_before_it_has_the_answer(volume: Volume) -> None:
    """Afterwards would be too late for who asks as soon as he has it."""
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        made = kernel.mkdir(ROOT, b"dir")
        order: list[str] = []
        kernel.on_notification = lambda *_: order.append("notification")
        kernel.getattr(made.ino)
        done = kernel.submit(Op.UNLINK, made.ino, b"absent\0", pid=OTHER)
        assert done.result(60).error
        assert order == []  # nothing was changed
        kernel.create(made.ino, b"file")
        done = kernel.submit(Op.UNLINK, made.ino, b"file\0", pid=OTHER)
        done.add_done_callback(lambda _: order.append("answer"))
        assert done.result(60).error == 0
        assert order[:2] == ["notification", "answer"]
