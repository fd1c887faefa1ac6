"""Evidence `tpm`: a TPM 2.0's quote over registers (PCRs) and this challenge.

Getting a quote is left to `fspf.attestation.make_tpm`. That an attestation key lives in a real TPM is decided when it is
enrolled; here its public part only must not say otherwise. Structures are those of part 2 of the TPM library specification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fspf.attestation.claims import Claims, Trust
from fspf.attestation.reading import Fields, Reader, as_hex, key_id
from fspf.attestation.signatures import PublicKey, check_ecdsa, check_key, check_rsa, spki_of
from fspf.core.errors import AttestationError

KIND: Final = "tpm"
_GENERATED: Final = 0xFF544347  # TPM_GENERATED_VALUE: a restricted key signs nothing from outside that begins so
_ATTEST_QUOTE: Final = 0x8018
_RSA, _ECC, _NULL = 0x0001, 0x0023, 0x0010
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018
_SCHEMES: Final = {_RSASSA: "RSASSA", _RSAPSS: "RSAPSS", _ECDSA: "ECDSA"}
_CURVES: Final[Mapping[int, tuple[ec.EllipticCurve, int]]] = {
    0x0003: (ec.SECP256R1(), 32),
    0x0004: (ec.SECP384R1(), 48),
}
# SHA-1 is not among them: who can choose what is measured can make two things that measure the same.
_HASHES: Final = {0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_ALGORITHMS: Final[Mapping[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_MAX_BANKS: Final = 16
_PCRS: Final = 24

# Attributes of a key (TPMA_OBJECT), with what they must be for a quote to mean something.
_MUST: Final = {1: "fixedTPM", 4: "fixedParent", 5: "sensitiveDataOrigin", 16: "restricted", 18: "sign"}
_MUST_NOT: Final = {17: "decrypt"}

Registers = dict[tuple[str, int], str]  # bank and number to value in hex


@dataclass(frozen=True, slots=True)
class Attest:
    """A quote, parsed. Nothing of it is verified."""

    qualified_signer: bytes
    extra_data: bytes  # the qualifying data
    clock: int  # ms
    reset_count: int
    restart_count: int
    safe: bool
    firmware: int
    selected: tuple[tuple[str, int], ...]  # bank and number, in the order in which they were hashed
    digest: bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as TPMs write it."""

    scheme: int
    hash_name: str
    rsa: bytes = b""
    r: int = 0
    s: int = 0


@dataclass(frozen=True, slots=True)
class Public:
    """The public part of an attestation key, as whoever sent it describes it."""

    key: PublicKey
    name: bytes  # by which the TPM knows it: hash algorithm, and the hash of the public area
    scheme: tuple[str, str] | None  # scheme and hash, if it signs with one only


def verify(fields: Fields, binding: bytes, trust: Trust) -> Claims:
    """Check a quote with the public key that came with it.

    Raises:
        AttestationError: It is not that key's statement about this challenge and these register values.
    """
    fields.only("public", "attest", "signature", "pcrs")
    public = parse_public(fields.data("public"))
    key = public.key
    raw = fields.data("attest")
    signature = parse_signature(fields.data("signature"))
    _check_signature(key, signature, raw)
    attest = parse_attest(raw)
    if attest.extra_data != binding:
        raise AttestationError("tpm.nonce", f"{binding.hex()} is expected, seen {attest.extra_data.hex()}")
    registers = _registers(fields.value("pcrs"))
    if set(registers) != set(attest.selected) or not registers:
        raise AttestationError("tpm.pcrs", "values of exactly the registers that were quoted are expected")
    concatenated = b"".join(bytes.fromhex(registers[one]) for one in attest.selected)
    digest = hashlib.new(signature.hash_name, concatenated).digest()
    if digest != attest.digest:
        raise AttestationError(
            "tpm.pcrs", f"values with the quoted digest {attest.digest.hex()} are expected, seen {digest.hex()}"
        )
    ak = key_id(spki_of(key))
    values: dict[str, Any] = {
        "ak": ak,
        "ak_known": ak in trust.aks,
        "ak_name": public.name.hex(),
        "pcrs": registers,
        "reset_count": attest.reset_count,
        "restart_count": attest.restart_count,
        "firmware": attest.firmware,
    }
    return Claims(KIND, values)


