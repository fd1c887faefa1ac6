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

from fspf.attestation import Trust, key_id, match, verify
from fspf.attestation.make import Options, make_evidence
from fspf.attestation.make_vm import parse_table
from fspf.attestation.quote import parse_quote
from fspf.attestation.signatures import spki_of
from fspf.attestation.snp import parse_report
from fspf.core.errors import UsageError
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
