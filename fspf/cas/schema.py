"""Checks documents against the part of JSON Schema that the CAS's interface uses.

The schemas themselves are in `api`; the OpenAPI description shows the same objects that are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from fspf.core.errors import UsageError

Schema = Mapping[str, Any]
Check = Callable[[Any, str], None]

_KNOWN: Final = {
    "type", "properties", "required", "additionalProperties", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "items", "maxItems", "minItems", "enum", "anyOf", "description", "contentEncoding", "format", "example", "title",
}  # fmt: skip


def compile_schema(schema: Schema) -> Check:
    """Return a function that raises `UsageError` for documents that do not fit *schema*; it takes the document and its name."""
    unknown = set(schema) - _KNOWN
    assert not unknown, f"schema: {unknown} is not known"
    if "anyOf" in schema:
        return _any_of([compile_schema(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return _enum(schema["enum"])
    kind = schema.get("type")
    makers: dict[str | None, Callable[[Schema], Check]] = {
        None: _anything,
        "object": _object,
        "array": _array,
        "string": _string,
        "integer": _integer,
        "boolean": _boolean,
        "null": _null,
    }
    return makers[kind](schema)


def _anything(_schema: Schema) -> Check:
    return lambda _value, _where: None


def _any_of(checks: list[Check]) -> Check:
    def check(value: Any, where: str) -> None:
        refusals = []
        for one in checks:
            try:
                one(value, where)
            except UsageError as exc:
                refusals.append(str(exc))
            else:
                return
        raise UsageError(refusals[0])

    return check


def _enum(values: list[Any]) -> Check:
    def check(value: Any, where: str) -> None:
        if not any(value == one and type(value) is type(one) for one in values):
            raise UsageError(f"{where}: one of {', '.join(map(repr, values))} is expected")

    return check


def _null(_schema: Schema) -> Check:
    def check(value: Any, where: str) -> None:
        if value is not None:
            raise UsageError(f"{where}: null is expected")

    return check


def _boolean(_schema: Schema) -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not bool:
            raise UsageError(f"{where}: true or false is expected")

    return check


def _integer(schema: Schema) -> Check:
    low, high = schema["minimum"], schema["maximum"]

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise UsageError(f"{where}: a number from {low} to {high} is expected")

    return check


def _string(schema: Schema) -> Check:
    shortest, longest = schema.get("minLength", 0), schema["maxLength"]
    pattern = re.compile(schema["pattern"], re.ASCII) if "pattern" in schema else None

    def check(value: Any, where: str) -> None:
        if type(value) is not str:
            raise UsageError(f"{where}: a text is expected")
        if not shortest <= len(value) <= longest:
            raise UsageError(f"{where}: a text of {shortest} to {longest} characters is expected, not of {len(value)}")
        if pattern is not None and (pattern.search(value) is None or value.endswith("\n")):
            raise UsageError(f"{where}: a text like {pattern.pattern} is expected")

    return check


def _array(schema: Schema) -> Check:
    check_item, fewest, most = compile_schema(schema["items"]), schema.get("minItems", 0), schema["maxItems"]

    def check(value: Any, where: str) -> None:
        if type(value) is not list or not fewest <= len(value) <= most:
            raise UsageError(f"{where}: a list of {fewest} to {most} items is expected")
        for number, item in enumerate(value):
            check_item(item, f"{where}[{number}]")

    return check


def _object(schema: Schema) -> Check:
    checks = {name: compile_schema(one) for name, one in schema.get("properties", {}).items()}
    required = frozenset(schema.get("required", ()))
    open_ended = schema.get("additionalProperties", True)
    assert required <= checks.keys()

    def check(value: Any, where: str) -> None:
        if type(value) is not dict:
            raise UsageError(f"{where}: an object is expected")
        prefix = "" if where == "body" else f"{where}."
        if missing := required - value.keys():
            raise UsageError(f"{prefix}{min(missing)}: is missing")
        for name, member in value.items():
            one = checks.get(name)
            if one is not None:
                one(member, f"{prefix}{name}")
            elif not open_ended:
                raise UsageError(f"{where}: {name[:40]!r} is not known here")

    return check