def parse_attest(raw: bytes) -> Attest:
    """Take a TPMS_ATTEST apart that holds a quote.

    Raises:
        AttestationError: It is malformed, or another kind of statement.
    """
    factor = "tpm.attest"
    reader = Reader(factor, raw)
    if reader.big(4, "magic") != _GENERATED:
        raise AttestationError(factor, "a structure that a TPM made is expected")
    kind = reader.big(2, "type")
    if kind != _ATTEST_QUOTE:
        raise AttestationError(factor, f"a quote ({_ATTEST_QUOTE:#x}) is expected, seen {kind:#x}")
    signer, extra = reader.sized(2, "qualified signer"), reader.sized(2, "extra data")
    clock, resets, restarts = reader.big(8, "clock"), reader.big(4, "reset count"), reader.big(4, "restart count")
    safe = reader.big(1, "safe")
    firmware = reader.big(8, "firmware version")
    banks = reader.big(4, "number of banks")
    if banks > _MAX_BANKS or safe > 1:
        raise AttestationError(factor, f"at most {_MAX_BANKS} banks, and yes or no for the clock, are expected")
    selected: list[tuple[str, int]] = []
    for _ in range(banks):
        bank = _hash_name(reader.big(2, "bank"), factor)
        bits = int.from_bytes(reader.take(reader.big(1, "size of a selection"), "selection"), "little")
        chosen = [(bank, number) for number in range(_PCRS) if bits >> number & 1]
        if bits >> _PCRS or set(chosen) & set(selected):
            raise AttestationError(factor, f"a selection of {_PCRS} registers, none of them twice, is expected")
        selected += chosen
    digest = reader.sized(2, "digest")
    reader.end("the quote")
    return Attest(signer, extra, clock, resets, restarts, bool(safe), firmware, tuple(selected), digest)


def parse_signature(raw: bytes) -> Signature:
    """Take a TPMT_SIGNATURE apart.

    Raises:
        AttestationError: It is malformed, or of another scheme or hash.
    """
    factor = "tpm.signature"
    reader = Reader(factor, raw)
    scheme = reader.big(2, "scheme")
    if scheme not in _SCHEMES:
        raise AttestationError(factor, f"one of {', '.join(_SCHEMES.values())} is expected, seen {scheme:#x}")
    hash_name = _hash_name(reader.big(2, "hash"), factor)
    if scheme == _ECDSA:
        r, s = (int.from_bytes(reader.sized(2, what), "big") for what in "rs")
        signature = Signature(scheme, hash_name, r=r, s=s)
    else:
        signature = Signature(scheme, hash_name, rsa=reader.sized(2, "signature"))
    reader.end("the signature")
    return signature


def parse_public(raw: bytes) -> Public:
    """Take a TPM2B_PUBLIC apart, which must say that its key signs only what the TPM made.

    Raises:
        AttestationError: It is malformed, of another type, or says something else.
    """
    factor = "tpm.public"
    outer = Reader(factor, raw)
    area = outer.sized(2, "public area")
    outer.end("the public area")
    reader = Reader(factor, area)
    kind, name_number = reader.big(2, "type"), reader.big(2, "name algorithm")
    name_hash = _hash_name(name_number, factor)
    attributes = reader.big(4, "attributes")
    missing = [word for bit, word in _MUST.items() if not attributes >> bit & 1]
    missing += [f"not {word}" for bit, word in _MUST_NOT.items() if attributes >> bit & 1]
    if missing:
        raise AttestationError(
            factor, f"a restricted signing key of this TPM is expected, missing: {', '.join(missing)}"
        )
    reader.sized(2, "policy")
    if reader.big(2, "symmetric algorithm") != _NULL:
        raise AttestationError(factor, "a signing key without a symmetric algorithm is expected")
    number = reader.big(2, "scheme")
    scheme = None
    if number != _NULL:
        if number not in _SCHEMES:
            raise AttestationError(factor, f"one of {', '.join(_SCHEMES.values())} is expected, seen {number:#x}")
        scheme = _SCHEMES[number], _hash_name(reader.big(2, "hash of the scheme"), factor)
    if kind == _RSA:
        key = _read_rsa(reader, factor)
    elif kind == _ECC:
        key = _read_ecc(reader, factor)
    else:
        raise AttestationError(factor, f"an RSA or ECC key is expected, seen type {kind:#x}")
    reader.end("the public area")
    return Public(key, name_number.to_bytes(2, "big") + hashlib.new(name_hash, area).digest(), scheme)


