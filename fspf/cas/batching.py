"""Requests of concurrent tasks, sent together: what one round trip or one fsync costs is shared by all that wait.

What a batch is, and how it is done, is left to the stores.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from fspf.core.errors import CasError, FspfError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Does items in batches, a few batches at a time. Serves one event loop.

    A lone item is done at once. While as many batches as may be are under way, items gather for the next one.
    """

    def __init__(
        self,
        do: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        begin: Callable[[], Callable[[T], bool]],
        at_once: int,
    ) -> None:
        """Make one.

        Args:
            do: Does a batch; one result for each item, or an `FspfError` for all of them.
            begin: Begins a batch: returns what tells of one item after another whether it goes along. The first must.
            at_once: Batches under way.
        """
        self._do = do
        self._begin = begin
        self._at_once = at_once
        self._pending: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._closed = False

    async def submit(self, item: T) -> R:
        """Have *item* done. A caller that is cancelled does not take back what was sent."""
        if self._closed:
            raise CasError("the store was closed")
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending.append((item, answer))
        if len(self._workers) < self._at_once:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await answer

    async def close(self) -> None:
        """Wait for what was asked for."""
        self._closed = True
        if self._workers:
            await asyncio.gather(*self._workers, return_exceptions=True)  # each caller was told

    async def _work(self) -> None:
        while batch := self._take():
            answers = [answer for _, answer in batch]
            try:
                results = await self._do([item for item, _ in batch])
            except FspfError as exc:
                for answer in answers:
                    if not answer.done():
                        # One for each: tracebacks are added to what is raised.
                        answer.set_exception(type(exc)(*exc.args))
            except BaseException as exc:
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(exc if isinstance(exc, Exception) else asyncio.CancelledError())
                raise
            else:
                for answer, result in zip(answers, results, strict=True):
                    if not answer.done():
                        answer.set_result(result)

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        """Take what goes together, in order; what does not fit stays first in line."""
        batch: list[tuple[T, asyncio.Future[R]]] = []
        goes_along = self._begin()
        while self._pending:
            item, answer = self._pending[0]
            if answer.done():
                self._pending.popleft()  # cancelled before it was sent
            elif goes_along(item):
                batch.append(self._pending.popleft())
            else:
                assert batch, "the first item of a batch always fits"
                break
        return batch


def at_most(count: int) -> Callable[[], Callable[[object], bool]]:
    """Make the *begin* of batches that are only limited in number."""

    def begin() -> Callable[[object], bool]:
        left = iter(range(count))
        return lambda _: next(left, None) is not None

    return begin
