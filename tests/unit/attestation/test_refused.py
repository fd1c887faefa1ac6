"""Vectors that were altered, mixed, or come too late: each is refused, and the refusal names what is wrong.

What the vectors show when nobody touched them is in `test_vectors.py`; platforms of a maker of ours are in `test_tcb.py`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fspf.attestation import AttestationError, Claims, Trust, match, verify
from fspf.attestation.certificates import load_certificates
from fspf.attestation.dcap import verify_quote
from fspf.attestation.quote import parse_quote
from fspf.attestation.snp import REPORT_LEN, SIGNED_LEN, parse_report, verify_report
from tests.support.evidence import DAY_NS, QUOTES, SNP, Quoted, Snp, on, read

WHAT = "test"


def certificates_of(vector: Snp) -> list[Any]:
    return [one for data in vector.certificates for one in load_certificates(data, WHAT)]


def snp_claims(vector: Snp, raw: bytes | None = None, certificates: Sequence[Any] | None = None, trust: Trust | None = None) -> Claims:  # fmt: skip
    data = parse_report(vector.raw).report_data
    chosen = certificates_of(vector) if certificates is None else certificates
    return verify_report(vector.raw if raw is None else raw, chosen, data, trust or Trust(), on(vector.date))


def quote_claims(vector: Quoted, raw: bytes | None = None, trust: Trust | None = None, now_ns: int = 0) -> Claims:
    data = parse_quote(vector.raw).body.report_data
    chosen = vector.raw if raw is None else raw
    return verify_quote(chosen, vector.kind, data, trust or vector.trust, now_ns or on(vector.date))


def flip(data: bytes, position: int, bits: int = 1) -> bytes:
    return data[:position] + bytes([data[position] ^ bits]) + data[position + 1 :]


# ------------------------------------------------------------------------------------------- AMD

REPORT_FIELDS = {
    "version": (0x00, 0x04), "guest_svn": (0x04, 0x08), "policy": (0x08, 0x10), "family_id": (0x10, 0x20),
    "image_id": (0x20, 0x30), "vmpl": (0x30, 0x34), "signature_algorithm": (0x34, 0x38), "current_tcb": (0x38, 0x40),
    "platform_info": (0x40, 0x48), "flags": (0x48, 0x4C), "reserved 1": (0x4C, 0x50), "report_data": (0x50, 0x90),
    "measurement": (0x90, 0xC0), "host_data": (0xC0, 0xE0), "id_key_digest": (0xE0, 0x110),
    "author_key_digest": (0x110, 0x140), "report_id": (0x140, 0x160), "report_id_agent": (0x160, 0x180),
    "reported_tcb": (0x180, 0x188), "cpuid and reserved": (0x188, 0x1A0), "chip_id": (0x1A0, 0x1E0),
    "committed_tcb": (0x1E0, 0x1E8), "firmware": (0x1E8, 0x1F0), "launch_tcb": (0x1F0, 0x1F8),
    "reserved 2": (0x1F8, 0x2A0), "r": (0x2A0, 0x2E8), "s": (0x2E8, 0x330), "after": (0x330, 0x4A0),
}  # fmt: skip


def test_every_byte_of_a_report_is_named() -> None:
    covered = [position for low, high in REPORT_FIELDS.values() for position in range(low, high)]
    assert covered == list(range(REPORT_LEN))
    assert REPORT_FIELDS["r"][0] == SIGNED_LEN


@pytest.mark.parametrize("name", ["SNP-C", "SNP-VLEK", "SNP-GENOA"])
@pytest.mark.parametrize("field", REPORT_FIELDS)
@pytest.mark.parametrize("end", ["first", "middle", "last"])
def test_flipped_byte_of_a_report_is_refused(name: str, field: str, end: str) -> None:
    low, high = REPORT_FIELDS[field]
    position = {"first": low, "middle": (low + high) // 2, "last": high - 1}[end]
    with pytest.raises(AttestationError, match=r"^sev-snp\."):
        snp_claims(SNP[name], flip(SNP[name].raw, position))


@pytest.mark.parametrize("length", [0, 1, SIGNED_LEN, REPORT_LEN - 1, REPORT_LEN + 1, 2 * REPORT_LEN])
def test_report_of_another_length_is_refused(length: int) -> None:
    raw = (SNP["SNP-C"].raw * 2)[:length]
    with pytest.raises(AttestationError, match=f"^sev-snp.report: 1184 bytes are expected, seen {length}$"):
        snp_claims(SNP["SNP-C"], raw)


@pytest.mark.parametrize("leaf", ["vcek-invalid-legacy.der", "vcek-invalid-new.der"])
@pytest.mark.parametrize("chain", ["milan", "genoa", "turin_vcek"])
def test_invalid_vcek_is_refused(leaf: str, chain: str) -> None:
    vector = replace(SNP["SNP-A"], leaf=leaf, chain=f"ask_ark_{chain}.pem")
    with pytest.raises(AttestationError, match=r"^sev-snp.certificates: (a signature by|the ASK or ASVK)"):
        snp_claims(vector)


def test_wrong_chains_are_refused() -> None:
    for chain in ("ask_ark_genoa.pem", "ask_ark_turin_vcek.pem", "ask_ark_milan_vlek.pem"):
        with pytest.raises(AttestationError, match=r"^sev-snp.certificates: the ASK or ASVK .* was not sent$"):
            snp_claims(replace(SNP["SNP-A"], chain=chain))


def test_certificate_of_another_chip_is_refused() -> None:
    with pytest.raises(AttestationError, match=r"^sev-snp.tcb: the certificate's bootloader 3, tee 0, snp 8"):
        snp_claims(replace(SNP["SNP-A"], leaf="milan-c-vcek.der"))


def test_vlek_for_a_report_of_a_vcek_is_refused() -> None:
    vector = replace(SNP["SNP-C"], leaf="milan-vlek-cert.der", chain="ask_ark_milan_vlek.pem")
    with pytest.raises(
        AttestationError, match=r"^sev-snp.certificates: the certificate of a VCEK is expected, seen a VLEK"
    ):
        snp_claims(vector)


def test_missing_certificates_are_named() -> None:
    leaf, ask, ark = certificates_of(SNP["SNP-C"])
    for certificates, message in (
        ([], "VCEK or VLEK is expected first"),
        ([leaf], "ASK or ASVK"),
        ([leaf, ask], "the ARK"),
    ):
        with pytest.raises(AttestationError, match=message):
            snp_claims(SNP["SNP-C"], certificates=certificates)
    chain = read("snp/ask_ark_milan.pem")
    assert snp_claims(SNP["SNP-C"], certificates=[leaf], trust=Trust(certificates=(chain,))).type == "sev-snp"
    assert snp_claims(SNP["SNP-C"], certificates=[leaf, ark, ask]).type == "sev-snp"  # in any order


def test_intermediate_is_no_leaf() -> None:
    _, ask, ark = certificates_of(SNP["SNP-C"])
    with pytest.raises(AttestationError, match=r"^sev-snp"):
        snp_claims(SNP["SNP-C"], certificates=[ask, ark, ark])


def test_root_that_is_not_trusted_is_refused() -> None:
    with pytest.raises(AttestationError, match="an AMD root key is expected, seen 'ARK-Milan' with 69d063b4"):
        snp_claims(SNP["SNP-C"], trust=Trust(amd_roots=frozenset({"00" * 32})))


def test_expired_vlek_is_refused() -> None:
    vector = replace(SNP["SNP-VLEK"], date="2025-12-11")
    with pytest.raises(
        AttestationError, match="'SEV-VLEK' is valid from 2024-12-10 to 2025-12-10, now it is 2025-12-11"
    ):
        snp_claims(vector)
    with pytest.raises(AttestationError, match="now it is 2024-12-09"):
        snp_claims(replace(vector, date="2024-12-09"))


def test_report_for_another_challenge_is_refused(binding: bytes) -> None:
    vector = SNP["SNP-C"]
    evidence = {
        "type": "sev-snp",
        "report": base64.b64encode(vector.raw).decode(),
        "certificates": [base64.b64encode(one).decode() for one in vector.certificates],
    }
    with pytest.raises(AttestationError, match=r"^sev-snp.report_data: "):
        verify(evidence, binding, Trust(), on(vector.date))
    real = parse_report(vector.raw).report_data[:32]
    claims = verify(evidence, real, Trust(), on(vector.date))
    assert match([claims], [{"sev-snp": {"measurement": claims.values["measurement"], "tcb": {"snp": 8}}}]) == 0


def test_debug_guest_is_refused_by_a_policy() -> None:
    claims = snp_claims(SNP["SNP-A"])
    item = {"sev-snp": {"measurement": claims.values["measurement"]}}
    with pytest.raises(AttestationError, match=r"^sev-snp.debug"):
        match([claims], [item], {"mode": "none"})
    assert match([claims], [item], {"tolerate": ["debug-mode"]}) == 0


# ------------------------------------------------------------------------------------------- Intel

# Parts of a quote of version 3 (SGX-1), and of version 4 (TDX-1): name to bounds.
SGX_PARTS = {
    "version": (0, 2), "key type": (2, 4), "TEE type": (4, 8), "SVNs": (8, 12), "vendor": (12, 28), "user data": (28, 48),
    "CPU SVN": (48, 64), "MISCSELECT": (64, 68), "reserved 1": (68, 96), "attributes": (96, 112), "MRENCLAVE": (112, 144),
    "reserved 2": (144, 176), "MRSIGNER": (176, 208), "reserved 3": (208, 304), "prod id": (304, 306), "SVN": (306, 308),
    "reserved 4": (308, 368), "report data": (368, 432), "signature length": (432, 436), "signature": (436, 500),
    "attestation key": (500, 564), "QE report": (564, 948), "QE signature": (948, 1012), "authentication": (1012, 1046),
    "certification type": (1046, 1048), "certification length": (1048, 1052),
}  # fmt: skip
TDX_PARTS = {
    "header": (0, 48), "TEE TCB SVN": (48, 64), "MRSEAM": (64, 112), "MRSIGNERSEAM": (112, 160), "SEAM attributes": (160, 168),
    "TD attributes": (168, 176), "XFAM": (176, 184), "MRTD": (184, 232), "MRCONFIGID": (232, 280), "MROWNER": (280, 328),
    "MROWNERCONFIG": (328, 376), "RTMR0": (376, 424), "RTMR1": (424, 472), "RTMR2": (472, 520), "RTMR3": (520, 568),
    "report data": (568, 632), "signature length": (632, 636), "signature": (636, 700), "attestation key": (700, 764),
    "certification type": (764, 766), "certification length": (766, 770), "QE report": (770, 1154),
    "QE signature": (1154, 1218), "authentication": (1218, 1252), "inner type": (1252, 1254), "inner length": (1254, 1258),
}  # fmt: skip
PARTS = [("SGX-1", part, bounds) for part, bounds in SGX_PARTS.items()]
PARTS += [("TDX-1", part, bounds) for part, bounds in TDX_PARTS.items()]


@pytest.mark.parametrize(("parts", "name"), [(SGX_PARTS, "SGX-1"), (TDX_PARTS, "TDX-1")])
def test_every_byte_before_the_certificates_is_named(parts: dict[str, tuple[int, int]], name: str) -> None:
    covered = [position for low, high in parts.values() for position in range(low, high)]
    assert covered == list(range(QUOTES[name].raw.index(b"-----BEGIN")))


@pytest.mark.parametrize(("name", "part", "bounds"), PARTS, ids=lambda value: value if isinstance(value, str) else "")
def test_flipped_byte_of_a_quote_is_refused(name: str, part: str, bounds: tuple[int, int]) -> None:
    for position in sorted({bounds[0], sum(bounds) // 2, bounds[1] - 1}):
        with pytest.raises(AttestationError):
            quote_claims(QUOTES[name], flip(QUOTES[name].raw, position))


@pytest.mark.parametrize("name", ["SGX-1", "TDX-1"])
def test_flipped_byte_of_the_certificates_changes_nothing_or_is_refused(name: str) -> None:
    vector = QUOTES[name]
    good = quote_claims(vector)
    begin = vector.raw.index(b"-----BEGIN")
    for position in range(begin, vector.length, 61):
        try:
            claims = quote_claims(vector, flip(vector.raw, position))
        except AttestationError:
            continue
        assert claims == good  # between the lines of PEM


@pytest.mark.parametrize("name", QUOTES)
def test_shortened_quote_is_refused(name: str) -> None:
    vector = QUOTES[name]
    for length in [*range(0, 1300, 9), *range(1300, vector.length - 1, 400), vector.length - 1]:
        with pytest.raises(AttestationError):
            quote_claims(vector, vector.raw[:length])


@pytest.mark.parametrize("name", QUOTES)
def test_what_follows_a_quote(name: str) -> None:
    """Zeros are the rest of a kernel's buffer; anything else belongs to nobody and is refused."""
    vector = QUOTES[name]
    whole = read(vector.quote)
    assert parse_quote(vector.raw + bytes(100)) == parse_quote(vector.raw)
    with pytest.raises(
        AttestationError, match=r"^quote: the quote ends at \d+, and 101 bytes that are not zero follow"
    ):
        parse_quote(vector.raw + bytes(100) + b"x")
    if name == "TDX-3":
        with pytest.raises(AttestationError, match="and 39 bytes that are not zero follow"):
            parse_quote(whole)
    else:
        assert parse_quote(whole).length == vector.length


