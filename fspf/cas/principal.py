"""Who makes a request, as the request's token proved it.

What principals may do is decided where they ask: `volumes` for volumes, `policies` for policies.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fspf.core.errors import AccessDeniedError


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of keys, or a service that was attested under a policy, or both.

    Attributes:
        keys: Key ids (hex SHA-256 of the public key) that signed the challenge.
        policy, service: Under which policy it was attested, "" if under none.
    """

    keys: frozenset[str] = field(default_factory=frozenset)
    policy: str = ""
    service: str = ""

    @property
    def owner(self) -> str:
        """Return as whom it owns what it makes: its policy, else its key.

        Raises:
            AccessDeniedError: It has neither, or several keys.
        """
        if self.policy:
            return f"policy:{self.policy}"
        if len(self.keys) != 1:
            raise AccessDeniedError(f"a volume belongs to a policy or to one key, and this token has {len(self.keys)}")
        return f"key:{next(iter(self.keys))}"

    def is_owner(self, owner: str) -> bool:
        """Tell whether what *owner* names is this one's."""
        kind, _, name = owner.partition(":")
        return name in self.keys if kind == "key" else bool(self.policy) and name == self.policy

    def __str__(self) -> str:
        """Name it for messages and logs."""
        who = [f"{self.policy}/{self.service}"] if self.policy else []
        return ", ".join([*who, *(f"key {key[:16]}" for key in sorted(self.keys))]) or "nobody"
