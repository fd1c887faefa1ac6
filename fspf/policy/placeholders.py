"""Placeholders `$$SCONE::name[:format][|escape(json)]$$`: found in texts, checked against kinds of secrets, filled in.

Issuing the values is left to `fspf.cas`; which texts of a policy may hold placeholders is said in `semantics`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fspf.core.errors import PolicyError
from fspf.policy.values import SecretKind, SecretValue

_BEGIN: Final = "$$SCONE"  # whatever begins so and is no placeholder is a mistake
_PLACEHOLDER: Final = re.compile(
    r"\$\$SCONE(?:CAS:|::)(?P<name>[A-Za-z0-9_\-.~]{1,100})"
    r"(?P<formats>(?::[a-z0-9]{1,16}){0,2})"
    r"(?P<escape>\|escape\(json\))?\$\$",
    re.ASCII,
)
PARTS: Final = ("crt", "chain", "privatekey", "publickey")
ENCODINGS: Final = ("bin", "pem", "der", "hex", "base64", "base64url", "base32")
FORMATS: Final = PARTS + ENCODINGS
MAX_EXPANDED: Final = 1 << 20  # bytes of one text after filling in

_RAW: Final = frozenset({SecretKind.ASCII, SecretKind.BINARY})
_PARTS_OF: Final[Mapping[SecretKind, tuple[str, ...]]] = {  # the first is meant when no part is named
    SecretKind.ASCII: ("raw",),
    SecretKind.BINARY: ("raw",),
    SecretKind.PRIVATE_KEY: ("privatekey", "publickey"),
    SecretKind.PUBLIC_KEY: ("publickey",),
    SecretKind.X509: ("crt", "chain", "privatekey"),
    SecretKind.X509_CA: ("crt", "chain"),  # a CA's key stays in the CAS
}
_PEM_LABELS: Final = {"crt": "CERTIFICATE", "privatekey": "PRIVATE KEY", "publickey": "PUBLIC KEY"}


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One placeholder in a text.

    Attributes:
        part: "" or one of `PARTS`.
        encoding: "" or one of `ENCODINGS`.
        start, end: Where it is in the text.
    """

    name: str
    part: str
    encoding: str
    escape_json: bool
    start: int
    end: int


def find(text: str) -> tuple[Placeholder, ...]:
    """Return the placeholders of *text*.

    Raises:
        PolicyError: Something begins like a placeholder and is none.
    """
    return tuple(_find(text))


def _find(text: str) -> Iterator[Placeholder]:
    at = text.find(_BEGIN)
    while at >= 0:
        match = _PLACEHOLDER.match(text, at)
        if match is None:
            seen = text[at : at + 40]
            raise PolicyError(
                f"{seen!r} is no placeholder: $$SCONE::name$$, $$SCONE::name:format$$ or $$SCONE::name|escape(json)$$ is one"
            )
        formats = [word for word in match["formats"].split(":") if word]
        for word in formats:
            if word not in FORMATS:
                raise PolicyError(f"placeholder {match[0]}: unknown format {word}; known are {', '.join(FORMATS)}")
        part = formats.pop(0) if formats and formats[0] in PARTS else ""
        encoding = formats.pop(0) if formats and formats[0] in ENCODINGS else ""
        if formats:
            raise PolicyError(f"placeholder {match[0]}: a format is a part ({', '.join(PARTS)}), an encoding, or both")
        yield Placeholder(match["name"], part, encoding, match["escape"] is not None, match.start(), match.end())
        at = text.find(_BEGIN, match.end())


def check(placeholder: Placeholder, kind: SecretKind, *, text_only: bool) -> None:
    """Refuse a format that this kind of secret does not have.

    Args:
        text_only: Arguments and environment hold texts without zero bytes; files hold anything.

    Raises:
        PolicyError: It has not.
    """
    part = _part(placeholder, kind)
    encoding = placeholder.encoding or _default_encoding(part)
    what = f"placeholder for {placeholder.name} ({kind})"
    if encoding == "pem" and part == "raw":
        raise PolicyError(f"{what}: only keys and certificates have a PEM form")
    if part == "chain" and encoding != "pem":
        raise PolicyError(f"{what}: a chain of certificates has only a PEM form")
    binary = encoding in {"bin", "der"} and kind is not SecretKind.ASCII
    if binary and placeholder.escape_json:
        raise PolicyError(f"{what}: bytes cannot be escaped for JSON; add :base64 or :hex")
    if binary and text_only:
        raise PolicyError(f"{what}: bytes are no text for arguments or environment; add :base64 or :hex")


