"""What each request to a CAS server does, from checked documents to documents.

HTTP is `server`'s business, the table of paths and shapes is `api`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fspf._version import __version__
from fspf.cas import api, configuration, exchange, wire
from fspf.cas.audit import Audit
from fspf.cas.gate import Gate
from fspf.cas.issuer import SecretIssuer
from fspf.cas.metrics import Metrics
from fspf.cas.policies import Policies
from fspf.cas.policy_api import PolicyApi
from fspf.cas.policy_routes import PolicyCalls
from fspf.cas.store import Store
from fspf.cas.tokens import Token
from fspf.cas.volumes import Volumes
from fspf.cas.wire import Members, from_base64, to_base64
from fspf.core.anchor import CasRecord
from fspf.core.errors import AccessDeniedError, CasUnreachableError, FspfError
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey
from fspf.policy.principal import Principal

log = logging.getLogger(__name__)

_PROBE: Final = "meta/cas"  # read to see whether the store answers


@dataclass(frozen=True, slots=True)
class Call:
    """One request, checked.

    Attributes:
        token: None for paths that need none.
    """

    path: dict[str, str]
    body: Any
    token: Token | None
    peer: str

    @property
    def principal(self) -> Principal:
        """Who makes it."""
        assert self.token is not None
        return self.token.principal

    @property
    def volume_id(self) -> bytes:
        """Which volume it is about."""
        return bytes.fromhex(self.path["volume_id"])


class Service(PolicyCalls):
    """The handlers, named in `api.ROUTES`.

    Args:
        audience: Id of the CAS.
        key_hash: Of its TLS key, for people to compare.
    """

    def __init__(
        self,
        *,
        store: Store,
        master: SecretKey,
        audience: str,
        key_hash: str,
        gate: Gate,
        volumes: Volumes,
        policies: Policies,
        policy_api: PolicyApi,
        issuer: SecretIssuer,
        audit: Audit,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._handles = exchange.Handles(master)
        self._description = {"id": audience, "version": __version__, "key_hash": key_hash}
        self.gate: Final = gate
        self._volumes = volumes
        self._policies = policies
        self.policy_api = policy_api
        self._issuer = issuer
        self.audit: Final = audit
        self.metrics: Final = metrics
        self._clock = clock
        self.stopping = False

    # -- state

    async def health(self, _call: Call) -> Members:
        return {"status": "ok"}

    async def ready(self, _call: Call) -> Members:
        if self.stopping:
            raise CasUnreachableError("the CAS is about to stop")
        await self._store.get(_PROBE)
        return {"status": "ready"}

    async def describe(self, _call: Call) -> Members:
        return self._description

    async def openapi(self, _call: Call) -> Members:
        return api.openapi()

    # -- tokens

    async def challenge(self, _call: Call) -> Members:
        nonce, expires_ns = self.gate.challenge()
        return {"nonce": to_base64(nonce), "expires_ns": expires_ns}

    async def grant(self, call: Call) -> Members:
        body = call.body
        try:
            text, token = await self.gate.grant(
                from_base64(body["nonce"], "nonce"),
                from_base64(body["public_key"], "public_key"),
                body["evidence"],
                policy=body.get("policy", ""),
                service=body.get("service", ""),
                instance=body.get("instance", ""),
            )
        except CasUnreachableError:
            raise
        except FspfError as exc:
            self.metrics.attestations.labels("refused").inc()
            log.warning("attestation refused", extra={"reason": str(exc), "peer": call.peer})
            about = {"policy": body.get("policy", ""), "service": body.get("service", "")}
            self.audit.note("attestation-refused", reason=str(exc), peer=call.peer, **about)
            raise
        await self.audit.append(
            "attestation-granted",
            principal=str(token.principal),
            policy_hash=token.policy_hash,
            evidence=sorted({str(one["type"]) for one in body["evidence"]}),
            peer=call.peer,
        )
        self.metrics.attestations.labels("granted").inc()
        log.info("attestation granted", extra={"principal": str(token.principal), "peer": call.peer})
        reply: Members = {"token": text, "issued_ns": token.issued_ns, "expires_ns": token.expires_ns}
        if token.policy_hash:
            reply["policy_hash"] = token.policy_hash
        return reply

    async def handle(self, _call: Call) -> Members:
        now_ns = self._clock()
        side, handle = self._handles.issue(now_ns)
        return {
            "handle": to_base64(handle),
            "public_key": to_base64(side.public),
            "expires_ns": now_ns + exchange.HANDLE_TTL_NS,
        }

    # -- volumes

    async def list_volumes(self, call: Call) -> Members:
        return {"records": [wire.record_members(one) for one in await self._volumes.list(call.principal)]}

    async def show(self, call: Call) -> Members:
        return {"record": wire.record_members(await self._volumes.fetch(call.principal, call.volume_id))}

    async def create(self, call: Call) -> Members:
        body = call.body
        side, shared = self._side_for(body)
        record = await self._volumes.create(
            call.principal,
            bytes.fromhex(body["volume_id"]),
            wire.checked_text(body["name"], "name"),
            Freshness.parse(body["freshness"]),
        )
        await self._tell("volume-created", call, volume=record.volume_id.hex(), name=record.name)
        return {"public_key": to_base64(side.public), "record": self._with_key(record, shared)}

    async def fetch(self, call: Call) -> Members:
        side, shared = self._side_for(call.body)
        record = await self._volumes.fetch(call.principal, call.volume_id)
        await self._tell("key-released", call, volumes=[record.volume_id.hex()])
        return {"public_key": to_base64(side.public), "record": self._with_key(record, shared)}

    async def records(self, call: Call) -> Members:
        side, shared = self._side_for(call.body)
        records = await self._volumes.list(call.principal)
        if records:
            await self._tell("key-released", call, volumes=[one.volume_id.hex() for one in records])
        return {"public_key": to_base64(side.public), "records": [self._with_key(one, shared) for one in records]}

    async def acquire(self, call: Call) -> Members:
        body = call.body
        try:
            lease = await self._volumes.acquire(
                call.principal,
                call.volume_id,
                expected=wire.to_anchor(body["expected"]),
                expected_epoch=body["expected_epoch"],
                adopt=wire.to_anchor(body["adopt"]),
                holder=wire.to_holder(body["holder"]),
            )
        except FspfError as exc:
            self.metrics.leases.labels("refused").inc()
            self.audit.note("lease-refused", volume=call.volume_id.hex(), by=str(call.principal), reason=str(exc))
            raise
        self.metrics.leases.labels("granted").inc()
        self.audit.settle(call.volume_id.hex())
        adopted = wire.to_anchor(body["adopt"])
        await self._tell(
            "lease-granted",
            call,
            volume=call.volume_id.hex(),
            epoch=lease.epoch,
            holder=str(lease.holder),
            generation=adopted.generation,
            root_tag=adopted.root_tag.hex(),
        )
        return {"lease": wire.lease_members(lease)}

    async def renew(self, call: Call) -> Members:
        lease = await self._volumes.renew(call.principal, call.volume_id, wire.to_lease(call.body["lease"]))
        self.metrics.leases.labels("renewed").inc()
        return {"lease": wire.lease_members(lease)}

    async def release(self, call: Call) -> Members:
        lease = wire.to_lease(call.body["lease"])
        await self._volumes.release(call.principal, call.volume_id, lease)
        self.audit.settle(call.volume_id.hex())
        await self._tell("lease-released", call, volume=call.volume_id.hex(), epoch=lease.epoch)
        self.metrics.leases.labels("released").inc()
        return {}

    async def advance(self, call: Call) -> Members:
        body = call.body
        expected, new = wire.to_anchor(body["expected"]), wire.to_anchor(body["new"])
        lease = wire.to_lease(body["lease"])
        try:
            renewed, mode = await self._volumes.advance(call.principal, call.volume_id, lease, expected, new)
        except CasUnreachableError:
            raise
        except FspfError as exc:
            self.audit.note("anchor-refused", volume=call.volume_id.hex(), by=str(call.principal), reason=str(exc))
            raise
        self.audit.anchored(call.volume_id.hex(), lease.epoch, expected, new)
        self.metrics.anchors.inc()
        self.metrics.anchor_lag.labels(mode).observe(new.generation - expected.generation)
        return {"expires_ns": renewed.expires_ns}

    async def rekey(self, call: Call) -> Members:
        body = call.body
        shared = self._sent_under(body)
        lease, expected, new = (
            wire.to_lease(body["lease"]),
            wire.to_anchor(body["expected"]),
            wire.to_anchor(body["new"]),
        )
        key = exchange.unwrap(shared, from_base64(body["wrapped_key"], "wrapped_key"), call.volume_id, 0)
        await self._volumes.rekey(call.principal, call.volume_id, lease, expected, new, key)
        await self._tell("volume-rekeyed", call, volume=call.volume_id.hex())
        return {}

    async def set_freshness(self, call: Call) -> Members:
        freshness = Freshness.parse(call.body["freshness"])
        await self._volumes.set_freshness(call.principal, call.volume_id, freshness)
        await self._tell("freshness-changed", call, volume=call.volume_id.hex(), freshness=str(freshness))
        return {}

    async def remove(self, call: Call) -> Members:
        await self._volumes.remove(call.principal, call.volume_id)
        await self._tell("volume-removed", call, volume=call.volume_id.hex())
        return {}

    async def import_records(self, call: Call) -> Members:
        body = call.body
        shared = self._sent_under(body)
        records = []
        for members in body["records"]:
            summary = wire.to_summary(members)
            wrapped = from_base64(members["wrapped_key"], "wrapped_key")
            records.append(summary.with_key(exchange.unwrap(shared, wrapped, summary.volume_id, summary.key_version)))
        await self._volumes.import_records(call.principal, records, override=body["override"])
        for record in records:
            await self._tell("volume-created", call, volume=record.volume_id.hex(), name=record.name, imported=True)
        return {"imported": len(records)}

    # -- configuration

    async def configuration(self, call: Call) -> Members:
        principal = call.principal
        current = await self._policies.find(principal.policy) if principal.policy else None
        if current is None:
            raise AccessDeniedError("a configuration is for a service: attest with the names of policy and service")
        policy, links = current.policy, self._policies.links
        values = await self._issuer.values_for(policy, principal.service, await links.imported_secrets(policy))
        ids = {one.local_name: one.record_id.hex() for one in await links.volumes_for(principal)}
        found = configuration.configuration_of(policy, principal.service, values, ids)
        await self._tell("configuration-released", call, policy_hash=policy.hash, secrets=sorted(values))
        return configuration.document(found)

    # -- keys

    async def _tell(self, kind: str, call: Call, **fields: Any) -> None:
        """Write into the audit log what was decided; the request is not answered before that is durable."""
        await self.audit.append(kind, **fields, by=str(call.principal))

    @staticmethod
    def _side_for(body: Members) -> tuple[exchange.Side, SecretKey]:
        """Begin an exchange with the client's public key."""
        side = exchange.Side()
        return side, side.shared(from_base64(body["public_key"], "public_key"))

    def _sent_under(self, body: Members) -> SecretKey:
        """Return the key under which the client wrapped what it sends."""
        side = self._handles.open(from_base64(body["handle"], "handle"), self._clock())
        return side.shared(from_base64(body["public_key"], "public_key"))

    def _with_key(self, record: CasRecord, shared: SecretKey) -> Members:
        self.metrics.keys.inc()
        wrapped = exchange.wrap(shared, record.key, record.volume_id, record.key_version)
        return {**wire.record_members(record), "wrapped_key": to_base64(wrapped)}
