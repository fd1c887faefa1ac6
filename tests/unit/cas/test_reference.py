"""The reference of the interface and the OpenAPI description are those of the table of routes.

That the server checks what it describes is in `test_schema`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from fspf.cas.api import ROUTES, Route, openapi
from fspf.cas.reference import reference
from fspf.cas.service import Service

REPO: Final = Path(__file__).resolve().parents[3]


def test_reference_is_current() -> None:
    there = (REPO / "docs" / "CAS-API.md").read_text(encoding="utf-8")
    assert there == reference(), "run tools/make_api_docs.py"


def test_every_route_is_described_once() -> None:
    described = openapi()
    found = [(method.upper(), path) for path, methods in described["paths"].items() for method in methods]
    assert sorted(found) == sorted((route.method, route.path) for route in ROUTES)
    names = [operation["operationId"] for methods in described["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_has_a_handler_and_bounds(route: Route) -> None:
    assert route.handler == "metrics" or callable(getattr(Service, route.handler))
    assert route.secured or route.tag in {"state", "tokens"}
    assert (route.request is None) == (route.check is None)
    if route.request is not None:
        _check_bounded(route.request, route.path)


def _check_bounded(schema: Any, where: str) -> None:
    """A text, number or list without a bound would be one more way to fill memory."""
    match schema.get("type"):
        case "string":
            assert "maxLength" in schema, where
        case "integer":
            assert {"minimum", "maximum"} <= schema.keys(), where
        case "array":
            assert "maxItems" in schema, where
            _check_bounded(schema["items"], where)
        case "object":
            for name, member in schema.get("properties", {}).items():
                _check_bounded(member, f"{where}.{name}")
    for one in schema.get("anyOf", ()):
        _check_bounded(one, where)
