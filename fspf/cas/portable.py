"""Carry records from one CAS to another in one sealed document.

What the receiving CAS makes of them is decided in `fspf.cas.rules.merge`.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

import msgpack

from fspf.cas.sealing import checked_volume_id
from fspf.cas.unlock import SALT_LEN, Argon2
from fspf.core.anchor import Anchor, Cas, CasRecord
from fspf.core.errors import FormatError, FspfError, UnsupportedFormatError, UsageError, WrongKeyError
from fspf.core.freshness import Freshness
from fspf.core.keys import AuthenticationError, SecretKey

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC: Final = b"FSPFCASX"
VERSION: Final = 1
# magic, version, Argon2id memory (KiB), passes, lanes, salt; then the sealed list; then 8 bytes of SHA-256 of all that.
_HEAD: Final = struct.Struct("<8sHIHH16s")
_CHECK_LEN: Final = 8
_LIST_LABEL: Final = b"fspf cas export 1 list"
_KEY_LABEL: Final = b"fspf cas export 1 key"
_KEY_VERSION: Final = struct.Struct("<I")
assert _HEAD.size == 34
assert SALT_LEN == 16

TAKEOVER_ADVICE: Final = (
    "the CAS that imported the records now owns the volumes: remove them from the old one with `fspf cas remove` "
    "before anybody writes, since two CAS that both move an anchor make a fork"
)


@runtime_checkable
class ImportingCas(Protocol):
    """A CAS that can take over records."""

    def import_records(self, records: Sequence[CasRecord], *, override: bool) -> None:
        """Take over *records*, all or none."""


@runtime_checkable
class LockedCas(Protocol):
    """A CAS whose master key a passphrase can lock."""

    def change_passphrase(self, new: bytes | None) -> None:
        """Lock with *new*, or (None) with a key file."""


def can_change_passphrase(cas: Cas) -> bool:
    """Tell whether *cas* has a passphrase of its own."""
    return isinstance(cas, LockedCas)


def change_passphrase(cas: Cas, new: bytes | None) -> None:
    """Lock *cas* with the passphrase *new*, or (None) with a fresh key file beside it; only the master key is wrapped anew.

    Raises:
        UsageError: *new* is empty, or this CAS has no passphrase of its own.
    """
    if not isinstance(cas, LockedCas):
        raise UsageError(f"the CAS {cas.url} has no passphrase that can be changed from here")
    cas.change_passphrase(new)


def export_records(cas: Cas, volume_ids: Sequence[bytes] | None, passphrase: bytes) -> bytes:
    """Write records (all, or those named) into a document that *passphrase* opens. Leases stay behind.

    Raises:
        UnknownVolumeError: A named volume has no record.
        UsageError: The passphrase is empty.
    """
    records = cas.list() if volume_ids is None else [cas.fetch(volume_id) for volume_id in dict.fromkeys(volume_ids)]
    argon2 = Argon2.fresh()
    head = _HEAD.pack(MAGIC, VERSION, argon2.memory_kib, argon2.passes, argon2.lanes, argon2.salt)
    key = argon2.key(passphrase)
    wrapping_key = key.derive(_KEY_LABEL)
    rows = [
        (
            record.volume_id,
            record.name.encode("utf-8", "surrogateescape"),
            record.key_version,
            wrapping_key.wrap(record.key, _key_aad(record.volume_id, record.key_version)),
            record.anchor.generation,
            record.anchor.root_tag,
            record.epoch,
            str(record.freshness),
        )
        for record in records
    ]
    sealed = key.derive(_LIST_LABEL).siv_seal(msgpack.packb(rows, use_bin_type=True), _LIST_LABEL + head)
    body = head + sealed
    return body + hashlib.sha256(body).digest()[:_CHECK_LEN]


def parse_records(data: bytes, passphrase: bytes) -> list[CasRecord]:
    """Open a document that `export_records` wrote.

    Raises:
        FormatError: It is none, or damaged.
        UnsupportedFormatError: It is of a newer version.
        WrongKeyError: The passphrase is wrong.
    """
    body, check = data[:-_CHECK_LEN], data[-_CHECK_LEN:]
    if len(body) < _HEAD.size or body[: len(MAGIC)] != MAGIC:
        raise FormatError("not a document of `fspf cas export`, or cut off at its start")
    if hashlib.sha256(body).digest()[:_CHECK_LEN] != check:
        raise FormatError("the exported document is damaged or cut off: export it again")
    _, version, memory_kib, passes, lanes, salt = _HEAD.unpack_from(body)
    if version != VERSION:
        raise UnsupportedFormatError(
            f"the exported document is of version {version}, this program knows {VERSION}: use a newer fspf"
        )
    key = Argon2(salt, memory_kib, passes, lanes).key(passphrase)
    wrapping_key = key.derive(_KEY_LABEL)
    try:
        plain = key.derive(_LIST_LABEL).siv_open(body[_HEAD.size :], _LIST_LABEL + body[: _HEAD.size])
    except (AuthenticationError, ValueError):
        raise WrongKeyError("wrong passphrase for the exported document") from None
    try:
        return [_record(wrapping_key, row) for row in msgpack.unpackb(plain, use_list=False, raw=False)]
    except (AuthenticationError, ValueError, TypeError, FspfError):
        raise FormatError("the exported document holds no records of this version") from None


def import_records(cas: Cas, data: bytes, passphrase: bytes, *, replace: bool = False) -> list[CasRecord]:
    """Take over the records of an exported document, all or none, and return them. See `TAKEOVER_ADVICE`.

    Args:
        cas: The CAS that will own the volumes.
        data: What `export_records` returned.
        passphrase: What it was sealed with.
        replace: Let a record that is there get another key or an older anchor. Epochs never go back.

    Raises:
        FormatError: *data* is no such document, or damaged.
        WrongKeyError: The passphrase is wrong.
        VolumeExistsError: A volume is there with another key.
        FreshnessError: An anchor would move back or to another history.
        LeaseHeldError: Somebody writes to one of the volumes.
    """
    records = parse_records(data, passphrase)
    if not isinstance(cas, ImportingCas):
        raise UsageError(f"the CAS {cas.url} does not take over records from here")
    cas.import_records(records, override=replace)
    return records


def _record(wrapping_key: SecretKey, row: tuple[bytes, bytes, int, bytes, int, bytes, int, str]) -> CasRecord:
    volume_id, name, key_version, wrapped, generation, tag, epoch, freshness = row
    return CasRecord(
        volume_id=checked_volume_id(volume_id),
        name=name.decode("utf-8", "surrogateescape"),
        key=wrapping_key.unwrap(wrapped, _key_aad(volume_id, key_version)),
        key_version=key_version,
        anchor=Anchor(generation, tag),
        epoch=epoch,
        lease=None,
        freshness=Freshness.parse(freshness),
    )


def _key_aad(volume_id: bytes, key_version: int) -> bytes:
    return _KEY_LABEL + volume_id + _KEY_VERSION.pack(key_version)
