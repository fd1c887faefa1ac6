"""Puts a CAS server together from its directory: store, counter, audit log, policies, volumes, gate.

What each of them does is its own module's business; serving is left to `server`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from fspf.cas import secret_store
from fspf.cas.audit import Audit
from fspf.cas.audit_sink import FileSink
from fspf.cas.counter import Recovery, Witness
from fspf.cas.gate import Gate
from fspf.cas.home import AUDIT_LOG, TRUST, Home
from fspf.cas.issuer import SecretIssuer
from fspf.cas.metrics import Metrics
from fspf.cas.open_store import open_store
from fspf.cas.policies import Policies
from fspf.cas.policy_api import PolicyApi
from fspf.cas.policy_links import VolumeAccess
from fspf.cas.scripts import ScriptCaller
from fspf.cas.sealed_store import SealedStore
from fspf.cas.service import Service
from fspf.cas.store import ABSENT, Compare, Put, Store
from fspf.cas.trusted import read_trust
from fspf.cas.volumes import Volumes, nobody_is_gone
from fspf.core.anchor import Holder
from fspf.core.errors import CasError, ConflictError, UsageError
from fspf.core.keys import SecretKey
from fspf.policy.placeholders import expand

log = logging.getLogger(__name__)

IDENTITY: Final = "meta/cas"  # the id of the CAS whose store it is
_STORE_LABEL: Final = b"fspf cas server 1 store"


@dataclass(frozen=True, slots=True)
class World:
    """What a server sees of the world; tests set it.

    Attributes:
        holder: This process.
        recovery: The approved statement with which the store was opened, for the audit log.
    """

    holder: Holder
    clock: Callable[[], int] = time.time_ns
    is_gone: Callable[[Holder], bool] = nobody_is_gone
    recovery: Recovery | None = None


OpenStore = Callable[[Home, SecretKey], Awaitable[Store]]


async def open_sealed(
    home: Home, master: SecretKey, *, create: bool = False, recovery: Recovery | None = None
) -> Store:
    """Open the store that the settings name, watched by the TPM's counter if they say so.

    Args:
        create: Make what is missing; only for a new CAS.
        recovery: An approved statement that lets one older state in.

    Raises:
        CasError: There is none, or it belongs to another CAS.
        RolledBackError: It is older than the TPM's counter says.
    """
    store = await open_store(home.store_url, create=create)
    try:
        if home.tpm is not None:
            from fspf.cas.store_sqlite import SqliteStore
            from fspf.cas.tpm import Tpm, TpmCounter

            if not isinstance(store, SqliteStore):
                raise UsageError("a TPM's counter watches a store in SQLite; others have their quorum")
            counter = TpmCounter(Tpm(home.tpm), master, create=create)
            await store.watch(Witness(master, counter, window_s=home.window_s, recovery=recovery), begin=create)
        sealed = SealedStore(store, master.derive(_STORE_LABEL))
        if create:
            mark = home.cas_id.encode("ascii")
            if await sealed.transact([Compare(IDENTITY, ABSENT)], [Put(IDENTITY, mark)]) is None:
                raise ConflictError(f"{home.store_url} is the store of a CAS already")
        entry = await sealed.get(IDENTITY)
        if entry is None or entry.value != home.cas_id.encode("ascii"):
            raise CasError(f"{home.store_url} is not the store of this CAS: put the right one back")
    except BaseException:
        await store.close()
        raise
    return sealed


@contextlib.asynccontextmanager
async def service_of(home: Home, master: SecretKey, opened: OpenStore, world: World) -> AsyncIterator[Service]:
    """Open the store and put the service together; everything is closed in order at the end."""
    store = await opened(home, master)
    try:
        audit = Audit(
            store,
            home.audit_key(),
            FileSink(home.path(AUDIT_LOG)),
            holder=world.holder,
            clock=world.clock,
        )
        await audit.start(cas=home.cas_id)
        try:
            if world.recovery is not None:
                await audit.append("recovery", **world.recovery._asdict())
            yield _service(home, master, store, audit, world)
        finally:
            await audit.close()
    finally:
        await store.close()


def _service(home: Home, master: SecretKey, store: Store, audit: Audit, world: World) -> Service:
    issuer = SecretIssuer(store, clock=world.clock)
    restorer = Volumes(store, master, world.clock, is_gone=world.is_gone)
    policies = Policies(store, world.clock, issuer=issuer, restorer=restorer, call_script=ScriptCaller(), audit=audit)

    async def policy_key(access: VolumeAccess) -> SecretKey | None:
        if access.key is None:
            return None
        stored = await secret_store.load(store, access.policy)
        raw = expand(access.key, stored.values)
        try:
            return SecretKey.from_bytes(raw if len(raw) == 32 else bytes.fromhex(raw.decode("ascii")))
        except ValueError:
            raise CasError(f"volume {access.name} of policy {access.policy}: its key is not 64 hex digits") from None

    volumes = Volumes(
        store,
        master,
        world.clock,
        is_gone=world.is_gone,
        access=policies.links.volume_access,
        policy_key=policy_key,
    )
    trust = read_trust(home.path(TRUST))
    return Service(
        store=store,
        master=master,
        audience=home.cas_id,
        key_hash=home.key_hash,
        gate=Gate(store, master, home.cas_id, trust=trust, policies=policies, clock=world.clock),
        volumes=volumes,
        policies=policies,
        policy_api=PolicyApi(policies),
        issuer=issuer,
        audit=audit,
        metrics=Metrics(),
        clock=world.clock,
    )
