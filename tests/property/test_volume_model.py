"""A volume against a file system in memory: the same operations, the same errors, the same tree; also after crashes.

What a crash may take: everything since the last commit, and of an fsync'd state the data of other files.
"""

from __future__ import annotations

import shutil
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fspf.core.types import Ino
from fspf.volume.check import verify_volume
from fspf.volume.rekey import rekey
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.fault.slots_truth import slot_problems
from tests.property.model import Clock
from tests.property.pair import CHUNK, NAMES, Pair, engine_clock
from tests.support.plugin import CI, NIGHTLY

SCRATCH: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None
STEPS: Final = 100
EXAMPLES: Final = 200 if NIGHTLY else 60 if CI else 20  # nightly: 20 000 steps

numbers = st.integers(0, 1 << 20)
names = st.sampled_from([*NAMES, b"a", b"b"])
odd_names = st.one_of(names, names, names, st.sampled_from([b"", b".", b"..", b"a/b", b"a\0b", b"x" * 256]))
sizes = st.one_of(
    st.sampled_from([0, 1, 511, CHUNK - 1, CHUNK, CHUNK + 1, 8 * CHUNK, 128 * CHUNK - 3, 128 * CHUNK, 129 * CHUNK + 5]),
    st.integers(0, 20 * CHUNK),
)
lengths = st.one_of(st.sampled_from([1, 100, CHUNK, 2 * CHUNK + 1, 17 * CHUNK]), st.integers(1, 5 * CHUNK))


