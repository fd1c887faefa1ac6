"""What Intel says about platforms: checks TCB info, QE identity and revocation lists, and evaluates a platform against them.

Where collateral comes from is left to `fspf.attestation.trust`, what a policy tolerates to `fspf.attestation.matching`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fspf.attestation.certificates import (
    Certificate,
    Crl,
    check_crl_date,
    check_issued,
    check_not_revoked,
    check_valid,
    day,
    load_certificates,
    load_crl,
)
from fspf.attestation.claims import UP_TO_DATE, Collateral, Trust
from fspf.attestation.pck import Platform
from fspf.attestation.quote import DomainReport, EnclaveReport
from fspf.attestation.signatures import check_ecdsa
from fspf.core.errors import AttestationError

OUT_OF_DATE: Final = "OutOfDate"
_SIGNER: Final = "Intel SGX TCB Signing"
_TCB_INFO_ID: Final = {"sgx": "SGX", "tdx": "TDX"}
_QE_ID: Final = {"sgx": "QE", "tdx": "TD_QE"}
# What becomes of a platform's status when a part of it (quoting enclave, TDX module) is out of date.
_WITH_OLD_PART: Final = {
    UP_TO_DATE: OUT_OF_DATE,
    "SWHardeningNeeded": OUT_OF_DATE,
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """Intel's judgement of one platform, and of the parts that took part."""

    status: str
    advisories: frozenset[str]


