"""Policies, placeholders and approvals under arbitrary input: only PolicyError comes out, and what must hold holds.

Single cases have their tables in tests/unit/policy.
"""

from __future__ import annotations

import json

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fspf.core.errors import PolicyError
from fspf.policy import access, placeholders
from fspf.policy.access import Voices
from fspf.policy.approval import parse_approval, read_answer, read_approval
from fspf.policy.document import canonical_form, parse_policy
from fspf.policy.edit import with_predecessor
from fspf.policy.model import Board, Member, Policy, Signer
from fspf.policy.plan import plan
from fspf.policy.semantics import warnings
from fspf.policy.values import SecretKind, SecretValue
from tests.support.policies import FULL, HEX32

# Keys and values that a policy has, in places where it has them or not.
KEYS = sorted({
    "version", "name", "predecessor", "services", "images", "volumes", "secrets", "access_policy", "security", "restore",
    "image_name", "command", "environment", "pwd", "fspf_key", "fspf_tag", "fspf_volume", "fspf_update_policy",
    "attestation", "mrenclaves", "mrenclave", "mrsigner", "isvprodid", "isvsvn", "tpm", "pcrs", "ak", "sev-snp", "tcb", "tdx",
    "measured-process", "executable", "path", "update_policy", "injection_files", "permission", "content", "key", "tag", "id",
    "freshness", "max_age", "export", "import", "to", "session", "session_hash", "volume", "secret", "kind", "size", "value",
    "charset", "key_type", "private_key", "common_name", "issuer", "endpoint", "san", "dns", "valid_for", "renew_before",
    "migrate", "vault", "mount", "field", "read", "update", "create_sessions", "signer", "service", "script", "ca",
    "require-all", "require-at-least-2", "require-at-least-x", "veto", "veto_within", "mode", "tolerate",
    "ignore_advisories", "generation", "epoch", "reason",
})  # fmt: skip
WORDS = [
    "0.3", "a", "a/b", "s", "k", "v", "i", "CREATOR", "ANY", "NONE", "ascii", "binary", "private-key", "x509", "x509-ca", "P-256",
    "32", "0", "-1", "1e9", "0o400", "true", "hardware", "none", "/x", "/x/..", "90 days", "ephemeral", "strict", "bounded:5ms",
    HEX32, HEX32[:32], "$$SCONE::k$$", "$$SCONE::k:hex$$", "$$SCONE::", "https://x/", "https://[", "dns:a", "ip:::1", "~", "", "\u0661",
    "-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----\n", "\U0001f4a9", "\x7f",
]  # fmt: skip
SCALARS = st.one_of(st.sampled_from(WORDS), st.text(max_size=12), st.integers(), st.booleans(), st.none(), st.floats())
TREES = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.sampled_from(WORDS), below, max_size=6)
    ),
    max_leaves=40,
)


def read(text: bytes) -> Policy | None:
    """Parse; nothing but PolicyError may come out, and its message is short and of one line."""
    policy, refused = None, None
    try:
        policy = parse_policy(text)
    except PolicyError as exc:
        refused = exc
    if policy is None:
        assert refused is not None
        assert len(str(refused)) < 2000
        assert min(refused.line, refused.column) >= 0
        return None
    assert plan(policy, policy).steps == ()
    plan(None, policy)
    list(warnings(policy))
    return policy


@given(st.binary(max_size=400))
def test_bytes_are_a_policy_or_refused(text: bytes) -> None:
    read(text)


@given(
    st.text(
        alphabet=st.characters(codec="utf-8") | st.sampled_from("[]{}:,-?&*!|>'\"%@`#\n \t\r\u2028\x85\ufeff"),
        max_size=200,
    )
)
@example("? |\n")
@example("- ? ")
@example("\ufeff%")
@example("a:\r- b\x85- c\u2028")
def test_text_is_a_policy_or_refused(text: str) -> None:
    read(text.encode())


