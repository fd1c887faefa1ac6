"""What members of a board sign, offline, and how it is written down: docs/POLICY.md, approvals.

Which approvals are enough is decided in `access`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from fspf.core.errors import PolicyError
from fspf.policy import keys
from fspf.policy.fields import policy_name_problem

_LABEL: Final = b"fspf policy approval 1\0"
_HASH: Final = re.compile(r"(?:[0-9a-f]{64})?", re.ASCII)
_TYPE: Final = "fspf-policy-approval"
MAX_DOCUMENT: Final = 8 << 10  # bytes
MAX_REASON: Final = 1000  # characters

E = TypeVar("E", bound=StrEnum)


class Action(StrEnum):
    """What is asked for."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    READ = "read"


class Verdict(StrEnum):
    """What a member says to it."""

    APPROVE = "approve"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Statement:
    """One change of one policy. A signature of it is good for nothing else.

    Attributes:
        predecessor: Hash of the version that is there now, "" if there is none.
        policy: Hash of the version that is to be, "" for delete and read.
    """

    action: Action
    name: str
    predecessor: str = ""
    policy: str = ""

    def message(self, verdict: Verdict = Verdict.APPROVE) -> bytes:
        """Return what is signed."""
        members = {**self.members(), "verdict": str(verdict)}
        return _LABEL + json.dumps(members, sort_keys=True, separators=(",", ":")).encode("ascii")

    def members(self) -> dict[str, str]:
        """Return it as members of a JSON object."""
        return {
            "action": str(self.action),
            "name": self.name,
            "policy": self.policy,
            "predecessor": self.predecessor,
        }

    def __str__(self) -> str:
        """Say it for messages."""
        change = [f"to {self.policy[:12]}"] if self.policy else []
        return " ".join(
            [str(self.action), self.name, *([f"from {self.predecessor[:12]}"] if self.predecessor else []), *change]
        )


@dataclass(frozen=True, slots=True)
class Approval:
    """A signed statement: for it or against it."""

    statement: Statement
    public_key: bytes  # SubjectPublicKeyInfo DER
    signature: bytes
    verdict: Verdict = Verdict.APPROVE

    @property
    def key_id(self) -> str:
        """Whose it claims to be."""
        return keys.key_id_of(self.public_key)

    def verify(self, expected: Statement) -> str:
        """Return the signer's key id.

        Raises:
            PolicyError: It is about something else, or the signature is not right.
        """
        if self.statement != expected:
            raise PolicyError(f"an approval of {expected} is expected, this one is of {self.statement}")
        keys.check_signature(self.public_key, self.signature, expected.message(self.verdict))
        return self.key_id

    def members(self) -> dict[str, Any]:
        """Return it as members of a JSON object."""
        return {
            "type": _TYPE,
            "statement": self.statement.members(),
            "verdict": str(self.verdict),
            "public_key": base64.b64encode(self.public_key).decode("ascii"),
            "signature": base64.b64encode(self.signature).decode("ascii"),
        }


def make_approval(statement: Statement, private_key: Any, verdict: Verdict = Verdict.APPROVE) -> Approval:
    """Sign *statement*.

    Raises:
        PolicyError: The key is none that a policy can name.
    """
    signature = keys.sign(private_key, statement.message(verdict))
    return Approval(statement, keys.spki_of(private_key.public_key()), signature, verdict)


def parse_approval(text: bytes) -> Approval:
    """Read what `Approval.members` wrote, as JSON.

    Raises:
        PolicyError: It is no approval.
    """
    return read_approval(read_json(text, "an approval"))


def read_json(text: bytes, what: str) -> Any:
    """Parse a small JSON document.

    Raises:
        PolicyError: It is none.
    """
    if len(text) > MAX_DOCUMENT:
        raise PolicyError(f"{what} has at most {MAX_DOCUMENT} bytes")
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise PolicyError(f"{what} is a JSON document, this is none") from None


def read_approval(members: Any) -> Approval:
    """Read an approval from the members of a JSON object.

    Raises:
        PolicyError: It is none.
    """
    known = {"type", "statement", "verdict", "public_key", "signature"}
    found = _object(members, known, "an approval")
    if found.get("type", _TYPE) != _TYPE:
        raise PolicyError(f"an approval has the type {_TYPE}")
    return Approval(
        read_statement(found.get("statement")),
        _bytes(found, "public_key", keys.MAX_SPKI),
        _bytes(found, "signature", keys.MAX_SIGNATURE),
        _word(found, "verdict", Verdict),
    )


def read_statement(members: Any) -> Statement:
    """Read a statement from the members of a JSON object.

    Raises:
        PolicyError: It is none.
    """
    found = _object(members, {"action", "name", "predecessor", "policy"}, "a statement")
    name, predecessor, policy = (found.get(key, "") for key in ("name", "predecessor", "policy"))
    if not isinstance(name, str) or policy_name_problem(name):
        raise PolicyError("a statement names a policy")
    for value in (predecessor, policy):
        if not isinstance(value, str) or not _HASH.fullmatch(value):
            raise PolicyError("predecessor and policy of a statement are hashes (64 hex digits, lower case) or empty")
    return Statement(_word(found, "action", Action), name, predecessor, policy)


def _object(members: Any, known: set[str], what: str) -> Mapping[str, Any]:
    if not isinstance(members, dict):
        raise PolicyError(f"{what} is a JSON object")
    for key in members:
        if key not in known:
            raise PolicyError(f"{what} has no member {key[:40]!r}; known are {', '.join(sorted(known))}")
    return members


def _word(found: Mapping[str, Any], key: str, of: type[E]) -> E:
    for word in of:
        if word == found.get(key):
            return word
    raise PolicyError(f"{key} is one of {', '.join(of)}")


def _bytes(found: Mapping[str, Any], key: str, longest: int) -> bytes:
    value = found.get(key)
    try:
        data = base64.b64decode(value if isinstance(value, str) else "!", validate=True)
    except (ValueError, binascii.Error):
        raise PolicyError(f"{key} is base64") from None
    if not 0 < len(data) <= longest:
        raise PolicyError(f"{key} has 1 to {longest} bytes")
    return data


def read_answer(body: bytes, statement: Statement, signer: str | None) -> tuple[Verdict, str]:
    """Read what a script answered: its verdict and its reason.

    Args:
        signer: Key id that must have signed it; None: whoever the TLS connection led to is believed.

    Raises:
        PolicyError: It is no answer, or not signed as it should be.
    """
    known = {"verdict", "reason", "public_key", "signature"}
    found = _object(read_json(body, "a script's answer"), known, "a script's answer")
    verdict = _word(found, "verdict", Verdict)
    reason = found.get("reason", "")
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        raise PolicyError(f"reason is a text of at most {MAX_REASON} characters")
    if signer is not None:
        public_key, signature = (
            _bytes(found, "public_key", keys.MAX_SPKI),
            _bytes(found, "signature", keys.MAX_SIGNATURE),
        )
        key_id = Approval(statement, public_key, signature, verdict).verify(statement)
        if key_id != signer:
            raise PolicyError(f"the answer is signed by key {key_id[:16]}, key {signer[:16]} is expected")
    return verdict, reason
