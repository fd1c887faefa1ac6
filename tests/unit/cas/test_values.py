"""Values of secrets: every kind, what stays over an update, what a rotation changes, who may import."""

from __future__ import annotations

import random
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509 as certificates
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from fspf.cas import values as module
from fspf.cas import x509
from fspf.cas.values import due, generate, renew, rotate
from fspf.core.errors import PolicyError
from fspf.policy.model import Endpoint, Export, Import, KeyType, Place, Policy, Secret, VaultSource
from fspf.policy.values import SecretKind, SecretValue, SecretValues

NOW = 1_800_000_000_000_000_000
DAY = 86_400 * 1_000_000_000
HASH = "0" * 64
RNG = random.Random(7)

PEM_KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n"


def ascii_secret(**more: Any) -> Secret:
    return Secret("pass", SecretKind.ASCII, **more)


KEY = Secret("key", SecretKind.PRIVATE_KEY)
CA = Secret("ca", SecretKind.X509_CA, private_key="key", common_name="messenger")
CRT = Secret("crt", SecretKind.X509, issuer="ca", endpoint=Endpoint.SERVER, san=(("dns", "db.local"), ("ip", "::1")))
PUB = Secret("pub", SecretKind.PUBLIC_KEY, private_key="key")


def policy(*secrets: Secret, name: str = "messenger/db", policy_hash: str = HASH) -> Policy:
    return Policy(name, policy_hash, secrets=secrets)


def fresh(
    *secrets: Secret, old: Policy | None = None, values: SecretValues | None = None, imports: SecretValues | None = None, now_ns: int = NOW
) -> dict[str, SecretValue]:  # fmt: skip
    return generate(policy(*secrets), old, values or {}, imports or {}, now_ns=now_ns, random_bytes=RNG.randbytes)


def loaded(value: SecretValue, index: int = 0) -> certificates.Certificate:
    return certificates.load_der_x509_certificate(value.chain[index])


# -- every kind


def test_ascii_is_as_long_as_asked_for_and_of_its_charset() -> None:
    value = fresh(ascii_secret(size=40, charset="xyz"))["pass"]
    assert value.kind is SecretKind.ASCII
    assert len(value.raw) == 40
    assert set(value.raw) == set(b"xyz")
    assert len(fresh(ascii_secret())["pass"].raw) == module.DEFAULT_ASCII_LEN


@given(st.integers(2, 94), st.integers(1, 64), st.randoms(use_true_random=False))
def test_characters_of_a_charset_are_equally_likely(count: int, size: int, rng: random.Random) -> None:
    """The generator is asked for numbers, and maps equally many of them to each character."""
    charset = "".join(map(chr, range(33, 33 + count)))
    drawn: list[int] = []

    def random_bytes(length: int) -> bytes:
        raw = rng.randbytes(length)
        drawn.append(int.from_bytes(raw, "big"))
        return raw

    picked = "".join(module._pick(charset, size, random_bytes))
    limit = (1 << 32) // count * count
    assert limit % count == 0
    assert picked == "".join(charset[number % count] for number in drawn if number < limit)


def test_biased_numbers_are_not_used() -> None:
    given_out = iter([b"\xff\xff\xff\xff", b"\0\0\0\1"])
    assert "".join(module._pick("abc", 1, lambda _: next(given_out))) == "b"


def test_binary_is_as_long_as_asked_for() -> None:
    assert len(fresh(Secret("b", SecretKind.BINARY, size=7))["b"].raw) == 7
    assert len(fresh(Secret("b", SecretKind.BINARY))["b"].raw) == 32
    assert fresh(Secret("b", SecretKind.BINARY, value="00ff"))["b"].raw == b"\0\xff"


@pytest.mark.parametrize(
    ("key_type", "kind", "bits"),
    [
        (KeyType.P256, ec.EllipticCurvePrivateKey, 256),
        (KeyType.P384, ec.EllipticCurvePrivateKey, 384),
        (KeyType.ED25519, ed25519.Ed25519PrivateKey, None),
        (KeyType.RSA_2048, rsa.RSAPrivateKey, 2048),
    ],
)
def test_private_key_is_of_its_type(key_type: KeyType, kind: type, bits: int | None) -> None:
    value = fresh(replace(KEY, key_type=key_type))["key"]
    key = load_der_private_key(value.private_key, None)
    assert isinstance(key, kind)
    assert getattr(key, "key_size", None) == bits
    assert x509.key_type_of(value.private_key) is key_type
    assert value.public_key == x509.public_half(value.private_key)


