"""Lines on programs with habits of their own: git, and SQLite's commits.

Whole applications against plain ext4 are in apps.py.
"""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from benchmarks.macro.measure import cold, run

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.macro.measure import Take, Word

_SELECTS: Final = 3000


def git(take: Take) -> None:
    clone = take.place / "clone"
    run(["cat", take.assets / "repository.git" / "packed-refs"])
    with take.timed("git-clone"):
        run(["git", "clone", "-q", "--no-local", take.assets / "repository.git", clone])
    command: list[Word] = ["git", "-C", clone]
    if take.wants("git-status-cold", "git-status"):
        time.sleep(1.1)  # an index as young as its files makes git read them all
        run([*command, "status", "--porcelain"])
        cold(take)
        with take.timed("git-status-cold"):
            run([*command, "status", "--porcelain"])
        with take.timed("git-status"):
            run([*command, "status", "--porcelain"])
    with take.timed("git-checkout"):
        run([*command, "checkout", "-q", "main"])
    run(["rm", "-rf", clone])


def sqlite(take: Take) -> None:
    for key, journal in (("sqlite-commits", "delete"), ("sqlite-commits-wal", "wal")):
        if take.wants(key):
            take.record(key, commits(take.place / f"{journal}.db", journal, take.sizes.commits))
    if take.wants("sqlite-batch", "sqlite-read"):
        path = take.place / "batch.db"
        take.record("sqlite-batch", batch(path, take.sizes.rows))
        if take.wants("sqlite-read"):
            cold(take)
            take.record("sqlite-read", selects(path, take.sizes.rows))


def connect(path: Path, journal: str) -> closing[sqlite3.Connection]:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"pragma journal_mode={journal}")
    database.execute("pragma synchronous=full")
    database.execute("create table if not exists t(k integer primary key, v text)")
    return closing(database)


def commits(path: Path, journal: str, count: int) -> float:
    """Return transactions of one insert a second."""
    with connect(path, journal) as database:
        begin = time.perf_counter()
        for number in range(count):
            database.execute("insert into t values(?, ?)", (number, "x" * 100))
        return count / (time.perf_counter() - begin)


def batch(path: Path, count: int) -> float:
    """Return inserts a second, all in one transaction."""
    with connect(path, "delete") as database:
        rows = ((number, f"{number:0100}") for number in range(count))
        begin = time.perf_counter()
        database.execute("begin")
        database.executemany("insert into t values(?, ?)", rows)
        database.execute("commit")
        return count / (time.perf_counter() - begin)


def selects(path: Path, rows: int) -> float:
    """Return random selects a second."""
    rng = random.Random(rows)
    begin = time.perf_counter()
    with closing(sqlite3.connect(path)) as database:
        for _ in range(_SELECTS):
            database.execute("select v from t where k = ?", (rng.randrange(rows),)).fetchone()
    return _SELECTS / (time.perf_counter() - begin)
