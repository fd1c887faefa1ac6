"""Evidence `sev-snp`: a report of AMD's secure processor about a confidential VM (ABI versions 2 and 3).

Getting a report is left to `fspf.attestation.make_vm`. AMD signs no list of good TCB versions: a policy names the least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives import hashes

from fspf.attestation.certificates import (
    Certificate,
    check_crl_date,
    check_issued,
    check_not_revoked,
    check_valid,
    load_certificates,
    load_crl,
)
from fspf.attestation.claims import Claims, Trust
from fspf.attestation.reading import Fields, Reader
from fspf.attestation.signatures import check_ecdsa
from fspf.core.errors import AttestationError

KIND: Final = "sev-snp"
REPORT_LEN: Final = 1184
SIGNED_LEN: Final = 0x2A0
REPORT_DATA_LEN: Final = 64
_VERSIONS: Final = (2, 3)
_ECDSA_P384_SHA384: Final = 1
_SIGNERS: Final = {0: "VCEK", 1: "VLEK"}
_MIGRATION_AGENT: Final = 1 << 18
_DEBUG: Final = 1 << 19
_NO_AGENT: Final = b"\xff" * 32

# AMD's arc, and what its certificates say below it.
_ARC: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT: Final = _ARC + "2"
_CHIP_ID: Final = _ARC + "4"
_TCB_OIDS: Final = {"fmc": "3.9", "bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8"}

# Offsets of the parts in the 8 bytes of a TCB version, by product; the report has no other sign of which it is.
_TCB_LAYOUT: Final[Mapping[str, Mapping[str, int]]] = {
    "Milan": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Genoa": {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    "Turin": {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
# CPUID family, and high halves of the model, of each product: reports have them from version 3 on.
_CPUS: Final = {"Milan": (0x19, {0x0}), "Genoa": (0x19, {0x1, 0xA}), "Turin": (0x1A, {0x0, 0x1})}


@dataclass(frozen=True, slots=True)
class Report:
    """A report, parsed. Nothing of it is verified; versions of the TCB are 8 bytes whose layout depends on the product."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: bytes
    platform_info: int
    flags: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id_agent: bytes
    reported_tcb: bytes
    cpu: tuple[int, int, int] | None  # family, model, stepping
    chip_id: bytes  # zeros: masked by the host
    committed_tcb: bytes
    launch_tcb: bytes
    r: int
    s: int
    signed: bytes

    @property
    def signer(self) -> str:
        """Which kind of key signed it, as the report says."""
        number = self.flags >> 2 & 7
        return _SIGNERS.get(number, f"key {number}")

    @property
    def debug(self) -> bool:
        """Whether the host may look inside."""
        return bool(self.policy & _DEBUG)


def parse_report(raw: bytes) -> Report:
    """Take a report apart.

    Raises:
        AttestationError: It has another length or version, or something in unsigned places.
    """
    factor = f"{KIND}.report"
    if len(raw) != REPORT_LEN:
        raise AttestationError(factor, f"{REPORT_LEN} bytes are expected, seen {len(raw)}")
    reader = Reader(factor, raw)
    version = reader.little(4, "version")
    if version not in _VERSIONS:
        raise AttestationError(factor, f"version 2 or 3 is expected, seen {version}")
    guest_svn = reader.little(4, "guest SVN")
    policy = reader.little(8, "policy")
    family_id, image_id = reader.take(16, "family id"), reader.take(16, "image id")
    vmpl = reader.little(4, "VMPL")
    algorithm = reader.little(4, "signature algorithm")
    current_tcb = reader.take(8, "current TCB")
    platform_info = reader.little(8, "platform information")
    flags = reader.little(4, "flags")
    reader.take(4, "reserved")
    report_data = reader.take(64, "report data")
    measurement = reader.take(48, "measurement")
    host_data = reader.take(32, "host data")
    id_key, author_key = reader.take(48, "id key digest"), reader.take(48, "author key digest")
    reader.take(32, "report id")
    agent = reader.take(32, "report id of the migration agent")
    reported_tcb = reader.take(8, "reported TCB")
    cpuid = reader.take(3, "CPUID")
    reader.take(21, "reserved")
    chip_id = reader.take(64, "chip id")
    committed_tcb = reader.take(8, "committed TCB")
    reader.take(8, "firmware versions")
    launch_tcb = reader.take(8, "launch TCB")
    reader.take(SIGNED_LEN - reader.offset, "reserved")
    r, s = reader.little(72, "r"), reader.little(72, "s")
    if any(reader.take(reader.left, "the end")):
        raise AttestationError(factor, "zeros are expected after the signature")
    cpu = (cpuid[0], cpuid[1], cpuid[2]) if version >= 3 else None
    return Report(
        version, guest_svn, policy, family_id, image_id, vmpl, algorithm, current_tcb, platform_info, flags, report_data,
        measurement, host_data, id_key, author_key, agent, reported_tcb, cpu, chip_id, committed_tcb, launch_tcb, r, s,
        raw[:SIGNED_LEN],
    )  # fmt: skip