def test_chain_of_another_platform_is_refused() -> None:
    """The quoting enclave of one platform is not vouched for by the certificate of another."""
    one, other = QUOTES["TDX-1"], QUOTES["TDX-2"]
    begin, other_begin = one.raw.index(b"-----BEGIN"), other.raw.index(b"-----BEGIN")
    chain = other.raw[other_begin:]
    size = len(chain).to_bytes(4, "little")
    outer = (begin - 770 + len(chain)).to_bytes(4, "little")
    signature_data = (begin - 636 + len(chain)).to_bytes(4, "little")
    mixed = one.raw[:632] + signature_data + one.raw[636:766] + outer + one.raw[770 : begin - 4] + size + chain
    with pytest.raises(AttestationError, match=r"^tdx.qe: the signature is not that of this key"):
        quote_claims(one, mixed)


@pytest.mark.parametrize(("kind", "name"), [("tdx", "SGX-1"), ("sgx", "TDX-1")])
def test_quote_of_the_other_kind_is_refused(kind: str, name: str) -> None:
    vector = QUOTES[name]
    with pytest.raises(
        AttestationError, match=f"^evidence.type: a quote of {kind} is expected, seen one of {vector.kind}"
    ):
        verify_quote(vector.raw, kind, parse_quote(vector.raw).body.report_data, vector.trust, on(vector.date))


