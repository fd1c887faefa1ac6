"""A process that serves a watched store and kills itself at a step that the test names. Not a test.

    python -m tests.cas.counter_victim PATH TCTI WINDOW_S STEP NUMBER

Increments the value of `n` for ever and prints each one that was answered; at the NUMBER-th time that STEP is reached it is
killed with SIGKILL. Steps: write, committed (before the outside counter), incremented (before the answer), never.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable

from fspf.cas.counter import Witness
from fspf.cas.store import ABSENT, Compare, Put
from fspf.cas.store_sqlite import Row, SqliteStore
from fspf.cas.tpm import Tpm, TpmCounter
from fspf.core.keys import SecretKey

MASTER = SecretKey.from_bytes(bytes(range(32)))


class Fuse:
    """Kills the process when it is used up."""

    def __init__(self, step: str, number: int) -> None:
        self._step = step
        self._left = number

    def reach(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class DyingCounter(TpmCounter):
    """A counter whose process may end right after it was incremented."""

    fuse: Fuse

    def increment(self) -> int:
        value = super().increment()
        self.fuse.reach("incremented")
        return value


class DyingWitness(Witness):
    """A guard whose process may end before and after a commit."""

    fuse: Fuse

    def write(self, removed: Iterable[Row], added: Iterable[Row]) -> bytes:
        state = super().write(removed, added)
        self.fuse.reach("write")
        return state

    def committed(self) -> None:
        self.fuse.reach("committed")
        super().committed()


async def serve(path: str, tcti: str, window_s: float, fuse: Fuse) -> None:
    counter = DyingCounter(Tpm(tcti), MASTER)
    counter.fuse = fuse
    witness = DyingWitness(MASTER, counter, window_s=window_s)
    witness.fuse = fuse
    store = SqliteStore(path, create=False)
    await store.watch(witness)
    while True:
        entry = await store.get("n")
        value, revision = (0, ABSENT) if entry is None else (int(entry.value), entry.revision)
        assert await store.transact([Compare("n", revision)], [Put("n", b"%d" % (value + 1))]) is not None
        print(value + 1, flush=True)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], float(sys.argv[3]), Fuse(sys.argv[4], int(sys.argv[5]))))
