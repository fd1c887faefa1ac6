"""What the data plane has answered, and what of it is in the volume after a commit, a failure or an unmount."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fspf.core.types import ROOT_INO, Ino
from fspf.volume.volume import Volume
from fspf_native import Relay, Tree
from tests.fault.memcas import MemoryCas
from tests.support.fakekernel import ROOT
from tests.support.fakemount import FakeMount

SMALL: dict[str, Any] = {"commit_interval": None}


@pytest.fixture
def cas() -> MemoryCas:
    return MemoryCas()


def test_numbers_that_the_control_plane_takes_are_never_given_again(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        mounted.kernel.symlink(ROOT, b"s", b"target")  # nothing else waits: no drain tells the volume of numbers
    with Volume.open(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        made = mounted.kernel.create(ROOT, b"f")
        assert mounted.kernel.lookup(ROOT, b"s").ino != made.ino
    with Volume.open(scratch / "volume", cas, read_only=True) as volume:
        assert volume.readlink(volume.lookup(ROOT_INO, b"s").ino) == b"target"
        assert [entry.name for entry in volume.readdir(ROOT_INO)] == [b"s", b"f"]


def committed(volume: Volume, cas: MemoryCas, name: bytes) -> bytes:
    """What a crash now would leave in a file."""
    with Volume.open(volume.path, cas, read_only=True) as state:
        with state.open_file(state.lookup(ROOT_INO, name).ino) as file:
            return file.read(0, file.size)


@contextmanager
def flushing(relay: Relay) -> Iterator[None]:
    """Flush all contents again and again on other threads."""
    ended = threading.Event()

    def flush() -> None:
        while not ended.is_set():
            relay.flush_all()

    threads = [threading.Thread(target=flush) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_fsync_waits_for_a_flush_that_is_under_way(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        kernel = mounted.kernel
        ino = kernel.create(ROOT, b"f").ino
        with flushing(mounted.plane.relay):
            for round_ in range(60):
                data = bytes([round_]) * 800_000
                for offset in range(0, len(data), 50_000):  # small: they stay in memory
                    kernel.write(ino, offset, data[offset : offset + 50_000], cached=True)
                kernel.fsync(ino)
                assert committed(volume, cas, b"f") == data


def test_flushes_of_one_content_are_noted_in_their_order(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        kernel, relay = mounted.kernel, mounted.plane.relay
        ino = kernel.create(ROOT, b"f").ino
        with flushing(relay):
            for round_ in range(1500):
                data = round_.to_bytes(8, "big") * 2049
                kernel.write(ino, 0, data[8:], cached=True)
                kernel.write(ino, 0, data, cached=True)
                assert relay.flush_all() == 0
                with volume.lock:
                    row = volume.namespace.inode(Ino(ino))
                    assert row is not None
                    tree = Tree(volume.store, row.root, protection=row.protection, allocated=row.chunks)
                    assert tree.read(0, 20000) == data
