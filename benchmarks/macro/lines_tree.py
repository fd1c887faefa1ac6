"""Lines on many small files: untar, walk, read all and remove, the time to mount, and the daemon's memory.

The tree comes from assets.py. One visit measures all of them in order, for each needs what the one before it left.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from benchmarks.macro.measure import cold, drop_caches, resident_peak_mb, run, shell
from benchmarks.macro.systems import Daemon, Fspf

if TYPE_CHECKING:
    from benchmarks.macro.measure import Take
    from benchmarks.macro.systems import System

PATIENCE_S: Final = 420.0
MOUNTS: Final = 5  # a line on mounting is the median of so many


def tree(take: Take) -> None:
    system = take.system
    tree_directory = take.place / "tree"
    if take.wants("mount-0"):
        system.remount()  # the first may create something
        take.record("mount-0", mounting(system))
    if not take.wanted - {"mount-0"}:
        return
    archive = take.assets / "tree.tar"
    shell(f"cat '{archive}' >/dev/null")  # warm for everybody
    begin = time.perf_counter()
    run(["tar", "-xf", archive, "-C", take.place], timeout=PATIENCE_S)
    take.record("untar", time.perf_counter() - begin)
    if take.wants("untar-sync"):
        system.sync()
        take.record("untar-sync", time.perf_counter() - begin)
    note_memory(take)
    if take.wants("ls-cold"):
        cold(take)
        with take.timed("ls-cold"):
            shell("ls -lR tree >/dev/null", cwd=take.place, timeout=PATIENCE_S)
        note_memory(take)
    if take.wants("find-cold"):
        cold(take)
        with take.timed("find-cold"):
            shell("find tree -ls >/dev/null", cwd=take.place, timeout=PATIENCE_S)
        note_memory(take)
    if take.wants("read-cold"):
        cold(take)
        with take.timed("read-cold"):
            shell("find tree -type f -print0 | xargs -0 cat >/dev/null", cwd=take.place, timeout=PATIENCE_S)
        note_memory(take)
    if take.wants("mount-50k"):
        take.record("mount-50k", mounting(system))
    with take.timed("rm"):
        run(["rm", "-rf", tree_directory], timeout=PATIENCE_S)
    note_memory(take)


def mounting(system: System) -> float:
    """Return the milliseconds from starting the daemon until the mount answers."""
    times = []
    for _ in range(MOUNTS):
        system.remount()
        times.append(system.mount_s * 1e3 if isinstance(system, Daemon) else 0.0)
    return statistics.median(times)


def note_memory(take: Take) -> None:
    """Keep the highest peak of the daemons of this visit."""
    peak = resident_peak_mb(take.system.pid) if take.system.pid is not None else None
    if peak is not None and take.wants("memory"):
        before = take.figures.get("memory", {}).get(take.system.name, {}).get(take.round, 0.0)
        take.record("memory", max(peak, before))


def million(take: Take) -> None:
    """Mount a volume with a million files: made through FSPF's library, for peers through their mount."""
    system = take.system
    files = take.sizes.million_files
    if not isinstance(system, Daemon):
        return
    if isinstance(system, Fspf):
        system.fill(files)
    else:
        for number in range(files):
            path = take.place / f"d{number // 1000:06}" / f"file-{number:09}"
            if number % 1000 == 0:
                path.parent.mkdir()
            path.write_bytes(b"" if number % 10 else b"content of one file")
    drop_caches()
    take.record("mount-1m", mounting(system))
