"""The world of the protocol's model: clients, network, CAS processes, their store, the volume's copies, and an adversary.

`World.steps` says what may happen next, `World.do` lets it happen and checks what must hold; which step is taken is left to `walk`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fspf.cas import rules
from fspf.cas.rules import State
from fspf.core.anchor import Anchor, Holder
from fspf.core.errors import AnchorMovedError, CasUnreachableError, FspfError, LeaseError, LeaseLostError
from fspf.core.freshness import Freshness, FreshnessMode
from tests.property.protocol import replay
from tests.property.protocol.replay import Run, Session, drive, is_protected, outcome_of
from tests.property.protocol.values import (
    OK,
    Call,
    Disk,
    Lineage,
    Outcome,
    Record,
    Reply,
    Request,
    anchor_of,
    holder_of,
    new_tag,
)

SECOND: Final = 1_000_000_000
AWAY: Final[Outcome] = ("no", "CasUnreachableError", ("away",))
Step = tuple[Any, ...]


class ViolationError(AssertionError):
    """The protocol broke a promise."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What there is, and how often each kind of fault may happen (-1: always)."""

    clients: int = 2
    places: int = 2  # copies of the volume; a client works on the one that the adversary shows it
    processes: int = 1  # of the CAS
    freshness: Freshness = field(default_factory=Freshness.strict)
    one_process: bool = False  # all clients are volumes in one process: they have the same holder
    atomic: bool = False  # the CAS does a request in one step
    sqlite: bool = False  # the store may be rolled back when the CAS is down; one process
    modes_change: bool = False
    restores: bool = False  # statements of a board, which let an older state be the newest again
    kills: int = -1
    timeouts: int = -1
    duplicates: int = -1
    expiries: int = -1
    jumps: int = -1
    disk: int = -1  # the adversary's copying of files
    store: int = -1  # faults of the store, and stops of the CAS
    openings: int = -1
    commits: int = -1
    reads: int = -1
    logs: bool = True  # fsyncs go into the intent log
    renewals: bool = True
    closes: bool = True


@dataclass(frozen=True, slots=True)
class Activity:
    """A call of the volume's code that is under way."""

    what: str
    answers: tuple[Any, ...]
    waits: tuple[Any, ...] = ()
    call: Call | None = None
    session: Session | None = None
    failed: bool = False
    known: bytes = b""  # what had been acknowledged when it began
    wave: int = 0  # how many statements had had their effect then
    argument: Anchor | None = None


