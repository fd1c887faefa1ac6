"""The embedded CAS: records in one sealed SQLite file on trusted storage; no server needed.

What is granted is decided in `fspf.cas.rules`, how rows are sealed in `fspf.cas.sealing`; files and transactions are left
to `fspf.cas.file`.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fspf.cas import rules
from fspf.cas.file import BUSY_TIMEOUT_S, CasFile
from fspf.cas.hot import HotFile, Ring, Version, read_hot, read_newest
from fspf.cas.liveness import holder_is_gone
from fspf.cas.sealing import Fixed, Sealer, checked_volume_id, to_record
from fspf.core.anchor import LentRing
from fspf.core.errors import CasUnreachableError, FspfError, UnknownVolumeError, VolumeExistsError
from fspf.core.keys import SecretKey

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterator, Sequence

    import apsw

    from fspf.cas.rules import State
    from fspf.core.anchor import Anchor, CasRecord, Holder, Lease, RingEnd
    from fspf.core.freshness import Freshness


_HOT_AFTER: Final = 4  # advances by one process, after which more are expected soon
_MAX_RECORD_LEN: Final = 128 << 10  # bytes; a larger one the volume keeps by itself


@dataclass(slots=True)
class _Known:
    """A state as this process left it; whether it still is so, is looked at under the hot file's lock."""

    sealer: Sealer
    version: int
    sealed_fixed: bytes
    state: State
    count: int  # of advances that went to the database
    hot: HotFile | None = None  # open as long as it is known
    ring: Ring | None = None
    changes: int = 0  # of the row, counted in the hot file
    pid: int = 0
    lent: Ring | None = None  # in the place of `ring` while somebody else writes into it

    def close(self) -> None:
        if self.hot is not None:
            self.hot.close()


@dataclass(slots=True)
class _Alone:
    """A transaction on one volume's row.

    Attributes:
        hot: The volume's hot file, locked.
        heat: It is made, if it is not there, within the transaction.
        cool: It is removed after it, with whatever records it has.
    """

    connection: apsw.Connection
    hot: HotFile | None
    heat: bool = False
    cool: bool = False


