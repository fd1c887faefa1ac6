"""A secret's value, as it is issued, stored, and injected.

Issuing values is left to `fspf.cas.values`, writing them in a format to `fspf.policy.placeholders`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping


class SecretKind(StrEnum):
    """What a secret is, by the names of the policy language."""

    ASCII = "ascii"
    BINARY = "binary"
    PRIVATE_KEY = "private-key"
    PUBLIC_KEY = "public-key"
    X509 = "x509"
    X509_CA = "x509-ca"


@dataclass(frozen=True, slots=True)
class SecretValue:
    """One secret. Fields that its kind does not use are empty; `repr` shows none of the secret ones.

    `ascii` and `binary` have `raw`; keys and certificates have DER. Wiping is not promised: these are Python `bytes`,
    because they end in another process's environment or files.
    """

    kind: SecretKind
    raw: bytes = field(default=b"", repr=False)  # ascii, binary
    private_key: bytes = field(default=b"", repr=False)  # PKCS #8 DER: private-key, x509, x509-ca
    public_key: bytes = b""  # SubjectPublicKeyInfo DER: private-key, public-key
    chain: tuple[bytes, ...] = ()  # certificates, DER: x509 and x509-ca; its own first, then the issuers up to the root


SecretValues: TypeAlias = "Mapping[str, SecretValue]"  # by the name that the policy has for the secret
