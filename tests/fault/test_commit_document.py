"""docs/COMMIT.md names functions and tests: they exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.fault.plane_sabotage import KEPT_SABOTAGES, PLANE_SABOTAGES
from tests.fault.sabotage import SABOTAGES
from tests.fault.workload import WORKLOADS

REPO = Path(__file__).parents[2]
DOCUMENT = (REPO / "docs" / "COMMIT.md").read_text(encoding="utf-8")
CODE = sorted(set(re.findall(r"`((?:fspf|fspf_native|tests)/[\w/]+\.(?:py|c)):{1,2}([\w.]+)`", DOCUMENT)))


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return functions, classes, methods and constants as they are called from outside."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".c":
        return frozenset(re.findall(r"^(?:static )?[\w* ]+?\b(\w+)\([^;]*$", text, re.MULTILINE))
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.AnnAssign | ast.Assign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(text), "")
    return frozenset(found)


@pytest.mark.parametrize(("path", "name"), CODE)
def test_named_code_exists(path: str, name: str) -> None:
    assert name in names_in(REPO / path), f"docs/COMMIT.md names {path}:{name}"


def test_the_document_names_enough() -> None:
    assert len(CODE) >= 35
    assert sum(path.startswith("tests/") for path, _ in CODE) >= 8


def test_every_invariant_is_there() -> None:
    rows = re.findall(r"^\| (\d) \|", DOCUMENT.split("## 2")[0], re.MULTILINE)
    assert rows == ["1", "2", "3", "4", "5"]


def test_sabotages_and_workloads_in_the_document_exist() -> None:
    named = set(re.findall(r"`(\w+)`", DOCUMENT))
    assert {
        "segments_not_synced",
        "root_before_sync",
        "freed_too_early",
        "keyring_not_synced",
    } <= named & SABOTAGES.keys()
    assert {
        "frees_not_marked",
        "root_noted_before_the_flush",
        "rename_does_not_flush",
        "names_are_late",
        "commit_without_drain",
    } <= named & PLANE_SABOTAGES.keys()
    assert named >= KEPT_SABOTAGES.keys()
    assert "rekeys" in named & WORKLOADS.keys()
