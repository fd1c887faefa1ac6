"""The policies of a CAS: created, replaced, read and deleted by whom their access policies name; proposals that wait for a board.

Documents and boards are `fspf.policy`'s business, what binds policies to each other and to volumes that of `policy_links`; secrets
and anchors are changed, in the same transaction, by whoever is handed in for that.
"""

from __future__ import annotations

import builtins
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fspf.cas import policy_records as records
from fspf.cas.policy_boards import Authority, Boards, Request
from fspf.cas.policy_links import Current, Links, VolumeAccess
from fspf.cas.policy_ports import AuditLog, CallScript, Change, Issuer, Restorer
from fspf.cas.policy_reading import PolicyReader, bounded, unknown
from fspf.cas.policy_records import Proposal, Record, Version
from fspf.cas.store import ABSENT, MAX_TRANSACTION, Compare, Put, Store
from fspf.core.errors import AccessDeniedError, CasError, ConflictError, PolicyError
from fspf.policy import access
from fspf.policy.approval import Action, Approval, Statement
from fspf.policy.model import Anyone, Member, Policy, Restore
from fspf.policy.plan import Plan, plan
from fspf.policy.principal import Principal, key_identity

log = logging.getLogger(__name__)

MAX_PENDING: Final = 16  # proposals about one policy
_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        hash: Of the version that is in force or proposed.
        pending: It waits for approvals; nothing else has changed.
        missing: Who has to agree, for people.
    """

    name: str
    hash: str
    pending: bool = False
    missing: str = ""


class Policies(PolicyReader):
    """All policies of one store. Several processes may do this on one store: every change compares.

    Args:
        store: Seals what it stores.
        clock: UTC ns since 1970.
        issuer, restorer, call_script, audit: As their types say; without an issuer no values are made, without a restorer
            nothing is restored, without call_script scripts are silent.
        may_create: Who may create policies that are below no other.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], int],
        *,
        issuer: Issuer | None = None,
        restorer: Restorer | None = None,
        call_script: CallScript | None = None,
        audit: AuditLog | None = None,
        may_create: Sequence[Member] = (Anyone(),),
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        super().__init__(store)
        self._clock = clock
        self._issuer = issuer
        self._restorer = restorer
        self._audit = audit
        self._may_create = tuple(may_create)
        self._random = random_bytes
        self._boards = Boards(clock, call_script, self._tell)
        self.links: Final = Links(store, self.find, random_bytes)

    # -- what waits, and what services may do

    async def pending(self, name: str, principal: Principal | None) -> builtins.list[tuple[Proposal, str]]:
        """Return the proposals about a policy that *principal* has a voice in or may read, and who is missing."""
        found = []
        for _, entry in await self._store.list(records.pending_prefix(name)):
            proposal = Proposal.unpack(entry.value)
            try:
                authority = await self._authority(proposal.statement)
            except CasError:
                continue  # what it is about has gone
            voices = self._boards.voices(_request_of(proposal), authority)
            asking = access.Voices(
                authority.creator, authority.name, principal.identities if principal else frozenset()
            )
            if access.is_member(authority.members, asking):
                found.append((proposal, access.explain(authority.members, voices)))
        return found

    async def plan_of(self, proposal: Proposal) -> Plan | None:
        """Say what a proposal would change, for those who have a voice in it, readers or not; None: it deletes."""
        if proposal.action is Action.DELETE:
            return None
        current = await self.find(proposal.name)
        return plan(None if current is None else current.policy, await self.parse(proposal.text))

    async def volume_access(self, principal: Principal, volume_id: bytes) -> VolumeAccess:
        """Return what a service that was attested may do with the volume whose header says *volume_id*.

        Raises:
            AccessDeniedError: Nothing.
        """
        return await self.links.volume_access(principal, volume_id)

    # -- changing

    async def create(
        self, text: bytes, principal: Principal, approvals: Iterable[Approval] = (), *, propose: bool = False
    ) -> Outcome:
        """Create a policy.

        Args:
            propose: Wait for approvals if there are not enough.

        Raises:
            PolicyError: The document is wrong, or an approval.
            AccessDeniedError: Whoever has to agree has not.
            ConflictError: There is a policy of this name.
        """
        policy = await self.parse(text)
        statement = Statement(Action.CREATE, policy.name, policy.predecessor or "", policy.hash)
        request = Request(
            statement, text, principal, bounded(approvals), propose, by=str(principal), creator=principal.identity
        )
        return await self._change(request)

    async def update(
        self,
        text: bytes,
        principal: Principal | None,
        approvals: Iterable[Approval] = (),
        *,
        propose: bool = False,
        name: str | None = None,
    ) -> Outcome:
        """Replace a policy by a version that names it as its predecessor.

        Raises:
            PolicyError, AccessDeniedError: As `create`.
            ConflictError: It was replaced by another version meanwhile.
        """
        policy = await self.parse(text)
        if name is not None and policy.name != name:
            raise PolicyError(f"the document is of policy {policy.name}, {name} is to be replaced")
        if policy.predecessor is None:
            raise PolicyError("predecessor is missing: the hash of the version that this one replaces")
        statement = Statement(Action.UPDATE, policy.name, policy.predecessor, policy.hash)
        return await self._change(Request(statement, text, principal, bounded(approvals), propose, by=str(principal)))

    async def delete(
        self,
        name: str,
        predecessor: str,
        principal: Principal | None,
        approvals: Iterable[Approval] = (),
        *,
        propose: bool = False,
    ) -> Outcome:
        """Delete the version *predecessor* of a policy, and its secrets; its history stays.

        Raises:
            AccessDeniedError: As `create`.
            ConflictError: It was replaced meanwhile, or there are policies below it.
        """
        statement = Statement(Action.DELETE, name, predecessor)
        return await self._change(Request(statement, b"", principal, bounded(approvals), propose, by=str(principal)))

    async def approve(
        self,
        name: str,
        what: str,
        approvals: Iterable[Approval],
        principal: Principal | None = None,
        *,
        in_person: bool = False,
    ) -> Outcome:
        """Add approvals (or rejections) to a proposal; with the last one that is needed, it comes into force.

        Args:
            what: Hash of the proposed version, or of the version to be deleted.
            in_person: *principal* itself agrees.

        Raises:
            PolicyError: An approval is not right.
            AccessDeniedError: None of the voices belongs to those who are asked, or there is no such proposal.
        """
        given = bounded(approvals)
        for _ in range(_TRIES):
            key, proposal, revision = await self._proposal(name, what)
            statement = proposal.statement
            authority = await self._authority(statement)
            for approval in given:
                approval.verify(statement)
            here = principal.identities if principal is not None and in_person else frozenset()
            for voice in (*(frozenset({key_identity(one.key_id)}) for one in given), *([here] if in_person else [])):
                if not access.is_member(authority.members, access.Voices(authority.creator, authority.name, voice)):
                    raise AccessDeniedError(f"{statement}: {access.named(voice)} is not among those who are asked")
            if given or in_person:
                merged = {(one.key_id, one.verdict): one for one in (*proposal.approvals, *given)}
                signed = bounded(merged.values())
                proposal = replace(proposal, approvals=signed, in_person=proposal.in_person | here)
                put = await self._store.transact([Compare(key, revision)], [Put(key, proposal.pack())])
                if put is None:
                    continue  # another approval came at the same time
                await self._tell(
                    "policy-approval", statement, keys=sorted(one.key_id for one in given), by=str(principal)
                )
            return await self._change(_request_of(proposal))
        raise _contended(name)

    async def withdraw(self, name: str, what: str, principal: Principal) -> None:
        """Take a proposal back; whoever made it may.

        Raises:
            AccessDeniedError: It is another's.
        """
        key, proposal, revision = await self._proposal(name, what)
        if proposal.by != str(principal):
            raise AccessDeniedError("a proposal is taken back by whoever made it")
        await self._store.transact([Compare(key, revision)], [Put(key, None)])

    async def _change(self, request: Request) -> Outcome:
        """Do what is asked if enough agree; else keep it as a proposal, or refuse it."""
        statement = request.statement
        for _ in range(_TRIES):
            record, revision = await self.record_of(statement.name)
            if record is not None and not record.deleted and record.hash == statement.policy:
                return Outcome(record.name, record.hash)  # repeated: it is done already
            if (
                statement.action is Action.DELETE
                and record is not None
                and record.deleted
                and record.hash == statement.predecessor
            ):
                return Outcome(record.name, record.hash)
            authority = await self._authority(statement)
            voices = self._boards.voices(request, authority)
            self._check_visible(request, authority, voices)
            old = await self._expected(statement, record, revision)
            voices = await self._boards.ask_scripts(request, authority, voices)
            if not access.is_allowed(authority.members, voices):
                missing = access.explain(authority.members, voices)
                if not request.propose:
                    raise AccessDeniedError(f"{statement}: {missing}")
                return await self._propose(request, authority, voices, missing)
            agreed = sorted(voices.agreeing - voices.against)
            compare, put, policy = await self._parts(request, authority, agreed, record, revision, old)
            put.append(Put(records.pending_key(statement), None))
            if len(compare) + len(put) > MAX_TRANSACTION:
                raise PolicyError(
                    f"this change touches {len(compare) + len(put)} things at once, {MAX_TRANSACTION} are possible: "
                    "add volumes and imports in several steps, or divide the policy"
                )
            if await self._store.transact(compare, put) is not None:
                await self._tell(f"policy-{statement.action}", statement, agreed=agreed, by=request.by)
                if policy is not None:
                    for restored in self._restores(policy, old):
                        await self._tell(
                            "volume-restore", statement, volume=restored.volume, tag=restored.tag.hex(),
                            generation=restored.generation, epoch=restored.epoch, reason=restored.reason,
                        )  # fmt: skip
                return Outcome(statement.name, statement.policy or statement.predecessor)
        raise _contended(statement.name)

    def _check_visible(self, request: Request, authority: Authority, voices: access.Voices) -> None:
        """Tell nothing about a policy, not even that it exists, to those who have no voice in it and may not read it.

        Raises:
            AccessDeniedError: As if there were none.
        """
        name = authority.name
        if authority.current is None or (request.statement.action is Action.CREATE and name == request.statement.name):
            return  # at the top, everybody may find out which names are taken
        members = authority.members
        if (
            access.is_member(members, voices)
            or access.is_allowed(members, voices)
            or access.scripts_to_call(members, voices)
        ):
            return
        statement = Statement(Action.READ, name, authority.current.policy.hash)
        reading = self.voices_about(statement, (), request.principal, authority.current)
        if not access.is_allowed(authority.current.policy.access_policy.read, reading):
            raise (
                unknown(name)
                if request.statement.action is not Action.CREATE
                else _nowhere(request.statement.name, name)
            )

    async def _expected(self, statement: Statement, record: Record | None, revision: int) -> Policy | None:
        """Return the version that is to be replaced.

        Raises:
            ConflictError: What is there is not what the request was made for.
        """
        name, there = statement.name, record is not None and not record.deleted
        if statement.action is Action.CREATE:
            if there:
                raise ConflictError(f"there is a policy {name} already: update it, naming its hash as predecessor")
            if statement.predecessor and (record is None or record.hash != statement.predecessor):
                raise ConflictError(
                    f"a new policy has no predecessor; {statement.predecessor[:12]} is not the last of a deleted one"
                )
            if await self._store.get(records.history_key(statement.policy)) is not None:
                last = "" if record is None else f" (predecessor: {record.hash})"
                raise ConflictError(
                    f"this very version of {name} was deleted: to have it again, name the last one as predecessor{last}"
                )
            return None
        if record is None or record.deleted:
            raise unknown(name)
        if record.hash != statement.predecessor:
            raise ConflictError(
                f"policy {name} was replaced meanwhile: {statement.predecessor[:12]} is expected, {record.hash[:12]} is there; read it again"
            )
        if statement.action is Action.DELETE and record.children:
            raise ConflictError(f"{record.children} policies are below {name}: delete them first")
        return await self.version_of(record.hash)

    async def _authority(self, statement: Statement) -> Authority:
        """Return who has to agree."""
        if statement.action is Action.CREATE:
            above, slash, _ = statement.name.rpartition("/")
            if not slash:
                return await self._top_authority(statement.name)
            parent = await self.find(above)
            if parent is None:
                raise _nowhere(statement.name, above)
            return Authority(parent.policy.access_policy.create_sessions, parent.record.creator, parent)
        current = await self.find(statement.name)
        if current is None:
            raise unknown(statement.name)
        return Authority(current.policy.access_policy.update, current.record.creator, current)

    async def _top_authority(self, name: str) -> Authority:
        """Return who may create a policy that is below no other.

        Others may trust a name (exports, services on boards): after a deletion it stays with those who could replace the policy.
        """
        record, revision = await self.record_of(name)
        if record is None:
            return Authority(self._may_create, "", None)
        last = Current(await self.version_of(record.hash), record, revision)
        return Authority(last.policy.access_policy.update, record.creator, last)

    async def _parts(
        self,
        request: Request,
        authority: Authority,
        agreed: Sequence[str],
        record: Record | None,
        revision: int,
        old: Policy | None,
    ) -> tuple[builtins.list[Compare], builtins.list[Put], Policy | None]:
        """Return everything that must hold and everything that changes."""
        statement, now_ns = request.statement, self._clock()
        compare = [Compare(records.policy_key(statement.name), revision)]
        put: builtins.list[Put] = []
        policy = None if statement.action is Action.DELETE else await self.parse(request.text)
        if statement.action is not Action.UPDATE:
            _add(compare, put, await self._count_child(statement, authority))
        if policy is None:
            assert record is not None
            assert old is not None
            gone = replace(record, deleted=True, volumes={}, updated_ns=now_ns)
            put.append(Put(compare[0].key, gone.pack()))
            put += [Put(records.belonging_key(volume_id), None) for volume_id in record.volumes.values()]
            if self._issuer is not None:
                _add(compare, put, await self._issuer.forget(old))
            return compare, put, None
        if statement.action is Action.CREATE:
            new = Record(policy.name, policy.hash, request.creator, self._random(16), now_ns, now_ns)
        else:
            assert record is not None
            new = replace(record, hash=policy.hash, updated_ns=now_ns)
        _add(compare, put, (await self.links.check_imports(policy), ()))
        volumes, more = await self.links.volumes_of(policy, new)
        _add(compare, put, more)
        new = replace(new, volumes=volumes)
        version = Version(
            policy.name, request.text, statement.predecessor, now_ns, request.by, tuple(agreed),
            tuple(records.approval_json(one) for one in request.approvals),
        )  # fmt: skip
        compare.append(Compare(records.history_key(policy.hash), ABSENT))
        put += [Put(compare[0].key, new.pack()), Put(records.history_key(policy.hash), version.pack())]
        if self._issuer is not None:
            _add(compare, put, await self._issuer.issue(policy, old, await self.links.imported_secrets(policy)))
        for restored in self._restores(policy, old):
            if self._restorer is None:
                raise PolicyError("this CAS restores nothing", line=restored.place.line, column=restored.place.column)
            volume_id = await self.links.restored_volume(policy, new, restored)
            _add(compare, put, await self._restorer.restore(volume_id, restored))
        return compare, put, policy

    async def _count_child(self, statement: Statement, authority: Authority) -> Change:
        """Keep the number of policies below the one above: a policy with others below it cannot go meanwhile.

        What was asked whether this may be created below it must still be so: the revision is the one that was seen then.
        """
        above, slash, _ = statement.name.rpartition("/")
        if not slash:
            return (), ()
        if statement.action is Action.CREATE:
            assert authority.current is not None
            record: Record | None = authority.current.record
            revision, step = authority.current.revision, 1
        else:
            record, revision = await self.record_of(above)
            step = -1
        if record is None:
            raise CasError(f"the store has policy {statement.name} but not {above}: it is damaged")
        key = records.policy_key(above)
        return [Compare(key, revision)], [Put(key, replace(record, children=record.children + step).pack())]

    @staticmethod
    def _restores(policy: Policy, old: Policy | None) -> builtins.list[Restore]:
        """Return the restore statements that are new: those of the version before have taken effect."""
        return [one for one in policy.restore if old is None or one not in old.restore]

    # -- proposals

    async def _propose(self, request: Request, authority: Authority, voices: access.Voices, missing: str) -> Outcome:
        """Keep a change until enough agree; one of those who have a voice must want it."""
        statement = request.statement
        outcome = Outcome(statement.name, statement.policy or statement.predecessor, pending=True, missing=missing)
        if request.since_ns is not None:
            return outcome  # it is kept already
        if not access.is_member(authority.members, voices):
            raise AccessDeniedError(f"{statement}: only those who have a voice may propose; {missing}")
        here = request.principal.identities if request.principal is not None else frozenset()
        if statement.policy:  # what cannot come into force is not kept
            await self.links.check_imports(await self.parse(request.text))
        proposal = Proposal(
            statement.action, statement.name, statement.predecessor, statement.policy, request.text, request.by,
            request.creator, here, request.approvals, self._clock(),
        )  # fmt: skip
        key = records.pending_key(statement)
        others = await self._store.list(records.pending_prefix(statement.name))
        if any(there == key for there, _ in others):
            if not request.approvals:
                return outcome
            return await self.approve(statement.name, statement.policy or statement.predecessor, request.approvals)
        stale = [there for there, entry in others if Proposal.unpack(entry.value).predecessor != statement.predecessor]
        if len(others) - len(stale) >= MAX_PENDING:
            raise ConflictError(
                f"{MAX_PENDING} proposals about {statement.name} wait already: have one decided or taken back"
            )
        put = [Put(key, proposal.pack()), *(Put(there, None) for there in stale)]
        if await self._store.transact([Compare(key, ABSENT)], put) is None:
            return outcome  # somebody proposed the very same at the same time
        await self._tell("policy-proposal", statement, by=request.by)
        return outcome

    async def _proposal(self, name: str, what: str) -> tuple[str, Proposal, int]:
        for key, entry in await self._store.list(records.pending_prefix(name)):
            proposal = Proposal.unpack(entry.value)
            if what == (proposal.policy or proposal.predecessor):
                return key, proposal, entry.revision
        raise AccessDeniedError(f"there is no proposal {what[:12]} about {name}: it was decided, or taken back")

    async def _tell(self, kind: str, statement: Statement, **fields: Any) -> None:
        log.info("%s: %s", kind, statement)
        if self._audit is not None:
            await self._audit.append(kind, **statement.members(), **fields)


def _add(compare: builtins.list[Compare], put: builtins.list[Put], change: Change) -> None:
    known = {one.key for one in compare}
    compare.extend(one for one in change[0] if one.key not in known)
    put.extend(change[1])


def _request_of(proposal: Proposal) -> Request:
    """Return the request that a proposal is by now."""
    return Request(
        proposal.statement,
        proposal.text,
        None,
        proposal.approvals,
        propose=True,
        in_person=proposal.in_person,
        since_ns=proposal.since_ns,
        by=proposal.by,
        creator=proposal.creator,
    )


def _nowhere(name: str, above: str) -> AccessDeniedError:
    """Say the same whether there is no policy above or it is not to be known."""
    return AccessDeniedError(
        f"{name} would be below {above}: there is no such policy, or this client may create none below it"
    )


def _contended(name: str) -> ConflictError:
    return ConflictError(f"policy {name} was changed by others all the time: nothing was done")
