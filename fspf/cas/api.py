"""The interface of a CAS server as one table: paths, who may call them, and the shape of what goes in and out.

It is served as an OpenAPI description; what a request does is left to `service`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fspf._version import __version__
from fspf.cas import policy_routes
from fspf.cas.schema import Check, Schema, compile_schema

KIB: Final = 1024
MAX_BODY: Final = 64 * KIB  # bytes of a request, unless its route says otherwise
_MAX_INT: Final = (1 << 63) - 1
_MIN_INT: Final = -(1 << 63)

# -- shapes


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": False,
    }


def _text(longest: int, shortest: int = 0, **more: Any) -> Schema:
    return {"type": "string", "minLength": shortest, "maxLength": longest, **more}


def _base64(longest: int, description: str) -> Schema:
    characters = -(-longest // 3) * 4
    pattern = "^[A-Za-z0-9+/]+={0,2}$"
    return _text(characters, 4, pattern=pattern, contentEncoding="base64", description=description)


def _integer(description: str, low: int = 0, high: int = _MAX_INT) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_TIME: Final = _integer("UTC ns since 1970, by the clock of the CAS")
VOLUME_ID: Final = _text(32, 32, pattern="^[0-9a-f]{32}$", description="Id of a volume")
_NAME: Final = _text(4096, description="Name of a volume, for people")
_FRESHNESS: Final = _text(
    40, 4, pattern="^(strict|none|bounded:[1-9][0-9]{0,8}ms(,[1-9][0-9]{0,8})?)$", description="Freshness mode"
)
_ANCHOR: Final = _object(
    {
        "generation": _integer("Number of the commit; 0 = never written", _MIN_INT),
        "root_tag": _text(64, pattern="^([0-9a-f]{2})*$", description="Tag of its root record, 16 bytes in hex"),
    }
)
_HOLDER: Final = _object(
    {
        "host": _text(256),
        "boot_id": _text(64),
        "pid": _integer("Process id"),
        "pid_start": _integer("When the process began: proc(5), stat, field 22"),
        "pid_namespace": _integer("Inode of its pid namespace"),
        "label": _text(256, description="For people"),
        "opening": _integer("Random, of one try to get a lease", 0, (1 << 53) - 1),
    }
)
_EPOCH: Final = _integer("Number of a lease; never repeats", 0, (1 << 32) - 1)
_LEASE: Final = _object({"epoch": _EPOCH, "holder": _HOLDER, "expires_ns": _TIME})
_KEY_VERSION: Final = _integer("Version of the volume's key", 1, (1 << 32) - 1)
_PUBLIC_KEY: Final = _base64(32, "X25519 public key of one exchange, raw")
_WRAPPED: Final = _base64(48, "Key of the volume, wrapped under what both X25519 keys make")
_SUMMARY: Final = {
    "volume_id": VOLUME_ID,
    "name": _NAME,
    "key_version": _KEY_VERSION,
    "anchor": _ANCHOR,
    "epoch": _EPOCH,
    "freshness": _FRESHNESS,
}
_RECORD: Final = _object({**_SUMMARY, "lease": _nullable(_LEASE)})
_RECORD_WITH_KEY: Final = _object({**_SUMMARY, "lease": _nullable(_LEASE), "wrapped_key": _WRAPPED})
_LEASE_REPLY: Final = _object({"lease": _LEASE})
_EMPTY: Final = _object({})
PROBLEM: Final = {
    "type": "object",
    "properties": {
        "type": _text(256, description="urn:fspf:error: and the name of the error's class"),
        "title": _text(1024),
        "status": _integer("As the status line", 400, 599),
        "detail": _text(1 << 16, description="What was expected, what was found, what to do"),
    },
    "required": ["type", "title", "status", "detail"],
}
_STATUS: Final = {"type": "object", "properties": {"status": _text(16)}, "required": ["status"]}


@dataclass(frozen=True, slots=True)
class Route:
    """One path with one method.

    Attributes:
        handler: Name of the method of `service.Service`.
        secured: Whether it needs a token and a proof.
        request: Shape of the body, None if there is none.
        response: Shape of the answer, None if it is no JSON.
        status: Of success.
        max_body: Bytes.
    """

    method: str
    path: str
    handler: str
    summary: str
    description: str = ""
    secured: bool = True
    request: Schema | None = None
    response: Schema | None = None
    status: int = 200
    max_body: int = MAX_BODY
    tag: str = "volumes"
    media_type: str = "application/json"
    check: Check | None = None


def _route(method: str, path: str, handler: str, summary: str, request: Schema | None = None, **more: Any) -> Route:
    check = None if request is None else compile_schema(request)
    return Route(method, path, handler, summary, request=request, check=check, **more)


def _volume(action: str, handler: str, summary: str, request: Schema, **more: Any) -> Route:
    return _route("POST", f"/v1/volumes/{{volume_id}}{action}", handler, summary, request, **more)


_PLAIN: Final[dict[str, Any]] = {"secured": False, "tag": "state"}

_VOLUME_ROUTES: Final[tuple[Route, ...]] = (
    _route("GET", "/v1/health", "health", "Whether the process answers", response=_STATUS, **_PLAIN),
    _route(
        "GET",
        "/v1/ready",
        "ready",
        "Whether it can serve: the store answers, and no end is near",
        response=_STATUS,
        **_PLAIN,
    ),
    _route(
        "GET",
        "/v1/cas",
        "describe",
        "What this CAS is",
        response=_object(
            {"id": _text(64), "version": _text(64), "key_hash": _text(64, description="Hex SHA-256 of its TLS key")}
        ),
        **_PLAIN,
    ),
    _route("GET", "/metrics", "metrics", "Metrics for Prometheus", media_type="text/plain", **_PLAIN),
    _route("GET", "/openapi.json", "openapi", "This description", response={"type": "object"}, **_PLAIN),
    _route(
        "POST",
        "/v1/challenges",
        "challenge",
        "Ask for a challenge",
        _EMPTY,
        description="The nonce that the next evidence must cover. It works once, for a minute.",
        response=_object({"nonce": _base64(64, "To be covered by evidence"), "expires_ns": _TIME}),
        secured=False,
        tag="tokens",
        status=201,
    ),
    _route(
        "POST",
        "/v1/tokens",
        "grant",
        "Exchange evidence for a token",
        _object(
            {
                "nonce": _base64(64, "Of a challenge"),
                "public_key": _base64(128, "Of this session: Ed25519 or P-256, DER SubjectPublicKeyInfo"),
                "evidence": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 8,
                    "items": {"type": "object", "properties": {"type": _text(32)}, "required": ["type"]},
                    "description": 'Each covers SHA-256("fspf attest 1\\0" || nonce || public_key); docs/ATTESTATION.md',
                },
            },
            {
                "policy": _text(256, description="Policy that names the service"),
                "service": _text(256, description="The service that asks"),
                "instance": _text(256, description="Which of its instances"),
            },
        ),
        description="The token can be used by the holder of `public_key` only: each request is signed, see `proof`.",
        response=_object({"token": _text(8192), "issued_ns": _TIME, "expires_ns": _TIME}, {"policy_hash": _text(64)}),
        secured=False,
        tag="tokens",
        status=201,
        max_body=512 * KIB,
    ),
    _route(
        "POST",
        "/v1/handles",
        "handle",
        "Ask for a public key under which keys can be sent",
        _EMPTY,
        response=_object(
            {"handle": _base64(128, "Brings the private key back"), "public_key": _PUBLIC_KEY, "expires_ns": _TIME}
        ),
        status=201,
    ),
    _route(
        "GET",
        "/v1/volumes",
        "list_volumes",
        "List volumes, without keys",
        response=_object({"records": {"type": "array", "items": _RECORD, "maxItems": 1 << 20}}),
    ),
    _route(
        "POST",
        "/v1/volumes",
        "create",
        "Make a key and a record for a new volume",
        _object({"volume_id": VOLUME_ID, "name": _NAME, "freshness": _FRESHNESS, "public_key": _PUBLIC_KEY}),
        response=_object({"public_key": _PUBLIC_KEY, "record": _RECORD_WITH_KEY}),
        status=201,
    ),
    _route(
        "POST",
        "/v1/records",
        "records",
        "Fetch all volumes, with their keys",
        _object({"public_key": _PUBLIC_KEY}),
        response=_object(
            {"public_key": _PUBLIC_KEY, "records": {"type": "array", "items": _RECORD_WITH_KEY, "maxItems": 1 << 20}}
        ),
    ),
    _route(
        "POST",
        "/v1/imports",
        "import_records",
        "Take over records of another CAS, all or none",
        _object(
            {
                "handle": _base64(128, "From /v1/handles"),
                "public_key": _PUBLIC_KEY,
                "records": {
                    "type": "array",
                    "items": _object({**_SUMMARY, "wrapped_key": _WRAPPED}),
                    "minItems": 1,
                    "maxItems": 20,
                },
                "override": {"type": "boolean", "description": "Let keys change and anchors go back"},
            }
        ),
        response=_object({"imported": _integer("How many")}),
        max_body=256 * KIB,
    ),
    _route(
        "GET",
        "/v1/volumes/{volume_id}",
        "show",
        "Show a volume, without its key",
        response=_object({"record": _RECORD}),
    ),
    _volume(
        "/record",
        "fetch",
        "Fetch a volume, with its key",
        _object({"public_key": _PUBLIC_KEY}),
        response=_object({"public_key": _PUBLIC_KEY, "record": _RECORD_WITH_KEY}),
    ),
    _volume(
        "/lease",
        "acquire",
        "Take the right to write, and make a state the anchor",
        _object({"expected": _ANCHOR, "expected_epoch": _EPOCH, "adopt": _ANCHOR, "holder": _HOLDER}),
        response=_LEASE_REPLY,
        status=201,
    ),
    _volume("/renew", "renew", "Prolong a lease", _object({"lease": _LEASE}), response=_LEASE_REPLY),
    _volume(
        "/release",
        "release",
        "Give a lease back; one that is not held is left alone",
        _object({"lease": _LEASE}),
        response=_EMPTY,
    ),
    _volume(
        "/anchor",
        "advance",
        "Move the anchor forward; prolongs the lease",
        _object({"lease": _LEASE, "expected": _ANCHOR, "new": _ANCHOR}),
        response=_object({"expires_ns": _TIME}),
    ),
    _volume(
        "/rekey",
        "rekey",
        "Replace the key and move the anchor, in one step",
        _object(
            {
                "lease": _LEASE,
                "expected": _ANCHOR,
                "new": _ANCHOR,
                "handle": _base64(128, "From /v1/handles"),
                "public_key": _PUBLIC_KEY,
                "wrapped_key": _WRAPPED,
            }
        ),
        response=_EMPTY,
    ),
    _volume(
        "/freshness", "set_freshness", "Change the freshness mode", _object({"freshness": _FRESHNESS}), response=_EMPTY
    ),
    _route("DELETE", "/v1/volumes/{volume_id}", "remove", "Forget a volume and its key", response=_EMPTY),
)

ROUTES: Final = (
    *_VOLUME_ROUTES,
    _route(
        "POST",
        "/v1/configuration",
        "configuration",
        "Fetch an attested service's configuration",
        _EMPTY,
        description="Arguments, environment, files and volumes, with secrets filled in; docs/SECRETS.md.",
        response={"type": "object"},
        tag="services",
    ),
    *(
        _route(
            one.method,
            one.path,
            one.handler,
            one.summary,
            one.request,
            response=one.response,
            status=one.status,
            max_body=one.max_body,
            tag="policies",
        )
        for one in policy_routes.ROUTES
    ),
)

PATH_PARAMETERS: Final[dict[str, Schema]] = {"volume_id": VOLUME_ID, **policy_routes.PATH_PARAMETERS}

SECURITY: Final = """\
RFC 9449 (DPoP). `Authorization: DPoP TOKEN`, and in `DPoP` a JWT signed by the session's key (`typ` dpop+jwt, `alg` EdDSA or ES256, `jwk`)
with the claims `htm`, `htu` (https, the Host header, the path), `iat`, `jti` (16 to 64 characters, never repeated), `ath`
(base64url SHA-256 of the token), `bh` (base64url SHA-256 of the body) and `nonce` (the newest DPoP-Nonce that a response carried).
A 401 with `error` use_dpop_nonce brings a nonce with it: the request was not looked at and can be signed anew."""


def openapi() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FSPF CAS",
            "version": __version__,
            "summary": "Keys, anchors and leases of volumes, for those who attest.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM},
            "securitySchemes": {"proof": {"type": "http", "scheme": "DPoP", "description": SECURITY}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.response is not None:
        content = {"content": {"application/json": {"schema": route.response}}}
    elif route.media_type != "application/json":
        content = {"content": {route.media_type: {"schema": {"type": "string"}}}}
    refused = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    operation: dict[str, Any] = {
        "operationId": route.handler,
        "summary": route.summary,
        "tags": [route.tag],
        "responses": {
            str(route.status): {"description": "Done", **content},
            "default": {"description": "Refused, and nothing was stored", "content": refused},
        },
    }
    if route.description:
        operation["description"] = route.description
    parameters = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    if parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS[name]} for name in parameters
        ]
    if route.request is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": route.request}}}
    if route.secured:
        operation["security"] = [{"proof": []}]
    return operation
