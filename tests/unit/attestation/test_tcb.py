"""Platforms of makers of our own: what Intel's and AMD's rules say about old parts, revoked chips and foreign modules.

The real makers' vectors are in `test_vectors.py` and `test_refused.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fspf.attestation import AttestationError, Claims, Trust
from fspf.attestation.certificates import load_certificates
from fspf.attestation.dcap import verify_quote
from fspf.attestation.quote import parse_quote
from fspf.attestation.snp import verify_report
from fspf.attestation.tcb import Judgement, _combine
from tests.support.chipmakers import FMSPC, NOW_NS, Amd, Intel, level, part_level, pck_extension, rsa_key

LEVELS = [
    level("UpToDate", 5, 11),
    level("SWHardeningNeeded", 5, 10, ["SA-1"]),
    level("ConfigurationNeeded", 4, 10, ["SA-2"], (2, 0)),
    level("OutOfDate", 3, 9, ["SA-1", "SA-3"], (1, 0)),
    level("Revoked", 2, 9, [], (1, 0)),
]
ZEROS = bytes(64)


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


def sgx(intel: Intel, trust: Trust | None = None, body: bytes | None = None, **quote: Any) -> Claims:
    raw = intel.quote("sgx", body or intel.enclave(), **({"version": 3} | quote))
    return verify_quote(raw, "sgx", ZEROS, trust or intel.trust(intel.collateral("sgx", LEVELS)), NOW_NS)


def tdx(intel: Intel, trust: Trust | None = None, body: bytes | None = None, **quote: Any) -> Claims:
    raw = intel.quote("tdx", body or intel.domain(), **quote)
    return verify_quote(raw, "tdx", ZEROS, trust or intel.trust(intel.collateral("tdx", LEVELS)), NOW_NS)


def test_up_to_date_platform(intel: Intel) -> None:
    claims = sgx(intel)
    assert (claims.status, claims.advisories, claims.debug) == ("UpToDate", frozenset(), False)
    assert {key: claims.values[key] for key in ("mrenclave", "mrsigner", "isvprodid", "isvsvn")} == {
        "mrenclave": "e1" * 32, "mrsigner": "e2" * 32, "isvprodid": 7, "isvsvn": 3,
    }  # fmt: skip


@pytest.mark.parametrize("version", [3, 4, 5])
def test_enclaves_in_every_version(intel: Intel, version: int) -> None:
    assert sgx(intel, version=version).values["mrenclave"] == "e1" * 32


@pytest.mark.parametrize(("version", "extra"), [(4, 0), (5, 0), (5, 64)])
def test_virtual_machines_in_every_version(intel: Intel, version: int, extra: int) -> None:
    claims = tdx(intel, body=intel.domain() + b"\x77" * extra, version=version)
    assert claims.status == "UpToDate"
    assert claims.values["mrtd"] == "b0" * 48
    assert [claims.values[f"rtmr{index}"] for index in range(4)] == [f"b{4 + index}" * 48 for index in range(4)]
    assert claims.values["mrservicetd"] == ("77" * 48 if extra else None)


@pytest.mark.parametrize(
    ("svns", "pce", "status", "advisories"),
    [
        ((5,) * 16, 11, "UpToDate", set()),
        ((9,) * 16, 99, "UpToDate", set()),
        ((5,) * 16, 10, "SWHardeningNeeded", {"SA-1"}),
        ((5,) * 15 + (4,), 11, "ConfigurationNeeded", {"SA-2"}),
        ((3,) + (200,) * 15, 11, "OutOfDate", {"SA-1", "SA-3"}),
        ((5,) * 16, 9, "OutOfDate", {"SA-1", "SA-3"}),
        ((2,) * 16, 9, "Revoked", set()),
    ],
)
def test_first_level_that_fits_counts(
    intel: Intel, svns: tuple[int, ...], pce: int, status: str, advisories: set[str]
) -> None:
    claims = sgx(intel, chain=(intel.platform(svns, pce), intel.ca, intel.root))
    assert claims.status == status
    assert claims.advisories == advisories


@pytest.mark.parametrize(("svns", "pce"), [((1,) * 16, 99), ((5,) * 16, 8), ((0,) + (5,) * 15, 11)])
def test_platform_below_every_level_is_refused(intel: Intel, svns: tuple[int, ...], pce: int) -> None:
    with pytest.raises(AttestationError, match=r"^sgx.tcb: one of the 5 levels"):
        sgx(intel, chain=(intel.platform(svns, pce), intel.ca, intel.root))


@pytest.mark.parametrize(
    ("tcb", "status", "advisories"),
    [
        ([4, 1], "UpToDate", set()),  # module version 1: SVN 4 by its own identity, components 0 and 1 are not compared
        ([200, 1], "UpToDate", set()),
        ([3, 1], "OutOfDate", {"OLD-MODULE"}),
        ([3, 3], "UpToDate", set()),
        ([3, 0], "UpToDate", set()),  # module version 0: all 16 components are compared
        ([2, 0], "ConfigurationNeeded", {"SA-2"}),
        ([1, 0], "OutOfDate", {"SA-1", "SA-3"}),
    ],
)
def test_tdx_module(intel: Intel, tcb: list[int], status: str, advisories: set[str]) -> None:
    claims = tdx(intel, body=intel.domain(tcb=bytes([*tcb, *[5] * 14])))
    assert claims.status == status
    assert claims.advisories == advisories


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tcb": bytes([9, 2]) + b"\x05" * 14},
            r"^tdx.module: a module that Intel's TCB info names is expected, seen TDX_02",
        ),
        ({"tcb": bytes([1, 1]) + b"\x05" * 14}, r"^tdx.module: one of the 2 levels"),
        ({"tcb": bytes([0, 0]) + b"\x05" * 14}, r"^tdx.tcb: one of the 5 levels"),
        ({"tcb": bytes([4, 1]) + b"\x01" * 14}, r"^tdx.tcb: one of the 5 levels"),
        ({"signer": b"\1" * 48}, r"^tdx.module: a module by 0+ is expected"),
        ({"signer": b"\1" * 48, "tcb": bytes([3, 0]) + b"\x05" * 14}, r"^tdx.module: a module by 0+ is expected"),
        ({"seam": b"\0" * 7 + b"\1"}, r"^tdx.module: attributes 0+ under f+ is expected, seen"),
    ],
)
def test_foreign_or_old_module_is_refused(intel: Intel, change: dict[str, bytes], message: str) -> None:
    with pytest.raises(AttestationError, match=message):
        tdx(intel, body=intel.domain(**change))


@pytest.mark.parametrize("bit", range(8))
def test_machine_that_nobody_vouches_for_is_in_debug_mode(intel: Intel, bit: int) -> None:
    assert tdx(intel, body=intel.domain(attributes=bytes([1 << bit]) + bytes(7))).debug
    assert not tdx(intel, body=intel.domain(attributes=b"\0\0\0\x10" + bytes(4))).debug


def test_enclave_attributes(intel: Intel) -> None:
    assert sgx(intel, body=intel.enclave(attributes=b"\x07" + bytes(15))).debug
    with pytest.raises(AttestationError, match=r"^sgx.attributes: an initialised enclave is expected"):
        sgx(intel, body=intel.enclave(attributes=b"\x04" + bytes(15)))


@pytest.mark.parametrize(
    ("qe", "status", "message"),
    [
        ({"svn": 4}, "UpToDate", ""),
        ({"svn": 3}, "OutOfDate", ""),
        ({"svn": 1}, "Revoked", ""),
        ({"svn": 0}, "", r"^sgx.qe: one of the 3 levels"),
        ({"mrsigner": bytes(32)}, "", r"^sgx.qe: a quoting enclave by (dc)+ is expected, seen 0+"),
        ({"prodid": 1}, "", r"^sgx.qe: product 2 is expected, seen 1"),
        ({"attributes": b"\x13" + bytes(15)}, "", r"^sgx.qe: attributes .* is expected"),
        ({"attributes": b"\x15" + bytes(15)}, "UpToDate", ""),  # a bit that the mask leaves out
        ({"miscselect": b"\1\0\0\0"}, "", r"^sgx.qe: miscselect"),
        ({"data": bytes(64)}, "", r"^sgx.qe: a QE report about this attestation key"),
    ],
)
def test_quoting_enclave(intel: Intel, qe: dict[str, Any], status: str, message: str) -> None:
    if not message:
        claims = sgx(intel, qe=qe)
        assert claims.status == status
        assert ("OLD-QE" in claims.advisories) is (qe.get("svn") == 3)
        return
    with pytest.raises(AttestationError, match=message):
        sgx(intel, qe=qe)


@pytest.mark.parametrize(
    ("whole", "part", "status"),
    [
        ("UpToDate", "UpToDate", "UpToDate"),
        ("UpToDate", "OutOfDate", "OutOfDate"),
        ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "OutOfDate", "OutOfDate"),
        ("OutOfDateConfigurationNeeded", "UpToDate", "OutOfDateConfigurationNeeded"),
        ("UpToDate", "Revoked", "Revoked"),
        ("Revoked", "UpToDate", "Revoked"),
        ("Revoked", "OutOfDate", "Revoked"),
        ("UpToDate", "SomethingNew", "SomethingNew"),
        ("Revoked", "SomethingNew", "Revoked"),
    ],
)
def test_old_part_makes_the_whole_old(whole: str, part: str, status: str) -> None:
    judged = _combine(Judgement(whole, frozenset({"A"})), [Judgement(part, frozenset({"B"}))])
    assert judged == Judgement(status, frozenset({"A", "B"}))


def test_revoked_certificates_are_refused(intel: Intel) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"revoked": [intel.pck]}, r"^sgx.certificates: 'Intel SGX PCK Certificate' was revoked"),
        ({"root_revoked": [intel.ca]}, r"^sgx.certificates: 'Intel SGX PCK Platform CA' was revoked"),
        ({"root_revoked": [intel.signing]}, r"^sgx.collateral: 'Intel SGX TCB Signing' was revoked"),
    ]
    for change, message in changes:
        with pytest.raises(AttestationError, match=message):
            sgx(intel, intel.trust(intel.collateral("sgx", LEVELS, **change)))


def test_what_one_list_revokes_no_other_saves(intel: Intel) -> None:
    good = intel.collateral("sgx", LEVELS)
    bad = intel.collateral("sgx", LEVELS, revoked=[intel.pck])
    for both in ((good, bad), (bad, good)):
        with pytest.raises(AttestationError, match="was revoked"):
            sgx(intel, intel.trust(*both))


def test_newest_collateral_counts(intel: Intel) -> None:
    older = intel.collateral("sgx", LEVELS, tcb={"tcbEvaluationDataNumber": 17})
    newer = intel.collateral("sgx", [level("OutOfDate", 5)])
    for both in ((older, newer), (newer, older)):
        assert sgx(intel, intel.trust(*both)).status == "OutOfDate"


@pytest.mark.parametrize(
    ("tcb", "message"),
    [
        ({"version": 2}, "TCB info SGX of version 3 is expected"),
        ({"issueDate": "2026-01-16T00:00:00Z"}, "SGX of 2026-01-16 to 2026-02-13 says nothing about 2026-01-15"),
        ({"nextUpdate": "2026-01-15T00:00:00Z"}, "says nothing about 2026-01-15"),
        ({"nextUpdate": "tomorrow"}, "nextUpdate of Intel's form"),
        ({"nextUpdate": None}, "nextUpdate of Intel's form"),
        ({"pceId": "0001"}, r"^sgx.pceid: 0001 is expected, seen 0000"),
        ({"tcbLevels": []}, "one of the 0 levels"),
        ({"tcbLevels": {}}, "tcbLevels of Intel's form"),
        ({"tcbLevels": [5]}, "tcbLevels of Intel's form"),
        ({"tcbLevels": [{}]}, "tcb of Intel's form"),
        (
            {"tcbLevels": [{"tcb": {"sgxtcbcomponents": [{"svn": 1}] * 15, "pcesvn": 1}}]},
            "sgxtcbcomponents of Intel's form",
        ),
        ({"tcbLevels": [{"tcb": {"sgxtcbcomponents": [{"svn": True}] * 16, "pcesvn": 1}}]}, "svn of Intel's form"),
        ({"tcbLevels": [level("UpToDate", 1) | {"tcbStatus": 1}]}, "tcbStatus of Intel's form"),
        ({"tcbLevels": [level("UpToDate", 1) | {"advisoryIDs": "x"}]}, "advisoryIDs of Intel's form"),
    ],
)
def test_odd_tcb_info_is_refused(intel: Intel, tcb: Mapping[str, Any], message: str) -> None:
    with pytest.raises(AttestationError, match=message):
        sgx(intel, intel.trust(intel.collateral("sgx", LEVELS, tcb=tcb)))


@pytest.mark.parametrize(
    ("qe", "message"),
    [
        ({"id": "TD_QE"}, "QE identity QE of version 2"),
        ({"attributes": "11"}, "attributes of Intel's form"),
        ({"attributesMask": "zz" * 16}, "attributes of Intel's form"),
        ({"tcbLevels": [part_level("UpToDate", 4) | {"tcb": 4}]}, "tcb of Intel's form"),
    ],
)
def test_odd_qe_identity_is_refused(intel: Intel, qe: Mapping[str, Any], message: str) -> None:
    with pytest.raises(AttestationError, match=message):
        sgx(intel, intel.trust(intel.collateral("sgx", LEVELS, qe=qe)))


def test_chains_of_other_forms_are_refused(intel: Intel) -> None:
    other = Intel()
    for chain, message in (
        ((intel.pck, intel.ca), "seen 2 certificates"),
        ((intel.pck, intel.root, intel.root), "by 'Intel SGX Root CA'"),
        ((intel.pck, intel.root, intel.ca), "Intel's root is expected, seen 'Intel SGX PCK Platform CA'"),
        ((intel.pck, other.ca, intel.root), "a signature by 'Intel SGX Root CA' is expected"),
        ((intel.pck, other.ca, other.root), "Intel's root is expected"),
    ):
        with pytest.raises(AttestationError, match=message):
            sgx(intel, chain=chain)
    stranger = replace(other.trust(other.collateral("sgx", LEVELS)), intel_roots=intel.trust().intel_roots)
    with pytest.raises(AttestationError, match=r"^sgx.collateral"):
        sgx(intel, stranger)


PCK, CA, ROOT = "Intel SGX PCK Certificate", "Intel SGX PCK Platform CA", "Intel SGX Root CA"


def test_forged_certificates_are_refused(intel: Intel) -> None:
    """Names and keys are right, the signature is somebody else's."""
    extension = pck_extension((5,) * 16, 11, FMSPC)
    for forged, chain in (
        (intel.issue(PCK, "pck", "attestation", CA, extension=extension), lambda one: (one, intel.ca, intel.root)),
        (intel.issue(CA, "ca", "attestation", ROOT, ca=True), lambda one: (intel.pck, one, intel.root)),
    ):
        with pytest.raises(AttestationError, match=r"^sgx.certificates: a signature by 'Intel SGX .* CA' is expected"):
            sgx(intel, chain=chain(forged))
    signing = intel.issue("Intel SGX TCB Signing", "signing", "attestation", ROOT).public_bytes(Encoding.PEM)
    collateral = replace(intel.collateral("sgx", LEVELS), signing_chain=signing)
    with pytest.raises(AttestationError, match=r"^sgx.collateral: a signature by 'Intel SGX Root CA' is expected"):
        sgx(intel, intel.trust(collateral))


