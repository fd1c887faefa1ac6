"""How the records of a CAS look in its store: sealed rows, as bytes.

Where rows are kept and when they change is left to `fspf.cas.embedded`; who may unlock them to `fspf.cas.unlock`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from fspf.cas.rules import State
from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import CasError, FspfError
from fspf.core.freshness import Freshness
from fspf.core.keys import AuthenticationError, SecretKey
from fspf.core.types import VOLUME_ID_LEN

_ID_LABEL: Final = b"fspf cas 1 row id"
_FIXED_LABEL: Final = b"fspf cas 1 fixed"
_STATE_LABEL: Final = b"fspf cas 1 state"
_KEY_LABEL: Final = b"fspf cas 1 volume key"
_RECORD_VERSION: Final = 1
SIV_LEN: Final = 16
_VERSION: Final = struct.Struct("<Q")
_KEY_VERSION: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Fixed:
    """The part of a record that hardly ever changes."""

    name: str
    key: SecretKey


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _from_text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


class Sealer:
    """Seals and opens rows under one master key.

    A row has an id (the volume id, sealed), a fixed part (name, wrapped key) and a state with its version. The state
    names the fixed part that belongs to it by its synthetic IV, and both are bound to the volume id: parts cannot be
    swapped between rows nor combined anew. That a whole row is put back to an earlier one does not show: the
    store is trusted with that (THREATS.md).
    """

    def __init__(self, master: SecretKey) -> None:
        self._id_key = master.derive(_ID_LABEL)
        self._fixed_key = master.derive(_FIXED_LABEL)
        self._state_key = master.derive(_STATE_LABEL)
        self._wrapping_key = master.derive(_KEY_LABEL)
        self._row_ids: dict[bytes, bytes] = {}

    def row_id(self, volume_id: bytes) -> bytes:
        """Return the id of the row of *volume_id*; 32 bytes, always the same."""
        row_id = self._row_ids.get(volume_id)
        if row_id is None:
            row_id = self._row_ids[volume_id] = self._id_key.siv_seal(volume_id, _ID_LABEL)
        return row_id

    def open_row_id(self, row_id: bytes) -> bytes:
        """Return the volume id."""
        try:
            return self._id_key.siv_open(row_id, _ID_LABEL)
        except (AuthenticationError, ValueError):
            raise _damaged("row id", row_id) from None

    def seal_fixed(self, volume_id: bytes, fixed: Fixed, key_version: int) -> bytes:
        """Seal name and key; the key is never in Python's hands."""
        wrapped = self._wrapping_key.wrap(fixed.key, _KEY_LABEL + volume_id + _KEY_VERSION.pack(key_version))
        plain = msgpack.packb((_RECORD_VERSION, _text(fixed.name), wrapped), use_bin_type=True)
        return self._fixed_key.siv_seal(plain, _FIXED_LABEL + volume_id)

    def open_fixed(self, volume_id: bytes, sealed: bytes, key_version: int) -> Fixed:
        """Open name and key."""
        try:
            plain = self._fixed_key.siv_open(sealed, _FIXED_LABEL + volume_id)
            version, name, wrapped = _array(plain)
            _known(version)
            key = self._wrapping_key.unwrap(wrapped, _KEY_LABEL + volume_id + _KEY_VERSION.pack(key_version))
            return Fixed(_from_text(name), key)
        except (AuthenticationError, ValueError, TypeError):
            raise _damaged("key", volume_id) from None

    def seal_state(self, volume_id: bytes, state: State, sealed_fixed: bytes, version: int) -> bytes:
        """Seal the moving part, for row version *version*."""
        lease = state.lease
        elements = (
            _RECORD_VERSION,
            sealed_fixed[:SIV_LEN],
            state.key_version,
            state.anchor.generation,
            state.anchor.root_tag,
            state.epoch,
            str(state.freshness),
            None if lease is None else (lease.epoch, lease.expires_ns, *pack_holder(lease.holder)),
        )
        plain = msgpack.packb(elements, use_bin_type=True)
        return self._state_key.siv_seal(plain, _STATE_LABEL + volume_id + _VERSION.pack(version))

    def state_parts(
        self, volume_id: bytes, state: State, sealed_fixed: bytes
    ) -> tuple[SecretKey, bytes, bytes, bytes, bytes]:
        """Return key and AAD (without the version) of `seal_state`, and its plaintext around what an advance changes.

        That is: before generation and root tag; between them and the time when the lease ends; after it.
        """
        lease = state.lease
        assert lease is not None
        pack = msgpack.Packer(use_bin_type=True).pack
        array = msgpack.Packer().pack_array_header
        before = array(8) + pack(_RECORD_VERSION) + pack(sealed_fixed[:SIV_LEN]) + pack(state.key_version)
        holder = pack_holder(lease.holder)
        between = pack(state.epoch) + pack(str(state.freshness)) + array(2 + len(holder)) + pack(lease.epoch)
        return self._state_key, _STATE_LABEL + volume_id, before, between, b"".join(map(pack, holder))

    def open_state(self, volume_id: bytes, sealed: bytes, sealed_fixed: bytes, version: int) -> State:
        """Open the moving part, and check that *sealed_fixed* belongs to it."""
        try:
            plain = self._state_key.siv_open(sealed, _STATE_LABEL + volume_id + _VERSION.pack(version))
            record_version, fixed_siv, key_version, generation, tag, epoch, freshness, lease = _array(plain)
            _known(record_version)
            if fixed_siv != sealed_fixed[:SIV_LEN]:
                raise _damaged("key", volume_id)
            return State(
                freshness=Freshness.parse(freshness),
                anchor=Anchor(generation, tag),
                epoch=epoch,
                lease=None if lease is None else Lease(lease[0], unpack_holder(lease[2:]), lease[1]),
                key_version=key_version,
            )
        except (AuthenticationError, ValueError, TypeError, struct.error):
            raise _damaged("state", volume_id) from None


