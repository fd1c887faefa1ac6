"""A policy's `attestation:` against what evidence showed: who is let in, and what the refusal says.

That evidence is authentic is tested beside its kind.
"""

from __future__ import annotations

from typing import Any

import pytest

from fspf.attestation import AttestationError, Claims, match
from fspf.attestation.matching import _TOLERATED_BY
from fspf.core.factors import TOLERABLE, check_item

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32
M, N = "1a" * 48, "2b" * 48
SGX = Claims("sgx", {"mrenclave": A, "mrsigner": B, "isvprodid": 1, "isvsvn": 5})
KEY = Claims("key", {"key": A})
TPM = Claims("tpm", {"ak": C, "ak_known": False, "pcrs": {("sha256", 11): A, ("sha384", 0): M}})
KNOWN_TPM = Claims("tpm", {"ak": C, "ak_known": True, "pcrs": {("sha256", 11): A}})
PROCESS = Claims(
    "measured-process", {"executable": A, "arguments": ("-v", "x"), "volume_tag": "ab" * 16, "node": B}
)  # fmt: skip
SNP = Claims(
    "sev-snp", {"measurement": M, "guest_svn": 4, "vmpl": 1, "tcb": {"snp": 8, "microcode": 115}, "host_data": A}
)
TDX = Claims("tdx", {"mrtd": M, "rtmr0": N, "xfam": "e702060000000000"})
DEV = {"mode": "none"}


@pytest.mark.parametrize(
    ("claims", "item"),
    [
        ([SGX], {"mrenclave": A}),
        ([SGX], {"mrenclave": [B, A.upper()]}),
        ([SGX], {"mrsigner": B, "isvprodid": 1, "isvsvn": 5}),
        ([SGX], {"mrsigner": B, "isvprodid": 1, "isvsvn": 4}),
        ([KEY, SGX], {"mrenclave": A, "key": A}),
        ([KEY], {"key": [B, A]}),
        ([TPM], {"tpm": {"pcrs": {11: A}, "ak": C}}),
        ([TPM], {"tpm": {"pcrs": {"11": A.upper(), 0: M}, "ak": [A, C]}}),
        ([KNOWN_TPM], {"tpm": {"pcrs": {11: A}}}),
        ([SNP], {"sev-snp": {"measurement": [N, M], "guest_svn": 3, "vmpl": 1, "tcb": {"snp": 8, "microcode": 100}}}),
        ([TDX], {"tdx": {"mrtd": M, "rtmr0": N, "xfam": "E702060000000000"}}),
    ],
)
def test_shown_item_lets_in(claims: list[Claims], item: dict[str, Any]) -> None:
    check_item(item)
    assert match(claims, [item], None) == 0
    assert match(claims, [{"key": C}, item], {"mode": "hardware"}) == 1


