"""Who makes a request, as the request's token proved it.

What principals may do is decided where they ask: `access` for policies, `fspf.cas.volumes` for volumes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fspf.core.errors import AccessDeniedError


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of keys, or a service that was attested under a policy, or both.

    Attributes:
        keys: Key ids (hex SHA-256 of the DER SubjectPublicKeyInfo) that signed the challenge.
        policy, service: Under which policy it was attested, "" if under none.
        instance: Which instance of the service it says it is.
    """

    keys: frozenset[str] = field(default_factory=frozenset)
    policy: str = ""
    service: str = ""
    instance: str = ""

    @property
    def identities(self) -> frozenset[str]:
        """Everything that it is, as access policies count it."""
        ours = {key_identity(key) for key in self.keys}
        return frozenset(ours | {service_identity(self.policy, self.service)} if self.policy else ours)

    @property
    def identity(self) -> str:
        """Return as whom it creates a policy.

        Raises:
            AccessDeniedError: It is nobody, or several.
        """
        if self.policy:
            return service_identity(self.policy, self.service)
        if len(self.keys) != 1:
            raise AccessDeniedError(
                f"a policy has one creator: an attested service or one key, and this token has {len(self.keys)} keys"
            )
        return key_identity(next(iter(self.keys)))

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


def key_identity(key_id: str) -> str:
    """Name the holder of a key."""
    return f"key:{key_id}"


def service_identity(policy: str, service: str) -> str:
    """Name a service that was attested under a policy."""
    return f"service:{policy}#{service}"
