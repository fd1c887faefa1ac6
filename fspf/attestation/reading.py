"""Reads evidence: fields of a JSON object, and binary structures, bounds checked.

What the fields mean is left to the module of each kind of evidence. Everything here raises `AttestationError` and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from fspf.core.errors import AttestationError

MAX_FIELD: Final = 1 << 16  # bytes of one field; the longest real one is a TDX quote of 8 KiB
_MAX_ITEMS: Final = 64  # certificates, registers, arguments


class Fields:
    """The fields of one JSON object of evidence."""

    def __init__(self, kind: str, fields: Any) -> None:
        self.kind = kind
        if not isinstance(fields, Mapping):
            raise AttestationError(kind, "a JSON object is expected")
        self._fields = fields

    def only(self, *names: str) -> None:
        """Refuse fields with other names: what nobody looks at might be what the sender relies on."""
        unknown = [name for name in self._fields if name not in names and name != "type"]
        if unknown:
            raise AttestationError(self.kind, f"the fields {', '.join(names)} are expected, found {unknown[0]!r:.40}")

    def has(self, name: str) -> bool:
        """Whether there is such a field, and it is not null."""
        return self._fields.get(name) is not None

    def value(self, name: str) -> Any:
        """Return a field as it is, refuse where it is missing."""
        if not self.has(name):
            raise AttestationError(f"{self.kind}.{name}", "the field is missing")
        return self._fields[name]

    def text(self, name: str) -> str:
        """Return a text."""
        value = self.value(name)
        if not isinstance(value, str) or len(value) > 2 * MAX_FIELD:
            raise AttestationError(f"{self.kind}.{name}", "a text is expected")
        return value

    def data(self, name: str) -> bytes:
        """Return what the base64 in a field encodes."""
        return self._decode(self.text(name), name)

    def data_list(self, name: str) -> list[bytes]:
        """Return what the list of base64 in a field encodes; an absent field is an empty list."""
        if not self.has(name):
            return []
        value = self.value(name)
        if not isinstance(value, list) or len(value) > _MAX_ITEMS or not all(isinstance(one, str) for one in value):
            raise AttestationError(f"{self.kind}.{name}", f"a list of at most {_MAX_ITEMS} texts in base64 is expected")
        return [self._decode(one, name) for one in value]

    def hex(self, name: str, length: int) -> str:
        """Return *length* bytes that are given in hexadecimal, as lower-case hex."""
        return as_hex(self.text(name), length, f"{self.kind}.{name}")

    def _decode(self, text: str, name: str) -> bytes:
        if len(text) > 2 * MAX_FIELD:
            raise AttestationError(f"{self.kind}.{name}", f"at most {MAX_FIELD} bytes are expected")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise AttestationError(f"{self.kind}.{name}", "base64 is expected") from None


def as_hex(text: Any, length: int, factor: str) -> str:
    """Return *text* in lower case if it is hex of *length* bytes."""
    if not isinstance(text, str) or len(text) != 2 * length or not re.fullmatch(r"[0-9A-Fa-f]*", text):
        raise AttestationError(factor, f"{2 * length} hex digits are expected")
    return text.lower()


class Reader:
    """Takes a binary structure apart from its beginning; each step knows the name of what it takes."""

    def __init__(self, factor: str, data: bytes) -> None:
        self.factor = factor
        self._data = data
        self.offset = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self.offset

    def take(self, length: int, what: str) -> bytes:
        """Return the next *length* bytes."""
        if length > self.left:
            raise AttestationError(self.factor, f"{what} needs {length} bytes at {self.offset}, there are {self.left}")
        self.offset += length
        return self._data[self.offset - length : self.offset]

    def little(self, length: int, what: str) -> int:
        """Return the next *length* bytes as a number, the lowest byte first."""
        return int.from_bytes(self.take(length, what), "little")

    def big(self, length: int, what: str) -> int:
        """Return the next *length* bytes as a number, the highest byte first."""
        return int.from_bytes(self.take(length, what), "big")

    def sized(self, length: int, what: str) -> bytes:
        """Return what a big-endian size of *length* bytes announces, as TPM2B structures have it."""
        return self.take(self.big(length, what), what)

    def end(self, what: str) -> None:
        """Refuse anything after the end."""
        if self.left:
            raise AttestationError(self.factor, f"{what} ends at {self.offset}, {self.left} more bytes follow")


def key_id(spki: bytes) -> str:
    """Return the id of a key: hex SHA-256 of its DER SubjectPublicKeyInfo."""
    return hashlib.sha256(spki).hexdigest()