@pytest.mark.parametrize(
    ("claims", "item", "message"),
    [
        ([SGX], {"mrenclave": B}, f"^mrenclave: {B} is expected, seen {A}$"),
        ([SGX], {"mrenclave": [B, C]}, f"^mrenclave: {B} or {C} is expected, seen {A}$"),
        ([SGX], {"mrenclave": [B] * 4}, f"{B} or 1 others is expected"),
        ([SGX], {"mrsigner": B, "isvprodid": 2, "isvsvn": 5}, "^isvprodid: 2 is expected, seen 1$"),
        ([SGX], {"mrsigner": B, "isvprodid": 1, "isvsvn": 6}, "^isvsvn: at least 6 is expected, seen 5$"),
        ([KEY], {"mrenclave": A}, "^mrenclave: evidence of kind sgx is expected, seen key$"),
        ([], {"key": A}, "^key: evidence of kind key is expected, seen none$"),
        ([SGX], {"mrenclave": A, "key": A}, "^key: evidence of kind key is expected, seen sgx$"),
        ([KEY, SGX], {"mrenclave": A, "key": B}, f"^key: {B} is expected, seen {A}$"),
        ([TPM], {"tpm": {"pcrs": {11: B}, "ak": C}}, f"^tpm.pcrs.11: {B} is expected, seen {A}$"),
        ([TPM], {"tpm": {"pcrs": {11: A, 12: A}, "ak": C}}, f"^tpm.pcrs.12: {A} is expected, seen nothing$"),
        ([TPM], {"tpm": {"pcrs": {11: M}, "ak": C}}, "^tpm.pcrs.11: .* seen nothing$"),
        ([TPM], {"tpm": {"pcrs": {11: A}, "ak": A}}, f"^tpm.ak: {A} is expected, seen {C}$"),
        ([TPM], {"tpm": {"pcrs": {11: A}}}, f"^tpm.ak: an attestation key that this CAS knows is expected, seen {C}$"),
        ([SNP], {"sev-snp": {"measurement": N}}, f"^sev-snp.measurement: {N} is expected, seen {M}$"),
        ([SNP], {"sev-snp": {"measurement": M, "guest_svn": 5}}, "^sev-snp.guest_svn: at least 5"),
        ([SNP], {"sev-snp": {"measurement": M, "vmpl": 0}}, "^sev-snp.vmpl: at most 0 is expected, seen 1$"),
        (
            [SNP],
            {"sev-snp": {"measurement": M, "tcb": {"snp": 9}}},
            "^sev-snp.tcb.snp: at least 9 is expected, seen 8$",
        ),
        ([SNP], {"sev-snp": {"measurement": M, "tcb": {"tee": 0}}}, "^sev-snp.tcb.tee: .* seen nothing$"),
        ([SNP], {"sev-snp": {"measurement": M, "chip_id": "00" * 64}}, "^sev-snp.chip_id: .* seen nothing$"),
        ([TDX], {"tdx": {"mrtd": M, "rtmr0": M}}, f"^tdx.rtmr0: {M} is expected, seen {N}$"),
        ([PROCESS], {"measured-process": {"executable": A}}, "^measured-process: hardware is expected"),
    ],
)
def test_missing_factor_is_named(claims: list[Claims], item: dict[str, Any], message: str) -> None:
    check_item(item)
    with pytest.raises(AttestationError, match=message):
        match(claims, [item], None)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"executable": A, "arguments": ["-v", "x"], "volume_tag": "AB" * 16, "node": B}, None),
        ({"executable": A}, None),
        ({"executable": B}, "executable"),
        ({"executable": A, "arguments": []}, "arguments"),
        ({"executable": A, "arguments": ["-v"]}, "arguments: .'-v'. is expected, seen .'-v', 'x'."),
        ({"executable": A, "volume_tag": "00" * 16}, "volume_tag"),
        ({"executable": A, "node": [A, C]}, "node"),
    ],
)
def test_measured_process(item: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert match([PROCESS], [{"measured-process": item}], DEV) == 0
        return
    with pytest.raises(AttestationError, match=f"^measured-process.{message}"):
        match([PROCESS], [{"measured-process": item}], DEV)


@pytest.mark.parametrize("security", [None, {}, {"mode": "hardware"}, {"tolerate": ["debug-mode"]}])
def test_measured_process_needs_mode_none(security: dict[str, Any] | None) -> None:
    with pytest.raises(AttestationError, match=r"^measured-process: hardware is expected"):
        match([PROCESS], [{"measured-process": {"executable": A}}], security)


@pytest.mark.parametrize("requirement", [[], [{}]])
def test_without_items_nobody_is_let_in(requirement: list[dict[str, Any]]) -> None:
    with pytest.raises(AttestationError, match=r"^attestation: "):
        match([SGX, KEY], requirement, DEV)


def test_closest_alternative_is_explained() -> None:
    items: list[dict[str, Any]] = [{"key": B}, {"mrenclave": A, "tpm": {"pcrs": {11: B}, "ak": C}}, {"mrenclave": B}]
    with pytest.raises(AttestationError) as caught:
        match([SGX, TPM], items, None)
    assert caught.value.factor == "tpm.pcrs.11"
    assert f"{B} is expected, seen {A}; none of the 3 alternatives holds, others fail at key, mrenclave" in str(
        caught.value
    )


def test_two_machines_are_no_machine() -> None:
    """MRSIGNER of one quote and the security version of another do not add up."""
    old = Claims("sgx", {"mrenclave": A, "mrsigner": B, "isvprodid": 1, "isvsvn": 1})
    other = Claims("sgx", {"mrenclave": A, "mrsigner": C, "isvprodid": 1, "isvsvn": 9})
    item = {"mrsigner": B, "isvprodid": 1, "isvsvn": 5}
    with pytest.raises(AttestationError, match=r"isvsvn|mrsigner"):
        match([old, other], [item], None)
    assert match([old, other, SGX], [item], None) == 0


# ------------------------------------------------------------------------------------------- the platform


def platform(status: str = "UpToDate", *advisories: str, debug: bool = False) -> list[Claims]:
    return [Claims("sgx", SGX.values, status, frozenset(advisories), debug)]


@pytest.mark.parametrize("status", [*_TOLERATED_BY, "Revoked", "TDRelaunchAdvised", ""])
def test_status_needs_its_tolerances(status: str) -> None:
    ways = _TOLERATED_BY.get(status, ())
    for tolerate in [[], *([word] for word in TOLERABLE), list(TOLERABLE)]:
        if any(way <= set(tolerate) for way in ways):
            assert match(platform(status), [{"mrenclave": A}], {"tolerate": tolerate}) == 0
        else:
            with pytest.raises(AttestationError, match=r"^sgx.tcb: a platform that is UpToDate is expected, seen"):
                match(platform(status), [{"mrenclave": A}], {"tolerate": tolerate})
    assert all(way <= set(TOLERABLE) for way in ways)


def test_debug_mode_is_refused() -> None:
    with pytest.raises(AttestationError, match=r"^sgx.debug: production mode is expected"):
        match(platform(debug=True), [{"mrenclave": A}], DEV | {"tolerate": ["outdated-tcb"]})
    assert match(platform(debug=True), [{"mrenclave": A}], {"tolerate": ["debug-mode"]}) == 0


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        ([], "INTEL-SA-00289, INTEL-SA-00615"),
        (["INTEL-SA-00289"], "seen INTEL-SA-00615"),
        (["INTEL-SA-00615", "INTEL-SA-00289"], None),
        ("*", None),
    ],
)
def test_advisories(ignored: Any, left: str | None) -> None:
    claims = platform("UpToDate", "INTEL-SA-00615", "INTEL-SA-00289")
    if left is None:
        assert match(claims, [{"mrenclave": A}], {"ignore_advisories": ignored}) == 0
        return
    with pytest.raises(AttestationError, match=rf"^sgx.advisories: .*{left}$"):
        match(claims, [{"mrenclave": A}], {"ignore_advisories": ignored})
