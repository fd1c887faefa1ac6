"""Keys and certificates that a policy asks for: made, issued, renewed, and handed from an old CA to a new one.

Which secrets a policy has, and which of their values stay over an update, is decided in `fspf.cas.values`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fspf.core.errors import PolicyError
from fspf.policy.model import Endpoint, KeyType, Secret
from fspf.policy.values import SecretKind, SecretValue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | x25519.X25519PrivateKey
)
_SigningKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey

DAY_S: Final = 86_400
DEFAULT_VALID_S: Final = 90 * DAY_S  # x509
DEFAULT_CA_VALID_S: Final = 3650 * DAY_S
_BACKDATED: Final = timedelta(minutes=5)  # clocks of those who check may be behind
_SERIAL_LEN: Final = 19  # bytes: below the 20 that RFC 5280 allows, and positive
MAX_OLD_CAS: Final = 16  # that a new one still vouches for
_MIN_RSA_BITS: Final = 2048

_CURVES: Final[Mapping[KeyType, type[ec.EllipticCurve]]] = {KeyType.P256: ec.SECP256R1, KeyType.P384: ec.SECP384R1}
_RSA_BITS: Final = {KeyType.RSA_2048: 2048, KeyType.RSA_3072: 3072, KeyType.RSA_4096: 4096}


# -- keys


def generate_key(key_type: KeyType) -> bytes:
    """Make a private key; PKCS #8 DER. The randomness is OpenSSL's."""
    key: _PrivateKey
    if key_type in _CURVES:
        key = ec.generate_private_key(_CURVES[key_type]())
    elif key_type in _RSA_BITS:
        key = rsa.generate_private_key(65537, _RSA_BITS[key_type])
    elif key_type is KeyType.X25519:
        key = x25519.X25519PrivateKey.generate()
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    return _private_der(key)


def key_type_of(private_key: bytes) -> KeyType | None:
    """Tell which kind of key a PKCS #8 DER holds, None for one that no policy can ask for."""
    key = _load_private(private_key)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return next((kind for kind, curve in _CURVES.items() if isinstance(key.curve, curve)), None)
    if isinstance(key, rsa.RSAPrivateKey):
        return next((kind for kind, bits in _RSA_BITS.items() if key.key_size == bits), None)
    return KeyType.X25519 if isinstance(key, x25519.X25519PrivateKey) else KeyType.ED25519