def test_certificates_for_something_else_are_refused(intel: Intel) -> None:
    """Issued by the right CA, but as a CA, or under another name."""
    extension = pck_extension((5,) * 16, 11, FMSPC)
    for leaf in (
        intel.issue(PCK, "pck", "ca", CA, extension=extension, ca=True),
        intel.issue("Intel SGX Something", "pck", "ca", CA, extension=extension),
    ):
        with pytest.raises(
            AttestationError, match=r"^sgx.certificates: Intel SGX PCK Certificate by a PCK CA is expected"
        ):
            sgx(intel, chain=(leaf, intel.ca, intel.root))


@pytest.mark.parametrize("days", [(-300, -1), (1, 300)])
def test_certificates_of_another_time_are_refused(intel: Intel, days: tuple[int, int]) -> None:
    extension = pck_extension((5,) * 16, 11, FMSPC)
    leaf = intel.issue(PCK, "pck", "ca", CA, extension=extension, days=days)
    issuer = intel.issue(CA, "ca", "root", ROOT, ca=True, days=days)
    for chain in ((leaf, intel.ca, intel.root), (intel.pck, issuer, intel.root)):
        with pytest.raises(AttestationError, match=r"^sgx.certificates: 'Intel SGX PCK .* is valid from"):
            sgx(intel, chain=chain)
    signing = intel.issue("Intel SGX TCB Signing", "signing", "root", ROOT, days=days).public_bytes(Encoding.PEM)
    collateral = replace(intel.collateral("sgx", LEVELS), signing_chain=signing)
    with pytest.raises(AttestationError, match=r"^sgx.collateral: 'Intel SGX TCB Signing' is valid from"):
        sgx(intel, intel.trust(collateral))


