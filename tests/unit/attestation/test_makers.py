"""The makers of evidence, as far as this machine can make any: keys, measured processes, and the forms of the others.

Quotes of a TPM are in `tests/cas/test_tpm_quotes.py`. No machine of ours has SEV-SNP, TDX or SGX: there, a directory stands in
for the kernel's, filled from the vectors.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fspf.attestation import Trust, key_id, make_wanted, match, verify
from fspf.attestation.make import Options, make_evidence
from fspf.attestation.make_vm import parse_table
from fspf.attestation.make_wanted import parse_pcrs, wanted
from fspf.attestation.quote import parse_quote
from fspf.attestation.signatures import spki_of
from fspf.attestation.snp import parse_report
from fspf.core.errors import UsageError, WrongKeyError
from tests.support.chipmakers import rsa_key
from tests.support.evidence import QUOTES, SNP, on
from tests.support.hostile import table_of

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY_ID = key_id(spki_of(KEY.public_key()))


def test_key_and_process(binding: bytes) -> None:
    program = [sys.executable, "-c", "import sys; sys.stdin.read()", "--serve", ""]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as process:
        options = Options(key=KEY, node_key=KEY, pid=process.pid, volume_tag="ab" * 16)
        key, measured = make_evidence(["key", "measured-process"], binding, options)
        process.communicate(b"", timeout=20)
    trust = Trust(node_keys=frozenset({KEY_ID}))
    claims = [verify(one, binding, trust, 0) for one in (key, measured)]
    executable = hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()
    item: dict[str, Any] = {
        "key": KEY_ID,
        "measured-process": {
            "executable": executable,
            "arguments": program[1:],
            "volume_tag": "ab" * 16,
            "node": KEY_ID,
        },
    }
    assert match(claims, [item], {"mode": "none"}) == 0


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (["key"], Options(), "needs an identity key"),
        (["measured-process"], Options(pid=1), "needs a node key and the id of a process"),
        (["measured-process"], Options(node_key=KEY), "needs a node key and the id of a process"),
        (["measured-process"], Options(node_key=KEY, pid=2**22 + 1), "process 4194305 is expected to be there"),
        (["sev-snp"], Options(tsm="/nonexistent"), "a confidential VM with /nonexistent is expected: No such file"),
        (["tdx"], Options(tsm="/nonexistent"), "a confidential VM with /nonexistent is expected"),
        (["sgx"], Options(gramine="/nonexistent"), "an enclave of Gramine with /nonexistent is expected"),
        (["quote"], Options(), "evidence of kind key, .* is expected, not 'quote'"),
    ],
)
def test_what_cannot_be_made_is_explained(kinds: list[str], options: Options, message: str, binding: bytes) -> None:
    with pytest.raises(UsageError, match=message):
        make_evidence(kinds, binding, options)


class Kernel:
    """Stands in for configfs: a new directory has the kernel's files, and rmdir takes them along."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, provider: str, outblob: bytes, auxblob: bytes | None = None
    ) -> None:
        self.asked = b""
        self._files = {"provider": provider.encode() + b"\n", "outblob": outblob}
        if auxblob is not None:
            self._files["auxblob"] = auxblob
        self._monkeypatch = monkeypatch
        self._mkdir, self._rmdir = os.mkdir, os.rmdir

    def make(self, kind: str, binding: bytes, options: Options) -> dict[str, Any]:
        with self._monkeypatch.context() as patched:
            patched.setattr(os, "mkdir", self.mkdir)
            patched.setattr(os, "rmdir", self.rmdir)
            (evidence,) = make_evidence([kind], binding, options)
        return evidence

    def mkdir(self, path: str) -> None:
        self._mkdir(path)
        for name, content in self._files.items():
            Path(path, name).write_bytes(content)

    def rmdir(self, path: str) -> None:
        self.asked = Path(path, "inblob").read_bytes()
        for file in Path(path).iterdir():
            file.unlink()
        self._rmdir(path)


