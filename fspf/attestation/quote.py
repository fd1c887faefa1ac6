"""Intel quotes of SGX enclaves and TDX virtual machines, versions 3, 4 and 5: takes them apart and checks what holds them together.

Collateral is checked by `fspf.attestation.tcb`, and both together by `fspf.attestation.dcap`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from fspf.attestation.certificates import Certificate, load_certificates
from fspf.attestation.reading import Reader
from fspf.attestation.signatures import check_ecdsa, check_raw_p256
from fspf.core.errors import AttestationError

SGX: Final = "sgx"
TDX: Final = "tdx"
_TEES: Final = {0x00: SGX, 0x81: TDX}
_ECDSA_P256: Final = 2  # attestation key type
_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")  # Intel's quoting enclave
_CHAIN: Final = 5  # certification data: PEM of PCK certificate, its CA and the root
_QE_REPORT: Final = 6  # certification data: QE report, and the chain inside it
_SGX_LEN, _TD10_LEN, _TD15_LEN = 384, 584, 648
_BODIES: Final = {1: (SGX, _SGX_LEN), 2: (TDX, _TD10_LEN), 3: (TDX, _TD15_LEN)}  # version 5 names them


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """What the processor says of one enclave. Authentic only after its signature was checked."""

    cpu_svn: bytes
    miscselect: bytes
    attributes: bytes
    mrenclave: bytes
    mrsigner: bytes
    isvprodid: int
    isvsvn: int
    report_data: bytes

    @property
    def debug(self) -> bool:
        """Whether a debugger may look inside."""
        return bool(self.attributes[0] & 0x02)

    @property
    def initialized(self) -> bool:
        """Whether the enclave's measurement was complete."""
        return bool(self.attributes[0] & 0x01)


