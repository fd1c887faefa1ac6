"""Run the volume's real code step by step: `acquire_state`, `find_state`, `Commits._commit_once`, `_advance`, `renew`.

They are blocking code. Here each is called anew for every step, gets the answers that it had so far, and is left by an
exception where it would wait for the next one. So its state is the list of its answers: a value, to be copied and compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from fspf.cas.rules import State
from fspf.core import errors
from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.freshness import Freshness, FreshnessMode
from fspf.volume import commit as commit_module
from fspf.volume import opening as opening_module
from fspf.volume.commit import Commits
from fspf.volume.opening import Opening
from tests.property.protocol.values import (
    LOG_SLOTS,
    VOLUME_ID,
    Disk,
    Found,
    Outcome,
    Record,
    follow,
    new_tag,
    opening_of,
)

TIMEOUT_S: Final = 30.0  # of the volume, for a CAS that is away


class Suspend(BaseException):
    """The code waits here; `effect` says for what."""

    def __init__(self, effect: tuple[Any, ...]) -> None:
        super().__init__(effect)
        self.effect = effect


@dataclass(frozen=True, slots=True)
class Session:
    """A writer's `Commits` between two calls."""

    lease: Lease
    freshness: Freshness
    anchor: Anchor
    generation: int
    root_tag: bytes
    base_generation: int
    log_end: int | None
    contact: float

    @classmethod
    def begun(cls, opening: Opening, lease: Lease, now_s: float) -> Session:
        """Return what `Commits.__init__` makes of an opening."""
        head, base = opening.head, opening.state
        return cls(lease, opening.record.freshness, head, head.generation, head.root_tag, base.generation, None, now_s)


class Run:
    """One call of real code, with the answers that it got.

    Args:
        answers: Grows by what the world can say at once (the time).
        writer: Client, incarnation and opening: its tags are nobody else's.
        seconds: The client's clock.
        failed: Whether the volume had turned read-only when the call began.

    Attributes:
        failure: Why it turned read-only in this call.
        made: Records sealed.
    """

    def __init__(
        self,
        answers: list[Any],
        *,
        writer: tuple[int, int, int],
        holder: Holder,
        seconds: float,
        failed: bool = False,
    ) -> None:
        self.answers = answers
        self.place = 0
        self.writer = writer
        self.holder = holder
        self._seconds = seconds
        self.failed = failed
        self.failure: BaseException | str | None = None
        self.made: list[Record] = []

    def ask(self, *effect: Any) -> Any:
        """Return the world's answer to *effect*, or leave until there is one."""
        if self.place == len(self.answers):
            raise Suspend(effect)
        self.place += 1
        return self.answers[self.place - 1]

    def seconds(self) -> float:
        """Return the time, which is an answer as well: the same at this point of the code each time."""
        if self.place == len(self.answers):
            self.answers.append(self._seconds)
        self.place += 1
        answer: float = self.answers[self.place - 1]
        return answer

    def fail(self, reason: Any) -> None:
        if isinstance(sys.exception(), Suspend):
            return  # the code takes waiting for an error; it will come here again with the answer
        if self.failure is None:
            self.failure = reason
        self.failed = True


class _Current:
    """The run that is under way; the patched modules look here."""

    run: Run


_current: Final = _Current()


def error_of(outcome: Outcome) -> BaseException:
    """Make the exception that a refusal is on the client's side."""
    _, name, arguments = outcome
    kind = getattr(errors, name)
    if kind is errors.FreshnessError:
        return errors.FreshnessError("no", expected_generation=0, found_generation=0)
    error: BaseException = kind(*arguments)
    return error


def outcome_of(error: errors.FspfError) -> Outcome:
    """Write a refusal as a value."""
    if isinstance(error, errors.LeaseHeldError):
        return ("no", "LeaseHeldError", (error.holder,))
    if isinstance(error, errors.AnchorMovedError):
        return ("no", "AnchorMovedError", (error.expected, error.found))
    return ("no", type(error).__name__, ("no",))


def record_of(state: State) -> CasRecord:
    nothing: Any = None
    return CasRecord(VOLUME_ID, "", nothing, state.key_version, state.anchor, state.epoch, state.lease, state.freshness)


