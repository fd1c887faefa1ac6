"""Volumes of a CAS server: the Protocol of `fspf.core.anchor` over a `Store`, for principals.

What is granted is decided in `rules`, how values are sealed in the store given; requests are left to `service`.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgpack

from fspf.cas import rules
from fspf.cas.rules import State
from fspf.cas.sealing import pack_holder, unpack_holder
from fspf.cas.store import ABSENT, Compare, Entry, Put, Store
from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import (
    AccessDeniedError,
    CasError,
    ConflictError,
    FspfError,
    UnknownVolumeError,
    VolumeExistsError,
)
from fspf.core.freshness import Freshness, FreshnessMode
from fspf.core.keys import AuthenticationError, SecretKey
from fspf.policy.model import UpdatePolicy

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable, Sequence

    from fspf.cas.policy_links import VolumeAccess
    from fspf.cas.policy_ports import Change
    from fspf.policy.model import Restore
    from fspf.policy.principal import Principal

_WRAP_LABEL: Final = b"fspf cas server 1 volume key"
_VALUE_VERSION: Final = 1
_KEY_VERSION: Final = struct.Struct("<I")
_MAX_KNOWN: Final = 8192  # rows
_MAX_TRIES: Final = 64  # of one change, while others change the same volume


@dataclass(frozen=True, slots=True)
class Row:
    """What is stored of one volume."""

    name: str
    owner: str  # as `Principal.owner` writes it
    wrapped_key: bytes
    state: State


def nobody_is_gone(_holder: Holder) -> bool:
    """Know nothing of processes on other machines: their leases end by time, or when they are given back."""
    return False


class Volumes:
    """All volumes of one store.

    Several processes may do this on one store: what is remembered here only saves reads, since every change compares.

    Args:
        store: Seals what it stores.
        master: Key of the CAS; wraps the volumes' keys.
        clock: UTC ns since 1970; dates leases.
        is_gone: Whether a lease's holder certainly no longer runs; for tests.
        access: What an attested service may do with a volume; None: there are no services.
        policy_key: Returns the key that a policy gives a volume; None: the CAS makes it.
    """

    def __init__(
        self,
        store: Store,
        master: SecretKey,
        clock: Callable[[], int],
        *,
        is_gone: Callable[[Holder], bool] = nobody_is_gone,
        access: Callable[[Principal, bytes], Awaitable[VolumeAccess]] | None = None,
        policy_key: Callable[[VolumeAccess], Awaitable[SecretKey | None]] | None = None,
    ) -> None:
        self._store = store
        self._wrapping_key = master.derive(_WRAP_LABEL)
        self._clock = clock
        self._is_gone = is_gone
        self._access = access
        self._policy_key = policy_key
        self._known: OrderedDict[bytes, tuple[int, Row]] = OrderedDict()

    # -- the Protocol

    async def create(self, principal: Principal, volume_id: bytes, name: str, freshness: Freshness) -> CasRecord:
        """Make a key and a record for a new volume, which belongs to *principal*, or to the policy that names it.

        Raises:
            VolumeExistsError: There is a record with this id.
            AccessDeniedError: A service makes only volumes that its policy names.
        """
        owner, key = principal.owner, None
        if principal.policy:
            assert self._access is not None
            access = await self._access(principal, volume_id)
            _check_usable(access)
            owner, freshness = f"policy:{access.policy}", access.freshness or freshness
            key = None if self._policy_key is None else await self._policy_key(access)
        key = key or SecretKey.generate()
        state = State(freshness)
        row = Row(name, owner, self._wrap(volume_id, key, state.key_version), state)
        await self._insert([(volume_id, row)])
        return self._to_record(volume_id, row, key)

    async def fetch(self, principal: Principal, volume_id: bytes) -> CasRecord:
        """Return the record."""
        _, row = await self._read(principal, volume_id)
        return self._to_record(volume_id, row)

    async def list(self, principal: Principal) -> builtins.list[CasRecord]:
        """Return all records of *principal*, by name."""
        records = []
        for owner in _owners(principal):
            prefix = _index_prefix(owner)
            for key, _ in await self._store.list(prefix):
                volume_id = bytes.fromhex(key[len(prefix) :])
                try:
                    records.append(await self.fetch(principal, volume_id))
                except UnknownVolumeError:
                    continue  # removed since
        return sorted(records, key=lambda record: (record.name, record.volume_id))

    async def acquire(
        self,
        principal: Principal,
        volume_id: bytes,
        *,
        expected: Anchor,
        expected_epoch: int,
        adopt: Anchor,
        holder: Holder,
    ) -> Lease:
        """Grant the right to write and make *adopt* the anchor."""

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

        lease = (await self._change(principal, volume_id, rule)).lease
        assert lease is not None
        return lease

    async def renew(self, principal: Principal, volume_id: bytes, lease: Lease) -> Lease:
        """Prolong *lease*."""
        changed = await self._change(
            principal, volume_id, lambda state: rules.renew(state, lease, now_ns=self._clock())
        )
        assert changed.lease is not None
        return changed.lease

    async def advance(
        self, principal: Principal, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor
    ) -> tuple[Lease, FreshnessMode]:
        """Move the anchor from *expected* to *new*; return the lease, which is renewed, and the volume's mode."""
        changed = await self._change(
            principal, volume_id, lambda state: rules.advance(state, lease, expected, new, now_ns=self._clock())
        )
        assert changed.lease is not None
        return changed.lease, changed.freshness.mode

    async def release(self, principal: Principal, volume_id: bytes, lease: Lease) -> None:
        """End *lease*. Idempotent; the lease of another is left alone."""
        await self._change(principal, volume_id, lambda state: rules.release(state, lease))

    async def rekey(
        self, principal: Principal, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, key: SecretKey
    ) -> None:
        """Replace the volume key, count its version up and move the anchor."""
        await self._change(
            principal,
            volume_id,
            lambda state: rules.rekey(state, lease, expected, new, now_ns=self._clock()),
            new_key=key,
        )

    async def set_freshness(self, principal: Principal, volume_id: bytes, freshness: Freshness) -> None:
        """Change the freshness mode."""
        await self._change(principal, volume_id, lambda state: rules.set_freshness(state, freshness))

    async def remove(self, principal: Principal, volume_id: bytes) -> None:
        """Forget the volume, and its key with it."""
        for _ in range(_MAX_TRIES):
            revision, row = await self._read(principal, volume_id)
            if row.owner.startswith("policy:"):
                raise AccessDeniedError("a policy's volume goes with its policy: it is not removed alone")
            key = _key(volume_id)
            put = [Put(key, None), Put(_index_prefix(row.owner) + volume_id.hex(), None)]
            self._known.pop(volume_id, None)
            if await self._store.transact([Compare(key, revision)], put) is not None:
                return
        raise _contended(volume_id)

    async def import_records(self, principal: Principal, records: Sequence[CasRecord], *, override: bool) -> None:
        """Take over *records*, all or none; they belong to *principal*.

        Raises:
            FspfError: As `fspf.cas.rules.merge` says.
        """
        for _ in range(_MAX_TRIES):
            compare, put = [], []
            for record in records:
                entry = await self._store.get(_key(record.volume_id))
                row = None if entry is None else self._unpack(record.volume_id, entry)
                if row is not None:
                    await self._check_access(principal, record.volume_id, row)
                compare.append(Compare(_key(record.volume_id), ABSENT if entry is None else entry.revision))
                put += self._merged(principal, record, row, override=override)
            if await self._store.transact(compare, put) is not None:
                return
        raise ConflictError("the volumes were changed by others all the time: nothing was imported")

    def _merged(
        self, principal: Principal, record: CasRecord, row: Row | None, *, override: bool
    ) -> builtins.list[Put]:
        incoming = State(record.freshness, record.anchor, record.epoch, record.lease, record.key_version)
        same_key = (
            row is not None
            and row.state.key_version == record.key_version
            and self._unwrap(record.volume_id, row) == record.key
        )
        state = rules.merge(
            None if row is None else row.state,
            incoming,
            same_key=same_key,
            override=override,
            now_ns=self._clock(),
            is_gone=self._is_gone,
        )
        owner = principal.owner if row is None else row.owner
        wrapped = self._wrap(record.volume_id, record.key, record.key_version)
        self._known.pop(record.volume_id, None)
        return _puts(record.volume_id, Row(record.name, owner, wrapped, state))

    async def restore(self, volume_id: bytes, statement: Restore) -> Change:
        """Return what must hold and what is to be put for an older state to be the newest again.

        Raises:
            UnknownVolumeError: There is no such volume.
            CasError: As `fspf.cas.rules.restore` says.
        """
        entry = await self._store.get(_key(volume_id))
        if entry is None:
            raise unknown(volume_id)
        row = self._unpack(volume_id, entry)
        old = Anchor(statement.generation, statement.tag)
        state = rules.restore(row.state, old, statement.epoch, now_ns=self._clock(), is_gone=self._is_gone)
        self._known.pop(volume_id, None)
        key = _key(volume_id)
        return [Compare(key, entry.revision)], [Put(key, pack_row(replace(row, state=state)))]

    # -- rows

    async def _insert(self, rows: Sequence[tuple[bytes, Row]]) -> None:
        compare = [Compare(_key(volume_id), ABSENT) for volume_id, _ in rows]
        put = [put for volume_id, row in rows for put in _puts(volume_id, row)]
        if await self._store.transact(compare, put) is None:
            raise VolumeExistsError(f"the CAS has a record of volume {rows[0][0].hex()} already")

    async def _read(self, principal: Principal, volume_id: bytes) -> tuple[int, Row]:
        entry = await self._store.get(_key(volume_id))
        if entry is None:
            self._known.pop(volume_id, None)
            raise unknown(volume_id)
        row = self._unpack(volume_id, entry)
        await self._check_access(principal, volume_id, row)
        self._remember(volume_id, entry.revision, row)
        return entry.revision, row

    async def _check_access(self, principal: Principal, volume_id: bytes, row: Row) -> None:
        """Let only the owner go on, or a service whose policy names the volume. Others are not told that there is one."""
        if row.owner.startswith("policy:"):
            if principal.policy and self._access is not None:
                try:
                    access = await self._access(principal, volume_id)
                except AccessDeniedError:
                    raise unknown(volume_id) from None
                _check_usable(access)
                if row.owner == f"policy:{access.policy}":
                    return
            raise unknown(volume_id)
        if not principal.is_owner(row.owner):
            raise unknown(volume_id)

    async def _change(
        self,
        principal: Principal,
        volume_id: bytes,
        rule: Callable[[State], State],
        new_key: SecretKey | None = None,
    ) -> State:
        """Replace the state of one volume by what *rule* makes of it, in one transaction."""
        for _ in range(_MAX_TRIES):
            revision, row, changed = await self._apply(principal, volume_id, rule)
            if changed is row.state:
                return changed
            wrapped = row.wrapped_key
            if new_key is not None:
                wrapped = self._wrap(volume_id, new_key, changed.key_version)
            new_row = replace(row, state=changed, wrapped_key=wrapped)
            key = _key(volume_id)
            self._known.pop(volume_id, None)
            done = await self._store.transact([Compare(key, revision)], [Put(key, pack_row(new_row))])
            if done is not None:
                self._remember(volume_id, done, new_row)
                return changed
        raise _contended(volume_id)

    async def _apply(
        self, principal: Principal, volume_id: bytes, rule: Callable[[State], State]
    ) -> tuple[int, Row, State]:
        """Return the row, its revision and what *rule* makes of its state. A refusal is always of what is stored now."""
        known = self._known.get(volume_id)
        if known is not None:
            revision, row = known
            try:
                await self._check_access(principal, volume_id, row)
                changed = rule(row.state)
            except FspfError:
                pass  # somebody else may have changed it: the store says what is
            else:
                if changed is not row.state:
                    return revision, row, changed
        revision, row = await self._read(principal, volume_id)
        return revision, row, rule(row.state)

    def _remember(self, volume_id: bytes, revision: int, row: Row) -> None:
        self._known[volume_id] = (revision, row)
        self._known.move_to_end(volume_id)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)

    def _wrap(self, volume_id: bytes, key: SecretKey, key_version: int) -> bytes:
        return self._wrapping_key.wrap(key, _WRAP_LABEL + volume_id + _KEY_VERSION.pack(key_version))

    def _unwrap(self, volume_id: bytes, row: Row) -> SecretKey:
        try:
            return self._wrapping_key.unwrap(
                row.wrapped_key, _WRAP_LABEL + volume_id + _KEY_VERSION.pack(row.state.key_version)
            )
        except (AuthenticationError, ValueError):
            raise _damaged(volume_id) from None

    def _unpack(self, volume_id: bytes, entry: Entry) -> Row:
        try:
            return unpack_row(entry.value)
        except (ValueError, TypeError, FspfError):
            raise _damaged(volume_id) from None

    def _to_record(self, volume_id: bytes, row: Row, key: SecretKey | None = None) -> CasRecord:
        state = row.state
        return CasRecord(
            volume_id=volume_id,
            name=row.name,
            key=key or self._unwrap(volume_id, row),
            key_version=state.key_version,
            anchor=state.anchor,
            epoch=state.epoch,
            lease=state.lease,
            freshness=state.freshness,
        )


