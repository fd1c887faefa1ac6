"""docs/DATAPLANE.md says which requests are answered where; the table of operations agrees, and so do its names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
DOCUMENT = (REPO / "docs" / "DATAPLANE.md").read_text(encoding="utf-8")
TABLE = (REPO / "fspf_native" / "ops_dir.c").read_text(encoding="utf-8")
OPERATION = re.compile(r'^    \[\w+\] = \{(\w+), [^"]+"(\w+)"\},$', re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \| (?:`(\w+)`|—) \| (.+) \|$", re.MULTILINE)
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder, patterns in (("fspf_native", ("*.c", "*.h", "*.pyi")), ("fspf", ("**/*.py",)))
    for pattern in patterns
    for path in sorted((REPO / folder).glob(pattern))
)


def operations() -> dict[str, str | None]:
    found = {name: None if function == "NULL" else function for function, name in OPERATION.findall(TABLE)}
    assert len(found) == TABLE.count('"},') > 30, "a line of operations[] that this test does not understand"
    return found


def test_every_request_has_its_row() -> None:
    told = {name: function or None for name, function, _ in ROW.findall(DOCUMENT)}
    assert told == operations()


def test_only_what_c_does_not_answer_is_pyfuse3s_alone() -> None:
    for name, function, where in ROW.findall(DOCUMENT):
        if not function:
            assert where.startswith("pyfuse3"), name


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z]\w+_\w+)`", DOCUMENT))))
def test_what_is_named_exists(name: str) -> None:
    assert re.search(rf"\b{name}\b", SOURCES), name


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|fspf|fspf_native)/[\w/.]+\.\w+)`", DOCUMENT))))
def test_files_that_are_named_exist(path: str) -> None:
    assert (REPO / path).is_file()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w/.-]+\.md)\)", DOCUMENT))))
def test_links_lead_somewhere(link: str) -> None:
    assert (REPO / "docs" / link).is_file()