def test_quote_for_another_challenge_is_refused(binding: bytes) -> None:
    vector = QUOTES["SGX-1"]
    evidence = {"type": "sgx", "quote": base64.b64encode(vector.raw).decode()}
    with pytest.raises(AttestationError, match=r"^sgx.report_data: "):
        verify(evidence, binding, vector.trust, on(vector.date))
    claims = verify(evidence, parse_quote(vector.raw).body.report_data[:32], vector.trust, on(vector.date))
    item = {"mrenclave": claims.values["mrenclave"]}
    with pytest.raises(AttestationError, match=r"^sgx.tcb: .*seen ConfigurationAndSWHardeningNeeded"):
        match([claims], [item])
    tolerant = {"tolerate": ["insecure-configuration", "software-hardening-needed"]}
    with pytest.raises(AttestationError, match=r"^sgx.advisories: .*INTEL-SA-00289, INTEL-SA-00615$"):
        match([claims], [item], tolerant)
    assert match([claims], [item], tolerant | {"ignore_advisories": ["INTEL-SA-00289", "INTEL-SA-00615"]}) == 0


def test_debug_enclave_is_refused_by_a_policy() -> None:
    claims = quote_claims(QUOTES["SGX-2"])
    item = {"mrenclave": claims.values["mrenclave"]}
    with pytest.raises(AttestationError, match=r"^sgx.debug: production mode is expected, seen debug mode"):
        match([claims], [item], {"tolerate": ["outdated-tcb"], "ignore_advisories": "*"})
    assert match([claims], [item], {"tolerate": ["outdated-tcb", "debug-mode"], "ignore_advisories": "*"}) == 0


