"""`fspf cas audit verify|export`: check the CAS's audit log, and show one volume's history.

What makes a log good is decided in `fspf.core.audit_check`; how it is written is the server's business.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.console import printable, quoted
from fspf.cli.options import add_common, nonempty
from fspf.core.errors import FormatError, UsageError, WrongKeyError

if TYPE_CHECKING:
    import argparse
    from argparse import Namespace
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from fspf.cli.console import Console
    from fspf.core.audit import Head, Line
    from fspf.core.audit_check import Finding, Report

_KEY_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_VOLUME_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MAX_SMALL_FILE: Final = 16 << 20  # bytes


def add_actions(actions: Any) -> None:
    """Add `audit` and its actions to those of `fspf cas`."""
    parser = actions.add_parser(
        "audit",
        help="check the audit log",
        description="Check the audit log of a CAS server, or show a volume's history.",
    )
    below = parser.add_subparsers(dest="audit_action", metavar="ACTION", required=True, title="actions")

    verify = below.add_parser(
        "verify",
        help="check that a log is what the CAS wrote",
        description="Check the hash chains and signatures of a log. All files that hold lines of the same chains belong together, "
        "oldest first.",
    )
    _add_log(verify)

    export = below.add_parser(
        "export",
        help="show the history of a volume",
        description="Check a log as `verify` does, then write the events that concern one volume, oldest first.",
    )
    _add_log(export)
    export.add_argument(
        "--volume",
        metavar="VOLUME",
        required=True,
        type=nonempty,
        help="the volume's directory, or its id (32 hex digits)",
    )

    for action in (verify, export):
        add_common(action)


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", type=nonempty, help="the log, oldest file first")
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument(
        "--key-hash", metavar="HASH", help="hash of the CAS's audit key (64 hex digits); the log itself has the key"
    )
    key.add_argument("--key", metavar="FILE", type=nonempty, help="the CAS's audit key, PEM")
    parser.add_argument(
        "--heads",
        metavar="FILE",
        type=nonempty,
        help="how far the CAS itself says that its chains go (JSON): shows whether the newest lines were cut off",
    )
    parser.add_argument(
        "--partial", action="store_true", help="older files were put away: lines before these may be absent"
    )


def run(args: Namespace, console: Console) -> int:
    """Do what was asked."""
    return {"verify": _verify, "export": _export}[args.audit_action](args, console)


def _verify(args: Namespace, console: Console) -> int:
    from fspf.core.audit_check import AuditError

    report = _checked(args)
    console.document(
        {
            "files": args.files,
            "lines": report.lines,
            "chains": [chain._asdict() for chain in report.chains],
            "problems": [_finding_document(finding) for finding in report.problems],
            "notes": [_finding_document(finding) for finding in report.notes],
            "good": not report.problems,
        }
    )
    for finding in report.problems:
        console.line(printable(str(finding)))
    for finding in report.notes:
        console.note(str(finding))
    count = len(report.problems)
    if count:
        console.give_up("AuditError", f"the log is not what the CAS wrote: {count} problems", AuditError.exit_code)
        return AuditError.exit_code
    signed = sum(chain.authentic - chain.first + 1 for chain in report.chains)
    console.line(f"{report.lines} lines in {len(report.chains)} chains, {signed} of them vouched for by the CAS's key")
    return 0


def _finding_document(finding: Finding) -> dict[str, Any]:
    return {**finding._asdict(), "chain": finding.chain or None}


def _export(args: Namespace, console: Console) -> int:
    from fspf.core.audit import concerns

    volume = _volume_id(args.volume)
    report = _checked(args)
    report.require_good()
    authentic = {chain.chain: chain.authentic for chain in report.chains}
    events: dict[tuple[str, int], Line] = {}
    for line in _parsed(args.files):
        if line.number <= authentic.get(line.chain, 0) and concerns(line, volume):
            events[line.chain, line.number] = line
    with console.listing({"volume": volume}, "events") as listing:
        for line in sorted(events.values(), key=lambda line: (line.time_ns, line.chain, line.number)):
            fields = _of_volume(line, volume)
            listing.add(
                {"chain": line.chain, "number": line.number, "time_ns": line.time_ns, "kind": line.kind, **fields}
            )
            told = "  ".join(f"{name}={_told(value)}" for name, value in fields.items() if name != "volume")
            console.line(f"{_utc(line.time_ns)}  {line.kind}  {told}")
    return 0


def _of_volume(line: Line, volume: str) -> dict[str, Any]:
    """Return the fields of a line; of a summary of many volumes only what it says of this one."""
    if line.kind == "anchors" and isinstance(line.fields.get("volumes"), list):
        return next(item for item in line.fields["volumes"] if isinstance(item, dict) and item.get("volume") == volume)
    return dict(line.fields)


def _told(value: object) -> str:
    return printable(value if isinstance(value, str) else json.dumps(value))


def _utc(time_ns: int) -> str:
    try:
        moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 1_000_000_000:09d}Z"


# -- reading


def _checked(args: Namespace) -> Report:
    from fspf.core.audit_check import verify

    if args.key is not None:
        key = _public_key(_read_small(args.key), args.key)
    else:
        key = _key_in_log(args.files, args.key_hash)
    heads = _heads(_read_small(args.heads), args.heads) if args.heads is not None else None
    return verify(((name, _raw(name)) for name in args.files), [key], heads, partial=args.partial)


def _raw(name: str) -> Iterator[bytes]:
    """Yield the lines of a file; of one without an end, no more than shows that it is none."""
    from fspf.core.audit import MAX_LINE_LEN

    with open(name, "rb") as file:
        while raw := file.readline(MAX_LINE_LEN + 2):
            yield raw


def _parsed(names: list[str]) -> Iterator[Line]:
    from fspf.core.audit import parse_line

    for name in names:
        for raw in _raw(name):
            try:
                line = parse_line(raw.removesuffix(b"\n"))
            except FormatError:
                continue
            if line.fits:
                yield line


def _read_small(name: str) -> bytes:
    with open(name, "rb") as file:
        data = file.read(_MAX_SMALL_FILE + 1)
    if len(data) > _MAX_SMALL_FILE:
        message = f"{quoted(name)} is too large for what it should be"
        raise UsageError(message)
    return data


def _public_key(data: bytes, name: str) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

    try:
        key = load_pem_public_key(data) if data.lstrip().startswith(b"-----") else load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        message = f"{quoted(name)} is no Ed25519 public key"
        raise UsageError(message)
    return key


def _key_in_log(names: list[str], key_hash: str) -> Ed25519PublicKey:
    """Return the key with this hash, which start lines carry: the hash is what makes it the right one."""
    if not _KEY_HASH.fullmatch(key_hash):
        message = f"{quoted(key_hash)} is no hash of a key: 64 hexadecimal digits in small letters"
        raise UsageError(message)
    others = set()
    for line in _parsed(names):
        if line.kind == "start":
            try:
                der = base64.b64decode(str(line.fields.get("key")), validate=True)
            except (binascii.Error, ValueError):
                continue
            found = hashlib.sha256(der).hexdigest()
            if found == key_hash:
                return _public_key(der, "the key in the log")
            others.add(found)
    seen = f"the keys in it are {', '.join(sorted(others)[:4])}" if others else "no start line in it has a key"
    message = f"the log names no key with hash {key_hash}: {seen}; give the key itself with --key if it begins later"
    raise WrongKeyError(message)


def _heads(data: bytes, name: str) -> dict[str, Head]:
    from fspf.core.audit import Head

    try:
        document = json.loads(data)
        heads = {str(chain): Head(number, line_hash) for chain, (number, line_hash) in document["heads"].items()}
        valid = all(type(head.number) is int and isinstance(head.hash, str) for head in heads.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        valid, heads = False, {}
    if not valid:
        message = f'{quoted(name)} holds no heads: {{"heads": {{CHAIN: [NUMBER, HASH]}}}} was expected'
        raise UsageError(message)
    return heads


def _volume_id(text: str) -> str:
    if os.path.isdir(text):
        from fspf.volume.layout import Layout

        header, _ = Layout(text).read_header()
        return header.volume_id.hex()
    if not _VOLUME_ID.fullmatch(text):
        message = f"{quoted(text)} is neither a volume's directory nor an id of 32 hexadecimal digits"
        raise UsageError(message)
    return text