@pytest.mark.parametrize("which", ["pck_crl_days", "root_crl_days"])
@pytest.mark.parametrize("days", [(-40, -10), (1, 30)])
def test_revocation_lists_of_another_time_are_refused(intel: Intel, which: str, days: tuple[int, int]) -> None:
    collateral = intel.collateral("sgx", LEVELS, **{which: days})  # type: ignore[arg-type]
    with pytest.raises(
        AttestationError, match=r"^sgx.collateral: a revocation list of .* does not tell about 2026-01-15"
    ):
        sgx(intel, intel.trust(collateral))
    if days[0] < 0:
        late = replace(intel.trust(collateral), stale_ns=11 * 86_400_000_000_000)
        expires_ns = sgx(intel, late).expires_ns
        assert expires_ns == NOW_NS + 86_400_000_000_000


def test_other_quoting_enclaves_are_refused(intel: Intel) -> None:
    raw = intel.quote("sgx", intel.enclave())
    with pytest.raises(AttestationError, match=r"^quote: Intel's quoting enclave is expected"):
        parse_quote(raw[:12] + bytes(16) + raw[28:])


@pytest.mark.parametrize(
    ("kind", "number", "size"),
    [
        ("tdx", 1, 584),
        ("tdx", 2, 648),
        ("tdx", 3, 584),
        ("tdx", 4, 584),
        ("tdx", 0, 584),
        ("tdx", 2, 0xFFFFFFFF),
        ("sgx", 2, 384),
    ],
)
def test_body_of_another_type_or_size_is_refused(intel: Intel, kind: str, number: int, size: int) -> None:
    raw = intel.quote(kind, intel.domain() if kind == "tdx" else intel.enclave(), version=5)
    with pytest.raises(
        AttestationError, match=f"^quote: a body of {kind} is expected, seen type {number} of {size} bytes"
    ):
        parse_quote(raw[:48] + struct.pack("<HI", number, size) + raw[54:])
    swapped = "sgx" if kind == "tdx" else "tdx"
    with pytest.raises(AttestationError, match=f"^quote: a body of {swapped} is expected"):
        parse_quote(raw[:4] + struct.pack("<I", 0 if kind == "tdx" else 0x81) + raw[8:])


