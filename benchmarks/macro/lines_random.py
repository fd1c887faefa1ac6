"""Lines on random access: 4 KiB reads and writes by fio, one and sixteen at a time, with and without fsync.

Queue depth 16 is sixteen threads: buffered asynchronous I/O would be carried out by threads of the kernel anyway.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from benchmarks.macro.lines_stream import move, restore
from benchmarks.macro.measure import cold, fio, over_warm_backing

if TYPE_CHECKING:
    from benchmarks.macro.measure import Take


def random(take: Take) -> None:
    if take.wanted != {"rand-write-fsync-16f"}:
        one_file(take)
    if take.wants("rand-write-fsync-16f"):
        clients(take)


def one_file(take: Take) -> None:
    path = take.place / "random"
    size = take.sizes.random_bytes
    count = take.sizes.random_count
    move(take, "write", [path], size)
    for key, jobs in (("rand-read-cold", 1), ("rand-read-cold-16", 16)):
        if take.wants(key):
            cold(take)
            restore(take, path, size)
            take.record(key, fio(take, path, "randread", count=count, jobs=jobs))
    for key, jobs in (("rand-read-backing", 1), ("rand-read-backing-16", 16)):
        if take.wants(key):
            over_warm_backing(take)
            restore(take, path, size)
            take.record(key, fio(take, path, "randread", count=4 * count, jobs=jobs))
    if take.wants("rand-write", "rand-write-end"):
        writes = min(8 * count, size // 4096)
        speed = fio(take, path, "randwrite", count=writes)
        take.record("rand-write", speed)
        take.record("rand-write-end", writes / (writes / speed + fsync(path)))
    if take.wants("rand-write-16"):
        take.record("rand-write-16", fio(take, path, "randwrite", count=min(8 * count, size // 4096), jobs=16))
        fsync(path)
    for key, jobs in (("rand-write-fsync", 1), ("rand-write-fsync-16", 16)):
        if take.wants(key):
            fsync(path)
            synced = take.sizes.sync_count * (1 if jobs == 1 else 4)
            take.record(key, fio(take, path, "randwrite", count=synced, jobs=jobs, extra=["--fsync=1"]))
    path.unlink()


def clients(take: Take) -> None:
    """Sixteen clients, each with a file: those of one file wait for each other in the kernel, these may share commits."""
    number = 16
    size = take.sizes.random_bytes // number
    files = [take.place / f"client{client}" for client in range(number)]
    move(take, "write", files, size)
    pattern = take.place / "client$jobnum"
    count = 4 * take.sizes.sync_count
    speed = fio(take, pattern, "randwrite", count=count, jobs=number, size=size, extra=["--fsync=1"])
    take.record("rand-write-fsync-16f", speed)
    for path in files:
        path.unlink()


def fsync(path: os.PathLike[str]) -> float:
    """Return the seconds that fsync of *path* takes."""
    descriptor = os.open(path, os.O_RDWR)
    begin = time.perf_counter()
    os.fsync(descriptor)
    end = time.perf_counter()
    os.close(descriptor)
    return end - begin
