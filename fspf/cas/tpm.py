"""What a CAS server asks of a TPM 2.0: a counter that cannot be turned back.

Speaks through tpm2-tools, a process for each command (about 20 ms; a TPM itself takes as long). Quotes, which prove to others
what runs here, are left to `fspf.attestation`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import subprocess
import tempfile
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fspf.core.errors import CasError, CasUnreachableError, RolledBackError
from fspf.core.keys import SecretKey

DEFAULT_INDEX: Final = 0x01805F00  # NV index of the counter: of the range that owners use freely
DEFAULT_KEY: Final = 0x8101F5F0  # persistent handle of the key that certifies it
_AUTH_LABEL: Final = b"fspf cas 2 counter auth"
_IDENTITY_LABEL: Final = b"fspf cas 2 counter identity\0"
_TIMEOUT_S: Final = 30.0
_ATTRIBUTES: Final = "nt=counter|authread|authwrite|no_da"
_GENERATED: Final = 0xFF544347  # TPM_GENERATED_VALUE: only a TPM signs what begins so with a restricted key
_ATTEST_NV: Final = 0x8014
_WORK: Final = "/dev/shm"  # noqa: S108 - only for what may be read by anybody, in a directory of its own
_ABSENT: Final = ("0x18b", "0x28b", "TPM_RC_HANDLE", "handle is not correct")


class Tpm:
    """One TPM, by its TCTI."""

    def __init__(self, tcti: str = "") -> None:
        """Make one.

        Args:
            tcti: Such as `device:/dev/tpmrm0`; "" for what tpm2-tools find by themselves.
        """
        self.tcti: Final = tcti or os.environ.get("TPM2TOOLS_TCTI", "")

    def run(self, program: str, *arguments: str, given: bytes | None = None, cwd: str | None = None) -> bytes:
        """Run one of tpm2-tools; what it wrote to stdout.

        Raises:
            CasUnreachableError: It failed. Whether the TPM did what was asked is not known.
        """
        environment = os.environ | {"TPM2TOOLS_TCTI": self.tcti} if self.tcti else dict(os.environ)
        environment["TSS2_LOG"] = "all+none"  # its own words go to stderr, one line of which is shown
        try:
            done = subprocess.run(
                [program, *arguments],
                check=False,
                input=given,
                capture_output=True,
                timeout=_TIMEOUT_S,
                env=environment,
                cwd=cwd,
            )
        except FileNotFoundError:
            raise CasUnreachableError(f"{program} is not there: install tpm2-tools") from None
        except subprocess.TimeoutExpired:
            raise CasUnreachableError(
                f"the TPM gives no answer: {program} did not end within {_TIMEOUT_S:g} s"
            ) from None
        if done.returncode != 0:
            raise CasUnreachableError(f"the TPM ({self.tcti or 'default'}): {program}: {_complaint(done.stderr)}")
        return done.stdout


def _complaint(stderr: bytes) -> str:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    wanted = [line for line in lines if "ERROR" in line] or lines or ["no reason given"]
    return wanted[0].removeprefix("ERROR: ")[:300]


# -- the counter


class TpmCounter:
    """Implements `fspf.cas.counter.OutsideCounter`: an NV index of type counter.

    Who has the index's password, which is derived from the master key, may count; a counter cannot be set back, not
    even by removing the index: a TPM starts a new one above all it ever had. Values are read certified by a key that
    cannot leave the TPM, over a nonce: an emulator in between cannot make one up.
    """

    def __init__(
        self, tpm: Tpm, master: SecretKey, *, index: int = DEFAULT_INDEX, key: int = DEFAULT_KEY, create: bool = False
    ) -> None:
        """Find the counter.

        Args:
            tpm: Where it is.
            master: The CAS's master key.
            index: Its NV index.
            key: Persistent handle of the certifying key.
            create: Make what is missing of the two.

        Raises:
            CasUnreachableError: The TPM gives no answer, or has no such counter.
        """
        self._tpm = tpm
        self._index = f"{index:#x}"
        self._key = f"{key:#x}"
        # Tools take it as text; through stdin, so that no list of processes shows it.
        self._auth = master.siv_seal(_AUTH_LABEL + index.to_bytes(4, "big"), _AUTH_LABEL)[:16].hex().encode()
        if create:
            self._create()
        self._public = self._read_public()
        self._identity = b""
        self.read()

    @property
    def identity(self) -> bytes:
        return self._identity

    def _create(self) -> None:
        handles = self._tpm.run("tpm2_getcap", "handles-persistent") + self._tpm.run("tpm2_getcap", "handles-nv-index")
        known = handles.decode(errors="replace").upper()
        with tempfile.TemporaryDirectory(dir=_workplace(), prefix="fspf-tpm-") as work:
            if self._key.upper() not in known:
                self._tpm.run(
                    "tpm2_createprimary",
                    *("-C", "o", "-G", "ecc256:ecdsa-sha256:null", "-c", "key.ctx"),
                    *("-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda"),
                    cwd=work,
                )
                self._tpm.run("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", self._key, cwd=work)
                _flush(self._tpm)
        if self._index.upper().removeprefix("0X0").removeprefix("0X") not in known:
            self._tpm.run("tpm2_nvdefine", "-C", "o", "-a", _ATTRIBUTES, "-p", "file:-", self._index, given=self._auth)
            self._count()  # until the first time it has no value

    def _read_public(self) -> bytes:
        with tempfile.TemporaryDirectory(dir=_workplace(), prefix="fspf-tpm-") as work:
            self._tpm.run("tpm2_readpublic", "-c", self._key, "-f", "tss", "-o", "key.pub", cwd=work)
            return _content(work, "key.pub")

    def _count(self) -> None:
        self._tpm.run("tpm2_nvincrement", "-C", self._index, "-P", "file:-", self._index, given=self._auth)

    def increment(self) -> int:
        """Add one; return the new value, certified."""
        self._count()
        return self.read()

    def read(self) -> int:
        """Return its value, certified by the TPM.

        Raises:
            CasUnreachableError: The TPM gives no answer, or has no such counter.
            RolledBackError: The answer is not this counter's.
        """
        nonce = secrets.token_bytes(20)
        with tempfile.TemporaryDirectory(dir=_workplace(), prefix="fspf-tpm-") as work:
            self._tpm.run(
                "tpm2_nvcertify",
                *("-C", self._key, "-c", self._index, "-p", "file:-", "-g", "sha256", "-s", "ecdsa", "-f", "plain"),
                *("-q", nonce.hex(), "-o", "signature", "--attestation", "attest", "--size", "8", self._index),
                given=self._auth,
                cwd=work,
            )
            attest, signature = _content(work, "attest"), _content(work, "signature")
        name, value = certified(self._public, attest, signature, nonce)
        identity = hashlib.sha256(_IDENTITY_LABEL + self._public + name).digest()
        if not self._identity:
            self._identity = identity
        if identity != self._identity:
            raise RolledBackError("the TPM's counter was made anew while the CAS was running: stop, and start again")
        return value


def certified(public: bytes, attest: bytes, signature: bytes, nonce: bytes) -> tuple[bytes, int]:
    """Check what TPM2_NV_Certify returned; the index's name and the counter's value.

    Args:
        public: TPM2B_PUBLIC of the key, of P-256: it ends with the two coordinates.
        attest: TPMS_ATTEST.
        signature: DER.
        nonce: That was asked with.

    Raises:
        RolledBackError: It proves nothing.
    """
    try:
        x, y = public[-66:-34], public[-32:]
        point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1())
        point.public_key().verify(signature, attest, ec.ECDSA(hashes.SHA256()))
        magic, kind = struct.unpack_from(">IH", attest)
        _, at = _sized(attest, 6)
        extra, at = _sized(attest, at)
        at += 8 + 4 + 4 + 1 + 8  # clock, two counts of restarts, whether the clock is safe; firmware version
        name, at = _sized(attest, at)
        (offset,) = struct.unpack_from(">H", attest, at)
        contents, at = _sized(attest, at + 2)
    except (InvalidSignature, ValueError, struct.error):
        raise RolledBackError(
            "the TPM's counter: its value is not signed by the TPM's own key; something between CAS and TPM alters it"
        ) from None
    if (magic, kind, extra, offset, len(contents), at) != (_GENERATED, _ATTEST_NV, nonce, 0, 8, len(attest)):
        raise RolledBackError(
            "the TPM's counter: what the TPM signed is no answer to this question; something between CAS and TPM alters it"
        )
    return name, int.from_bytes(contents, "big")


def _sized(raw: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">H", raw, at)
    if at + 2 + length > len(raw):
        raise ValueError
    return raw[at + 2 : at + 2 + length], at + 2 + length


def _flush(tpm: Tpm) -> None:
    """Make room: a TPM without a resource manager holds three objects, and the tools leave theirs."""
    tpm.run("tpm2_flushcontext", "-t")


def _workplace() -> str | None:
    return _WORK if os.access(_WORK, os.W_OK) else None


def _content(work: str, name: str) -> bytes:
    try:
        with open(os.path.join(work, name), "rb") as file:
            return file.read()
    except OSError as exc:
        raise CasError(f"tpm2-tools did not write {name}: {exc.strerror}") from None