@dataclass(frozen=True, slots=True)
class DomainReport:
    """What the TDX module says of one virtual machine. Authentic only after its signature was checked."""

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes | None  # TDX 1.5 in version 5: that of the module now, after an update without restart
    mrservicetd: bytes | None

    @property
    def debug(self) -> bool:
        """Whether the host may look inside: the whole first byte of the attributes means that nobody vouches for it."""
        return self.td_attributes[0] != 0


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote, parsed."""

    version: int
    tee: str  # SGX or TDX
    body: EnclaveReport | DomainReport
    signed: bytes  # header and body
    signature: bytes
    attestation_key: bytes  # P-256, x and y
    qe_report: EnclaveReport
    qe_report_signed: bytes
    qe_report_signature: bytes
    qe_authentication: bytes
    chain: bytes  # PEM
    length: int  # bytes of the quote; what follows belongs to nobody


def parse_quote(raw: bytes) -> Quote:
    """Take a quote apart. Zeros may follow it, since some kernels hand out their whole buffer.

    Raises:
        AttestationError: It is malformed, of an unknown version or type, or followed by something.
    """
    reader = Reader("quote", raw)
    version = reader.little(2, "version")
    if version not in {3, 4, 5}:
        raise AttestationError("quote", f"version 3, 4 or 5 is expected, seen {version}")
    key_type = reader.little(2, "attestation key type")
    if key_type != _ECDSA_P256:
        raise AttestationError("quote", f"an attestation key of type 2 (ECDSA P-256) is expected, seen {key_type}")
    tee_type = reader.little(4, "TEE type")
    tee = _TEES.get(tee_type)
    if tee is None or (version == 3 and tee != SGX):
        raise AttestationError("quote", f"SGX (0) or from version 4 TDX (0x81) is expected, seen {tee_type:#x}")
    reader.take(4, "QE and PCE SVN")
    if reader.take(16, "QE vendor") != _QE_VENDOR:
        raise AttestationError("quote", "Intel's quoting enclave is expected")
    reader.take(20, "user data")
    body, tee = _read_body(reader, version, tee)
    signed = raw[: reader.offset]
    data = reader.take(reader.little(4, "length of the signature data"), "signature data")
    length = reader.offset
    if any(reader.take(reader.left, "the end")):
        raise AttestationError(
            "quote", f"the quote ends at {length}, and {len(raw) - length} bytes that are not zero follow"
        )
    inner = Reader("quote", data)
    signature, attestation_key = inner.take(64, "signature"), inner.take(64, "attestation key")
    if version >= 4:
        certification = _certification(inner, _QE_REPORT)
        inner.end("signature data")
        inner = Reader("quote", certification)
    qe_signed = inner.take(_SGX_LEN, "QE report")
    qe_signature = inner.take(64, "signature of the QE report")
    authentication = inner.take(inner.little(2, "length of QE authentication data"), "QE authentication data")
    chain = _certification(inner, _CHAIN)
    inner.end("signature data")
    return Quote(
        version, tee, body, signed, signature, attestation_key, _read_enclave(Reader("quote", qe_signed)), qe_signed,
        qe_signature, authentication, chain, length,
    )  # fmt: skip


def check_quote(quote: Quote) -> tuple[Certificate, list[Certificate]]:
    """Check that the quote is signed by the quoting enclave, and that by the key of the first certificate.

    Returns:
        The PCK certificate, and those that follow it; nothing of them is verified.

    Raises:
        AttestationError: One of the signatures or hashes does not fit.
    """
    factor = quote.tee
    leaf, *issuers = load_certificates(quote.chain.rstrip(b"\0"), f"{factor}.certificates")
    check_raw_p256(quote.attestation_key, quote.signature, quote.signed, f"{factor}.signature")
    digest = hashlib.sha256(quote.attestation_key + quote.qe_authentication).digest()
    if quote.qe_report.report_data != digest + bytes(32):
        raise AttestationError(f"{factor}.qe", "a QE report about this attestation key is expected")
    r, s = (int.from_bytes(quote.qe_report_signature[at : at + 32], "big") for at in (0, 32))
    check_ecdsa(leaf.key, r, s, quote.qe_report_signed, f"{factor}.qe")
    return leaf, issuers


def _read_body(reader: Reader, version: int, tee: str) -> tuple[EnclaveReport | DomainReport, str]:
    kind = _BODIES[1] if tee == SGX else _BODIES[2]
    if version == 5:
        number, size = reader.little(2, "body type"), reader.little(4, "body size")
        named = _BODIES.get(number)
        if named is None or named != (tee, size):
            raise AttestationError("quote", f"a body of {tee} is expected, seen type {number} of {size} bytes")
        kind = named
    inner = Reader("quote", reader.take(kind[1], "body"))
    body: EnclaveReport | DomainReport = _read_enclave(inner) if tee == SGX else _read_domain(inner)
    inner.end("body")
    return body, tee


def _read_enclave(reader: Reader) -> EnclaveReport:
    cpu_svn = reader.take(16, "CPU SVN")
    miscselect = reader.take(4, "MISCSELECT")
    reader.take(28, "reserved")
    attributes = reader.take(16, "attributes")
    mrenclave = reader.take(32, "MRENCLAVE")
    reader.take(32, "reserved")
    mrsigner = reader.take(32, "MRSIGNER")
    reader.take(96, "reserved")
    isvprodid, isvsvn = reader.little(2, "product id"), reader.little(2, "SVN")
    reader.take(60, "reserved")
    return EnclaveReport(
        cpu_svn, miscselect, attributes, mrenclave, mrsigner, isvprodid, isvsvn, reader.take(64, "report data")
    )


def _read_domain(reader: Reader) -> DomainReport:
    tee_tcb_svn = reader.take(16, "TEE TCB SVN")
    mrseam, mrsignerseam = reader.take(48, "MRSEAM"), reader.take(48, "MRSIGNERSEAM")
    seam_attributes, td_attributes, xfam = (reader.take(8, what) for what in ("SEAM attributes", "attributes", "XFAM"))
    mrtd, mrconfigid, mrowner, mrownerconfig = (
        reader.take(48, what) for what in ("MRTD", "MRCONFIGID", "MROWNER", "MROWNERCONFIG")
    )
    rtmr0, rtmr1, rtmr2, rtmr3 = (reader.take(48, f"RTMR{index}") for index in range(4))
    report_data = reader.take(64, "report data")
    svn_2, service = (reader.take(16, "TEE TCB SVN 2"), reader.take(48, "MRSERVICETD")) if reader.left else (None, None)
    return DomainReport(
        tee_tcb_svn, mrseam, mrsignerseam, seam_attributes, td_attributes, xfam, mrtd, mrconfigid, mrowner, mrownerconfig,
        (rtmr0, rtmr1, rtmr2, rtmr3), report_data, svn_2, service,
    )  # fmt: skip


def _certification(reader: Reader, expected: int) -> bytes:
    number, size = reader.little(2, "certification type"), reader.little(4, "length of certification data")
    if number != expected:
        raise AttestationError("quote", f"certification data of type {expected} is expected, seen {number}")
    return reader.take(size, "certification data")
