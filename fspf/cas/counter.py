"""Tells whether a CAS server's SQLite store is the newest: a counter in it, compared with one that cannot be turned back.

How a TPM is spoken to is left to `fspf.cas.tpm`, storing to `fspf.cas.store_sqlite`, whose thread calls everything here.

The rule. S is the counter stored with the data, T the outside one. A commit stores S = T + 1, then T is incremented, and
only then is the commit answered or shown. So at a start S is T (all was answered) or T + 1 (the last commit was not answered, and
may count or not); anything else is an older copy, or another counter. A start itself then moves both on until S is at
least two above the T that was found: of any copy that somebody kept back, also of one whose last commit was never answered,
S is now below T. Without that, a commit that was never answered could later be put in the place of one that was.

With a *window*, T is not incremented for each commit: those within one window all store S = T + 1 and are answered at
once. Its end increments T, commits S + 1 with nothing else, and increments T again, so that of the commits of a window only the
last one can be started from. Until then an owner of the host could put back any state since the window began: what a
window promises is "not older than that".

The stored state also carries the sum of a keyed hash over all rows, so that not a single row can be put back either.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from fspf.core.errors import CasError, CasUnreachableError, RolledBackError
from fspf.core.keys import AuthenticationError, SecretKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fspf.cas.store_sqlite import Row

log = logging.getLogger(__name__)

_STATE_LABEL: Final = b"fspf cas 2 counter state"
_ROW_LABEL: Final = b"fspf cas 2 counter row"
_STATE: Final = struct.Struct("<BQ16s32s")  # version, counter, sum over the rows, which outside counter
_STATE_VERSION: Final = 1
_SUM_LEN: Final = 16
_SUM_MODULUS: Final = 1 << (8 * _SUM_LEN)
_PAUSE_S: Final = 1.0  # until an outside counter that gave no answer is asked again without need

# What to do, in every message: what was expected and found stands before it.
ADVICE: Final = (
    "the store was put back to an older state, or is not the one of this counter: stop whatever else serves from it, put the "
    "newest store back, or, if the newest is lost, have a recovery approved (docs/CAS.md, Recovery)"
)


class OutsideCounter(Protocol):
    """A counter that only goes up, kept where the host's owner cannot turn it back. Blocking."""

    @property
    def identity(self) -> bytes:
        """32 bytes that no other counter has: of another TPM, or made anew."""

    def read(self) -> int:
        """Return its value, proven to be this counter's. Raises `CasUnreachableError`, `CasError`."""

    def increment(self) -> int:
        """Add one; return the new value. After an error it may have been added."""


class Recovery(NamedTuple):
    """What somebody who may do so has signed: that a store is the newest although its counter says otherwise.

    Attributes:
        stored: The store's counter, as the refusal said.
        outside: The outside counter, as the refusal said.
        fingerprint: Of the store's state, as the refusal said: the statement fits no other copy.
        reason: For the log.
    """

    stored: int
    outside: int
    fingerprint: str
    reason: str

    def signed_bytes(self) -> bytes:
        """Return what signatures cover."""
        numbers = f"{self.stored} {self.outside} {self.fingerprint}"
        return b"fspf cas recovery 1\0" + numbers.encode() + b"\0" + self.reason.encode()


