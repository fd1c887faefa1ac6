"""TPM structures put together by the specification, and quotes signed with keys of ours: what a TPM would send.

The parsers under test are not used. Quotes of a TPM itself come from `tests/support/swtpm.py`.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

NUMBERS = {"sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}
ALGORITHMS = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
ATTRIBUTES = 0x00050072  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
P256 = ec.derive_private_key(99, ec.SECP256R1())
P384 = ec.derive_private_key(98, ec.SECP384R1())
RSA = rsa.generate_private_key(65537, 2048)
PCRS = {"sha256": {"11": "ab" * 32, "0": "00" * 32}, "sha384": {"3": "cd" * 48}}


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def public_of(key: Any, attributes: int = ATTRIBUTES, symmetric: int = 0x10) -> bytes:
    head = struct.pack(">HI", 0x000B, attributes) + sized(b"") + struct.pack(">H", symmetric)
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        size = key.key_size // 8
        area = (
            struct.pack(">H", 0x0001)
            + head
            + struct.pack(">HHI", 0x10, key.key_size, 0)
            + sized(numbers.n.to_bytes(size, "big"))
        )
    else:
        size, curve = (32, 3) if key is P256 else (48, 4)
        point = key.public_key().public_numbers()
        area = struct.pack(">H", 0x0023) + head + struct.pack(">HHHH", 0x18, 0x0B, curve, 0x10)
        area += sized(point.x.to_bytes(size, "big")) + sized(point.y.to_bytes(size, "big"))
    return sized(area)


def selection(pcrs: Mapping[str, Mapping[str, str]]) -> tuple[bytes, bytes]:
    """Return the selection's encoding, and the values in the order in which they are hashed."""
    encoded, values = struct.pack(">I", len(pcrs)), b""
    for bank, registers in pcrs.items():
        bits = sum(1 << int(number) for number in registers)
        encoded += struct.pack(">HB", NUMBERS[bank], 3) + bits.to_bytes(3, "little")
        values += b"".join(bytes.fromhex(registers[number]) for number in sorted(registers, key=int))
    return encoded, values


def attest_of(
    binding: bytes, pcrs: Mapping[str, Mapping[str, str]] = PCRS, hash_name: str = "sha256", kind: int = 0x8018
) -> bytes:
    encoded, values = selection(pcrs)
    clock = struct.pack(">QIIBQ", 5000, 7, 2, 1, 0x20191023)
    digest = hashlib.new(hash_name, values).digest()
    return (
        struct.pack(">IH", 0xFF544347, kind)
        + sized(b"\0\x0b" + bytes(32))
        + sized(binding)
        + clock
        + encoded
        + sized(digest)
    )


def sign(key: Any, message: bytes, hash_name: str = "sha256", *, pss: bool = False) -> bytes:
    algorithm = ALGORITHMS[hash_name]
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size) if pss else padding.PKCS1v15()
        return struct.pack(">HH", 0x16 if pss else 0x14, NUMBERS[hash_name]) + sized(
            key.sign(message, scheme, algorithm)
        )
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm)))
    size = key.key_size // 8
    return (
        struct.pack(">HH", 0x18, NUMBERS[hash_name]) + sized(r.to_bytes(size, "big")) + sized(s.to_bytes(size, "big"))
    )


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def evidence(binding: bytes, key: Any = P256, hash_name: str = "sha256", *, pss: bool = False) -> dict[str, Any]:
    attest = attest_of(binding, hash_name=hash_name)
    signature = sign(key, attest, hash_name, pss=pss)
    return {
        "type": "tpm",
        "public": b64(public_of(key)),
        "attest": b64(attest),
        "signature": b64(signature),
        "pcrs": PCRS,
    }
