"""What requests about policies say and what they get, as JSON members; `policy_routes` has the paths and shapes.

HTTP, tokens and problem documents are the server's business; decisions are made in `policies`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fspf.cas.policies import Outcome, Policies
from fspf.cas.policy_records import Proposal
from fspf.core.errors import PolicyError
from fspf.policy.approval import Approval, read_approval
from fspf.policy.principal import Principal
from fspf.policy.tree import MAX_LEN

Members = dict[str, Any]
_MAX_APPROVALS: Final = 128


class PolicyApi:
    """Answers requests about policies."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    async def create(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Create a policy, or propose it."""
        text, approvals = _text(body), _approvals(body)
        return _outcome(await self._policies.create(text, principal, approvals, propose=_flag(body, "propose")))

    async def update(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Replace a policy, or propose it."""
        text, approvals = _text(body), _approvals(body)
        return _outcome(
            await self._policies.update(text, principal, approvals, propose=_flag(body, "propose"), name=path["name"])
        )

    async def read(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Return the version in force."""
        text, policy_hash = await self._policies.read(path["name"], principal, _approvals(body))
        return {"name": path["name"], "hash": policy_hash, "document": text.decode("utf-8")}

    async def version(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Return any version that ever was in force."""
        version = await self._policies.history(path["hash"], principal, _approvals(body))
        return {
            "name": version.name,
            "hash": path["hash"],
            "document": version.text.decode("utf-8"),
            "predecessor": version.predecessor,
            "at_ns": version.at_ns,
            "by": version.by,
            "agreed": list(version.agreed),
            "approvals": [one.decode("ascii") for one in version.approvals],
        }

    async def delete(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Delete a policy, or propose that."""
        outcome = await self._policies.delete(
            path["name"], _word(body, "predecessor"), principal, _approvals(body), propose=_flag(body, "propose")
        )
        return _outcome(outcome)

    async def list(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Name the policies that may be read."""
        found = await self._policies.list(_word(body, "prefix"), principal)
        return {
            "policies": [
                {"name": one.policy.name, "hash": one.policy.hash, "updated_ns": one.record.updated_ns} for one in found
            ]
        }

    async def plan(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Say what a document would change."""
        found = await self._policies.plan(_text(body), principal)
        return {**found.members(), "text": found.text}

    async def proposals(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Return what waits for approvals."""
        found = await self._policies.pending(path["name"], principal)
        shown = []
        for proposal, missing in found:
            plan = await self._policies.plan_of(proposal)
            shown.append({**_proposal(proposal, missing), "plan": "" if plan is None else plan.text})
        return {"proposals": shown}

    async def approve(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Add approvals or rejections to a proposal."""
        outcome = await self._policies.approve(
            path["name"], _word(body, "proposal"), _approvals(body), principal, in_person=_flag(body, "in_person")
        )
        return _outcome(outcome)

    async def withdraw(self, principal: Principal, path: Mapping[str, str], body: Members) -> Members:
        """Take a proposal back."""
        await self._policies.withdraw(path["name"], _word(body, "proposal"), principal)
        return {}


def _outcome(outcome: Outcome) -> Members:
    return {"name": outcome.name, "hash": outcome.hash, "pending": outcome.pending, "missing": outcome.missing}


def _proposal(proposal: Proposal, missing: str) -> Members:
    return {
        "statement": proposal.statement.members(),
        "document": proposal.text.decode("utf-8"),
        "by": proposal.by,
        "since_ns": proposal.since_ns,
        "missing": missing,
        "approvals": [one.members() for one in proposal.approvals],
    }


def _text(body: Members) -> bytes:
    text = body.get("document")
    if not isinstance(text, str):
        raise PolicyError("document is the policy's text")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        raise PolicyError("document is no text that UTF-8 can write") from None
    if len(encoded) > MAX_LEN:
        raise PolicyError(f"a policy has at most {MAX_LEN} bytes, this one has {len(encoded)}")
    return encoded


def _approvals(body: Members) -> tuple[Approval, ...]:
    found = body.get("approvals", [])
    if not isinstance(found, list) or len(found) > _MAX_APPROVALS:
        raise PolicyError(f"approvals are a list of at most {_MAX_APPROVALS}")
    return tuple(read_approval(one) for one in found)


def _word(body: Members, key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str) or len(value) > 300:
        raise PolicyError(f"{key} is a text")
    return value


def _flag(body: Members, key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise PolicyError(f"{key} is true or false")
    return value