def pack_holder(holder: Holder) -> tuple[bytes, bytes, int, int, int, bytes, int]:
    """Turn *holder* into what msgpack takes."""
    host, boot_id, label = _text(holder.host), _text(holder.boot_id), _text(holder.label)
    return (host, boot_id, holder.pid, holder.pid_start, holder.pid_namespace, label, holder.opening)


def unpack_holder(values: tuple[Any, ...]) -> Holder:
    """Turn it back. A lease of version 0.1 does not tell openings apart."""
    host, boot_id, pid, pid_start, pid_namespace, label, *opening = values
    return Holder(_from_text(host), _from_text(boot_id), pid, pid_start, pid_namespace, _from_text(label), *opening)


def to_record(volume_id: bytes, fixed: Fixed, state: State) -> CasRecord:
    """Put the parts together as the Protocol shows them."""
    return CasRecord(
        volume_id=volume_id,
        name=fixed.name,
        key=fixed.key,
        key_version=state.key_version,
        anchor=state.anchor,
        epoch=state.epoch,
        lease=state.lease,
        freshness=state.freshness,
    )


def checked_volume_id(volume_id: bytes) -> bytes:
    """Refuse what is no volume id."""
    if len(volume_id) != VOLUME_ID_LEN:
        raise CasError(f"a volume id has {VOLUME_ID_LEN} bytes, not {len(volume_id)}")
    return volume_id


def _array(plain: bytes) -> tuple[Any, ...]:
    value = msgpack.unpackb(plain, use_list=False, raw=False)
    if not isinstance(value, tuple):
        raise TypeError
    return value


def _known(version: int) -> None:
    if version != _RECORD_VERSION:
        raise CasError(
            f"the CAS has a record of version {version}, this program knows {_RECORD_VERSION}: use a newer fspf"
        )


def _damaged(part: str, volume_id: bytes) -> FspfError:
    return CasError(
        f"the {part} that the CAS keeps for {volume_id.hex()[:32]} was altered or is damaged: restore the CAS file from a backup"
    )
