"""What an operator collects, as files; and collateral in the forms in which it is handed round.

What the collected things are worth is in `test_refused.py` and `test_tcb.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fspf.attestation import AttestationError, key_id
from fspf.attestation.claims import AMD_ROOTS, INTEL_ROOTS
from fspf.attestation.signatures import PublicKey, spki_of
from fspf.attestation.trust import parse_collateral, split_signed, trust_from
from fspf.core.errors import UsageError
from tests.support.evidence import read

NODE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
AK = ec.derive_private_key(5, ec.SECP256R1()).public_key()


def pem(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


FILES: Mapping[str, bytes] = {
    "collateral/b0c06f000000.json": read("tdx/v4-uptodate-collateral.json"),
    "collateral/00a067110000.json": read("sgx/v3-processor-collateral.json"),
    "certificates/milan.pem": read("snp/ask_ark_milan.pem"),
    "certificates/turin.der": read("snp/turin-vcek.der"),
    "crls/root.der": read("tdx/root-crl-2023-04.der"),
    "nodes/alpha.pem": pem(NODE),
    "aks/alpha.pem": pem(AK),
}


def test_files_become_trust() -> None:
    trust = trust_from(FILES, stale_ns=5)
    assert [b"00A067110000" in one.tcb_info for one in trust.collateral] == [True, False]
    assert trust.certificates == (FILES["certificates/milan.pem"], FILES["certificates/turin.der"])
    assert trust.crls == (FILES["crls/root.der"],)
    assert trust.node_keys == {key_id(spki_of(NODE))}
    assert trust.aks == {key_id(spki_of(AK))}
    assert (trust.stale_ns, trust.intel_roots, trust.amd_roots) == (5, INTEL_ROOTS, AMD_ROOTS)


def test_nothing_collected_trusts_the_makers_roots_only() -> None:
    trust = trust_from({})
    assert (trust.collateral, trust.certificates, trust.node_keys, trust.aks) == ((), (), frozenset(), frozenset())
    assert trust.intel_roots == INTEL_ROOTS


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("README", b"", "README: a file in one of these is expected: collateral/"),
        ("roots/own.pem", b"", "roots/own.pem: a file in one of these"),
        ("nodes/", pem(NODE), "nodes/: a file"),
        ("nodes/a/b.pem", pem(NODE), "a file in one of these"),
        ("nodes/alpha.pem", b"-----BEGIN PUBLIC KEY-----\n", "nodes/alpha.pem: key: a public key in PEM is expected"),
        ("aks/alpha.pem", pem(NODE)[:-40], "aks/alpha.pem: key: "),
        ("aks/odd.pem", ec.derive_private_key(5, ec.SECP256K1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "aks/odd.pem: key: an Ed25519"),
        ("collateral/x.json", b"{}", "collateral/x.json: collateral: a JSON object"),
        ("collateral/x.json", b"[" * 100_000, "collateral: a JSON object"),
        ("certificates/x.pem", b"hello", "certificates/x.pem: certificate: a certificate is expected"),
        ("certificates/x.pem", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----", "certificate: "),
        ("certificates/x.pem", b"-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----", "a certificate in PEM or DER"),
        ("certificates/x.pem", read("snp/ask_ark_milan.pem") * 5, "at most 8 certificates are expected"),
        ("crls/x.der", read("intel-sgx-root-ca.pem"), "crls/x.der: revocation list: a revocation list is expected"),
    ],
)  # fmt: skip
def test_other_files_are_refused(path: str, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trust_from({path: content})


@pytest.mark.parametrize(
    "name", ["tcb_info", "tcb_info_signature", "qe_identity", "pck_crl", "root_ca_crl", "tcb_info_issuer_chain"]
)
@pytest.mark.parametrize("value", [None, 5, ["a"], "zz"])
def test_collateral_with_odd_fields_is_refused(name: str, value: object) -> None:
    fields = json.loads(read("tdx/v4-uptodate-collateral.json"))
    if value == "zz" and name in {"tcb_info", "qe_identity", "tcb_info_issuer_chain"}:
        parse_collateral(json.dumps(fields | {name: value}).encode())  # it is looked into when it is used
        return
    with pytest.raises(AttestationError, match=r"^collateral: a JSON object of Intel's collateral is expected"):
        parse_collateral(json.dumps(fields | {name: value}).encode())


def test_signed_bytes_are_cut_out_as_they_stand() -> None:
    document, signature = split_signed(
        b' {"tcbInfo" : {"a": {}, "b": 1 }, "signature":"' + b"ab" * 64 + b'"}\n', "tcbInfo"
    )
    assert document == b'{"a": {}, "b": 1 }'
    assert signature == b"\xab" * 64
    for wrong in (b"", b"{}", read("tdx/td-qe-identity-2023-06.json"), read("tdx/tcbinfo-50806f000000.json")[:-5]):
        with pytest.raises(AttestationError, match="tcbInfo with its signature is expected"):
            split_signed(wrong, "tcbInfo")
