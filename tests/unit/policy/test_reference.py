"""docs/POLICY.md and the parser are the same: every example is a policy, every key has an example.

What each key means is tested in test_document.py and by those who act on it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from fspf.core.factors import FACTORS
from fspf.policy import access, fields, placeholders
from fspf.policy.approval import Action, Statement
from fspf.policy.document import parse_policy
from fspf.policy.fields import MAX_NAME, MAX_PARTS, MAX_POLICY_NAME
from fspf.policy.tree import MAX_DEPTH, MAX_LEN, MAX_NODES, Node, Pairs, read_tree
from fspf.policy.values import SecretKind

DOCUMENT = (Path(__file__).parents[3] / "docs" / "POLICY.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def whole(example: str) -> bytes:
    return (example if example.startswith("version:") else f'version: "0.3"\nname: example\n{example}').encode()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_is_a_policy(number: int) -> None:
    parse_policy(whole(EXAMPLES[number]))


def test_every_key_has_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()
    original = fields.pairs

    def recording(node: Node, what: str, keys: Collection[str], required: Collection[str] = ()) -> Pairs:
        known.update(keys)
        return original(node, what, keys, required)

    def keys_of(node: Node) -> set[str]:
        if isinstance(node, Pairs):
            return set(node.pairs).union(*(keys_of(value) for _, value in node.pairs.values()))
        return set().union(*(keys_of(one) for one in getattr(node, "items", ())))

    monkeypatch.setattr(fields, "pairs", recording)
    shown: set[str] = set()
    for example in EXAMPLES:
        parse_policy(whole(example))
        shown |= keys_of(read_tree(whole(example)))
    assert len(known) > 60
    assert known - shown - set(FACTORS) == set()  # factors have ATTESTATION.md


def test_words_of_the_language_are_named() -> None:
    words: list[Any] = [*SecretKind, *placeholders.FORMATS, "CREATOR", "ANY", "NONE", *FACTORS]
    assert [word for word in words if f"`{word}`" not in DOCUMENT] == []


def test_limits_are_those_of_the_code() -> None:
    assert f"at most {MAX_LEN >> 10} KiB, {MAX_NODES // 1000} 000 values, {MAX_DEPTH} levels" in DOCUMENT
    assert f"up to {MAX_NAME} characters each" in DOCUMENT
    assert f"up to {MAX_PARTS} parts and {MAX_POLICY_NAME} characters" in DOCUMENT


def test_what_is_signed_is_as_it_says() -> None:
    shown = re.search(r"^    (fspf policy approval 1) <0x00> (.*)$", DOCUMENT, re.MULTILINE)
    assert shown is not None
    signed = Statement(Action.UPDATE, "messenger/db", "<old hash>", "<new hash>").message().decode()
    assert signed == f"{shown[1]}\0{shown[2]}"
    assert access.scripts_to_call((), access.Voices("", "")) == ()
