"""How the master key of a CAS is kept: wrapped under a key file or under a passphrase.

Where the wrapped form is stored, and in which order files and store change, is left to `fspf.cas.embedded`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import Final

import msgpack

from fspf.core.errors import CasError, CasUnreachableError, UsageError, WrongKeyError
from fspf.core.keys import AuthenticationError, SecretKey

_MASTER_LABEL: Final = b"fspf cas 1 master"
_BY_KEY_FILE: Final = "keyfile"
_BY_PASSPHRASE: Final = "passphrase"  # noqa: S105 - the name of a kind
_CHECK_LEN: Final = 8

SALT_LEN: Final = 16
KEY_LEN: Final = 32
# RFC 9106, section 4, second recommended option: for when 2 GiB are too much.
ARGON2_MEMORY_KIB: Final = 65536
ARGON2_PASSES: Final = 3
ARGON2_LANES: Final = 4
# Above this a stored document does not make us spend memory and time on it.
_MAX_MEMORY_KIB: Final = 131072
_MAX_PASSES: Final = 64
_MAX_LANES: Final = 16

KEY_FILE_PREFIX: Final = b"FSPF-CAS-KEY-1 "
_KEY_FILE_LEN: Final = len(KEY_FILE_PREFIX) + 2 * KEY_LEN + 1 + _CHECK_LEN + 1


@dataclass(frozen=True, slots=True)
class Argon2:
    """Parameters of Argon2id; stored beside what they protect."""

    salt: bytes
    memory_kib: int = ARGON2_MEMORY_KIB
    passes: int = ARGON2_PASSES
    lanes: int = ARGON2_LANES

    @classmethod
    def fresh(cls) -> Argon2:
        """Choose a salt."""
        return cls(secrets.token_bytes(SALT_LEN))

    def key(self, passphrase: bytes) -> SecretKey:
        """Derive the key that *passphrase* stands for; takes about 0.1 s and 64 MiB.

        Raises:
            UsageError: The passphrase is empty.
            CasError: The parameters are none that FSPF ever wrote.
        """
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # only when there is a passphrase

        if not passphrase:
            raise UsageError("the passphrase is empty")
        if not (
            len(self.salt) == SALT_LEN
            and 8 * self.lanes <= self.memory_kib <= _MAX_MEMORY_KIB
            and 1 <= self.passes <= _MAX_PASSES
            and 1 <= self.lanes <= _MAX_LANES
        ):
            raise CasError("the parameters for the passphrase are out of range: the file is damaged")
        kdf = Argon2id(
            salt=self.salt, length=KEY_LEN, iterations=self.passes, lanes=self.lanes, memory_cost=self.memory_kib
        )
        return SecretKey.from_bytes(kdf.derive(passphrase))


@dataclass(frozen=True, slots=True)
class Unlock:
    """What the store keeps so that the master key can be had: the way, and the wrapped key. Not secret."""

    wrapped: bytes
    argon2: Argon2 | None = None  # None: by key file

    @classmethod
    def by_key_file(cls, master: SecretKey, file_key: SecretKey) -> Unlock:
        """Wrap *master* under the content of a key file."""
        return cls(file_key.wrap(master, _aad(None)))

    @classmethod
    def by_passphrase(cls, master: SecretKey, passphrase: bytes) -> Unlock:
        """Wrap *master* under *passphrase*."""
        argon2 = Argon2.fresh()
        return cls(argon2.key(passphrase).wrap(master, _aad(argon2)), argon2)

    def fits(self, file_key: SecretKey) -> bool:
        """Tell whether *file_key* opens the master key."""
        try:
            self.open_with_key(file_key)
        except WrongKeyError:
            return False
        return True

    def open_with_key(self, file_key: SecretKey) -> SecretKey:
        """Return the master key.

        Raises:
            WrongKeyError: *file_key* is not the one it was wrapped under.
        """
        return self._unwrap(file_key, "the key file is not the one of this CAS")

    def open_with_passphrase(self, passphrase: bytes) -> SecretKey:
        """Return the master key.

        Raises:
            WrongKeyError: *passphrase* is wrong.
        """
        assert self.argon2 is not None
        return self._unwrap(self.argon2.key(passphrase), "wrong passphrase")

    def _unwrap(self, key: SecretKey, refusal: str) -> SecretKey:
        try:
            return key.unwrap(self.wrapped, _aad(self.argon2))
        except AuthenticationError:
            raise WrongKeyError(refusal) from None

    def pack(self) -> bytes:
        """Encode, with a checksum: damage must not look like a wrong passphrase."""
        body = _document(self.argon2, self.wrapped)
        return body + hashlib.sha256(body).digest()[:_CHECK_LEN]

    @classmethod
    def parse(cls, raw: bytes) -> Unlock:
        """Decode.

        Raises:
            CasError: Damaged, or of a newer kind.
        """
        body, check = raw[:-_CHECK_LEN], raw[-_CHECK_LEN:]
        if hashlib.sha256(body).digest()[:_CHECK_LEN] != check:
            raise CasError("the CAS file is damaged where it keeps its master key: restore it from a backup")
        try:
            kind, *rest = msgpack.unpackb(body, use_list=False, raw=False)
            if kind == _BY_KEY_FILE:
                (wrapped,) = rest
                return cls(wrapped)
            if kind == _BY_PASSPHRASE:
                salt, memory_kib, passes, lanes, wrapped = rest
                return cls(wrapped, Argon2(salt, memory_kib, passes, lanes))
        except (ValueError, TypeError):
            raise CasError("the CAS file is damaged where it keeps its master key: restore it from a backup") from None
        raise CasError(f"the CAS is unlocked by {kind!r}, which this program does not know: use a newer fspf")


def _document(argon2: Argon2 | None, *wrapped: bytes) -> bytes:
    if argon2 is None:
        packed: bytes = msgpack.packb((_BY_KEY_FILE, *wrapped), use_bin_type=True)
    else:
        way = (_BY_PASSPHRASE, argon2.salt, argon2.memory_kib, argon2.passes, argon2.lanes)
        packed = msgpack.packb((*way, *wrapped), use_bin_type=True)
    return packed


def _aad(argon2: Argon2 | None) -> bytes:
    return _MASTER_LABEL + _document(argon2)


# -- key files


def read_key_file(path: str) -> SecretKey | None:
    """Read a key file; None if there is none.

    Raises:
        WrongKeyError: Others may read it, or it is not a key file.
        CasUnreachableError: It cannot be read.
    """
    line = bytearray(_KEY_FILE_LEN + 1)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise WrongKeyError(f"{path} is not a regular file")
            if status.st_mode & 0o077:
                raise WrongKeyError(
                    f"key file {path} has mode {stat.S_IMODE(status.st_mode):04o}, others can read it: chmod 600 {path}"
                )
            length = os.readv(file, [line])
        finally:
            os.close(file)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise CasUnreachableError(f"key file {path} cannot be read: {exc.strerror}") from None
    body, check = line[: -2 - _CHECK_LEN], bytes(line[-2 - _CHECK_LEN : -2])
    secret = bytearray()
    try:
        if length != _KEY_FILE_LEN or line[-2:] != b"\n\0" or not hmac.compare_digest(_key_file_check(body), check):
            raise ValueError
        secret = bytearray.fromhex(body[len(KEY_FILE_PREFIX) : -1].decode("ascii"))
        return SecretKey.from_bytes(secret)
    except ValueError:
        raise WrongKeyError(f"{path} is not a key file of fspf, or is damaged: put the right one back") from None
    finally:
        for buffer in (line, body, secret):
            buffer[:] = bytes(len(buffer))


def write_key_file(path: str) -> SecretKey:
    """Make a key file with a fresh key: complete and synced, or not there at all.

    Raises:
        FileExistsError: There is one; it is not touched.
        CasUnreachableError: It cannot be written.
    """
    secret = bytearray(secrets.token_bytes(KEY_LEN))
    body = bytearray(KEY_FILE_PREFIX + secret.hex().encode() + b" ")
    line = body + _key_file_check(body) + b"\n"
    part = f"{path}.{secrets.token_hex(4)}"
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.write(file, line) != len(line):
                raise OSError(0, "short write")
            os.fsync(file)
        finally:
            os.close(file)
        place_new(part, path)
        return SecretKey.from_bytes(secret)
    except FileExistsError:
        raise
    except OSError as exc:
        raise CasUnreachableError(f"key file {path} cannot be written: {exc.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)
        for buffer in (line, body, secret):
            buffer[:] = bytes(len(buffer))


def half_made_key_files(path: str) -> list[str]:
    """Return what `write_key_file` left for *path* under temporary names when it was killed."""
    directory, name = os.path.split(path)
    temporary = re.compile(re.escape(name) + r"(\.new)?\.[0-9a-f]{8}")
    return [os.path.join(directory, one) for one in os.listdir(directory or ".") if temporary.fullmatch(one)]


def place_new(part: str, path: str) -> None:
    """Give the complete and synced file *part* its final name, durably; `FileExistsError` if the name is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: only there can two makers of a CAS meet
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.rename(part, path)
    sync_directory(path)


def sync_directory(path: str) -> None:
    """Make the name *path* durable."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _key_file_check(body: bytearray) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_CHECK_LEN].encode()
