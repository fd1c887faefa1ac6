"""The attestation vectors of `tests/vectors/attestation`: files, collateral, and the expected values of their README.

What a verifier makes of them is in `tests/unit/attestation`; where they come from, with licences, in that README.
"""

from __future__ import annotations

import calendar
import json
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from fspf.attestation import Collateral, Trust
from fspf.attestation.trust import parse_collateral, split_signed

VECTORS: Final = Path(__file__).resolve().parents[1] / "vectors" / "attestation"
NS: Final = 1_000_000_000
DAY_NS: Final = 24 * 3600 * NS


def on(date: str) -> int:
    """Return noon of a day (`2025-06-30`), in ns since 1970."""
    year, month, day = (int(part) for part in date.split("-"))
    return calendar.timegm((year, month, day, 12, 0, 0)) * NS


@cache
def read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


@dataclass(frozen=True)
class Snp:
    """A report, its certificate, the chain above it, and a day on which all is valid."""

    report: str
    leaf: str
    chain: str
    date: str

    @property
    def certificates(self) -> list[bytes]:
        return [read(f"snp/{self.leaf}"), read(f"snp/{self.chain}")]

    @property
    def raw(self) -> bytes:
        return read(f"snp/{self.report}")


SNP: Final = {
    "SNP-A": Snp("milan-a-report.bin", "milan-a-vcek.der", "ask_ark_milan.pem", "2025-06-30"),
    "SNP-C": Snp("milan-c-report.bin", "milan-c-vcek.der", "ask_ark_milan.pem", "2025-06-30"),
    "SNP-VLEK": Snp("milan-vlek-report.bin", "milan-vlek-cert.der", "ask_ark_milan_vlek.pem", "2025-06-30"),
    "SNP-GENOA": Snp("genoa-azure-report.bin", "genoa-azure-vcek.pem", "ask_ark_genoa.pem", "2025-06-30"),
}


@dataclass(frozen=True)
class Quoted:
    """A quote, its length without what follows, its collateral, and a day on which all is valid."""

    quote: str
    kind: str
    length: int
    date: str
    whole: str = ""  # collateral in one file, or:
    tcb_info: str = ""
    qe_identity: str = ""
    signing_chain: str = ""
    pck_crl: str = ""
    root_crl: str = ""
    stale_days: int = 0  # there is no revocation list of that time

    @property
    def raw(self) -> bytes:
        return read(self.quote)[: self.length]

    @property
    def collateral(self) -> Collateral:
        if self.whole:
            return parse_collateral(read(self.whole))
        tcb_info, tcb_info_signature = split_signed(read(self.tcb_info), "tcbInfo")
        qe_identity, qe_identity_signature = split_signed(read(self.qe_identity), "enclaveIdentity")
        root_crl = read(self.root_crl)
        if self.root_crl.endswith(".json"):
            root_crl = bytes.fromhex(json.loads(root_crl)["root_ca_crl"])
        return Collateral(
            tcb_info, tcb_info_signature, qe_identity, qe_identity_signature, read(self.signing_chain), (read(self.pck_crl),), root_crl
        )  # fmt: skip

    @property
    def trust(self) -> Trust:
        return Trust(collateral=(self.collateral,), stale_ns=self.stale_days * DAY_NS)

    def with_collateral(self, **changes: object) -> Trust:
        """Return the trust with other parts of the collateral."""
        return replace(self.trust, collateral=(replace(self.collateral, **changes),))  # type: ignore[arg-type]


QUOTES: Final = {
    "TDX-1": Quoted("tdx/v4-uptodate-quote.bin", "tdx", 4936, "2025-06-30", "tdx/v4-uptodate-collateral.json"),
    "TDX-2": Quoted("tdx/v5-outdated-quote.bin", "tdx", 5006, "2026-03-01", "tdx/v5-outdated-collateral.json"),
    "TDX-3": Quoted(
        "tdx/v4-spr-e4-quote.bin", "tdx", 4935, "2023-06-20", tcb_info="tdx/tcbinfo-50806f000000.json",
        qe_identity="tdx/td-qe-identity-2023-06.json", signing_chain="intel-tcb-signing-chain-2018.pem",
        pck_crl="tdx/pck-platform-crl-2023-06.der", root_crl="tdx/root-crl-2023-04.der",
    ),
    "TDX-4": Quoted(
        "tdx/v4-cos113-quote.bin", "tdx", 4935, "2025-03-01", tcb_info="tdx/tcbinfo-00806f050000.json",
        qe_identity="tdx/td-qe-identity-00806f.json", signing_chain="intel-tcb-signing-chain-2018.pem",
        pck_crl="tdx/pck-platform-crl-2023-06.der", root_crl="tdx/root-crl-2023-04.der", stale_days=700,
    ),
    "SGX-1": Quoted("sgx/v3-processor-quote.bin", "sgx", 4600, "2025-06-30", "sgx/v3-processor-collateral.json"),
    "SGX-2": Quoted(
        "sgx/v3-debug-quote.bin", "sgx", 4733, "2025-09-01", tcb_info="sgx/tcbinfo-00606a000000.json",
        qe_identity="sgx/qe-identity-2025-08.json", signing_chain="intel-tcb-signing-chain.pem",
        pck_crl="sgx/pck-platform-crl-2025-08.der", root_crl="sgx/v3-processor-collateral.json",
    ),
}  # fmt: skip


@cache
def expected(name: str) -> dict[str, str]:
    """Return the table of expected values that the README has under a heading such as `SNP-A`."""
    text = read("README.md").decode()
    match = re.search(rf"^### {name}: .*?\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    assert match, f"the README of the vectors has no section {name}"
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", match[1], re.MULTILINE)
    return {field: value.strip("`") for field, value in rows if field != "field" and not field.startswith("---")}


@cache
def files() -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of every file that the README names."""
    rows = re.findall(r"^\| (\S+) \|.*?\| (\d+) \| `([0-9a-f]{64})` \|", read("README.md").decode(), re.MULTILINE)
    return {name: (int(size), digest) for name, size, digest in rows}
