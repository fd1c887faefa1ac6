"""Issues the secrets of policies, for the engine of policies; collects what a service's configuration needs.

How values are made is left to `fspf.cas.values`, who may import from whom to `fspf.cas.policy_links`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Protocol

from fspf.cas import secret_store, values
from fspf.cas.configuration import secrets_needed
from fspf.core.errors import CasError, ConflictError, PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from fspf.cas.policy_ports import Change
    from fspf.cas.store import Store
    from fspf.policy.model import Policy, Secret, VaultSource
    from fspf.policy.values import SecretValue


class Source(Protocol):
    """Where values are that other systems keep."""

    async def fetch(self, policy_name: str, source: VaultSource) -> SecretValue:
        """Return one value, if this policy may have it."""


class SecretIssuer:
    """Implements `fspf.cas.policy_ports.Issuer` over a store."""

    def __init__(
        self,
        store: Store,
        vault: Source | None = None,
        *,
        clock: Callable[[], int] = time.time_ns,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Take the store whose values are sealed, and what asks a Vault; None: policies with one get an error."""
        self._store = store
        self._vault = vault
        self._clock = clock
        self._random_bytes = random_bytes

    async def issue(self, policy: Policy, old: Policy | None, imported: Mapping[str, tuple[Policy, Secret]]) -> Change:
        """Return what must hold and what is to be put for *policy* to replace *old*.

        Raises:
            PolicyError: A value cannot be made.
        """
        if self._vault is None:
            for secret in policy.secrets:
                if secret.vault is not None:
                    place = secret.place
                    message = f"secret {secret.name}: this CAS has no Vault"
                    raise PolicyError(message, line=place.line, column=place.column)
        stored = await secret_store.load(self._store, policy.name)
        made = values.generate(
            policy,
            old,
            stored.values if old is not None else {},
            await self._imports(imported, _referred(policy)),
            now_ns=self._clock(),
            random_bytes=self._random_bytes,
        )
        return self._change(policy, made, stored.revision)

    async def forget(self, policy: Policy) -> Change:
        """Return what is to be put when *policy* is deleted."""
        stored = await secret_store.load(self._store, policy.name)
        return self._change(policy, {}, stored.revision)

    async def rotate(
        self,
        policy: Policy,
        names: Collection[str],
        imported: Mapping[str, tuple[Policy, Secret]],
        *,
        overlap: bool = False,
    ) -> list[str]:
        """Give the named secrets new values, and what depends on them; return the names of all that changed.

        The caller has asked whether that is allowed, and writes `secrets-rotated` into the audit log.

        Raises:
            PolicyError: As `fspf.cas.values.rotate` says.
            ConflictError: The policy was changed meanwhile.
        """
        stored = await secret_store.load(self._store, policy.name)
        imports = await self._imports(imported, _referred(policy))
        made, changed = values.rotate(
            policy,
            stored.values,
            names,
            imports,
            now_ns=self._clock(),
            random_bytes=self._random_bytes,
            overlap=overlap,
        )
        await self._put(policy, made, stored.revision)
        return changed

    async def renew(self, policy: Policy, imported: Mapping[str, tuple[Policy, Secret]]) -> list[str]:
        """Issue anew the certificates whose end is near; return their names.

        Raises:
            ConflictError: The policy was changed meanwhile.
        """
        stored = await secret_store.load(self._store, policy.name)
        if not values.due(policy, stored.values, now_ns=self._clock()):
            return []
        imports = await self._imports(imported, _referred(policy))
        made, changed = values.renew(
            policy, stored.values, imports, now_ns=self._clock(), random_bytes=self._random_bytes
        )
        await self._put(policy, made, stored.revision)
        return changed

    async def values_for(
        self, policy: Policy, service_name: str, imported: Mapping[str, tuple[Policy, Secret]]
    ) -> dict[str, SecretValue]:
        """Return the values that a service's configuration has placeholders for, wherever they come from, and no others.

        Raises:
            CasError: One is missing, or the Vault gives none.
        """
        needed = secrets_needed(policy, service_name)
        stored = await secret_store.load(self._store, policy.name)
        found = {name: value for name, value in stored.values.items() if name in needed}
        found |= await self._imports(imported, needed)
        for secret in policy.secrets:
            if secret.vault is not None and secret.name in needed:
                if self._vault is None:
                    raise CasError(f"secret {secret.name} of policy {policy.name} is in a Vault, and this CAS has none")
                found[secret.name] = await self._vault.fetch(policy.name, secret.vault)
        return found

    async def _imports(
        self, imported: Mapping[str, tuple[Policy, Secret]], needed: Collection[str]
    ) -> dict[str, SecretValue]:
        found: dict[str, SecretValue] = {}
        loaded: dict[str, dict[str, SecretValue]] = {}
        for name, (exporter, secret) in imported.items():
            if name not in needed:
                continue
            if secret.vault is not None:
                if self._vault is None:
                    raise CasError(
                        f"secret {secret.name} of policy {exporter.name} is in a Vault, and this CAS has none"
                    )
                found[name] = await self._vault.fetch(exporter.name, secret.vault)
                continue
            if exporter.name not in loaded:
                loaded[exporter.name] = (await secret_store.load(self._store, exporter.name)).values
            value = loaded[exporter.name].get(secret.name)
            if value is None:
                raise CasError(f"policy {exporter.name} has no value for its secret {secret.name}")
            found[name] = value
        return found

    def _change(self, policy: Policy, made: Mapping[str, SecretValue], revision: int) -> Change:
        return [secret_store.compare(policy.name, revision)], secret_store.puts(policy.name, made)

    async def _put(self, policy: Policy, made: Mapping[str, SecretValue], revision: int) -> None:
        compare, put = self._change(policy, made, revision)
        if await self._store.transact(compare, put) is None:
            raise ConflictError(f"the secrets of policy {policy.name} were changed by somebody else meanwhile")


def _referred(policy: Policy) -> set[str]:
    """Name the secrets that others of the policy are made with."""
    return {name for secret in policy.secrets for name in (secret.private_key, secret.issuer) if name is not None}
