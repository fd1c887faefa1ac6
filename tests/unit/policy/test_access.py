"""Access policies: who is enough, who counts once, what is signed and what a signature is good for.

The engine that collects voices is tested in tests/unit/cas/test_policies.py.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fspf.core.errors import AccessDeniedError, PolicyError
from fspf.policy import access
from fspf.policy.access import Voices
from fspf.policy.approval import Action, Approval, Statement, Verdict, parse_approval, read_answer
from fspf.policy.document import parse_policy
from fspf.policy.model import Member, Script
from fspf.policy.principal import Principal, key_identity
from tests.support.policies import inline_pem, key_id, pem, person, private_key, signed, spki

STATEMENT = Statement(Action.UPDATE, "a", "11" * 32, "22" * 32)
ANN, BOB, EVE = (f"{{signer: {inline_pem(name)}}}" for name in ("ann", "bob", "eve"))
SCRIPTS = [f"{{script: 'https://check{n}.example/', signer: {key_id(f'script{n}')}}}" for n in range(3)]


def members(text: str) -> tuple[Member, ...]:
    document = f'version: "0.3"\nname: a\nservices: [{{name: checker}}]\naccess_policy:\n  update: {text}\n'
    return parse_policy(document.encode()).access_policy.update


def voices(*names: str, against: tuple[str, ...] = (), waited_s: int = 0, creator: str = "carl") -> Voices:
    def identity(name: str) -> str:
        return name if ":" in name else key_identity(key_id(name))

    return Voices(identity(creator), "a", frozenset(map(identity, names)), frozenset(map(identity, against)), waited_s)


TWO = f"[{{require-at-least-2: [{ANN}, {BOB}, {EVE}]}}]"
ALL = f"[{{require-all: [{ANN}, {BOB}]}}]"
NESTED = f"[{{require-all: [{ANN}, {{require-at-least-1: [{BOB}, {EVE}]}}]}}]"
VETO = f"[{{require-at-least-1: [{ANN}, {BOB}], veto: [{EVE}]}}]"
WINDOW = f"[{{require-at-least-1: [{ANN}, {BOB}], veto: [{EVE}], veto_within: 2 hours}}]"
MANY = f"[{{require-at-least-2: [{', '.join(SCRIPTS)}]}}]"

ENOUGH = {
    "creator": ("[CREATOR]", voices("carl"), True),
    "not the creator": ("[CREATOR]", voices("ann"), False),
    "anyone": ("[ANY]", voices(), True),
    "nobody": ("[NONE]", voices("carl", "ann"), False),
    "one signer": (f"[{ANN}]", voices("ann"), True),
    "by key id": (f"[{key_id('ann')}]", voices("ann"), True),
    "another signer": (f"[{ANN}]", voices("bob"), False),
    "any of the list": (f"[{ANN}, {BOB}]", voices("bob"), True),
    "two of three": (TWO, voices("ann", "eve"), True),
    "one of three": (TWO, voices("ann"), False),
    "one of three and a stranger": (TWO, voices("ann", "carl"), False),
    "all": (ALL, voices("ann", "bob"), True),
    "not all": (ALL, voices("bob", "eve"), False),
    "nested": (NESTED, voices("ann", "eve"), True),
    "nested, only below": (NESTED, voices("bob", "eve"), False),
    "nested, only above": (NESTED, voices("ann"), False),
    "the creator is one of the signers": (f"[{{require-at-least-2: [CREATOR, {ANN}]}}]", voices("ann", creator="ann"), False),
    "creator and signer": (f"[{{require-at-least-2: [CREATOR, {ANN}]}}]", voices("ann", "carl"), True),
    "a script that signs as a person": (
        f"[{{require-at-least-2: [{ANN}, {{script: 'https://x/', signer: {key_id('ann')}}}]}}]", voices("ann"), False,
    ),
    "one who changed his mind": (TWO, voices("ann", "bob", against=("bob",)), False),
    "a no of one who has no veto": (TWO, voices("ann", "bob", against=("eve",)), True),
    "veto: he says nothing": (VETO, voices("ann"), False),
    "veto: he says no": (VETO, voices("ann", against=("eve",)), False),
    "veto: he agrees": (VETO, voices("ann", "eve"), True),
    "veto: only he agrees": (VETO, voices("eve"), False),
    "veto in time": (WINDOW, voices("ann", against=("eve",), waited_s=9999), False),
    "veto: there is still time": (WINDOW, voices("ann", waited_s=7199), False),
    "veto: time is over": (WINDOW, voices("ann", waited_s=7200), True),
    "veto: he agrees before it is over": (WINDOW, voices("ann", "eve"), True),
    "service of this policy": ("[{service: {service: checker}}]", voices("service:a#checker"), True),
    "its namesake elsewhere": ("[{service: {service: checker}}]", voices("service:b#checker"), False),
    "service of another policy": ("[{service: {session: b, service: checker}}]", voices("service:b#checker"), True),
    "two scripts of three": (MANY, voices("script0", "script2"), True),
    "one script of three": (MANY, voices("script0"), False),
}  # fmt: skip


@pytest.mark.parametrize("case", ENOUGH)
def test_who_is_enough(case: str) -> None:
    text, these, enough = ENOUGH[case]
    assert access.is_allowed(members(text), these) is enough


MISSING = {
    "one": (f"[{ANN}]", voices(), f"key {key_id('ann')[:16]} has to agree"),
    "creator": ("[CREATOR]", voices(), f"the creator (key {key_id('carl')[:16]}) has to agree"),
    "two of three": (
        TWO,
        voices("ann"),
        f"2 of 3 have to agree, 1 did; missing: key {key_id('bob')[:16]}, key {key_id('eve')[:16]}",
    ),
    "nested": (NESTED, voices("bob"), f"2 of 2 have to agree, 1 did; missing: key {key_id('ann')[:16]}"),
    "silent veto": (VETO, voices("ann"), "who has a veto, has not agreed"),
    "veto": (VETO, voices("ann", against=("eve",)), "has vetoed it"),
    "veto in time": (WINDOW, voices("ann", waited_s=7000), "may still veto it for 200 s"),
    "nobody": ("[NONE]", voices("ann"), "nobody may"),
    "script": (MANY, voices(), "script https://check0.example/"),
    "alternatives": (f"[CREATOR, {ANN}]", voices(), " or key "),
}


@pytest.mark.parametrize("case", MISSING)
def test_who_is_missing_is_said(case: str) -> None:
    text, these, expected = MISSING[case]
    assert expected in access.explain(members(text), these)
    with pytest.raises(AccessDeniedError, match=r"^update a: "):
        access.check("update a", members(text), these)


WRONG = {
    # case: (members, part of the message)
    "more than there are": (f"[{{require-at-least-3: [{ANN}, {BOB}]}}]", "can never be"),
    "none needed": (f"[{{require-at-least-0: [{ANN}]}}]", "a number from 1"),
    "no number": (f"[{{require-at-least-two: [{ANN}]}}]", "a number from 1"),
    "other digits": (f"[{{require-at-least-\u0661: [{ANN}]}}]", "a number from 1"),
    "nobody on the board": ("[{require-all: []}]", "at least 1 item"),
    "no one at all": ("[]", "at least 1 item"),
    "anyone on a board": (f"[{{require-all: [ANY, {ANN}]}}]", "no members of a board"),
    "nobody with others": (f"[NONE, {ANN}]", "NONE stands alone"),
    "one twice": (f"[{{require-at-least-2: [{ANN}, {ANN}]}}]", "twice"),
    "one twice, as key and id": (f"[{{require-at-least-2: [{ANN}, {key_id('ann')}]}}]", "twice"),
    "a misspelt word": ("[CREATORS]", "CREATOR, ANY, NONE"),
    "half a key id": ("[abcd]", "CREATOR, ANY, NONE"),
    "an unknown member": (f"[{{singer: {inline_pem('ann')}}}]", "did you mean signer?"),
    "no member": ("[{}]", "has one of the keys"),
    "two in one": (f"[{{signer: {inline_pem('ann')}, service: {{service: x}}}}]", "no key 'service'"),
    "two boards in one": (f"[{{require-all: [{ANN}], require-at-least-1: [{BOB}]}}]", "beside require-all"),
    "no PEM": ("[{signer: hello}]", "signer is a public key"),
    "a private key": ("[{signer: '-----BEGIN PRIVATE KEY-----\\nMC4=\\n-----END PRIVATE KEY-----'}]", "signer is a public key"),
    "an RSA key": ('[{signer: "@RSA@"}]', "Ed25519, P-256 or P-384"),
    "http": ("[{script: 'http://x/', signer: " + key_id("s") + "}]", "https"),
    "no host": ("[{script: 'https:///x', signer: " + key_id("s") + "}]", "https"),
    "a bad port": ("[{script: 'https://x:y/', signer: " + key_id("s") + "}]", "https"),
    "a user": ("[{script: 'https://u:p@x/', signer: " + key_id("s") + "}]", "no user"),
    "a script that nobody answers for": ("[{script: 'https://x/'}]", "a script needs signer"),
    "a CA that is none": ("[{script: 'https://x/', ca: x}]", "ca is a certificate"),
    "a veto of nobody": (f"[{{require-all: [{ANN}], veto: [NONE]}}]", "no members of a board"),
    "a veto of a board": (f"[{{require-all: [{ANN}], veto: [{{require-all: [{BOB}]}}]}}]", "not to a board"),
    "time without veto": (f"[{{require-all: [{ANN}], veto_within: 1 day}}]", "means nothing"),
    "no such service": ("[{service: {service: chekcer}}]", "did you mean checker?"),
    "service of no name": ("[{service: {session: b}}]", "needs the key service"),
    "a text": ("CREATOR", "is a list"),
}  # fmt: skip
RSA = """-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf
9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize("case", WRONG)
def test_a_board_that_cannot_be_is_refused(case: str) -> None:
    text, expected = WRONG[case]
    with pytest.raises(PolicyError) as caught:
        members(text.replace("@RSA@", RSA.replace("\n", "\\n")))
    assert expected in str(caught.value)
    assert caught.value.line == 5


