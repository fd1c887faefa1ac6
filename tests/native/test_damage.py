"""Every way to damage a block: never a wrong byte, and the right word for it."""

from __future__ import annotations

import os
import random

import pytest

from fspf_native import ChunkError, ContentRoot, SecretKey, Store, Tree
from tests.native.stores import EPOCH, Disk, Pointer, commit

CHUNK = 4096


def build(disk: Disk, chunks: int = 300, protection: int = 0) -> tuple[ContentRoot, bytes]:
    content = os.urandom(chunks * CHUNK - 100)
    store = disk.store()
    tree = Tree(store, protection=protection)
    tree.write(content, 0)
    (root,) = commit(store, tree)
    store.close()
    return root, content


def reader(disk: Disk) -> Store:
    return disk.store(writable=False)


def block(disk: Disk, root: ContentRoot, level: int, index: int, protection: int = 0) -> Pointer:
    return next(p for lv, i, p, _ in disk.blocks(root, protection) if (lv, i) == (level, index))


@pytest.mark.parametrize("protection", [0, 1])
@pytest.mark.parametrize("index", [0, 1, 127, 128, 299])
def test_flipped_bit_in_a_chunk(disk: Disk, index: int, protection: int) -> None:
    root, content = build(disk, protection=protection)
    pointer = block(disk, root, 0, index, protection)
    sealed = bytearray(disk.read_slot(pointer.slot))
    bit = random.randrange(CHUNK * 8)
    sealed[bit // 8] ^= 1 << bit % 8
    disk.write_slot(pointer.slot, sealed)
    store = reader(disk)
    tree = Tree(store, root, protection=protection)
    with pytest.raises(ChunkError) as caught:
        tree.read(0, len(content))
    error = caught.value
    assert (error.kind, error.offset, error.slot, error.level) == ("torn", index * CHUNK, pointer.slot, 0)
    assert error.length == min(CHUNK, len(content) - index * CHUNK)
    assert (error.epoch, error.counter) == (EPOCH, pointer.counter)
    buffer = bytearray(b"\xaa" * (index * CHUNK + 10))
    with pytest.raises(ChunkError):
        tree.readinto(buffer, 0)
    assert buffer == bytes(len(buffer)), "nothing is left of what was read before the damage"
    for start in (index * CHUNK + 1, index * CHUNK + CHUNK - 101):
        with pytest.raises(ChunkError):
            tree.read(start, 50)
    # everything else stays readable
    assert tree.read(0, index * CHUNK) == content[: index * CHUNK]
    assert tree.read((index + 1) * CHUNK, 1 << 30) == content[(index + 1) * CHUNK :]
    assert tree.verify() == [(index * CHUNK, error.length, "torn", pointer.slot, 0)]
    # an attacker makes the checksum fit
    disk.seal_entry(pointer.slot, pointer.epoch, pointer.counter)
    with pytest.raises(ChunkError) as caught:
        tree.read(0, len(content))
    assert caught.value.kind == "tampered"


def test_older_version_of_the_block_is_stale(disk: Disk) -> None:
    store = disk.store(reserve_slots=0)
    tree = Tree(store)
    tree.write(b"a" * CHUNK, 0)
    (root,) = commit(store, tree)
    old = Pointer.parse(root[2])
    sealed, entry = disk.read_slot(old.slot), disk.read_entry(old.slot)
    tree.write(b"b" * CHUNK, 0)
    (root,) = commit(store, tree)
    new = Pointer.parse(root[2])
    assert new.slot != old.slot
    disk.write_slot(new.slot, sealed)
    disk.write_entry(new.slot, entry)
    with pytest.raises(ChunkError) as caught:
        tree.read(0, 1)
    assert caught.value.kind == "stale"
    store.close()


def test_swapped_chunks_are_refused(disk: Disk) -> None:
    root, content = build(disk)
    first, second = block(disk, root, 0, 3), block(disk, root, 0, 4)
    for read, write in ((disk.read_slot, disk.write_slot), (disk.read_entry, disk.write_entry)):
        a, b = read(first.slot), read(second.slot)
        write(first.slot, b)
        write(second.slot, a)
    tree = Tree(reader(disk), root)
    with pytest.raises(ChunkError) as caught:
        tree.read(3 * CHUNK, CHUNK)
    assert caught.value.kind == "tampered"  # a newer block stands there
    with pytest.raises(ChunkError) as caught:
        tree.read(4 * CHUNK, CHUNK)
    assert caught.value.kind == "stale"
    assert tree.read(0, 3 * CHUNK) == content[: 3 * CHUNK]


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "directory", "symlink", "zeros"])
def test_missing(disk: Disk, how: str) -> None:
    root, content = build(disk)
    pointer, whole = block(disk, root, 0, 200), block(disk, root, 0, 0)
    path = disk.segment_of(pointer.slot)
    data = path.read_bytes()
    if how == "zeros":
        disk.write_slot(pointer.slot, bytes(CHUNK))
        disk.write_entry(pointer.slot, bytes(16))
    else:
        path.unlink()
    if how == "empty":
        path.touch()
    elif how == "cut":
        path.write_bytes(data[: disk.slot_offset(pointer.slot) + 1000])
    elif how == "directory":
        path.mkdir()
    elif how == "symlink":
        (disk.path / "elsewhere").write_bytes(data)
        path.symlink_to("elsewhere")
    tree = Tree(reader(disk), root)
    with pytest.raises(ChunkError) as caught:
        tree.read(200 * CHUNK, CHUNK)
    assert caught.value.kind == "missing"
    assert caught.value.slot == pointer.slot
    assert disk.segment_of(whole.slot) != path
    assert tree.read(0, CHUNK) == content[:CHUNK]


