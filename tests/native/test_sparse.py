"""Huge and sparse files: what is far apart costs only what it is."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fspf_native import Tree
from tests.native.stores import Disk, commit


@pytest.mark.parametrize("chunk_size", [4096, 16384, 65536])
@pytest.mark.parametrize("reach", [4 << 30, 1 << 40, 2**62], ids=["4GiB", "1TiB", "4EiB"])
def test_sparse_file(make_disk: Callable[..., Disk], chunk_size: int, reach: int) -> None:
    rng = random.Random(chunk_size * reach)
    disk = make_disk(chunk_size=chunk_size)
    store = disk.store()
    tree = Tree(store)
    model: dict[int, bytes] = {}  # chunk -> content
    for _ in range(60):
        index = rng.randrange(reach // chunk_size)
        model[index] = rng.randbytes(chunk_size)
        tree.write(model[index], index * chunk_size)
    size = (max(model) + 1) * chunk_size
    assert tree.size == size
    for _ in range(2):
        (root,) = commit(store, tree)
        assert tree.allocated == len(model)
        tree = Tree(store, root, allocated=tree.allocated)
        for index, content in model.items():
            assert tree.read(index * chunk_size - 1 if index else 0, chunk_size + 1)[-chunk_size:] == content
        position = 0
        seen: list[int] = []
        while position < size:
            position = tree.seek_data(position)
            end = tree.seek_hole(position)
            seen += range(position // chunk_size, -(-end // chunk_size))
            position = end
        assert seen == sorted(model)
        assert tree.verify() == []
        middle = sorted(model)[20]
        tree.punch(0, middle * chunk_size)
        model = {index: content for index, content in model.items() if index >= middle}
        assert tree.seek_data(0) == middle * chunk_size
    cut = sorted(model)[10]
    tree.truncate(cut * chunk_size + 5)
    model = {index: content for index, content in model.items() if index <= cut}
    tree.truncate(size)
    assert tree.read(cut * chunk_size, 2 * chunk_size)[:6] == model[cut][:5] + b"\0"
    (root,) = commit(store, tree)
    assert store.stats()["slots_used"] == len(disk.slots(root))
    tree.destroy()
    commit(store, tree)
    assert store.stats()["slots_used"] == 0
    store.close()
