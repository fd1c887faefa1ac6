"""The audit log of one CAS process: takes events, chains and signs them, and keeps them when their sink is dead.

What a line looks like is left to `fspf.core.audit`, how logs are checked to `fspf.core.audit_check`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgpack
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fspf.cas.liveness import holder_is_gone
from fspf.cas.sealing import pack_holder, unpack_holder
from fspf.cas.store import Compare, Put
from fspf.core.audit import Chain, Head, Record, record_of
from fspf.core.errors import CasError, CasUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fspf.cas.audit_sink import Sink
    from fspf.cas.store import Store
    from fspf.core.anchor import Anchor, Holder

log = logging.getLogger(__name__)

KEPT_PREFIX: Final = "audit/"  # audit/<chain>/<number of its first line>: lines that no sink has taken
HEAD_PREFIX: Final = "audit-head/"  # audit-head/<chain>
_HEAD_VERSION: Final = 1
_MAX_BATCH: Final = 512 << 10  # bytes of one value in the store, and about what one write of the sink takes
_MAX_NAMED: Final = 100  # heads of other chains in one start line
_VOLUMES_PER_LINE: Final = 64
_MAX_SUMMARISED: Final = 1 << 16  # volumes


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may wait, in seconds."""

    summary: float = 60.0  # anchors: what a killed process may not have logged
    head: float = 1.0  # the store's knowledge of the head: what can be cut off unseen after a kill
    heartbeat: float = 60.0
    gone: float = 300.0  # a process on another machine that was not seen for so long has ended
    retry: float = 5.0  # a dead sink
    sink: float = 10.0  # a sink that takes longer is dead


@dataclass(slots=True)
class _Moves:
    """What one volume's anchor did since the last summary."""

    epoch: int
    first_ns: int
    before: int
    generation: int
    root_tag: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class _StoredHead:
    """What the store knows of a chain."""

    head: Head
    ended: bool
    seen_ns: int
    holder: Holder

    def pack(self) -> bytes:
        values = (_HEAD_VERSION, *self.head, self.ended, self.seen_ns, pack_holder(self.holder))
        packed: bytes = msgpack.packb(values, use_bin_type=True)
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> _StoredHead:
        try:
            version, number, line_hash, ended, seen_ns, holder = msgpack.unpackb(packed, use_list=False, raw=False)
            if version != _HEAD_VERSION:
                raise ValueError
            return cls(Head(number, line_hash), ended, seen_ns, unpack_holder(holder))
        except (ValueError, TypeError):
            raise CasError("the store holds a head of the audit log that this program cannot read") from None


@dataclass(slots=True)
class _Waiting:
    """Events that came since the last turn, and who waits for them."""

    records: list[Record] = field(default_factory=list)
    futures: list[asyncio.Future[None]] = field(default_factory=list)


