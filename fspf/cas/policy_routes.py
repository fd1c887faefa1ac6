"""The paths about policies, in the shapes that the interface of the server has: for its table, its checks, and its OpenAPI description.

What each answers is in `policy_api`; the other paths are in `api`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fspf.cas.policy_api import Members, PolicyApi
from fspf.policy.approval import Action, Verdict
from fspf.policy.principal import Principal
from fspf.policy.tree import MAX_LEN

Schema = Mapping[str, Any]

MAX_BODY: Final = 2 << 20  # bytes: a document in JSON, and its approvals
_MAX_APPROVALS: Final = 128
_MANY: Final = 1 << 20


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": False,
    }


def _array(items: Schema, most: int) -> Schema:
    return {"type": "array", "items": items, "maxItems": most}


def _text(longest: int, description: str, **more: Any) -> Schema:
    return {"type": "string", "maxLength": longest, "description": description, **more}


_FLAG: Final[Schema] = {"type": "boolean"}
_TIME: Final[Schema] = {"type": "integer", "minimum": 0, "description": "UTC ns since 1970, by the clock of the CAS"}
NAME: Final = _text(200, "Name of a policy; / is written %2F in a path", minLength=1, pattern="^[A-Za-z0-9_.~/-]+$")
HASH: Final = _text(64, "Hash of a version", minLength=64, pattern="^[0-9a-f]{64}$")
_SOME_HASH: Final = _text(64, "Hash of a version, or empty", pattern="^([0-9a-f]{64})?$")
_DOCUMENT: Final = _text(MAX_LEN, "The policy, in YAML: docs/POLICY.md")
_PEOPLE: Final = _text(_MANY, "For people")
_STATEMENT: Final = _object(
    {"action": {"enum": [str(one) for one in Action]}, "name": NAME, "predecessor": _SOME_HASH, "policy": _SOME_HASH}
)
_APPROVAL: Final = _object(
    {
        "statement": _STATEMENT,
        "verdict": {"enum": [str(one) for one in Verdict]},
        "public_key": _text(700, "DER SubjectPublicKeyInfo", contentEncoding="base64"),
        "signature": _text(400, "Of the statement: docs/POLICY.md 7", contentEncoding="base64"),
    },
    {"type": _text(40, "fspf-policy-approval")},
)
_APPROVALS: Final = _array(_APPROVAL, _MAX_APPROVALS)
_CHANGE: Final = _object({"document": _DOCUMENT}, {"approvals": _APPROVALS, "propose": _FLAG})
_READ: Final = _object({}, {"approvals": _APPROVALS})
_OUTCOME: Final = _object({"name": NAME, "hash": HASH, "pending": _FLAG, "missing": _PEOPLE})
_STEP: Final = _object(
    {"kind": _text(20, "gains, loses or changes"), "area": _text(40, "What it is about"), "who": _PEOPLE, "what": _PEOPLE, "weaker": _FLAG}
)  # fmt: skip
PATH_PARAMETERS: Final[Mapping[str, Schema]] = {"name": NAME, "hash": HASH}


@dataclass(frozen=True, slots=True)
class PolicyRoute:
    """One path with one method.

    Attributes:
        handler: Method of `PolicyCalls`.
        action: Method of `PolicyApi`.
    """

    method: str
    path: str
    action: str
    summary: str
    request: Schema
    response: Schema
    status: int = 200
    max_body: int = 64 << 10

    @property
    def handler(self) -> str:
        """Name of the method of `PolicyCalls`."""
        return f"policy_{self.action}"


ROUTES: Final = (
    PolicyRoute("POST", "/v1/policies", "create", "Create a policy", _CHANGE, _OUTCOME, 201, MAX_BODY),
    PolicyRoute(
        "POST", "/v1/policy-list", "list", "Name the policies that may be read",
        _object({"prefix": _text(200, "What their names begin with")}),
        _object({"policies": _array(_object({"name": NAME, "hash": HASH, "updated_ns": _TIME}), _MANY)}),
    ),
    PolicyRoute(
        "POST", "/v1/policy-plan", "plan", "Say what a document would change", _object({"document": _DOCUMENT}),
        _object({
            "name": NAME, "old": {"anyOf": [HASH, {"type": "null"}]}, "new": HASH, "steps": _array(_STEP, _MANY), "text": _PEOPLE,
        }),
        200, MAX_BODY,
    ),
    PolicyRoute("PUT", "/v1/policies/{name}", "update", "Replace a policy", _CHANGE, _OUTCOME, 200, MAX_BODY),
    PolicyRoute(
        "POST", "/v1/policies/{name}/read", "read", "Read the version in force", _READ,
        _object({"name": NAME, "hash": HASH, "document": _DOCUMENT}), 200, MAX_BODY,
    ),
    PolicyRoute(
        "POST", "/v1/policies/{name}/delete", "delete", "Delete a policy",
        _object({"predecessor": HASH}, {"approvals": _APPROVALS, "propose": _FLAG}), _OUTCOME, 200, MAX_BODY,
    ),
    PolicyRoute(
        "POST", "/v1/policies/{name}/proposals", "proposals", "Show what waits for approvals", _object({}),
        _object({
            "proposals": _array(
                _object({
                    "statement": _STATEMENT, "document": _DOCUMENT, "by": _PEOPLE, "since_ns": _TIME, "missing": _PEOPLE,
                    "approvals": _APPROVALS, "plan": _PEOPLE,
                }), 64,
            ),
        }),
    ),
    PolicyRoute(
        "POST", "/v1/policies/{name}/approve", "approve", "Approve or reject a proposal",
        _object({"proposal": HASH}, {"approvals": _APPROVALS, "in_person": _FLAG}), _OUTCOME, 200, MAX_BODY,
    ),
    PolicyRoute(
        "POST", "/v1/policies/{name}/withdraw", "withdraw", "Take a proposal back", _object({"proposal": HASH}), _object({}),
    ),
    PolicyRoute(
        "POST", "/v1/policy-versions/{hash}", "version", "Read any version that ever was in force", _READ,
        _object({
            "name": NAME, "hash": HASH, "document": _DOCUMENT, "predecessor": _SOME_HASH, "at_ns": _TIME, "by": _PEOPLE,
            "agreed": _array(_PEOPLE, _MANY), "approvals": _array(_PEOPLE, _MAX_APPROVALS),
        }),
        200, MAX_BODY,
    ),
)  # fmt: skip


class PolicyCall(Protocol):
    """A request that was checked, as the service gets it."""

    @property
    def principal(self) -> Principal:
        """Who makes it."""

    @property
    def path(self) -> Mapping[str, str]:
        """The path's variables."""

    @property
    def body(self) -> Any:
        """Its document."""


