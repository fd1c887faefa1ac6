"""The audit log's format: one line of JSON per event, each naming the hash of the line before, signed batch by batch.

Checking a whole log is left to `fspf.core.audit_check`, writing and storing one to `fspf.cas.audit`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fspf.core.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# AUDIT.md 1
_GENESIS_LABEL: Final = b"fspf audit 1 chain\0"
_LINE_LABEL: Final = b"fspf audit 1 line\0"
_SIGNATURE_LABEL: Final = b"fspf audit 1 signature\0"
CHAIN_LEN: Final = 32  # hex digits
HASH_LEN: Final = 64  # hex digits
SIGNATURE_LEN: Final = 128  # hex digits, Ed25519
MAX_LINE_LEN: Final = 1 << 16  # bytes, without the line feed
MAX_TEXT_LEN: Final = 1024  # characters of one text; what strangers send gets no further
MAX_ITEMS: Final = 128  # of one list or object within a line
_MAX_DEPTH: Final = 4
_HEAD: Final = ("chain", "number", "time_ns", "kind")
_TAIL: Final = ("previous", "hash", "signature")
_ROOM: Final = 1024  # bytes of a line that are not its fields
RESERVED: Final = frozenset(_HEAD + _TAIL)
_KIND: Final = re.compile(r"[a-z][a-z0-9-]{0,63}", re.ASCII)
_FIELD: Final = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)

# Every kind of event, as AUDIT.md 2 explains it.
KINDS: Final[Mapping[str, str]] = {
    "start": "a CAS process began; names the heads of all other chains and the key that signs",
    "stop": "it ended in order; nothing follows in this chain",
    "policy-create": "a policy came into being; who agreed",
    "policy-update": "a policy replaced its predecessor; who agreed",
    "policy-delete": "a policy ended, and its tokens with it; who agreed",
    "policy-proposal": "a change waits for approvals",
    "policy-approval": "somebody approved a change, or said no",
    "policy-script": "a board's script was asked, and what it said",
    "policy-refused": "somebody asked for a change that the policy's rules do not allow",
    "secrets-rotated": "named secrets of a policy got new values",
    "attestation-granted": "evidence was accepted and a token given out",
    "attestation-refused": "evidence was refused; the reason is in the line",
    "configuration-released": "an attested service got its configuration; the names of its secrets are in the line",
    "request-refused": "a request was refused before it was looked at: replay, stolen or expired token, no right",
    "key-released": "a volume key was given, wrapped, to a holder",
    "volume-created": "a volume got its key and record",
    "volume-rekeyed": "a volume got another key",
    "volume-removed": "a volume's record and key were forgotten",
    "freshness-changed": "a volume's freshness mode was changed",
    "lease-granted": "somebody may write; names the anchor that was found and adopted",
    "lease-refused": "somebody may not write",
    "lease-taken-over": "an expired lease was given to another",
    "lease-released": "a writer closed the volume",
    "anchors": "a summary: which anchors moved, from where to where, how often",
    "anchor-refused": "an advance that does not follow from the anchor, or without the lease",
    "volume-restore": "a board-approved statement made an older state the newest again",
    "recovery": "the store was accepted again although its counter said otherwise",
    "sink-lost": "lines could not be written where they belong; the store keeps them",
    "sink-back": "they could be again, and the kept lines were",
}


class Record(NamedTuple):
    """One event, before it has its place in a chain."""

    kind: str
    time_ns: int  # UTC, by the clock of the CAS
    fields: Mapping[str, Any]


class Head(NamedTuple):
    """How far a chain has come."""

    number: int
    hash: str  # 64 hex digits


@dataclass(frozen=True, slots=True)
class Line:
    """One line that was read. Only its form is known to be right: `fspf.core.audit_check` says what may be believed."""

    chain: str
    number: int
    time_ns: int
    kind: str
    fields: Mapping[str, Any]
    previous: str
    hash: str
    signature: str | None
    fits: bool = field(compare=False)  # its hash is that of its content


def genesis(chain: str) -> str:
    """Return what the first line of *chain* names as the hash before it."""
    return hashlib.sha256(_GENESIS_LABEL + chain.encode("ascii")).hexdigest()


def signed_bytes(line_hash: str) -> bytes:
    """Return what the signature of a line with this hash is over."""
    return _SIGNATURE_LABEL + bytes.fromhex(line_hash)


def encode(document: Mapping[str, Any]) -> bytes:
    """Return the one encoding of a line."""
    return json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


class Chain:
    """Turns events into the lines of one chain.

    Attributes:
        id: 32 hex digits, random: one process's life.
        head: The last line that was made.
    """

    def __init__(self, chain: str, sign: Callable[[bytes], bytes]) -> None:
        self.id: Final = chain
        self.head = Head(0, genesis(chain))
        self._sign = sign

    def lines(self, records: Sequence[Record]) -> bytes:
        """Return *records* as lines, each with its line feed; the last is signed."""
        made = []
        for position, record in enumerate(records):
            document = {
                "chain": self.id,
                "number": self.head.number + 1,
                "time_ns": record.time_ns,
                "kind": record.kind,
                **record.fields,
                "previous": self.head.hash,
            }
            line_hash = hashlib.sha256(_LINE_LABEL + encode(document)).hexdigest()
            document["hash"] = line_hash
            if position == len(records) - 1:
                document["signature"] = self._sign(signed_bytes(line_hash)).hex()
            made.append(encode(document) + b"\n")
            self.head = Head(self.head.number + 1, line_hash)
        return b"".join(made)


def record_of(kind: str, time_ns: int, fields: Mapping[str, Any]) -> Record:
    """Return an event as lines may hold it: long texts and lists are cut, so that strangers cannot fill the log.

    Raises:
        ValueError: The kind or the name of a field is none, or a value cannot be written: our own bug.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"{kind!r} is no kind of event")
    for name in fields:
        if name in RESERVED or not _FIELD.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a field")
    bounded = {name: _bounded(value, 0) for name, value in fields.items()}
    if len(encode(bounded)) > MAX_LINE_LEN - _ROOM:
        bounded = {"cut": True}
    return Record(kind, time_ns, bounded)


