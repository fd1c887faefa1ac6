"""The reference of a CAS server's interface, for people: made from the table of routes.

Machines read the OpenAPI description, which is made from the same table.
"""

from __future__ import annotations

from typing import Any

from fspf.cas.api import ROUTES, SECURITY, Route
from fspf.cas.problems import STATUS

_HEAD = """\
# The interface of a CAS server

Made from `fspf/cas/api.py` by `tools/make_api_docs.py`; a server gives the same to machines at `/openapi.json` (OpenAPI 3.1). HTTPS with TLS 1.3 only; bodies are JSON.
Clients compare the hash of the server's key before they send anything: `fspf cas attest`.

## Tokens and proofs

1. `POST /v1/challenges` returns a nonce. It can be answered once, within a minute, at any process of the CAS.
2. The client makes a key pair for its session (Ed25519 or P-256), and evidence over `SHA-256("fspf attest 1\\0" || nonce || SPKI of the session's key)`; [ATTESTATION.md](ATTESTATION.md) has the kinds.
3. `POST /v1/tokens` exchanges them for a token: for 15 minutes at most, of no use without the session's key, and ended early by any change of the policy that it was given under.

"""

_AFTER_SECURITY = """\
Keys of volumes travel wrapped: both sides have an X25519 key for one exchange, and `HKDF-SHA256` of the shared secret (salt: both public keys, the smaller first; info: `fspf cas exchange 1`) wraps them with AES-SIV. When the client sends a key, `POST /v1/handles` gives
it the server's public key and a handle, which is the server's private key sealed for itself: so any process can take it back.

## Refusals

A refusal is `application/problem+json`: `type` is `urn:fspf:error:` and a class of `fspf.core.errors`, `detail` says what was expected, what was found and what to do. Nothing was stored, except after a 503: then the store gave no answer, and what happened has to be asked.

| status | `type` | more members |
|---|---|---|
"""

_MEMBERS = {
    "UnauthenticatedError": "`error`: `invalid_token`, `invalid_dpop_proof`, `use_dpop_nonce`; its type is AccessDeniedError",
    "AnchorMovedError": "`expected`, `found`: anchors",
    "LeaseError": "LeaseHeldError has `holder`",
    "FreshnessError": "`expected_generation`, `found_generation`",
    "AccessDeniedError": "AttestationError has `factor`: which part of the evidence or policy failed",
    "PolicyError": "`line`, `column`",
}


def reference() -> str:
    """Return the document."""
    rows = [f"| {status} | {kind.__name__} | {_MEMBERS.get(kind.__name__, '')} |" for kind, status in STATUS]
    parts = [_HEAD + SECURITY + "\n\n" + _AFTER_SECURITY + "\n".join(rows) + "\n"]
    tags = list(dict.fromkeys(route.tag for route in ROUTES))
    for tag in tags:
        parts.append(f"## {tag.capitalize()}\n")
        parts += [_section(route) for route in ROUTES if route.tag == tag]
    return "\n".join(parts)


def _section(route: Route) -> str:
    lines = [f"### `{route.method} {route.path}`\n", f"{route.summary}. {route.description}".strip() + "\n"]
    facts = ["Needs a token." if route.secured else "Needs no token."]
    if route.request is not None:
        facts.append(f"At most {route.max_body // 1024} KiB.")
    lines.append(" ".join(facts) + f" Answers {route.status}.\n")
    for title, schema in (("Request", route.request), ("Answer", route.response)):
        if schema is not None and schema.get("properties"):
            lines += [f"| {title} | | |", "|---|---|---|", *_rows(schema, ""), ""]
    return "\n".join(lines)


def _rows(schema: Any, prefix: str) -> list[str]:
    rows = []
    required = schema.get("required", ())
    for name, member in schema["properties"].items():
        kind, inner = _kind(member)
        note = member.get("description", "") or next(
            (one.get("description", "") for one in member.get("anyOf", ()) if "description" in one), ""
        )
        rows.append(f"| `{prefix}{name}` | {kind}{'' if name in required else ', optional'} | {note} |")
        if inner is not None and inner.get("properties"):
            rows += _rows(inner, f"{prefix}{name}.")
    return rows


def _kind(schema: Any) -> tuple[str, Any]:
    """Name the type of a member, and return what is inside."""
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"]]
        return " or ".join(kind for kind, _ in kinds), next((inner for _, inner in kinds if inner is not None), None)
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"]), None
    kind = schema.get("type", "anything")
    if kind == "array":
        inner_kind, inner = _kind(schema["items"])
        return f"list of {inner_kind}", inner
    if kind == "object":
        return "object", schema
    if kind == "string":
        return ("base64" if schema.get("contentEncoding") == "base64" else "text"), None
    return str(kind), None
