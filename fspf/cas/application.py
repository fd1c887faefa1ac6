"""The ASGI application of a CAS server: from HTTP to calls of `service` and back.

Sockets, TLS and the end of the process are `server`'s business.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import unquote

from fspf.cas import api
from fspf.cas.api import ROUTES, Route
from fspf.cas.metrics import CONTENT_TYPE
from fspf.cas.problems import MEDIA_TYPE, NotHereError, problem, status_of
from fspf.cas.schema import Check, compile_schema
from fspf.cas.service import Call, Service
from fspf.cas.tokens import Token, UnauthenticatedError
from fspf.core.errors import CasUnreachableError, FspfError, UsageError

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Call], Awaitable[Any]]

BODY_TIMEOUT_S: Final = 10.0  # for a request to arrive
HANDLER_TIMEOUT_S: Final = 20.0  # for it to be answered
_ONE_HEADER: Final = frozenset({b"authorization", b"dpop", b"host", b"content-type", b"content-length"})
_JSON: Final = b"application/json"


class Application:
    """Serves HTTP requests.

    Args:
        service: Does what they ask.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._table = _Table(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; ASGI 3."""
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")
        began = time.perf_counter()
        route: Route | None = None
        extra: list[tuple[bytes, bytes]] = []
        content_type = _JSON
        try:
            if scope["http_version"] not in {"1.0", "1.1"}:
                raise NotHereError(505, "HTTP/1.1 is expected")
            route, path, handler = self._table.find(scope["method"], scope["raw_path"])
            headers = _headers(scope["headers"])
            body = await _body(route, headers, receive)
            token = None
            if route.secured:
                token = await self._authenticate(scope, headers, body)
            document = _document(route, headers, body)
            if route.handler == "metrics":
                payload, content_type = self._service.metrics.render(), CONTENT_TYPE
            else:
                call = Call(path, document, token, _peer(scope))
                async with asyncio.timeout(HANDLER_TIMEOUT_S):
                    payload = _dump(await handler(call))
            status = route.status
        except FspfError as exc:
            status, payload, content_type = self._refuse(exc, route, scope, extra)
        except TimeoutError:
            late = CasUnreachableError("the store did not answer in time; whether the change was made is not known")
            status, payload, content_type = self._refuse(late, route, scope, extra)
        except Exception:
            log.exception("a request failed", extra={"path": scope["path"][:200], "method": scope["method"]})
            status, content_type = 500, MEDIA_TYPE.encode()
            members = {"type": "about:blank", "title": "A bug", "status": 500, "detail": "see the log of the CAS"}
            payload = _dump(members)
        operation = route.handler if route is not None else "none"
        self._service.metrics.requests.labels(operation, status).inc()
        if operation == "advance":
            self._service.metrics.anchor_seconds.observe(time.perf_counter() - began)
        if scope["method"] == "HEAD":
            payload = b""
        response_headers = [
            (b"content-type", content_type),
            (b"content-length", str(len(payload)).encode()),
            (b"cache-control", b"no-store"),
            (b"dpop-nonce", self._service.gate.fresh_nonce().encode()),
            *extra,
        ]
        await send({"type": "http.response.start", "status": status, "headers": response_headers})
        await send({"type": "http.response.body", "body": payload})

    async def _authenticate(self, scope: Scope, headers: dict[bytes, bytes], body: bytes) -> Token:
        url = f"https://{_ascii(headers.get(b'host', b''))}{_ascii(scope['raw_path'])}"
        return await self._service.gate.authenticate(
            _ascii(headers.get(b"authorization", b"")),
            _ascii(headers.get(b"dpop", b"")),
            method=scope["method"],
            url=url,
            body=body,
        )

    def _refuse(
        self, exc: FspfError, route: Route | None, scope: Scope, extra: list[tuple[bytes, bytes]]
    ) -> tuple[int, bytes, bytes]:
        status = status_of(exc)
        if isinstance(exc, UnauthenticatedError):
            extra.append((b"www-authenticate", f'DPoP algs="EdDSA ES256", error="{exc.code}"'.encode()))
        if isinstance(exc, NotHereError) and exc.allow:
            extra.append((b"allow", exc.allow.encode()))
        if isinstance(exc, CasUnreachableError):
            self._service.metrics.store_errors.inc()
        if status in {401, 403, 503}:
            operation = route.handler if route is not None else "none"
            level = logging.INFO if isinstance(exc, UnauthenticatedError) and exc.usual else logging.WARNING
            more = {"operation": operation, "reason": str(exc), "peer": _peer(scope), "status": status}
            log.log(level, "refused", extra=more)
        elif status == 500:
            log.error("an error that has no status", exc_info=exc)
        return status, _dump(problem(exc)), MEDIA_TYPE.encode()


class _Table:
    """Finds the route of a path."""

    def __init__(self, service: Service) -> None:
        self._by_shape: dict[tuple[str, int], list[tuple[list[str], dict[str, tuple[Route, Handler]]]]] = {}
        self._parameters: dict[str, Check] = {
            name: compile_schema(schema) for name, schema in api.PATH_PARAMETERS.items()
        }
        for route in ROUTES:
            parts = route.path.split("/")
            candidates = self._by_shape.setdefault((parts[1], len(parts)), [])
            methods = next((methods for known, methods in candidates if known == parts), None)
            if methods is None:
                methods = {}
                candidates.append((parts, methods))
            handler = _none if route.handler == "metrics" else getattr(service, route.handler)
            methods[route.method] = (route, handler)

    def find(self, method: str, raw_path: bytes) -> tuple[Route, dict[str, str], Handler]:
        """Return the route, what its path's variables are, and what handles it.

        Raises:
            NotHereError: There is no such path, or not with this method.
            UsageError: A variable is malformed.
        """
        parts = raw_path.decode("latin-1").split("/")
        candidates = self._by_shape.get((parts[1] if len(parts) > 1 else "", len(parts)), ())
        for pattern, methods in candidates:
            values = _match(pattern, parts)
            if values is None:
                continue
            found = methods.get(method)
            if found is None and method == "HEAD":
                found = methods.get("GET")
            if found is None:
                allowed = ", ".join(sorted(methods))
                raise NotHereError(405, f"the method {method[:20]} is not served here: {allowed}", allow=allowed)
            for name, value in values.items():
                self._parameters[name](value, name)
            return found[0], values, found[1]
        raise NotHereError(404, "there is nothing at this path: /openapi.json describes what there is")


async def _none(_call: Call) -> None:
    """Stand where a route has no handler."""


def _match(pattern: list[str], parts: list[str]) -> dict[str, str] | None:
    values = {}
    for expected, part in zip(pattern, parts, strict=True):
        if expected.startswith("{"):
            values[expected[1:-1]] = unquote(part, errors="replace")
        elif expected != part:
            return None
    return values


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name in _ONE_HEADER and name in headers:
            raise NotHereError(400, f"the header {name.decode('latin-1')} is there twice")
        headers[name] = value
    return headers


async def _body(route: Route, headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Read the body, but not more than the route takes, and not for ever.

    Raises:
        NotHereError: It is too large or too slow.
    """
    longest = route.max_body if route.check is not None else 0
    announced = headers.get(b"content-length", b"0")
    if announced.isdigit() and len(announced) < 20 and int(announced) > longest:
        raise NotHereError(413, f"a body of at most {longest} bytes is expected, not of {int(announced)}")
    chunks: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise NotHereError(400, "the client went away before its request had arrived")
                chunk = message.get("body", b"")
                length += len(chunk)
                if length > longest:
                    raise NotHereError(413, f"a body of at most {longest} bytes is expected")
                chunks.append(chunk)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise NotHereError(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _document(route: Route, headers: dict[bytes, bytes], body: bytes) -> Any:
    """Parse and check the body.

    Raises:
        NotHereError: It is of another media type.
        UsageError: It is no JSON, or not of the route's shape.
    """
    if route.check is None:
        return None
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != _JSON:
        raise NotHereError(415, "the media type application/json is expected")
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"body: JSON in UTF-8 is expected: {str(exc)[:100]}") from None
    route.check(document, "body")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _dump(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _ascii(value: bytes) -> str:
    return value.decode("latin-1")


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""