@pytest.mark.parametrize("kind", ["ed25519", "P-256", "P-384"])
def test_each_kind_of_key_signs(kind: str) -> None:
    (member,) = members(f"[{{signer: {inline_pem('ann', kind)}}}]")
    approval = signed(STATEMENT, "ann", kind=kind)
    these = access.voices_of(STATEMENT, [approval], None, creator="", policy="a")
    assert access.is_allowed((member,), these)
    assert these.agreeing == {key_identity(key_id("ann", kind))}


def test_one_signer_counts_once() -> None:
    approvals = [signed(STATEMENT, "ann", kind="P-256") for _ in range(5)]
    text = f"[{{require-at-least-2: [{{signer: {inline_pem('ann', 'P-256')}}}, {BOB}]}}]"
    these = access.voices_of(STATEMENT, approvals, None, creator="", policy="a")
    assert len({one.signature for one in approvals}) > 1  # ECDSA signatures differ, the signer does not
    assert not access.is_allowed(members(text), these)


OTHER = {
    "another action": replace(STATEMENT, action=Action.DELETE),
    "another policy": replace(STATEMENT, name="b"),
    "another predecessor": replace(STATEMENT, predecessor="33" * 32),
    "another version": replace(STATEMENT, policy="33" * 32),
    "no predecessor": replace(STATEMENT, predecessor=""),
}