class PolicyCalls:
    """Handlers for the server's table, named as `PolicyRoute.handler` says; to be inherited by what has the others."""

    policy_api: PolicyApi

    async def policy_create(self, call: PolicyCall) -> Members:
        return await self.policy_api.create(call.principal, call.path, call.body)

    async def policy_list(self, call: PolicyCall) -> Members:
        return await self.policy_api.list(call.principal, call.path, call.body)

    async def policy_plan(self, call: PolicyCall) -> Members:
        return await self.policy_api.plan(call.principal, call.path, call.body)

    async def policy_update(self, call: PolicyCall) -> Members:
        return await self.policy_api.update(call.principal, call.path, call.body)

    async def policy_read(self, call: PolicyCall) -> Members:
        return await self.policy_api.read(call.principal, call.path, call.body)

    async def policy_delete(self, call: PolicyCall) -> Members:
        return await self.policy_api.delete(call.principal, call.path, call.body)

    async def policy_proposals(self, call: PolicyCall) -> Members:
        return await self.policy_api.proposals(call.principal, call.path, call.body)

    async def policy_approve(self, call: PolicyCall) -> Members:
        return await self.policy_api.approve(call.principal, call.path, call.body)

    async def policy_withdraw(self, call: PolicyCall) -> Members:
        return await self.policy_api.withdraw(call.principal, call.path, call.body)

    async def policy_version(self, call: PolicyCall) -> Members:
        return await self.policy_api.version(call.principal, call.path, call.body)
