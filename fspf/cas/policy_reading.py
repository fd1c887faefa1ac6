"""The policies of a store as they are read: the version in force, history, plans, for those who may.

Changing them is left to `policies`.
"""

from __future__ import annotations

import asyncio
import builtins
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from fspf.cas import policy_records as records
from fspf.cas.policy_links import Current
from fspf.cas.policy_records import Record, Version
from fspf.cas.store import ABSENT, Store
from fspf.core.errors import AccessDeniedError, CasError, PolicyError
from fspf.policy import access
from fspf.policy.approval import Action, Approval, Statement
from fspf.policy.document import parse_policy
from fspf.policy.model import Policy
from fspf.policy.plan import Plan, plan
from fspf.policy.principal import Principal

MAX_APPROVALS: Final = 128  # of one change
_MAX_PARSED: Final = 512  # policies
_SHORT: Final = 16 << 10  # bytes of a document
_HASH_LEN: Final = 64


class PolicyReader:
    """Reads. Versions never change, so what was parsed stays; which one is in force is asked of the store each time.

    Args:
        store: Seals what it stores.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parsed: OrderedDict[str, Policy] = OrderedDict()

    # -- for whoever asks

    async def find(self, name: str) -> Current | None:
        """Return the version in force, for the CAS itself: no access policy is asked. None: there is none."""
        record, revision = await self.record_of(name)
        if record is None or record.deleted:
            return None
        return Current(await self.version_of(record.hash), record, revision)

    async def read(
        self, name: str, principal: Principal | None, approvals: Iterable[Approval] = ()
    ) -> tuple[bytes, str]:
        """Return text and hash of the version in force.

        Raises:
            AccessDeniedError: The access policy does not let *principal* read it, or there is no such policy.
        """
        current = await self.find(name)
        if current is None:
            raise unknown(name)
        self.check_read(current, principal, approvals)
        return (await self.stored_version(current.policy.hash)).text, current.policy.hash

    async def history(
        self, policy_hash: str, principal: Principal | None, approvals: Iterable[Approval] = ()
    ) -> Version:
        """Return any version that ever was in force, as the newest version of its policy lets *principal* read it.

        Raises:
            AccessDeniedError: It does not, or there is no such version.
        """
        if len(policy_hash) != _HASH_LEN or not set(policy_hash) <= set("0123456789abcdef"):
            raise PolicyError("a version is named by its hash, 64 hex digits in lower case")
        entry = await self._store.get(records.history_key(policy_hash))
        if entry is None:
            raise AccessDeniedError(f"there is no version {policy_hash[:12]}, or this client may not read it")
        version = Version.unpack(entry.value)
        record, revision = await self.record_of(version.name)
        if record is None:
            raise CasError(f"the store has a version of policy {version.name} but not the policy: it is damaged")
        newest = Current(await self.version_of(record.hash), record, revision)
        self.check_read(newest, principal, approvals)
        return version

    async def list(self, prefix: str, principal: Principal | None) -> builtins.list[Current]:
        """Return all policies whose name begins with *prefix* and that *principal* may read, by name."""
        found = []
        for _, entry in await self._store.list(records.POLICIES):
            record = Record.unpack(entry.value)
            if record.deleted or not record.name.startswith(prefix):
                continue
            current = Current(await self.version_of(record.hash), record, entry.revision)
            voices = self.voices_about(Statement(Action.READ, record.name, record.hash), (), principal, current)
            if access.is_allowed(current.policy.access_policy.read, voices):
                found.append(current)
        return sorted(found, key=lambda current: current.policy.name)

    async def plan(self, text: bytes, principal: Principal | None) -> Plan:
        """Say what a document would change, to those who may read what is there.

        Raises:
            PolicyError: The document is wrong.
            AccessDeniedError: There is a policy of this name, and *principal* may not read it.
        """
        policy = await self.parse(text)
        current = await self.find(policy.name)
        if current is not None:
            self.check_read(current, principal, ())
        return plan(None if current is None else current.policy, policy)

    def check_read(self, current: Current, principal: Principal | None, approvals: Iterable[Approval]) -> None:
        policy = current.policy
        statement = Statement(Action.READ, policy.name, policy.hash)
        voices = self.voices_about(statement, bounded(approvals), principal, current)
        if not access.is_allowed(policy.access_policy.read, voices):
            asked = access.is_member(policy.access_policy.read, voices)
            raise unknown(policy.name, access.explain(policy.access_policy.read, voices) if asked else "")

    # -- for the engine

    def voices_about(
        self, statement: Statement, approvals: Iterable[Approval], principal: Principal | None, current: Current
    ) -> access.Voices:
        creator, name = current.record.creator, current.policy.name
        return access.voices_of(statement, approvals, principal, creator=creator, policy=name)

    async def record_of(self, name: str) -> tuple[Record | None, int]:
        entry = await self._store.get(records.policy_key(name))
        return (None, ABSENT) if entry is None else (Record.unpack(entry.value), entry.revision)

    async def stored_version(self, policy_hash: str) -> Version:
        entry = await self._store.get(records.history_key(policy_hash))
        if entry is None:
            raise CasError(f"the store lacks version {policy_hash[:12]} of a policy: restore it from a backup")
        return Version.unpack(entry.value)

    async def version_of(self, policy_hash: str) -> Policy:
        """Return a stored version; versions never change, so what was parsed stays."""
        policy = self._parsed.get(policy_hash)
        if policy is None:
            policy = await self.parse((await self.stored_version(policy_hash)).text)
            if policy.hash != policy_hash:
                raise CasError(f"the store has another text for version {policy_hash[:12]}: it was altered")
        self._parsed[policy_hash] = policy
        self._parsed.move_to_end(policy_hash)
        if len(self._parsed) > _MAX_PARSED:
            self._parsed.popitem(last=False)
        return policy

    @staticmethod
    async def parse(text: bytes) -> Policy:
        """Read a document; a large one beside the event loop, so that others are served meanwhile."""
        return parse_policy(text) if len(text) <= _SHORT else await asyncio.to_thread(parse_policy, text)


def bounded(approvals: Iterable[Approval]) -> tuple[Approval, ...]:
    found = tuple(approvals)
    if len(found) > MAX_APPROVALS:
        raise PolicyError(f"a change has at most {MAX_APPROVALS} approvals")
    return found


def unknown(name: str, why: str = "") -> AccessDeniedError:
    """Say the same whether there is no such policy or it is not to be read."""
    return AccessDeniedError(f"there is no policy {name}, or this client may not read it" + (f": {why}" if why else ""))
