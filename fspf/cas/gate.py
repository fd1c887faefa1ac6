"""The gate of a CAS server: challenges, evidence and tokens; and who makes a request.

Verifying evidence is `fspf.attestation`'s business, what a principal may do that of the services behind the gate.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fspf.attestation import Trust, verify
from fspf.cas.principal import Principal
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
from fspf.core.errors import AccessDeniedError
from fspf.core.keys import SecretKey

_MAX_HOLDERS: Final = 20_000
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
        clock: UTC ns since 1970.
    """

    def __init__(self, store: Store, master: SecretKey, audience: str, trust: Trust, clock: Callable[[], int]) -> None:
        self._store = store
        self._tokens = Tokens(master, audience)
        self._trust = trust
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
        self, nonce: bytes, spki: bytes, evidence: Sequence[Mapping[str, Any]], instance: str
    ) -> tuple[str, Token]:
        """Exchange evidence for a token.

        Raises:
            AccessDeniedError: The challenge does not count.
            AttestationError: The evidence does not.
            UsageError: The session's key is of no kind that is used here.
        """
        now_ns = self._clock()
        expires_ns = self._tokens.open_challenge(nonce, now_ns)
        load_session_key(spki)
        binding = binding_of(nonce, spki)
        claims = [verify(one, binding, self._trust, now_ns) for one in evidence]
        keys = frozenset(str(one.values["key"]) for one in claims if one.type == "key")
        await self._use_up(nonce, expires_ns)
        token = Token(
            token_id=secrets.token_bytes(16),
            principal=Principal(keys),
            instance=instance,
            policy_hash="",
            public_key=spki,
            issued_ns=now_ns,
            expires_ns=now_ns + TOKEN_TTL_NS,
        )
        return self._tokens.seal(token), token

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

    def authenticate(self, authorization: str, proof: str, *, method: str, url: str, body: bytes) -> Token:
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
        if known is None:
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
        return token
