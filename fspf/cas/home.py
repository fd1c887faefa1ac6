"""The directory that a CAS server runs from: its settings, its certificate, and what unlocks its master key.

What it stores of volumes and policies is in the store that the settings name; serving is left to `server`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import json
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fspf.attestation import key_id
from fspf.attestation.signatures import spki_of
from fspf.cas.recovery import Approvers
from fspf.cas.unlock import Unlock, read_key_file, sync_directory, write_key_file
from fspf.core.errors import CasError, CasUnreachableError, ConflictError, UsageError, WrongKeyError
from fspf.core.keys import SecretKey

SETTINGS: Final = "cas.json"
CERTIFICATE: Final = "tls.crt"
PRIVATE_KEY: Final = "tls.key"
UNLOCK: Final = "unlock"
KEY_FILE: Final = "master.key"
AUDIT_KEY: Final = "audit.key"
AUDIT_LOG: Final = "audit.log"
RECOVERY: Final = "recovery"  # sealed: who may approve one
TRUST: Final = "trust"  # whose evidence counts: docs/ATTESTATION.md
DEFAULT_LISTEN: Final = "127.0.0.1:8443"
_VERSION: Final = 1
_VALID_DAYS: Final = 3650  # the pinned key counts, not the date
_MAX_FILE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Home:
    """A CAS server's directory.

    Attributes:
        cas_id: 32 hex digits; the audience of its tokens.
        store_url: Where it keeps its values.
        listen: HOST:PORT.
        tpm: TCTI of the TPM whose counter shows an older store; None: there is none.
        window_s: How long answered changes may go without that counter.
    """

    directory: str
    cas_id: str
    store_url: str
    listen: str
    tpm: str | None = None
    window_s: float = 0.0

    def path(self, name: str) -> str:
        """Return the path of one of its files."""
        return os.path.join(self.directory, name)

    @property
    def key_hash(self) -> str:
        """The hash that clients pin: hex SHA-256 of the certificate's SubjectPublicKeyInfo."""
        certificate = _load_certificate(_read(self.path(CERTIFICATE)))
        return hash_of_key(certificate)

    def approvers(self, master: SecretKey) -> Approvers:
        """Return who may approve a recovery.

        Raises:
            CasError: Nobody, or what says so was altered.
        """
        if not os.path.lexists(self.path(RECOVERY)):
            raise CasError(
                f"nobody may approve a recovery of the CAS in {self.directory}: approvers are named when it is made"
            )
        return Approvers.open(_read(self.path(RECOVERY)), master)

    def unlock(self, passphrase: Callable[[], bytes] | None = None) -> SecretKey:
        """Return the master key.

        Raises:
            WrongKeyError: Key file or passphrase are missing or wrong.
            CasError: The directory is damaged.
        """
        unlock = Unlock.parse(_read(self.path(UNLOCK)))
        if unlock.argon2 is not None:
            if passphrase is None:
                raise WrongKeyError(f"the CAS in {self.directory} is locked with a passphrase")
            return unlock.open_with_passphrase(passphrase())
        key = read_key_file(self.path(KEY_FILE))
        if key is None:
            raise WrongKeyError(f"the key file {self.path(KEY_FILE)} is missing: put it back")
        return unlock.open_with_key(key)

    @property
    def audit_key_hash(self) -> str:
        """The hash of the key that signs the audit log, as `fspf cas audit verify --key-hash` takes it."""
        return key_id(spki_of(self.audit_key().public_key()))

    def audit_key(self) -> ed25519.Ed25519PrivateKey:
        """Return the key that signs the audit log.

        Raises:
            CasError: The directory is damaged.
        """
        try:
            key = load_pem_private_key(_read(self.path(AUDIT_KEY)), None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise CasError(f"{self.path(AUDIT_KEY)} is no Ed25519 key: restore it from a backup")
        return key


def hash_of_key(certificate: x509.Certificate) -> str:
    """Return the hex SHA-256 of a certificate's key."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def open_home(directory: str) -> Home:
    """Read the settings in *directory*.

    Raises:
        CasError: There is no CAS server's directory, or it is damaged.
    """
    path = os.path.join(directory, SETTINGS)
    try:
        settings: Any = json.loads(_read(path))
        if settings["version"] != _VERSION:
            raise CasError(f"{path} is of version {settings['version']}, this program knows {_VERSION}")
        return Home(
            directory=os.path.abspath(directory),
            cas_id=str(settings["id"]),
            store_url=str(settings["store"]),
            listen=str(settings["listen"]),
            tpm=None if settings.get("tpm") is None else str(settings["tpm"]),
            window_s=float(settings.get("window_s", 0.0)),
        )
    except (ValueError, KeyError, TypeError):
        raise CasError(f"{path} is damaged: restore it from a backup") from None


def make_home(
    directory: str,
    *,
    store_url: str | None = None,
    listen: str = DEFAULT_LISTEN,
    names: Sequence[str] = (),
    certificate: str | None = None,
    private_key: str | None = None,
    passphrase: bytes | None = None,
    tpm: str | None = None,
    window_s: float = 0.0,
    approvers: Approvers | None = None,
    prepare: Callable[[Home, SecretKey], None] = lambda _home, _master: None,
) -> Home:
    """Make the directory of a new CAS server: complete, or not there as one.

    Args:
        store_url: Default: SQLite in the directory.
        names: Host names and addresses for the certificate that is made.
        certificate, private_key: PEM files, instead of a certificate that is made.
        approvers: Who may approve a recovery; None: nobody.
        prepare: Makes the store; called before the directory counts.
        passphrase: Locks the master key; None: a key file does.

    Raises:
        ConflictError: There is one.
        UsageError: Certificate and key do not fit together, or another setting is none.
    """
    directory = os.path.abspath(directory)
    parse_listen(listen)
    if (certificate is None) != (private_key is None):
        raise UsageError("a certificate needs its private key, and the other way round")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.path.lexists(os.path.join(directory, SETTINGS)):
            raise ConflictError(f"{directory} is the directory of a CAS already")
    except OSError as exc:
        raise CasUnreachableError(f"the directory {directory} cannot be made: {exc.strerror}") from None
    home = Home(
        directory, secrets.token_hex(16), store_url or f"sqlite://{directory}/store.sqlite", listen, tpm, window_s
    )
    if certificate is not None and private_key is not None:
        pem, key_pem = _given(certificate, private_key)
    else:
        pem, key_pem = self_signed([*names, parse_listen(listen)[0]])
    _write(home.path(CERTIFICATE), pem)
    _write(home.path(PRIVATE_KEY), key_pem)
    audit_key = ed25519.Ed25519PrivateKey.generate()
    _write(home.path(AUDIT_KEY), audit_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    master = SecretKey.generate()
    if passphrase is not None:
        unlock = Unlock.by_passphrase(master, passphrase)
    else:
        try:
            unlock = Unlock.by_key_file(master, write_key_file(home.path(KEY_FILE)))
        except FileExistsError:
            raise ConflictError(f"{home.path(KEY_FILE)} is there: it may be the key of another CAS") from None
    _write(home.path(UNLOCK), unlock.pack())
    if approvers is not None:
        _write(home.path(RECOVERY), approvers.seal(master))
    prepare(home, master)
    settings: dict[str, Any] = {"version": _VERSION, "id": home.cas_id, "store": home.store_url, "listen": listen}
    if tpm is not None:
        settings |= {"tpm": tpm, "window_s": window_s}
    _write(home.path(SETTINGS), json.dumps(settings, indent=2).encode() + b"\n")
    return home


def parse_listen(text: str) -> tuple[str, int]:
    """Take HOST:PORT apart; an IPv6 address stands in brackets.

    Raises:
        UsageError: It is none.
    """
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        separator = ""
    if not separator or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise UsageError(f"HOST:PORT is expected, not {text!r}")
    return host, int(port)


def self_signed(names: Sequence[str]) -> tuple[bytes, bytes]:
    """Return a new certificate for *names* and its P-256 key, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FSPF CAS")])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=_VALID_DAYS))
        .add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise UsageError(f"{name!r} is no host name for a certificate") from None


def _given(certificate: str, private_key: str) -> tuple[bytes, bytes]:
    pem, key_pem = _read(certificate), _read(private_key)
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        raise UsageError(f"{private_key} is no private key in PEM without a passphrase") from None
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if hashlib.sha256(public).hexdigest() != hash_of_key(_load_certificate(pem)):
        raise UsageError(f"{private_key} is not the key of the certificate {certificate}")
    return pem, key_pem


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise UsageError("the certificate is none in PEM") from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CasError(f"{path} is not a regular file")
            return file.read(_MAX_FILE)
    except FileNotFoundError:
        raise CasError(f"there is no {path}: `fspf cas init` makes the directory of a CAS") from None
    except OSError as exc:
        raise CasUnreachableError(f"{path} cannot be read: {exc.strerror}") from None


def _write(path: str, data: bytes) -> None:
    """Write a file (mode 0600): complete and durable, or not under this name."""
    part = f"{path}.{secrets.token_hex(4)}"
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(part, path)
        sync_directory(path)
    except OSError as exc:
        raise CasUnreachableError(f"{path} cannot be written: {exc.strerror}") from None
