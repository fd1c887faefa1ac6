"""The client of a CAS server: `RemoteCas`, which a volume cannot tell from the embedded CAS.

Connections are `connection`'s business, proofs `proof`'s; what is granted is decided by the server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import ed25519

from fspf.attestation import key as key_evidence
from fspf.attestation.signatures import spki_of
from fspf.cas import exchange, wire
from fspf.cas.connection import Address, Connections, Reply, ask, authority
from fspf.cas.identity import IdentityKey
from fspf.cas.problems import to_error
from fspf.cas.proof import Prover
from fspf.cas.sealing import checked_volume_id
from fspf.cas.tokens import UnauthenticatedError, binding_of
from fspf.cas.wire import Members, from_base64, to_base64
from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import CasError, CasUnreachableError, UsageError
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey

if TYPE_CHECKING:
    import builtins

Evidence = Callable[[bytes], Sequence[Members]]  # from the binding that it must cover

_RENEW_AFTER: Final = 0.8  # of a token's life
_MAX_TRIES: Final = 6  # of a request that was refused before it was looked at
_IMPORT_AT_ONCE: Final = 20
_NS: Final = 1_000_000_000


def key_holder(identity: IdentityKey) -> Evidence:
    """Return evidence of the holder of *identity*."""
    return lambda binding: [key_evidence.make(identity, binding)]


@dataclass(frozen=True, slots=True)
class Service:
    """As what a client attests, beyond its keys."""

    policy: str = ""
    name: str = ""
    instance: str = ""


@dataclass(slots=True)
class _Session:
    token: str
    renew_at_s: float  # monotonic
    policy_hash: str


class RemoteCas:
    """A CAS server, as `fspf.core.anchor.Cas`. Thread-safe; usable after a fork.

    Args:
        address: With the hash of the server's key: there is no trust on first use.
        evidence: Makes evidence for a challenge; None: only what needs no token can be asked.
        service: As which service of a policy.
    """

    def __init__(self, address: Address, evidence: Evidence | None, service: Service | None = None) -> None:
        if not address.key_hash:
            raise UsageError(
                f"the key hash of the CAS {address.name} is not known: `fspf cas attest {address.name} --key-hash HASH` remembers it"
            )
        self.url: Final = str(address)
        self._connections = Connections(address)
        self._evidence = evidence
        self._service = service or Service()
        self._key = ed25519.Ed25519PrivateKey.generate()
        self._prover = Prover(self._key)
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._nonces: dict[tuple[str, int], str] = {}  # by process

    def __repr__(self) -> str:
        """Name the server."""
        return f"RemoteCas({self.url!r})"

    # -- the Protocol

    def create(self, volume_id: bytes, name: str, freshness: Freshness) -> CasRecord:
        """Make a key and a record for a new volume, which belongs to whom this client is."""
        checked_volume_id(volume_id)
        side = exchange.Side()
        body = {
            "volume_id": volume_id.hex(),
            "name": name,
            "freshness": str(freshness),
            "public_key": to_base64(side.public),
        }
        return _record(side, self.call("POST", "/v1/volumes", body))

    def fetch(self, volume_id: bytes) -> CasRecord:
        """Return the record."""
        side = exchange.Side()
        return _record(side, self._ask(volume_id, "/record", {"public_key": to_base64(side.public)}))

    def list(self) -> builtins.list[CasRecord]:
        """Return all records of this client, by name."""
        side = exchange.Side()
        reply = self.call("POST", "/v1/records", {"public_key": to_base64(side.public)})
        shared = side.shared(from_base64(reply["public_key"], "public_key"))
        return [_with_key(shared, members) for members in reply["records"]]

    def acquire(
        self, volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        """Grant the right to write and make *adopt* the anchor."""
        body = {
            "expected": wire.anchor_members(expected),
            "expected_epoch": expected_epoch,
            "adopt": wire.anchor_members(adopt),
            "holder": wire.holder_members(holder),
        }
        return wire.to_lease(self._ask(volume_id, "/lease", body)["lease"])

    def renew(self, volume_id: bytes, lease: Lease) -> Lease:
        """Prolong *lease*."""
        return wire.to_lease(self._ask(volume_id, "/renew", {"lease": wire.lease_members(lease)})["lease"])

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        """Move the anchor. Asked once: when the answer is lost, the caller finds out with `fetch`."""
        body = {
            "lease": wire.lease_members(lease),
            "expected": wire.anchor_members(expected),
            "new": wire.anchor_members(new),
        }
        self._ask(volume_id, "/anchor", body)

    def release(self, volume_id: bytes, lease: Lease) -> None:
        """End *lease*."""
        self._ask(volume_id, "/release", {"lease": wire.lease_members(lease)})

    def rekey(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, key: SecretKey) -> None:
        """Replace the volume key and move the anchor. Asked once, as `advance`."""
        checked_volume_id(volume_id)
        handle, public, shared = self._sender()
        body = {
            "lease": wire.lease_members(lease),
            "expected": wire.anchor_members(expected),
            "new": wire.anchor_members(new),
            "handle": handle,
            "public_key": public,
            "wrapped_key": to_base64(exchange.wrap(shared, key, volume_id, 0)),
        }
        self._ask(volume_id, "/rekey", body)

    def set_freshness(self, volume_id: bytes, freshness: Freshness) -> None:
        """Change the freshness mode."""
        self._ask(volume_id, "/freshness", {"freshness": str(freshness)})

    def remove(self, volume_id: bytes) -> None:
        """Forget the volume, and its key with it."""
        self.call("DELETE", f"/v1/volumes/{checked_volume_id(volume_id).hex()}", None)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._connections.close()

    # -- beyond the Protocol

    def import_records(self, records: Sequence[CasRecord], *, override: bool) -> None:
        """Take over *records*: all or none of each twenty."""
        for start in range(0, len(records), _IMPORT_AT_ONCE):
            handle, public, shared = self._sender()
            members = []
            for record in records[start : start + _IMPORT_AT_ONCE]:
                one = wire.record_members(record)
                del one["lease"]
                wrapped = exchange.wrap(shared, record.key, record.volume_id, record.key_version)
                members.append({**one, "wrapped_key": to_base64(wrapped)})
            body = {"handle": handle, "public_key": public, "records": members, "override": override}
            self.call("POST", "/v1/imports", body)

    def describe(self) -> Members:
        """Return what the CAS says of itself."""
        return dict(self._call_plain("GET", "/v1/cas", None))

    def is_ready(self) -> bool:
        """Tell whether it can serve now."""
        try:
            self._call_plain("GET", "/v1/ready", None)
        except CasUnreachableError:
            return False
        return True

    def attest(self) -> str:
        """Make sure that there is a token; return the hash of the policy that it is bound to, "" if to none."""
        return self._current_session().policy_hash

    def policy_path(self, name: str) -> str:
        """Return the path of a policy, whose name may contain slashes."""
        return f"/v1/policies/{quote(name, safe='')}"

    # -- requests

    def _ask(self, volume_id: bytes, action: str, body: Members) -> Any:
        return self.call("POST", f"/v1/volumes/{checked_volume_id(volume_id).hex()}{action}", body)

    def _sender(self) -> tuple[str, str, SecretKey]:
        """Begin an exchange in which the client sends keys."""
        side = exchange.Side()
        reply = self.call("POST", "/v1/handles", {})
        return reply["handle"], to_base64(side.public), side.shared(from_base64(reply["public_key"], "public_key"))

    def call(self, method: str, path: str, body: Members | None) -> Any:
        """Make a signed request and return the document that comes back.

        It is repeated only when it certainly was not looked at: nothing was sent, or the token or proof was refused.

        Raises:
            CasUnreachableError: No answer; what happened is not known.
            FspfError: What the CAS says.
        """
        data = None if body is None else _dump(body)
        for _ in range(_MAX_TRIES):
            session = self._current_session()
            connection = self._connections.take()
            where = (connection.host, connection.port)
            proof = self._prover.prove(
                method=method,
                url=f"https://{authority(*where)}{path}",
                token=session.token,
                nonce=self._nonces.get(where, ""),
                body=data or b"",
                now_s=time.time_ns() // _NS,
            )
            headers = {"Authorization": f"DPoP {session.token}", "DPoP": proof}
            try:
                return self._exchange(connection, method, path, headers, data)
            except UnauthenticatedError as exc:
                if exc.code == "invalid_token":
                    self._forget(session)
                elif exc.code != "use_dpop_nonce":
                    raise
        raise CasUnreachableError("the CAS refuses every proof: do several servers share one address?")

    def _call_plain(self, method: str, path: str, body: Members | None) -> Any:
        """Make a request that needs no token."""
        return self._exchange(self._connections.take(), method, path, {}, None if body is None else _dump(body))

    def _exchange(self, connection: Any, method: str, path: str, headers: dict[str, str], data: bytes | None) -> Any:
        if data is not None:
            headers["Content-Type"] = "application/json"
        try:
            reply = ask(connection, method, path, headers, data)
        except CasUnreachableError:
            self._connections.avoid(connection)
            raise
        if nonce := reply.headers.get("DPoP-Nonce"):
            self._nonces[connection.host, connection.port] = nonce
        if reply.headers.get("Connection", "").lower() == "close":
            connection.close()
        else:
            self._connections.give_back(connection)
        return _document(reply)

    # -- the token

    def _current_session(self) -> _Session:
        with self._lock:
            session = self._session
            if session is None or time.monotonic() >= session.renew_at_s:
                session = self._session = self._attest()
            return session

    def _forget(self, session: _Session) -> None:
        with self._lock:
            if self._session is session:
                self._session = None

    def _attest(self) -> _Session:
        if self._evidence is None:
            raise UsageError(
                f"who asks the CAS {self.url.partition('#')[0]}? Name an identity with --cas-identity or FSPF_CAS_IDENTITY; "
                "`fspf cas identity FILE` makes one"
            )
        challenge = self._call_plain("POST", "/v1/challenges", {})
        spki = spki_of(self._key.public_key())
        binding = binding_of(from_base64(challenge["nonce"], "nonce"), spki)
        body: Members = {
            "nonce": challenge["nonce"],
            "public_key": to_base64(spki),
            "evidence": [*self._evidence(binding)],
        }
        for name, value in (
            ("policy", self._service.policy),
            ("service", self._service.name),
            ("instance", self._service.instance),
        ):
            if value:
                body[name] = value
        began = time.monotonic()
        reply = self._call_plain("POST", "/v1/tokens", body)
        life_s = (reply["expires_ns"] - reply["issued_ns"]) / _NS
        return _Session(reply["token"], began + _RENEW_AFTER * life_s, reply.get("policy_hash", ""))


def _document(reply: Reply) -> Any:
    try:
        document = json.loads(reply.body) if reply.body else None
    except (ValueError, RecursionError):
        document = None
    if not 200 <= reply.status < 300:
        raise to_error(reply.status, document)
    if not isinstance(document, dict):
        raise CasError("the CAS answered with something that is no JSON object")
    return document


def _record(side: exchange.Side, reply: Any) -> CasRecord:
    return _with_key(side.shared(from_base64(reply["public_key"], "public_key")), reply["record"])


def _with_key(shared: SecretKey, members: Members) -> CasRecord:
    summary = wire.to_summary(members)
    wrapped = from_base64(members["wrapped_key"], "wrapped_key")
    return summary.with_key(exchange.unwrap(shared, wrapped, summary.volume_id, summary.key_version))


def _dump(body: Members) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode("ascii")
