"""The audit log of a process: durable before it is answered, kept while its sink is dead, one chain to the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fspf.cas import audit as module
from fspf.cas.audit import HEAD_PREFIX, KEPT_PREFIX, Audit, Timing
from fspf.cas.audit_sink import FileSink
from fspf.cas.store import Compare, Put
from fspf.core.anchor import NEVER_WRITTEN, Anchor, Holder
from fspf.core.audit import Line, parse_line
from fspf.core.audit_check import Report, verify
from fspf.core.errors import CasUnreachableError
from tests.support.logs import Quiet
from tests.support.memstore import MemoryStore

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
HOLDER = Holder("host", "boot", 1, 2, 3, "cas")
OTHER = Holder("host", "boot", 4, 5, 6, "cas")
FAR = 3600.0
NEVER = Timing(summary=FAR, head=FAR, heartbeat=FAR, retry=FAR, sink=FAR)
VOLUME = "ab" * 16


class Dead(MemoryStore):
    """A store that can be switched off."""

    dead = False

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        if self.dead:
            raise CasUnreachableError("the store is away")
        return await super().transact(compare, put)


class ListSink:
    """Takes lines into memory, or fails, or hangs, as it is told."""

    name = "list"

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.error: OSError | None = None
        self.hang: threading.Event | None = None

    def write(self, lines: bytes) -> None:
        if self.hang is not None:
            self.hang.wait(30)
        if self.error is not None:
            raise self.error
        self.writes.append(lines)

    def close(self) -> None:
        pass

    @property
    def lines(self) -> list[bytes]:
        return b"".join(self.writes).splitlines(keepends=True)


def check(lines: Sequence[bytes], audit: Audit | None = None, **options: Any) -> Report:
    if audit is not None:
        options["heads"] = {audit.chain: audit._chain.head}
    return verify([("log", lines)], [KEY.public_key()], **options)


def parsed(lines: Sequence[bytes]) -> list[Line]:
    return [parse_line(line.rstrip(b"\n")) for line in lines]


@contextlib.asynccontextmanager
async def running(store: MemoryStore, sink: Any, **options: Any) -> AsyncIterator[Audit]:
    settings: dict[str, Any] = {"holder": HOLDER, "is_gone": nobody, "timing": NEVER} | options
    audit = Audit(store, KEY, sink, **settings)
    await audit.start(version="1")
    try:
        yield audit
    finally:
        await audit.close()


def nobody(holder: Holder) -> bool:
    return False


def everybody(holder: Holder) -> bool:
    return True


async def until(condition: Callable[[], bool]) -> None:
    """Let the log's task go on, by its own short times, until *condition* holds."""
    while not condition():  # noqa: ASYNC110  # the log tells nobody when it has tried by itself
        await asyncio.sleep(0.005)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_event_is_in_the_file_when_append_returns(scratch: Path) -> None:
    async def main() -> None:
        path = scratch / "audit.log"
        async with running(MemoryStore(), FileSink(str(path))) as audit:
            await audit.append("policy-create", policy="a/b", hash_of_policy="00")
            lines = path.read_bytes().splitlines(keepends=True)
            assert [line.kind for line in parsed(lines)] == ["start", "policy-create"]
            assert not check(lines, audit).problems
        lines = path.read_bytes().splitlines(keepends=True)
        assert [line.kind for line in parsed(lines)] == ["start", "policy-create", "stop"]
        report = check(lines, audit)
        assert (report.problems, report.notes) == ([], [])
        assert report.chains[0].ended

    run(main())


def test_events_of_one_moment_share_a_write_and_a_signature() -> None:
    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink) as audit:
            before = len(sink.writes)
            await asyncio.gather(*(audit.append("attestation-granted", number_of=index) for index in range(50)))
            assert len(sink.writes) - before == 1
            signed = [line.signature is not None for line in parsed(sink.lines)[-50:]]
            assert signed == [False] * 49 + [True]

    run(main())


def test_lines_are_kept_while_the_sink_is_dead_and_written_when_it_is_back(quiet: Quiet) -> None:
    quiet.require("audit log list cannot be written")

    async def main() -> None:
        store, sink = MemoryStore(), ListSink()
        async with running(store, sink) as audit:
            sink.error = full()
            for index in range(5):
                await audit.append("lease-granted", volume=VOLUME, index=index)
            assert len(sink.writes) == 1
            status = audit.status()
            assert status["sink_dead"] == os.strerror(errno.ENOSPC)
            assert status["bytes_kept"] > 0
            assert not check([*sink.lines, *(await audit.kept()).splitlines(keepends=True)], audit).problems
            sink.error = None
            await audit.flush()
            await audit.append("lease-released", volume=VOLUME)
            assert not await store.list(KEPT_PREFIX)
            status = audit.status()
            assert (status["sink_dead"], status["bytes_kept"]) == (None, 0)
        kinds = [line.kind for line in parsed(sink.lines)]
        assert sorted(kinds) == sorted(
            ["start", *["lease-granted"] * 5, "sink-lost", "sink-back", "lease-released", "stop"]
        )
        assert not check(sink.lines, audit).problems

    run(main())


