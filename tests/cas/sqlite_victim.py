"""A process that puts into a SQLite store from many tasks, until it is killed. Not a test.

    python -m tests.cas.sqlite_victim PATH TASKS

Prints `task value` for each value that was answered; continues from what is stored.
"""

from __future__ import annotations

import asyncio
import os
import sys

from fspf.cas.store import ABSENT, Compare, Put
from fspf.cas.store_sqlite import SqliteStore


async def count(store: SqliteStore, task: int) -> None:
    entry = await store.get(f"n/{task}")
    value, revision = (0, ABSENT) if entry is None else (int(entry.value), entry.revision)
    while True:
        value += 1
        done = await store.transact(
            [Compare(f"n/{task}", revision)], [Put(f"n/{task}", b"%d" % value), Put(f"copy/{task}", b"%d" % value)]
        )
        assert done is not None
        revision = done
        os.write(1, b"%d %d\n" % (task, value))


async def serve(path: str, tasks: int) -> None:
    store = SqliteStore(path)
    await asyncio.gather(*(count(store, task) for task in range(tasks)))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
