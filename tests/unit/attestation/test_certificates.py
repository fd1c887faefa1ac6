"""Certificates and revocation lists by themselves: serial number 0, encodings, issuers, dates.

Chains of processor makers are in `test_vectors.py`, `test_refused.py` and `test_tcb.py`.
"""

from __future__ import annotations

import base64
import warnings
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding

from fspf.attestation import AttestationError
from fspf.attestation.certificates import (
    Certificate,
    check_crl_date,
    check_issued,
    check_not_revoked,
    day,
    load_certificates,
    load_crl,
)
from tests.support.chipmakers import DAY, NOW, NOW_NS, name, rsa_key
from tests.support.evidence import read

WHAT = "test"
KEY, OTHER = ec.derive_private_key(1234, ec.SECP256R1()), ec.derive_private_key(1235, ec.SECP256R1())


def issue(subject: str, issuer: str, *, ca: bool, by: Any = KEY, key: Any = KEY, how: Any = None) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    return builder.sign(by, how or hashes.SHA256()).public_bytes(Encoding.DER)


def load(der: bytes) -> Certificate:
    (one,) = load_certificates(der, WHAT)
    return one


def test_serial_number_zero_is_read_without_a_warning() -> None:
    """`cryptography` warns of it, and will refuse it one day: AMD's certificates have it all the same."""
    der = read("snp/milan-a-vcek.der")
    with pytest.warns(match="serial number which wasn't positive"):
        x509.load_der_x509_certificate(der)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certificate = load(der)
    assert certificate.serial == 0
    assert certificate.signed in der
    ask, _ = load_certificates(read("snp/ask_ark_milan.pem"), WHAT)
    check_issued(certificate, ask, WHAT)


def test_serial_number_one_instead_of_zero_is_another_certificate() -> None:
    der = read("snp/milan-a-vcek.der")
    place = der.index(b"\x02\x01\x00\x30")
    ask, _ = load_certificates(read("snp/ask_ark_milan.pem"), WHAT)
    with pytest.raises(AttestationError, match="a signature by 'SEV-Milan' is expected, this is none"):
        check_issued(load(der[: place + 2] + b"\1" + der[place + 3 :]), ask, WHAT)


@pytest.mark.parametrize("serial", [b"\x02\x01\xff", b"\x02\x01\x80", b"\x02\x00", b"\x04\x01\x00"])
def test_odd_serial_numbers_are_refused(serial: bytes) -> None:
    der = read("snp/milan-a-vcek.der")
    with pytest.raises(AttestationError, match="the serial number is not a positive one"):
        load(der.replace(b"\x02\x01\x00\x30", serial + b"\x30", 1))


@pytest.mark.parametrize(
    "der", [b"", b"\x30", b"\x30\x82", b"\x30\x84\xff\xff\xff\xff\x30", b"\x30\xff" * 200, b"\x31" * 50]
)
def test_no_certificate(der: bytes) -> None:
    with pytest.raises(AttestationError, match="a certificate is expected"):
        load(der)


def test_shortened_and_lengthened_certificates_are_refused() -> None:
    der = read("snp/milan-c-vcek.der")
    for wrong in (*(der[:length] for length in range(0, len(der), 5)), der + b"\0", bytes(1 << 15)):
        with pytest.raises(AttestationError):
            load(wrong)


def test_pem() -> None:
    pem = read("intel-tcb-signing-chain.pem")
    signer, root = load_certificates(b"\n\n" + pem, WHAT)
    assert (signer.subject, root.subject) == ("Intel SGX TCB Signing", "Intel SGX Root CA")
    assert load_certificates(pem.replace(b"\n", b"\r\n"), WHAT) == [signer, root]
    body = base64.b64encode(issue("a", "a", ca=True))
    with pytest.raises(AttestationError, match="a certificate in PEM or DER is expected"):
        load_certificates(
            b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"\n-----END CERTIFICATE REQUEST-----", WHAT
        )


def test_beginnings_without_an_end_are_refused() -> None:
    for text in (
        b"-----BEGIN CERTIFICATE-----\n" * 2000,
        read("snp/ask_ark_milan.pem") + b"-----BEGIN CERTIFICATE-----",
    ):
        with pytest.raises(AttestationError, match="at most 8 certificates are expected, each with its end"):
            load_certificates(text, WHAT)