@pytest.mark.parametrize("case", OTHER)
def test_an_approval_is_good_for_nothing_else(case: str) -> None:
    approval = signed(OTHER[case], "ann")
    with pytest.raises(PolicyError, match="is expected, this one is of"):
        approval.verify(STATEMENT)
    relabelled = replace(approval, statement=STATEMENT)
    with pytest.raises(PolicyError, match="the signature is not one"):
        relabelled.verify(STATEMENT)


def test_a_no_is_no_yes() -> None:
    approval = signed(STATEMENT, "ann", Verdict.REJECT)
    assert access.voices_of(STATEMENT, [approval], None, creator="", policy="a").against
    with pytest.raises(PolicyError, match="the signature is not one"):
        replace(approval, verdict=Verdict.APPROVE).verify(STATEMENT)


def test_what_is_signed_is_fixed_for_ever() -> None:
    assert STATEMENT.message() == (
        b'fspf policy approval 1\0{"action":"update","name":"a","policy":"' + b"22" * 32 + b'","predecessor":"' + b"11" * 32
        + b'","verdict":"approve"}'
    )  # fmt: skip


def altered(approval: Approval, **changes: object) -> Approval:
    return replace(approval, **changes)  # type: ignore[arg-type]


def test_an_altered_approval_is_refused() -> None:
    approval = signed(STATEMENT, "ann")
    flipped = bytes([approval.signature[0] ^ 1]) + approval.signature[1:]
    for wrong in (
        altered(approval, signature=flipped), altered(approval, signature=b"x"), altered(approval, public_key=spki("bob")),
        altered(approval, public_key=b"\x30\x00"), altered(approval, public_key=spki("ann") + b"\0"),
        altered(approval, public_key=spki("ann")[:-1]), altered(approval, public_key=b"\0" * 512),
    ):  # fmt: skip
        with pytest.raises(PolicyError):
            wrong.verify(STATEMENT)


def test_a_key_in_another_encoding_is_no_other_signer() -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = private_key("ann", "P-256").public_key()
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    whole = spki("ann", "P-256")
    compressed = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    assert whole != compressed
    approval = signed(STATEMENT, "ann", kind="P-256")
    with pytest.raises(PolicyError, match="in DER"):
        altered(approval, public_key=compressed).verify(STATEMENT)