def test_unknown_epoch_says_so(disk: Disk) -> None:
    root, _ = build(disk)
    disk.keys.clear()
    tree = Tree(reader(disk), root)
    with pytest.raises(ChunkError, match="key of the epoch") as caught:
        tree.read(0, 1)
    assert caught.value.kind == "missing"


def test_wrong_key_is_tampered(disk: Disk) -> None:
    root, _ = build(disk)
    store = Store(str(disk.path), segment_slots=64)
    store.add_epoch(EPOCH, SecretKey.generate())
    with pytest.raises(ChunkError) as caught:
        Tree(store, root).read(0, 1)
    assert caught.value.kind == "tampered"


@pytest.mark.parametrize("level", [1, 2])
def test_damaged_node_names_all_that_it_covers(disk: Disk, level: int) -> None:
    root, content = build(disk)
    index = 1 if level == 1 else 0
    pointer = block(disk, root, level, index)
    disk.write_slot(pointer.slot, os.urandom(CHUNK))
    tree = Tree(reader(disk), root)
    span = CHUNK * 128**level
    with pytest.raises(ChunkError) as caught:
        tree.read(index * span, 1)
    error = caught.value
    expected = (index * span, min(span, len(content) - index * span))
    assert (error.kind, error.level, (error.offset, error.length)) == ("torn", level, expected)
    assert tree.verify() == [(*expected, "torn", pointer.slot, level)]
    if level == 1:
        assert tree.read(0, span) == content[:span]
        assert tree.read(2 * span, span) == content[2 * span :]


def test_verify_reads_past_the_cache(disk: Disk) -> None:
    root, content = build(disk)
    tree = Tree(reader(disk), root)
    assert tree.read(0, len(content)) == content
    pointer = block(disk, root, 1, 0)
    disk.write_slot(pointer.slot, bytes(CHUNK))
    assert tree.read(0, len(content)) == content  # authentic nodes are in memory
    assert tree.verify() == [(0, 128 * CHUNK, "torn", pointer.slot, 1)]