def pack_row(row: Row) -> bytes:
    """Encode a row."""
    state, lease = row.state, row.state.lease
    elements = (
        _VALUE_VERSION,
        row.name.encode("utf-8", "surrogateescape"),
        row.owner,
        row.wrapped_key,
        state.key_version,
        state.anchor.generation,
        state.anchor.root_tag,
        state.epoch,
        str(state.freshness),
        None if lease is None else (lease.epoch, lease.expires_ns, *pack_holder(lease.holder)),
    )
    packed: bytes = msgpack.packb(elements, use_bin_type=True)
    return packed


def unpack_row(value: bytes) -> Row:
    """Decode a row; ValueError or TypeError if it is none."""
    elements: Any = msgpack.unpackb(value, use_list=False, raw=False)
    version, name, owner, wrapped, key_version, generation, tag, epoch, freshness, lease = elements
    if version != _VALUE_VERSION:
        raise CasError(f"the store has a record of version {version}, this program knows {_VALUE_VERSION}")
    state = State(
        freshness=Freshness.parse(freshness),
        anchor=Anchor(generation, tag),
        epoch=epoch,
        lease=None if lease is None else Lease(lease[0], unpack_holder(lease[2:]), lease[1]),
        key_version=key_version,
    )
    return Row(name.decode("utf-8", "surrogateescape"), owner, wrapped, state)