def test_only_a_ca_issues() -> None:
    leaf = load(issue("leaf", "maker", ca=False))
    check_issued(leaf, load(issue("maker", "root", ca=True)), WHAT)
    with pytest.raises(AttestationError, match="a CA is expected as issuer, seen 'maker'"):
        check_issued(leaf, load(issue("maker", "root", ca=False)), WHAT)


def test_issuer_is_the_one_that_is_named() -> None:
    with pytest.raises(AttestationError, match="the issuer that it names is expected, seen 'maker'"):
        check_issued(load(issue("leaf", "another", ca=False)), load(issue("maker", "root", ca=True)), WHAT)


def test_signature_is_the_issuers() -> None:
    forged = load(issue("leaf", "maker", ca=False, by=OTHER))
    with pytest.raises(AttestationError, match="a signature by 'maker' is expected, this is none"):
        check_issued(forged, load(issue("maker", "root", ca=True)), WHAT)
    rsa_maker = load(issue("maker", "root", ca=True, key=rsa_key("ark")))
    with pytest.raises(AttestationError, match="a signature that fits the key of 'maker' is expected"):
        check_issued(load(issue("leaf", "maker", ca=False)), rsa_maker, WHAT)


def test_other_signature_schemes_are_refused() -> None:
    builder = x509.CertificateBuilder().subject_name(name("a")).issuer_name(name("a")).public_key(KEY.public_key())
    builder = builder.serial_number(7).not_valid_before(NOW).not_valid_after(NOW)
    old = builder.sign(rsa_key("ark"), hashes.SHA256(), rsa_padding=padding.PKCS1v15())
    with pytest.raises(AttestationError, match="a signature by ECDSA or RSA-PSS with SHA-256, SHA-384 or SHA-512"):
        load(old.public_bytes(Encoding.DER))


def crl(*serials: int, issuer: str = "maker", by: Any = KEY) -> bytes:
    builder = x509.CertificateRevocationListBuilder(name(issuer), NOW - DAY, NOW + DAY)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(by, hashes.SHA256()).public_bytes(Encoding.DER)


def test_revocation() -> None:
    leaf, maker = load(issue("leaf", "maker", ca=False)), load(issue("maker", "root", ca=True))
    good = load_crl(crl(8), WHAT)
    check_issued(good, maker, WHAT)
    check_not_revoked(leaf, good, WHAT)
    with pytest.raises(AttestationError, match="'leaf' was revoked by its issuer"):
        check_not_revoked(leaf, load_crl(crl(8, 7), WHAT), WHAT)
    with pytest.raises(AttestationError, match="the revocation list of the certificate's issuer is expected"):
        check_not_revoked(leaf, load_crl(crl(8, issuer="another"), WHAT), WHAT)
    with pytest.raises(AttestationError, match="a signature by 'maker' is expected"):
        check_issued(load_crl(crl(8, by=OTHER), WHAT), maker, WHAT)


def test_dates_of_a_list() -> None:
    found = load_crl(crl(), WHAT)
    day_ns = 86_400_000_000_000
    for moment, stale in ((NOW_NS, 0), (NOW_NS + day_ns, 0), (NOW_NS - day_ns, 0), (NOW_NS + 2 * day_ns, day_ns)):
        check_crl_date(found, moment, stale, WHAT)
    for moment, stale in ((NOW_NS + day_ns + 1, 0), (NOW_NS - day_ns - 1, 5 * day_ns), (NOW_NS + 3 * day_ns, day_ns)):
        with pytest.raises(AttestationError, match="a revocation list of 2026-01-14 to 2026-01-16 does not tell about"):
            check_crl_date(found, moment, stale, WHAT)


def test_too_large_a_list_is_refused() -> None:
    with pytest.raises(AttestationError, match="at most 1048576 bytes"):
        load_crl(bytes((1 << 20) + 1), WHAT)


@pytest.mark.parametrize(
    ("moment", "shown"),
    [(0, "1970-01-01"), (NOW_NS, "2026-01-15"), (10**40, f"{10**40} ns"), (-(10**40), f"-{10**40} ns")],
)
def test_any_moment_can_be_shown(moment: int, shown: str) -> None:
    assert day(moment) == shown