def test_certificate_without_the_extension_is_refused(intel: Intel) -> None:
    bare = intel.issue("Intel SGX PCK Certificate", "pck", "ca", "Intel SGX PCK Platform CA")
    with pytest.raises(AttestationError, match="a PCK certificate with Intel's extension is expected"):
        sgx(intel, chain=(bare, intel.ca, intel.root))


# ------------------------------------------------------------------------------------------- AMD


def snp(amd: Amd, raw: bytes | None = None, trust: Trust | None = None) -> Claims:
    certificates = [one for data in amd.certificates() for one in load_certificates(data, "test")]
    return verify_report(raw or amd.report(), certificates, ZEROS, trust or amd.trust(), NOW_NS)


@pytest.fixture(scope="module")
def amd() -> Amd:
    return Amd()


@pytest.mark.parametrize("version", [2, 3])
def test_report_of_our_own(amd: Amd, version: int) -> None:
    claims = snp(amd, amd.report(version=version))
    assert claims.values["tcb"] == {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
    assert claims.values["chip_id"] == "c1" * 64


def test_turin_has_another_layout() -> None:
    turin = Amd("Turin", {9: 1, 1: 2, 2: 0, 3: 4, 8: 70}, chip=b"\xc1" * 8)
    chip = b"\xc1" * 8 + bytes(56)
    raw = turin.report({0x180: bytes([1, 2, 0, 4, 0, 0, 0, 70]), 0x188: bytes([0x1A, 2, 1]), 0x1A0: chip})
    assert snp(turin, raw).values["tcb"] == {"fmc": 1, "bootloader": 2, "tee": 0, "snp": 4, "microcode": 70}
    with pytest.raises(AttestationError, match=r"^sev-snp.cpu: a processor of Turin is expected, seen family 0x19"):
        snp(turin, turin.report({0x180: bytes([1, 2, 0, 4, 0, 0, 0, 70]), 0x1A0: chip}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0x00: b"\1"}, r"^sev-snp.report: version 2 or 3 is expected, seen 1"),
        ({0x00: b"\5"}, r"^sev-snp.report: version 2 or 3 is expected, seen 5"),
        ({0x08: b"\0\0\7", 0x160: bytes(32)}, r"^sev-snp.policy: a guest without"),
        ({0x34: b"\2"}, r"^sev-snp.signature: ECDSA P-384"),
        ({0x48: b"\x04"}, r"^sev-snp.certificates: the certificate of a VLEK is expected, seen a VCEK"),
        ({0x48: b"\x1c"}, r"^sev-snp.certificates: the certificate of a key 7 is expected"),
        ({0x50: b"\1"}, r"^sev-snp.report_data"),
        ({0x180: b"\4"}, r"^sev-snp.tcb: the certificate's bootloader 3"),
        ({0x188: b"\x19\x11\x01"}, r"^sev-snp.cpu: a processor of Milan is expected, seen family 0x19, model 0x11"),
        ({0x1A0: b"\xc2"}, r"^sev-snp.chip_id"),
    ],
)
def test_reports_that_are_signed_but_wrong(amd: Amd, changes: dict[int, bytes], message: str) -> None:
    with pytest.raises(AttestationError, match=message):
        snp(amd, amd.report(changes))


