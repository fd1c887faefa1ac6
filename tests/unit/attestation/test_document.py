"""docs/ATTESTATION.md and the code say the same: examples, factors, words, statuses, folders.

What they mean is tested beside the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fspf.attestation import KINDS
from fspf.attestation.matching import _TOLERATED_BY
from fspf.attestation.trust import FOLDERS
from fspf.core.factors import FACTORS, TOLERABLE, Group, Shape, check_item, check_security

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "ATTESTATION.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)]


def names(shapes: Mapping[str, Shape], path: str = "") -> Iterator[str]:
    for name, shape in shapes.items():
        if isinstance(shape, Group):
            yield from names(shape.members, f"{path}{name}.")
        else:
            yield path + name


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_are_right(example: dict[str, Any]) -> None:
    assert set(example) <= {"attestation", "security"}
    for item in example.get("attestation", ()):
        check_item(item)
    check_security(example.get("security", {}).get("attestation", {}))


def test_each_factor_has_an_example() -> None:
    shown = {factor for example in EXAMPLES for item in example.get("attestation", ()) for factor in item}
    assert shown == set(FACTORS)


@pytest.mark.parametrize("name", sorted(names(FACTORS)))
def test_each_value_has_a_row(name: str) -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows), f"docs/ATTESTATION.md has no row for {name}"


def test_no_row_is_about_something_that_is_not_there() -> None:
    table = TEXT.split("| factor | value | compared |")[1].split("\n\n")[0]
    named = {
        name
        for row in table.splitlines()
        if row.startswith("|")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    assert named == set(names(FACTORS))


@pytest.mark.parametrize("word", [*KINDS, *TOLERABLE, *_TOLERATED_BY, *(f"{folder}/" for folder in FOLDERS)])
def test_words_are_explained(word: str) -> None:
    assert f"`{word}`" in TEXT or f"`{word}*" in TEXT


def test_named_tests_exist() -> None:
    tests = Path(__file__).resolve().parents[2]
    named = re.findall(r"`(?:tests/(?:cas|property)/)?(test_\w+\.py)(?:::(test_\w+))?`", TEXT)
    assert len(named) > 10
    for file, function in named:
        there = [path.read_text(encoding="utf-8") for path in tests.rglob(file)]
        assert any(f"def {function}" in text for text in there), f"{file}::{function}"