class VolumeMachine(RuleBasedStateMachine):
    """Rules choose by number among what is there, so that most operations succeed."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="fspf-model-", dir=SCRATCH))
        self.path = self.directory / "volume"
        self.cas = MemoryCas()
        clock = Clock()
        self.stack.enter_context(engine_clock(clock))
        self.pair = Pair(Volume.create(self.path, self.cas, segment_slots=64, commit_interval=None), clock)

    @property
    def volume(self) -> Volume:
        return self.pair.volume

    def teardown(self) -> None:
        try:
            self.volume.abandon()
        finally:
            self.stack.close()
            shutil.rmtree(self.directory)

    def _reopen(self) -> None:
        self.pair.volume = Volume.open(self.path, self.cas, commit_interval=None)
        self.pair.forget_handles()
        self.pair.check_tree()

    # -- names

    @initialize()
    def two_directories(self) -> None:
        for name in (b"d", b"e"):
            self.pair.mkdir(1, name)

    @rule(
        where=numbers,
        name=odd_names,
        kind=st.sampled_from([0, stat.S_IFREG, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK]),
    )
    def mknod(self, where: int, name: bytes, kind: int) -> None:
        self.pair.mknod(self.pair.directory(where), name, kind | 0o640, uid=where % 7, gid=where % 5)

    @rule(where=numbers, name=names, rdev=st.sampled_from([0x103, 0x501]))
    def device(self, where: int, name: bytes, rdev: int) -> None:
        self.pair.mknod(self.pair.directory(where), name, stat.S_IFCHR | 0o600, rdev=rdev)

    @rule(where=numbers, name=odd_names)
    def mkdir(self, where: int, name: bytes) -> None:
        self.pair.mkdir(self.pair.directory(where), name)

    @rule(where=numbers, name=names, goal=st.binary(max_size=40), times=st.sampled_from([1, 1, 1, 5000]))
    def symlink(self, where: int, name: bytes, goal: bytes, times: int) -> None:
        self.pair.symlink(self.pair.directory(where), name, (goal * times)[: 4094 + times % 3])

    @rule(what=numbers, where=numbers, name=names)
    def link(self, what: int, where: int, name: bytes) -> None:
        self.pair.link(self.pair.inode(what), self.pair.directory(where), name)

    @rule(what=numbers)
    def unlink(self, what: int) -> None:
        self.pair.unlink(*self.pair.entry(what))

    @rule(what=numbers)
    def rmdir(self, what: int) -> None:
        self.pair.rmdir(*self.pair.entry(what))

    @rule(where=numbers, name=odd_names)
    def remove_by_name(self, where: int, name: bytes) -> None:
        self.pair.unlink(self.pair.directory(where), name)
        self.pair.rmdir(self.pair.directory(where), name)

    @rule(what=numbers, where=numbers, name=odd_names, flags=st.sampled_from([0, 0, 0, 1, 2, 3, 4]))
    def rename(self, what: int, where: int, name: bytes, flags: int) -> None:
        self.pair.rename(self.pair.entry(what), (self.pair.directory(where), name), flags)

    @rule(what=numbers, other=numbers, flags=st.sampled_from([0, 0, 1, 2]))
    def rename_over(self, what: int, other: int, flags: int) -> None:
        self.pair.rename(self.pair.entry(what), self.pair.entry(other), flags)

    @rule(what=numbers, where=numbers, name=names)
    def not_a_directory(self, what: int, where: int, name: bytes) -> None:
        file = self.pair.inode(what, stat.S_IFREG)
        self.pair.mknod(file, name, 0o100644)
        self.pair.rename(self.pair.entry(where), (file, name))

    # -- attributes

    @rule(
        what=numbers,
        values=st.fixed_dictionaries(
            {},
            optional={
                "mode": st.integers(0, 0o7777),
                "uid": st.integers(0, 1 << 31),
                "gid": st.integers(0, 1 << 31),
                "atime_ns": st.integers(-(10**18), 10**19 // 2),
                "mtime_ns": st.integers(-(10**18), 10**19 // 2),
            },
        ),
    )
    def setattr(self, what: int, values: dict[str, int]) -> None:
        self.pair.setattr(self.pair.inode(what), **values)

    @rule(what=numbers, size=sizes)
    def set_size(self, what: int, size: int) -> None:
        self.pair.setattr(self.pair.inode(what), size=size)

    @rule(what=numbers, protection=st.sampled_from([0, 1]))
    def set_protection(self, what: int, protection: int) -> None:
        self.pair.set_protection(self.pair.inode(what), protection)

    @rule(
        what=numbers,
        name=st.sampled_from([b"user.a", b"user.b", b"trusted.c", b"none", b"user." + b"x" * 251]),
        value=st.binary(max_size=300),
        flags=st.sampled_from([0, 0, 1, 2]),
    )
    def setxattr(self, what: int, name: bytes, value: bytes, flags: int) -> None:
        self.pair.setxattr(self.pair.inode(what), name, value, flags)

    @rule(what=numbers, name=st.sampled_from([b"user.a", b"user.b"]))
    def removexattr(self, what: int, name: bytes) -> None:
        self.pair.removexattr(self.pair.inode(what), name)

    # -- contents

    @precondition(lambda self: len(self.pair.handles) < 8)
    @rule(what=numbers)
    def open(self, what: int) -> None:
        self.pair.open(self.pair.inode(what, stat.S_IFREG))

    @precondition(lambda self: len(self.pair.handles) < 8)
    @rule(where=numbers, name=names, data=st.binary(min_size=1, max_size=20), times=st.integers(1, 2000))
    def create_and_write(self, where: int, name: bytes, data: bytes, times: int) -> None:
        ino = self.pair.mknod(self.pair.directory(where), name, 0o100600)
        handle = self.pair.open(ino) if ino is not None else None
        if handle is not None:
            self.pair.write(handle, 0, data * times)

    @precondition(lambda self: self.pair.handles)
    @rule(which=numbers, offset=sizes, length=lengths, seed=st.integers(0, 255))
    def write(self, which: int, offset: int, length: int, seed: int) -> None:
        handle = self.pair.handles[which % len(self.pair.handles)]
        self.pair.write(
            handle, offset, bytes((seed + i * 7) & 0xFF for i in range(256)) * (length // 256) + b"%d" % seed
        )

    @precondition(lambda self: self.pair.handles)
    @rule(which=numbers, size=sizes)
    def truncate(self, which: int, size: int) -> None:
        self.pair.truncate(self.pair.handles[which % len(self.pair.handles)], size)

    @precondition(lambda self: self.pair.handles)
    @rule(which=numbers, offset=sizes, length=st.one_of(lengths, st.just(1 << 40)))
    def punch(self, which: int, offset: int, length: int) -> None:
        self.pair.punch(self.pair.handles[which % len(self.pair.handles)], offset, length)

    @precondition(lambda self: self.pair.handles)
    @rule(which=numbers, offset=sizes, length=lengths)
    def read(self, which: int, offset: int, length: int) -> None:
        handle = self.pair.handles[which % len(self.pair.handles)]
        assert handle.file.read(offset, length) == self.pair.model.read(handle.ino, offset, length)

    @precondition(lambda self: self.pair.handles)
    @rule(which=numbers)
    def holes_hold_zeros(self, which: int) -> None:
        """Data and holes alternate to the end, and what is called a hole reads as zeros."""
        handle = self.pair.handles[which % len(self.pair.handles)]
        data = self.pair.model.live[handle.ino].data
        here = 0
        while here < len(data):
            hole = handle.file.seek_hole(here)
            assert here <= hole <= len(data)
            if hole >= len(data):
                break
            try:
                here = handle.file.seek_data(hole)
            except OSError:
                here = len(data)
            assert here > hole
            assert not any(data[hole:here])

    @precondition(lambda self: self.pair.handles)
    @rule(which=numbers)
    def close(self, which: int) -> None:
        self.pair.close(self.pair.handles[which % len(self.pair.handles)])

    @rule(what=numbers)
    def hold(self, what: int) -> None:
        self.pair.hold(self.pair.inode(what))

    @precondition(lambda self: self.pair.holds)
    @rule(which=numbers)
    def drop(self, which: int) -> None:
        self.pair.drop(self.pair.holds[which % len(self.pair.holds)])

    # -- commits, crashes, reopening

    @precondition(lambda self: self.pair.handles)
    @rule(which=numbers)
    def fsync(self, which: int) -> None:
        self.pair.fsync(self.pair.handles[which % len(self.pair.handles)].ino)

    @rule()
    def fsync_names(self) -> None:
        self.pair.fsync()

    @rule()
    def commit(self) -> None:
        self.pair.commit()
        self.volume.store.trim()

    @rule()
    def crash(self) -> None:
        self.volume.abandon()
        self.pair.model.crash()
        self._reopen()

    @rule()
    def close_and_reopen(self) -> None:
        self._close()
        self._reopen()

    @rule()
    def rekey(self) -> None:
        self._close()
        rekey(self.path, self.cas)
        self._reopen()

    def _close(self) -> None:
        self.pair.close_all()
        self.pair.model.commit()
        self.volume.close()
        with Volume.open(self.path, self.cas, read_only=True) as volume:
            assert list(verify_volume(volume, threads=1)) == []
            assert slot_problems(volume) == []

    # -- always

    @rule()
    def everything_is_equal(self) -> None:
        self.pair.check_tree()
        self.pair.check_handles()

    @invariant()
    def newest_inode_and_root_are_equal(self) -> None:
        self.pair.check_inode(1)
        self.pair.check_inode(max(self.pair.model.nodes))

    @invariant()
    def counters_are_right(self) -> None:
        assert self.volume.namespace.files == len(self.pair.model.nodes)


@pytest.mark.timeout(3000 if NIGHTLY else 300)
def test_volume_equals_model() -> None:
    run_state_machine_as_test(VolumeMachine, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS))


def test_the_model_can_fail() -> None:
    """A volume that forgets one operation is noticed."""
    machine = VolumeMachine()
    try:
        machine.two_directories()
        machine.volume.rmdir(Ino(1), b"d")
        with pytest.raises(AssertionError):
            machine.everything_is_equal()
    finally:
        machine.teardown()
