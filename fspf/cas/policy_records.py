"""What the store has of a policy: which keys, and the values under them.

Deciding who may change them is left to `policies`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import msgpack

from fspf.core.errors import CasError, PolicyError
from fspf.policy.approval import MAX_DOCUMENT, Action, Approval, Statement, Verdict

_VERSION: Final = 1
POLICIES: Final = "policy/"  # what all records of policies begin with


@dataclass(frozen=True, slots=True)
class Record:
    """What is there now, under `policy/<name>`.

    Attributes:
        hash: Of the newest version; its text is under `policy-history/<hash>`.
        creator: Identity of whoever created it.
        incarnation: Drawn when it was created: what belongs to a deleted policy never belongs to one of the same name.
        deleted: There is no policy any more, only its history.
        children: How many live policies are directly below it.
        volumes: Ids of its own volumes, 16 bytes each, by name.
    """

    name: str
    hash: str
    creator: str
    incarnation: bytes
    created_ns: int
    updated_ns: int
    deleted: bool = False
    children: int = 0
    volumes: Mapping[str, bytes] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Encode it."""
        return _pack(
            self.name, self.hash, self.creator, self.incarnation, self.created_ns, self.updated_ns, self.deleted,
            self.children, dict(self.volumes),
        )  # fmt: skip

    @classmethod
    def unpack(cls, value: bytes) -> Record:
        """Decode it."""
        return cls(*_unpack(value, 9))


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a policy, under `policy-history/<hash>`; never changes.

    Attributes:
        by: Who made the request.
        agreed: Identities of all who agreed: those who signed, asked in person, or answered as scripts.
        approvals: The signed ones as JSON, for whoever wants to verify them again.
    """

    name: str
    text: bytes
    predecessor: str
    at_ns: int
    by: str
    agreed: tuple[str, ...] = ()
    approvals: tuple[bytes, ...] = ()

    def pack(self) -> bytes:
        """Encode it."""
        return _pack(self.name, self.text, self.predecessor, self.at_ns, self.by, self.agreed, self.approvals)

    @classmethod
    def unpack(cls, value: bytes) -> Version:
        """Decode it."""
        return cls(*_unpack(value, 7))


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change that waits for approvals, under `policy-pending/<name>/<action>-<hash>`.

    Attributes:
        text: The new document; empty for a deletion.
        by: Who proposed it, for people.
        creator: Of a policy that is to be created: identity of whoever proposed it.
        in_person: Identities that agreed by a request of their own.
        approvals: Signed ones, for and against.
        since_ns: When it was proposed: what a veto's time counts from.
    """

    action: Action
    name: str
    predecessor: str
    policy: str
    text: bytes
    by: str
    creator: str
    in_person: frozenset[str]
    approvals: tuple[Approval, ...]
    since_ns: int

    @property
    def statement(self) -> Statement:
        """What is to be signed."""
        return Statement(self.action, self.name, self.predecessor, self.policy)

    def pack(self) -> bytes:
        """Encode it."""
        approvals = [(one.public_key, one.signature, str(one.verdict)) for one in self.approvals]
        return _pack(
            str(self.action), self.name, self.predecessor, self.policy, self.text, self.by, self.creator,
            sorted(self.in_person), approvals, self.since_ns,
        )  # fmt: skip

    @classmethod
    def unpack(cls, value: bytes) -> Proposal:
        """Decode it."""
        action, name, predecessor, policy, text, by, creator, in_person, approvals, since_ns = _unpack(value, 10)
        statement = Statement(Action(action), name, predecessor, policy)
        signed = tuple(Approval(statement, key, signature, Verdict(word)) for key, signature, word in approvals)
        return cls(
            statement.action, name, predecessor, policy, text, by, creator, frozenset(in_person), signed, since_ns
        )


@dataclass(frozen=True, slots=True)
class Belonging:
    """Whose a volume is, under `volume-policy/<id>`.

    Attributes:
        volume: Its name in the policy; "" for a main volume.
        service, instance: Of a main volume.
    """

    policy: str
    incarnation: bytes
    volume: str = ""
    service: str = ""
    instance: str = ""

    def pack(self) -> bytes:
        """Encode it."""
        return _pack(self.policy, self.incarnation, self.volume, self.service, self.instance)

    @classmethod
    def unpack(cls, value: bytes) -> Belonging:
        """Decode it."""
        return cls(*_unpack(value, 5))


@dataclass(frozen=True, slots=True)
class MainVolume:
    """The record of one instance's main volume, under `policy-main/<policy>/<service>/<instance>/<id in its header>`."""

    incarnation: bytes
    record_id: bytes  # of `volume/<id>`: every instance has its own anchor

    def pack(self) -> bytes:
        """Encode it."""
        return _pack(self.incarnation, self.record_id)

    @classmethod
    def unpack(cls, value: bytes) -> MainVolume:
        """Decode it."""
        return cls(*_unpack(value, 2))


def policy_key(name: str) -> str:
    """Return where a policy's record is."""
    return f"{POLICIES}{quote(name, safe='')}"


def history_key(policy_hash: str) -> str:
    """Return where a version is."""
    return f"policy-history/{policy_hash}"


def pending_prefix(name: str) -> str:
    """Return where the proposals about a policy are."""
    return f"policy-pending/{quote(name, safe='')}/"


def pending_key(statement: Statement) -> str:
    """Return where a proposal is."""
    return f"{pending_prefix(statement.name)}{statement.action}-{statement.policy or statement.predecessor}"


def volume_key(volume_id: bytes) -> str:
    """Return where `volumes` keeps a volume's key, anchor and lease; only ever compared here."""
    return f"volume/{volume_id.hex()}"


def belonging_key(volume_id: bytes) -> str:
    """Return where it says whose a volume is."""
    return f"volume-policy/{volume_id.hex()}"


def main_prefix(policy: str, service: str, instance: str) -> str:
    """Return where the records of an instance's main volumes are; what follows is the id in a volume's header."""
    return f"policy-main/{quote(policy, safe='')}/{service}/{quote(instance, safe='')}/"


def approval_json(approval: Approval) -> bytes:
    """Return a signed approval as people keep it."""
    encoded = json.dumps(approval.members(), sort_keys=True).encode("ascii")
    if len(encoded) > MAX_DOCUMENT:
        raise PolicyError("an approval is too long")
    return encoded


def _pack(*elements: Any) -> bytes:
    packed: bytes = msgpack.packb((_VERSION, *elements), use_bin_type=True)
    return packed


def _unpack(value: bytes, count: int) -> tuple[Any, ...]:
    try:
        version, *elements = msgpack.unpackb(value, use_list=False, raw=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        raise CasError("what the CAS keeps of a policy is damaged: restore the store from a backup") from None
    if version != _VERSION or len(elements) != count:
        raise CasError(f"the store has policies of version {version}, this program knows {_VERSION}: use a newer fspf")
    return tuple(elements)
