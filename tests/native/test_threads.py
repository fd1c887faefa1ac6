"""Python threads on the same and on different trees; closing a store under them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

from fspf_native import Tree
from tests.native.stores import Disk, commit

CHUNK = 4096


def in_threads(count: int, work: Callable[[int], None]) -> list[BaseException]:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as exc:  # noqa: BLE001  # a thread cannot fail a test by itself
            failures.append(exc)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_each_thread_its_part_of_one_tree(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    span = 64 * CHUNK
    expected: dict[int, bytearray] = {}

    def work(number: int) -> None:
        rng = random.Random(number)
        model = expected.setdefault(number, bytearray(span))
        for _ in range(150):
            offset, length = rng.randrange(span), rng.choice([10, 5000, 100_000])
            data = rng.randbytes(min(length, span - offset))
            tree.write(data, number * span + offset)
            model[offset : offset + len(data)] = data
            if rng.random() < 0.1:
                commit(store, tree)
            got = tree.read(number * span, span)
            assert got == model[: len(got)]
            assert not any(model[len(got) :])

    assert in_threads(6, work) == []
    (root,) = commit(store, tree)
    assert disk.content(root) == b"".join(expected[i] for i in range(6))[: root[0]]
    stats = store.stats()
    assert stats["slots_used"] == len(disk.slots(root))
    assert stats["stray_frees"] == 0
    store.close()


def test_closing_under_way(disk: Disk) -> None:
    store = disk.store()
    trees = [Tree(store) for _ in range(4)]

    def work(number: int) -> None:
        if number == 4:
            time.sleep(0.1)
            store.close()
            return
        data = os.urandom(100_000)
        try:
            while True:
                trees[number].write(data, 0)
                assert trees[number].read(0, len(data)) == data
                commit(store, trees[number])
        except RuntimeError as exc:
            assert "closed" in str(exc)  # noqa: PT017  # the end that is wanted

    assert in_threads(5, work) == []


def test_size_is_told_while_a_writer_works(disk: Disk) -> None:
    store = disk.store()
    tree = Tree(store)
    done = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            for i in range(50):
                tree.write(bytes(300_000), i * 300_000)
            done.set()
        while not done.is_set():
            assert 0 <= tree.size <= 50 * 300_000
            assert isinstance(tree.dirty, bool)
            assert len(tree.read(tree.size // 2, 1000)) <= 1000

    assert in_threads(3, work) == []
    store.close()