@dataclass(slots=True)
class Client:
    number: int
    place: int
    process: int
    incarnation: int = 1
    openings: int = 0
    calls: int = 0
    session: Session | None = None
    failed: bool = False
    pending: tuple[Anchor, ...] = ()
    anchor_failure: Outcome | None = None
    main: Activity | None = None
    anchoring: Activity | None = None
    renewing: Activity | None = None

    def key(self) -> tuple[Any, ...]:
        return (
            self.place, self.incarnation, self.openings, self.calls, self.session, self.failed, self.pending,
            self.anchor_failure, self.main, self.anchoring, self.renewing,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kept:
    """What the CAS's store holds; `counter` is compared with one outside, see `fspf.cas.counter`."""

    state: State
    revision: int = 1
    counter: int = 1


@dataclass(frozen=True, slots=True)
class Handler:
    """A request that a CAS process works on."""

    request: Request
    revision: int = 0  # 0: nothing was read yet
    before: State | None = None
    after: State | None = None
    decided_ns: int = 0  # by the process's clock


@dataclass(slots=True)
class Process:
    """A process of the CAS."""

    up: bool = True
    skew_s: int = 0
    cached: tuple[int, State] | None = None
    handlers: tuple[Handler, ...] = ()

    def key(self) -> tuple[Any, ...]:
        return (self.up, self.skew_s, self.cached, self.handlers)


def may_serve(kept: Kept, outside: int) -> bool:
    """Decide whether a CAS starts with this store: the rule of `fspf.cas.counter`."""
    return kept.counter in {outside, outside + 1}


def first_answered(kept: Kept, outside: int) -> int:
    """Return what the counters must reach after a start before anything is answered."""
    return max(kept.counter + 1, outside + 2)


def decide(request: Request, state: State, now_ns: int) -> tuple[State, Any]:
    """Return what the CAS makes of a request: the new state and the answer."""
    method, given = request.method, request.arguments
    if method == "fetch":
        return state, state
    if method == "acquire":
        expected, epoch, adopt, holder = given
        after = rules.acquire(
            state,
            expected=expected,
            expected_epoch=epoch,
            adopt=adopt,
            holder=holder,
            now_ns=now_ns,
            is_gone=lambda _: False,
        )
        return after, after.lease
    if method == "renew":
        after = rules.renew(state, given[0], now_ns=now_ns)
        return after, after.lease
    if method == "advance":
        return rules.advance(state, *given, now_ns=now_ns), None
    assert method == "release"
    return rules.release(state, given[0]), None


class World:
    """One state of everything, and what was promised so far."""

    def __init__(self, setting: Setting, lineage: Lineage | None = None) -> None:
        self.setting = setting
        self.lineage = lineage or Lineage()
        self.count: Counter[str] = Counter()  # what happened, for people and against vacuous success
        tag = new_tag(bytes(16), epoch=1, generation=1, is_root=True, writer=(0, 0, 0))
        first = Record(1, 1, bytes(16), tag, log_follows=False, is_root=True)
        self.lineage.add(first)
        self.kept = Kept(State(setting.freshness, anchor_of(first), epoch=1))
        self.outside = 1
        self.saved_stores: tuple[Kept, ...] = ()
        self.processes = [Process() for _ in range(setting.processes)]
        self.disks = [Disk((None, first)) for _ in range(setting.places)]
        self.saved_disks: tuple[Disk, ...] = ()
        self.clients = [
            Client(number, number % setting.places, 0 if setting.one_process else number)
            for number in range(setting.clients)
        ]
        self.requests: tuple[Request, ...] = ()
        self.replies: tuple[Reply, ...] = ()
        self.now_s = 1000
        self.acked = tag  # newest state that a CAS-backed promise was made for
        self.durable = tag  # newest state for which an fsync returned, in whatever mode
        self.granted: dict[int, Anchor] = {1: anchor_of(first)}
        self.past: tuple[Anchor, ...] = ()  # anchors that were
        self.statements: tuple[tuple[Anchor, int], ...] = ()  # state and epoch, signed
        self.restored: tuple[tuple[Anchor, int], ...] = ()  # those that have had their effect
        self.users: dict[int, tuple[int, int, int]] = {}  # epoch -> who writes under it
        self.budget = {
            name: getattr(setting, name)
            for name in (
                "kills", "timeouts", "duplicates", "expiries", "jumps", "disk", "store", "openings", "commits", "reads",
            )
        }  # fmt: skip

    def copy(self) -> World:
        new = copy.copy(self)
        new.clients = [copy.copy(client) for client in self.clients]
        new.processes = [copy.copy(process) for process in self.processes]
        new.disks = list(self.disks)
        new.granted = dict(self.granted)
        new.users = dict(self.users)
        new.budget = dict(self.budget)
        return new

    def key(self) -> tuple[Any, ...]:
        """Return what tells this state from others."""
        return (
            self.kept, self.outside, self.saved_stores, tuple(process.key() for process in self.processes), tuple(self.disks),
            self.saved_disks, tuple(client.key() for client in self.clients), frozenset(self.requests), frozenset(self.replies),
            self.now_s, self.acked, self.durable, self.past, self.statements, self.restored, tuple(self.granted.items()), tuple(self.users.items()), tuple(self.budget.values()),
        )  # fmt: skip

    def _spend(self, name: str) -> None:
        if self.budget[name] > 0:
            self.budget[name] -= 1

    # -- what may happen

    def steps(self) -> Iterator[Step]:
        for client in self.clients:
            yield from self._steps_of(client)
        for process in range(len(self.processes)):
            yield from self._steps_at(process)
        for reply in self.replies:
            yield ("hear", reply)
        yield from self._faults()

    def _steps_of(self, client: Client) -> Iterator[Step]:
        number, left = client.number, self.budget
        if client.main is None:
            if client.session is None:
                if left["openings"]:
                    yield ("start", number, "open")
                if left["reads"]:
                    yield ("start", number, "read")
            elif client.failed:
                if client.anchoring is None and client.renewing is None:
                    yield ("start", number, "release")
            else:
                if left["commits"]:
                    yield ("start", number, "commit")
                    if self.setting.logs and client.session.log_end is not None:
                        yield ("start", number, "fsync")
                        yield ("start", number, "fsync with segments")
                if self.setting.closes and client.renewing is None:  # closing begins with the end of that thread
                    yield ("start", number, "close")
        ending = client.main is not None and client.main.what in {"close", "release"}
        if (
            self.setting.renewals
            and client.session is not None
            and client.renewing is None
            and not client.failed
            and not ending
        ):
            yield ("renew", number)
        if client.pending and client.anchoring is None and client.anchor_failure is None:
            yield ("anchor", number)
        for slot in ("main", "anchoring", "renewing"):
            activity: Activity | None = getattr(client, slot)
            if activity is None:
                continue
            if activity.call is not None:
                if left["timeouts"]:
                    yield ("timeout", number, slot)
            elif activity.waits[0] in {"look", "write", "sleep"}:
                yield ("go on", number, slot)
        if left["kills"] and (client.session is not None or client.main is not None):
            yield ("kill", number, "")
            if client.main is not None and client.main.waits[0] == "write":
                yield ("kill", number, "torn")

    def _steps_at(self, number: int) -> Iterator[Step]:
        process = self.processes[number]
        if not process.up:
            if self.setting.sqlite:
                yield ("start cas", number, -1)
                yield ("half start", number, -1)
                for index in range(len(self.saved_stores)):
                    yield ("start cas", number, index)
                    yield ("half start", number, index)
                yield ("recover cas", number)
            else:
                yield ("start cas", number, -1)
            return
        for request in self.requests:
            yield ("deliver", request, number, False)
            if self.budget["duplicates"]:
                yield ("deliver", request, number, True)
        for index in range(len(process.handlers)):
            yield ("serve", number, index, "")
            if self.budget["store"] and process.handlers[index].after is not None:
                yield ("serve", number, index, "lost")  # the store was asked in vain
                yield ("serve", number, index, "done")  # … and did it though its answer was lost
        if self.budget["store"]:
            yield ("stop cas", number)
            if self.setting.sqlite:
                for index, handler in enumerate(process.handlers):
                    if handler.after is not None:
                        yield ("stop within", number, index)

    def _faults(self) -> Iterator[Step]:
        left = self.budget
        if not self.setting.atomic:  # else it is enough that it is not delivered
            for request in self.requests:
                yield ("lose", request)
        if left["expiries"]:
            yield ("time", 31)
            yield ("time", 61)
        if left["jumps"]:
            for process in range(len(self.processes)):
                yield ("jump", process, 70)
                yield ("jump", process, -70)
        if left["disk"]:
            places = range(len(self.disks))
            yield from (("copy disk", a, b) for a in places for b in places if self.disks[a] != self.disks[b])
            for place in places:
                if self.disks[place] not in self.saved_disks:
                    yield ("save disk", place)
                for index, saved in enumerate(self.saved_disks):
                    yield from (
                        ("put back", place, index, part) for part in _parts_that_differ(self.disks[place], saved)
                    )
        if self.setting.sqlite and left["store"] and self.kept not in self.saved_stores:
            yield ("save store",)
        if self.setting.restores:
            for old in self.past:
                if (old, self.kept.state.epoch + 1) not in self.statements:
                    yield ("sign", old)
            for statement in self.statements:
                yield ("restore", statement)
        if self.setting.modes_change:
            for freshness in (Freshness.strict(), Freshness.bounded(500, 2), Freshness.none()):
                if freshness != self.kept.state.freshness:
                    yield ("mode", freshness)

    # -- what happens

    def do(self, step: Step) -> None:
        """Let *step* happen.

        Raises:
            ViolationError: A promise is broken.
        """
        name, *given = step
        self.count[name] += 1
        _DO[name](self, *given)

    def _start(self, number: int, what: str) -> None:
        client = self.clients[number]
        if what == "open":
            client.openings += 1
            self._spend("openings")
        elif what == "read":
            self._spend("reads")
        elif what in {"commit", "fsync", "fsync with segments"}:
            self._spend("commits")
        activity = Activity(
            what, (), session=client.session, failed=client.failed, known=self.acked, wave=len(self.restored)
        )
        self._run(client, "main", activity)

    def _renew(self, number: int) -> None:
        client = self.clients[number]
        self._run(
            client, "renewing", Activity("renew", (), session=client.session, known=self.acked, wave=len(self.restored))
        )

    def _anchor(self, number: int) -> None:
        client = self.clients[number]
        activity = Activity(
            "anchor", (), session=client.session, known=self.acked, wave=len(self.restored), argument=client.pending[-1]
        )
        self._run(client, "anchoring", activity)

    def _timeout(self, number: int, slot: str) -> None:
        self._spend("timeouts")
        self._answer(self.clients[number], slot, AWAY)

    def _go_on(self, number: int, slot: str) -> None:
        client = self.clients[number]
        activity: Activity = getattr(client, slot)
        answer: Any = None
        if activity.waits[0] == "look":
            answer = self.disks[client.place]
        elif activity.waits[0] == "write":
            self._write(client, activity, whole=True)
        self._answer(client, slot, answer)

    def _write(self, client: Client, activity: Activity, *, whole: bool) -> None:
        _, kind, place, record = activity.waits
        disk = self.disks[client.place]
        written = record if whole else None
        self.disks[client.place] = disk.with_root(place, written) if kind == "root" else disk.with_log(place, written)

    def _kill(self, number: int, how: str) -> None:
        self._spend("kills")
        client = self.clients[number]
        if how == "torn":
            assert client.main is not None
            self._write(client, client.main, whole=False)
        for other in self.clients:
            if other.process == client.process:  # one process: all of its volumes
                self._end(other)
                other.main = other.anchoring = other.renewing = None
                other.incarnation = max(one.incarnation for one in self.clients if one.process == client.process) + 1
        for other in self.clients:
            if other.process == client.process:
                other.incarnation = client.incarnation

    @staticmethod
    def _end(client: Client) -> None:
        client.session = None
        client.failed = False
        client.pending = ()
        client.anchor_failure = None
        client.renewing = None

    # -- the clients' code

    def _answer(self, client: Client, slot: str, answer: Any) -> None:
        activity: Activity = getattr(client, slot)
        self._run(client, slot, replace(activity, answers=(*activity.answers, answer), call=None, waits=()))

    def _run(self, client: Client, slot: str, activity: Activity) -> None:
        """Run an activity until it waits for something that the world decides."""
        while True:
            answers = list(activity.answers)
            session = activity.session
            if session is not None and client.session is not None:
                session = replace(session, anchor=client.session.anchor)  # the anchoring thread moves it
            run = Run(
                answers,
                writer=(client.number, client.incarnation, client.openings),
                holder=holder_of(client.process, client.incarnation),
                seconds=float(self.now_s),
                failed=activity.failed,
            )
            kind, value = drive(lambda: _enter(run, activity, session))  # noqa: B023
            for record in run.made:
                self.lineage.add(record)
            if run.failure is not None and not client.failed:
                client.failed = True
                self._check_failure(session, run.failure)
            activity = replace(activity, answers=tuple(answers))
            if kind != "waits":
                setattr(client, slot, None)
                self._finish(client, slot, activity, kind, value)
                break
            activity = replace(activity, waits=value)
            setattr(client, slot, activity)
            if value[0] == "call":
                client.calls += 1
                call = Call(client.number, client.incarnation, client.calls)
                setattr(client, slot, replace(activity, call=call))
                self.requests = (*self.requests, Request(call, value[1], value[2]))
                break
            if value[0] == "enqueue":
                client.pending = (*client.pending, value[1])
                activity = replace(activity, waits=("lag",))
                setattr(client, slot, activity)
            answer = self._queue_answer(client, activity)
            if answer is None:
                break
            activity = replace(activity, answers=(*activity.answers, answer), waits=())
        if slot != "main" and client.main is not None:
            waiting = self._queue_answer(client, client.main)
            if waiting is not None:
                self._answer(client, "main", waiting)

    def _queue_answer(self, client: Client, activity: Activity) -> Outcome | None:
        """Answer a writer that waits for the queue of mode bounded, None if it has to wait on."""
        waits = activity.waits[0] if activity.waits else ""
        assert activity.session is None or activity.waits or not waits
        if waits == "lag":
            freshness = activity.session.freshness if activity.session else Freshness.strict()
            bounded = freshness.mode is FreshnessMode.BOUNDED
            if client.anchor_failure is not None and bounded:
                return client.anchor_failure
            return None if bounded and len(client.pending) > freshness.max_commits else OK
        if waits == "drain":
            if client.anchor_failure is not None:
                return client.anchor_failure
            return OK if not client.pending and client.anchoring is None else None
        return None

    def _finish(self, client: Client, slot: str, activity: Activity, kind: str, value: Any) -> None:
        ended = kind == "ends"
        self.count[f"{activity.what}: {'done' if ended else type(value).__name__}"] += 1
        if activity.what == "open":
            if ended:
                opening, lease = value
                self._check_opened(client, opening.head, opening.record.freshness, self._known(activity), lease.epoch)
                client.session = Session.begun(opening, lease, float(self.now_s))
        elif activity.what == "read":
            if ended:
                self._check_restored(value.head, value.record.epoch)
                self._check_read(value.head, value.record.anchor, value.record.freshness, self._known(activity))
        elif activity.what == "release":
            self._end(client)
        elif activity.what == "renew":
            if ended and client.session is not None:
                client.session = replace(client.session, lease=value.lease, contact=value.contact)
        elif activity.what == "anchor":
            self._anchored(client, activity, value if ended else None, None if ended else value)
        else:
            if ended:
                self._check_promise(client, activity, value)
            if ended and client.session is not None:
                client.session = value
            if activity.what == "close":
                self._run(client, slot, Activity("release", (), session=client.session))

    def _known(self, activity: Activity) -> bytes:
        """Return what had been acknowledged when it began; nothing if a statement has let an older state in since."""
        return activity.known if activity.wave == len(self.restored) else b""

    def _anchored(self, client: Client, activity: Activity, value: Session | None, error: FspfError | None) -> None:
        """Do what `Commits._anchor_loop` does when an anchor has arrived, or not."""
        if client.session is None:
            return
        if value is not None:
            assert activity.argument is not None
            client.session = replace(client.session, anchor=value.anchor, contact=value.contact)
            done = activity.argument.generation
            client.pending = tuple(anchor for anchor in client.pending if anchor.generation > done)
            if is_protected(client.session.freshness) and activity.wave == len(self.restored):
                self._note_ack(value.anchor.root_tag, "anchored")
            return
        assert error is not None
        client.pending = ()
        if client.session.freshness.mode is FreshnessMode.NONE and isinstance(error, CasUnreachableError):
            return
        client.anchor_failure = outcome_of(error)
        client.failed = True

    # -- network and CAS

    def _deliver(self, request: Request, number: int, keep: bool) -> None:
        if keep:
            self._spend("duplicates")
        else:
            self._lose(request)
        process = self.processes[number]
        process.handlers = (*process.handlers, Handler(request))
        if self.setting.atomic:
            while len(process.handlers) > 0:
                self._serve(number, 0, "")

    def _lose(self, request: Request) -> None:
        requests = list(self.requests)
        requests.remove(request)
        self.requests = tuple(requests)

    def _serve(self, number: int, index: int, fault: str) -> None:
        """Let a CAS process do the next thing for a request, as `fspf.cas.volumes` does it: read, decide; compare and put."""
        process = self.processes[number]
        handler = process.handlers[index]
        rest = process.handlers[:index] + process.handlers[index + 1 :]
        process.handlers = rest
        request = handler.request
        if handler.after is None:
            try:
                revision, before, after, value = self._decide(process, request)
            except FspfError as exc:
                self._reply(request, outcome_of(exc))
                return
            if after is before:
                self._reply(request, ("ok", value))
            else:
                process.handlers = (*rest, Handler(request, revision, before, after, self._now_ns(process)))
            return
        process.cached = None
        if fault:
            self._spend("store")
        if fault != "lost":
            if (
                request.method == "advance"
                and request.arguments[0].epoch != self.kept.state.epoch
                and self.compares(handler.revision)
            ):
                self._violated(f"a stale writer of epoch {request.arguments[0].epoch} moves the anchor")
            if not self._put(handler.revision, handler.after, handler.decided_ns):
                process.handlers = (*rest, Handler(request))  # somebody was faster: decide anew
                return
            process.cached = (self.kept.revision, handler.after)
        if fault:
            process.cached = None
            self._reply(request, AWAY)
        else:
            self._reply(request, ("ok", handler.after.lease if request.method in {"acquire", "renew"} else None))

    def _decide(self, process: Process, request: Request) -> tuple[int, State, State, Any]:
        now_ns = self._now_ns(process)
        if process.cached is not None and request.method != "fetch":
            revision, state = process.cached
            try:
                after, value = decide(request, state, now_ns)
            except FspfError:
                pass  # a refusal is always of what is stored now
            else:
                if after is not state:
                    return revision, state, after, value
        state = self.kept.state
        after, value = decide(request, state, now_ns)
        process.cached = (self.kept.revision, state)
        return self.kept.revision, state, after, value

    def _put(self, revision: int, after: State, now_ns: int, *, counted: bool = True) -> bool:
        """Compare and put, as the store does it."""
        if not self.compares(revision):
            return False
        self._check_change(self.kept.state, after, now_ns)
        if self.setting.restores and after.anchor != self.kept.state.anchor:
            self.past = (*self.past[-3:], self.kept.state.anchor)
        self.kept = replace(self.kept, state=after, revision=self.kept.revision + 1, counter=self.outside + 1)
        if counted:
            self.count_outside()
        return True

    def count_outside(self) -> None:
        """Move the counter outside on: before a commit is answered or shown."""
        self.outside += 1

    def compares(self, revision: int) -> bool:
        """Tell whether the store still has what was read."""
        return self.kept.revision == revision

    def _now_ns(self, process: Process) -> int:
        return (self.now_s + process.skew_s) * SECOND

    def _reply(self, request: Request, outcome: Outcome) -> None:
        if self._waiting_for(request.call) is not None:
            self.replies = (*self.replies, Reply(request.call, outcome))

    def _waiting_for(self, call: Call) -> tuple[Client, str] | None:
        client = self.clients[call.client]
        for slot in ("main", "anchoring", "renewing"):
            activity: Activity | None = getattr(client, slot)
            if activity is not None and activity.call == call:
                return client, slot
        return None

    def _hear(self, reply: Reply) -> None:
        replies = list(self.replies)
        replies.remove(reply)
        self.replies = tuple(replies)
        waiting = self._waiting_for(reply.call)
        if waiting is not None:
            self._answer(*waiting, reply.outcome)

    def _stop_cas(self, number: int) -> None:
        self._spend("store")
        self.processes[number] = Process(up=False, skew_s=self.processes[number].skew_s)

    def _stop_within(self, number: int, index: int) -> None:
        """Kill a CAS process between a commit of its store and the counter outside, which come before the answer.

        The adversary keeps the store as it was before.
        """
        handler = self.processes[number].handlers[index]
        assert handler.after is not None
        before = self.kept
        self._stop_cas(number)
        if self._put(handler.revision, handler.after, handler.decided_ns, counted=False):
            self.saved_stores = (*self.saved_stores[-3:], before)

    def _start_cas(self, number: int, index: int) -> None:
        kept = self.kept if index < 0 else self.saved_stores[index]
        if self.setting.sqlite:
            if not may_serve(kept, self.outside):
                self.count["a store refused"] += 1
                return
            self._put_back_store(kept)
            self._move_on()
        self.processes[number].up = True

    def _half_start(self, number: int, index: int) -> None:
        """Kill a CAS that starts, after its first commit."""
        del number
        kept = self.kept if index < 0 else self.saved_stores[index]
        if may_serve(kept, self.outside):
            self._put_back_store(replace(kept, counter=self.outside + 1))

    def _put_back_store(self, kept: Kept) -> None:
        if kept.state != self.kept.state:
            self.count["another store served"] += 1
            for epoch in [epoch for epoch in self.granted if epoch > kept.state.epoch]:
                del self.granted[epoch]  # nobody was told of it, as `users` shows if it is granted again
        self.kept = replace(kept, revision=self.kept.revision + 1)

    def _move_on(self) -> None:
        first = first_answered(self.kept, self.outside)
        while self.kept.counter < first:
            self.kept = replace(self.kept, counter=self.outside + 1)
            self.outside += 1

    def _recover_cas(self, number: int) -> None:
        """Let the board approve the store as it is; it does so only if nobody touched it."""
        self.kept = replace(self.kept, counter=self.outside)
        self._move_on()
        self.processes[number].up = True

    def _save_store(self) -> None:
        self._spend("store")
        self.saved_stores = (*self.saved_stores[-3:], self.kept)

    # -- time, disk, owner

    def _time(self, seconds: int) -> None:
        self._spend("expiries")
        self.now_s += seconds

    def _jump(self, number: int, seconds: int) -> None:
        self._spend("jumps")
        self.processes[number].skew_s += seconds

    def _copy_disk(self, source: int, target: int) -> None:
        self._spend("disk")
        self.disks[target] = self.disks[source]

    def _save_disk(self, place: int) -> None:
        self._spend("disk")
        self.saved_disks = (*self.saved_disks[-3:], self.disks[place])

    def _put_back(self, place: int, index: int, part: str) -> None:
        self._spend("disk")
        old, now = self.saved_disks[index], self.disks[place]
        self.disks[place] = {
            "all": old,
            "root.a": now.with_root(0, old.roots[0]),
            "root.b": now.with_root(1, old.roots[1]),
            "log": Disk(now.roots, old.log),
        }[part]

    def _mode(self, freshness: Freshness) -> None:
        self.kept = replace(
            self.kept, state=rules.set_freshness(self.kept.state, freshness), revision=self.kept.revision + 1
        )

    def _sign(self, old: Anchor) -> None:
        """Let the board agree to *old*, for the epoch that is the next one now. When it is used is another matter."""
        self.statements = (*self.statements[-2:], (old, self.kept.state.epoch + 1))

    def _restore(self, statement: tuple[Anchor, int]) -> None:
        old, epoch = statement
        now_ns = self._now_ns(self.processes[0])
        try:
            after = rules.restore(self.kept.state, old, epoch, now_ns=now_ns, is_gone=lambda _: False)
        except FspfError:
            self.count["a statement refused"] += 1
            return
        if statement in self.restored:
            self._violated(f"the statement for {old}, epoch {epoch}, has its effect twice")
        if epoch in self.granted or after.epoch != epoch:
            self._violated(f"the statement for {old} does not use up epoch {epoch}")
        if after.lease is not None:
            self._violated("a statement leaves a lease")
        self.count["restored"] += 1
        self.granted[epoch] = old
        self.restored = (*self.restored, statement)
        self.acked = self.durable = old.root_tag
        self.kept = replace(self.kept, state=after, revision=self.kept.revision + 1)

    # -- what must hold

    def _violated(self, text: str) -> None:
        raise ViolationError(text)

    def _check_change(self, before: State, after: State, now_ns: int) -> None:
        """Check what the CAS is about to store: one history, one lease at a time, epochs that never repeat."""
        if after.epoch < before.epoch:
            self._violated(f"the epoch goes back from {before.epoch} to {after.epoch}")
        if after.lease is not None and (before.lease is None or before.lease.epoch != after.lease.epoch):
            epoch = after.lease.epoch
            if epoch in self.granted:
                self._violated(f"epoch {epoch} is granted a second time")
            if epoch != after.epoch:
                self._violated(f"the lease is of epoch {epoch}, the last granted is {after.epoch}")
            if before.lease is not None and before.lease.expires_ns > now_ns:
                self._violated(f"epoch {epoch} is granted while {before.lease.epoch} is held")
            self.granted[epoch] = after.anchor
            self.count["leases"] += 1
            if before.lease is not None:
                self.count["take-overs"] += 1
        if after.lease is None and before.lease is not None and after.anchor != before.anchor:
            self._violated("the anchor moves while a lease ends")
        if after.anchor == before.anchor:
            return
        if not self.lineage.holds(before.anchor.root_tag, after.anchor.root_tag):
            if is_protected(before.freshness):
                self._violated(f"the anchor goes from {before.anchor} to {after.anchor}, which is not made of it")
            self.acked = self.durable = after.anchor.root_tag  # mode none: its owner gave up older promises
            self.count["older state in mode none"] += 1
        if is_protected(before.freshness) and after.anchor.generation <= before.anchor.generation:
            self._violated(f"the anchor goes from {before.anchor} to {after.anchor}")
        if not self.lineage.holds(self.acked, after.anchor.root_tag):
            self._violated(f"the anchor {after.anchor} does not have what was acknowledged")

    def _check_opened(self, client: Client, head: Anchor, freshness: Freshness, known: bytes, epoch: int) -> None:
        """Check what a writer begins with: the state and the epoch that the CAS granted to it, and to nobody else."""
        writer = (client.number, client.incarnation, client.openings)
        if self.users.setdefault(epoch, writer) != writer:
            self._violated(f"{self.users[epoch]} and {writer} both write under epoch {epoch}")
        self._check_restored(head, epoch)
        if self.granted.get(epoch) != head:
            self._violated(f"epoch {epoch} was granted on {self.granted.get(epoch)}, its writer opened {head}")
        if (
            is_protected(freshness)
            and self.setting.modes_change is False
            and known
            and not self.lineage.holds(known, head.root_tag)
        ):
            self._violated(f"opened {head}, which does not have what was acknowledged")
        if self.setting.clients == 1 and not self.setting.disk and not self.lineage.holds(self.durable, head.root_tag):
            self._violated(f"opened {head}, which does not have what was durable on an honest disk")

    def _check_restored(self, head: Anchor, epoch: int) -> None:
        """Check that of what was before a statement its state is let in, and no other."""
        before = [(old, used) for old, used in self.restored if used <= epoch]
        if before and head != before[-1][0] and self.lineage.epoch_of(head.root_tag) <= before[-1][1]:
            self._violated(f"opened {head}, which is another state than that of the statement, {before[-1][0]}")

    def _check_read(self, head: Anchor, anchor: Anchor, freshness: Freshness, known: bytes) -> None:
        if not is_protected(freshness) or self.setting.modes_change:
            return
        for tag in (known, anchor.root_tag):
            if tag and not self.lineage.holds(tag, head.root_tag):
                self._violated(f"opened {head} for reading, which does not have what was acknowledged")

    def _check_promise(self, client: Client, activity: Activity, session: Session) -> None:
        """Check an fsync that returned."""
        if session.freshness.mode is FreshnessMode.STRICT or (
            activity.what == "close" and session.freshness.mode is FreshnessMode.BOUNDED
        ):
            if activity.wave == len(self.restored):  # else it was true when the CAS said it, and is taken back since
                self._note_ack(session.root_tag, "acknowledged")
            self.count["acknowledged"] += 1
        if self.setting.clients == 1:
            self.durable = session.root_tag
        self.count["fsyncs"] += 1

    def _note_ack(self, tag: bytes, word: str) -> None:
        if not self.lineage.holds(tag, self.kept.state.anchor.root_tag) and not self.setting.modes_change:
            self._violated(f"a state was {word}, the anchor {self.kept.state.anchor} does not have it")
        if self.lineage.holds(self.acked, tag):
            self.acked = tag
        elif not self.lineage.holds(tag, self.acked) and not self.setting.modes_change:
            self._violated(f"a state was {word} that is on another history than what was acknowledged before")

    def _check_failure(self, session: Session | None, failure: BaseException | str) -> None:
        """Check that a volume turned read-only for a reason: its writer was alone, or is replaced."""
        self.count[f"read-only: {type(failure).__name__}"] += 1
        if session is None or not isinstance(failure, (AnchorMovedError, LeaseError, LeaseLostError)):
            return
        if self.kept.state.epoch == session.lease.epoch:
            self._violated(f"the only writer turned read-only: {failure}")


def _enter(run: Run, activity: Activity, session: Session | None) -> Any:
    if activity.what == "open":
        return replay.open_for_writing(run)
    if activity.what == "read":
        return replay.open_for_reading(run)
    assert session is not None
    return replay.act(run, session, activity.what, argument=activity.argument)


def _parts_that_differ(now: Disk, old: Disk) -> Iterator[str]:
    differing = [
        name
        for name, a, b in (
            ("root.a", now.roots[0], old.roots[0]),
            ("root.b", now.roots[1], old.roots[1]),
            ("log", now.log, old.log),
        )
        if a != b
    ]
    yield from differing
    if len(differing) > 1:
        yield "all"


_DO: Final[dict[str, Any]] = {
    "start": World._start,
    "renew": World._renew,
    "anchor": World._anchor,
    "timeout": World._timeout,
    "go on": World._go_on,
    "kill": World._kill,
    "deliver": World._deliver,
    "lose": World._lose,
    "serve": World._serve,
    "hear": World._hear,
    "stop cas": World._stop_cas,
    "stop within": World._stop_within,
    "start cas": World._start_cas,
    "half start": World._half_start,
    "recover cas": World._recover_cas,
    "save store": World._save_store,
    "time": World._time,
    "jump": World._jump,
    "copy disk": World._copy_disk,
    "save disk": World._save_disk,
    "put back": World._put_back,
    "mode": World._mode,
    "sign": World._sign,
    "restore": World._restore,
}

__all__ = ("Holder", "Setting", "Step", "ViolationError", "World", "may_serve")