def test_masked_chip_id_is_not_claimed(amd: Amd) -> None:
    assert snp(amd, amd.report({0x1A0: bytes(64)})).values["chip_id"] is None


def test_migration_agent_that_may_come_but_did_not(amd: Amd) -> None:
    assert snp(amd, amd.report({0x08: b"\0\0\7"})).values["policy"] == 0x70000


def test_revocation_by_amd(amd: Amd) -> None:
    assert snp(amd, trust=amd.trust(amd.crl([amd.vcek]))).type == "sev-snp"  # lists of the ARK name ASKs only
    with pytest.raises(AttestationError, match=r"^sev-snp.certificates: 'SEV-Milan' was revoked"):
        snp(amd, trust=amd.trust(amd.crl([amd.ask])))
    with pytest.raises(AttestationError, match=r"^sev-snp.crl: a signature by 'ARK-Milan' is expected"):
        snp(amd, trust=amd.trust(amd.crl([], signer="ask")))
    genoa = Amd("Genoa")
    assert snp(amd, trust=amd.trust(genoa.crl([genoa.ask]))).type == "sev-snp"
    late = replace(amd.trust(amd.crl([])), stale_ns=0)
    with pytest.raises(AttestationError, match=r"^sev-snp.crl: a revocation list of 2026-01-14 to 2026-02-13"):
        certificates = [one for data in amd.certificates() for one in load_certificates(data, "test")]
        verify_report(amd.report(), certificates, ZEROS, late, NOW_NS + 40 * 86_400_000_000_000)


