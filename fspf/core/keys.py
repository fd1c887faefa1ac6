"""Labels of all keys in a volume and how each is derived from another.

The arithmetic and the secret bytes stay in `fspf_native`; who holds the volume key is the CAS's business.
"""

from __future__ import annotations

import struct
from typing import Final

from fspf.core.errors import WrongKeyError
from fspf_native import AuthenticationError, SecretKey

__all__ = [
    "KEYRING_LABEL",
    "ROOT_LABEL",
    "WRAPPED_LEN",
    "AuthenticationError",
    "SecretKey",
    "keyring_aad",
    "log_key",
    "root_key",
    "unwrap_epoch_key",
    "wrap_epoch_key",
    "wrapping_key",
]

# FORMAT.md 1. `fspf 1 siv` is applied inside `SecretKey.wrap` and `siv_seal`.
KEYRING_LABEL: Final = b"fspf 1 keyring"
ROOT_LABEL: Final = b"fspf 1 root "
LOG_LABEL: Final = b"fspf 1 log "
WRAPPED_LEN: Final = 48  # bytes; 16 of synthetic IV, 32 of key

_U32: Final = struct.Struct("<I")


def wrapping_key(volume_key: SecretKey, volume_id: bytes) -> SecretKey:
    """Derive the key that wraps epoch keys in the keyring."""
    return volume_key.derive(KEYRING_LABEL, volume_id)


def root_key(volume_key: SecretKey, volume_id: bytes, epoch: int) -> SecretKey:
    """Derive the key that seals the root records of *epoch*."""
    return volume_key.derive(ROOT_LABEL + _U32.pack(epoch), volume_id)


def log_key(volume_key: SecretKey, volume_id: bytes, epoch: int) -> SecretKey:
    """Derive the key that seals the records of the intent log of *epoch*."""
    return volume_key.derive(LOG_LABEL + _U32.pack(epoch), volume_id)


def keyring_aad(volume_id: bytes, epoch: int, key_version: int) -> bytes:
    """Bind a wrapped epoch key to its volume, epoch and version of the volume key."""
    return KEYRING_LABEL + volume_id + _U32.pack(epoch) + _U32.pack(key_version)


def wrap_epoch_key(
    volume_key: SecretKey, volume_id: bytes, epoch: int, key_version: int, epoch_key: SecretKey
) -> bytes:
    """Wrap *epoch_key* for the keyring; 48 bytes."""
    return wrapping_key(volume_key, volume_id).wrap(epoch_key, keyring_aad(volume_id, epoch, key_version))


def unwrap_epoch_key(
    volume_key: SecretKey, volume_id: bytes, epoch: int, key_version: int, claimed_wrapped: bytes
) -> SecretKey:
    """Open a wrapped epoch key.

    Args:
        volume_key: Of version *key_version*, from the CAS.
        volume_id: Of the volume that the keyring belongs to.
        epoch: That the keyring record names.
        key_version: That the keyring record names.
        claimed_wrapped: 48 bytes from the keyring.

    Raises:
        WrongKeyError: It was wrapped under another key, for another volume, epoch or version, or altered. Only
            the caller can tell which: with a volume key from the CAS it is tampering.
    """
    try:
        return wrapping_key(volume_key, volume_id).unwrap(claimed_wrapped, keyring_aad(volume_id, epoch, key_version))
    except AuthenticationError:
        message = f"keyring: the key of epoch {epoch} does not open under volume key version {key_version}: tampered, or of another volume"
        raise WrongKeyError(message) from None
