"""Evidence `sgx` and `tdx`: Intel's quotes, checked against Intel's collateral.

Getting a quote is left to `fspf.attestation.make_vm`; what a policy tolerates of a platform to `fspf.attestation.matching`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fspf.attestation.certificates import Certificate, check_issued, check_valid
from fspf.attestation.claims import Claims, Collateral, Trust
from fspf.attestation.pck import Platform, read_platform
from fspf.attestation.quote import SGX, TDX, DomainReport, EnclaveReport, Quote, check_quote, parse_quote
from fspf.attestation.reading import Fields
from fspf.attestation.tcb import Checked
from fspf.core.errors import AttestationError

KINDS: Final = (SGX, TDX)
REPORT_DATA_LEN: Final = 64
_PCK: Final = "Intel SGX PCK Certificate"
_PCK_CAS: Final = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")


def verify(fields: Fields, kind: str, binding: bytes, trust: Trust, now_ns: int) -> Claims:
    """Check a quote of *kind* with the collateral that *trust* has.

    Raises:
        AttestationError: It is not Intel's statement about this challenge, or no collateral is there to judge it by.
    """
    fields.only("quote")
    report_data = binding + bytes(REPORT_DATA_LEN - len(binding))
    return verify_quote(fields.data("quote"), kind, report_data, trust, now_ns)


def verify_quote(raw: bytes, kind: str, report_data: bytes, trust: Trust, now_ns: int) -> Claims:
    """Check a quote: signatures, chain, revocation, quoting enclave, and what the platform's TCB is worth.

    Args:
        raw: The quote.
        kind: SGX or TDX.
        report_data: The 64 bytes that the enclave or virtual machine must have put in.
        trust: Whose root counts, and the collateral.
        now_ns: UTC ns since 1970.

    Raises:
        AttestationError: Something is not as it must be. A platform that Intel judges badly is no error, but a status.
    """
    quote = parse_quote(raw)
    if quote.tee != kind:
        raise AttestationError("evidence.type", f"a quote of {kind} is expected, seen one of {quote.tee}")
    leaf, issuers = check_quote(quote)
    issuer, root = _check_chain(leaf, issuers, kind, trust, now_ns)
    if quote.body.report_data != report_data:
        seen = quote.body.report_data.hex()
        raise AttestationError(f"{kind}.report_data", f"{report_data.hex()} is expected, seen {seen}")
    platform = read_platform(leaf, f"{kind}.certificates")
    domain = quote.body if isinstance(quote.body, DomainReport) else None
    checked = _newest_collateral(leaf, issuer, root, platform, kind, trust, now_ns)
    judgement = checked.judge(platform, quote.qe_report, domain)
    expires_ns = min(checked.expires_ns, leaf.not_after_ns, issuer.not_after_ns, root.not_after_ns)
    values = _values(quote, platform)
    return Claims(kind, values, judgement.status, judgement.advisories, debug=quote.body.debug, expires_ns=expires_ns)


def _newest_collateral(
    leaf: Certificate,
    issuer: Certificate,
    root: Certificate,
    platform: Platform,
    kind: str,
    trust: Trust,
    now_ns: int,
) -> Checked:
    """Return the newest collateral for a platform that is valid: an operator may keep what was before beside it."""
    valid: list[Checked] = []
    last: AttestationError | None = None
    for collateral in trust.collateral:
        if _may_be_about(collateral, platform, kind):
            try:
                checked = Checked(collateral, root, kind, trust, now_ns)
                checked.check_revocation(leaf, issuer, now_ns, trust.stale_ns)
                valid.append(checked)
            except AttestationError as exc:
                if exc.factor == f"{kind}.certificates":
                    raise  # what one list revokes is not saved by another
                last = exc
    if valid:
        return max(valid, key=lambda checked: checked.newness)
    raise last or AttestationError(
        f"{kind}.collateral", f"Intel's collateral for FMSPC {platform.fmspc} is expected, this CAS has none"
    )


def _check_chain(
    leaf: Certificate, issuers: Sequence[Certificate], kind: str, trust: Trust, now_ns: int
) -> tuple[Certificate, Certificate]:
    """Check PCK certificate, its CA and the root; return the latter two."""
    factor = f"{kind}.certificates"
    if len(issuers) != 2:
        raise AttestationError(
            factor, f"PCK certificate, CA and root are expected, seen {1 + len(issuers)} certificates"
        )
    issuer, root = issuers
    if root.fingerprint not in trust.intel_roots:
        raise AttestationError(factor, f"Intel's root is expected, seen {root.subject!r:.40} with {root.fingerprint}")
    if issuer.subject not in _PCK_CAS or leaf.subject != _PCK or leaf.is_ca:
        raise AttestationError(
            factor, f"{_PCK} by a PCK CA is expected, seen {leaf.subject!r:.40} by {issuer.subject!r:.40}"
        )
    check_issued(issuer, root, factor)  # the root is known by its hash; its own signature says no more
    check_issued(leaf, issuer, factor)
    for certificate in (root, issuer, leaf):
        check_valid(certificate, now_ns, factor)
    return issuer, root


def _may_be_about(collateral: Collateral, platform: Platform, kind: str) -> bool:
    """Whether it is worth checking *collateral* for this platform: only a first look, at what nobody has verified."""
    text = collateral.tcb_info.lower()
    return f'"{platform.fmspc}"'.encode() in text and f'"id":"{kind}"'.encode() in text


def _values(quote: Quote, platform: Platform) -> dict[str, Any]:
    """Return what a policy may compare with."""
    body = quote.body
    if isinstance(body, EnclaveReport):
        if not body.initialized:
            raise AttestationError("sgx.attributes", "an initialised enclave is expected")
        return {
            "mrenclave": body.mrenclave.hex(),
            "mrsigner": body.mrsigner.hex(),
            "isvprodid": body.isvprodid,
            "isvsvn": body.isvsvn,
            "attributes": body.attributes.hex(),
            "fmspc": platform.fmspc,
        }
    return {
        "mrtd": body.mrtd.hex(),
        **{f"rtmr{index}": value.hex() for index, value in enumerate(body.rtmrs)},
        "mrseam": body.mrseam.hex(),
        "mrconfigid": body.mrconfigid.hex(),
        "mrowner": body.mrowner.hex(),
        "mrownerconfig": body.mrownerconfig.hex(),
        "mrservicetd": body.mrservicetd.hex() if body.mrservicetd is not None else None,
        "td_attributes": body.td_attributes.hex(),
        "xfam": body.xfam.hex(),
        "fmspc": platform.fmspc,
    }
