"""How the values of `fspf.core.anchor` look in JSON, in both directions.

Whether a document has the right shape is checked by `schema` before; sending and receiving is left to server and client.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import UsageError
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey

Members = dict[str, Any]


def to_base64(data: bytes) -> str:
    """Encode bytes that are no identifier."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str, what: str) -> bytes:
    """Decode them.

    Raises:
        UsageError: *text* is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise UsageError(f"{what}: base64 is expected") from None


def checked_text(text: str, what: str) -> str:
    """Return *text* if it can be a name: UTF-8, or bytes of a file name that is none (surrogateescape).

    Raises:
        UsageError: It has other surrogates.
    """
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{what}: lone surrogates are no text") from None
    return text


def anchor_members(anchor: Anchor) -> Members:
    """Write an anchor."""
    return {"generation": anchor.generation, "root_tag": anchor.root_tag.hex()}


def to_anchor(members: Members) -> Anchor:
    """Read one."""
    return Anchor(members["generation"], bytes.fromhex(members["root_tag"]))


def holder_members(holder: Holder) -> Members:
    """Write a holder."""
    return {
        "host": holder.host,
        "boot_id": holder.boot_id,
        "pid": holder.pid,
        "pid_start": holder.pid_start,
        "pid_namespace": holder.pid_namespace,
        "label": holder.label,
        "opening": holder.opening,
    }


def to_holder(members: Members) -> Holder:
    """Read one."""
    for name in ("host", "boot_id", "label"):
        checked_text(members[name], name)
    return Holder(
        host=members["host"],
        boot_id=members["boot_id"],
        pid=members["pid"],
        pid_start=members["pid_start"],
        pid_namespace=members["pid_namespace"],
        label=members["label"],
        opening=members["opening"],
    )


def lease_members(lease: Lease) -> Members:
    """Write a lease."""
    return {"epoch": lease.epoch, "holder": holder_members(lease.holder), "expires_ns": lease.expires_ns}


def to_lease(members: Members) -> Lease:
    """Read one."""
    return Lease(members["epoch"], to_holder(members["holder"]), members["expires_ns"])


@dataclass(frozen=True, slots=True)
class Summary:
    """A record without its key."""

    volume_id: bytes
    name: str
    key_version: int
    anchor: Anchor
    epoch: int
    lease: Lease | None
    freshness: Freshness

    def with_key(self, key: SecretKey) -> CasRecord:
        """Return the record."""
        return CasRecord(
            volume_id=self.volume_id,
            name=self.name,
            key=key,
            key_version=self.key_version,
            anchor=self.anchor,
            epoch=self.epoch,
            lease=self.lease,
            freshness=self.freshness,
        )


def record_members(record: CasRecord | Summary) -> Members:
    """Write a record without its key."""
    return {
        "volume_id": record.volume_id.hex(),
        "name": record.name,
        "key_version": record.key_version,
        "anchor": anchor_members(record.anchor),
        "epoch": record.epoch,
        "lease": None if record.lease is None else lease_members(record.lease),
        "freshness": str(record.freshness),
    }


def to_summary(members: Members) -> Summary:
    """Read one.

    Raises:
        UsageError: Its freshness is none.
    """
    lease = members.get("lease")
    return Summary(
        volume_id=bytes.fromhex(members["volume_id"]),
        name=checked_text(members["name"], "name"),
        key_version=members["key_version"],
        anchor=to_anchor(members["anchor"]),
        epoch=members["epoch"],
        lease=None if lease is None else to_lease(lease),
        freshness=Freshness.parse(members["freshness"]),
    )