def test_verify_joins_neighbours_and_stops_at_the_limit(disk: Disk) -> None:
    root, _ = build(disk)
    for slot in [block(disk, root, 0, index).slot for index in (5, 6, 7, 9, 128, 200, 298, 299)]:
        disk.write_slot(slot, os.urandom(CHUNK))
    tree = Tree(reader(disk), root)
    found = [(offset // CHUNK, length, kind) for offset, length, kind, _, _ in tree.verify()]
    assert found == [
        (5, 3 * CHUNK, "torn"),
        (9, CHUNK, "torn"),
        (128, CHUNK, "torn"),
        (200, CHUNK, "torn"),
        (298, 2 * CHUNK - 100, "torn"),
    ]
    assert len(tree.verify(2)) == 2
    assert tree.verify(0) == []


def test_partial_write_into_a_damaged_chunk_fails_and_a_whole_one_heals(disk: Disk) -> None:
    root, content = build(disk)
    disk.write_slot(block(disk, root, 0, 10).slot, os.urandom(CHUNK))
    store = disk.store(epoch=2, start=False)
    store.start_unknown(1)
    tree = Tree(store, root, allocated=300)
    with pytest.raises(ChunkError):
        tree.write(b"x", 10 * CHUNK + 5)
    with pytest.raises(ChunkError):
        tree.punch(10 * CHUNK + 5, 10)
    with pytest.raises(ChunkError):
        tree.truncate(10 * CHUNK + 5)
    assert tree.size == len(content)
    assert tree.allocated == 300
    tree.write(b"x" * CHUNK, 10 * CHUNK)
    assert tree.read(0, 1 << 30) == content[: 10 * CHUNK] + b"x" * CHUNK + content[11 * CHUNK :]
    assert disk.content(tree.flush())[10 * CHUNK : 11 * CHUNK] == b"x" * CHUNK
    store.close()


def test_damaged_file_can_be_destroyed(disk: Disk) -> None:
    root, _ = build(disk)
    victim = block(disk, root, 1, 1)
    end = max(disk.slots(root)) + 1
    disk.write_slot(victim.slot, os.urandom(CHUNK))
    store = disk.store(epoch=2, start=False)
    store.start_unknown(end)
    tree = Tree(store, root, allocated=300)
    assert tree.destroy() == 128
    assert (tree.size, tree.allocated, tree.dirty) == (0, 0, False)
    assert tree.flush() == (0, 0, bytes(32))
    other = Tree(store, root, allocated=300)
    other.truncate(0)
    assert other.read(0, 10) == b""
    store.close()


@pytest.mark.parametrize(
    "root",
    [
        pytest.param((1, 1, bytes(32)), id="depth too great"),
        pytest.param((4097, 0, bytes(32)), id="depth too small"),
        pytest.param((2**63, 8, bytes(32)), id="size too great"),
        pytest.param((-1, 0, bytes(32)), id="negative size"),
        pytest.param((1, -1, bytes(32)), id="negative depth"),
        pytest.param((0, 0, b"\1" * 32), id="pointer of nothing"),
        pytest.param((1, 0, bytes(5) + bytes(3) + bytes(8) + b"t" * 16), id="epoch 0"),
        pytest.param((1, 0, bytes(5) + b"\1\0\0" + b"\xff" * 8 + b"t" * 16), id="counter beyond its limit"),
        pytest.param((1, 0, bytes(31)), id="short pointer"),
    ],
)
def test_root_that_the_format_does_not_allow(disk: Disk, root: ContentRoot) -> None:
    with pytest.raises(ValueError, match=r"expected|root|pointer"):
        Tree(reader(disk), root)


@pytest.mark.parametrize("slot", [64, 2**39, 2**40 - 1])
def test_pointer_to_nowhere_is_missing(disk: Disk, slot: int) -> None:
    disk.keys[1] = bytes(32)
    pointer = slot.to_bytes(5, "little") + b"\1\0\0" + bytes(8) + bytes(range(16))
    tree = Tree(reader(disk), (10_000_000, 2, pointer))
    with pytest.raises(ChunkError) as caught:
        tree.read(0, 1)
    assert (caught.value.kind, caught.value.offset, caught.value.length) == ("missing", 0, 10_000_000)
    assert tree.verify() == [(0, 10_000_000, "missing", slot, 2)]


def test_host_error_is_an_oserror(disk: Disk) -> None:
    with pytest.raises(FileNotFoundError):
        Store(str(disk.path / "nowhere"))
    with pytest.raises(NotADirectoryError):
        (disk.path / "file").touch()
        Store(str(disk.path / "file"))
