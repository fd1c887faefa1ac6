"""Decides whether those who agree to something are enough for an access policy, and says who is missing.

Collecting their signatures and calling scripts is left to `fspf.cas.policies`; what is signed is said in `approval`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fspf.core.errors import AccessDeniedError
from fspf.policy.approval import Approval, Statement, Verdict
from fspf.policy.model import Anyone, AttestedService, Board, Creator, Member, Nobody, Script, Signer
from fspf.policy.principal import Principal, key_identity, service_identity

__all__ = [
    "Principal",
    "Voices",
    "check",
    "explain",
    "is_allowed",
    "is_member",
    "named",
    "scripts_to_call",
    "voices_of",
]


@dataclass(frozen=True, slots=True)
class Voices:
    """Who is for something and who is against it. A voice against outweighs one for it by the same identity.

    Attributes:
        creator: Identity of whoever created the policy.
        policy: Name of the policy that asks: services without a session are its own.
        waited_s: For how long it could be rejected.
    """

    creator: str
    policy: str
    agreeing: frozenset[str] = field(default_factory=frozenset)
    against: frozenset[str] = field(default_factory=frozenset)
    waited_s: int = 0

    def says_yes(self, identity: str) -> bool:
        """Tell whether this one agrees."""
        return identity in self.agreeing and identity not in self.against


def voices_of(
    statement: Statement,
    approvals: Iterable[Approval],
    principal: Principal | None,
    *,
    creator: str,
    policy: str,
    waited_s: int = 0,
) -> Voices:
    """Verify all *approvals* of *statement*; whoever asks in person agrees, too.

    Raises:
        PolicyError: One of them is not right.
    """
    agreeing = set(principal.identities) if principal is not None else set()
    against: set[str] = set()
    for approval in approvals:
        identity = key_identity(approval.verify(statement))
        (agreeing if approval.verdict is Verdict.APPROVE else against).add(identity)
    return Voices(creator, policy, frozenset(agreeing), frozenset(against), waited_s)


def check(what: str, members: Sequence[Member], voices: Voices) -> None:
    """Refuse what is not allowed.

    Raises:
        AccessDeniedError: Saying who is missing.
    """
    if not is_allowed(members, voices):
        raise AccessDeniedError(f"{what}: {explain(members, voices)}")


def is_allowed(members: Sequence[Member], voices: Voices) -> bool:
    """Tell whether any one of *members* agrees."""
    return any(_agrees(member, voices) for member in members)


def is_member(members: Sequence[Member], voices: Voices) -> bool:
    """Tell whether any voice is one that is asked for."""
    asked = {_identity(leaf, voices) for leaf in _leaves(members)}
    return bool(asked & voices.agreeing) or any(isinstance(leaf, Anyone) for leaf in _leaves(members))


def scripts_to_call(members: Sequence[Member], voices: Voices) -> tuple[Script, ...]:
    """Return the scripts whose answers would be enough; none if they would not, or are not needed."""
    if is_allowed(members, voices):
        return ()
    silent = {
        leaf: None
        for leaf in _leaves(members)
        if isinstance(leaf, Script) and _identity(leaf, voices) not in voices.agreeing | voices.against
    }
    all_yes = replace(voices, agreeing=voices.agreeing | {_identity(script, voices) for script in silent})
    return tuple(silent) if is_allowed(members, all_yes) else ()


def script_identity(script: Script) -> str:
    """Name a script as one that agrees: by the key that signs for it, so that its key counts once."""
    return f"script:{script.url}" if script.signer is None else key_identity(script.signer.key_id)


def explain(members: Sequence[Member], voices: Voices) -> str:
    """Say who would have to agree."""
    if any(isinstance(member, Nobody) for member in members):
        return "nobody may (NONE)"
    return " or ".join(_missing(member, voices) for member in members)


def named(identities: Iterable[str]) -> str:
    """Name identities for people."""
    return ", ".join(sorted(_short(identity) for identity in identities)) or "nobody"


# -- one member


def _agrees(member: Member, voices: Voices) -> bool:
    if isinstance(member, Board):
        return _count(member, voices) >= member.need and not any(_objections(member, voices))
    if isinstance(member, Anyone):
        return True
    return not isinstance(member, Nobody) and voices.says_yes(_identity(member, voices))


def _count(board: Board, voices: Voices) -> int:
    """Count those who agree, each once, however many members he is."""
    persons = set()
    boards = 0
    for member in board.members:
        if _agrees(member, voices):
            if isinstance(member, Board):
                boards += 1
            else:
                persons.add(_identity(member, voices))
    return len(persons) + boards


def _objections(board: Board, voices: Voices) -> Iterator[str]:
    """Yield why the board's vetoes stop it."""
    for member in board.veto:
        identity = _identity(member, voices)
        if identity in voices.against:
            yield f"{_name(member, voices)} has vetoed it"
        elif not voices.says_yes(identity):
            if board.veto_within_s is None:
                yield f"{_name(member, voices)}, who has a veto, has not agreed"
            elif voices.waited_s < board.veto_within_s:
                left = board.veto_within_s - voices.waited_s
                yield f"{_name(member, voices)} may still veto it for {left} s"


def _identity(member: Member, voices: Voices) -> str:
    match member:
        case Creator():
            return voices.creator
        case Signer():
            return key_identity(member.key_id)
        case AttestedService():
            return service_identity(member.session or voices.policy, member.service)
        case Script():
            return script_identity(member)
        case _:
            return ""


def _leaves(members: Iterable[Member]) -> Iterator[Member]:
    for member in members:
        if isinstance(member, Board):
            yield from _leaves((*member.members, *member.veto))
        else:
            yield member


# -- how it is said


def _missing(member: Member, voices: Voices) -> str:
    if not isinstance(member, Board):
        return f"{_name(member, voices)} has to agree"
    problems = list(_objections(member, voices))
    count = _count(member, voices)
    if count < member.need:
        missing = [
            f"({_missing(one, voices)})" if isinstance(one, Board) else _name(one, voices)
            for one in member.members
            if not _agrees(one, voices)
        ]
        shown = ", ".join(missing[:10]) + (" …" if len(missing) > 10 else "")
        problems.insert(0, f"{member.need} of {len(member.members)} have to agree, {count} did; missing: {shown}")
    return "; ".join(problems)


def _name(member: Member, voices: Voices) -> str:
    match member:
        case Creator():
            return f"the creator ({_short(voices.creator)})"
        case Signer():
            return f"key {member.key_id[:16]}"
        case AttestedService():
            return f"service {member.service} of {member.session or voices.policy}"
        case Script():
            return f"script {member.url}"
        case Nobody():
            return "nobody"
        case _:
            return "anyone"


def _short(identity: str) -> str:
    kind, _, name = identity.partition(":")
    return f"key {name[:16]}" if kind == "key" else name
