"""Certificates of processor makers: reads them, checks chains, validity and revocation.

Which root counts and what the extensions mean is left to `quote`, `tcb` and `snp`. There is no path building: each link is
named by the caller. `cryptography.x509.verification` checks web servers; these certificates name none.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from fspf.attestation.signatures import PublicKey, check_key
from fspf.core.errors import AttestationError

_MAX_DER: Final = 1 << 14  # bytes of one certificate
_MAX_CRL: Final = 1 << 20  # bytes of one revocation list
_BEGIN: Final = b"-----BEGIN CERTIFICATE-----"
_END: Final = b"-----END CERTIFICATE-----"
_MAX_CHAIN: Final = 8  # certificates of one text
# What `cryptography` raises over malformed bytes, some of it only when a part is looked at.
_MALFORMED: Final = (
    ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Certificate:
    """A parsed certificate. Nothing of it is verified."""

    subject: str  # common name
    issuer_name: bytes  # DER of the whole name
    subject_name: bytes  # DER of the whole name
    serial: int
    not_before_ns: int
    not_after_ns: int
    key: PublicKey
    is_ca: bool
    extensions: Mapping[str, bytes]  # dotted OID to value, of those that `cryptography` does not know
    fingerprint: str  # hex SHA-256
    signed: bytes
    signature: bytes
    scheme: tuple[str, str] = field(repr=False)  # "ecdsa" or "pss", and the hash


@dataclass(frozen=True, slots=True)
class Crl:
    """A parsed revocation list. Nothing of it is verified."""

    issuer_name: bytes
    last_update_ns: int
    next_update_ns: int
    revoked: frozenset[int]  # serial numbers
    signed: bytes
    signature: bytes
    scheme: tuple[str, str]


def load_certificates(data: bytes, factor: str) -> list[Certificate]:
    """Return the certificates of a text of PEM, in order, or the one that is given in DER.

    Raises:
        AttestationError: One of them is malformed, or there is none.
    """
    if not data.lstrip().startswith(b"-----"):
        return [_load(data, factor)]
    found: list[Certificate] = []
    # By hand, since a regular expression takes quadratic time for a thousand beginnings without an end.
    start = data.find(_BEGIN)
    while start >= 0:
        end = data.find(_END, start)
        if end < 0 or len(found) == _MAX_CHAIN:
            raise AttestationError(factor, f"at most {_MAX_CHAIN} certificates are expected, each with its end")
        try:
            der = base64.b64decode(b"".join(data[start + len(_BEGIN) : end].split()), validate=True)
        except ValueError:
            raise AttestationError(factor, "a certificate in PEM or DER is expected") from None
        found.append(_load(der, factor))
        start = data.find(_BEGIN, end)
    if not found:
        raise AttestationError(factor, "a certificate in PEM or DER is expected")
    return found


def _load(der: bytes, factor: str) -> Certificate:
    try:
        place = _serial_place(der)
        # AMD's certificates have the serial number 0, which RFC 5280 forbids and `cryptography` will refuse one day: it
        # gets to see a 1. The signature is checked over the bytes as they came.
        shown = der[:place] + b"\1" + der[place + 1 :] if place else der
        parsed = x509.load_der_x509_certificate(shown)
        signed = parsed.tbs_certificate_bytes
        start = shown.find(signed)
        try:
            is_ca = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            is_ca = False
        names = parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return Certificate(
            subject=str(names[0].value) if names else "",
            issuer_name=parsed.issuer.public_bytes(),
            subject_name=parsed.subject.public_bytes(),
            serial=0 if place else parsed.serial_number,
            not_before_ns=_ns(parsed.not_valid_before_utc),
            not_after_ns=_ns(parsed.not_valid_after_utc),
            key=check_key(parsed.public_key(), factor),
            is_ca=is_ca,
            extensions={
                extension.oid.dotted_string: extension.value.value
                for extension in parsed.extensions
                if isinstance(extension.value, x509.UnrecognizedExtension)
            },
            fingerprint=hashlib.sha256(der).hexdigest(),
            signed=der[start : start + len(signed)],
            signature=parsed.signature,
            scheme=_scheme(parsed.signature_algorithm_parameters, parsed.signature_hash_algorithm, factor),
        )
    except _MALFORMED as exc:
        raise AttestationError(factor, f"a certificate is expected, not one of which {exc!s:.80}") from None


def _serial_place(der: bytes) -> int:
    """Return where a serial number of 0 stands, 0 if it is another.

    Raises:
        ValueError: The beginning is not that of a certificate, or its serial number is negative.
    """
    if len(der) > _MAX_DER:
        raise ValueError(f"there are {len(der)} bytes")
    offset = 0
    for _ in range(2):  # Certificate and TBSCertificate, both sequences
        if der[offset : offset + 1] != b"\x30":
            raise ValueError("the beginning is no sequence")
        size = der[offset + 1] if offset + 1 < len(der) else 0
        offset += 2 + (size & 0x7F if size & 0x80 else 0)
    if der[offset : offset + 5] == b"\xa0\x03\x02\x01\x02":  # version 3
        offset += 5
    if der[offset : offset + 1] != b"\x02" or offset + 2 >= len(der) or der[offset + 1] == 0 or der[offset + 2] & 0x80:
        raise ValueError("the serial number is not a positive one")
    return offset + 2 if der[offset + 1 : offset + 3] == b"\x01\x00" else 0


def load_crl(der: bytes, factor: str) -> Crl:
    """Return a revocation list.

    Raises:
        AttestationError: It is malformed, or has no date of its next update.
    """
    if len(der) > _MAX_CRL:
        raise AttestationError(factor, f"a revocation list of at most {_MAX_CRL} bytes is expected")
    try:
        parsed = x509.load_der_x509_crl(der)
        if parsed.next_update_utc is None:
            raise AttestationError(factor, "a revocation list with the date of its next update is expected")
        return Crl(
            issuer_name=parsed.issuer.public_bytes(),
            last_update_ns=_ns(parsed.last_update_utc),
            next_update_ns=_ns(parsed.next_update_utc),
            revoked=frozenset(entry.serial_number for entry in parsed),
            signed=parsed.tbs_certlist_bytes,
            signature=parsed.signature,
            scheme=_scheme(parsed.signature_algorithm_parameters, parsed.signature_hash_algorithm, factor),
        )
    except _MALFORMED as exc:
        raise AttestationError(factor, f"a revocation list is expected, not one of which {exc!s:.80}") from None


def check_issued(signed: Certificate | Crl, issuer: Certificate, factor: str) -> None:
    """Check that *issuer* is a CA and signed this certificate or revocation list.

    Raises:
        AttestationError: It is not, or did not.
    """
    if not issuer.is_ca:
        raise AttestationError(factor, f"a CA is expected as issuer, seen {issuer.subject!r:.60}")
    if signed.issuer_name != issuer.subject_name:
        raise AttestationError(factor, f"the issuer that it names is expected, seen {issuer.subject!r:.60}")
    kind, digest = signed.scheme
    algorithm = _HASHES[digest]()
    key = issuer.key
    try:
        if kind == "ecdsa" and isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signed.signature, signed.signed, ec.ECDSA(algorithm))
        elif kind == "pss" and isinstance(key, rsa.RSAPublicKey):
            scheme = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            key.verify(signed.signature, signed.signed, scheme, algorithm)
        else:
            raise AttestationError(factor, f"a signature that fits the key of {issuer.subject!r:.60} is expected")
    except (InvalidSignature, ValueError):
        raise AttestationError(factor, f"a signature by {issuer.subject!r:.60} is expected, this is none") from None


def check_valid(certificate: Certificate, now_ns: int, factor: str) -> None:
    """Check that it is valid at *now_ns*.

    Raises:
        AttestationError: It is expired, or not valid yet.
    """
    if not certificate.not_before_ns <= now_ns <= certificate.not_after_ns:
        raise AttestationError(
            factor,
            f"{certificate.subject!r:.60} is valid from {day(certificate.not_before_ns)} to {day(certificate.not_after_ns)}, "
            f"now it is {day(now_ns)}",
        )


def check_crl_date(crl: Crl, now_ns: int, stale_ns: int, factor: str) -> None:
    """Check that a revocation list is the newest, or at most *stale_ns* past the date of its next update.

    Raises:
        AttestationError: It is older, or of the future.
    """
    if not crl.last_update_ns <= now_ns <= crl.next_update_ns + stale_ns:
        raise AttestationError(
            factor,
            f"a revocation list of {day(crl.last_update_ns)} to {day(crl.next_update_ns)} does not tell about {day(now_ns)}",
        )


def check_not_revoked(certificate: Certificate, crl: Crl, factor: str) -> None:
    """Check that its issuer did not take it back.

    Raises:
        AttestationError: It did, or *crl* is another issuer's.
    """
    if crl.issuer_name != certificate.issuer_name:
        raise AttestationError(factor, "the revocation list of the certificate's issuer is expected, this is another's")
    if certificate.serial in crl.revoked:
        raise AttestationError(factor, f"{certificate.subject!r:.60} was revoked by its issuer")


def day(moment_ns: int) -> str:
    """Show a moment in messages; it may be as far off as an attacker likes."""
    try:
        return datetime.fromtimestamp(moment_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return f"{moment_ns} ns"


_HASHES: Final[Mapping[str, Callable[[], hashes.HashAlgorithm]]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}


def _ns(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000_000


def _scheme(parameters: object, algorithm: hashes.HashAlgorithm | None, factor: str) -> tuple[str, str]:
    if algorithm is not None and algorithm.name in _HASHES:
        if isinstance(parameters, ec.ECDSA):
            return "ecdsa", algorithm.name
        if isinstance(parameters, padding.PSS):
            return "pss", algorithm.name
    raise AttestationError(factor, "a signature by ECDSA or RSA-PSS with SHA-256, SHA-384 or SHA-512 is expected")
