"""What must hold for any bytes that are sent as evidence, parser by parser: for hypothesis, and for a fuzzer.

Each target raises if a promise is broken; `tests/property` chooses the bytes.
"""

from __future__ import annotations

import base64
import json
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

from fspf.attestation import KINDS, AttestationError, Claims, Trust, key, match, measured, verify
from fspf.attestation.certificates import load_certificates, load_crl
from fspf.attestation.claims import Collateral
from fspf.attestation.dcap import verify_quote
from fspf.attestation.make_vm import parse_table
from fspf.attestation.pck import read_platform
from fspf.attestation.quote import check_quote, parse_quote
from fspf.attestation.snp import parse_report, verify_report
from fspf.attestation.tcb import Checked
from fspf.attestation.tpm import parse_attest, parse_public, parse_signature
from fspf.attestation.trust import parse_collateral, split_signed
from fspf.core.errors import UsageError
from tests.support import tpmwire
from tests.support.chipmakers import FMSPC, pck_extension
from tests.support.evidence import QUOTES, SNP, Quoted, on, read

WHAT: Final = "fuzz"
_LATEST: Final = "TDX-1"


def _parses(parse: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """Return a target: *parse* returns, or raises what callers expect."""

    def target(data: bytes) -> None:
        try:
            parse(data)
        except (AttestationError, UsageError) as exc:
            _short(exc)

    return target


@cache
def _snp_certificates() -> list[Any]:
    return [one for data in SNP["SNP-C"].certificates for one in load_certificates(data, WHAT)]


@cache
def _collateral(name: str) -> Collateral:
    return QUOTES[name].collateral


@cache
def _trust(name: str) -> Trust:
    return QUOTES[name].trust


def _report(data: bytes) -> None:
    """Only AMD's own report is believed, whatever it was altered to."""
    try:
        claims = verify_report(
            data, _snp_certificates(), parse_report(data).report_data, Trust(), on(SNP["SNP-C"].date)
        )
    except AttestationError:
        return
    assert data == SNP["SNP-C"].raw, claims


def _certificate(data: bytes) -> None:
    """Only AMD's own certificate lets the report be believed."""
    vector = SNP["SNP-C"]
    try:
        leaf, *others = load_certificates(data, WHAT)
        report_data = parse_report(vector.raw).report_data
        claims = verify_report(
            vector.raw, [leaf, *others, *_snp_certificates()[1:]], report_data, Trust(), on(vector.date)
        )
    except AttestationError:
        return
    assert leaf == _snp_certificates()[0], claims


def _quote_of(name: str) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        """Only the quote of the vector is believed, and it shows the same whatever stands between its certificates."""
        vector = QUOTES[name]
        try:
            quote = parse_quote(data)
            claims = _verified(vector, data, quote.body.report_data)
        except AttestationError:
            return
        assert claims == _good(name)
        assert quote.signed == parse_quote(vector.raw).signed

    return target


@cache
def _good(name: str) -> Claims:
    vector = QUOTES[name]
    return _verified(vector, vector.raw, parse_quote(vector.raw).body.report_data)


def _verified(vector: Quoted, raw: bytes, report_data: bytes) -> Claims:
    return verify_quote(raw, vector.kind, report_data, vector.trust, on(vector.date))


def _platform(data: bytes) -> None:
    leaf, _ = check_quote(parse_quote(QUOTES[_LATEST].raw))
    changed = replace(leaf, extensions={"1.2.840.113741.1.13.1": data})
    try:
        platform = read_platform(changed, WHAT)
    except AttestationError:
        return
    assert len(platform.svns) == 16


def _document(data: bytes) -> None:
    """A document is looked into only when Intel signed it."""
    vector = QUOTES[_LATEST]
    _, (_, root) = check_quote(parse_quote(vector.raw))
    collateral = replace(_collateral(_LATEST), tcb_info=data)
    try:
        Checked(collateral, root, vector.kind, _trust(_LATEST), on(vector.date))
    except AttestationError:
        return
    assert data == _collateral(_LATEST).tcb_info


def _json(data: bytes) -> None:
    """Any JSON is refused or shows something; what it shows can be compared with any policy."""
    try:
        evidence = json.loads(data)
    except (ValueError, RecursionError):
        return
    judge(evidence)


def judge(evidence: Any) -> None:
    """Verify anything, and match what comes out: nothing but the refusal may be raised."""
    try:
        claims = verify(evidence, bytes(32), _trust(_LATEST), on(QUOTES[_LATEST].date))
        match([claims], [{"key": "00" * 32, "tpm": {"pcrs": {0: "00" * 32}}, "mrenclave": ["00" * 32]}])
    except AttestationError as exc:
        _short(exc)


def _short(error: Exception) -> None:
    """What a stranger sent does not fill the log."""
    assert len(str(error)) < 2000


def _fields(data: bytes) -> None:
    """Bytes that stand in the fields of evidence of a kind which the first byte chooses."""
    kind = KINDS[data[0] % len(KINDS)] if data else "key"
    names = {
        "key": ("public_key", "signature"), "measured-process": ("node", "signature"), "sev-snp": ("report",), "sgx": ("quote",),
        "tdx": ("quote",), "tpm": ("public", "attest", "signature"),
    }[kind]  # fmt: skip
    size = max(1, len(data) // len(names))
    evidence: dict[str, Any] = {"type": kind, "pcrs": {"sha256": {"0": "00" * 32}}, "executable": "00" * 32}
    if kind != "tpm":
        del evidence["pcrs"]
    if kind != "measured-process":
        del evidence["executable"]
    for index, name in enumerate(names):
        evidence[name] = base64.b64encode(data[1 + index * size : 1 + (index + 1) * size]).decode()
    judge(evidence)


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "attest": _parses(parse_attest),
    "certificate": _certificate,
    "certificates": _parses(lambda data: load_certificates(data, WHAT)),
    "collateral": _parses(parse_collateral),
    "crl": _parses(lambda data: load_crl(data, WHAT)),
    "document": _document,
    "fields": _fields,
    "json": _json,
    "platform": _platform,
    "public": _parses(parse_public),
    "report": _report,
    "sgx quote": _quote_of("SGX-1"),
    "signature": _parses(parse_signature),
    "split": _parses(lambda data: split_signed(data, "tcbInfo")),
    "table": _parses(parse_table),
    "tdx quote": _quote_of("TDX-1"),
}


def seeds() -> dict[str, list[bytes]]:
    """Return real inputs of each target, to alter."""
    binding = bytes(32)
    tpm = [tpmwire.evidence(binding, one) for one in (tpmwire.P256, tpmwire.P384, tpmwire.RSA)]
    every = [
        *tpm,
        measured.make(tpmwire.P256, binding, "ab" * 32, [b"-v", b"\xff"], "cd" * 16),
        key.make(tpmwire.P384, binding),
    ]
    decoded = {name: [base64.b64decode(one[name]) for one in tpm] for name in ("public", "attest", "signature")}
    tcb_info = read("tdx/tcbinfo-50806f000000.json")
    return {
        **decoded,
        "certificate": [SNP["SNP-C"].certificates[0]],
        "certificates": [read("intel-sgx-root-ca.pem"), read("snp/turin-vcek.der"), read("snp/ask_ark_milan.pem")],
        "collateral": [read("sgx/v3-processor-collateral.json")],
        "crl": [read("tdx/root-crl-2023-04.der")],
        "document": [_collateral(_LATEST).tcb_info],
        "fields": [b"\5" + decoded["public"][0] + decoded["attest"][0] + decoded["signature"][0]],
        "json": [json.dumps(one).encode() for one in every],
        "platform": [pck_extension((5,) * 16, 11, FMSPC)],
        "report": [SNP["SNP-C"].raw],
        "sgx quote": [QUOTES["SGX-1"].raw],
        "split": [tcb_info],
        "table": [table_of(SNP["SNP-C"].certificates)],
        "tdx quote": [QUOTES["TDX-1"].raw],
    }


def table_of(certificates: list[bytes]) -> bytes:
    """Return the table in which a hypervisor hands VCEK and ASK to its guest."""
    names = ("63da758d-e664-4564-adc5-f4b93be8accd", "4ab7b379-bbac-4fe4-a02f-05aef327c782")
    offset = 24 * (len(certificates) + 1)
    head, body = b"", b""
    for name, certificate in zip(names, certificates, strict=True):
        head += struct.pack("<16sII", uuid.UUID(name).bytes_le, offset + len(body), len(certificate))
        body += certificate
    return head + bytes(24) + body
