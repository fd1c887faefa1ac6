"""What the engine of policies is handed in: who makes secrets, restores volumes, calls scripts and writes the audit log.

What it does with them is in `policies`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from fspf.cas.store import Compare, Put
from fspf.policy.model import Policy, Restore, Script, Secret

Change = tuple[Sequence[Compare], Sequence[Put]]
"""What must hold, and what is to be put in the same transaction as the policy."""

CallScript = Callable[[Script, Mapping[str, Any]], Awaitable[bytes]]
"""Calls a script with a JSON document and returns the body of its answer; any `FspfError` counts as silence."""


class Issuer(Protocol):
    """Makes the values of a policy's secrets; the values are changed together with the policy."""

    async def issue(self, policy: Policy, old: Policy | None, imported: Mapping[str, tuple[Policy, Secret]]) -> Change:
        """Return what must hold and what is to be put for *policy* to replace *old*.

        Args:
            imported: Whose secrets it imports, by its own names for them; their exporters agree.
        """

    async def forget(self, policy: Policy) -> Change:
        """Return what is to be put when *policy* is deleted."""


class Restorer(Protocol):
    """Makes an older state of a volume its newest."""

    async def restore(self, volume_id: bytes, statement: Restore) -> Change:
        """Return what must hold and what is to be put.

        Raises:
            CasError: The volume is open for writing, or the statement's epoch is not the next one.
        """


class AuditLog(Protocol):
    """Where decisions are written down."""

    async def append(self, kind: str, **fields: Any) -> Any:
        """Add a line."""