class _Cas:
    """The CAS as the volume's code sees it: every call is a message to be answered."""

    url = "model:"

    @staticmethod
    def _call(method: str, *arguments: Any) -> Any:
        outcome = _current.run.ask("call", method, arguments)
        if outcome[0] == "no":
            raise error_of(outcome)
        return outcome[1]

    def fetch(self, _volume_id: bytes) -> CasRecord:
        return record_of(self._call("fetch"))

    def acquire(
        self, _volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        lease: Lease = self._call("acquire", expected, expected_epoch, adopt, holder)
        return lease

    def renew(self, _volume_id: bytes, lease: Lease) -> Lease:
        renewed: Lease = self._call("renew", lease)
        return renewed

    def advance(self, _volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        self._call("advance", lease, expected, new)

    def release(self, _volume_id: bytes, lease: Lease) -> None:
        self._call("release", lease)


class _Layout:
    """The volume's directory as the volume's code sees it."""

    path = "model"
    log_is_ready = True
    log_descriptor = None

    def read_header(self) -> tuple[Any, bytes]:
        return SimpleNamespace(volume_id=VOLUME_ID), b""

    def check_segments(self) -> None: ...

    def sync_log(self) -> None: ...

    def read_roots(self) -> dict[str, Any]:
        disk: Disk = _current.run.ask("look")
        return {"root.a": disk.roots[0], "root.b": disk.roots[1]}

    def read_log(self) -> Disk:
        disk: Disk = _current.run.ask("look")
        return disk

    def write_root(self, generation: int, record: Record) -> None:
        _current.run.ask("write", "root", generation % 2, record)

    def write_log(self, offset: int, frame: _Frame) -> None:
        _current.run.ask("write", "log", offset, frame.record)


class _Frame:
    """A sealed record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.tag = record.tag

    def __len__(self) -> int:
        return 1

    def pack(self) -> Record:
        return self.record


class _Sealable:
    """`RootRecord` and `LogRecord` of `fspf.volume.commit`: what is told apart is kept, the rest is not looked at."""

    is_root: bool

    def __init__(
        self, *, generation: int, epoch: int, previous_tag: bytes, log_follows: bool = False, **_rest: Any
    ) -> None:
        self.generation = generation
        run = _current.run
        tag = new_tag(previous_tag, epoch=epoch, generation=generation, is_root=self.is_root, writer=run.writer)
        self._record = Record(generation, epoch, previous_tag, tag, log_follows, self.is_root)
        run.made.append(self._record)

    def frame(self) -> _Frame:
        return _Frame(self._record)


class _Root(_Sealable):
    is_root = True

    def seal_frame(self, *_arguments: Any) -> _Frame:
        return self.frame()


class _Log(_Sealable):
    is_root = False

    def seal_frame(self, *_arguments: Any) -> tuple[_Frame, bytes]:
        frame = self.frame()
        return frame, frame.tag


_chains: Final[Any] = opening_module._Chains  # its arguments are those of `_choose`, with the roots for the files


def _choose(*arguments: Any, accept_stale: bool) -> Opening:
    """`fspf.volume.opening._choose` without seals and keyring; the choice itself is the real one."""
    assert not accept_stale
    front: Any = arguments[:-2]
    record, roots = arguments[-2:]
    claimed = [root for root in roots.values() if root is not None]
    chains: Any = _chains(*front, record, claimed)
    state, log = chains.choose()
    header, header_bytes = front[-2:]
    return Opening(header, header_bytes, record, None, {}, state, (), None, log)  # type: ignore[arg-type]


def _follow(disk: Disk, _key: Any, *, epoch: int, generation: int, tag: bytes, **_rest: Any) -> Found:
    return follow(disk, epoch=epoch, generation=generation, tag=tag)


def this_process(_label: str) -> Holder:
    run = _current.run
    return opening_of(run.holder, run.writer, run.place)


class _Time:
    CLOCK_BOOTTIME = 7

    @staticmethod
    def monotonic() -> float:
        return _current.run.seconds()

    @staticmethod
    def clock_gettime(_clock: int) -> float:
        return _current.run.seconds()

    @staticmethod
    def time_ns() -> int:
        return 0

    @staticmethod
    def sleep(_seconds: float) -> None:
        _current.run.ask("sleep")


class _Silent:
    def warning(self, *_arguments: Any) -> None: ...

    info = warning


@contextmanager
def installed() -> Iterator[None]:
    """Put the model's world below the volume's code."""
    with ExitStack() as stack:
        for name, value in {
            "time": _Time,
            "RootRecord": _Root,
            "LogRecord": _Log,
            "LOG_LEN": LOG_SLOTS,
            "log": _Silent(),
        }.items():
            stack.enter_context(mock.patch.object(commit_module, name, value))
        for name, value in {
            "_choose": _choose,
            "_settle": lambda _layout, _opening: None,
            "follow": _follow,
            "log_key": lambda *_arguments: None,
            "this_process": this_process,
            "log": _Silent(),
        }.items():
            stack.enter_context(mock.patch.object(opening_module, name, value))
        yield


class _Commits(Commits):
    """Real commits; the queue to the thread that anchors is the world's."""

    def __init__(
        self, run: Run, session: Session, *, needs_segments: bool
    ) -> None:  # not `Commits.__init__`: see Session.begun
        layout: Any = _Layout()
        cas: Any = _Cas()
        nothing: Any = None
        self._layout = layout
        self._header_bytes = b""
        self._cas = cas
        self._volume_id = VOLUME_ID
        self._key = nothing
        self._key_version = 1
        self._lease = session.lease
        self._freshness = session.freshness
        self._keyring_epochs = 1
        self._store = nothing_to_do
        self._prepare = self._prepared
        self._intend = lambda _inos: nothing if run.failed else intended
        self._fail = run.fail
        self._cas_timeout_s = TIMEOUT_S
        self._keeper = self._lender = self._lent = None  # no embedded CAS, no data plane
        self._last_number = 0
        self._log_key = nothing
        self._log_refused = False
        self._log_synced = 0
        self._stopping = False
        self._cas_failure = None
        self.logged = self.count = 0
        self._run = run
        self.generation = session.generation
        self.root_tag = session.root_tag
        self.anchor = session.anchor
        self._base_generation = session.base_generation
        self._log_end = session.log_end
        self._contact = session.contact
        intended: Any = SimpleNamespace(batches=(1,), pieces=(), needs_segments=needs_segments)

    def _prepared(self, _everything: bool, _closing: bool, _inos: set[int]) -> Any:
        if self._run.failed:
            raise errors.ReadOnlyError("the volume is read-only")
        return _PREPARED

    def _enqueue(self, pending: Any) -> None:
        outcome = self._run.ask("enqueue", pending.anchor)
        if outcome[0] == "no":
            raise error_of(outcome)

    def _drain(self) -> None:
        outcome = self._run.ask("drain")
        if outcome[0] == "no":
            raise error_of(outcome)

    def session(self) -> Session:
        return Session(
            self._lease,
            self._freshness,
            self.anchor,
            self.generation,
            self.root_tag,
            self._base_generation,
            self._log_end,
            self._contact,
        )


_PREPARED: Final[Any] = SimpleNamespace(namespace=None, space_map=None, files=0, total_bytes=0, number=0)
nothing_to_do: Final[Any] = SimpleNamespace(
    sync=lambda: None, end_of_slots=lambda: 0, commit_anchored=lambda _number: None
)


def open_for_writing(run: Run) -> tuple[Opening, Lease]:
    """Call `acquire_state`."""
    _current.run = run
    layout: Any = _Layout()
    cas: Any = _Cas()
    return opening_module.acquire_state(layout, cas, "")


def open_for_reading(run: Run) -> Opening:
    """Call `find_state`."""
    _current.run = run
    layout: Any = _Layout()
    cas: Any = _Cas()
    return opening_module.find_state(layout, cas)


def act(run: Run, session: Session, what: str, *, argument: Any = None) -> Session:
    """Call one of a writer's methods.

    Args:
        what: ``fsync`` (into the log if that goes on), ``fsync with segments``, ``commit``, ``close``, ``renew``, ``release``,
            ``anchor`` (the thread of mode bounded, with the newest state written).
    """
    _current.run = run
    commits = _Commits(run, session, needs_segments=what == "fsync with segments")
    if what in {"fsync", "fsync with segments"}:
        commits._commit_once(everything=False, closing=False, inos={1})
    elif what == "commit":
        commits._commit_once(everything=True, closing=False, inos=set())
    elif what == "close":
        commits._commit_once(everything=True, closing=True, inos=set())
    elif what == "renew":
        commits.renew()
    elif what == "release":
        commits.release()
    else:
        assert what == "anchor"
        commits._advance(argument)
    return commits.session()


def drive(call: Callable[[], Any]) -> tuple[str, Any]:
    """Run until the code waits, ends or raises: ("waits", effect), ("ends", value), ("raises", error)."""
    try:
        return "ends", call()
    except Suspend as wait:
        return "waits", wait.effect
    except errors.FspfError as exc:
        return "raises", exc


def is_protected(freshness: Freshness) -> bool:
    return freshness.mode is not FreshnessMode.NONE


__all__: Sequence[str] = (
    "Run",
    "Session",
    "act",
    "drive",
    "installed",
    "is_protected",
    "open_for_reading",
    "open_for_writing",
    "outcome_of",
)
