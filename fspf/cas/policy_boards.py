"""Collects the voices for and against a change: signatures, those who ask in person, and scripts that are called.

Whether they are enough is decided in `fspf.policy.access`; what happens then, in `policies`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fspf.cas.policy_links import Current
from fspf.cas.policy_ports import CallScript
from fspf.core.errors import FspfError
from fspf.policy import access
from fspf.policy.approval import Approval, Statement, Verdict, read_answer
from fspf.policy.model import Member, Script
from fspf.policy.principal import Principal

log = logging.getLogger(__name__)

SECOND: Final = 1_000_000_000  # ns

Tell = Callable[..., Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """A change that somebody wants."""

    statement: Statement
    text: bytes
    principal: Principal | None
    approvals: tuple[Approval, ...]
    propose: bool = False
    in_person: frozenset[str] = field(default_factory=frozenset)
    since_ns: int | None = None
    by: str = ""
    creator: str = ""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who has to agree.

    Attributes:
        creator: Whom CREATOR means.
        current: The policy that says so: the one in question, or the one above it; None: the CAS itself says so.
    """

    members: Sequence[Member]
    creator: str
    current: Current | None

    @property
    def name(self) -> str:
        """Name of that policy, "" for the CAS itself."""
        return "" if self.current is None else self.current.policy.name


class Boards:
    """Asks everybody.

    Args:
        call_script: None: scripts are silent.
        tell: Writes a line into the audit log.
    """

    def __init__(self, clock: Callable[[], int], call_script: CallScript | None, tell: Tell) -> None:
        self._clock = clock
        self._call_script = call_script
        self._tell = tell

    def voices(self, request: Request, authority: Authority) -> access.Voices:
        """Verify what is signed, and count those who asked in person.

        Raises:
            PolicyError: An approval is not right.
        """
        waited_s = 0 if request.since_ns is None else max(self._clock() - request.since_ns, 0) // SECOND
        voices = access.voices_of(
            request.statement,
            request.approvals,
            request.principal,
            creator=authority.creator,
            policy=authority.name,
            waited_s=waited_s,
        )
        return replace(voices, agreeing=voices.agreeing | request.in_person)

    async def ask_scripts(self, request: Request, authority: Authority, voices: access.Voices) -> access.Voices:
        """Call the scripts whose answers decide, all at once; a silent one agrees to nothing."""
        statement = request.statement
        scripts = access.scripts_to_call(authority.members, voices)
        if not scripts or self._call_script is None:
            return voices
        document = {"statement": statement.members(), "document": request.text.decode("utf-8")}
        answers = await asyncio.gather(*(self._ask(script, statement, document) for script in scripts))
        agreeing, against = set(voices.agreeing), set(voices.against)
        for script, verdict in zip(scripts, answers, strict=True):
            if verdict is not None:
                (agreeing if verdict is Verdict.APPROVE else against).add(access.script_identity(script))
        return replace(voices, agreeing=frozenset(agreeing), against=frozenset(against))

    async def _ask(self, script: Script, statement: Statement, document: Mapping[str, Any]) -> Verdict | None:
        assert self._call_script is not None
        try:
            body = await self._call_script(script, document)
            verdict, reason = read_answer(body, statement, None if script.signer is None else script.signer.key_id)
        except FspfError as exc:
            log.warning("script %s did not answer about %s: %s", script.url, statement, exc)
            return None
        await self._tell("policy-script", statement, script=script.url, verdict=str(verdict), reason=reason)
        return verdict
