"""Documents are checked against schemas: each keyword refuses what it should, and names where.

Which schemas the interface has is in `fspf.cas.api`.
"""

from __future__ import annotations

from typing import Any

import pytest

from fspf.cas.schema import compile_schema
from fspf.core.errors import UsageError

TEXT = {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"}
NUMBER = {"type": "integer", "minimum": -1, "maximum": 9}
OBJECT = {"type": "object", "properties": {"a": NUMBER, "b": TEXT}, "required": ["a"], "additionalProperties": False}
OPEN = {"type": "object", "properties": {"a": NUMBER}, "required": ["a"]}
LIST = {"type": "array", "items": OBJECT, "minItems": 1, "maxItems": 2}
EITHER = {"anyOf": [NUMBER, {"type": "null"}]}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (TEXT, "ab"), (TEXT, "abcd"), (NUMBER, -1), (NUMBER, 9), (OBJECT, {"a": 1}), (OBJECT, {"a": 1, "b": "ab"}),
        (OPEN, {"a": 1, "more": None}), (LIST, [{"a": 1}]), (EITHER, None), (EITHER, 3), ({"enum": ["x", 1]}, 1), ({}, [{}]),
        ({"type": "boolean"}, False), ({"type": "null"}, None),
    ],
)  # fmt: skip
def test_fitting_document_is_taken(schema: Any, value: Any) -> None:
    compile_schema(schema)(value, "body")


@pytest.mark.parametrize(
    ("schema", "value", "where"),
    [
        (TEXT, "a", "body"), (TEXT, "abcde", "body"), (TEXT, "AB", "body"), (TEXT, "ab\n", "body"), (TEXT, 5, "body"),
        (TEXT, None, "body"), (TEXT, "àb", "body"), (NUMBER, -2, "body"), (NUMBER, 10, "body"), (NUMBER, 1.0, "body"),
        (NUMBER, True, "body"), (NUMBER, "1", "body"), (OBJECT, {}, "a: is missing"), (OBJECT, [], "body"), (OBJECT, {"a": "x"}, "^a:"),
        (OBJECT, {"a": 1, "c": 1}, "'c' is not known"), (LIST, [], "body"), (LIST, [{"a": 1}] * 3, "body"), (LIST, {}, "body"),
        (LIST, [{"a": 1}, {"a": 99}], r"body\[1\].a"), (EITHER, "x", "body"), ({"enum": ["x", 1]}, True, "body"),
        ({"enum": ["x"]}, "y", "body"), ({"type": "boolean"}, 0, "body"), ({"type": "null"}, 0, "body"),
    ],
)  # fmt: skip
def test_other_document_is_refused_and_said_where(schema: Any, value: Any, where: str) -> None:
    with pytest.raises(UsageError, match=where):
        compile_schema(schema)(value, "body")


def test_schema_with_unknown_keyword_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        compile_schema({"type": "string", "maxLen": 3})