def public_half(private_key: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo DER of a PKCS #8 DER."""
    return _public_der(_load_private(private_key))


def read_private_key(pem: str) -> bytes:
    """Read a private key that a policy's author wrote; PKCS #8 DER.

    Raises:
        PolicyError: It is none, or of a kind that is not supported. The message shows nothing of it.
    """
    try:
        key = load_pem_private_key(pem.encode("ascii"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PolicyError("not a private key in PEM without a passphrase") from None
    return _private_der(_supported(key))


def read_public_key(pem: str) -> bytes:
    """Read a public key; SubjectPublicKeyInfo DER.

    Raises:
        PolicyError: It is none, or of a kind that is not supported.
    """
    try:
        key = load_pem_public_key(pem.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm):
        raise PolicyError("not a public key in PEM") from None
    der: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der


def read_chain(pem: str) -> tuple[bytes, ...]:
    """Read certificates, the owner's first; DER.

    Raises:
        PolicyError: There is none, or one cannot be read.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem.encode("ascii"))
    except ValueError:
        raise PolicyError("not a chain of certificates in PEM") from None
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in chain)


def check_pair(private_key: bytes, chain: Sequence[bytes]) -> None:
    """Refuse a chain whose first certificate is not for this key.

    Raises:
        PolicyError: It is for another one.
    """
    if _public_der(_load_private(private_key)) != _spki(_load(chain[0])):
        raise PolicyError("the certificate is not for this private key")


def _load_private(private_key: bytes) -> _PrivateKey:
    return _supported(load_der_private_key(private_key, password=None))


def _supported(key: object) -> _PrivateKey:
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, tuple(_CURVES.values())):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey):
        return key
    raise PolicyError(f"a private key of another kind than {', '.join(KeyType)} is not supported")


def _signing(private_key: bytes) -> _SigningKey:
    key = _load_private(private_key)
    if isinstance(key, x25519.X25519PrivateKey):
        raise PolicyError("an X25519 key cannot sign: a certificate needs another kind")
    return key


def _private_der(key: _PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _public_der(key: _PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# -- certificates


def issue(
    secret: Secret,
    private_key: bytes,
    issuer: SecretValue | None,
    *,
    now_ns: int,
    random_bytes: Callable[[int], bytes],
) -> SecretValue:
    """Issue the certificate that *secret* asks for.

    Args:
        secret: Of kind x509 or x509-ca.
        private_key: Whose public half is certified; PKCS #8 DER.
        issuer: The CA that signs; None: the key signs itself.
        now_ns: UTC ns since 1970.
        random_bytes: For the serial number.

    Raises:
        PolicyError: The issuer has no key or is no CA, or ends too soon, or the key cannot sign.
    """
    key = _signing(private_key)
    is_ca = secret.kind is SecretKind.X509_CA
    now = _moment(now_ns)
    default_s = DEFAULT_CA_VALID_S if is_ca else DEFAULT_VALID_S
    end = now + timedelta(seconds=default_s if secret.valid_for_s is None else secret.valid_for_s)
    common_name = secret.common_name or secret.name
    parent, parent_key = None, key
    if issuer is not None:
        parent, parent_key = _issuing(secret, issuer)
        if parent.not_valid_after_utc <= now:
            raise PolicyError(f"the certificate of issuer {secret.issuer} ended on {_day(parent.not_valid_after_utc)}")
        end = min(end, parent.not_valid_after_utc)
    san = secret.san
    if not san and not is_ca and secret.endpoint in {Endpoint.SERVER, Endpoint.BOTH, None}:
        san = (("dns", common_name),)  # nobody looks for a host's name in the common name any more
    builder = _builder(common_name, key, parent, now, end, random_bytes, is_ca=is_ca)
    builder = _for_ca(builder) if is_ca else _for_endpoint(builder, key, secret.endpoint)
    if san:
        # RFC 5280 4.2.1.6: critical where the subject is empty; ours never is.
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(*one) for one in san]), critical=False
        )
    own = _sign(builder, parent_key)
    above = () if issuer is None else _chain_above(issuer, now)
    return SecretValue(
        kind=SecretKind.X509_CA if is_ca else SecretKind.X509,
        private_key=private_key,
        public_key=_public_der(key),
        chain=(own.public_bytes(Encoding.DER), *above),
    )


def hand_over(old: SecretValue, new: SecretValue, *, now_ns: int, random_bytes: Callable[[int], bytes]) -> SecretValue:
    """Return the CA *new* so that those who know *old* trust it, and those who know only *new* trust what *old* issued.

    The old key signs the new one (RFC 4210 calls that certificate "new with old"); services send it along, so that
    peers that were started before accept them. The old CA stays in the bundle until it ends. Where both have the
    same key there is nothing to do.
    """
    if old.public_key == new.public_key or not old.private_key:
        return new
    now = _moment(now_ns)
    own, old_own = _load(new.chain[0]), _load(old.chain[0])
    kept = [certificate for certificate in map(_load, old.chain) if certificate.not_valid_after_utc > now]
    kept = [certificate for certificate in kept if _is_ca(certificate)][: 2 * MAX_OLD_CAS - 1]
    if old_own.not_valid_after_utc <= now or not kept:
        return new
    end = min(old_own.not_valid_after_utc, own.not_valid_after_utc)
    name = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    builder = _for_ca(_builder(str(name), _signing(new.private_key), old_own, now, end, random_bytes, is_ca=True))
    linked = _sign(builder, _signing(old.private_key))
    added = [linked, *kept]
    return replace(new, chain=(*new.chain, *(each.public_bytes(Encoding.DER) for each in added)))


def public_key_of(chain: Sequence[bytes]) -> bytes:
    """Return the public key of the first certificate; SubjectPublicKeyInfo DER."""
    return _spki(_load(chain[0]))


def begins_ns(value: SecretValue) -> int:
    """Return when the certificate of *value* was issued (but for the backdating), UTC ns since 1970."""
    return int((_load(value.chain[0]).not_valid_before_utc + _BACKDATED).timestamp()) * 1_000_000_000


def ends_ns(value: SecretValue) -> int:
    """Return when the certificate of *value* ends, UTC ns since 1970."""
    return int(_load(value.chain[0]).not_valid_after_utc.timestamp()) * 1_000_000_000


def fingerprint(value: SecretValue) -> str:
    """Return the SHA-256 of its certificate, in hex: a name that is not secret."""
    return _load(value.chain[0]).fingerprint(SHA256()).hex()


def _issuing(secret: Secret, issuer: SecretValue) -> tuple[x509.Certificate, _SigningKey]:
    if not issuer.chain or not issuer.private_key:
        raise PolicyError(f"{secret.issuer} cannot issue certificates: it has no private key and certificate")
    certificate = _load(issuer.chain[0])
    if not _is_ca(certificate):
        raise PolicyError(f"{secret.issuer} cannot issue certificates: it is no CA")
    return certificate, _signing(issuer.private_key)


def _chain_above(issuer: SecretValue, now: datetime) -> tuple[bytes, ...]:
    """Return what goes along with a certificate that *issuer* issued: links from CAs before, issuers above, one root.

    The root comes last: OpenSSL takes the first that fits, and must not end at a root that the peer does not know.
    """
    certificates = [each for each in map(_load, issuer.chain) if each.not_valid_after_utc > now]
    between = [each for each in certificates if each.subject != each.issuer]
    root = [each for each in certificates if each.subject == each.issuer][:1]
    return tuple(each.public_bytes(Encoding.DER) for each in (*between, *root))


def _builder(
    common_name: str,
    key: _SigningKey,
    parent: x509.Certificate | None,
    now: datetime,
    end: datetime,
    random_bytes: Callable[[int], bytes],
    *,
    is_ca: bool,
) -> x509.CertificateBuilder:
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    names = [x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])]
    if is_ca:  # one name per key, so that nobody takes the next CA's certificate for this one's
        names.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, own_id.digest.hex()[:32]))
    subject = x509.Name(names)
    if parent is None:
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id)
    else:
        parent_id = parent.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(parent_id)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if parent is None else parent.subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(random_bytes(_SERIAL_LEN), "big") | 1)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
        .add_extension(own_id, critical=False)
        .add_extension(authority, critical=False)
    )


def _for_ca(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).add_extension(
        _key_usage(signs_certificates=True), critical=True
    )


def _for_endpoint(
    builder: x509.CertificateBuilder, key: _SigningKey, endpoint: Endpoint | None
) -> x509.CertificateBuilder:
    usages = {
        Endpoint.SERVER: [ExtendedKeyUsageOID.SERVER_AUTH],
        Endpoint.CLIENT: [ExtendedKeyUsageOID.CLIENT_AUTH],
    }.get(endpoint or Endpoint.BOTH, [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    encipherment = isinstance(key, rsa.RSAPrivateKey)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False, encipherment=encipherment), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )


def _key_usage(*, signs_certificates: bool, encipherment: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: _SigningKey) -> x509.Certificate:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return builder.sign(key, None)
    is_large = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
    return builder.sign(key, SHA384() if is_large else SHA256())


def _general_name(kind: str, value: str) -> x509.GeneralName:
    try:
        if kind == "ip":
            return x509.IPAddress(ipaddress.ip_address(value))
        if kind == "uri":
            return x509.UniformResourceIdentifier(value)
        return x509.RFC822Name(value) if kind == "email" else x509.DNSName(value)
    except ValueError:
        raise PolicyError(f"{kind}:{value[:100]!r} is no alternative name of a certificate") from None


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _load(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _moment(now_ns: int) -> datetime:
    return datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
