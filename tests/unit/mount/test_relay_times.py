"""Times that the data plane stamps, beside those of a kernel whose clock for files is some ms ahead of the coarse one.

Which changes stamp which times is tested in tests/posix.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from fspf.volume.volume import Volume
from tests.support.fakekernel import ROOT, FakeKernel
from tests.support.fakemount import FakeMount

AHEAD_NS = 50_000_000

CHANGES: dict[str, Callable[[FakeKernel, int], object]] = {
    "direct write": lambda kernel, ino: kernel.write(ino, 0, b"later"),
    "fallocate": lambda kernel, ino: kernel.fallocate(ino, 0, 0, 8192),
    "truncate": lambda kernel, ino: kernel.truncate(ino, 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_later_change_is_not_older(volume: Volume, change: str) -> None:
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        made = kernel.create(ROOT, b"file")
        kernel.write(made.ino, 0, b"before", cached=True)
        ahead = time.time_ns() + AHEAD_NS
        kernel.setattr(made.ino, mtime_ns=ahead, ctime_ns=ahead)  # what the kernel's cache is written back with
        CHANGES[change](kernel, made.ino)
        found = kernel.getattr(made.ino)
        assert (found.mtime_ns, found.ctime_ns) == (ahead, ahead)


def test_a_time_that_a_person_set_does_not_hold_changes_up(volume: Volume) -> None:
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        made = kernel.create(ROOT, b"file")
        future = time.time_ns() + 3600 * 10**9
        kernel.setattr(made.ino, mtime_ns=future)
        kernel.write(made.ino, 0, b"now")
        assert kernel.getattr(made.ino).mtime_ns < future
