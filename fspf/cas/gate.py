"""The gate of a CAS server: challenges, evidence and tokens; and who makes a request.

Verifying evidence is `fspf.attestation`'s business, what a principal may do that of the services behind the gate.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fspf.attestation import Claims, Trust, match, verify
from fspf.cas.policies import Policies
from fspf.cas.proof import Holder, Nonces, load_session_key
from fspf.cas.store import ABSENT, Compare, Put, Store
from fspf.cas.tokens import (
    CHALLENGE_RANDOM_LEN,
    CHALLENGE_TTL_NS,
    TOKEN_TTL_NS,
    Token,
    Tokens,
    UnauthenticatedError,
    binding_of,
)
from fspf.core.errors import AccessDeniedError, UsageError
from fspf.core.keys import SecretKey
from fspf.policy.principal import Principal

_MAX_HOLDERS: Final = 4096
_USED_PREFIX: Final = "nonce/"
_MINUTE_NS: Final = 60_000_000_000
_PURGE_AT_ONCE: Final = 32


class Gate:
    """Lets clients in.

    Args:
        store: Remembers which challenges were used; shared by all processes of one CAS.
        master: Key of the CAS.
        audience: Id of the CAS.
        trust: Whose evidence counts.
        policies: What services must show.
        clock: UTC ns since 1970.
    """

    def __init__(
        self,
        store: Store,
        master: SecretKey,
        audience: str,
        *,
        trust: Trust,
        policies: Policies,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._tokens = Tokens(master, audience)
        self._trust = trust
        self._policies = policies
        self._clock = clock
        self.nonces = Nonces(clock())
        self._holders: OrderedDict[str, tuple[Token, Holder]] = OrderedDict()

    def fresh_nonce(self) -> str:
        """Return the nonce for the next proofs."""
        return self.nonces.fresh(self._clock())

    # -- tokens

    def challenge(self) -> tuple[bytes, int]:
        """Return a nonce for evidence, and when it expires. Nothing is stored for it."""
        expires_ns = self._clock() + CHALLENGE_TTL_NS
        return self._tokens.challenge(secrets.token_bytes(CHALLENGE_RANDOM_LEN), expires_ns), expires_ns

    async def grant(
        self,
        nonce: bytes,
        spki: bytes,
        evidence: Sequence[Mapping[str, Any]],
        *,
        policy: str = "",
        service: str = "",
        instance: str = "",
    ) -> tuple[str, Token]:
        """Exchange evidence for a token: of the keys that it shows, and of a service if one is named.

        Raises:
            AccessDeniedError: The challenge does not count, or there is no such service.
            AttestationError: The evidence does not.
            UsageError: The session's key is of no kind that is used here, or half a service is named.
        """
        now_ns = self._clock()
        if bool(policy) != bool(service):
            raise UsageError("policy and service are named together")
        expires_ns = self._tokens.open_challenge(nonce, now_ns)
        load_session_key(spki)
        binding = binding_of(nonce, spki)
        claims = [verify(one, binding, self._trust, now_ns) for one in evidence]
        policy_hash = await self._attested(policy, service, claims) if policy else ""
        keys = frozenset(str(one.values["key"]) for one in claims if one.type == "key")
        await self._use_up(nonce, expires_ns)
        until_ns = [now_ns + TOKEN_TTL_NS, *(one.expires_ns for one in claims if one.expires_ns is not None)]
        token = Token(
            token_id=secrets.token_bytes(16),
            principal=Principal(keys, policy, service, instance),
            policy_hash=policy_hash,
            public_key=spki,
            issued_ns=now_ns,
            expires_ns=min(until_ns),
        )
        return self._tokens.seal(token), token

    async def _attested(self, policy: str, service: str, claims: Sequence[Claims]) -> str:
        """Return the hash of the policy whose service the evidence is enough for."""
        current = await self._policies.find(policy)
        wanted = None if current is None else current.policy.service(service)
        if current is None or wanted is None:  # which of the two, is not everybody's business
            raise AccessDeniedError(f"there is no service {service} of a policy {policy}, or none in force")
        match(claims, wanted.attestation, current.policy.security.attestation)
        return current.policy.hash

    async def _use_up(self, nonce: bytes, expires_ns: int) -> None:
        """Note that a challenge was answered; it is kept by the minute, so that old ones are found."""
        minute = expires_ns // _MINUTE_NS
        key = f"{_USED_PREFIX}{minute:012}/{hashlib.sha256(nonce).hexdigest()[:40]}"
        if await self._store.transact([Compare(key, ABSENT)], [Put(key, b"1")]) is None:
            raise AccessDeniedError("nonce: the challenge was answered already, ask for a new one")

    async def purge(self) -> int:
        """Forget used challenges that have expired by themselves; how many."""
        before = f"{_USED_PREFIX}{self._clock() // _MINUTE_NS - 1:012}/"
        old = [key for key, _ in await self._store.list(_USED_PREFIX) if key < before]
        for start in range(0, len(old), _PURGE_AT_ONCE):
            await self._store.transact([], [Put(key, None) for key in old[start : start + _PURGE_AT_ONCE]])
        return len(old)

    # -- requests

    async def authenticate(self, authorization: str, proof: str, *, method: str, url: str, body: bytes) -> Token:
        """Return the token with which a request is made.

        Raises:
            UnauthenticatedError: There is none, or it does not count, or the request is not its holder's.
        """
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "dpop" or not text:
            raise UnauthenticatedError("invalid_token", "a token is needed: Authorization: DPoP TOKEN")
        if not proof:
            raise UnauthenticatedError("invalid_dpop_proof", "a proof is needed with the token: the header DPoP")
        known = self._holders.get(text)
        if known is not None:
            self._holders.move_to_end(text)
        else:
            token = self._tokens.open(text)
            known = (token, Holder(text, token.public_key))
            self._holders[text] = known
            if len(self._holders) > _MAX_HOLDERS:
                self._holders.popitem(last=False)
        token, holder = known
        now_ns = self._clock()
        if now_ns >= token.expires_ns:
            self._holders.pop(text, None)
            raise UnauthenticatedError("invalid_token", "the token has expired", usual=True)
        claims = holder.check(proof, method=method, url=url, body=body)
        self.nonces.use(claims["nonce"], claims["jti"], now_ns)
        if token.policy_hash:
            record, _ = await self._policies.record_of(token.principal.policy)
            if record is None or record.deleted or record.hash != token.policy_hash:
                self._holders.pop(text, None)
                message = f"policy {token.principal.policy} was replaced or deleted since: attest again"
                raise UnauthenticatedError("invalid_token", message, usual=True)
        return token