def test_an_approval_survives_being_written_down() -> None:
    approval = signed(STATEMENT, "ann", Verdict.REJECT)
    assert parse_approval(json.dumps(approval.members()).encode()) == approval


NO_APPROVAL = {
    "nothing": b"", "no JSON": b"{", "deep": b"[" * 8000, "a list": b"[]", "bytes": b"\xff", "long": b" " * 9000,
    "an unknown member": b'{"x": 1}', "no statement": b"{}", "another type": b'{"type": "x"}',
    "a bad name": b'{"statement": {"action": "update", "name": "../x"}}',
    "a bad hash": b'{"statement": {"action": "update", "name": "a", "policy": "AB"}}',
    "a bad action": b'{"statement": {"action": "steal", "name": "a"}, "public_key": "AA==", "signature": "AA=="}',
    "an action that is a list": b'{"statement": {"action": [], "name": "a"}, "public_key": "AA==", "signature": "AA=="}',
    "a number for a key": b'{"statement": {"action": "read", "name": "a"}, "public_key": 1, "signature": "AA=="}',
    "no verdict": b'{"statement": {"action": "read", "name": "a"}, "public_key": "AA==", "signature": "AA=="}',
}  # fmt: skip


@pytest.mark.parametrize("case", NO_APPROVAL)
def test_what_is_no_approval_is_refused(case: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_approval(NO_APPROVAL[case])
    assert len(str(caught.value)) < 300


def test_who_asks_in_person_agrees() -> None:
    both = Principal(frozenset({key_id("ann"), key_id("bob")}), "a", "checker")
    these = access.voices_of(STATEMENT, [], both, creator="", policy="a")
    assert access.is_allowed(members(ALL), these)
    assert access.is_allowed(members("[{service: {service: checker}}]"), these)
    assert not access.is_allowed(members(ALL), access.voices_of(STATEMENT, [], person("ann"), creator="", policy="a"))


# ------------------------------------------------------------------------------------------------------- scripts


def test_scripts_are_called_only_if_their_answer_decides() -> None:
    both = f"[{{require-all: [{ANN}, {SCRIPTS[0]}]}}]"
    assert access.scripts_to_call(members(both), voices()) == ()  # ann is missing anyway
    assert [one.url for one in access.scripts_to_call(members(both), voices("ann"))] == ["https://check0.example/"]
    assert access.scripts_to_call(members(f"[{ANN}, {SCRIPTS[0]}]"), voices("ann")) == ()  # ann is enough
    assert access.scripts_to_call(members(both), voices("ann", against=("script0",))) == ()  # it has answered
    assert len(access.scripts_to_call(members(MANY), voices())) == 3


def test_a_script_s_answer_is_signed() -> None:
    (script,) = members(f"[{SCRIPTS[0]}]")
    assert isinstance(script, Script)
    assert script.signer is not None
    good = signed(STATEMENT, "script0").members()
    answer = {
        "verdict": "approve",
        "reason": "looks fine",
        "public_key": good["public_key"],
        "signature": good["signature"],
    }
    assert read_answer(json.dumps(answer).encode(), STATEMENT, script.signer.key_id) == (Verdict.APPROVE, "looks fine")
    for wrong in (
        {**answer, "verdict": "reject"}, {"verdict": "approve"}, {**answer, "public_key": signed(STATEMENT, "eve").members()["public_key"]},
        {**answer, "signature": signed(OTHER["another policy"], "script0").members()["signature"]}, {**answer, "more": 1},
        {**answer, "reason": "x" * 2000}, {**answer, "reason": 1},
    ):  # fmt: skip
        with pytest.raises(PolicyError):
            read_answer(json.dumps(wrong).encode(), STATEMENT, script.signer.key_id)
    eve = signed(STATEMENT, "eve").members()
    with pytest.raises(PolicyError, match="is expected"):
        read_answer(
            json.dumps({**answer, "public_key": eve["public_key"], "signature": eve["signature"]}).encode(),
            STATEMENT,
            script.signer.key_id,
        )


def test_a_script_behind_a_known_certificate_need_not_sign() -> None:
    assert read_answer(b'{"verdict": "reject", "reason": "no"}', STATEMENT, None) == (Verdict.REJECT, "no")


def test_a_certificate_names_a_signer_too() -> None:
    import datetime as dt

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ann")])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private_key("ann").public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1)).sign(private_key("ann"), None)
    )  # fmt: skip
    text = certificate.public_bytes(Encoding.PEM).decode().replace("\n", "\\n")
    assert members(f'[{{signer: "{text}"}}]') == members(f"[{ANN}]")
    assert pem("ann") not in text
