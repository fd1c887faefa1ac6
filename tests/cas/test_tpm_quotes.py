"""Quotes of a TPM (in software, but spoken to as to any): made, verified, matched with a policy.

Malformed and altered structures are in `tests/unit/attestation/test_tpm.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fspf.attestation import AttestationError, Claims, Trust, match, verify
from fspf.attestation.make import Options, make_evidence
from fspf.attestation.make_tpm import Tpm
from fspf.core.errors import UsageError
from fspf.core.factors import check_item
from tests.support.swtpm import Swtpm, running_swtpm

BINDING = bytes(range(32))
PCRS = {"sha256": (0, 11)}
SIGNING = "restricted|sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth"


@pytest.fixture(scope="module")
def swtpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swtpm]:
    with running_swtpm(tmp_path_factory.mktemp("tpm") / "state") as running:
        running.tool("tpm2_pcrallocate", "sha256:all+sha384:all")
        running.restart()
        yield running


@pytest.fixture(scope="module")
def tpm(swtpm: Swtpm) -> Tpm:
    made = Tpm(swtpm.tcti)
    made.create_ak()
    return made


def quoted(tpm: Tpm, binding: bytes = BINDING, pcrs: dict[str, tuple[int, ...]] | None = None) -> Claims:
    return verify(tpm.quote(binding, pcrs or PCRS), binding, Trust(), 0)


def requirement(tpm: Tpm, value: str) -> list[dict[str, Any]]:
    return [{"tpm": {"pcrs": {11: value}, "ak": tpm.ak_id()}}]


def test_quote_is_verified(tpm: Tpm) -> None:
    claims = quoted(tpm)
    assert claims.values["ak"] == tpm.ak_id()
    assert set(claims.values["pcrs"]) == {("sha256", 0), ("sha256", 11)}


def test_key_of_a_tpm_is_always_the_same(swtpm: Swtpm, tpm: Tpm, scratch: Path) -> None:
    again = Tpm(swtpm.tcti, ak="0x81010102")
    again.create_ak()
    assert again.ak_id() == tpm.ak_id()
    with running_swtpm(scratch / "state") as another:
        other = Tpm(another.tcti)
        other.create_ak()
        assert other.ak_id() != tpm.ak_id()


def test_measured_boot_decides(scratch: Path) -> None:
    """What a policy expects after the right measurement is not what is there after one more, or after a restart."""
    with running_swtpm(scratch / "state") as swtpm:
        tpm = Tpm(swtpm.tcti)
        tpm.create_ak()
        check_measured_boot(swtpm, tpm)


def check_measured_boot(swtpm: Swtpm, tpm: Tpm) -> None:
    before = quoted(tpm).values["pcrs"]["sha256", 11]
    swtpm.tool("tpm2_pcrextend", f"11:sha256={'ab' * 32}")
    claims = quoted(tpm)
    value = claims.values["pcrs"]["sha256", 11]
    assert value != before
    assert match([claims], requirement(tpm, value)) == 0
    swtpm.tool("tpm2_pcrextend", f"11:sha256={'cd' * 32}")
    with pytest.raises(AttestationError, match=rf"^tpm.pcrs.11: {value} is expected, seen [0-9a-f]{{64}}$"):
        match([quoted(tpm)], requirement(tpm, value))
    swtpm.restart()
    tpm = Tpm(swtpm.tcti)
    restarted = quoted(tpm)
    with pytest.raises(AttestationError, match=r"^tpm.pcrs.11: .*seen 0{64}$"):
        match([restarted], requirement(tpm, value))
    assert restarted.values["reset_count"] == claims.values["reset_count"] + 1


def test_other_banks(tpm: Tpm) -> None:
    claims = quoted(tpm, pcrs={"sha384": (0, 1, 23), "sha256": (16,)})
    assert set(claims.values["pcrs"]) == {("sha384", 0), ("sha384", 1), ("sha384", 23), ("sha256", 16)}


def test_quote_for_another_challenge_is_refused(tpm: Tpm) -> None:
    evidence = tpm.quote(BINDING, PCRS)
    with pytest.raises(AttestationError, match=r"^tpm.nonce"):
        verify(evidence, bytes(32), Trust(), 0)


def test_altered_register_values_are_refused(tpm: Tpm) -> None:
    evidence = tpm.quote(BINDING, PCRS)
    evidence["pcrs"]["sha256"]["11"] = "ab" * 32
    with pytest.raises(AttestationError, match=r"^tpm.pcrs"):
        verify(evidence, BINDING, Trust(), 0)


def test_other_tpm_is_refused(tpm: Tpm, scratch: Path) -> None:
    with running_swtpm(scratch / "state") as another:
        other = Tpm(another.tcti)
        other.create_ak()
        claims = quoted(other)
    with pytest.raises(AttestationError, match=rf"^tpm.ak: {tpm.ak_id()} is expected, seen {claims.values['ak']}"):
        match([claims], requirement(tpm, claims.values["pcrs"]["sha256", 11]))


@pytest.mark.parametrize("algorithm", ["rsa2048:rsassa-sha256:null", "rsa2048:rsapss-sha256:null", "rsa2048:rsapss-sha384:null", "ecc384:ecdsa-sha384:null"])  # fmt: skip
def test_other_kinds_of_key(swtpm: Swtpm, algorithm: str) -> None:
    context = swtpm.directory / "other.ctx"
    swtpm.tool("tpm2_createprimary", "-C", "e", "-G", algorithm, "-a", SIGNING, "-c", str(context))
    swtpm.tool("tpm2_flushcontext", "-t")
    claims = quoted(Tpm(swtpm.tcti, ak=str(context)), pcrs={"sha256": (11,), "sha384": (11,)})
    assert len(claims.values["pcrs"]) == 2


def test_key_that_signs_anything_is_refused(swtpm: Swtpm) -> None:
    """Without `restricted`, a key also signs what only looks like a quote."""
    context = swtpm.directory / "free.ctx"
    attributes = SIGNING.removeprefix("restricted|")
    swtpm.tool("tpm2_createprimary", "-C", "e", "-G", "ecc256:ecdsa-sha256:null", "-a", attributes, "-c", str(context))
    swtpm.tool("tpm2_flushcontext", "-t")
    with pytest.raises(AttestationError, match=r"^tpm.public: .*missing: restricted$"):
        Tpm(swtpm.tcti, ak=str(context)).quote(BINDING, PCRS)


def test_maker_says_what_is_missing(swtpm: Swtpm, tpm: Tpm) -> None:
    assert make_evidence(["tpm"], BINDING, Options(tcti=swtpm.tcti))[0]["type"] == "tpm"
    with pytest.raises(UsageError, match="tpm2_readpublic is expected to succeed: ERROR"):
        Tpm(swtpm.tcti, ak="0x81010177").quote(BINDING, PCRS)
    with pytest.raises(UsageError, match="is expected to succeed"):
        Tpm("swtpm:path=/nonexistent/s").create_ak()
    nothing: list[dict[str, list[int]]] = [{}, {"sha1": [0]}, {"sha256": []}]
    for pcrs in nothing:
        with pytest.raises(UsageError, match="registers of the banks"):
            tpm.quote(BINDING, pcrs)


# ------------------------------------------------------------------------------------------- fspf cas tpm


def command(swtpm: Swtpm, *arguments: str, code: int = 0) -> tuple[str, str]:
    program = [sys.executable, "-W", "error", "-m", "fspf", "cas", "tpm", "--tcti", swtpm.tcti, *arguments]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_command_shows_what_a_policy_says(swtpm: Swtpm, tpm: Tpm) -> None:
    text, _ = command(swtpm, "--create", "--ak", "0x81010103", "--pcrs", "sha256:0,11+sha384:7")
    item = yaml.safe_load(text)
    check_item(item)
    claims = quoted(tpm, pcrs={"sha256": (0, 11), "sha384": (7,)})
    assert match([claims], [item]) == 0
    document = json.loads(command(swtpm, "--json")[0])
    assert document["ak"] == tpm.ak_id()
    assert document["pcrs"] == {"sha256": {"11": claims.values["pcrs"]["sha256", 11]}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pcrs", "sha1:0"], "registers such as sha256:0,11"),
        (["--pcrs", "sha256:24"], "registers such as sha256:0,11"),
        (["--pcrs", "sha256:1,1"], "each register is expected once"),
        (["--pcrs", "sha256:1+sha384:1"], "each register is expected once"),
        (["--ak", "0x81010177"], "tpm2_readpublic is expected to succeed"),
    ],
)
def test_command_says_what_is_wrong(swtpm: Swtpm, arguments: list[str], message: str) -> None:
    assert message in command(swtpm, *arguments, code=2)[1]
