"""Evidence as an attacker would make it: arbitrary bytes, real evidence with parts changed, arbitrary JSON.

What must hold is said by the targets of `tests/support/hostile.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fspf.attestation import KINDS
from fspf.attestation.quote import DomainReport, parse_quote
from fspf.attestation.snp import parse_report
from tests.support.chipmakers import Amd, Intel
from tests.support.hostile import TARGETS, judge, seeds

each_target = pytest.mark.parametrize("name", TARGETS)
SEEDS = seeds()
FIELDS = ("public_key", "signature", "node", "executable", "arguments", "volume_tag", "report", "certificates", "quote", "public", "attest", "pcrs")  # fmt: skip


def test_every_target_has_seeds_that_pass() -> None:
    assert set(SEEDS) == set(TARGETS)
    for name, inputs in SEEDS.items():
        for data in inputs:
            TARGETS[name](data)


@each_target
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)


@st.composite
def altered(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """Real input with a few changes: bits, bytes, stretches gone, doubled, or replaced by what fills a length field."""
    data = draw(st.sampled_from(inputs))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        to = min(len(data), at + draw(st.sampled_from([1, 2, 4, 16, 64])))
        what = draw(st.sampled_from(["flip", "gone", "doubled", "ones", "zeros", "random", "cut"]))
        middle = data[at:to]
        if what == "flip":
            middle = bytes([middle[0] ^ 1 << draw(st.integers(0, 7))]) + middle[1:] if middle else b""
        elif what == "gone":
            middle = b""
        elif what == "doubled":
            middle += middle
        elif what in {"ones", "zeros"}:
            middle = (b"\xff" if what == "ones" else b"\0") * len(middle)
        elif what == "random":
            middle = draw(st.binary(max_size=8))
        else:
            to = len(data)
        data = data[:at] + middle + data[to:]
    return data


@each_target
@given(data=st.data())
def test_altered_evidence(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(altered(SEEDS[name])))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(evidence=ANYTHING | st.dictionaries(st.sampled_from(["type", *FIELDS]), st.sampled_from(KINDS) | ANYTHING))
def test_arbitrary_json(evidence: Any) -> None:
    judge(evidence)


@given(kind=st.sampled_from(KINDS), fields=st.dictionaries(st.sampled_from(FIELDS), ANYTHING))
def test_arbitrary_fields(kind: str, fields: dict[str, Any]) -> None:
    judge({"type": kind, **fields})


INTEL = Intel()
AMD = Amd()


@given(
    mrenclave=st.binary(min_size=32, max_size=32), mrsigner=st.binary(min_size=32, max_size=32), prodid=st.integers(0, 0xFFFF),
    svn=st.integers(0, 0xFFFF), data=st.binary(min_size=64, max_size=64), version=st.sampled_from([3, 4, 5]),
)  # fmt: skip
def test_enclave_fields_come_back(version: int, **fields: Any) -> None:
    body = parse_quote(INTEL.quote("sgx", INTEL.enclave(**fields), version=version)).body
    assert not isinstance(body, DomainReport)
    seen = (body.mrenclave, body.mrsigner, body.isvprodid, body.isvsvn, body.report_data)
    assert seen == (fields["mrenclave"], fields["mrsigner"], fields["prodid"], fields["svn"], fields["data"])


@given(
    measurement=st.binary(min_size=48, max_size=48),
    host=st.binary(min_size=32, max_size=32),
    svn=st.integers(0, 2**32 - 1),
)
def test_report_fields_come_back(measurement: bytes, host: bytes, svn: int) -> None:
    report = parse_report(AMD.report({0x90: measurement, 0xC0: host, 0x04: svn.to_bytes(4, "little")}))
    assert (report.measurement, report.host_data, report.guest_svn) == (measurement, host, svn)