class Witness:
    """Implements `fspf.cas.store_sqlite.Guard` with an outside counter."""

    def __init__(
        self,
        master: SecretKey,
        counter: OutsideCounter,
        *,
        window_s: float = 0.0,
        recovery: Recovery | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make one for one opening of the store.

        Args:
            master: The CAS's master key.
            counter: The one outside.
            window_s: How long answered commits may go without the outside counter; 0 is strict.
            recovery: A statement whose signatures were checked: see `recover`.
            monotonic: A clock in seconds, for tests.
        """
        self._state_key = master.derive(_STATE_LABEL)
        self._row_key = master.derive(_ROW_LABEL)
        self._counter = counter
        self._window_s = window_s
        self._recovery = recovery
        self._monotonic = monotonic
        self._stored = 0  # S, as committed
        self._outside = 0  # T, as far as known; never more than it is
        self._sum = 0
        self._next: tuple[int, int] | None = None  # S and sum that are being committed
        self._first = 0  # S must reach this before anything is answered
        self._opened = False
        self._since = 0.0  # when the first commit of this window was made
        self._retry_at = 0.0

    @property
    def stored(self) -> int:
        """The counter in the store."""
        return self._stored

    @property
    def outside(self) -> int:
        """The outside counter, as last seen."""
        return self._outside

    @property
    def settled(self) -> bool:
        if self._stored < self._first:
            return False
        return self._stored == self._outside or self._window_s > 0

    # -- what the store's thread calls

    def open(self, state: bytes | None, rows: Iterable[Row], *, begin: bool) -> None:
        """Compare a store that was just opened with the outside counter; with *begin*, a store may be without state.

        Raises:
            RolledBackError: It is not the newest.
            CasError: It was altered.
            CasUnreachableError: The outside counter gives no answer.
        """
        outside = self._counter.read()
        if state is None:
            if not begin:
                raise RolledBackError(f"the store has no counter of its own, {outside} was expected: {ADVICE}")
            self._stored, self._sum = outside, sum(map(self._hash, rows)) % _SUM_MODULUS
        else:
            self._stored, claimed_sum, identity = self._parse(state)
            self._sum = sum(map(self._hash, rows)) % _SUM_MODULUS
            if self._sum != claimed_sum:
                raise RolledBackError(
                    "the rows of the store are not those that were stored together: some were altered or put back to an "
                    f"older state; {ADVICE}"
                )
            self._compare(identity, outside, state)
        self._outside = outside
        self._first = max(self._first, max(self._stored, outside) + 1, outside + 2)
        self._opened = True

    def _compare(self, identity: bytes, outside: int, state: bytes) -> None:
        fingerprint = hashlib.sha256(state).hexdigest()[:16]
        if identity == self._counter.identity and self._stored in {outside, outside + 1}:
            return
        if self._recovery is not None:
            found = (self._recovery.stored, self._recovery.outside, self._recovery.fingerprint)
            if found == (self._stored, outside, fingerprint):
                log.warning(
                    "recovery: the store at counter %d (state %s) is taken as the newest, the outside counter is %d: %s",
                    self._stored,
                    fingerprint,
                    outside,
                    self._recovery.reason,
                )
                self._stored = outside  # what is committed next stores one more, and names this counter
                return
        if identity != self._counter.identity:
            what = f"the store's counter is kept by another TPM (or was made anew): {identity.hex()[:16]} expected, "
            what += f"{self._counter.identity.hex()[:16]} found"
        else:
            what = f"the outside counter is {outside}, so the store's must be {outside} or {outside + 1}: it is {self._stored}"
        message = f"{what} (counters {self._stored} and {outside}, state {fingerprint}); {ADVICE}"
        if self._recovery is not None:
            message += "; the recovery statement that was given is for another state or counter"
        raise RolledBackError(message)

    def write(self, removed: Iterable[Row], added: Iterable[Row]) -> bytes:
        assert self._opened
        total = (self._sum - sum(map(self._hash, removed)) + sum(map(self._hash, added))) % _SUM_MODULUS
        self._next = (self._outside + 1, total)
        return self._pack(*self._next)

    def committed(self) -> None:
        assert self._next is not None
        if self._stored == self._outside:
            self._since = self._monotonic()
        (self._stored, self._sum), self._next = self._next, None

    def abandoned(self) -> None:
        self._next = None

    def settle(self, commit: Callable[[], None], *, final: bool) -> None:
        if self._window_s and self._stored >= self._first:
            if self._stored == self._outside or not (final or self._monotonic() >= self._since + self._window_s):
                return
            self._raise_outside()
            commit()
        self._raise_outside()
        while self._stored < self._first:
            commit()
            self._raise_outside()

    def due_s(self) -> float | None:
        if self._stored == self._outside:
            return None
        now = self._monotonic()
        return max(0.0, self._since + self._window_s - now, self._retry_at - now)

    # -- the outside counter

    def _raise_outside(self) -> None:
        """Bring the outside counter up to the stored one."""
        while self._outside < self._stored:
            try:
                outside = self._counter.increment()
            except CasUnreachableError:
                self._retry_at = self._monotonic() + _PAUSE_S
                # It may have been incremented all the same: it is read before it is incremented again.
                self._outside = min(self._stored, self._read_again())
                if self._outside < self._stored:
                    raise
                return
            self._agree(outside)
            self._outside += 1

    def _read_again(self) -> int:
        outside = self._counter.read()
        if outside > self._stored:
            self._agree(outside)
        return outside

    def _agree(self, outside: int) -> None:
        if outside != self._outside + 1:
            raise RolledBackError(
                f"the outside counter went from {self._outside} to {outside}, {self._outside + 1} was expected: another "
                f"process uses it, with this store or a copy; {ADVICE}"
            )

    # -- the state

    def _hash(self, row: Row) -> int:
        """A keyed hash of *row*; the sum of many is as hard to forge as one, since it is stored sealed."""
        key = row.key.encode()
        aad = _ROW_LABEL + len(key).to_bytes(4, "little") + key + row.revision.to_bytes(8, "little") + row.value
        return int.from_bytes(self._row_key.siv_seal(b"\0", aad)[:_SUM_LEN], "little")

    def _pack(self, stored: int, total: int) -> bytes:
        plain = _STATE.pack(_STATE_VERSION, stored, total.to_bytes(_SUM_LEN, "little"), self._counter.identity)
        return self._state_key.siv_seal(plain, _STATE_LABEL)

    def _parse(self, claimed: bytes) -> tuple[int, int, bytes]:
        try:
            plain = self._state_key.siv_open(claimed, _STATE_LABEL)
            version, stored, total, identity = _STATE.unpack(plain)
        except (AuthenticationError, ValueError, struct.error):
            raise CasError(
                "the counter in the store does not open: it was altered, or belongs to another master key; put the newest "
                "store back"
            ) from None
        if version != _STATE_VERSION:
            raise CasError(
                f"the store's counter is of version {version}, this program knows {_STATE_VERSION}: use a newer fspf"
            )
        return stored, int.from_bytes(total, "little"), identity


def recover(statement: Recovery, signatures: object, check: Callable[[bytes, object], None]) -> Recovery:
    """Let a signed statement count.

    Args:
        statement: For which store and counter, and why.
        signatures: Whatever *check* takes.
        check: Raises unless *signatures* over the given bytes are those of enough people who may do this.
    """
    if not statement.reason.strip():
        raise CasError("a recovery statement gives a reason: it is logged")
    check(statement.signed_bytes(), signatures)
    return statement