def test_sink_is_tried_again_by_itself(quiet: Quiet) -> None:
    quiet.require("cannot be written")

    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink, timing=Timing(retry=0.01)) as audit:
            sink.error = full()
            await audit.append("lease-granted")
            sink.error = None
            await until(lambda: not audit.status()["sink_dead"])
        assert "sink-back" in [line.kind for line in parsed(sink.lines)]

    run(main())


def test_sink_that_hangs_is_dead_and_what_it_writes_late_is_only_a_repetition(quiet: Quiet) -> None:
    quiet.require("no answer within")

    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink, timing=Timing(sink=0.05, retry=FAR)) as audit:
            sink.hang = threading.Event()
            await audit.append("lease-granted")
            await audit.append("lease-released")
            assert audit.status()["bytes_kept"] > 0
            sink.hang.set()
            assert audit._stuck is not None
            await asyncio.wait({audit._stuck})
            await audit.flush()
            assert audit.status()["sink_dead"] is None
        report = check(sink.lines, audit)
        assert not report.problems
        assert "repeated" in {note.kind for note in report.notes}

    run(main())


def test_dead_sink_never_stops_anchors_but_a_full_store_stops_the_rest(quiet: Quiet) -> None:
    quiet.require("cannot be written")

    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink, max_kept=2000) as audit:
            sink.error = full()
            with pytest.raises(CasUnreachableError, match="make room"):
                for _ in range(20):
                    await audit.append("lease-granted", volume=VOLUME)
            for generation in range(1, 1000):
                audit.anchored(VOLUME, 1, Anchor(generation, b"a" * 16), Anchor(generation + 1, b"b" * 16))
            audit.note("request-refused", reason="lost: nobody waits for it")
            assert audit.status()["full"]
            sink.error = None
            await audit.flush()
            await audit.append("lease-released", volume=VOLUME)
        report = check(sink.lines, audit)
        assert not report.problems
        (summary,) = (line for line in parsed(sink.lines) if line.kind == "anchors")
        (moves,) = summary.fields["volumes"]
        assert (moves["from"], moves["to"], moves["count"]) == (1, 1000, 999)

    run(main())


def test_without_sink_and_store_nothing_is_acknowledged_and_nothing_is_lost(quiet: Quiet) -> None:
    quiet.require("cannot be written")

    async def main() -> None:
        store, sink = Dead(), ListSink()
        async with running(store, sink) as audit:
            sink.error, store.dead = full(), True
            with pytest.raises(CasUnreachableError, match="the store is away"):
                await audit.append("attestation-granted", service="db")
            sink.error, store.dead = None, False
            await audit.flush()
        assert not check(sink.lines, audit).problems
        assert "attestation-granted" in [line.kind for line in parsed(sink.lines)]

    run(main())


def test_without_a_sink_lines_stay_in_the_store() -> None:
    async def main() -> None:
        store = MemoryStore()
        async with running(store, None) as audit:
            await audit.append("policy-create")
        lines = b"".join(entry.value for _, entry in await store.list(KEPT_PREFIX)).splitlines(keepends=True)
        assert [line.kind for line in parsed(lines)] == ["start", "policy-create", "stop"]
        assert not check(lines, audit).problems

    run(main())


def test_large_batches_are_cut_to_what_a_store_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BATCH", 1000)

    async def main() -> None:
        store = MemoryStore()
        async with running(store, None) as audit:
            await asyncio.gather(*(audit.append("lease-granted", index=index) for index in range(30)))
            entries = await store.list(KEPT_PREFIX)
            assert all(len(entry.value) <= 1000 for _, entry in entries)
            for key, entry in entries:
                assert int(key.rpartition("/")[2]) == parsed(entry.value.splitlines())[0].number
            assert not check((await audit.kept()).splitlines(keepends=True), audit).problems

    run(main())


# -- anchors


def test_anchors_are_summarised_before_the_lease_ends() -> None:
    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink) as audit:
            anchor = NEVER_WRITTEN
            for generation in range(1, 101):
                new = Anchor(generation, generation.to_bytes(16, "big"))
                audit.anchored(VOLUME, 3, anchor, new)
                anchor = new
            assert len(sink.writes) == 1  # nothing but the start
            audit.settle(VOLUME)
            await audit.append("lease-released", volume=VOLUME, epoch=3)
        lines = parsed(sink.lines)
        assert [line.kind for line in lines] == ["start", "anchors", "lease-released", "stop"]
        (moves,) = lines[1].fields["volumes"]
        assert moves == {
            "volume": VOLUME, "epoch": 3, "since_ns": moves["since_ns"], "from": 0, "to": 100,
            "root_tag": (100).to_bytes(16, "big").hex(), "count": 100,
        }  # fmt: skip

    run(main())