class Checked:
    """Collateral of which signatures, dates and revocations were checked.

    Args:
        collateral: As it came.
        root: The root of the quote's chain; it is trusted.
        trust: How old things may be.
        now_ns: UTC ns since 1970.

    Raises:
        AttestationError: Something of it is malformed, not Intel's, out of date or revoked.
    """

    def __init__(self, collateral: Collateral, root: Certificate, tee: str, trust: Trust, now_ns: int) -> None:
        self._factor = f"{tee}.collateral"
        self._tee = tee
        signer = load_certificates(collateral.signing_chain, self._factor)[0]
        # The root issues CAs and this one: with its name unchecked, the key of any platform could judge platforms.
        if signer.subject != _SIGNER:
            raise AttestationError(self._factor, f"a certificate of {_SIGNER} is expected, seen {signer.subject!r:.60}")
        check_issued(signer, root, self._factor)
        check_valid(signer, now_ns, self._factor)
        self.root_crl = load_crl(collateral.root_crl, self._factor)
        check_issued(self.root_crl, root, self._factor)
        check_crl_date(self.root_crl, now_ns, trust.stale_ns, self._factor)
        check_not_revoked(signer, self.root_crl, self._factor)
        self._pck_crls = [load_crl(der, self._factor) for der in collateral.pck_crls]
        self._tcb_info = self._open(signer, collateral.tcb_info, collateral.tcb_info_signature)
        self._qe_identity = self._open(signer, collateral.qe_identity, collateral.qe_identity_signature)
        self._named(self._tcb_info, "TCB info", _TCB_INFO_ID[tee], 3)
        self._named(self._qe_identity, "QE identity", _QE_ID[tee], 2)
        self.newness = (
            self._number(self._tcb_info, "tcbEvaluationDataNumber"),
            self._moment(self._tcb_info, "issueDate"),
        )
        self.expires_ns = min(
            self._date(self._tcb_info, now_ns, trust.stale_ns),
            self._date(self._qe_identity, now_ns, trust.stale_ns),
            self.root_crl.next_update_ns + trust.stale_ns,
            signer.not_after_ns,
        )

    def check_revocation(self, leaf: Certificate, issuer: Certificate, now_ns: int, stale_ns: int) -> None:
        """Check that neither the PCK certificate nor its CA was revoked."""
        check_not_revoked(issuer, self.root_crl, f"{self._tee}.certificates")
        crl = self._crl_of(issuer)
        check_issued(crl, issuer, self._factor)
        check_crl_date(crl, now_ns, stale_ns, self._factor)
        check_not_revoked(leaf, crl, f"{self._tee}.certificates")
        self.expires_ns = min(self.expires_ns, crl.next_update_ns + stale_ns)

    def judge(self, platform: Platform, qe: EnclaveReport, domain: DomainReport | None) -> Judgement:
        """Evaluate a platform.

        Args:
            platform: As its PCK certificate describes it.
            qe: Report of the quoting enclave; authentic.
            domain: For TDX, the report of the virtual machine; authentic.

        Raises:
            AttestationError: It is another platform's collateral, another quoting enclave or TDX module, or no level fits.
        """
        for name, seen in (("fmspc", platform.fmspc), ("pceId", platform.pce_id)):
            expected = self._text(self._tcb_info, name).lower()
            if expected != seen:
                raise AttestationError(f"{self._tee}.{name.lower()}", f"{expected} is expected, seen {seen}")
        # From module version 1 on, the first two SVNs are the module's own, and its identity says what they are worth.
        skipped = 0
        parts = [self._judge_qe(qe)]
        if domain is not None:
            version = domain.tee_tcb_svn[1]
            parts += self._judge_module(domain, version)
            skipped = 2 if version else 0

        def fits(level: Mapping[str, Any]) -> bool:
            tcb = self._mapping(level, "tcb")
            least = self._svns(tcb, "sgxtcbcomponents")
            if any(seen < svn for seen, svn in zip(platform.svns, least, strict=True)):
                return False
            if domain is not None:
                least = self._svns(tcb, "tdxtcbcomponents")[skipped:]
                if any(seen < svn for seen, svn in zip(domain.tee_tcb_svn[skipped:], least, strict=True)):
                    return False
            return platform.pce_svn >= self._number(tcb, "pcesvn")

        whole = self._first(self._list(self._tcb_info, "tcbLevels"), fits, f"{self._tee}.tcb")
        return _combine(whole, parts)

    def _judge_qe(self, qe: EnclaveReport) -> Judgement:
        factor = f"{self._tee}.qe"
        identity = self._qe_identity
        self._masked(identity, "miscselect", qe.miscselect, factor)
        self._masked(identity, "attributes", qe.attributes, factor)
        signer = self._text(identity, "mrsigner").lower()
        if signer != qe.mrsigner.hex():
            raise AttestationError(factor, f"a quoting enclave by {signer} is expected, seen {qe.mrsigner.hex()}")
        if self._number(identity, "isvprodid") != qe.isvprodid:
            raise AttestationError(
                factor, f"product {self._number(identity, 'isvprodid')} is expected, seen {qe.isvprodid}"
            )
        return self._first(self._list(identity, "tcbLevels"), self._svn_fits(qe.isvsvn), factor)

    def _judge_module(self, domain: DomainReport, version: int) -> list[Judgement]:
        """Check who made the TDX module, and return what its own levels say: version 0 has none."""
        factor = "tdx.module"
        name = f"TDX_{version:02X}"
        if version:
            modules = self._list(self._tcb_info, "tdxModuleIdentities")
            module = next((one for one in modules if self._text(one, "id") == name), None)
            if module is None:
                raise AttestationError(factor, f"a module that Intel's TCB info names is expected, seen {name}")
        else:
            module = self._mapping(self._tcb_info, "tdxModule")
        signer = self._text(module, "mrsigner").lower()
        if signer != domain.mrsignerseam.hex():
            raise AttestationError(factor, f"a module by {signer} is expected, seen {domain.mrsignerseam.hex()}")
        self._masked(module, "attributes", domain.seam_attributes, factor)
        if not version:
            return []
        return [self._first(self._list(module, "tcbLevels"), self._svn_fits(domain.tee_tcb_svn[0]), factor)]

    def _svn_fits(self, svn: int) -> Callable[[Mapping[str, Any]], bool]:
        return lambda level: svn >= self._number(self._mapping(level, "tcb"), "isvsvn")

    def _first(
        self, levels: Sequence[Mapping[str, Any]], fits: Callable[[Mapping[str, Any]], bool], factor: str
    ) -> Judgement:
        """Return what the first level that fits says; levels are listed from the newest to the oldest."""
        for level in levels:
            if fits(level):
                advisories = level.get("advisoryIDs", [])
                if not isinstance(advisories, list) or not all(isinstance(one, str) for one in advisories):
                    raise self._malformed("advisoryIDs")
                return Judgement(self._text(level, "tcbStatus"), frozenset(advisories))
        raise AttestationError(
            factor, f"one of the {len(levels)} levels that Intel supports is expected, this is below all"
        )

    # ------------------------------------------------------------------------------------- documents

    def _crl_of(self, issuer: Certificate) -> Crl:
        for crl in self._pck_crls:
            if crl.issuer_name == issuer.subject_name:
                return crl
        raise AttestationError(self._factor, f"a revocation list of {issuer.subject!r:.60} is expected, there is none")

    def _open(self, signer: Certificate, document: bytes, signature: bytes) -> Mapping[str, Any]:
        """Check the signature of a document, then parse it."""
        if len(signature) != 64:
            raise AttestationError(self._factor, "signatures of 64 bytes are expected")
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        check_ecdsa(signer.key, r, s, document, self._factor)
        try:
            parsed = json.loads(document)
        except (ValueError, RecursionError):
            raise self._malformed("JSON") from None
        if not isinstance(parsed, Mapping):
            raise self._malformed("JSON")
        return parsed

    def _named(self, document: Mapping[str, Any], what: str, name: str, version: int) -> None:
        if self._text(document, "id") != name or self._number(document, "version") != version:
            raise AttestationError(self._factor, f"{what} {name} of version {version} is expected, seen another")

    def _date(self, document: Mapping[str, Any], now_ns: int, stale_ns: int) -> int:
        issued, following = (self._moment(document, name) for name in ("issueDate", "nextUpdate"))
        if not issued <= now_ns <= following + stale_ns:
            name = self._text(document, "id")
            raise AttestationError(
                self._factor, f"{name} of {day(issued)} to {day(following)} says nothing about {day(now_ns)}"
            )
        return following + stale_ns

    def _moment(self, document: Mapping[str, Any], name: str) -> int:
        try:
            moment = datetime.strptime(self._text(document, name), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise self._malformed(name) from None
        return round(moment.timestamp()) * 1_000_000_000

    def _masked(self, document: Mapping[str, Any], name: str, seen: bytes, factor: str) -> None:
        """Compare the bits that count, by the mask that stands beside the value."""
        try:
            expected = bytes.fromhex(self._text(document, name))
            mask = bytes.fromhex(self._text(document, f"{name}Mask"))
        except ValueError:
            raise self._malformed(name) from None
        if not len(expected) == len(mask) == len(seen):
            raise self._malformed(name)
        if any((one ^ other) & bits for one, other, bits in zip(expected, seen, mask, strict=True)):
            raise AttestationError(factor, f"{name} {expected.hex()} under {mask.hex()} is expected, seen {seen.hex()}")

    def _svns(self, tcb: Mapping[str, Any], name: str) -> list[int]:
        found = [self._number(one, "svn") for one in self._list(tcb, name)]
        if len(found) != 16:
            raise self._malformed(name)
        return found

    def _text(self, document: Mapping[str, Any], name: str) -> str:
        value = document.get(name)
        if not isinstance(value, str):
            raise self._malformed(name)
        return value

    def _number(self, document: Mapping[str, Any], name: str) -> int:
        value = document.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._malformed(name)
        return value

    def _mapping(self, document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        value = document.get(name)
        if not isinstance(value, Mapping):
            raise self._malformed(name)
        return value

    def _list(self, document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
        value = document.get(name)
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            raise self._malformed(name)
        return value

    def _malformed(self, name: str) -> AttestationError:
        return AttestationError(self._factor, f"{name} of Intel's form is expected")


def _combine(whole: Judgement, parts: Sequence[Judgement]) -> Judgement:
    """Let what the parts are worth count against the platform.

    A part can only be up to date, out of date or revoked; anything else that Intel may invent is handed on, and is refused
    where nobody knows it.
    """
    status, advisories = whole.status, whole.advisories
    for part in parts:
        advisories |= part.advisories
        if part.status == OUT_OF_DATE:
            status = _WITH_OLD_PART.get(status, status)
        elif part.status != UP_TO_DATE and status != "Revoked":
            status = part.status
    return Judgement(status, advisories)