def parse_tcb(tcb: bytes, product: str) -> dict[str, int]:
    """Return the parts of a TCB version of *product* by their names in a policy."""
    return {name: tcb[offset] for name, offset in _TCB_LAYOUT[product].items()}


def verify(fields: Fields, binding: bytes, trust: Trust, now_ns: int) -> Claims:
    """Check a report with the certificates that came with it or that *trust* has.

    Raises:
        AttestationError: It is not AMD's statement about this challenge.
    """
    fields.only("report", "certificates")
    certificates = [
        one for data in fields.data_list("certificates") for one in load_certificates(data, f"{KIND}.certificates")
    ]
    report_data = binding + bytes(REPORT_DATA_LEN - len(binding))
    return verify_report(fields.data("report"), certificates, report_data, trust, now_ns)


def verify_report(
    raw: bytes, certificates: Sequence[Certificate], report_data: bytes, trust: Trust, now_ns: int
) -> Claims:
    """Check a report: chain, revocation, signature, and that certificate and report are of one chip and one TCB.

    Args:
        raw: The report.
        certificates: VCEK or VLEK first, then what *trust* does not have of ASK or ASVK, and ARK.
        report_data: The 64 bytes that the guest must have put in.
        trust: Whose roots count.
        now_ns: UTC ns since 1970.

    Raises:
        AttestationError: Something is not as it must be.
    """
    report = parse_report(raw)
    if not certificates:
        raise AttestationError(f"{KIND}.certificates", "the VCEK or VLEK is expected first, seen none")
    leaf = certificates[0]
    ask, ark = _check_chain(leaf, certificates[1:], trust, now_ns)
    product = ark.subject.removeprefix("ARK-")
    if product not in _TCB_LAYOUT:
        raise AttestationError(f"{KIND}.product", f"one of {', '.join(_TCB_LAYOUT)} is expected, seen {product!r:.40}")
    signer = "VLEK" if ask.subject == f"SEV-VLEK-{product}" else "VCEK"
    if signer != report.signer or (signer == "VCEK" and ask.subject != f"SEV-{product}"):
        raise AttestationError(
            f"{KIND}.certificates", f"the certificate of a {report.signer} is expected, seen a {signer}"
        )
    _check_same_machine(report, leaf, product, signer)
    if report.signature_algorithm != _ECDSA_P384_SHA384:
        raise AttestationError(f"{KIND}.signature", "ECDSA P-384 with SHA-384 (1) is expected")
    check_ecdsa(leaf.key, report.r, report.s, report.signed, f"{KIND}.signature", hashes.SHA384())
    if report.report_data != report_data:
        raise AttestationError(
            f"{KIND}.report_data", f"{_short(report_data)} is expected, seen {_short(report.report_data)}"
        )
    if report.policy & _MIGRATION_AGENT and report.report_id_agent != _NO_AGENT:
        raise AttestationError(f"{KIND}.policy", "a guest without migration agent is expected, seen one with")
    return _claims(report, product, min(leaf.not_after_ns, ask.not_after_ns, ark.not_after_ns))


