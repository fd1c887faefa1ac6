"""Placeholders: what is one, what each format gives, and what no kind of secret has.

Whether a policy's placeholders lead to secrets is tested in test_document.py.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fspf.core.errors import PolicyError
from fspf.policy.placeholders import MAX_EXPANDED, expand, expand_text, find
from fspf.policy.values import SecretKind, SecretValue
from tests.support.policies import private_key, spki

PKCS8: bytes = private_key("server").private_bytes(
    serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
VALUES = {
    "pw": SecretValue(SecretKind.ASCII, b'a"b\\c'),
    "bin": SecretValue(SecretKind.BINARY, b"\x00\xff\xfe\x10"),
    "key": SecretValue(SecretKind.PRIVATE_KEY, private_key=PKCS8, public_key=spki("server")),
    "pub": SecretValue(SecretKind.PUBLIC_KEY, public_key=spki("server")),
    "crt": SecretValue(SecretKind.X509, private_key=PKCS8, chain=(b"own", b"issuer", b"root")),
    "ca": SecretValue(SecretKind.X509_CA, private_key=PKCS8, chain=(b"root",)),
    "ours": SecretValue(SecretKind.X509, chain=(b"own",)),
}


def armored(label: str, der: bytes) -> bytes:
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label.encode(), base64.encodebytes(der), label.encode())


GIVES = {
    "nothing to fill in": ("a $ b $$ c SCONE::x", b"a $ b $$ c SCONE::x"),
    "as it is": ("<$$SCONE::pw$$>", b'<a"b\\c>'),
    "twice": ("$$SCONE::pw$$$$SCONE::pw$$", b'a"b\\ca"b\\c'),
    "alias": ("$$SCONECAS:pw$$", b'a"b\\c'),
    "for JSON": ('{"p": "$$SCONE::pw|escape(json)$$"}', b'{"p": "a\\"b\\\\c"}'),
    "ascii in hex": ("$$SCONE::pw:hex$$", b"6122625c63"),
    "ascii in base64, for JSON": ("$$SCONE::pw:base64|escape(json)$$", b"YSJiXGM="),
    "bytes": ("$$SCONE::bin$$", b"\x00\xff\xfe\x10"),
    "bytes by name": ("$$SCONE::bin:bin$$", b"\x00\xff\xfe\x10"),
    "hex": ("$$SCONE::bin:hex$$", b"00fffe10"),
    "base64": ("$$SCONE::bin:base64$$", b"AP/+EA=="),
    "base64url": ("$$SCONE::bin:base64url$$", b"AP_-EA"),
    "base32": ("$$SCONE::bin:base32$$", b"AD774EA="),
    "key": ("$$SCONE::key$$", armored("PRIVATE KEY", PKCS8)),
    "key by name": ("$$SCONE::key:privatekey$$", armored("PRIVATE KEY", PKCS8)),
    "key in DER": ("$$SCONE::key:privatekey:der$$", PKCS8),
    "key in DER, short": ("$$SCONE::key:der$$", PKCS8),
    "its public half": ("$$SCONE::key:publickey:pem$$", armored("PUBLIC KEY", spki("server"))),
    "public key": ("$$SCONE::pub$$", armored("PUBLIC KEY", spki("server"))),
    "public key in hex": ("$$SCONE::pub:hex$$", spki("server").hex().encode()),
    "certificate": ("$$SCONE::crt$$", armored("CERTIFICATE", b"own")),
    "certificate by name": ("$$SCONE::crt:crt$$", armored("CERTIFICATE", b"own")),
    "certificate in DER": ("$$SCONE::crt:crt:der$$", b"own"),
    "chain": ("$$SCONE::crt:chain$$", b"".join(armored("CERTIFICATE", one) for one in (b"own", b"issuer", b"root"))),
    "its key": ("$$SCONE::crt:privatekey$$", armored("PRIVATE KEY", PKCS8)),
    "CA": ("$$SCONE::ca:pem$$", armored("CERTIFICATE", b"root")),
    "between others": ("ä$$SCONE::pw:hex$$ö", "ä6122625c63ö".encode()),
}


@pytest.mark.parametrize("case", GIVES)
def test_a_placeholder_gives(case: str) -> None:
    text, expected = GIVES[case]
    assert expand(text, VALUES) == expected


def test_what_it_gives_for_json_is_json() -> None:
    assert json.loads(expand(GIVES["for JSON"][0], VALUES))["p"] == 'a"b\\c'


def test_openssl_reads_the_pem_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(expand("$$SCONE::key$$", VALUES))
    done = subprocess.run(
        ["openssl", "pkey", "-in", tmp_path / "key.pem", "-pubout", "-outform", "DER"], capture_output=True
    )
    assert done.stdout == spki("server"), done.stderr


REFUSED = {
    "unknown": ("$$SCONE::nobody$$", "no such secret"),
    "no name": ("$$SCONE::$$", "is no placeholder"),
    "not closed": ("$$SCONE::pw", "is no placeholder"),
    "closed with one": ("$$SCONE::pw$ x", "is no placeholder"),
    "one colon": ("$$SCONE:pw$$", "is no placeholder"),
    "a space": ("$$SCONE::p w$$", "is no placeholder"),
    "unknown format": ("$$SCONE::pw:rot13$$", "unknown format rot13"),
    "two encodings": ("$$SCONE::bin:hex:base64$$", "a part"),
    "the wrong way round": ("$$SCONE::key:der:privatekey$$", "a part"),
    "three formats": ("$$SCONE::key:privatekey:der:hex$$", "is no placeholder"),
    "another escape": ("$$SCONE::pw|escape(xml)$$", "is no placeholder"),
    "pem of bytes": ("$$SCONE::bin:pem$$", "only keys and certificates"),
    "a part of a text": ("$$SCONE::pw:privatekey$$", "no parts"),
    "the CA's key": ("$$SCONE::ca:privatekey$$", "not privatekey"),
    "a chain of a key": ("$$SCONE::key:chain$$", "not chain"),
    "a chain in DER": ("$$SCONE::crt:chain:der$$", "only a PEM form"),
    "bytes for JSON": ("$$SCONE::bin|escape(json)$$", "cannot be escaped"),
    "DER for JSON": ("$$SCONE::key:der|escape(json)$$", "cannot be escaped"),
    "a key that we have not": ("$$SCONE::ours:privatekey$$", "has no privatekey"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_placeholder_is_refused(case: str) -> None:
    text, expected = REFUSED[case]
    with pytest.raises(PolicyError, match=expected):
        expand(text, VALUES)


@pytest.mark.parametrize("text", ["$$SCONE::bin$$", "$$SCONE::key:der$$", "$$SCONE::crt:crt:der$$"])
def test_arguments_and_environment_hold_no_bytes(text: str) -> None:
    expand(text, VALUES)
    with pytest.raises(PolicyError, match="add :base64"):
        expand_text(text, VALUES)


@pytest.mark.parametrize("raw", [b"a\0b", b"\xff"])
def test_a_text_that_is_none_is_found_when_it_is_filled_in(raw: bytes) -> None:
    with pytest.raises(PolicyError, match="base64"):
        expand_text("$$SCONE::x$$", {"x": SecretValue(SecretKind.ASCII, raw)})


def test_a_value_is_not_looked_at_again() -> None:
    values = {"x": SecretValue(SecretKind.ASCII, b"$$SCONE::pw$$"), "pw": VALUES["pw"]}
    assert expand("$$SCONE::x$$", values) == b"$$SCONE::pw$$"


def test_the_length_is_bounded_before_it_is_there() -> None:
    values = {"x": SecretValue(SecretKind.ASCII, b"x" * 60_000)}
    with pytest.raises(PolicyError, match=str(MAX_EXPANDED)):
        expand("$$SCONE::x$$" * 1000, values)


def test_where_they_are() -> None:
    (one,) = find("ab$$SCONE::n-1.x:crt:der$$cd")
    assert (one.name, one.part, one.encoding, one.escape_json, one.start, one.end) == (
        "n-1.x",
        "crt",
        "der",
        False,
        2,
        26,
    )


def test_no_secret_is_shown() -> None:
    for value in VALUES.values():
        assert 'a"b' not in repr(value)
        assert repr(PKCS8)[2:-1] not in repr(value)
