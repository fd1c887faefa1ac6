"""A CAS in memory for tests: the embedded CAS's rules without its file, to be looked into, snapshot and made to fail.

What is granted is decided by `fspf.cas.rules`, as everywhere.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from fspf.cas import rules
from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import UnknownVolumeError, VolumeExistsError
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey

_WRAPPER: Final = b"\x5a" * 32  # test keys need no protection, but `SecretKey` gives its bytes to nobody
_AAD: Final = b"tests/fault/memcas"

Hook = Callable[[str], None]


@dataclass(slots=True)
class _Row:
    name: str
    key: SecretKey
    state: rules.State


class MemoryCas:
    """Implements `fspf.core.anchor.Cas`.

    Attributes:
        before, after: Called with the method's name around each change; what they raise, the caller gets: then
            the change did not happen (before) or did (after).
        calls: Names of all methods called.
    """

    def __init__(self, snapshot: bytes | None = None) -> None:
        """Start empty, or with a snapshot, whose leases are those of dead writers."""
        self.before: Hook = _nothing
        self.after: Hook = _nothing
        self.calls: list[str] = []
        self._rows: dict[bytes, _Row] = {}
        self._lock = threading.RLock()
        if snapshot is None:
            return
        wrapper = SecretKey.from_bytes(_WRAPPER)
        for volume_id, name, wrapped, state in pickle.loads(snapshot):
            if state.lease is not None:
                state = replace(state, lease=replace(state.lease, expires_ns=0))  # noqa: PLW2901
            self._rows[volume_id] = _Row(name, wrapper.unwrap(wrapped, _AAD), state)

    def snapshot(self) -> bytes:
        wrapper = SecretKey.from_bytes(_WRAPPER)
        with self._lock:
            rows = [(i, row.name, wrapper.wrap(row.key, _AAD), row.state) for i, row in self._rows.items()]
        return pickle.dumps(rows)

    @property
    def url(self) -> str:
        return "memory:"

    def _row(self, volume_id: bytes) -> _Row:
        if volume_id not in self._rows:
            raise UnknownVolumeError(f"no volume {volume_id.hex()}")
        return self._rows[volume_id]

    def _change(self, what: str, volume_id: bytes, rule: Callable[[rules.State], rules.State]) -> _Row:
        with self._lock:
            self.calls.append(what)
            self.before(what)
            row = self._row(volume_id)
            row.state = rule(row.state)
            self.after(what)
            return row

    def _record(self, volume_id: bytes) -> CasRecord:
        row = self._row(volume_id)
        state = row.state
        return CasRecord(
            volume_id, row.name, row.key, state.key_version, state.anchor, state.epoch, state.lease, state.freshness
        )

    def create(self, volume_id: bytes, name: str, freshness: Freshness) -> CasRecord:
        with self._lock:
            self.calls.append("create")
            self.before("create")
            if volume_id in self._rows:
                raise VolumeExistsError("there is one")
            self._rows[volume_id] = _Row(name, SecretKey.generate(), rules.State(freshness))
            self.after("create")
            return self._record(volume_id)

    def fetch(self, volume_id: bytes) -> CasRecord:
        with self._lock:
            self.calls.append("fetch")
            self.before("fetch")
            return self._record(volume_id)

    def list(self) -> list[CasRecord]:
        with self._lock:
            return [self._record(volume_id) for volume_id in self._rows]

    def acquire(
        self, volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        def rule(state: rules.State) -> rules.State:
            return rules.acquire(
                state,
                expected=expected,
                expected_epoch=expected_epoch,
                adopt=adopt,
                holder=holder,
                now_ns=time.time_ns(),
                is_gone=lambda _: False,
            )

        lease = self._change("acquire", volume_id, rule).state.lease
        assert lease is not None
        return lease

    def renew(self, volume_id: bytes, lease: Lease) -> Lease:
        row = self._change("renew", volume_id, lambda s: rules.renew(s, lease, now_ns=time.time_ns()))
        assert row.state.lease is not None
        return row.state.lease

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        self._change("advance", volume_id, lambda s: rules.advance(s, lease, expected, new, now_ns=time.time_ns()))

    def release(self, volume_id: bytes, lease: Lease) -> None:
        self._change("release", volume_id, lambda s: rules.release(s, lease))

    def rekey(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, key: SecretKey) -> None:
        def rule(state: rules.State) -> rules.State:
            changed = rules.rekey(state, lease, expected, new, now_ns=time.time_ns())
            self._row(volume_id).key = key
            return changed

        self._change("rekey", volume_id, rule)

    def set_freshness(self, volume_id: bytes, freshness: Freshness) -> None:
        self._change("set_freshness", volume_id, lambda s: rules.set_freshness(s, freshness))

    def remove(self, volume_id: bytes) -> None:
        with self._lock:
            self.calls.append("remove")
            self.before("remove")
            self._row(volume_id)
            del self._rows[volume_id]
            self.after("remove")

    def close(self) -> None:
        """Keep everything: the next opening finds it."""

    # -- for tests

    def anchor(self, volume_id: bytes) -> Anchor:
        return self._row(volume_id).state.anchor

    def expire_leases(self) -> None:
        """Let time pass until every writer counts as gone."""
        with self._lock:
            for row in self._rows.values():
                if row.state.lease is not None:
                    row.state = replace(row.state, lease=replace(row.state.lease, expires_ns=0))


class KeepingCas(MemoryCas):
    """Keeps records of the intent log as well: few, so that it is soon full, and none longer than it must."""

    MOST: Final = 5
    MAX_LEN: Final = 32 << 10

    def __init__(self, snapshot: bytes | None = None) -> None:
        """Start empty, or with a snapshot."""
        self._kept: list[tuple[int, bytes]] = []  # (generation, record), of the one volume
        rows = None
        if snapshot is not None:
            rows, self._kept = pickle.loads(snapshot)
        super().__init__(rows)

    def snapshot(self) -> bytes:
        with self._lock:
            return pickle.dumps((super().snapshot(), self._kept))

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        with self._lock:
            self._kept = []
            super().advance(volume_id, lease, expected, new)

    def advance_with(
        self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, *, record: bytes, synced: int
    ) -> bool:
        def rule(state: rules.State) -> rules.State:
            changed = rules.advance(state, lease, expected, new, now_ns=time.time_ns())
            self._kept = [*self._kept, (new.generation, record)]
            return changed

        with self._lock:
            self._kept = [each for each in self._kept if each[0] > synced]
            if len(self._kept) >= self.MOST or len(record) > self.MAX_LEN:
                return False
            self._change("advance", volume_id, rule)
            return True

    def kept_records(self, volume_id: bytes) -> list[bytes]:
        with self._lock:
            self._row(volume_id)
            return [record for _, record in self._kept]

    def settle(self, volume_id: bytes) -> None:
        with self._lock:
            self._row(volume_id)
            self._kept = []


def of_snapshot(snapshot: bytes) -> MemoryCas:
    """Return the CAS that a snapshot was taken of."""
    return (KeepingCas if isinstance(pickle.loads(snapshot), tuple) else MemoryCas)(snapshot)


def _nothing(_: str) -> None:
    pass
