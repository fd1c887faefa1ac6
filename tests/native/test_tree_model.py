"""A content tree against a bytearray, and against the format read by other code.

After every step no slot that an anchored root reaches may have changed, and no nonce may have been used twice.
"""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fspf_native import ContentRoot, Store, Tree
from tests.native.stores import EMPTY, Disk

offsets = st.one_of(
    st.integers(0, 70_000),
    st.integers(0, 20).map(lambda n: n * 4096),
    st.integers(0, 1_200_000),
    st.sampled_from([4095, 4096, 4097, 16384, 128 * 4096 - 1, 128 * 4096, 128 * 4096 + 1]),
)
lengths = st.one_of(
    st.integers(0, 10_000), st.integers(0, 5).map(lambda n: n * 4096), st.integers(0, 400_000), st.sampled_from([65536])
)


class TreeMachine(RuleBasedStateMachine):
    """One tree, one model; commits, reopenings, losses of everything since the last commit."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fspf-model-", dir="/dev/shm"))

    @initialize(
        chunk_size=st.sampled_from([4096, 4096, 16384]),
        protection=st.sampled_from([0, 0, 1]),
        cache_bytes=st.sampled_from([0, 16384, 1 << 20]),
        seed=st.integers(0, 2**32),
    )
    def begin(self, chunk_size: int, protection: int, cache_bytes: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.disk = Disk(self.directory, chunk_size=chunk_size)
        self.protection = protection
        self.cache_bytes = cache_bytes
        self.epoch = 1
        self.store: Store = self.disk.store(cache_bytes=cache_bytes)
        self.tree = Tree(self.store, protection=protection)
        self.model = bytearray()
        self.anchored: tuple[ContentRoot, bytes] = (EMPTY, b"")
        self.frozen: dict[int, bytes] = {}  # slots that the anchored root reaches
        self.pending: list[tuple[int, ContentRoot, bytes]] = []
        self.nonces: dict[tuple[int, int], bytes] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert bytes(self.model) == self.tree.read(0, len(self.model) + 1)
            self.tree.destroy()
            self.store.commit_anchored(self.store.commit_begin())
            stats = self.store.stats()
            assert (stats["slots_used"], stats["slots_pending"], stats["dirty_bytes"], stats["stray_frees"]) == (
                0,
                0,
                0,
                0,
            )
            self.store.close()
        shutil.rmtree(self.directory)

    @rule(offset=offsets, length=lengths)
    def write(self, offset: int, length: int) -> None:
        data = self.random.randbytes(length)
        assert self.tree.write(data, offset) == length
        if length:
            self.model.extend(bytes(max(0, offset + length - len(self.model))))
            self.model[offset : offset + length] = data

    @rule(length=st.integers(1, 5000), times=st.integers(1, 30))
    def append(self, length: int, times: int) -> None:
        for _ in range(times):
            data = self.random.randbytes(length)
            self.tree.write(data, len(self.model))
            self.model += data

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        self.tree.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(offset=offsets, length=lengths)
    def punch(self, offset: int, length: int) -> None:
        self.tree.punch(offset, length)
        end = min(len(self.model), offset + length)
        if end > offset:
            self.model[offset:end] = bytes(end - offset)

    @rule(offset=offsets, length=lengths)
    def read(self, offset: int, length: int) -> None:
        assert self.tree.read(offset, length) == self.model[offset : offset + length]
        buffer = bytearray(b"\xee" * length)
        got = self.tree.readinto(buffer, offset)
        assert buffer == self.model[offset : offset + length] + b"\xee" * (length - got)

    @rule(offset=offsets)
    def seek(self, offset: int) -> None:
        position = offset
        for _ in range(6):  # a walk over data and holes: what is called a hole must be zero
            try:
                data = self.tree.seek_data(position)
            except OSError as exc:
                assert exc.errno == errno.ENXIO  # noqa: PT017  # only then is there no data
                assert not any(self.model[position:])
                break
            assert data >= position
            assert not any(self.model[position:data])
            hole = self.tree.seek_hole(data)
            assert data < hole <= len(self.model)
            if hole == len(self.model):
                break
            position = hole
        if offset >= len(self.model):
            with pytest.raises(OSError, match="past the end"):
                self.tree.seek_hole(offset)

    @rule()
    def flush(self) -> None:
        root = self.tree.flush()
        assert not self.tree.dirty
        assert self.tree.dirty_bytes == 0
        assert root[0] == len(self.model)
        assert self.tree.flush() == root
        assert self.disk.content(root, self.protection) == self.model
        blocks = list(self.disk.blocks(root, self.protection))
        assert self.tree.allocated == sum(level == 0 for level, _, _, _ in blocks)
        assert len({pointer.slot for _, _, pointer, _ in blocks}) == len(blocks), "a slot is named twice"
        for level, _, pointer, plain in blocks:
            assert level == 0 or any(plain), "a node of holes only"
            nonce = (pointer.epoch, pointer.counter)
            assert self.nonces.setdefault(nonce, pointer.tag) == pointer.tag, "a nonce was used twice"
            entry = self.disk.read_entry(pointer.slot)
            assert entry[8:11] == pointer.epoch.to_bytes(3, "little")
            assert entry[11:] == pointer.counter.to_bytes(5, "little")
        assert self.tree.verify() == []

    @rule(anchor=st.booleans())
    def commit(self, anchor: bool) -> None:
        root = self.tree.flush()
        number = self.store.commit_begin()
        self.store.sync()
        self.pending.append((number, root, bytes(self.model)))
        if anchor:
            self.store.commit_anchored(number)
            self.anchored = (root, bytes(self.model))
            self.pending.clear()
            self.frozen = {slot: self.disk.read_slot(slot) for slot in self.disk.slots(root, self.protection)}

    @rule()
    def trim(self) -> None:
        self.store.trim()

    @rule()
    def reopen_tree(self) -> None:
        root = self.tree.flush()
        self.tree = Tree(self.store, root, protection=self.protection, allocated=self.tree.allocated)

    @rule()
    def drop_tree(self) -> None:
        """What was not flushed is gone, and its slots are free."""
        root = self.tree.flush()
        allocated = self.tree.allocated
        used = self.store.stats()["slots_used"]
        self.tree.write(self.random.randbytes(100_000), self.random.randrange(len(self.model) + 1))
        self.tree = Tree(self.store, root, protection=self.protection, allocated=allocated)
        assert self.store.stats()["slots_used"] == used

    @precondition(lambda self: self.epoch < 6)
    @rule(clean=st.booleans())
    def reopen_store(self, clean: bool) -> None:
        """Cleanly with a map, or as after a crash, at the anchored state."""
        self.epoch += 1
        space_map, end = EMPTY, 0
        if clean:
            self.commit(anchor=True)
            space_map = self.store.save_map()
            number = self.store.commit_begin()
            self.store.sync()
            self.store.commit_anchored(number)
            end = self.store.end_of_slots()
        allocated = self.tree.allocated
        self.store.close()
        root, content = self.anchored
        self.store = self.disk.store(epoch=self.epoch, start=False, cache_bytes=self.cache_bytes)
        if clean:
            self.store.start_map(space_map, end)
        else:
            reached = self.disk.slots(root, self.protection)
            self.store.start_unknown(max(reached, default=-1) + 1)
            self.store.rebuild_mark(root, self.protection)
            self.store.rebuild_finish()
            allocated = sum(level == 0 for level, _, _, _ in self.disk.blocks(root, self.protection))
        self.pending.clear()
        self.model = bytearray(content)
        self.tree = Tree(self.store, root, protection=self.protection, allocated=allocated)
        assert self.tree.read(0, len(content)) == content
        stats = self.store.stats()
        assert stats["slots_used"] == len(self.disk.slots(root, self.protection))

    @invariant()
    def anchored_state_is_untouched(self) -> None:
        if hasattr(self, "frozen"):
            for slot, data in self.frozen.items():
                assert self.disk.read_slot(slot) == data, f"slot {slot} of the anchored root was written"

    @invariant()
    def size_fits(self) -> None:
        if hasattr(self, "tree"):
            assert self.tree.size == len(self.model)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(stateful_step_count=40, deadline=None)
