"""Writers that use a store as a CAS server does, while something happens to it; and what must hold of what they saw.

What happens is the tests' business. Not a test.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fspf.cas.store import ABSENT, Compare, Put, Store
from fspf.core.errors import CasUnreachableError


@dataclass
class Writer:
    """Counts one key up by compare-and-put. Asks what became of a transaction whose outcome is unknown."""

    store: Store
    key: str
    acknowledged: int = 0  # the newest value that was answered
    revision: int = ABSENT
    unknown: int = 0
    refused: int = 0  # reads that got no answer
    problems: list[str] = field(default_factory=list)

    async def run(self, stop: asyncio.Event, progress: asyncio.Condition) -> None:
        while not stop.is_set():
            try:
                await self.step()
            except CasUnreachableError:
                self.refused += 1
                await asyncio.sleep(0.02)
            async with progress:
                progress.notify_all()

    async def step(self) -> None:
        """Do one transaction; nobody else writes this key, so whatever is found was written here."""
        value = self.acknowledged + 1
        try:
            revision = await self.store.transact([Compare(self.key, self.revision)], [Put(self.key, b"%d" % value)])
        except CasUnreachableError:
            self.unknown += 1
            await self.look(value)
            return
        if revision is None:
            self.problems.append(f"{self.key}: revision {self.revision} was lost")
            await self.look(value)
            return
        self.acknowledged, self.revision = value, revision

    async def look(self, attempted: int) -> None:
        """Find out what is stored: what was acknowledged, or the attempt."""
        entry = await self.store.get(self.key)
        found = 0 if entry is None else int(entry.value)
        if not self.acknowledged <= found <= attempted:
            self.problems.append(f"{self.key}: {self.acknowledged} to {attempted} expected, {found} found")
        self.acknowledged = found
        self.revision = ABSENT if entry is None else entry.revision


class Load:
    """Several writers, and a way to wait for what they do."""

    def __init__(self, stores: list[Store], writers: int) -> None:
        self.writers = [Writer(stores[number % len(stores)], f"w/{number}") for number in range(writers)]
        self._stop = asyncio.Event()
        self._progress = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(one.run(self._stop, self._progress)) for one in self.writers]

    async def advance(self, steps: int) -> None:
        """Wait until every writer was acknowledged *steps* more."""
        goals = [one.acknowledged + steps for one in self.writers]
        await self._until(lambda: all(one.acknowledged >= goal for one, goal in zip(self.writers, goals, strict=True)))

    async def refused(self) -> None:
        """Wait until every writer was told that there is no answer."""
        before = [one.refused for one in self.writers]
        await self._until(lambda: all(one.refused > seen for one, seen in zip(self.writers, before, strict=True)))

    async def _until(self, done: object) -> None:
        assert callable(done)
        async with self._progress:
            await self._progress.wait_for(done)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def check(self, store: Store) -> None:
        """Nothing that was acknowledged is lost: neither while it happened nor now."""
        assert [problem for one in self.writers for problem in one.problems] == []
        for one in self.writers:
            entry = await store.get(one.key)
            assert entry is not None
            assert (int(entry.value), entry.revision) == (one.acknowledged, one.revision), one.key
