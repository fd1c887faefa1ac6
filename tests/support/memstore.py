"""A store in memory: the reference that the contract tests compare with, and what unit tests of its users run on.

Keeps nothing across processes; faults are injected with `fail_next`. Real stores are in `fspf.cas.store_*`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fspf.cas.store import ABSENT, Compare, Entry, Put, check_transaction
from fspf.core.errors import CasUnreachableError


class MemoryStore:
    """Implements `fspf.cas.store.Store`.

    Each call gives way to other tasks once before it looks at anything, as a real store does: who reads, computes and
    puts without comparing loses updates here too.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.transactions = 0  # that were done
        self._failures: list[bool] = []

    @property
    def url(self) -> str:
        return "memory://"

    def fail_next(self, *, done: bool) -> None:
        """Let the next transaction raise `CasUnreachableError`: after it was *done*, or instead."""
        self._failures.append(done)

    async def get(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        return self.entries.get(key)

    async def list(self, prefix: str) -> list[tuple[str, Entry]]:
        await asyncio.sleep(0)
        return sorted((key, entry) for key, entry in self.entries.items() if key.startswith(prefix))

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        check_transaction(compare, put)
        await asyncio.sleep(0)
        failure = self._failures.pop(0) if self._failures else None
        if failure is False:
            raise CasUnreachableError("memory://: a fault was injected, nothing was done")
        revision = self._transact(compare, put)
        if failure is True:
            raise CasUnreachableError("memory://: a fault was injected after the transaction was done")
        return revision

    def _transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        for key, expected in compare:
            entry = self.entries.get(key)
            if (ABSENT if entry is None else entry.revision) != expected:
                return None
        self.revision += 1
        self.transactions += 1
        for key, value in put:
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = Entry(bytes(value), self.revision)
        return self.revision

    async def close(self) -> None:
        await asyncio.sleep(0)
