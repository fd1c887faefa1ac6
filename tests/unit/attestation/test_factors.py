"""The shapes that `attestation:` and `security: attestation:` may have, and what is said about others.

Where in a document a problem stands is the policy parser's business.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fspf.core.errors import PolicyError
from fspf.core.factors import FACTORS, check_item, check_security, problems, security_problems

H16, H32, H48 = "ab" * 16, "AB" * 32, "cd" * 48
SIGNER = {"mrsigner": H32, "isvprodid": 1, "isvsvn": 2}


@pytest.mark.parametrize(
    "item",
    [
        {"mrenclave": H32},
        {"mrenclave": [H32, H32.lower()], "tpm": {"pcrs": {11: H32}, "ak": H32}},
        SIGNER,
        {"tpm": {"pcrs": {"11": H48, 0: H32}}},
        {"key": [H32]},
        {"measured-process": {"executable": H32, "arguments": [], "volume_tag": H16, "node": [H32]}},
        {"sev-snp": {"measurement": H48, "tcb": {"snp": 8}, "vmpl": 3}},
        {"tdx": {"mrtd": [H48], "rtmr3": H48, "xfam": "e702060000000000"}},
    ],
    ids="+".join,
)
def test_good_item(item: dict[str, Any]) -> None:
    check_item(item)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "an item without factors would let anybody in"),
        ([], "an item with factors"),
        ({"mrenclaves": [H32]}, "attestation: mrenclaves: unknown key"),
        ({3: H32}, "attestation: 3: unknown key"),
        ({"mrenclave": H32[:-1]}, "mrenclave: 64 hex digits are expected, not 63 characters"),
        ({"mrenclave": [H32, "z" * 64]}, "mrenclave.1: 64 hex digits"),
        ({"mrenclave": int("1" * 64)}, "so large a number .digits need quotes."),
        ({"mrenclave": H32 + "\n"}, "64 hex digits"),
        ({"mrenclave": []}, "an empty one would let nobody in"),
        ({"mrsigner": H32}, "belong together"),
        ({"isvsvn": 1}, "belong together"),
        (SIGNER | {"isvsvn": True}, "isvsvn: a number from 0 to 65535 is expected, not a boolean"),
        (SIGNER | {"isvprodid": 65536}, "isvprodid: a number from 0 to 65535"),
        (SIGNER | {"isvprodid": 1 << 20000}, "so large a number"),
        ({"key": {"id": H32}}, "key: 64 hex digits are expected, not a mapping"),
        ({"tpm": {"ak": H32}}, "tpm: pcrs is missing"),
        ({"tpm": {"pcrs": {}}}, "tpm.pcrs: PCR numbers"),
        ({"tpm": {"pcrs": {24: H32}}}, "tpm.pcrs.24: a PCR number from 0 to 23"),
        ({"tpm": {"pcrs": {"011": H32}}}, "a PCR number"),
        ({"tpm": {"pcrs": {11: H32, "11": H32}}}, "PCR 11 is named twice"),
        ({"tpm": {"pcrs": {11: "ab" * 20}}}, "64 .SHA-256. or 96 .SHA-384."),
        ({"measured-process": {}}, "measured-process: executable is missing"),
        ({"measured-process": {"executable": H32, "arguments": ["-v", 1]}}, "arguments.1: a text is expected, not 1"),
        ({"measured-process": {"executable": H32, "arguments": "-v"}}, "a list of texts"),
        ({"sev-snp": {"host_data": H32}}, "sev-snp: measurement is missing"),
        ({"sev-snp": {"measurement": H48, "tcb": {"snp": 256}}}, "sev-snp.tcb.snp: a number from 0 to 255"),
        ({"tdx": {"mrtd": H48, "rtmr4": H48}}, "tdx.rtmr4: unknown key"),
        ({"tdx": [H48]}, "tdx: a mapping is expected, not a list"),
    ],
)
def test_bad_item(item: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_item(item)


@pytest.mark.parametrize(
    "security",
    [{}, {"mode": "none"}, {"mode": "hardware", "tolerate": ["debug-mode"], "ignore_advisories": ["INTEL-SA-00615"]}, {"ignore_advisories": "*"}],
)  # fmt: skip
def test_good_security(security: dict[str, Any]) -> None:
    check_security(security)


@pytest.mark.parametrize(
    ("security", "message"),
    [
        ({"mode": "software"}, "mode: hardware or none is expected, not 'software'"),
        ({"mode": []}, "mode: hardware or none"),
        ({"tolerate": "debug-mode"}, "tolerate: a list"),
        ({"tolerate": ["everything"]}, "tolerate.0: unknown 'everything'"),
        ({"ignore_advisories": [289]}, "ignore_advisories.0: a text"),
        ({"ignore_advisory": []}, "unknown key 'ignore_advisory'"),
        (None, "a mapping is expected"),
    ],
)
def test_bad_security(security: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_security(security)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(list(FACTORS)) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_anything_gets_an_answer(value: Any) -> None:
    for _, message in [*problems(value), *security_problems(value)]:
        assert len(message) < 400