def _read_rsa(reader: Reader, factor: str) -> PublicKey:
    bits, exponent = reader.big(2, "bits"), reader.big(4, "exponent") or 65537  # 0 means the default
    modulus = reader.sized(2, "modulus")
    number = int.from_bytes(modulus, "big")
    if number.bit_length() != bits or exponent != 65537:
        raise AttestationError(factor, f"a modulus of {bits} bits and the exponent 65537 are expected")
    try:
        return check_key(rsa.RSAPublicNumbers(exponent, number).public_key(), factor)
    except ValueError:
        raise AttestationError(factor, "an RSA key is expected") from None


def _read_ecc(reader: Reader, factor: str) -> PublicKey:
    number = reader.big(2, "curve")
    known = _CURVES.get(number)
    if known is None:
        raise AttestationError(factor, f"the curve P-256 or P-384 is expected, seen {number:#x}")
    curve, size = known
    if reader.big(2, "KDF") != _NULL:
        reader.take(2, "hash of the KDF")
    x, y = reader.sized(2, "x"), reader.sized(2, "y")
    if max(len(x), len(y)) > size:
        raise AttestationError(factor, f"coordinates of at most {size} bytes are expected")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(
            curve, b"\x04" + x.rjust(size, b"\0") + y.rjust(size, b"\0")
        )
    except ValueError:
        raise AttestationError(factor, "a point of the curve is expected") from None


def _check_signature(key: PublicKey, signature: Signature, message: bytes) -> None:
    algorithm = _ALGORITHMS[signature.hash_name]
    if signature.scheme == _ECDSA:
        check_ecdsa(key, signature.r, signature.s, message, "tpm.signature", algorithm)
    else:
        check_rsa(key, signature.rsa, message, "tpm.signature", algorithm, pss=signature.scheme == _RSAPSS)


def _registers(value: Any) -> Registers:
    """Read the register values of the evidence: bank to number to hex."""
    if not isinstance(value, Mapping) or not all(isinstance(bank, Mapping) for bank in value.values()):
        raise AttestationError("tpm.pcrs", "an object of banks is expected, each an object of numbers with values")
    found: Registers = {}
    for bank, registers in value.items():
        if bank not in _ALGORITHMS:
            raise AttestationError("tpm.pcrs", f"one of {', '.join(_ALGORITHMS)} is expected, seen {bank!r:.20}")
        for number, digest in registers.items():
            if number not in _NUMBERS:
                raise AttestationError("tpm.pcrs", f"a number from 0 to {_PCRS - 1} is expected, seen {number!r:.20}")
            found[bank, int(number)] = as_hex(digest, _ALGORITHMS[bank].digest_size, f"tpm.pcrs.{number}")
    return found


_NUMBERS: Final = frozenset(str(number) for number in range(_PCRS))


def _hash_name(number: int, factor: str) -> str:
    name = _HASHES.get(number)
    if name is None:
        raise AttestationError(factor, f"one of {', '.join(_ALGORITHMS)} is expected, seen hash {number:#x}")
    return name
