"""The directory in which an operator collects whom to trust, read from a real one.

What becomes of each file is in `tests/unit/attestation/test_trust.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fspf.attestation import Trust
from fspf.cas.trusted import read_trust
from fspf.core.errors import UsageError
from tests.support.evidence import read


def test_directory_becomes_trust(scratch: Path) -> None:
    for folder in ("collateral", "certificates", "nodes"):
        (scratch / folder).mkdir()
    (scratch / ".git").mkdir()
    (scratch / "collateral" / "one.json").write_bytes(read("tdx/v4-uptodate-collateral.json"))
    (scratch / "certificates" / "milan.pem").write_bytes(read("snp/ask_ark_milan.pem"))
    (scratch / "certificates" / ".milan.pem.swp").write_bytes(b"?")
    trust = read_trust(str(scratch), stale_ns=7)
    assert len(trust.collateral) == 1
    assert trust.certificates == (read("snp/ask_ark_milan.pem"),)
    assert trust.stale_ns == 7


def test_without_a_directory_only_the_makers_are_trusted(scratch: Path) -> None:
    assert read_trust(str(scratch / "trust")) == Trust()


def test_what_does_not_belong_there_is_named(scratch: Path) -> None:
    (scratch / "roots").mkdir()
    with pytest.raises(UsageError, match=r"/roots: a folder of these is expected: collateral, certificates"):
        read_trust(str(scratch))
    (scratch / "roots").rmdir()
    (scratch / "nodes").write_bytes(b"")
    with pytest.raises(UsageError, match="/nodes: Not a directory"):
        read_trust(str(scratch))
    (scratch / "nodes").unlink()
    (scratch / "nodes" / "deep").mkdir(parents=True)
    with pytest.raises(UsageError, match="/nodes/deep: Is a directory"):
        read_trust(str(scratch))
    (scratch / "nodes" / "deep").rmdir()
    (scratch / "nodes" / "gone.pem").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"/nodes/gone.pem: No such file"):
        read_trust(str(scratch))
    (scratch / "nodes" / "gone.pem").unlink()
    (scratch / "nodes" / "large.pem").write_bytes(bytes((4 << 20) + 1))
    with pytest.raises(UsageError, match=r"/nodes/large.pem: at most 4194304 bytes"):
        read_trust(str(scratch))