def test_without_collateral_nothing_is_judged() -> None:
    for trust in (Trust(), QUOTES["TDX-4"].trust, QUOTES["SGX-1"].trust):
        with pytest.raises(
            AttestationError, match=r"^tdx.collateral: Intel's collateral for FMSPC b0c06f000000 is expected"
        ):
            quote_claims(QUOTES["TDX-1"], trust=trust)


def test_root_of_somebody_else_is_refused() -> None:
    trust = replace(QUOTES["TDX-1"].trust, intel_roots=frozenset({"00" * 32}))
    with pytest.raises(AttestationError, match="Intel's root is expected, seen 'Intel SGX Root CA' with 44a0196b"):
        quote_claims(QUOTES["TDX-1"], trust=trust)


@pytest.mark.parametrize(
    ("date", "message"),
    [
        ("2025-07-20", "TDX of 2025-06-19 to 2025-07-19 says nothing about 2025-07-20"),
        ("2025-06-18", "a revocation list|says nothing about"),
        ("2035-01-01", "is valid from"),
    ],
)
def test_collateral_of_another_time_is_refused(date: str, message: str) -> None:
    with pytest.raises(AttestationError, match=message):
        quote_claims(QUOTES["TDX-1"], now_ns=on(date))


def test_collateral_may_be_as_late_as_the_operator_says() -> None:
    vector = QUOTES["TDX-1"]
    trust = replace(vector.trust, stale_ns=3 * DAY_NS)
    claims = quote_claims(vector, trust=trust, now_ns=on("2025-07-20"))
    assert claims.expires_ns is not None
    assert on("2025-07-21") < claims.expires_ns < on("2025-07-23")
    with pytest.raises(AttestationError, match="says nothing about 2025-07-23"):
        quote_claims(vector, trust=trust, now_ns=on("2025-07-23"))


