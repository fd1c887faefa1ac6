"""Recovery of a CAS whose store is older than its counter says: who may approve it, and whether enough have.

What a statement lets in is decided in `fspf.cas.counter`; who the approvers are is sealed under the master key when the CAS is made.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from fspf.attestation import key_id
from fspf.attestation.key import PrivateKey, sign
from fspf.attestation.signatures import check_signature, load_key, spki_of
from fspf.cas.counter import Recovery, recover
from fspf.core.errors import AccessDeniedError, AttestationError, CasError, UsageError
from fspf.core.keys import AuthenticationError, SecretKey

_LABEL: Final = b"fspf cas server 1 recovery"
_VERSION: Final = 1
_MEMBERS: Final = {"stored", "outside", "state", "reason", "public_key", "signature"}


@dataclass(frozen=True, slots=True)
class Approvers:
    """Who may approve a recovery, and how many of them must."""

    needs: int
    keys: tuple[bytes, ...]  # DER SubjectPublicKeyInfo

    def __post_init__(self) -> None:
        """Refuse numbers that nobody could reach."""
        if not 0 < self.needs <= len(set(self.keys)):
            raise UsageError(f"{self.needs} of {len(set(self.keys))} approvers of a recovery cannot be reached")

    def seal(self, master: SecretKey) -> bytes:
        """Return what the directory of the CAS keeps: nobody without the master key can change it."""
        plain = msgpack.packb((_VERSION, self.needs, list(self.keys)), use_bin_type=True)
        return master.derive(_LABEL).siv_seal(plain, _LABEL)

    @classmethod
    def open(cls, sealed: bytes, master: SecretKey) -> Approvers:
        """Read it.

        Raises:
            CasError: It was altered, or belongs to another master key.
        """
        try:
            version, needs, keys = msgpack.unpackb(master.derive(_LABEL).siv_open(sealed, _LABEL))
            if version != _VERSION:
                raise ValueError
            return cls(needs, tuple(keys))
        except (AuthenticationError, ValueError, TypeError):
            raise CasError("who may approve a recovery was altered, or belongs to another CAS") from None


def approve(statement: Recovery, key: PrivateKey) -> str:
    """Return the document in which the holder of *key* approves *statement*."""
    members = {
        "stored": statement.stored,
        "outside": statement.outside,
        "state": statement.fingerprint,
        "reason": statement.reason,
        "public_key": base64.b64encode(spki_of(key.public_key())).decode("ascii"),
        "signature": base64.b64encode(sign(key, statement.signed_bytes())).decode("ascii"),
    }
    return json.dumps(members, indent=2) + "\n"


def approved(documents: Sequence[bytes], approvers: Approvers) -> Recovery:
    """Return the statement that *documents* approve.

    Raises:
        UsageError: They are no approvals, or of different statements.
        AccessDeniedError: Too few approvers have signed.
    """
    parsed = [_parse(document) for document in documents]
    if not parsed:
        raise UsageError("a recovery needs approvals")
    statement = parsed[0][0]
    if any(one != statement for one, _, _ in parsed):
        raise UsageError("the approvals are of different recoveries: sign one and the same")
    return recover(statement, [(spki, signature) for _, spki, signature in parsed], approvers_check(approvers))


def approvers_check(approvers: Approvers) -> Any:
    """Return the function that `fspf.cas.counter.recover` asks."""

    def check(signed: bytes, signatures: object) -> None:
        assert isinstance(signatures, list)
        agreed = set()
        for spki, signature in signatures:
            if spki not in approvers.keys:
                raise AccessDeniedError(f"key {key_id(spki)[:16]} is not one of those who approve a recovery")
            try:
                check_signature(load_key(spki, "public_key"), signature, signed, "signature")
            except AttestationError as exc:
                raise AccessDeniedError(f"the approval of key {key_id(spki)[:16]}: {exc}") from None
            agreed.add(spki)
        if len(agreed) < approvers.needs:
            raise AccessDeniedError(f"{approvers.needs} approvers are needed, {len(agreed)} have signed")

    return check


def _parse(document: bytes) -> tuple[Recovery, bytes, bytes]:
    try:
        members: Any = json.loads(document)
        if not isinstance(members, Mapping) or members.keys() != _MEMBERS:
            raise ValueError
        stored, outside, state, reason = (members[name] for name in ("stored", "outside", "state", "reason"))
        if (
            type(stored) is not int
            or type(outside) is not int
            or not isinstance(state, str)
            or not isinstance(reason, str)
        ):
            raise TypeError
        spki, signature = (base64.b64decode(members[name], validate=True) for name in ("public_key", "signature"))
    except (ValueError, TypeError, RecursionError):
        raise UsageError("an approval of a recovery is what `fspf cas recovery` wrote") from None
    return Recovery(stored, outside, state, reason), spki, signature
