"""Every expected value of the vectors' README, and that the files are those it describes.

Altered, swapped and late evidence is in `test_refused.py`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import pytest

from fspf.attestation import AttestationError, Trust, snp
from fspf.attestation.certificates import check_issued, check_not_revoked, check_valid, load_certificates, load_crl
from fspf.attestation.claims import AMD_ROOTS, INTEL_ROOTS
from fspf.attestation.dcap import verify_quote
from fspf.attestation.pck import read_platform
from fspf.attestation.quote import DomainReport, EnclaveReport, check_quote, parse_quote
from fspf.attestation.snp import parse_report, parse_tcb, verify_report
from tests.support.evidence import QUOTES, SNP, VECTORS, expected, files, on, read

WHAT = "test"


def test_files_are_those_of_the_readme() -> None:
    there = {str(path.relative_to(VECTORS)) for path in VECTORS.rglob("*.*")} - {"README.md"}
    assert there == set(files())
    for name, (size, digest) in files().items():
        assert (len(read(name)), hashlib.sha256(read(name)).hexdigest()) == (size, digest), name


# ------------------------------------------------------------------------------------------- AMD


def tcb_text(tcb: bytes, product: str) -> str:
    parts = parse_tcb(tcb, product)
    return f"bl {parts['bootloader']}, tee {parts['tee']}, snp {parts['snp']}, ucode {parts['microcode']}"


@pytest.mark.parametrize("name", SNP)
def test_snp_fields(name: str) -> None:
    vector, rows = SNP[name], dict(expected(name))
    report = parse_report(vector.raw)
    product = "Genoa" if "genoa" in vector.report else "Milan"

    def take(field: str, seen: str, zeros: str = "zeros") -> None:
        value = rows.pop(field)
        assert seen == ("00" * (len(seen) // 2) if value == zeros else value), field

    take("version", str(report.version))
    take("guest svn", str(report.guest_svn))
    take("policy", hex(report.policy))
    take("debug allowed (policy bit 19)", str(report.debug))
    take("vmpl", str(report.vmpl))
    take("signing key (flags bits 2..4)", report.signer)
    take("reported TCB", tcb_text(report.reported_tcb, product))
    take("current TCB", tcb_text(report.current_tcb, product))
    take("committed TCB", tcb_text(report.committed_tcb, product))
    take("launch TCB", tcb_text(report.launch_tcb, product))
    take("measurement", report.measurement.hex())
    take("report data", report.report_data.hex())
    take("host data", report.host_data.hex())
    take("chip id", report.chip_id.hex(), "zeros (masked)" if name == "SNP-VLEK" else "zeros")
    if report.cpu is not None:
        take("family, model, stepping (v3)", bytes(report.cpu).hex())
    assert not rows, "values that no line above compares"


@pytest.mark.parametrize("name", SNP)
def test_snp_report_is_verified(name: str) -> None:
    vector = SNP[name]
    certificates = [one for data in vector.certificates for one in load_certificates(data, WHAT)]
    report = parse_report(vector.raw)
    claims = verify_report(vector.raw, certificates, report.report_data, Trust(), on(vector.date))
    assert claims.values["measurement"] == expected(name)["measurement"]
    assert claims.values["signer"] == expected(name)["signing key (flags bits 2..4)"]
    assert claims.values["chip_id"] == (None if name == "SNP-VLEK" else expected(name)["chip id"])
    assert claims.debug is (expected(name)["debug allowed (policy bit 19)"] == "True")
    assert claims.expires_ns == min(one.not_after_ns for one in certificates)


@pytest.mark.parametrize("chain", ["milan", "milan_vlek", "genoa", "genoa_vlek", "turin_vcek", "turin_vlek"])
def test_amd_chain_ends_in_a_root_of_ours(chain: str) -> None:
    intermediate, root = load_certificates(read(f"snp/ask_ark_{chain}.pem"), WHAT)
    check_issued(intermediate, root, WHAT)
    check_issued(root, root, WHAT)
    assert root.fingerprint in AMD_ROOTS


def test_turin_certificate() -> None:
    """There is no report of Turin: chip id and TCB of the certificate are read with its layout."""
    (leaf,) = load_certificates(read("snp/turin-vcek.der"), WHAT)
    ask, ark = load_certificates(read("snp/ask_ark_turin_vcek.pem"), WHAT)
    check_issued(leaf, ask, WHAT)
    check_valid(leaf, on("2025-06-30"), WHAT)
    assert ark.subject == "ARK-Turin"
    assert leaf.extensions[snp._CHIP_ID].hex() == "1e550a8ee5cf9f4d"
    assert {name: snp._number(leaf.extensions[snp._ARC + oid]) for name, oid in snp._TCB_OIDS.items()} == {
        "fmc": 0, "bootloader": 0, "tee": 0, "snp": 0, "microcode": 9,
    }  # fmt: skip
    assert parse_tcb(bytes([1, 2, 3, 4, 0, 0, 0, 9]), "Turin") == {
        "fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 9,
    }  # fmt: skip


def test_azure_envelope_holds_the_report_and_hashes_its_json() -> None:
    envelope = read("snp/genoa-azure-hcl-report.bin")
    report = parse_report(envelope[32 : 32 + snp.REPORT_LEN])
    (length,) = struct.unpack_from("<I", envelope, 1232)
    assert envelope[32 : 32 + snp.REPORT_LEN] == read("snp/genoa-azure-report.bin")
    assert hashlib.sha256(envelope[1236 : 1236 + length]).digest() == report.report_data[:32]


# ------------------------------------------------------------------------------------------- Intel

INTEL_ROWS: Mapping[str, Any] = {
    "TEE TCB SVN": lambda body: body.tee_tcb_svn,
    "MRSEAM": lambda body: body.mrseam,
    "TD attributes": lambda body: body.td_attributes,
    "XFAM": lambda body: body.xfam,
    "MRTD": lambda body: body.mrtd,
    "MRCONFIGID": lambda body: body.mrconfigid,
    "RTMR0": lambda body: body.rtmrs[0],
    "RTMR1": lambda body: body.rtmrs[1],
    "RTMR2": lambda body: body.rtmrs[2],
    "RTMR3": lambda body: body.rtmrs[3],
    "TEE TCB SVN 2": lambda body: body.tee_tcb_svn_2,
    "MRSERVICETD": lambda body: body.mrservicetd,
    "MRENCLAVE": lambda body: body.mrenclave,
    "MRSIGNER": lambda body: body.mrsigner,
    "attributes": lambda body: body.attributes,
    "CPU SVN": lambda body: body.cpu_svn,
    "report data": lambda body: body.report_data,
}


@pytest.mark.parametrize("name", QUOTES)
def test_quote_fields(name: str) -> None:
    vector, rows = QUOTES[name], dict(expected(name))
    whole = read(vector.quote)
    quote = parse_quote(vector.raw)
    leaf, _ = check_quote(quote)
    platform = read_platform(leaf, WHAT)
    qe = quote.qe_report
    assert rows.pop("version") == str(quote.version)
    assert rows.pop("quote length (header, body, signature data)") == f"{quote.length} of {len(whole)}"
    debug = rows.pop("debug", None) or rows.pop("debug (TD attributes bit 0)")
    assert debug == str(quote.body.debug)
    assert rows.pop("FMSPC") == platform.fmspc
    assert rows.pop("PCK TCB SVNs") == f"{list(platform.svns)} pcesvn {platform.pce_svn}"
    assert rows.pop("QE report") == f"mrsigner {qe.mrsigner.hex()} prodid {qe.isvprodid} svn {qe.isvsvn}"
    if isinstance(quote.body, EnclaveReport):
        assert rows.pop("ISV prod id, SVN") == f"{quote.body.isvprodid}, {quote.body.isvsvn}"
    for field, value in rows.items():
        seen = INTEL_ROWS[field](quote.body)
        assert seen.hex() == ("00" * len(seen) if value.startswith("zeros") else value), field
    assert isinstance(quote.body, DomainReport if vector.kind == "tdx" else EnclaveReport)


@pytest.mark.parametrize(
    ("name", "status", "advisories"),
    [
        ("TDX-1", "UpToDate", set()),
        ("TDX-4", "UpToDate", set()),
        ("SGX-1", "ConfigurationAndSWHardeningNeeded", {"INTEL-SA-00289", "INTEL-SA-00615"}),
        ("SGX-2", "OutOfDate", None),
    ],
)
def test_quote_is_verified_and_judged(name: str, status: str, advisories: set[str] | None) -> None:
    vector = QUOTES[name]
    quote = parse_quote(vector.raw)
    claims = verify_quote(vector.raw, vector.kind, quote.body.report_data, vector.trust, on(vector.date))
    assert claims.status == status
    assert advisories is None or claims.advisories == advisories
    assert claims.debug is (name == "SGX-2")
    assert claims.expires_ns is not None
    assert claims.expires_ns > on(vector.date)
    measured = "mrtd" if vector.kind == "tdx" else "mrenclave"
    assert claims.values[measured] == expected(name)[measured.upper()]


@pytest.mark.parametrize("name", ["TDX-2", "TDX-3"])
def test_platform_below_every_level_is_refused(name: str) -> None:
    vector = QUOTES[name]
    quote = parse_quote(vector.raw)
    with pytest.raises(AttestationError, match=r"^tdx.tcb: one of the \d levels that Intel supports is expected"):
        verify_quote(vector.raw, vector.kind, quote.body.report_data, vector.trust, on(vector.date))


def test_intel_root_and_signing_certificates() -> None:
    (root,) = load_certificates(read("intel-sgx-root-ca.pem"), WHAT)
    assert root.fingerprint in INTEL_ROOTS
    signers = []
    for name in ("intel-tcb-signing-chain.pem", "intel-tcb-signing-chain-2018.pem"):
        signer, same = load_certificates(read(name), WHAT)
        assert same.fingerprint == root.fingerprint
        check_issued(signer, root, WHAT)
        signers.append(signer)
    assert signers[0].signed != signers[1].signed
    assert signers[0].key.public_numbers() == signers[1].key.public_numbers()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", QUOTES)
def test_no_platform_is_revoked(name: str) -> None:
    leaf, issuers = check_quote(parse_quote(QUOTES[name].raw))
    crl = load_crl(QUOTES[name].collateral.pck_crls[0], WHAT)
    check_issued(crl, issuers[0], WHAT)
    check_not_revoked(leaf, crl, WHAT)


def test_revocation_lists() -> None:
    for name in ("tdx/pck-platform-crl-2023-06.der", "sgx/pck-platform-crl-2025-08.der"):
        assert len(load_crl(read(name), WHAT).revoked) == 44
    assert not load_crl(read("tdx/root-crl-2023-04.der"), WHAT).revoked