def test_snp_report_with_the_hypervisors_certificates(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    vector = SNP["SNP-C"]
    binding = parse_report(vector.raw).report_data[:32]
    kernel = Kernel(monkeypatch, "sev_guest", vector.raw, table_of(vector.certificates))
    evidence = kernel.make("sev-snp", binding, Options(tsm=str(scratch)))
    assert kernel.asked == binding + bytes(32)
    assert not list(scratch.iterdir())
    assert verify(evidence, binding, Trust(), on(vector.date)).type == "sev-snp"


def test_snp_report_with_certificates_of_the_operator(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    vector = SNP["SNP-GENOA"]
    binding = parse_report(vector.raw).report_data[:32]
    kernel = Kernel(monkeypatch, "sev_guest", vector.raw)
    options = Options(tsm=str(scratch), certificates=tuple(vector.certificates))
    evidence = kernel.make("sev-snp", binding, options)
    assert verify(evidence, binding, Trust(), on(vector.date)).values["product"] == "Genoa"


def test_tdx_quote(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    vector = QUOTES["TDX-4"]
    binding = parse_quote(vector.raw).body.report_data[:32]
    kernel = Kernel(monkeypatch, "tdx_guest", vector.raw + bytes(1000))  # with the rest of the kernel's buffer
    evidence = kernel.make("tdx", binding, Options(tsm=str(scratch)))
    assert verify(evidence, binding, vector.trust, on(vector.date)).type == "tdx"


def test_machine_of_the_other_kind(monkeypatch: pytest.MonkeyPatch, scratch: Path, binding: bytes) -> None:
    kernel = Kernel(monkeypatch, "tdx_guest", b"")
    with pytest.raises(UsageError, match="a machine of kind sev-snp is expected, the kernel's provider is 'tdx_guest'"):
        kernel.make("sev-snp", binding, Options(tsm=str(scratch)))
    assert not list(scratch.iterdir())


def test_gramine(scratch: Path) -> None:
    vector = QUOTES["SGX-1"]
    binding = parse_quote(vector.raw).body.report_data[:32]
    (scratch / "quote").write_bytes(vector.raw)
    (evidence,) = make_evidence(["sgx"], binding, Options(gramine=str(scratch)))
    assert (scratch / "user_report_data").read_bytes() == binding + bytes(32)
    assert verify(evidence, binding, vector.trust, on(vector.date)).type == "sgx"


def test_table_of_certificates() -> None:
    certificates = SNP["SNP-C"].certificates
    table = table_of(certificates)
    assert parse_table(table) == certificates
    assert parse_table(b"") == []
    assert parse_table(bytes(100)) == []
    with pytest.raises(UsageError, match="a certificate within the table"):
        parse_table(table[:100])


# ------------------------------------------------------------------------------------------- what is wanted


def test_identity_alone_means_key() -> None:
    kinds, options = wanted({}, KEY)
    assert (kinds, options.key, options.pcrs) == (["key"], KEY, {"sha256": [11]})
    assert wanted({}, None)[0] == []


def test_environment_says_what_is_sent(scratch: Path, binding: bytes) -> None:
    node, chain = scratch / "node.pem", scratch / "chain.pem"
    node.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    chain.write_bytes(b"chain")
    environment = {
        "FSPF_CAS_EVIDENCE": "measured-process, tpm sev-snp", "FSPF_TPM_PCRS": "sha256:11,0+sha384:7", "FSPF_TPM_AK": "0x81010102",
        "FSPF_TPM_TCTI": "device:/dev/tpm0", "FSPF_NODE_KEY": str(node), "FSPF_SNP_CERTIFICATES": str(chain),
    }  # fmt: skip
    kinds, options = wanted(environment, None)
    assert kinds == ["measured-process", "tpm", "sev-snp"]
    assert (options.pcrs, options.ak, options.tcti) == (
        {"sha256": [0, 11], "sha384": [7]},
        "0x81010102",
        "device:/dev/tpm0",
    )
    assert options.certificates == (b"chain",)
    (evidence,) = make_evidence(kinds[:1], binding, options)
    claims = verify(evidence, binding, Trust(node_keys=frozenset({KEY_ID})), 0)
    assert claims.values["executable"] == hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text", ["", "sha256", "sha1:0", "sha256:24", "sha256:1,1", "sha256:1+sha384:1", "sha256:1+", "sha256:-1", "all"]
)
def test_odd_registers_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_pcrs(text)


def test_odd_node_keys_are_refused(scratch: Path) -> None:
    environment = {"FSPF_CAS_EVIDENCE": "measured-process", "FSPF_NODE_KEY": str(scratch / "node.pem")}
    with pytest.raises(UsageError, match="No such file"):
        wanted(environment, None)
    assert wanted(environment | {"FSPF_CAS_EVIDENCE": "tpm"}, None)[1].node_key is None
    (scratch / "node.pem").write_bytes(b"no key")
    with pytest.raises(WrongKeyError, match="a private key in PEM without a passphrase is expected"):
        wanted(environment, None)
    key = rsa_key("ask").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (scratch / "node.pem").write_bytes(key)
    with pytest.raises(WrongKeyError, match="an Ed25519, P-256 or P-384 key is expected"):
        wanted(environment, None)


def test_every_variable_is_described() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "ATTESTATION.md").read_text(encoding="utf-8")
    names = {value for value in vars(make_wanted).values() if isinstance(value, str) and value.startswith("FSPF_")}
    assert len(names) == 6
    assert all(f"`{name}`" in text for name in names)