def test_another_epoch_begins_another_summary() -> None:
    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink) as audit:
            audit.anchored(VOLUME, 1, NEVER_WRITTEN, Anchor(1, b"a" * 16))
            audit.anchored(VOLUME, 2, Anchor(1, b"a" * 16), Anchor(2, b"b" * 16))
        epochs = [line.fields["volumes"][0]["epoch"] for line in parsed(sink.lines) if line.kind == "anchors"]
        assert epochs == [1, 2]

    run(main())


def test_many_volumes_are_summarised_in_time() -> None:
    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink, timing=Timing(summary=0.01)) as audit:
            for index in range(150):
                audit.anchored(f"{index:032x}", 1, NEVER_WRITTEN, Anchor(1, b"a" * 16))
            await audit.append("lease-granted")
            await until(lambda: not audit.status()["volumes_to_summarise"])
        summaries = [line for line in parsed(sink.lines) if line.kind == "anchors"]
        assert [len(line.fields["volumes"]) for line in summaries] == [64, 64, 22]

    run(main())


# -- several processes


def test_next_start_names_the_chain_that_was_killed() -> None:
    async def main() -> None:
        store, sink = MemoryStore(), ListSink()
        async with running(store, sink) as killed:
            await killed.append("lease-granted")
            await killed.append("lease-granted")
            await killed.flush()
            head = killed._chain.head
            assert killed._task is not None
            killed._task.cancel()  # as kill -9 would
            with contextlib.suppress(asyncio.CancelledError):
                await killed._task
        async with running(store, sink, is_gone=everybody, holder=OTHER) as audit:
            assert await audit.heads() == {audit.chain: audit._chain.head}  # the old one is held fast by the start line
        (start,) = (line for line in parsed(sink.lines) if line.chain == audit.chain and line.kind == "start")
        assert start.fields["heads"] == {killed.chain: list(head)}
        assert not check(sink.lines, audit).problems
        cut = [line for line in sink.lines if f'"number":{head.number},'.encode() not in line]
        assert [problem.kind for problem in check(cut).problems] == ["truncated"]

    run(main())


def test_lines_of_a_dead_process_are_written_by_the_next(quiet: Quiet) -> None:
    quiet.require("cannot be written")

    async def main() -> None:
        store, sink = MemoryStore(), ListSink()
        async with running(store, sink) as killed:
            sink.error = full()
            await killed.append("lease-granted")
            assert killed._task is not None
            killed._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await killed._task
        sink.error = None
        async with running(store, sink, is_gone=everybody, holder=OTHER):
            assert not await store.list(KEPT_PREFIX)
        assert not check(sink.lines).problems
        assert {line.chain for line in parsed(sink.lines) if line.kind == "lease-granted"} == {killed.chain}

    run(main())


def test_lines_and_head_of_a_living_process_are_left_alone(quiet: Quiet) -> None:
    quiet.require("cannot be written")

    async def main() -> None:
        store, one, other = MemoryStore(), ListSink(), ListSink()
        async with running(store, one) as first:
            one.error = full()
            await first.append("lease-granted")
            kept = await store.list(KEPT_PREFIX)
            async with running(store, other, holder=OTHER) as second:
                assert set(await store.list(KEPT_PREFIX)) >= set(kept)
                assert set(await second.heads()) == {first.chain, second.chain}
            assert (await store.get(HEAD_PREFIX + first.chain)) is not None
            one.error = None
        assert not check([*one.lines, *other.lines]).problems

    run(main())


def test_append_after_the_end_is_refused() -> None:
    async def main() -> None:
        async with running(MemoryStore(), ListSink()) as audit:
            pass
        with pytest.raises(CasUnreachableError, match="closed"):
            await audit.append("lease-granted")
        await audit.flush()
        await audit.close()

    run(main())


def test_request_that_was_given_up_does_not_hurt() -> None:
    async def main() -> None:
        sink = ListSink()
        async with running(MemoryStore(), sink) as audit:
            task = asyncio.create_task(audit.append("lease-granted"))
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await audit.append("lease-released")
        assert [line.kind for line in parsed(sink.lines)] == ["start", "lease-granted", "lease-released", "stop"]

    run(main())


def test_event_that_no_line_can_hold_is_refused_before_it_is_queued() -> None:
    async def main() -> None:
        async with running(MemoryStore(), ListSink()) as audit:
            with pytest.raises(ValueError, match="does not go into"):
                await audit.append("key-released", key=b"secret")
            await audit.append("lease-granted")

    run(main())