def _bounded(value: Any, depth: int) -> Any:
    """Return *value* as a line may hold it: cut where it is long, refused where it has no single encoding."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_LEN else value[:MAX_TEXT_LEN] + "…"
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return [_bounded(item, depth + 1) for item in value[:MAX_ITEMS]] + (["…"] if len(value) > MAX_ITEMS else [])
    if depth < _MAX_DEPTH and isinstance(value, dict):
        items = list(value.items())
        cut = {str(name)[:MAX_TEXT_LEN]: _bounded(item, depth + 1) for name, item in items[:MAX_ITEMS]}
        return {**cut, "…": len(items)} if len(items) > MAX_ITEMS else cut
    # Bytes may be a key, and floats print in several ways: whoever logs says what he means by a text or a number.
    raise ValueError(f"a {type(value).__name__} does not go into the audit log")


def parse_line(claimed: bytes) -> Line:
    """Read one line, without its line feed. Whether its hash fits is in `fits`; nothing else is looked at.

    Raises:
        FormatError: It is no line, or not in the one encoding of what it says.
    """
    if len(claimed) > MAX_LINE_LEN:
        raise FormatError(f"a line of the audit log has at most {MAX_LINE_LEN} bytes, this one {len(claimed)}")
    try:
        document = json.loads(claimed)
        canonical = encode(document) if isinstance(document, dict) else b""
    except (ValueError, RecursionError):
        document, canonical = {}, b""
    if canonical != claimed or not canonical:
        raise FormatError("not a line of an audit log: no JSON object in its one encoding")
    names = list(document)
    signature = document.get("signature")
    tail = _TAIL if "signature" in document else _TAIL[:-1]
    if (
        tuple(names[: len(_HEAD)]) != _HEAD
        or tuple(names[-len(tail) :]) != tail
        or RESERVED & set(names[len(_HEAD) : -len(tail)])
    ):
        raise FormatError("not a line of an audit log: members are missing or in another order")
    if not (
        _is_hex(document["chain"], CHAIN_LEN)
        and type(document["number"]) is int
        and document["number"] > 0
        and type(document["time_ns"]) is int
        and isinstance(document["kind"], str)
        and _is_hex(document["previous"], HASH_LEN)
        and _is_hex(document["hash"], HASH_LEN)
        and ("signature" not in document or _is_hex(signature, SIGNATURE_LEN))
    ):
        raise FormatError("not a line of an audit log: a member has a wrong value")
    hashed = encode({name: value for name, value in document.items() if name not in {"hash", "signature"}})
    return Line(
        chain=document["chain"],
        number=document["number"],
        time_ns=document["time_ns"],
        kind=document["kind"],
        fields={name: document[name] for name in names[len(_HEAD) : -len(tail)]},
        previous=document["previous"],
        hash=document["hash"],
        signature=signature,
        fits=hashlib.sha256(_LINE_LABEL + hashed).hexdigest() == document["hash"],
    )


def _is_hex(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == length and _HEX.fullmatch(value) is not None


def concerns(line: Line, volume: str) -> bool:
    """Tell whether *line* is part of the history of *volume* (32 hex digits)."""
    if line.fields.get("volume") == volume:
        return True
    several = line.fields.get("volumes")
    return isinstance(several, list) and any(
        isinstance(item, dict) and item.get("volume") == volume for item in several
    )
