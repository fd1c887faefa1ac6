"""Make states of the volume durable and anchored: docs/COMMIT.md in code.

It orders syncs, root records and the CAS, and lets waiting callers share one commit. What goes into
a state is prepared by the volume.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from fspf.core.anchor import Anchor, RecordKeeper, RingEnd, RingLender
from fspf.core.errors import AnchorMovedError, CasUnreachableError, FspfError, LeaseError
from fspf.core.format import NONCE_LEN, RootRecord
from fspf.core.freshness import FreshnessMode
from fspf.core.keys import log_key
from fspf.core.log import LOG_LEN, LogRecord
from fspf.volume.mirror import LentLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.core.anchor import Cas, CasRecord, Lease, LentRing
    from fspf.core.types import ContentRoot
    from fspf.volume.intent import Intended
    from fspf.volume.layout import Layout
    from fspf.volume.mirror import Mirror
    from fspf_native import SecretKey, Store

log = logging.getLogger(__name__)

CAS_TIMEOUT_S: Final = 30.0  # a CAS that is away longer turns the volume read-only
_LONG_SILENCE_S: Final = 30.0  # half of the lease's life in the embedded CAS; counts sleep of the machine
_FIRST_RETRY_S: Final = 0.05
_LAST_RETRY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A state whose blocks are written but not synced."""

    namespace: ContentRoot
    space_map: ContentRoot | None
    files: int
    total_bytes: int
    number: int  # of the store's commit: names the frees that take effect when it is anchored


class _Outcome(IntEnum):
    """`lane_outcome` of fspf_native/lane.h."""

    CLEAN = 0
    UNPROMISED = 1
    ROOT_DUE = 2
    BROKEN = 3


@dataclass(frozen=True, slots=True)
class _Pending:
    number: int
    anchor: Anchor
    written_at: float  # monotonic seconds


