"""Identity files: the Ed25519 key that a person or a program proves to a CAS server.

What a key may do is decided by the CAS; other evidence is `fspf.attestation`'s.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fspf.attestation import key_id
from fspf.attestation.signatures import spki_of
from fspf.core.errors import ConflictError, UsageError, WrongKeyError

IdentityKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_MAX_FILE: Final = 16384  # bytes


def make_identity(path: str) -> IdentityKey:
    """Make an identity file with a new key, for its owner only.

    Raises:
        ConflictError: There is a file of this name; it is not touched.
    """
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ConflictError(f"{path} exists: choose another name") from None
    with os.fdopen(fd, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(fd)
    return key


def read_identity(path: str) -> IdentityKey:
    """Read an identity file: PEM of an Ed25519, P-256 or P-384 key.

    Raises:
        WrongKeyError: It cannot be read, others may read it, or it is none.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise WrongKeyError(f"{path} is not a regular file")
            if status.st_mode & 0o077:
                raise WrongKeyError(
                    f"identity {path} has mode {stat.S_IMODE(status.st_mode):04o}, others can read it: chmod 600 {path}"
                )
            pem = file.read(_MAX_FILE)
    except OSError as exc:
        raise WrongKeyError(f"identity {path} cannot be read: {exc.strerror}: `fspf cas identity` makes one") from None
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError):
        raise WrongKeyError(f"{path} is no private key in PEM without a passphrase") from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in {"secp256r1", "secp384r1"}:
        return key
    raise UsageError(f"{path}: an Ed25519, P-256 or P-384 key is expected")


def id_of(key: IdentityKey) -> str:
    """Return the key id, as policies and the CAS name the holder."""
    return key_id(spki_of(key.public_key()))


def public_pem(key: IdentityKey) -> str:
    """Return the public key, as policies name it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")