def _part(placeholder: Placeholder, kind: SecretKind) -> str:
    parts = _PARTS_OF[kind]
    part = placeholder.part or parts[0]
    if part not in parts:
        ours = ", ".join(one for one in parts if one != "raw") or "no parts"
        raise PolicyError(f"placeholder for {placeholder.name}: a secret of kind {kind} has {ours}, not {part}")
    return part


def _default_encoding(part: str) -> str:
    return "bin" if part == "raw" else "pem"


def expand(text: str, values: Mapping[str, SecretValue]) -> bytes:
    """Return *text* in UTF-8 with every placeholder filled in.

    Raises:
        PolicyError: A placeholder has no value, or none in its format; or the result is too long.
    """
    return b"".join(_expanded(text, values, text_only=False))


def expand_text(text: str, values: Mapping[str, SecretValue]) -> str:
    """Return *text* with every placeholder filled in, as arguments and environment need it.

    Raises:
        PolicyError: As `expand`; or the result is no text without zero bytes.
    """
    filled = b"".join(_expanded(text, values, text_only=True))
    try:
        result = filled.decode("utf-8")
    except UnicodeDecodeError:
        raise PolicyError("a secret is no UTF-8 text; add :base64 or :hex to its placeholder") from None
    if "\0" in result:
        raise PolicyError("a secret has zero bytes, which arguments and environment cannot hold; add :base64 or :hex")
    return result


def _expanded(text: str, values: Mapping[str, SecretValue], *, text_only: bool) -> Iterator[bytes]:
    at = 0
    length = 0
    for placeholder in find(text):
        value = values.get(placeholder.name)
        if value is None:
            raise PolicyError(f"placeholder for {placeholder.name}: there is no such secret")
        check(placeholder, value.kind, text_only=text_only)
        for piece in (text[at : placeholder.start].encode("utf-8", "surrogateescape"), render(placeholder, value)):
            length += len(piece)
            if length > MAX_EXPANDED:
                raise PolicyError(f"with its secrets filled in, a text has at most {MAX_EXPANDED} bytes")
            yield piece
        at = placeholder.end
    yield text[at:].encode("utf-8", "surrogateescape")


def render(placeholder: Placeholder, value: SecretValue) -> bytes:
    """Return the value in the placeholder's format.

    Raises:
        PolicyError: It has no such form.
    """
    part = _part(placeholder, value.kind)
    encoding = placeholder.encoding or _default_encoding(part)
    if part == "chain":
        result = b"".join(_pem("CERTIFICATE", der) for der in value.chain)
    else:
        data = _data(part, value)
        if data is None:
            raise PolicyError(f"placeholder for {placeholder.name}: the CAS has no {part} of it")
        result = _encoded(data, encoding, _PEM_LABELS.get(part, ""))
    if placeholder.escape_json:
        try:
            result = json.dumps(result.decode("utf-8"))[1:-1].encode("ascii")
        except UnicodeDecodeError:
            raise PolicyError(f"placeholder for {placeholder.name}: bytes cannot be escaped for JSON") from None
    return result


def _data(part: str, value: SecretValue) -> bytes | None:
    if part == "raw":
        return value.raw
    if part == "crt":
        return value.chain[0] if value.chain else None
    return (value.private_key if part == "privatekey" else value.public_key) or None


def _encoded(data: bytes, encoding: str, label: str) -> bytes:
    match encoding:
        case "hex":
            return data.hex().encode("ascii")
        case "base64":
            return base64.b64encode(data)
        case "base64url":
            return base64.urlsafe_b64encode(data).rstrip(b"=")
        case "base32":
            return base64.b32encode(data)
        case "pem":
            return _pem(label, data)
        case _:
            return data


def _pem(label: str, der: bytes) -> bytes:
    encoded = base64.b64encode(der)
    lines = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
    return b"\n".join([f"-----BEGIN {label}-----".encode(), *lines, f"-----END {label}-----".encode(), b""])