def test_forged_amd_certificates_are_refused(amd: Amd) -> None:
    forged = amd.issue("SEV-Milan", "ARK-Milan", rsa_key("ask").public_key(), rsa_key("ask"), ca=True)
    chain = [amd.vcek.public_bytes(Encoding.DER), forged.public_bytes(Encoding.DER), amd.ark.public_bytes(Encoding.DER)]
    certificates = [one for data in chain for one in load_certificates(data, "test")]
    with pytest.raises(AttestationError, match=r"^sev-snp.certificates: a signature by 'ARK-Milan' is expected"):
        verify_report(amd.report(), certificates, ZEROS, amd.trust(), NOW_NS)


def test_certificate_for_another_product_is_refused() -> None:
    with pytest.raises(
        AttestationError, match=r"^sev-snp.certificates: a certificate for Milan is expected, seen 'Genoa-B0'"
    ):
        snp(Amd(named="Genoa"))


def test_product_that_nobody_knows() -> None:
    rome = Amd("Rome")
    with pytest.raises(
        AttestationError, match=r"^sev-snp.product: one of Milan, Genoa, Turin is expected, seen 'Rome'"
    ):
        snp(rome)


def test_chip_id_in_a_second_form(amd: Amd) -> None:
    wrapped = Amd(chip=b"\x04\x40" + b"\xc1" * 64)
    assert snp(wrapped).values["chip_id"] == "c1" * 64
    assert wrapped.vcek.public_bytes(Encoding.DER) != amd.vcek.public_bytes(Encoding.DER)
