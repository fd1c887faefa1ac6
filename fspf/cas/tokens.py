"""Tokens of a CAS server: what a client proved, sealed under a key that all processes of one CAS share.

What a client must prove is `gate`'s business, that a request comes from the token's holder that of `proof`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from fspf.core.errors import AccessDeniedError
from fspf.core.keys import AuthenticationError, SecretKey
from fspf.policy.principal import Principal

TOKEN_TTL_NS: Final = 900_000_000_000
CHALLENGE_TTL_NS: Final = 60_000_000_000
CHALLENGE_RANDOM_LEN: Final = 16
_BINDING_LABEL: Final = b"fspf attest 1\0"
_TOKEN_LABEL: Final = b"fspf cas token 1"
_CHALLENGE_LABEL: Final = b"fspf cas challenge 1"
_TOKEN_VERSION: Final = 1
_MAX_TEXT: Final = 8192  # characters of a token
_EXPIRY: Final = struct.Struct("<Q")


class UnauthenticatedError(AccessDeniedError):
    """The request has no token, or none that counts; another one may.

    Attributes:
        code: RFC 9449's and RFC 6750's error codes.
    """

    def __init__(self, code: str, message: str, *, usual: bool = False) -> None:
        self.code = code
        self.usual = usual  # honest clients run into it too
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says."""

    token_id: bytes
    principal: Principal
    policy_hash: str  # of the policy that it was attested under, "" if under none
    public_key: bytes  # DER SubjectPublicKeyInfo; its holder, and nobody else, may use the token
    issued_ns: int
    expires_ns: int


class Tokens:
    """Makes and opens tokens and challenges.

    Args:
        master: Key of the CAS.
        audience: Id of the CAS; those of another one are refused.
    """

    def __init__(self, master: SecretKey, audience: str) -> None:
        self._aad = _TOKEN_LABEL + audience.encode()
        self._key = master.derive(_TOKEN_LABEL)
        self._challenge_aad = _CHALLENGE_LABEL + audience.encode()
        self._challenge_key = master.derive(_CHALLENGE_LABEL)

    def seal(self, token: Token) -> str:
        """Return the text that clients carry; it tells them nothing."""
        principal = token.principal
        elements = (
            _TOKEN_VERSION,
            token.token_id,
            sorted(principal.keys),
            principal.policy,
            principal.service,
            principal.instance,
            token.policy_hash,
            token.public_key,
            token.issued_ns,
            token.expires_ns,
        )
        return encode(self._key.siv_seal(msgpack.packb(elements), self._aad))

    def open(self, text: str) -> Token:
        """Return what a token says; whether it has expired is left to the caller, who may keep it.

        Raises:
            UnauthenticatedError: It is none of this CAS.
        """
        try:
            if len(text) > _MAX_TEXT:
                raise ValueError
            elements: list[Any] = msgpack.unpackb(self._key.siv_open(decode(text), self._aad))
            version, token_id, keys, policy, service, instance, *rest = elements
            if version != _TOKEN_VERSION:
                raise ValueError
            return Token(token_id, Principal(frozenset(keys), policy, service, instance), *rest)
        except (AuthenticationError, ValueError, TypeError):
            raise UnauthenticatedError("invalid_token", "the token is none of this CAS") from None

    def challenge(self, random: bytes, expires_ns: int) -> bytes:
        """Return a nonce that only this CAS can have made."""
        assert len(random) == CHALLENGE_RANDOM_LEN
        return self._challenge_key.siv_seal(_EXPIRY.pack(expires_ns) + random, self._challenge_aad)

    def open_challenge(self, nonce: bytes, now_ns: int) -> int:
        """Return when *nonce* expires.

        Raises:
            AccessDeniedError: It is none of this CAS, or has expired.
        """
        try:
            plain = self._challenge_key.siv_open(nonce, self._challenge_aad)
        except (AuthenticationError, ValueError):
            raise AccessDeniedError("nonce: not a challenge of this CAS") from None
        expires_ns = int(_EXPIRY.unpack_from(plain)[0])
        if now_ns >= expires_ns:
            raise AccessDeniedError("nonce: the challenge has expired, ask for a new one")
        return expires_ns


def binding_of(nonce: bytes, spki: bytes) -> bytes:
    """Return what evidence must cover."""
    return hashlib.sha256(_BINDING_LABEL + nonce + spki).digest()


def encode(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Return what base64url without padding encodes; ValueError if it is none."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("not base64url") from None
    if encode(data) != text:
        raise ValueError("not canonical base64url")
    return data
