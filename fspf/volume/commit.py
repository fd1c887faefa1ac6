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
from typing import TYPE_CHECKING, Final

from fspf.core.anchor import Anchor
from fspf.core.errors import AnchorMovedError, CasUnreachableError, FspfError, LeaseError
from fspf.core.format import NONCE_LEN, RootRecord
from fspf.core.freshness import FreshnessMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.core.anchor import Cas, CasRecord, Lease
    from fspf.core.types import ContentRoot
    from fspf.volume.layout import Layout
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


@dataclass(frozen=True, slots=True)
class _Pending:
    number: int
    anchor: Anchor
    written_at: float  # monotonic seconds


class Commits:
    """The commits of one writer.

    Args:
        prepare: Called with `everything` and `closing`; flushes and returns what to commit, or None if nothing changed.
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
        state: RootRecord | None,
        keyring_epochs: int,
        store: Store,
        prepare: Callable[[bool, bool], Prepared | None],
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
        self._fail = fail
        self._cas_timeout_s = cas_timeout_s
        self.generation = state.generation if state else 0
        self.root_tag = state.tag if state else bytes(16)
        self.anchor = Anchor(self.generation, self.root_tag)
        self.count = 0
        self._contact = time.clock_gettime(time.CLOCK_BOOTTIME)  # when the CAS last said that the lease is ours
        # Group commit: a caller draws a ticket; one of them leads, and its commit serves all tickets drawn before it began.
        self._turn = threading.Condition()
        self._tickets = 0
        self._served = 0
        self._running = False
        self._failures: deque[tuple[int, int, BaseException]] = deque(maxlen=64)
        # Bounded mode: written roots that the CAS does not have yet.
        self._lag = threading.Condition()
        self._pending: deque[_Pending] = deque()
        self._anchoring = False
        self._anchorer: threading.Thread | None = None
        self._stopping = False
        self._cas_failure: FspfError | None = None

    # -- group commit

    def commit(self, *, everything: bool, closing: bool = False) -> None:
        """Return when all that was done before this call is committed as the freshness mode promises.

        Raises:
            OSError: The host refused a write (ENOSPC: nothing is lost, the next commit tries again).
            FspfError: The volume turned read-only; the message says why.
        """
        with self._turn:
            self._tickets += 1
            mine = self._tickets
            while self._running:
                self._turn.wait()
                if self._served >= mine and not everything and not closing:
                    self._raise_failure_of(mine)
                    return
            self._running = True
            before, serves = self._served, self._tickets
        failure: BaseException | None = None
        try:
            self._commit_once(everything=everything, closing=closing)
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

    def _commit_once(self, *, everything: bool, closing: bool) -> None:
        self._check_lease()
        prepared = self._prepare(everything, closing)
        if prepared is None:
            if closing or everything:
                self._drain()
            return
        try:
            self._store.sync()
            self._check_lease()
            anchor = self._write_root(prepared)
        except BaseException as exc:
            # After a failed sync the host may have dropped what it did not write: nothing may follow this state.
            self._fail(f"generation {self.generation + 1} could not be made durable: {exc}")
            raise
        self.count += 1
        if self._freshness.mode is FreshnessMode.STRICT or closing:
            self._drain()
            self._advance_last(anchor)
            self._store.commit_anchored(prepared.number)
        elif self._freshness.mode is FreshnessMode.BOUNDED:
            self._enqueue(_Pending(prepared.number, anchor, time.monotonic()))
        else:
            self._store.commit_anchored(prepared.number)
            self._enqueue(_Pending(prepared.number, anchor, time.monotonic()))

    def _write_root(self, prepared: Prepared) -> Anchor:
        record = RootRecord(
            volume_id=self._volume_id,
            generation=self.generation + 1,
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
        )
        frame = record.seal_frame(self._key, self._key_version, self._header_bytes, os.urandom(NONCE_LEN))
        self._layout.write_root(record.generation, frame.pack())
        self.generation, self.root_tag = record.generation, frame.tag
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
                while self._pending and self._pending[0].number <= newest.number:
                    self._pending.popleft()
                self._lag.notify_all()

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
        """End the lease."""
        self._cas.release(self._volume_id, self._lease)