@pytest.mark.parametrize(
    "part", ["tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature", "signing_chain", "root_crl"]
)
def test_altered_collateral_is_refused(part: str) -> None:
    vector = QUOTES["TDX-1"]
    data = getattr(vector.collateral, part)
    for position in (len(data) // 3, len(data) - 40, len(data) - 1):
        trust = vector.with_collateral(**{part: flip(data, position)})
        if part == "signing_chain" and position > len(data) // 2:
            continue  # the root in it is not looked at: that of the quote is known
        with pytest.raises(AttestationError, match=r"^tdx\.collateral"):
            quote_claims(vector, trust=trust)


def test_altered_revocation_list_is_refused() -> None:
    vector = QUOTES["TDX-1"]
    (crl,) = vector.collateral.pck_crls
    for crls in ((flip(crl, 300),), (flip(crl, len(crl) - 1),), (crl[:-1],), (), (vector.collateral.root_crl,)):
        with pytest.raises(AttestationError, match=r"^tdx\.collateral"):
            quote_claims(vector, trust=vector.with_collateral(pck_crls=crls))


def test_collateral_of_the_other_kind_is_refused() -> None:
    vector, other = QUOTES["TDX-1"], QUOTES["SGX-1"].collateral
    trust = vector.with_collateral(qe_identity=other.qe_identity, qe_identity_signature=other.qe_identity_signature)
    with pytest.raises(AttestationError, match=r"^tdx.collateral: QE identity TD_QE of version 2 is expected"):
        quote_claims(vector, trust=trust)
    swapped = vector.with_collateral(tcb_info_signature=vector.collateral.qe_identity_signature)
    with pytest.raises(AttestationError, match=r"^tdx.collateral: the signature is not that"):
        quote_claims(vector, trust=swapped)


def test_platform_certificate_signs_no_collateral() -> None:
    """The chain of a PCK certificate leads to the same root: only its name tells it from Intel's signing key."""
    vector = QUOTES["TDX-1"]
    chain = parse_quote(vector.raw).chain
    with pytest.raises(
        AttestationError, match=r"a certificate of Intel SGX TCB Signing is expected, seen 'Intel SGX PCK Certificate'"
    ):
        quote_claims(vector, trust=vector.with_collateral(signing_chain=chain.rstrip(b"\0")))


def test_old_collateral_beside_the_new_does_no_harm() -> None:
    vector = QUOTES["TDX-1"]
    broken = replace(vector.collateral, tcb_info_signature=bytes(64))
    for collateral in ((broken, vector.collateral), (vector.collateral, broken)):
        assert quote_claims(vector, trust=Trust(collateral=collateral)).status == "UpToDate"


def test_expired_signing_certificate_is_refused() -> None:
    """The certificate of 2018 ended on 2025-05-21; the key in it lives on in that of 2025."""
    vector = QUOTES["TDX-1"]
    trust = vector.with_collateral(signing_chain=read("intel-tcb-signing-chain-2018.pem"))
    with pytest.raises(AttestationError, match="'Intel SGX TCB Signing' is valid from 2018-05-21 to 2025-05-21"):
        quote_claims(vector, trust=trust)
