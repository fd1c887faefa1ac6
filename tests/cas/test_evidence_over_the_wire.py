"""Evidence from a client's environment to a real server: keys, a TPM, a measured process; and whom the server's directory trusts.

What evidence is worth by itself is in `tests/unit/attestation`.
"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fspf.attestation.make_tpm import Tpm
from fspf.cas.locate import Pin, open_server
from fspf.core.errors import AttestationError
from fspf.core.freshness import Freshness, FreshnessMode
from tests.support.casserver import init_server, start_server
from tests.support.swtpm import running_swtpm

NODE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def home(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a server, and a client's identity and node key in the environment."""
    init_server(scratch / "server")
    identity, node = scratch / "identity.pem", scratch / "node.pem"
    for path, key in ((identity, ed25519.Ed25519PrivateKey.generate()), (node, NODE)):
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        path.chmod(0o600)
    monkeypatch.setenv("FSPF_CAS_IDENTITY", str(identity))
    monkeypatch.setenv("FSPF_NODE_KEY", str(node))
    return scratch / "server"


def attest(home: Path) -> None:
    """Start the server, make a volume there, end both."""
    server = start_server(home)
    try:
        with closing(open_server(server.url, Pin(server.key_hash, None))) as cas:
            volume_id = os.urandom(16)
            cas.create(volume_id, "volume", Freshness(FreshnessMode.STRICT))
            assert cas.fetch(volume_id).name == "volume"
    finally:
        assert server.stop() == 0


def test_key_alone(home: Path) -> None:
    attest(home)


def test_tpm_beside_the_key(home: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_swtpm(scratch / "tpm") as swtpm:
        Tpm(swtpm.tcti).create_ak()
        monkeypatch.setenv("FSPF_CAS_EVIDENCE", "key tpm")
        monkeypatch.setenv("FSPF_TPM_TCTI", swtpm.tcti)
        attest(home)


def test_measured_process_counts_when_the_node_is_trusted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSPF_CAS_EVIDENCE", "key,measured-process")
    with pytest.raises(AttestationError, match=r"measured-process.node: .*this CAS knows none"):
        attest(home)
    (home / "trust" / "nodes").mkdir(parents=True)
    public = NODE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (home / "trust" / "nodes" / "here.pem").write_bytes(public)
    attest(home)