class Commits:
    """The commits of one writer.

    Args:
        base: The root record that was opened, None for a new volume.
        head: Its state with its log.
        prepare: Called with `everything`, `closing` and the inodes whose fsync waits; flushes and returns what to commit, or
            None if nothing changed.
        intend: Called with those inodes; returns what a record of the intent log is to hold, None if a commit is due.
        lend: Called with what native code needs to write records by itself; returns who does, None if nobody.
        note_logged: Called with inodes whose contents it has put into records.
        fail: Called once with the reason when no commit can follow any more.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        header_bytes: bytes,
        cas: Cas,
        record: CasRecord,
        lease: Lease,
        base: RootRecord | None,
        head: Anchor | None,
        keyring_epochs: int,
        store: Store,
        prepare: Callable[[bool, bool, set[int]], Prepared | None],
        intend: Callable[[set[int]], Intended | None],
        lend: Callable[[LentLog, LentRing], Mirror | None],
        note_logged: Callable[[list[int]], None],
        fail: Callable[[str | FspfError], None],
        cas_timeout_s: float = CAS_TIMEOUT_S,
    ) -> None:
        self._layout = layout
        self._header_bytes = header_bytes
        self._cas = cas
        self._volume_id = record.volume_id
        self._key: SecretKey = record.key
        self._key_version = record.key_version
        self._lease = lease
        self._freshness = record.freshness
        self._keyring_epochs = keyring_epochs
        self._store = store
        self._prepare = prepare
        self._intend = intend
        self._lend = lend
        self._note_logged = note_logged
        self._fail = fail
        self._cas_timeout_s = cas_timeout_s
        self.generation = head.generation if head else 0
        self.root_tag = head.root_tag if head else bytes(16)
        self._base_generation = base.generation if base else 0
        self._last_number = 0  # of the store's commits
        # The intent log. It may continue only a root record of this epoch: the first commit is one.
        self._log_key = log_key(record.key, record.volume_id, lease.epoch)
        self._log_end: int | None = None  # where the next record goes; None: a commit is due
        self._log_refused = False
        self.logged = 0  # records written
        # A CAS that keeps records makes them durable with the anchor; the log's own sync follows when it has to.
        keeps = record.freshness.mode is not FreshnessMode.NONE
        self._keeper: RecordKeeper | None = cas if keeps and isinstance(cas, RecordKeeper) else None
        self._lender: RingLender | None = cas if keeps and isinstance(cas, RingLender) else None
        self._log_synced = self.generation  # the log has all records up to it durably, or needs them no more
        self._lent: Mirror | None = None  # who writes records by itself until the next commit here
        self.anchor = Anchor(self.generation, self.root_tag)
        self.count = 0
        self._contact = time.clock_gettime(time.CLOCK_BOOTTIME)  # when the CAS last said that the lease is ours
        # Group commit: a caller draws a ticket; one of them leads, and its commit serves all tickets drawn before it began.
        self._turn = threading.Condition()
        self._tickets = 0
        self._served = 0
        self._running = False
        self._waiting: set[int] = set()  # inodes whose fsync waits for the next commit
        self._failures: deque[tuple[int, int, BaseException]] = deque(maxlen=64)
        # Bounded mode: written roots that the CAS does not have yet.
        self._lag = threading.Condition()
        self._pending: deque[_Pending] = deque()
        self._anchoring = False
        self._anchorer: threading.Thread | None = None
        self._stopping = False
        self._cas_failure: FspfError | None = None

    # -- group commit

    def commit(
        self, *, everything: bool, closing: bool = False, ino: int | None = None, may_return: bool = False
    ) -> bool:
        """Return when all that was done before this call is committed as the freshness mode promises.

        Args:
            everything: All contents; otherwise those that are flushed, and that of *ino*.
            may_return: After waiting for a commit that did not serve this call, return False if the lane can.

        Raises:
            OSError: The host refused a write (ENOSPC: nothing is lost, the next commit tries again).
            FspfError: The volume turned read-only; the message says why.
        """
        with self._turn:
            self._tickets += 1
            mine = self._tickets
            if ino is not None:
                self._waiting.add(ino)
            while self._running:
                self._turn.wait()
                if self._served >= mine and not everything and not closing:
                    self._raise_failure_of(mine)
                    return True
                if may_return and self._is_lent():
                    return False
            self._running = True
            before, serves = self._served, self._tickets
            inos, self._waiting = self._waiting, set()
        failure: BaseException | None = None
        try:
            self._commit_once(everything=everything, closing=closing, inos=inos)
        except BaseException as exc:
            failure = exc
            raise
        finally:
            with self._turn:
                self._running = False
                self._served = serves
                if failure is not None:
                    self._failures.append((before, serves, failure))
                self._turn.notify_all()
        return True

    def _is_lent(self) -> bool:
        return self._lent is not None and not self._running

    def _raise_failure_of(self, ticket: int) -> None:
        """Raise what the commit that served *ticket* raised."""
        for before, serves, failure in self._failures:
            if before < ticket <= serves:
                if isinstance(failure, OSError):
                    raise OSError(failure.errno, failure.strerror) from failure
                if isinstance(failure, FspfError):
                    raise failure
                message = f"the shared commit failed: {failure}"
                raise FspfError(message) from failure

    def wait_idle(self) -> None:
        """Wait for a commit that is under way."""
        with self._turn:
            while self._running:
                self._turn.wait()

    # -- one commit: COMMIT.md, steps 1 to 5

    def _commit_once(self, *, everything: bool, closing: bool, inos: set[int]) -> None:
        self._take_back()
        self._commit_here(everything=everything, closing=closing, inos=inos)
        if not closing:
            self._lend_out()

    def _commit_here(self, *, everything: bool, closing: bool, inos: set[int]) -> None:
        self._check_lease()
        if not everything and not closing and self._log_end is not None:
            # What is taken for a record that is then not written is in no later one either: only a root has it all.
            offset, self._log_end = self._log_end, None
            intended = self._intend(inos)
            if intended is not None and self._commit_to_log(intended, offset):
                return
        prepared = self._prepare(everything, closing, inos)
        if prepared is None:
            if closing or everything:
                self._drain()
            return
        try:
            self._store.sync()
            self._check_lease()
            anchor = self._write_root(prepared, log_follows=not closing)
        except BaseException as exc:
            # After a failed sync the host may have dropped what it did not write: nothing may follow this state.
            self._fail(f"generation {self.generation + 1} could not be made durable: {exc}")
            raise
        self._base_generation = self.generation
        self._last_number = prepared.number
        self._log_end = None if closing else 0
        self._promise(prepared.number, anchor, closing=closing)

    def _promise(self, number: int, anchor: Anchor, *, closing: bool = False) -> None:
        """Tell the CAS of a durable state, as the freshness mode asks for."""
        self.count += 1
        if self._freshness.mode is FreshnessMode.STRICT or closing:
            self._drain()
            self._advance_last(anchor)
            self._store.commit_anchored(number)
        elif self._freshness.mode is FreshnessMode.BOUNDED:
            self._enqueue(_Pending(number, anchor, time.monotonic()))
        else:
            self._store.commit_anchored(number)
            self._enqueue(_Pending(number, anchor, time.monotonic()))

    # -- the intent log: COMMIT.md 9

    def _commit_to_log(self, intended: Intended, offset: int) -> bool:
        """Write a record at *offset* of the log; False if there is no room and a commit is due."""
        if not intended.batches and not intended.pieces:
            self._log_end = offset
            return True  # all of it is committed already
        if not self._layout.log_is_ready and not self._prepare_log():
            return False
        record = LogRecord(
            volume_id=self._volume_id,
            generation=self.generation + 1,
            epoch=self._lease.epoch,
            previous_tag=self.root_tag,
            anchor_generation=self.anchor.generation,
            anchor_tag=self.anchor.root_tag,
            end_of_slots=self._store.end_of_slots(),
            batches=intended.batches,
            pieces=intended.pieces,
            created_ns=time.time_ns(),
        )
        frame, tag = record.seal_frame(self._log_key, self._key_version, self._header_bytes, os.urandom(NONCE_LEN))
        if offset + len(frame) > LOG_LEN:
            return False
        try:
            if intended.needs_segments:
                self._store.sync()
                self._check_lease()
            self._layout.write_log(offset, frame)
            anchor = Anchor(record.generation, tag)
            kept = self._advance_with(anchor, frame)
            if not kept:
                self._layout.sync_log()
                self._log_synced = record.generation
        except BaseException as exc:
            self._fail(f"generation {self.generation + 1} could not be made durable: {exc}")
            raise
        self.generation, self.root_tag = record.generation, tag
        self._log_end = offset + len(frame)
        self.logged += 1
        if kept:
            self.count += 1
            self._store.commit_anchored(self._last_number)
        else:
            self._promise(self._last_number, anchor)
        return True

    def _advance_with(self, new: Anchor, frame: bytes) -> bool:
        """Let the CAS make record and anchor durable together; False: whether it did is for `_advance` to find out."""
        if self._keeper is None or not self._is_anchored():
            return False
        try:
            kept = self._keeper.advance_with(
                self._volume_id, self._lease, self.anchor, new, record=frame, synced=self._log_synced
            )
        except FspfError:
            return False
        if kept:
            self.anchor = new
            self._contact = time.clock_gettime(time.CLOCK_BOOTTIME)
        return kept

    # -- the lane: records that native code writes by itself, from one commit here to the next

    def _lend_out(self) -> None:
        """Let the data plane go on from here by itself."""
        descriptor = self._layout.log_descriptor
        if self._lender is None or self._log_end is None or descriptor is None or not self._is_anchored():
            return
        ring = self._lender.lend_ring(self._volume_id)
        if ring is None:
            return
        log_part = LentLog(
            self._log_key, self._key_version, self._lease.epoch, self._volume_id, self._header_bytes, descriptor,
            self._log_end, LOG_LEN, self.generation, self.root_tag, int(_LONG_SILENCE_S * 1e9), int(self._contact * 1e9),
        )  # fmt: skip
        self._lent = self._lend(log_part, ring)
        if self._lent is None:
            self._lender.take_ring_back(self._volume_id, None, None)

    def _take_back(self) -> None:
        """Go on from where the data plane has come to; what it could not end, is ended here."""
        lent, self._lent = self._lent, None
        end = lent.lane_take_back() if lent is not None else None
        if end is None or self._lender is None:
            return
        (outcome, number, generation, tag, log_end, anchored, anchor_tag, synced, count, contact_ns), ring, inos = end
        self._note_logged(inos)
        self.anchor = Anchor(anchored, anchor_tag)
        self._lender.take_ring_back(self._volume_id, self.anchor, RingEnd(*ring))
        self.generation, self.root_tag, self._log_end = generation, tag, log_end
        self._log_synced = max(self._log_synced, synced)
        self._contact = max(self._contact, contact_ns / 1e9)
        self.count += count
        self.logged += count
        if outcome == _Outcome.ROOT_DUE:
            self._log_end = None
        elif outcome != _Outcome.CLEAN:
            self._end_record(number if outcome == _Outcome.BROKEN else 0)

    def _end_record(self, number: int) -> None:
        """Do what is left to do for the newest record: it is written, but neither synced nor anchored."""
        log_end, self._log_end = self._log_end, None
        try:
            if number:
                raise OSError(number, os.strerror(number))
            self._layout.sync_log()
        except OSError as exc:
            self._fail(f"generation {self.generation} could not be made durable: {exc}")
            raise
        self._log_synced = self.generation
        self.count -= 1  # `_promise` counts it
        self._promise(self._last_number, Anchor(self.generation, self.root_tag))
        self._log_end = log_end

    @property
    def anchored_generation(self) -> int:
        """Newest generation that the CAS is known to have."""
        lent = self._lent
        return max(self.anchor.generation, lent.lane_anchored if lent is not None else 0)

    def catch_up(self) -> None:
        """Know of all records that were written so far; a commit that is under way ends first."""
        if self._lent is None:
            return
        with self._turn:
            while self._running:
                self._turn.wait()
            self._running = True
        try:
            self._take_back()
        except (OSError, FspfError):
            log.debug("the volume has failed, as was said")
        finally:
            with self._turn:
                self._running = False
                self._turn.notify_all()

    def _prepare_log(self) -> bool:
        """Make the log's file; without one every fsync is a commit, which is slower and nothing else."""
        if self._log_refused:
            return False
        try:
            self._layout.prepare_log()
        except OSError as exc:
            self._log_refused = True
            log.warning("there is no room for the intent log, fsync will be slow: %s", exc)
            return False
        return True

    def _write_root(self, prepared: Prepared, *, log_follows: bool) -> Anchor:
        generation = self.generation + 1
        if generation % 2 == self._base_generation % 2 and self._base_generation:
            generation += 1  # into the other file: the log continues the root record in this one
        record = RootRecord(
            volume_id=self._volume_id,
            generation=generation,
            epoch=self._lease.epoch,
            previous_tag=self.root_tag,
            anchor_generation=self.anchor.generation,
            anchor_tag=self.anchor.root_tag,
            namespace=prepared.namespace,
            space_map=prepared.space_map,
            end_of_slots=self._store.end_of_slots(),
            files=prepared.files,
            total_bytes=prepared.total_bytes,
            keyring_epochs=self._keyring_epochs,
            created_ns=time.time_ns(),
            log_follows=log_follows,
        )
        frame = record.seal_frame(self._key, self._key_version, self._header_bytes, os.urandom(NONCE_LEN))
        self._layout.write_root(record.generation, frame.pack())
        self.generation, self.root_tag = record.generation, frame.tag
        self._log_synced = record.generation
        return Anchor(record.generation, frame.tag)

    # -- the CAS

    def _advance(self, new: Anchor) -> None:
        """Move the anchor, asking again while the CAS is away; turn read-only when it stays away or says no."""
        deadline = time.monotonic() + self._cas_timeout_s
        pause = _FIRST_RETRY_S
        while True:
            try:
                self._cas.advance(self._volume_id, self._lease, self.anchor, new)
                break
            except AnchorMovedError as exc:
                if exc.found == new:  # an earlier try had arrived though its answer was lost
                    break
                if (
                    self._freshness.mode is FreshnessMode.NONE
                    and self.anchor.generation < exc.found.generation < new.generation
                ):
                    # A try of ours that was given up has arrived late: while the lease is ours, nobody else moves the anchor.
                    self.anchor = exc.found
                    continue
                self._fail(exc)
                raise
            except LeaseError as exc:
                self._fail(exc)
                raise
            except CasUnreachableError as exc:
                if self._has_arrived(new):
                    break
                if self._freshness.mode is FreshnessMode.NONE:
                    raise
                if time.monotonic() >= deadline or self._stopping:
                    message = (
                        f"the CAS was away for {self._cas_timeout_s:.0f} s ({exc}); generation {new.generation} is durable but not "
                        "anchored: the volume is read-only until it is opened again"
                    )
                    away = CasUnreachableError(message)
                    self._fail(away)
                    raise away from exc
                log.warning("the CAS is away, writers wait: %s", exc)
                time.sleep(pause)
                pause = min(pause * 2, _LAST_RETRY_S)
            except FspfError as exc:
                self._fail(exc)
                raise
        self.anchor = new
        self._contact = time.clock_gettime(time.CLOCK_BOOTTIME)

    def _advance_last(self, new: Anchor) -> None:
        """Move the anchor for a caller that waits for it; in mode none a CAS that is away is no error."""
        try:
            self._advance(new)
        except CasUnreachableError as exc:
            if self._freshness.mode is not FreshnessMode.NONE:
                raise
            log.warning("generation %d is not anchored, the CAS is away: %s", new.generation, exc)

    def _has_arrived(self, new: Anchor) -> bool:
        try:
            return self._cas.fetch(self._volume_id).anchor == new
        except FspfError:
            return False

    # -- bounded mode

    def _enqueue(self, pending: _Pending) -> None:
        """Hand a root to the anchoring thread; wait while the CAS lags more than the mode allows."""
        with self._lag:
            if self._anchorer is None:
                self._anchorer = threading.Thread(target=self._anchor_loop, name="fspf-anchor", daemon=True)
                self._anchorer.start()
            self._pending.append(pending)
            self._lag.notify_all()
            while self._lags_too_far() and self._cas_failure is None:
                self._lag.wait(timeout=0.05)
            if self._cas_failure is not None and self._freshness.mode is FreshnessMode.BOUNDED:
                raise self._cas_failure

    def _lags_too_far(self) -> bool:
        if self._freshness.mode is not FreshnessMode.BOUNDED or not self._pending:
            return False
        if self._freshness.max_commits and len(self._pending) > self._freshness.max_commits:
            return True
        return (time.monotonic() - self._pending[0].written_at) * 1000 > self._freshness.max_ms

    def _anchor_loop(self) -> None:
        while True:
            with self._lag:
                while not self._pending and not self._stopping:
                    self._lag.wait()
                if not self._pending:
                    return
                newest = self._pending[-1]
                self._anchoring = True
            try:
                self._advance(newest.anchor)
            except BaseException as exc:
                if not isinstance(exc, FspfError):
                    log.exception("the anchoring thread ends")
                with self._lag:
                    self._anchoring = False
                    if self._freshness.mode is FreshnessMode.NONE and isinstance(exc, CasUnreachableError):
                        log.warning("generation %d is not anchored, the CAS is away: %s", newest.anchor.generation, exc)
                        self._pending.clear()
                        self._lag.notify_all()
                        continue
                    self._cas_failure = exc if isinstance(exc, FspfError) else FspfError(f"anchoring failed: {exc!r}")
                    self._pending.clear()
                    self._lag.notify_all()
                self._fail(self._cas_failure)
                return
            self._store.commit_anchored(newest.number)
            with self._lag:
                self._anchoring = False
                while self._pending and self._pending[0].anchor.generation <= newest.anchor.generation:
                    self._pending.popleft()
                self._lag.notify_all()

    def _is_anchored(self) -> bool:
        """Tell whether the CAS has every state so far; in strict mode, always."""
        with self._lag:
            return not self._pending and not self._anchoring and self._cas_failure is None

    def _drain(self) -> None:
        """Wait until the CAS has every root written so far."""
        with self._lag:
            while (self._pending or self._anchoring) and self._cas_failure is None:
                self._lag.wait()
            if self._cas_failure is not None:
                raise self._cas_failure

    # -- the lease

    def renew(self) -> None:
        """Prolong the lease; an advance does it too.

        Raises:
            LeaseError: Somebody else may write now; the volume is failed.
        """
        lent = self._lent
        if lent is not None:
            if time.clock_gettime(time.CLOCK_BOOTTIME) - lent.lane_contact_ns / 1e9 < _LONG_SILENCE_S / 2:
                return  # every record prolongs it
            self.catch_up()
        try:
            self._lease = self._cas.renew(self._volume_id, self._lease)
        except CasUnreachableError as exc:
            log.warning("the lease could not be renewed, it will be tried again: %s", exc)
        except FspfError as exc:
            self._fail(exc)
            raise
        else:
            self._contact = time.clock_gettime(time.CLOCK_BOOTTIME)

    def _check_lease(self) -> None:
        """Ask whether we may still write, if we have not heard of the CAS for long: we may have slept.

        A stale writer must not reach the disk: its root record would overwrite the next writer's.
        """
        if time.clock_gettime(time.CLOCK_BOOTTIME) - self._contact > _LONG_SILENCE_S:
            self.renew()

    def stop(self) -> None:
        """End the anchoring thread after it has sent what it has."""
        with self._lag:
            self._stopping = True
            self._lag.notify_all()
        if self._anchorer is not None:
            self._anchorer.join()

    def release(self) -> None:
        """End the lease, and the CAS's part in keeping the log.

        Raises:
            OSError: The log could not be made durable: lease and records stay, until the next writer has both.
        """
        self.catch_up()
        if self._keeper is not None and self._log_synced != self.generation:
            self._layout.sync_log()
            self._log_synced = self.generation
            self._keeper.settle(self._volume_id)
        self._cas.release(self._volume_id, self._lease)