def test_given_key_and_its_public_half() -> None:
    values = fresh(replace(KEY, value=PEM_KEY), PUB)
    assert x509.key_type_of(values["key"].private_key) is KeyType.ED25519
    assert values["pub"].public_key == values["key"].public_key
    assert values["pub"].private_key == b""


def test_given_certificate_must_be_for_its_key() -> None:
    made = fresh(KEY, CA, CRT)
    pem = certificates.load_der_x509_certificate(made["crt"].chain[0]).public_bytes(Encoding.PEM).decode()
    values = fresh(replace(CRT, value=pem, issuer=None))
    assert values["crt"].chain == made["crt"].chain[:1]
    with pytest.raises(PolicyError, match="not for this private key"):
        fresh(KEY, replace(CRT, value=pem, issuer=None, private_key="key"))


def test_certificate_says_what_was_asked_for() -> None:
    values = fresh(KEY, CA, replace(CRT, valid_for_s=86_400, common_name="db"))
    ca, crt = loaded(values["ca"]), loaded(values["crt"])
    crt.verify_directly_issued_by(ca)
    ca.verify_directly_issued_by(ca)
    assert values["crt"].chain[-1] == values["ca"].chain[0]
    assert x509.ends_ns(values["crt"]) == NOW + DAY
    assert ca.extensions.get_extension_for_class(certificates.BasicConstraints).value.ca
    assert not crt.extensions.get_extension_for_class(certificates.BasicConstraints).value.ca
    san = crt.extensions.get_extension_for_class(certificates.SubjectAlternativeName).value
    assert san.get_values_for_type(certificates.DNSName) == ["db.local"]
    assert [str(ip) for ip in san.get_values_for_type(certificates.IPAddress)] == ["::1"]
    usage = crt.extensions.get_extension_for_class(certificates.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert crt.subject.rfc4514_string() == "CN=db"
    assert values["ca"].private_key == values["key"].private_key
    assert values["crt"].private_key not in {b"", values["key"].private_key}  # it got one of its own


@pytest.mark.parametrize("endpoint", [*Endpoint, None])
def test_endpoint_decides_the_usage(endpoint: Endpoint | None) -> None:
    crt = loaded(fresh(KEY, CA, replace(CRT, endpoint=endpoint, san=()))["crt"])
    usage = set(crt.extensions.get_extension_for_class(certificates.ExtendedKeyUsage).value)
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    assert usage == {Endpoint.SERVER: {server}, Endpoint.CLIENT: {client}}.get(
        endpoint or Endpoint.BOTH, {server, client}
    )
    names = [extension.oid for extension in crt.extensions]
    assert (certificates.SubjectAlternativeName.oid in names) == (endpoint is not Endpoint.CLIENT)


def test_certificate_ends_no_later_than_its_issuer() -> None:
    values = fresh(KEY, replace(CA, valid_for_s=86_400), replace(CRT, valid_for_s=10 * 86_400))
    assert x509.ends_ns(values["crt"]) == x509.ends_ns(values["ca"])


def test_intermediate_ca() -> None:
    middle = Secret("middle", SecretKind.X509_CA, issuer="ca")
    values = fresh(replace(CRT, issuer="middle"), middle, CA, KEY)  # in no helpful order
    assert len(values["crt"].chain) == 3
    for below, above in ((0, 1), (1, 2)):
        loaded(values["crt"], below).verify_directly_issued_by(loaded(values["crt"], above))


def test_serial_numbers_are_positive_and_short_enough() -> None:
    for byte in (b"\0", b"\xff"):
        values = generate(policy(Secret("s", SecretKind.X509)), None, {}, {}, now_ns=NOW, random_bytes=byte.__mul__)
        assert 0 < loaded(values["s"]).serial_number < 1 << 159


# -- what is refused


@pytest.mark.parametrize(
    ("secrets", "message"),
    [
        ([ascii_secret(size=0)], "1 to 65536"),
        ([ascii_secret(size=1 << 20)], "1 to 65536"),
        ([ascii_secret(charset="a")], "two different characters"),
        ([ascii_secret(charset="aaaa")], "two different characters"),
        ([ascii_secret(value="")], "1 to 65536 bytes, not 0"),
        ([Secret("b", SecretKind.BINARY, value="xyz")], "hexadecimal"),
        ([replace(KEY, value="-----BEGIN")], "not a private key in PEM"),
        ([replace(KEY, value="kl\u00fcssel")], "not a private key in PEM"),
        ([Secret("p", SecretKind.PUBLIC_KEY)], "needs a value, or the name"),
        ([Secret("p", SecretKind.PUBLIC_KEY, value="x")], "not a public key"),
        ([Secret("p", SecretKind.PUBLIC_KEY, private_key="none")], "none is not in this policy"),
        ([CRT], "ca is not in this policy"),
        ([CRT, replace(ascii_secret(), name="ca")], "no private key and certificate"),
        ([CRT, Secret("ca", SecretKind.X509)], "ca cannot issue certificates: it is no CA"),
        ([replace(CA, private_key="p"), ascii_secret(), Secret("p", SecretKind.ASCII)], "p has no private key"),
        ([CA, replace(KEY, key_type=KeyType.X25519)], "cannot sign"),
        ([replace(CRT, issuer=None, value="x")], "not a chain"),
        ([Secret("a", SecretKind.X509_CA, issuer="b"), Secret("b", SecretKind.X509_CA, issuer="a")], "circle: a -> b -> a"),
        ([KEY, CA, replace(CRT, san=(("ip", "nowhere"),))], "no alternative name"),
        ([KEY, CA, replace(CRT, san=(("dns", "b\u00fccher.example"),))], "no alternative name"),
        ([Secret("v", None)], "neither a kind"),
        ([CRT, Secret("ca", None, vault=VaultSource("kv", "a", "b"))], "has no value that a key"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_with_its_place(secrets: list[Secret], message: str) -> None:
    secrets = [replace(secret, place=Place(7, 3)) for secret in secrets]
    with pytest.raises(PolicyError, match=message) as caught:
        fresh(*secrets)
    assert (caught.value.line, caught.value.column) == (7, 3)


@pytest.mark.parametrize(
    "kind", [SecretKind.ASCII, SecretKind.BINARY, SecretKind.PRIVATE_KEY, SecretKind.X509, SecretKind.PUBLIC_KEY]
)
def test_no_given_value_is_in_a_message_or_repr(kind: SecretKind) -> None:
    told = "S3cr3tM4rk"
    secret = Secret("s", kind, value=told * 7000)
    with pytest.raises(PolicyError) as caught:
        fresh(secret)
    assert told not in str(caught.value)
    assert told not in "".join(traceback.format_exception(caught.value))
    assert told not in repr(secret)


def test_no_value_is_in_a_repr() -> None:
    for value in fresh(ascii_secret(size=20), KEY, CA, CRT).values():
        text = repr(value)
        for hidden in (value.raw, value.private_key):
            assert not hidden or (repr(hidden)[2:-1] not in text and hidden.hex() not in text)


# -- over an update


def updated(
    before: list[Secret], after: list[Secret], *, later_ns: int = 0
) -> tuple[dict[str, SecretValue], dict[str, SecretValue]]:
    old = fresh(*before)
    return old, fresh(*after, old=policy(*before), values=old, now_ns=NOW + later_ns)


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        pytest.param(ascii_secret(), ascii_secret(), True, id="ascii"),
        pytest.param(ascii_secret(), ascii_secret(exports=(Export("other"),)), True, id="ascii that is exported now"),
        pytest.param(ascii_secret(size=20), ascii_secret(size=21), False, id="ascii of another size"),
        pytest.param(ascii_secret(), ascii_secret(charset="abc"), False, id="ascii of another charset"),
        pytest.param(Secret("pass", SecretKind.BINARY), Secret("pass", SecretKind.BINARY), True, id="binary"),
        pytest.param(ascii_secret(), Secret("pass", SecretKind.BINARY), False, id="another kind"),
        pytest.param(ascii_secret(value="chosen"), ascii_secret(), False, id="no longer given"),
        pytest.param(ascii_secret(), ascii_secret(value="chosen"), False, id="given now"),
        pytest.param(KEY, KEY, False, id="private key"),
        pytest.param(KEY, replace(KEY, migrate=True), True, id="private key that migrates"),
        pytest.param(replace(KEY, migrate=True), KEY, False, id="private key that no longer migrates"),
        pytest.param(KEY, replace(KEY, migrate=True, key_type=KeyType.P384), False, id="private key of another type"),
        pytest.param(KEY, replace(KEY, migrate=True, key_type=KeyType.P256), True, id="private key whose default is spelt out"),
        pytest.param(Secret("c", SecretKind.X509_CA), Secret("c", SecretKind.X509_CA), False, id="certificate"),
    ],
)  # fmt: skip
def test_what_stays_over_an_update(before: Secret, after: Secret, stays: bool) -> None:
    old, new = updated([before], [after])
    assert (old[before.name] == new[before.name]) is stays
    assert set(new) == {after.name}


def test_certificates_are_issued_anew_and_follow_their_key() -> None:
    kept = replace(KEY, migrate=True)
    old, new = updated([kept, CA, CRT, PUB], [kept, CA, CRT, PUB], later_ns=DAY)
    assert new["pub"] == old["pub"]
    assert new["ca"].public_key == old["ca"].public_key
    assert new["ca"].chain[0] != old["ca"].chain[0]
    assert len(new["ca"].chain) == 1  # the same key needs no link to itself
    loaded(old["crt"]).verify_directly_issued_by(loaded(new["ca"]))


def test_own_key_of_a_certificate_migrates_if_it_says_so() -> None:
    secret = Secret("c", SecretKind.X509_CA, migrate=True)
    old, new = updated([secret], [secret])
    assert old["c"].private_key == new["c"].private_key
    assert old["c"].chain != new["c"].chain


def test_new_ca_is_linked_to_the_old_one() -> None:
    old, new = updated([KEY, CA, CRT], [KEY, CA, CRT], later_ns=DAY)
    assert new["ca"].public_key != old["ca"].public_key
    own, link, before = (loaded(new["ca"], index) for index in range(3))
    own.verify_directly_issued_by(own)
    link.verify_directly_issued_by(before)
    assert link.public_key() == own.public_key()
    assert before == loaded(old["ca"])
    leaf, carried, root = (loaded(new["crt"], index) for index in range(3))
    assert (carried, root) == (link, own)
    leaf.verify_directly_issued_by(carried)
    assert link.not_valid_after_utc <= before.not_valid_after_utc


def test_old_cas_leave_the_bundle_when_they_end_and_are_never_many() -> None:
    secrets = [KEY, replace(CA, valid_for_s=30 * 86_400), CRT]
    values = fresh(*secrets)
    sizes = []
    for day in range(1, 60):
        values = fresh(*secrets, old=policy(*secrets), values=values, now_ns=NOW + day * DAY)
        sizes.append(len(values["ca"].chain))
        assert all(
            loaded(values["ca"], i).not_valid_after_utc.timestamp() * 1e9 > NOW + day * DAY for i in range(sizes[-1])
        )
    assert max(sizes) <= 1 + 2 * x509.MAX_OLD_CAS
    much_later = fresh(*secrets, old=policy(*secrets), values=values, now_ns=NOW + 200 * DAY)
    assert len(much_later["ca"].chain) == 1
    assert len(much_later["crt"].chain) == 2


def test_linked_ca_that_is_above_another_is_carried_along() -> None:
    middle = Secret("middle", SecretKind.X509_CA, issuer="ca")
    secrets = [replace(CRT, issuer="middle"), middle, CA, KEY]
    old, new = updated(secrets, secrets, later_ns=DAY)
    roots = {old["ca"].chain[0], new["ca"].chain[0]}
    for root in roots:
        trusted = verification.Store([certificates.load_der_x509_certificate(root)])
        verifier = (
            verification.PolicyBuilder()
            .store(trusted)
            .time(datetime.fromtimestamp(NOW // 10**9 + 86_400, UTC))
            .build_server_verifier(certificates.DNSName("db.local"))
        )
        chain = [loaded(new["crt"], index) for index in range(len(new["crt"].chain))]
        assert verifier.verify(chain[0], chain[1:])[-1].public_bytes(Encoding.DER) == root


# -- rotation and renewal


SECRETS = [ascii_secret(), Secret("other", SecretKind.ASCII), KEY, PUB, CA, CRT]


def rotated(
    names: list[str], *, overlap: bool = False, secrets: list[Secret] | None = None
) -> tuple[SecretValues, SecretValues, list[str]]:
    used = SECRETS if secrets is None else secrets
    old = fresh(*used)
    new, changed = rotate(policy(*used), old, names, {}, now_ns=NOW + DAY, random_bytes=RNG.randbytes, overlap=overlap)
    return old, new, changed


def test_rotation_changes_what_is_named_and_what_was_made_with_it() -> None:
    old, new, changed = rotated(["key"])
    assert changed == ["ca", "crt", "key", "pub"]
    assert {name for name in old if old[name] != new[name]} == set(changed)
    assert len(new["ca"].chain) == 1  # the old CA is no longer trusted
    assert old["ca"].chain[0] not in new["crt"].chain
    assert new["crt"].private_key == old["crt"].private_key  # its own key was not named


def test_rotation_of_a_password_changes_nothing_else() -> None:
    old, new, changed = rotated(["pass"])
    assert changed == ["pass"]
    assert {name for name in old if old[name] != new[name]} == {"pass"}


def test_rotation_of_a_certificate_gives_it_another_key() -> None:
    old, new, changed = rotated(["crt"])
    assert changed == ["crt"]
    assert old["crt"].private_key != new["crt"].private_key


def test_rotation_with_overlap_links_the_old_ca() -> None:
    _, new, _ = rotated(["key"], overlap=True)
    assert len(new["ca"].chain) == 3


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (replace(ascii_secret(), value="chosen"), "written in the policy"),
        (Secret("pass", None, import_from=Import("other", "x")), "rotate it where it comes from"),
        (Secret("pass", None, vault=VaultSource("kv", "a", "b")), "rotate it where it comes from"),
        (Secret("another", SecretKind.ASCII), "no secret that policy messenger/db itself has"),
    ],
)
def test_what_cannot_be_rotated_is_refused(secret: Secret, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        rotate(policy(secret), {}, ["pass"], {}, now_ns=NOW, random_bytes=RNG.randbytes)


def test_certificates_are_due_before_their_end_and_renewed_with_the_same_key() -> None:
    secrets = [KEY, CA, replace(CRT, valid_for_s=90 * 86_400), ascii_secret()]
    values = fresh(*secrets)
    assert due(policy(*secrets), values, now_ns=NOW + 59 * DAY) == []
    assert due(policy(*secrets), values, now_ns=NOW + 60 * DAY) == ["crt"]
    assert due(policy(KEY, CA, replace(CRT, renew_before_s=86_400)), values, now_ns=NOW + 88 * DAY) == []
    new, changed = renew(policy(*secrets), values, {}, now_ns=NOW + 60 * DAY, random_bytes=RNG.randbytes)
    assert changed == ["crt"]
    assert new["crt"].private_key == values["crt"].private_key
    assert x509.ends_ns(new["crt"]) == NOW + 150 * DAY
    assert {name: new[name] for name in ("key", "ca", "pass")} == {name: values[name] for name in ("key", "ca", "pass")}


def test_renewed_ca_still_vouches_for_what_it_issued() -> None:
    secrets = [KEY, replace(CA, valid_for_s=30 * 86_400), CRT]
    values = fresh(*secrets)
    new, changed = renew(policy(*secrets), values, {}, now_ns=NOW + 25 * DAY, random_bytes=RNG.randbytes)
    assert set(changed) == {"ca", "crt"}
    loaded(values["crt"]).verify_directly_issued_by(loaded(new["ca"]))
    assert len(new["ca"].chain) == 1


# -- what comes from other policies


def test_imported_ca_issues_certificates() -> None:
    ca = fresh(replace(CA, private_key=None))["ca"]
    secret = Secret("ca", None, import_from=Import("messenger/db", "ca"))
    made = fresh(secret, CRT, imports={"ca": ca})
    assert set(made) == {"crt"}  # the imported value is not kept a second time
    loaded(made["crt"]).verify_directly_issued_by(loaded(ca))