class EmbeddedCas:
    """A CAS in one SQLite file. Implements `fspf.core.anchor.Cas`, `RecordKeeper` and `RingLender`.

    Thread-safe. Each method is one transaction, and one that changes something ends in one fsync.

    Attributes:
        url: ``sqlite:///path``, as `open_cas` reads it.
        path: Absolute path of the file.
    """

    def __init__(
        self,
        path: str,
        *,
        passphrase: Callable[[], bytes] | None = None,
        create: bool = True,
        clock: Callable[[], int] = time.time_ns,
        is_gone: Callable[[Holder], bool] = holder_is_gone,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        vfs: str | None = None,
    ) -> None:
        """Open and unlock the file. If there is none, it is made with the first record.

        Args:
            path: The file; its key file is beside it, with `.key` added.
            passphrase: Asked only if the file is locked with a passphrase.
            create: Whether the file may be made.
            clock: UTC ns since 1970; dates leases.
            is_gone: Whether a lease's holder certainly no longer runs.
            busy_timeout_s: How long to wait for another process.
            vfs: SQLite VFS, for tests that inject faults.

        Raises:
            CasError: There is no file (and none may be made), or it is not a CAS, or damaged.
            CasUnreachableError: The file cannot be read.
            WrongKeyError: Key file or passphrase are missing or wrong.
        """
        self._file = CasFile(path, passphrase=passphrase, create=create, busy_timeout_s=busy_timeout_s, vfs=vfs)
        self.path: Final = self._file.path
        self.url: Final = "sqlite://" + quote(self.path)
        self._clock = clock
        self._is_gone = is_gone
        self._advanced: dict[bytes, _Known] = {}  # rows as the last advance here left them

    def __repr__(self) -> str:
        """Name the file."""
        return f"EmbeddedCas({self.path!r})"

    # -- the Protocol

    def create(self, volume_id: bytes, name: str, freshness: Freshness) -> CasRecord:
        """Make a key and a record for a new volume."""
        checked_volume_id(volume_id)
        with self._file.lock:
            self._file.make()
            with self._file.transaction() as connection:
                sealer = self._file.sealer
                if self._select(connection, volume_id) is not None:
                    raise VolumeExistsError(f"the CAS {self.path} has a record of volume {volume_id.hex()} already")
                fixed = Fixed(name, SecretKey.generate())
                state = rules.State(freshness)
                self._insert(connection, sealer, volume_id, fixed, state)
        return to_record(volume_id, fixed, state)

    def fetch(self, volume_id: bytes) -> CasRecord:
        """Return the record."""
        with self._file.reading() as connection:
            row = self._row(connection, volume_id)
            return self._open_row(volume_id, row)

    def list(self) -> builtins.list[CasRecord]:
        """Return all records, by name."""
        with self._file.lock:
            if not self._file.exists() and self._file.may_create:
                return []
            with self._file.reading() as connection:
                sealer = self._file.sealer
                rows: builtins.list[tuple[Any, ...]] = connection.execute(
                    "SELECT id, version, state, fixed FROM volume"
                ).fetchall()
                records = [
                    self._open_row(sealer.open_row_id(row_id), self._newest(row_id, tuple(row)))
                    for row_id, *row in rows
                ]
        return sorted(records, key=lambda record: (record.name, record.volume_id))

    def acquire(
        self, volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        """Grant the right to write and make *adopt* the anchor, in one transaction."""

        def rule(state: State) -> State:
            return rules.acquire(
                state,
                expected=expected,
                expected_epoch=expected_epoch,
                adopt=adopt,
                holder=holder,
                now_ns=self._clock(),
                is_gone=self._is_gone,
            )

        lease = self._change(volume_id, rule).lease
        assert lease is not None
        return lease

    def renew(self, volume_id: bytes, lease: Lease) -> Lease:
        """Prolong *lease*."""

        def rule(state: State) -> State:
            return rules.renew(state, lease, now_ns=self._clock())

        with self._file.lock:
            known = self._advanced.get(volume_id)
            if known is not None and self._change_known(volume_id, known, rule, 0):
                renewed = known.state.lease
            else:
                renewed = self._change(volume_id, rule).lease
        assert renewed is not None
        return renewed

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        """Move the anchor from *expected* to *new*; also renews the lease."""

        def rule(state: State) -> State:
            return rules.advance(state, lease, expected, new, now_ns=self._clock())

        with self._file.lock:
            known = self._advanced.get(volume_id)
            if known is not None and known.ring is not None:
                known.ring.settle_all()
            if known is not None and self._change_known(volume_id, known, rule, new.generation):
                return
            count = known.count + 1 if known is not None else 1
            self._forget(volume_id)
            self._advanced[volume_id] = self._change_and_keep(volume_id, rule, count)

    def advance_with(
        self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, *, record: bytes, synced: int
    ) -> bool:
        """Move the anchor and keep *record*, as one write; False if there is no room for it, or the volume is not busy."""

        def rule(state: State) -> State:
            return rules.advance(state, lease, expected, new, now_ns=self._clock())

        with self._file.lock:
            known = self._advanced.get(volume_id)
            if known is None or known.ring is None or len(record) > _MAX_RECORD_LEN:
                return False
            known.ring.settle(synced)
            return self._change_known(volume_id, known, rule, new.generation, record)

    def kept_records(self, volume_id: bytes) -> builtins.list[bytes]:
        """Return the records that are kept, oldest first; none if the volume is not busy."""
        with self._file.reading():
            path = self._hot_path(checked_volume_id(volume_id))
            return [version.record for version in read_hot(path) if version.record]

    def settle(self, volume_id: bytes) -> None:
        """The volume itself has all of its records: none needs to be kept."""
        with self._file.lock:
            known = self._advanced.get(volume_id)
            if known is not None and known.ring is not None:
                known.ring.settle_all()
            with self._file.reading(), HotFile.locked(self._hot_path(volume_id)) as hot:
                found = hot.versions() if hot is not None else []
                if hot is not None and found:
                    hot.settle(found[-1][1].number)

    def lend_ring(self, volume_id: bytes) -> LentRing | None:
        """Lend what `advance_with` uses to native code."""
        with self._file.lock:
            known = self._advanced.get(volume_id)
            identity = self._file.identity
            if known is None or known.hot is None or known.ring is None or known.pid != os.getpid() or identity is None:
                return None
            lease = known.state.lease
            if lease is None or self._file.sealer is not known.sealer:
                return None
            known.lent, known.ring = known.ring, None
            length, end, newest, kept = known.lent.lend()
            key, aad, before, between, after = known.sealer.state_parts(volume_id, known.state, known.sealed_fixed)
            return LentRing(
                known.hot.descriptor, length, end, newest, kept, known.changes, known.version,
                key, aad, before, between, after, rules.LEASE_TTL_NS, lease.expires_ns, os.fsencode(self.path), *identity,
            )  # fmt: skip

    def take_ring_back(self, volume_id: bytes, anchor: Anchor | None, end: RingEnd | None) -> None:
        """Go on from what native code has made of it."""
        with self._file.lock:
            known = self._advanced.get(volume_id)
            if known is None or known.lent is None:
                return
            known.ring, known.lent = known.lent, None
            if anchor is not None and end is not None and known.state.lease is not None:
                known.ring.take_back(end.end, end.newest, end.kept)
                known.version = end.version
                lease = replace(known.state.lease, expires_ns=end.expires_ns)
                known.state = replace(known.state, anchor=anchor, lease=lease)

    def _forget(self, volume_id: bytes) -> None:
        with self._file.lock:
            known = self._advanced.pop(volume_id, None)
            if known is not None:
                known.close()

    def _change_known(
        self, volume_id: bytes, known: _Known, rule: Callable[[State], State], generation: int, record: bytes = b""
    ) -> bool:
        """Change the state in the volume's hot file, if it still is what it was here; False: nothing was done.

        An fsync waits for this. Nobody else changes the state meanwhile, for he would need the file's lock.
        """
        hot, ring = known.hot, known.ring
        if hot is None or ring is None or known.pid != os.getpid():  # a forked process has the lock of its parent
            return False
        with self._file.reading(), hot.lock():
            if self._file.sealer is not known.sealer or hot.changes != known.changes:
                return False  # the database was opened anew, its key may be another; or somebody changed the row
            try:
                changed = rule(known.state)
            except FspfError:
                return False  # it will be said by the row itself
            number = known.version + 1
            sealed = known.sealer.seal_state(volume_id, changed, known.sealed_fixed, number)
            version = Version(number, sealed, ring.settled_before(number), record)
            place = ring.place(version.length)
            if place is None:
                return False
            try:
                hot.write(place, version)
            except OSError:
                known.ring = None  # whether it is there, nobody knows
                raise
            ring.written(place, version, generation)
        known.version = number
        known.state = changed
        return True

    def _change_and_keep(self, volume_id: bytes, rule: Callable[[State], State], count: int) -> _Known:
        """Advance in the database, and get ready for more that follow soon: those of a mount's fsyncs."""
        self._change(volume_id, rule, heat=count >= _HOT_AFTER, settle=True)
        with self._file.reading() as connection:
            hot = HotFile.open(self._hot_path(volume_id))
            try:
                with ExitStack() as stack:
                    if hot is not None:
                        stack.enter_context(hot.lock())
                        if hot.is_outdated or not hot.is_at(self._hot_path(volume_id)):
                            hot.close()
                            hot = None
                    # Another may have changed it again: then this is what he made of it.
                    version, sealed_state, sealed_fixed = self._row(connection, volume_id)
                    sealer = self._file.sealer
                    state = sealer.open_state(volume_id, sealed_state, sealed_fixed, version)
                    known = _Known(sealer, version, sealed_fixed, state, count)
                    if hot is not None:
                        hot.note_change()  # to whoever else knows it: entries by us do not count as changes
                        known.hot, known.ring, known.changes, known.pid = hot, Ring(hot), hot.changes, os.getpid()
            except BaseException:
                if hot is not None:
                    hot.close()
                raise
        return known

    def release(self, volume_id: bytes, lease: Lease) -> None:
        """End *lease*. Idempotent; the lease of another is left alone."""
        self._forget(volume_id)
        self._change(volume_id, lambda state: rules.release(state, lease), cool=True)

    def rekey(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, key: SecretKey) -> None:
        """Replace the volume key, count its version up and move the anchor, in one transaction."""
        self._change(
            volume_id, lambda state: rules.rekey(state, lease, expected, new, now_ns=self._clock()), new_key=key
        )

    def set_freshness(self, volume_id: bytes, freshness: Freshness) -> None:
        """Change the freshness mode."""
        self._change(volume_id, lambda state: rules.set_freshness(state, freshness))

    def remove(self, volume_id: bytes) -> None:
        """Forget the volume, and its key with it."""
        with self._alone(volume_id) as alone:
            self._row(alone.connection, volume_id)
            alone.cool = True
            alone.connection.execute("DELETE FROM volume WHERE id = ?", (self._file.sealer.row_id(volume_id),))

    def close(self) -> None:
        """Let go of the file and the master key. Idempotent."""
        with self._file.lock:
            for volume_id in [*self._advanced]:
                self._forget(volume_id)
        self._file.close()

    # -- beyond the Protocol

    def import_records(self, records: Sequence[CasRecord], *, override: bool) -> None:
        """Take over *records*, all or none.

        Raises:
            FspfError: As `fspf.cas.rules.merge` says.
        """
        with self._file.lock, ExitStack() as locks:
            self._file.make()
            with self._file.transaction() as connection:
                sealer = self._file.sealer
                for record in records:
                    volume_id = checked_volume_id(record.volume_id)
                    hot = locks.enter_context(HotFile.locked(self._hot_path(volume_id)))
                    if hot is not None:
                        hot.note_change()
                    row = self._select(connection, volume_id)
                    existing = None if row is None else self._open_row(volume_id, row)
                    state = rules.merge(
                        None if existing is None else _state(existing),
                        _state(record),
                        same_key=existing is not None
                        and (existing.key, existing.key_version) == (record.key, record.key_version),
                        override=override,
                        now_ns=self._clock(),
                        is_gone=self._is_gone,
                    )
                    fixed = Fixed(record.name, record.key)
                    if row is None:
                        self._insert(connection, sealer, volume_id, fixed, state)
                    else:
                        self._update(connection, sealer, volume_id, row, state, fixed)

    def change_passphrase(self, new: bytes | None) -> None:
        """Wrap the master key anew: under the passphrase *new*, or (None) under a fresh key file.

        Raises:
            UsageError: *new* is empty.
        """
        self._file.change_passphrase(new)

    @property
    def has_passphrase(self) -> bool:
        """Whether a passphrase, not a key file, unlocks this CAS."""
        return self._file.has_passphrase

    # -- rows

    def _hot_path(self, volume_id: bytes) -> str:
        return HotFile.path_of(self.path, self._file.sealer.row_id(volume_id))

    @contextlib.contextmanager
    def _alone(self, volume_id: bytes) -> Iterator[_Alone]:
        """Give a connection within a transaction, while nobody changes the volume's state in its hot file either."""
        with ExitStack() as stack:  # its lock is held until the transaction has ended
            with self._file.transaction() as connection:
                path = self._hot_path(volume_id)
                hot = stack.enter_context(HotFile.locked(path))
                if hot is not None:
                    hot.note_change()
                    hot.sync()  # a version that is taken into the row, and the record that came with it
                alone = _Alone(connection, hot)
                yield alone
                if hot is None and alone.heat:
                    stack.enter_context(HotFile.made(path))
            if hot is not None and alone.cool:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _change(
        self,
        volume_id: bytes,
        rule: Callable[[State], State],
        new_key: SecretKey | None = None,
        *,
        heat: bool = False,
        cool: bool = False,
        settle: bool = False,
    ) -> State:
        """Replace the state of one volume by what *rule* makes of it, in one transaction.

        Args:
            heat: Make a hot file if there is none.
            cool: Remove it: the database has everything then. It stays while its records may be needed.
            settle: None of the records so far is needed any more.
        """
        with self._alone(volume_id) as alone:
            connection, hot = alone.connection, alone.hot
            alone.heat = heat
            alone.cool = hot is not None and (hot.is_outdated or (cool and not hot.has_unsettled()))
            sealer = self._file.sealer
            row = self._row(connection, volume_id)
            version, sealed_state, sealed_fixed = row
            state = sealer.open_state(volume_id, sealed_state, sealed_fixed, version)
            changed = rule(state)
            if changed is not state or (alone.cool and version != self._stored_version(connection, volume_id)):
                fixed = None
                if new_key is not None:
                    fixed = Fixed(sealer.open_fixed(volume_id, sealed_fixed, state.key_version).name, new_key)
                self._update(connection, sealer, volume_id, row, changed, fixed)
            if settle and hot is not None:
                hot.settle(version)
        return changed

    def _select(self, connection: apsw.Connection, volume_id: bytes) -> tuple[Any, ...] | None:
        query = "SELECT version, state, fixed FROM volume WHERE id = ?"
        row_id = self._file.sealer.row_id(volume_id)
        row = connection.execute(query, (row_id,)).fetchone()
        return None if row is None else self._newest(row_id, tuple(row))

    def _stored_version(self, connection: apsw.Connection, volume_id: bytes) -> int:
        row_id = self._file.sealer.row_id(volume_id)
        return int(connection.execute("SELECT version FROM volume WHERE id = ?", (row_id,)).get)

    def _newest(self, row_id: bytes, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the row, with the state of its hot file if that is newer."""
        version, _, sealed_fixed = row
        hot = read_newest(HotFile.path_of(self.path, row_id))
        return row if hot is None or hot.number <= version else (hot.number, hot.sealed, sealed_fixed)

    def _row(self, connection: apsw.Connection, volume_id: bytes) -> tuple[Any, ...]:
        row = self._select(connection, checked_volume_id(volume_id))
        if row is None:
            raise self._unknown(volume_id)
        return row

    def _open_row(self, volume_id: bytes, row: tuple[Any, ...]) -> CasRecord:
        version, sealed_state, sealed_fixed = row
        sealer = self._file.sealer
        state = sealer.open_state(volume_id, sealed_state, sealed_fixed, version)
        return to_record(volume_id, sealer.open_fixed(volume_id, sealed_fixed, state.key_version), state)

    @staticmethod
    def _insert(connection: apsw.Connection, sealer: Sealer, volume_id: bytes, fixed: Fixed, state: State) -> None:
        sealed_fixed = sealer.seal_fixed(volume_id, fixed, state.key_version)
        sealed_state = sealer.seal_state(volume_id, state, sealed_fixed, 1)
        values = (sealer.row_id(volume_id), 1, sealed_state, sealed_fixed)
        connection.execute("INSERT INTO volume (id, version, state, fixed) VALUES (?, ?, ?, ?)", values)

    @staticmethod
    def _update(
        connection: apsw.Connection,
        sealer: Sealer,
        volume_id: bytes,
        row: tuple[Any, ...],
        state: State,
        fixed: Fixed | None,
    ) -> None:
        """Store *state* and, if given, *fixed* over *row*."""
        version, _, sealed_fixed = row
        if fixed is not None:
            sealed_fixed = sealer.seal_fixed(volume_id, fixed, state.key_version)
        sealed_state = sealer.seal_state(volume_id, state, sealed_fixed, version + 1)
        if fixed is None:
            query = "UPDATE volume SET version = ?, state = ? WHERE id = ?"
            connection.execute(query, (version + 1, sealed_state, sealer.row_id(volume_id)))
        else:
            query = "UPDATE volume SET version = ?, state = ?, fixed = ? WHERE id = ?"
            connection.execute(query, (version + 1, sealed_state, sealed_fixed, sealer.row_id(volume_id)))

    def _unknown(self, volume_id: bytes) -> UnknownVolumeError:
        return UnknownVolumeError(
            f"the CAS {self.path} does not know volume {volume_id.hex()}: name the right CAS with --cas or FSPF_CAS"
        )


def default_path() -> str:
    """Return where the embedded CAS is unless it is told: in the user's data directory."""
    data = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(data):  # the XDG specification: relative ones are to be ignored
        data = os.path.expanduser("~/.local/share")
    return os.path.join(data, "fspf", "cas.sqlite")


def make_default_directory() -> None:
    """Make the directory of `default_path`, for its owner only."""
    directory = os.path.dirname(default_path())
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as exc:
        raise CasUnreachableError(f"the directory {directory} for the CAS cannot be made: {exc.strerror}") from None


def _state(record: CasRecord) -> State:
    return rules.State(record.freshness, record.anchor, record.epoch, record.lease, record.key_version)
