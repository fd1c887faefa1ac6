"""Allocation, frees, commits, maps, rebuilding, quota: where slots come from and go to."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
import xxhash

from fspf_native import ContentRoot, SecretKey, Store, Tree
from tests.native.stores import EMPTY, Disk, Pointer, commit

CHUNK = 4096


def used(store: Store) -> int:
    return store.stats()["slots_used"]


def test_frees_come_back_only_when_anchored(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    tree.write(os.urandom(10 * CHUNK), 0)
    commit(store, tree)
    assert used(store) == 11
    tree.write(os.urandom(10 * CHUNK), 0)
    tree.flush()
    stats = store.stats()
    assert (stats["slots_used"], stats["slots_pending"]) == (11, 11)
    first = store.commit_begin()
    tree.write(b"x", 0)
    tree.flush()
    second = store.commit_begin()
    store.commit_anchored(first)
    assert store.stats()["slots_pending"] == 2  # chunk and node replaced in between
    store.commit_anchored(second)
    assert store.stats()["slots_pending"] == 0
    store.commit_anchored(second)  # twice does no harm
    with pytest.raises(ValueError, match="no such commit"):
        store.commit_anchored(second + 1)
    store.close()


def test_what_no_root_names_is_free_at_once(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    for _ in range(5):
        tree.write(os.urandom(65536), 0)  # sealed at once, replaced at once
    assert store.stats()["slots_pending"] == 0
    commit(store, tree)
    assert used(store) == 17
    assert store.stats()["slots_pending"] == 0
    tree.write(os.urandom(65536), 0)
    tree.write(os.urandom(65536), 0)
    tree.flush()
    assert store.stats()["slots_pending"] == 17
    store.close()


def test_root_reported_before_a_commit_stays_whole(disk: Disk) -> None:
    """flush, write again and spill, then commit_begin: the first root may be the one that is anchored."""
    store = disk.store()
    tree = Tree(store)
    content = os.urandom(40 * CHUNK)
    tree.write(content, 0)
    root = tree.flush()
    for _ in range(4):
        tree.write(os.urandom(40 * CHUNK), 0)
        tree.flush()
    other = Tree(store)
    other.write(os.urandom(100 * CHUNK), 0)
    other.flush()
    store.commit_begin()
    assert disk.content(root) == content
    store.close()


def test_dropped_tree_gives_back_what_it_sealed(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    tree.write(os.urandom(300 * CHUNK), 0)
    (root,) = commit(store, tree)
    before = used(store)
    tree.write(os.urandom(200 * CHUNK), 0)
    tree.write(b"tail", 400 * CHUNK)
    tree.truncate(150 * CHUNK)
    del tree
    assert used(store) == before
    assert store.stats()["dirty_bytes"] == 0
    assert len(disk.content(root)) == 300 * CHUNK
    assert Tree(store, root).verify() == []
    store.close()


def test_many_dirty_nodes_are_sealed_on_the_way(make_disk: Callable[..., Disk]) -> None:
    disk = make_disk(segment_slots=16384)
    store = disk.store()
    tree = Tree(store)
    span = 128 * CHUNK
    for i in range(2500):
        tree.write(b"x", i * span)
    assert tree.dirty
    assert tree.dirty_bytes < 2200 * CHUNK
    assert store.stats()["slots_used"] > 2000
    (root,) = commit(store, tree)
    assert tree.allocated == 2500
    assert store.stats()["slots_used"] == 2500 + 2500 + 20 + 1
    fresh = Tree(store, root)
    assert all(fresh.read(i * span, 2) == b"x\0" for i in range(0, 2499, 7))
    for i in range(2500):  # and dropping such a tree gives all of it back
        tree.write(b"y", i * span)
    del tree
    assert store.stats()["slots_used"] == 2500 + 2500 + 20 + 1
    fresh.destroy()
    store.commit_anchored(store.commit_begin())
    assert used(store) == 0
    store.close()


@pytest.mark.parametrize("size", [CHUNK, 3 * CHUNK])
def test_many_small_files_do_not_fill_the_memory(make_disk: Callable[..., Disk], size: int) -> None:
    store = make_disk(segment_slots=16384).store()
    trees = [Tree(store) for _ in range(20_000)]
    for i in range(len(trees)):
        trees[i].write(i.to_bytes(4, "little") * (size // 4), 0)
    assert store.stats()["dirty_bytes"] <= (64 << 20) + 16 * CHUNK
    assert all(tree.read(size - 4, 9) == i.to_bytes(4, "little") for i, tree in enumerate(trees))
    trees.clear()
    assert store.stats()["dirty_bytes"] == 0
    assert used(store) == 0
    store.close()


def test_contiguous_writes(make_disk: Callable[..., Disk]) -> None:
    disk = make_disk(segment_slots=1024)
    store = disk.store(reserve_slots=0)
    tree = Tree(store)
    for i in range(100):
        tree.write(os.urandom(CHUNK), i * CHUNK)
    before = store.stats()["writes"]
    root = tree.flush()
    assert store.stats()["writes"] - before == 2, "one write of slots, one of their entries"
    slots = [pointer.slot for level, _, pointer, _ in disk.blocks(root) if level == 0]
    assert slots == list(range(slots[0], slots[0] + 100))
    before = store.stats()["reads"]
    assert len(Tree(store, root).read(0, 64 * CHUNK)) == 64 * CHUNK
    assert store.stats()["reads"] - before == 1
    store.close()


def test_files_have_full_length_and_true_checksums(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    tree.write(os.urandom(150 * CHUNK), 0)
    root = tree.flush()
    store.close()
    names = sorted(os.listdir(disk.path))
    assert names == [f"{i:08x}" for i in range(len(names))]
    assert {os.stat(disk.path / name).st_size for name in names} == {64 * (CHUNK + 16)}
    for slot in disk.slots(root):
        checksum = int.from_bytes(disk.read_entry(slot)[:8], "little")
        assert checksum == xxhash.xxh3_64_intdigest(disk.read_slot(slot))


def test_no_segment_before_the_first_write(disk: Disk) -> None:
    store = disk.store()
    Tree(store).flush()
    store.sync()
    assert os.listdir(disk.path) == []
    assert store.end_of_slots() == 0
    store.close()


def test_segments_are_used_again(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    for _ in range(40):
        tree.write(os.urandom(60 * CHUNK), 0)
        commit(store, tree)
    assert store.stats()["segments"] <= 6
    store.close()


def test_sync_counts_segments_once(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    tree.write(os.urandom(200 * CHUNK), 0)
    tree.flush()
    assert store.sync() == store.stats()["segments"]
    assert store.sync() == 0
    store.close()


def test_trim_gives_storage_back_and_clears_entries(disk: Disk) -> None:
    store = disk.store(reserve_slots=0)
    tree = Tree(store)
    tree.write(os.urandom(60 * CHUNK), 0)
    (root,) = commit(store, tree)
    slots = disk.slots(root)
    blocks = sum(os.stat(disk.path / name).st_blocks for name in os.listdir(disk.path))
    tree.destroy()
    store.commit_anchored(store.commit_begin())
    assert store.trim() >= 60 * CHUNK
    assert store.trim() == 0
    after = sum(os.stat(disk.path / name).st_blocks for name in os.listdir(disk.path))
    assert after < blocks - 400
    assert all(disk.read_entry(slot) == bytes(16) and disk.read_slot(slot) == bytes(CHUNK) for slot in slots)
    store.close()


# ---- maps and rebuilding


def filled(disk: Disk, store: Store) -> tuple[list[tuple[ContentRoot, bytes]], Tree]:
    trees = []
    for i in range(5):
        tree = Tree(store)
        tree.write(os.urandom((20 + 7 * i) * CHUNK + i), 0)
        trees.append(tree)
    roots = commit(store, *trees)
    trees[0].destroy()
    trees[1].truncate(5)
    roots = commit(store, *trees)
    return [(root, disk.content(root)) for root in roots], trees[1]


def test_map_of_a_clean_close(disk: Disk) -> None:
    store = disk.store()
    files, _ = filled(disk, store)
    before = used(store)
    space_map = store.save_map()
    number = store.commit_begin()
    store.sync()
    end = store.end_of_slots()
    store.commit_anchored(number)
    store.close()

    truth = set().union(*(disk.slots(root) for root, _ in files))
    bits = disk.content(space_map)
    assert {i for i in range(len(bits) * 8) if bits[i // 8] >> i % 8 & 1} == truth
    assert not truth & disk.slots(space_map)
    assert max(truth | disk.slots(space_map)) < end

    store = disk.store(epoch=2, start=False)
    store.start_map(space_map, end)
    assert used(store) == before == len(truth)
    assert store.stats()["slots_pending"] == len(disk.slots(space_map))
    tree = Tree(store)
    for _ in range(10):
        tree.write(os.urandom(50 * CHUNK), 0)
        tree.flush()
    assert disk.content(space_map) == bits, "the map is not overwritten before the next commit is anchored"
    commit(store, tree)
    assert store.stats()["slots_pending"] == 0
    for root, content in files:
        assert disk.content(root) == content
        Tree(store, root).destroy()
    tree.destroy()
    store.commit_anchored(store.commit_begin())
    assert used(store) == 0
    store.close()


def test_saved_maps_do_not_leak(disk: Disk) -> None:
    store = disk.store()
    _, tree = filled(disk, store)
    before = used(store)
    for _ in range(20):
        store.save_map()
        store.save_map()
        tree.write(os.urandom(10), 0)
        commit(store, tree)
    commit(store, tree)
    commit(store, tree)
    assert used(store) == before
    store.close()


def test_map_that_is_damaged_leaves_room_for_a_rebuild(disk: Disk) -> None:
    store = disk.store()
    files, _ = filled(disk, store)
    space_map = store.save_map()
    end = store.end_of_slots()
    store.close()
    disk.write_slot(Pointer.parse(space_map[2]).slot, os.urandom(CHUNK))
    store = disk.store(epoch=2, start=False)
    with pytest.raises(Exception, match="torn"):
        store.start_map(space_map, end)
    store.start_unknown(end)
    for root, _ in files:
        store.rebuild_mark(root)
    store.rebuild_finish()
    assert used(store) == sum(len(disk.slots(root)) for root, _ in files)
    store.close()


def test_rebuild_while_writing(disk: Disk) -> None:
    store = disk.store()
    files, _ = filled(disk, store)
    end = store.end_of_slots()
    lost = Tree(store)  # sealed, never committed
    lost.write(os.urandom(100 * CHUNK), 0)
    lost.flush()
    store.close()
    boundary = len(os.listdir(disk.path)) * 64

    store = disk.store(epoch=2, start=False)
    store.start_unknown(end)
    assert store.stats()["rebuilding"]
    with pytest.raises(RuntimeError, match="rebuilt"):
        store.save_map()
    new = Tree(store)
    new.write(os.urandom(70 * CHUNK), 0)
    trees = [Tree(store, root) for root, _ in files]
    trees[2].destroy()  # freed and anchored before it is marked
    commit(store, new)
    store.rebuild_mark(files[2][0])
    trees[3].destroy()  # handed over, not anchored
    number = store.commit_begin()
    chunks = [store.rebuild_mark(root) for root, _ in files]
    assert chunks == [sum(level == 0 for level, _, _, _ in disk.blocks(root)) for root, _ in files]
    new_root = new.flush()
    assert min(disk.slots(new_root)) >= boundary
    gained = store.rebuild_finish()
    alive = set().union(*(disk.slots(files[i][0]) for i in (0, 1, 3, 4)))
    assert gained == boundary - len(alive)
    for root, content in files[3:]:
        assert disk.content(root) == content
    stats = store.stats()
    assert stats["slots_used"] + stats["slots_pending"] == len(alive) + len(disk.slots(new_root))
    assert not stats["rebuilding"]
    store.commit_anchored(number)
    assert used(store) == len(alive) - len(disk.slots(files[3][0])) + len(disk.slots(new_root))
    free = set(range(boundary)) - alive
    assert all(disk.read_entry(slot) == bytes(16) for slot in free)
    for tree in (trees[0], trees[1], trees[4], new):
        tree.destroy()
    store.commit_anchored(store.commit_begin())
    assert used(store) == 0
    store.close()


def test_stray_files_are_left_alone(disk: Disk) -> None:
    for name in ("ffffffff", "0000", "zzzzzzzz", "00000001.bak"):
        (disk.path / name).write_bytes(b"stray")
    store = disk.store(start=False)
    store.start_unknown(0)
    assert store.stats()["segments"] == 0
    tree = Tree(store)
    tree.write(os.urandom(100 * CHUNK), 0)
    assert disk.content(tree.flush())
    assert (disk.path / "ffffffff").read_bytes() == b"stray"
    store.close()


# ---- order of calls


def test_writing_needs_an_epoch_and_a_start(disk: Disk) -> None:
    store = Store(str(disk.path), writable=True)
    tree = Tree(store)
    with pytest.raises(RuntimeError, match="begin_epoch"):
        tree.write(b"x", 0)
    store.begin_epoch(1, SecretKey.generate())
    with pytest.raises(RuntimeError, match="start_"):
        tree.write(b"x", 0)
    store.start_empty()
    tree.write(b"x", 0)
    with pytest.raises(RuntimeError, match="before"):
        store.start_empty()
    with pytest.raises(RuntimeError, match="epoch"):
        store.begin_epoch(2, SecretKey.generate())
    with pytest.raises(RuntimeError, match="another key"):
        store.add_epoch(1, SecretKey.generate())
    store.close()


def test_read_only_store_refuses_writes(disk: Disk) -> None:
    store = Store(str(disk.path))
    tree = Tree(store)
    for call in (lambda: tree.write(b"x", 0), lambda: tree.truncate(5), lambda: tree.punch(0, 5), tree.destroy):
        with pytest.raises(OSError, match="reading") as caught:
            call()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(RuntimeError, match="read"):
        store.start_empty()
    with pytest.raises(RuntimeError, match="read"):
        store.begin_epoch(1, SecretKey.generate())
    assert tree.flush() == EMPTY


def test_closed_store_refuses_everything(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    tree.write(b"x" * 100_000, 0)
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        store.sync,
        store.stats,
        store.save_map,
        store.commit_begin,
        store.trim,
        store.end_of_slots,
        lambda: tree.read(0, 1),
        lambda: tree.write(b"x", 0),
        lambda: tree.truncate(0),
        lambda: tree.punch(0, 1),
        lambda: tree.seek_data(0),
        tree.flush,
        tree.destroy,
        tree.verify,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert tree.size == 100_000


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 4097},
        {"chunk_size": 2048},
        {"chunk_size": 131072},
        {"segment_slots": 63},
        {"segment_slots": 32},
        {"segment_slots": 1 << 21},
        {"cache_bytes": -1},
        {"max_slots": -1},
        {"chunk_size": 2**40},
    ],
)
def test_store_options_out_of_range(disk: Disk, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be|range"):
        Store(str(disk.path), **options)  # type: ignore[arg-type]


def test_offsets_out_of_range(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    for call in (
        lambda: tree.write(b"x", -1),
        lambda: tree.read(-1, 1),
        lambda: tree.read(0, -1),
        lambda: tree.truncate(2**63),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
    with pytest.raises(OSError, match="2\\^63") as caught:
        tree.write(b"xy", 2**63 - 2)
    assert caught.value.errno == errno.EFBIG
    tree.write(b"x", 2**63 - 2)
    assert tree.size == 2**63 - 1
    assert tree.read(2**63 - 3, 10) == b"\0x"
    assert tree.seek_data(0) == (2**63 - 2) // CHUNK * CHUNK
    (root,) = commit(store, tree)
    assert root[:2] == (2**63 - 1, 8)
    assert Tree(store, root).read(2**63 - 3, 10) == b"\0x"
    assert Tree(store, root).verify() == []
    tree.truncate(3)
    assert tree.read(0, 5) == bytes(3)
    tree.destroy()
    store.commit_anchored(store.commit_begin())
    assert used(store) == 0
    store.close()


# ---- room


@pytest.mark.parametrize("metadata", [False, True])
def test_quota(disk: Disk, metadata: bool) -> None:
    store = disk.store(max_slots=200)
    keeper = Tree(store)
    content = os.urandom(50 * CHUNK)
    keeper.write(content, 0)
    (root,) = commit(store, keeper)
    tree = Tree(store)
    size = 0
    with pytest.raises(OSError, match="quota") as caught:
        for i in range(1000):
            tree.write(os.urandom(CHUNK), i * CHUNK)
            size = (i + 1) * CHUNK
    assert caught.value.errno == errno.ENOSPC
    assert tree.size == size
    assert 60 * CHUNK < size < 150 * CHUNK
    assert len(tree.read(0, 1 << 30)) == size
    special = Tree(store, metadata=True)
    special.write(b"m" * 10 * CHUNK, 0)
    commit(store, special)
    tree.destroy()
    tree.write(os.urandom(20 * CHUNK), 0)
    (other,) = commit(store, tree)
    assert len(disk.content(other)) == 20 * CHUNK
    assert disk.content(root) == content
    store.close()


def test_large_write_beyond_the_quota_leaves_nothing(disk: Disk) -> None:
    store = disk.store(max_slots=100)
    tree = Tree(store)
    tree.write(b"begin", 0)
    with pytest.raises(OSError, match="quota"):
        tree.write(os.urandom(500 * CHUNK), 2)
    assert tree.size == 5
    assert tree.read(0, 2) == b"be"
    commit(store, tree)
    assert used(store) == 1
    store.close()


def test_flush_that_fails_can_be_repeated(disk: Disk) -> None:
    """Two trees share a quota: one cannot be flushed until the other has gone."""
    store = disk.store(max_slots=120, reserve_slots=0)
    first, second = Tree(store), Tree(store)
    first.write(os.urandom(64 * CHUNK), 0)
    commit(store, first)
    content = os.urandom(30 * CHUNK)
    second.write(content[:CHUNK], 0)
    for i in range(30):
        second.write(content[i * CHUNK : (i + 1) * CHUNK], i * CHUNK)
    hog = Tree(store, metadata=True)
    hog.write(os.urandom(16 * CHUNK), 0)  # metadata does not ask before it takes
    hog.write(os.urandom(8 * CHUNK), 16 * CHUNK)
    hog.flush()
    with pytest.raises(OSError, match="quota") as caught:
        second.flush()
    assert caught.value.errno == errno.ENOSPC
    assert second.dirty
    assert second.read(0, 1 << 20) == content
    first.destroy()
    store.commit_anchored(store.commit_begin())
    (root,) = commit(store, second)
    assert disk.content(root) == content
    store.close()