def _check_usable(access: VolumeAccess) -> None:
    """Refuse what this server cannot do yet.

    Raises:
        AccessDeniedError: It is a main volume, one with an initial state, or one whose writes are to be dropped.
    """
    if access.main or access.initial_tag is not None or access.update_policy is UpdatePolicy.EPHEMERAL:
        raise AccessDeniedError(
            f"volume {access.local_name}: main volumes, initial tags and ephemeral volumes are for `fspf run`, which this version lacks"
        )


def _key(volume_id: bytes) -> str:
    return f"volume/{volume_id.hex()}"


def _index_prefix(owner: str) -> str:
    return f"volume-of/{hashlib.sha256(owner.encode()).hexdigest()[:32]}/"


def _puts(volume_id: bytes, row: Row) -> list[Put]:
    return [Put(_key(volume_id), pack_row(row)), Put(_index_prefix(row.owner) + volume_id.hex(), b"1")]


def _owners(principal: Principal) -> list[str]:
    owners = [f"key:{key}" for key in sorted(principal.keys)]
    return [*owners, f"policy:{principal.policy}"] if principal.policy else owners


def unknown(volume_id: bytes) -> UnknownVolumeError:
    """Say that there is no such volume, or none for the one who asks."""
    return UnknownVolumeError(
        f"the CAS has no volume {volume_id.hex()} for this client: name the right CAS with --cas, and who you are with --cas-identity"
    )


def _contended(volume_id: bytes) -> FspfError:
    return ConflictError(f"volume {volume_id.hex()} was changed by others all the time: nothing was done")


def _damaged(volume_id: bytes) -> FspfError:
    return CasError(f"what the CAS keeps for volume {volume_id.hex()} was altered or is damaged")
