"""A CAS in memory that can be copied: every case starts from the same record.

The decisions are those of the embedded CAS (`fspf.cas.rules`).
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from fspf.cas import rules
from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import UnknownVolumeError, VolumeExistsError
from fspf.core.keys import SecretKey

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Iterable

    from fspf.core.freshness import Freshness


class MemoryCas:
    """Implements `fspf.core.anchor.Cas`. Nobody is ever known to be gone; the clock can be turned."""

    url = "memory:"

    def __init__(self, records: Iterable[CasRecord] = ()) -> None:
        self.records = {record.volume_id: record for record in records}
        self.shift_ns = 0
        self._lock = threading.Lock()

    def copy(self) -> MemoryCas:
        """Return another CAS that knows the same, without leases."""
        return MemoryCas(replace(record, lease=None) for record in self.records.values())

    def _state(self, record: CasRecord) -> rules.State:
        return rules.State(record.freshness, record.anchor, record.epoch, record.lease, record.key_version)

    def _change(
        self, volume_id: bytes, rule: Callable[[rules.State, int], rules.State], key: SecretKey | None = None
    ) -> rules.State:
        with self._lock:
            record = self._record(volume_id)
            state = rule(self._state(record), time.time_ns() + self.shift_ns)
            self.records[volume_id] = CasRecord(
                volume_id,
                record.name,
                record.key if key is None else key,
                state.key_version,
                state.anchor,
                state.epoch,
                state.lease,
                state.freshness,
            )
        return state

    def _record(self, volume_id: bytes) -> CasRecord:
        try:
            return self.records[volume_id]
        except KeyError:
            raise UnknownVolumeError(f"no record of volume {volume_id.hex()}") from None

    def create(self, volume_id: bytes, name: str, freshness: Freshness) -> CasRecord:
        with self._lock:
            if volume_id in self.records:
                raise VolumeExistsError("there is a record already")
            record = CasRecord(volume_id, name, SecretKey.generate(), 1, Anchor(0, bytes(16)), 0, None, freshness)
            self.records[volume_id] = record
        return record

    def fetch(self, volume_id: bytes) -> CasRecord:
        with self._lock:
            return self._record(volume_id)

    def list(self) -> builtins.list[CasRecord]:
        return sorted(self.records.values(), key=lambda record: record.name)

    def acquire(
        self, volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        lease = self._change(
            volume_id,
            lambda state, now: rules.acquire(
                state,
                expected=expected,
                expected_epoch=expected_epoch,
                adopt=adopt,
                holder=holder,
                now_ns=now,
                is_gone=lambda _: False,
            ),
        ).lease
        assert lease is not None
        return lease

    def renew(self, volume_id: bytes, lease: Lease) -> Lease:
        renewed = self._change(volume_id, lambda state, now: rules.renew(state, lease, now_ns=now)).lease
        assert renewed is not None
        return renewed

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        self._change(volume_id, lambda state, now: rules.advance(state, lease, expected, new, now_ns=now))

    def release(self, volume_id: bytes, lease: Lease) -> None:
        self._change(volume_id, lambda state, _: rules.release(state, lease))

    def rekey(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, key: SecretKey) -> None:
        self._change(volume_id, lambda state, now: rules.rekey(state, lease, expected, new, now_ns=now), key)

    def set_freshness(self, volume_id: bytes, freshness: Freshness) -> None:
        self._change(volume_id, lambda state, _: rules.set_freshness(state, freshness))

    def remove(self, volume_id: bytes) -> None:
        with self._lock:
            self._record(volume_id)
            del self.records[volume_id]

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""