def _check_chain(
    leaf: Certificate, sent: Sequence[Certificate], trust: Trust, now_ns: int
) -> tuple[Certificate, Certificate]:
    """Check leaf, ASK or ASVK, and ARK; return the latter two."""
    factor = f"{KIND}.certificates"
    # The CAS's own come first: what a client sends may bear the same name.
    pool = [one for data in trust.certificates for one in load_certificates(data, "trust.certificates")] + list(sent)
    ask = _find(leaf.issuer_name, pool, factor, "ASK or ASVK")
    ark = _find(ask.issuer_name, pool, factor, "ARK")
    if ark.fingerprint not in trust.amd_roots:
        raise AttestationError(factor, f"an AMD root key is expected, seen {ark.subject!r:.40} with {ark.fingerprint}")
    check_issued(ask, ark, factor)  # the ARK is known by its hash; its own signature says no more
    check_issued(leaf, ask, factor)
    for certificate in (ark, ask, leaf):
        check_valid(certificate, now_ns, factor)
    for der in trust.crls:
        crl = load_crl(der, "trust.crls")
        if crl.issuer_name == ark.subject_name:
            check_issued(crl, ark, f"{KIND}.crl")
            check_crl_date(crl, now_ns, trust.stale_ns, f"{KIND}.crl")
            check_not_revoked(ask, crl, factor)
    return ask, ark


def _find(name: bytes, pool: Sequence[Certificate], factor: str, what: str) -> Certificate:
    for certificate in pool:
        if certificate.subject_name == name:
            return certificate
    raise AttestationError(factor, f"the {what} that the certificate below it names is expected, it was not sent")


def _check_same_machine(report: Report, leaf: Certificate, product: str, signer: str) -> None:
    """Check that the certificate speaks of the product, chip and TCB of the report."""
    factor = f"{KIND}.certificates"
    named = _text(leaf.extensions.get(_PRODUCT, b""))
    if named.partition("-")[0] != product:
        raise AttestationError(factor, f"a certificate for {product} is expected, seen {named!r:.40}")
    if report.cpu is not None:
        family, models = _CPUS[product]
        if report.cpu[0] != family or report.cpu[1] >> 4 not in models:
            seen = f"family {report.cpu[0]:#x}, model {report.cpu[1]:#x}"
            raise AttestationError(f"{KIND}.cpu", f"a processor of {product} is expected, seen {seen}")
    tcb = parse_tcb(report.reported_tcb, product)
    certified = {name: _number(leaf.extensions.get(_ARC + _TCB_OIDS[name], b"")) for name in tcb}
    if certified != tcb:
        raise AttestationError(
            f"{KIND}.tcb", f"the certificate's {_show(certified)} is expected, reported is {_show(tcb)}"
        )
    if signer == "VCEK" and any(report.chip_id):
        chip = _chip(leaf.extensions.get(_CHIP_ID, b""))
        if report.chip_id != chip.ljust(64, b"\0") or not chip:
            raise AttestationError(
                f"{KIND}.chip_id", f"{_short(chip)} is expected (certificate), seen {_short(report.chip_id)}"
            )


def _claims(report: Report, product: str, expires_ns: int) -> Claims:
    values: dict[str, Any] = {
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "chip_id": report.chip_id.hex() if any(report.chip_id) else None,
        "guest_svn": report.guest_svn,
        "vmpl": report.vmpl,
        "tcb": parse_tcb(report.reported_tcb, product),
        "product": product,
        "signer": report.signer,
        "policy": report.policy,
    }
    return Claims(KIND, values, debug=report.debug, expires_ns=expires_ns)


def _number(der: bytes) -> int | None:
    """Return the number of 0 to 255 that a DER INTEGER holds, None if it is something else."""
    body = der[2:]
    if der[:1] != b"\x02" or len(der) != 2 + der[1] or len(body) not in {1, 2} or body[0] & 0x80:
        return None
    number = int.from_bytes(body, "big")
    return number if number <= 0xFF else None


def _text(der: bytes) -> str:
    """Return the text of a DER IA5String, "" if it is something else."""
    return der[2:].decode("ascii", "replace") if der[:1] == b"\x16" and len(der) == 2 + der[1] else ""


def _chip(value: bytes) -> bytes:
    """Return the chip id of an extension: bare bytes, or as a DER OCTET STRING of 64."""
    return value[2:] if value[:2] == b"\x04\x40" and len(value) == 66 else value


def _short(data: bytes) -> str:
    return data.hex() if len(data) <= 32 else f"{data[:32].hex()}…"


def _show(tcb: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {number}" for name, number in tcb.items())