@given(TREES)
def test_any_yaml_is_a_policy_or_refused(tree: object) -> None:
    read(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogateescape"))


@given(
    st.dictionaries(
        st.sampled_from(["services", "images", "volumes", "secrets", "access_policy", "security", "restore"]), TREES
    )
)
def test_any_sections_are_a_policy_or_refused(sections: dict[str, object]) -> None:
    read(yaml.safe_dump({"version": "0.3", "name": "a", **sections}).encode())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return the example with a piece of it replaced, removed or doubled."""
    text = FULL.encode()
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(text)))
        end = min(begin + draw(st.integers(0, 30)), len(text))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from(WORDS).map(str.encode), st.just(text[begin:end] * 2))
        )
        text = text[:begin] + piece + text[end:]
    return text


@given(damaged())
def test_a_damaged_policy_is_a_policy_or_refused(text: bytes) -> None:
    policy = read(text)
    if policy is not None:
        again = parse_policy(text)
        assert (again, again.hash) == (policy, policy.hash)


@given(damaged(), damaged())
def test_a_plan_of_any_two_policies_is_made(one: bytes, other: bytes) -> None:
    before, after = read(one), read(other)
    if before is not None and after is not None:
        found = plan(before, after)
        json.dumps(found.members())
        assert found.text.endswith("\n")
        if before.hash == after.hash:
            assert not found.steps


@given(st.permutations(sorted(yaml.load(FULL, yaml.BaseLoader))), st.booleans(), st.integers(20, 200))
def test_the_hash_does_not_depend_on_the_layout(order: list[str], flow: object, width: int) -> None:
    tree = yaml.load(FULL, yaml.BaseLoader)  # texts only, as policies are read
    shuffled = {key: tree[key] for key in order}
    written = yaml.safe_dump(shuffled, default_flow_style=bool(flow), sort_keys=False, default_style='"', width=width)
    assert parse_policy(written.encode()).hash == parse_policy(FULL.encode()).hash
    assert canonical_form(written.encode()) == canonical_form(FULL.encode())


@given(damaged())
def test_a_predecessor_is_put_in_anywhere_or_refused(text: bytes) -> None:
    policy = read(text)
    if policy is None:
        return
    try:
        edited = with_predecessor(text, HEX32)
    except PolicyError:
        return
    again = parse_policy(edited)
    if policy.predecessor is None:
        assert again.predecessor == HEX32
        assert again.hash != policy.hash
    else:
        assert edited == text


VALUES = st.builds(
    SecretValue, st.sampled_from(list(SecretKind)), st.binary(max_size=20), st.binary(max_size=20), st.binary(max_size=20),
    st.lists(st.binary(max_size=20), max_size=2).map(tuple),
)  # fmt: skip


@given(
    st.lists(
        st.sampled_from(
            ["$$", "SCONE", "::", "$$SCONE::", "k", ":hex", ":pem", ":chain", "|escape(json)", "$$SCONE::k$$", "x"]
        )
        | st.text(max_size=3)
    ).map("".join),
    VALUES,
)
def test_placeholders_are_filled_in_or_refused(text: str, value: SecretValue) -> None:
    for fill in (placeholders.expand, placeholders.expand_text):
        try:
            fill(text, {"k": value})
        except PolicyError:
            continue
        if "$$SCONE" not in text:
            assert fill(text, {}) in {text, text.encode("utf-8", "surrogateescape")}


@given(st.binary(max_size=200) | TREES.map(lambda tree: json.dumps(tree).encode()))
def test_approvals_and_answers_are_read_or_refused(text: bytes) -> None:
    for parse in (parse_approval, lambda data: read_approval(json.loads(data))):
        try:
            parse(text)
        except (PolicyError, UnicodeDecodeError, json.JSONDecodeError):
            continue
    try:
        from fspf.policy.approval import Action, Statement

        read_answer(text, Statement(Action.READ, "a"), HEX32)
    except PolicyError:
        pass


# ------------------------------------------------------------------------------------------------------- boards

PEOPLE = [f"{n:064x}" for n in range(6)]


def boards() -> st.SearchStrategy[Member]:
    signers: st.SearchStrategy[Member] = st.sampled_from([Signer(one) for one in PEOPLE])

    def board(members: list[Member], need: int, veto: list[Member]) -> Member:
        return Board(min(need, len(members)), tuple(members), tuple(veto))

    return st.recursive(
        signers,
        lambda below: st.builds(
            board, st.lists(below, min_size=1, max_size=4), st.integers(1, 4), st.lists(signers, max_size=1)
        ),
        max_leaves=10,
    )


GROUPS = st.frozensets(st.sampled_from([f"key:{one}" for one in PEOPLE]))


@given(boards(), GROUPS, GROUPS, GROUPS)
def test_more_agreement_never_hurts_and_more_rejection_never_helps(
    member: Member, some: frozenset[str], more: frozenset[str], against: frozenset[str]
) -> None:
    def allowed(agreeing: frozenset[str], no: frozenset[str] = frozenset()) -> bool:
        return access.is_allowed((member,), Voices("", "a", agreeing, no))

    if allowed(some):
        assert allowed(some | more)
    if allowed(some, against):
        assert allowed(some)
    assert not allowed(frozenset())
    if not allowed(some):
        assert access.explain((member,), Voices("", "a", some))


@given(boards(), GROUPS)
def test_nobody_counts_twice_on_a_board(member: Member, some: frozenset[str]) -> None:
    flat = isinstance(member, Board) and all(isinstance(one, Signer) for one in member.members)
    if flat and access.is_allowed((member,), Voices("", "a", some)):
        assert isinstance(member, Board)
        assert len(some) >= member.need