class Audit:
    """The log of one process: one chain, from `start` to `close`. Lives in one asyncio event loop.

    An event that `append` returned from is durable: in the sink, or while that is dead in the store. Anchors are too
    many for that: `anchored` only counts them, and a summary is written when a lease ends and every `Timing.summary`.
    """

    def __init__(
        self,
        store: Store,
        key: Ed25519PrivateKey,
        sink: Sink | None,
        *,
        holder: Holder,
        clock: Callable[[], int] = time.time_ns,
        is_gone: Callable[[Holder], bool] = holder_is_gone,
        timing: Timing | None = None,
        max_kept: int = 16 << 20,
    ) -> None:
        """Prepare a log. Nothing is written yet.

        Args:
            store: Keeps heads, and lines while *sink* is dead.
            key: Of the CAS; the same in all its processes.
            sink: Where lines go; None: they stay in the store.
            holder: This process.
            clock: UTC ns since 1970.
            is_gone: Whether a process of this machine certainly no longer runs.
            timing: How long things wait.
            max_kept: Bytes of lines that the store keeps; beyond, events other than anchors are refused.
        """
        self._store = store
        self._sink = sink
        self._holder = holder
        self._clock = clock
        self._is_gone = is_gone
        self._timing = timing or Timing()
        self._max_kept = max_kept
        self._chain = Chain(secrets.token_hex(16), key.sign)
        self._public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fspf-audit")
        self._stuck: asyncio.Future[None] | None = None  # a write that takes too long
        self._waiting = _Waiting()
        self._moves: dict[str, _Moves] = {}
        self._unplaced: list[tuple[int, bytes]] = []  # lines that neither sink nor store took; first number and bytes
        self._kept: dict[str, int] = {}  # our keys in the store, in order, and the bytes below each
        self._broken = ""  # why the sink is dead
        self._broken_ns = 0
        self._written = 0
        self._wake = asyncio.Event()
        self._flushes: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._head_stored = Head(0, "")
        self._times = dict.fromkeys(("summary", "head", "heartbeat", "retry"), 0.0)  # event loop's clock: when last

    # -- what others call

    @property
    def chain(self) -> str:
        """The id of this process's chain."""
        return self._chain.id

    async def start(self, **fields: Any) -> None:
        """Begin the chain: its first line names the heads of all others, and thereby holds them fast.

        Raises:
            CasUnreachableError: The store cannot be read, or nothing can take the first line.
        """
        others = await self._stored_heads()
        gone = [chain for chain, (stored, _) in others.items() if self._has_ended(stored)]
        named = [*gone, *(chain for chain in others if chain not in gone)][:_MAX_NAMED]
        heads = {chain: list(others[chain][0].head) for chain in named}
        now = asyncio.get_running_loop().time()
        self._times = dict.fromkeys(self._times, now)
        self._task = asyncio.create_task(self._run(), name="audit log")
        key = base64.b64encode(self._public).decode("ascii")
        await self.append("start", **fields, process=str(self._holder), key=key, heads=heads)
        await self._store_head()
        await self._adopt()
        for chain in gone:
            if chain in heads and not await self._store.list(f"{KEPT_PREFIX}{chain}/"):
                await self._store.transact(
                    [Compare(HEAD_PREFIX + chain, others[chain][1])], [Put(HEAD_PREFIX + chain, None)]
                )

    async def append(self, kind: str, **fields: Any) -> None:
        """Log one event; return when it is durable.

        Raises:
            CasUnreachableError: Nothing could take it: what it stands for must not be done.
        """
        record = record_of(kind, self._clock(), fields)
        if self._task is None or self._task.done():
            raise CasUnreachableError("the audit log is closed")
        if self._is_full:
            raise CasUnreachableError(
                f"the audit log cannot be written ({self._broken or 'there is no file'}) and the store keeps "
                f"{self._kept_bytes} bytes of it already: make room where it belongs"
            )
        future = asyncio.get_running_loop().create_future()
        self._waiting.records.append(record)
        self._waiting.futures.append(future)
        self._wake.set()
        await future

    def note(self, kind: str, **fields: Any) -> None:
        """Log one event soon, without waiting: for what strangers can cause, and nothing depends on."""
        record = record_of(kind, self._clock(), fields)
        if not self._is_full:
            self._waiting.records.append(record)
            self._wake.set()

    def anchored(self, volume: str, epoch: int, before: Anchor, new: Anchor) -> None:
        """Count one move of an anchor. Costs nothing and never fails: an fsync waits for it."""
        moves = self._moves.get(volume)
        if moves is not None and moves.epoch == epoch:
            moves.generation, moves.root_tag = new.generation, new.root_tag.hex()
            moves.count += 1
            return
        if moves is not None:
            self.settle(volume)
        self._moves[volume] = _Moves(epoch, self._clock(), before.generation, new.generation, new.root_tag.hex())
        if len(self._moves) > _MAX_SUMMARISED:
            self._summarise()

    def settle(self, volume: str) -> None:
        """Write the summary of one volume with the next line: before a line about its lease, so that history is in order."""
        moves = self._moves.pop(volume, None)
        if moves is not None:
            self._waiting.records.append(self._summary([(volume, moves)]))
            self._wake.set()

    async def flush(self) -> None:
        """Try the sink now, also if it was dead, and tell the store the head; return when both were tried. `status` says how."""
        if self._task is not None and not self._task.done():
            future = asyncio.get_running_loop().create_future()
            self._flushes.append(future)
            self._wake.set()
            await future

    def status(self) -> dict[str, Any]:
        """Tell how the log is: for people, metrics and health."""
        return {
            "chain": self._chain.id,
            "number": self._chain.head.number,
            "head": self._chain.head.hash,
            "sink": self._sink.name if self._sink is not None else f"{self._store.url} (store)",
            "sink_dead": self._broken or None,
            "sink_dead_since_ns": self._broken_ns if self._broken else None,
            "lines_written": self._written,
            "bytes_kept": self._kept_bytes,
            "full": self._is_full,
            "volumes_to_summarise": len(self._moves),
        }

    async def heads(self) -> dict[str, Head]:
        """Return the heads of all chains, as `audit verify` takes them."""
        heads = {chain: stored.head for chain, (stored, _) in (await self._stored_heads()).items()}
        heads[self._chain.id] = self._chain.head
        return heads

    async def kept(self) -> bytes:
        """Return the lines that the store keeps, of all processes."""
        return b"".join(entry.value for _, entry in await self._store.list(KEPT_PREFIX))

    async def close(self) -> None:
        """End the chain in order. Idempotent."""
        if self._task is not None and not self._task.done():
            with suppress(CasUnreachableError):
                self._summarise()
                await self.append("stop")
            self._ending = True
            self._wake.set()
            await self._task
            with suppress(CasUnreachableError):
                await self._store_head(ended=True)
        self._thread.shutdown(wait=self._stuck is None or self._stuck.done())
        if self._sink is not None and not (self._stuck is not None and not self._stuck.done()):
            self._sink.close()

    # -- turns: one after the other, by one task

    async def _run(self) -> None:
        try:
            while not (self._ending and not self._waiting.records):
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._nap()):  # `wait_for` of Python 3.11 may swallow a cancellation
                        await self._wake.wait()
                self._wake.clear()
                await self._turn()
        finally:
            for future in (*self._waiting.futures, *self._flushes):
                if not future.done():
                    future.set_exception(CasUnreachableError("the audit log has ended"))

    def _nap(self) -> float:
        """Return how long nothing needs to be done unless somebody comes."""
        waits = [self._timing.heartbeat]
        if self._moves:
            waits.append(self._timing.summary)
        if self._chain.head != self._head_stored:
            waits.append(self._timing.head)
        if self._broken or self._unplaced:
            waits.append(self._timing.retry)
        return min(waits)

    def _is_due(self, what: str, seconds: float) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._times[what] < seconds:
            return False
        self._times[what] = now
        return True

    async def _turn(self) -> None:
        flushes, self._flushes = self._flushes, []
        if self._moves and (self._is_due("summary", self._timing.summary) and not self._is_full):
            self._summarise()
        waiting, self._waiting = self._waiting, _Waiting()
        if waiting.records:
            self._unplaced.append((self._chain.head.number + 1, self._chain.lines(waiting.records)))
        failure = await self._place(now=bool(flushes))
        for future in waiting.futures:
            if not future.done():  # else its request was given up
                if failure is None:
                    future.set_result(None)
                else:
                    future.set_exception(CasUnreachableError(f"the audit log cannot be written: {failure}"))
        with suppress(CasUnreachableError):
            if self._is_due("heartbeat", self._timing.heartbeat):
                await self._store_head()
                await self._adopt()
            elif self._chain.head != self._head_stored and (flushes or self._is_due("head", self._timing.head)):
                await self._store_head()
        for future in flushes:
            if not future.done():
                future.set_result(None)

    async def _place(self, *, now: bool) -> Exception | None:
        """Bring all lines to the sink, or else into the store; return why neither took them."""
        if self._sink is not None and self._may_try(now=now) and (self._kept or self._unplaced or self._broken):
            try:
                await self._write_kept()
                for _, lines in self._unplaced:
                    await self._write(lines)
            except OSError as exc:
                self._lost(exc)
            except CasUnreachableError as exc:
                return exc
            else:
                self._unplaced.clear()
                self._back()
                return None
        try:
            await self._keep()
        except CasUnreachableError as exc:
            return exc
        return None

    def _may_try(self, *, now: bool) -> bool:
        if self._stuck is not None:
            if not self._stuck.done():
                return False
            self._stuck.exception()  # what became of it does not matter: its lines were kept
            self._stuck = None
        return not self._broken or now or self._is_due("retry", self._timing.retry)

    async def _write(self, lines: bytes) -> None:
        assert self._sink is not None
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._sink.write, lines)
        done, _ = await asyncio.wait({future}, timeout=self._timing.sink)
        if not done:
            self._stuck = future
            raise TimeoutError(f"no answer within {self._timing.sink:g} s")
        await future
        self._written += lines.count(b"\n")

    def _lost(self, exc: OSError) -> None:
        self._times["retry"] = asyncio.get_running_loop().time()
        if self._broken:
            return
        assert self._sink is not None
        self._broken = exc.strerror or str(exc)
        self._broken_ns = self._clock()
        log.warning("the audit log %s cannot be written (%s): the store keeps its lines", self._sink.name, self._broken)
        self.note("sink-lost", sink=self._sink.name, reason=self._broken)

    def _back(self) -> None:
        if self._broken:
            assert self._sink is not None
            log.info("the audit log %s can be written again", self._sink.name)
            self.note("sink-back", sink=self._sink.name, reason=self._broken, since_ns=self._broken_ns)
            self._broken = ""

    # -- the store

    @property
    def _kept_bytes(self) -> int:
        return sum(self._kept.values()) + sum(len(lines) for _, lines in self._unplaced)

    @property
    def _is_full(self) -> bool:
        return self._kept_bytes >= self._max_kept

    async def _keep(self) -> None:
        while self._unplaced:
            number, lines = self._unplaced[0]
            for first, part in _parts(number, lines):
                key = f"{KEPT_PREFIX}{self._chain.id}/{first:016d}"
                if key not in self._kept:  # a try before this one may have got so far
                    await self._store.transact([], [Put(key, part)])
                    self._kept[key] = len(part)
            del self._unplaced[0]

    async def _write_kept(self) -> None:
        for key in list(self._kept):
            await self._move(key)
            del self._kept[key]

    async def _move(self, key: str) -> None:
        """Write what *key* holds to the sink, then take it out of the store. A crash between writes it twice: harmless."""
        entry = await self._store.get(key)
        if entry is not None:
            await self._write(entry.value)
            await self._store.transact([Compare(key, entry.revision)], [Put(key, None)])

    async def _adopt(self) -> None:
        """Write what the store keeps for processes that have ended."""
        if self._sink is None or self._broken:
            return
        for chain, (stored, _) in (await self._stored_heads()).items():
            if chain != self._chain.id and self._has_ended(stored):
                for key, _ in await self._store.list(f"{KEPT_PREFIX}{chain}/"):
                    try:
                        await self._move(key)
                    except OSError as exc:
                        self._lost(exc)
                        return

    def _has_ended(self, stored: _StoredHead) -> bool:
        unseen_s = (self._clock() - stored.seen_ns) / 1e9
        return stored.ended or unseen_s > self._timing.gone or self._is_gone(stored.holder)

    async def _stored_heads(self) -> dict[str, tuple[_StoredHead, int]]:
        entries = await self._store.list(HEAD_PREFIX)
        return {key[len(HEAD_PREFIX) :]: (_StoredHead.unpack(entry.value), entry.revision) for key, entry in entries}

    async def _store_head(self, *, ended: bool = False) -> None:
        head = self._chain.head
        stored = _StoredHead(head, ended, self._clock(), self._holder)
        await self._store.transact([], [Put(HEAD_PREFIX + self._chain.id, stored.pack())])
        self._head_stored = head
        now = asyncio.get_running_loop().time()
        self._times["head"] = self._times["heartbeat"] = now

    # -- summaries

    def _summarise(self) -> None:
        moves, self._moves = list(self._moves.items()), {}
        for begin in range(0, len(moves), _VOLUMES_PER_LINE):
            self._waiting.records.append(self._summary(moves[begin : begin + _VOLUMES_PER_LINE]))
        if moves:
            self._wake.set()

    def _summary(self, moves: list[tuple[str, _Moves]]) -> Record:
        volumes = [
            {
                "volume": volume,
                "epoch": each.epoch,
                "since_ns": each.first_ns,
                "from": each.before,
                "to": each.generation,
                "root_tag": each.root_tag,
                "count": each.count,
            }
            for volume, each in moves
        ]
        return record_of("anchors", self._clock(), {"volumes": volumes})


def _parts(number: int, lines: bytes) -> list[tuple[int, bytes]]:
    """Cut *lines*, the first of which is line *number*, into values that the store takes."""
    parts: list[tuple[int, bytes]] = []
    part, first = bytearray(), number
    for line in lines.splitlines(keepends=True):
        if part and len(part) + len(line) > _MAX_BATCH:
            parts.append((first, bytes(part)))
            part.clear()
            first = number
        part += line
        number += 1
    parts.append((first, bytes(part)))
    return parts
