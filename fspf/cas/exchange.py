"""Carry volume keys between a CAS server and its client: X25519, HKDF, and the wrapping of `SecretKey`.

Who gets a key is left to the server; that its answer is its own, to TLS and the pinned key.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fspf.core.errors import AccessDeniedError, UsageError
from fspf.core.keys import AuthenticationError, SecretKey

PUBLIC_KEY_LEN: Final = 32
WRAPPED_LEN: Final = 48
HANDLE_TTL_NS: Final = 300_000_000_000
_LABEL: Final = b"fspf cas exchange 1"
_HANDLE_LABEL: Final = b"fspf cas exchange 1 handle"
_KEY_VERSION: Final = struct.Struct("<I")
_EXPIRY: Final = struct.Struct("<Q")


class Side:
    """One side's key pair for one exchange."""

    def __init__(self, private: X25519PrivateKey | None = None) -> None:
        self._private = private or X25519PrivateKey.generate()
        self.public: Final = self._private.public_key().public_bytes_raw()

    def private_bytes(self) -> bytes:
        """Return the private key, to be sealed at once."""
        return self._private.private_bytes_raw()

    def shared(self, peer: bytes) -> SecretKey:
        """Return the key that both sides derive.

        Raises:
            UsageError: *peer* is no public key, or one that makes the result known to everybody.
        """
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise UsageError("public_key: not a usable X25519 public key") from None
        both = b"".join(sorted((self.public, peer)))
        return SecretKey.from_bytes(secret).derive(_LABEL, both)


def wrap(shared: SecretKey, key: SecretKey, volume_id: bytes, key_version: int) -> bytes:
    """Wrap the key of one volume; 48 bytes."""
    return shared.wrap(key, _LABEL + volume_id + _KEY_VERSION.pack(key_version))


def unwrap(shared: SecretKey, wrapped: bytes, volume_id: bytes, key_version: int) -> SecretKey:
    """Open the key of one volume.

    Raises:
        UsageError: It was wrapped for another exchange, volume or version, or altered.
    """
    try:
        return shared.unwrap(wrapped, _LABEL + volume_id + _KEY_VERSION.pack(key_version))
    except (AuthenticationError, ValueError):
        raise UsageError(f"the wrapped key of volume {volume_id.hex()} does not open") from None


class Handles:
    """Lets clients send keys: a private key travels sealed to the client and back, so that any process can use it.

    Args:
        master: Key of the CAS.
    """

    def __init__(self, master: SecretKey) -> None:
        self._key = master.derive(_HANDLE_LABEL)

    def issue(self, now_ns: int) -> tuple[Side, bytes]:
        """Return a new key pair, and the handle that brings it back."""
        side = Side()
        return side, self._key.siv_seal(_EXPIRY.pack(now_ns + HANDLE_TTL_NS) + side.private_bytes(), _HANDLE_LABEL)

    def open(self, handle: bytes, now_ns: int) -> Side:
        """Return the key pair that belongs to *handle*.

        Raises:
            AccessDeniedError: It is none of this CAS, or has expired.
        """
        try:
            plain = self._key.siv_open(handle, _HANDLE_LABEL)
        except (AuthenticationError, ValueError):
            raise AccessDeniedError("handle: not one of this CAS") from None
        (expires_ns,) = _EXPIRY.unpack_from(plain)
        if now_ns >= expires_ns:
            raise AccessDeniedError("handle: expired, ask for a new one")
        return Side(X25519PrivateKey.from_private_bytes(plain[_EXPIRY.size :]))
