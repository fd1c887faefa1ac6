"""A host without room: ENOSPC where space is needed, nothing lost, metadata still written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fspf_native import Tree
from tests.native.stores import Disk, commit

CHUNK = 4096


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("no-root: mounting a small tmpfs needs root")
    path = tmp_path / "small"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "fspf-small", str(path)], capture_output=True)
    if made.returncode:
        pytest.skip("kernel: no tmpfs may be mounted here")
    (path / "segments").mkdir()
    yield Disk(path / "segments", segment_slots=256)
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("piece", [CHUNK, 1000, 3 * CHUNK, 100_000])
def test_data_gets_enospc_and_metadata_goes_on(small: Disk, piece: int) -> None:
    store = small.store()
    namespace = Tree(store, metadata=True)
    namespace.write(os.urandom(5 * CHUNK), 0)
    first = os.urandom(100 * CHUNK)
    safe = Tree(store)
    safe.write(first, 0)
    root, _ = commit(store, safe, namespace)

    tree = Tree(store)
    written = bytearray()
    with pytest.raises(OSError, match="No space") as caught:
        while True:
            data = os.urandom(piece)
            tree.write(data, len(written))
            written += data
    assert caught.value.errno == errno.ENOSPC
    assert tree.size == len(written)
    assert tree.read(0, len(written) + 10) == written
    assert len(written) > 1 << 20

    namespace.write(os.urandom(20 * CHUNK), 0)
    names = namespace.flush()  # from the reserve
    store.commit_anchored(store.commit_begin())
    assert small.content(names)
    assert small.content(root) == first

    safe.destroy()  # a file is deleted: there is room again
    namespace.write(b"less", 0)
    namespace.flush()
    store.commit_anchored(store.commit_begin())
    assert store.trim() > 0
    (kept,) = commit(store, tree)
    assert small.content(kept) == written
    tree.destroy()
    namespace.destroy()
    store.commit_anchored(store.commit_begin())
    assert store.stats()["slots_used"] == 0
    store.close()


def test_full_from_the_start(small: Disk) -> None:
    filler = small.path / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(CHUNK))
    store = small.store()
    tree = Tree(store)
    with pytest.raises(OSError, match="No space"):
        for i in range(2000):
            tree.write(os.urandom(CHUNK), i * CHUNK)
    assert store.stats()["slots_reserved"] == 0
    filler.unlink()
    content = tree.read(0, 1 << 30)
    tree.write(b"now", 0)
    (root,) = commit(store, tree)
    assert small.content(root) == (b"now" + content[3:] if content else b"now")
    commit(store)
    assert store.stats()["slots_reserved"] > 0
    store.close()
