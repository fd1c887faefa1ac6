"""What Intel's certificate of one platform (PCK) says about it: FMSPC, PCE and the SVNs of its TCB.

Whether the certificate is authentic is left to `fspf.attestation.dcap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fspf.attestation.certificates import Certificate
from fspf.core.errors import AttestationError

_EXTENSION: Final = "1.2.840.113741.1.13.1"
_ARC: Final = bytes.fromhex("2a864886f84d010d01")  # the same, as DER has it
_TCB, _PCEID, _FMSPC = _ARC + b"\x02", _ARC + b"\x03", _ARC + b"\x04"
_COMPONENTS: Final = tuple(_TCB + bytes([number]) for number in range(1, 17))
_PCESVN: Final = _TCB + b"\x11"

_SEQUENCE, _OID, _INTEGER, _OCTETS = 0x30, 0x06, 0x02, 0x04


@dataclass(frozen=True, slots=True)
class Platform:
    """One platform as its PCK certificate describes it."""

    fmspc: str  # hex, 6 bytes: family, model, stepping and platform
    pce_id: str  # hex, 2 bytes
    svns: tuple[int, ...]  # of the 16 components of the TCB
    pce_svn: int


def read_platform(certificate: Certificate, factor: str) -> Platform:
    """Read Intel's extension of a PCK certificate.

    Raises:
        AttestationError: There is none, or it is malformed.
    """
    try:
        (whole,) = _values(certificate.extensions.get(_EXTENSION, b""))
        fields = _pairs(whole, _SEQUENCE)
        components = _pairs(fields[_TCB], _SEQUENCE)
        svns = tuple(_integer(components[oid]) for oid in _COMPONENTS)
        fmspc, pce_id = _octets(fields[_FMSPC], 6), _octets(fields[_PCEID], 2)
        return Platform(fmspc.hex(), pce_id.hex(), svns, _integer(components[_PCESVN]))
    except (ValueError, KeyError):
        raise AttestationError(factor, "a PCK certificate with Intel's extension is expected") from None


def _values(data: bytes) -> list[tuple[int, bytes]]:
    """Return the values of a concatenation in DER, as tag and body."""
    found = []
    offset = 0
    while offset < len(data):
        tag, size = data[offset], data[offset + 1] if offset + 1 < len(data) else 0x80
        offset += 2
        if size & 0x80:
            width = size & 0x7F
            if width not in {1, 2} or offset + width > len(data):
                raise ValueError("a length of another form")
            size = int.from_bytes(data[offset : offset + width], "big")
            offset += width
        if offset + size > len(data):
            raise ValueError("a value goes beyond the end")
        found.append((tag, data[offset : offset + size]))
        offset += size
    return found


def _pairs(value: tuple[int, bytes], expected: int) -> dict[bytes, tuple[int, bytes]]:
    """Return the pairs of OID and value that a sequence consists of."""
    found = {}
    for inner in _values(_body(value, expected)):
        (tag, oid), second = _two(_values(_body(inner, _SEQUENCE)))
        if tag != _OID or oid in found:
            raise ValueError("an OID that was not there yet is expected")
        found[oid] = second
    return found


def _two(values: list[tuple[int, bytes]]) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    one, other = values
    return one, other


def _body(value: tuple[int, bytes], expected: int) -> bytes:
    tag, body = value
    if tag != expected:
        raise ValueError("another type")
    return body


def _integer(value: tuple[int, bytes]) -> int:
    body = _body(value, _INTEGER)
    if not 0 < len(body) <= 3 or body[0] & 0x80:
        raise ValueError("a small positive number is expected")
    return int.from_bytes(body, "big")


def _octets(value: tuple[int, bytes], length: int) -> bytes:
    body = _body(value, _OCTETS)
    if len(body) != length:
        raise ValueError("another length")
    return body
