"""A store in an etcd cluster (3.4 or newer), over its JSON gateway: several CAS processes may share it.

Sealing of values is left to `fspf.cas.sealed_store`. Why the gateway: measured on 2 cores with 3 nodes, one compare-and-put
takes 2.4 ms through aiohttp, 3.3 ms through httpx and 2.1 ms over gRPC (aetcd, which knows one endpoint only); batches
make up for more than that, and every exchange can be read and repeated by hand.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp

from fspf.cas.batching import Batcher, at_most
from fspf.cas.store import ABSENT, Compare, Entry, Put, check_key, check_transaction
from fspf.core.errors import CasError, CasUnreachableError, RolledBackError

if TYPE_CHECKING:
    import builtins
    from collections.abc import Mapping, Sequence

DEFAULT_PREFIX: Final = "fspf"
_ATTEMPT_S: Final = 3.0  # for one request at one endpoint: longer than an election
_PATIENCE_S: Final = 8.0  # for a read at all endpoints together
_CONNECT_S: Final = 1.0
_PAUSE_S: Final = 0.05  # after all endpoints refused
_MAX_BATCH: Final = 100  # nested transactions; etcd refuses more than 128
_MAX_BATCH_BYTES: Final = 512 << 10  # of values; etcd refuses requests above 1.5 MiB
_BATCHES: Final = 2  # under way at once: one is on the wire while the next gathers
_PAGE: Final = 500  # entries of a list in one answer

_RANGE: Final = "/v3/kv/range"
_TXN: Final = "/v3/kv/txn"
_MEMBERS: Final = "/v3/cluster/member/list"


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Where a cluster is, and how it is spoken to.

    Attributes:
        endpoints: `host:port` each.
        prefix: Below which everything of this CAS is stored; several may share a cluster.
        ca, certificate, key: Paths of PEM files; with *ca* the connection is TLS.
        cluster: Id of the only cluster that is accepted, 16 hex digits; "" accepts the first that is met.
    """

    endpoints: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    ca: str = ""
    certificate: str = ""
    key: str = ""
    cluster: str = ""

    def context(self) -> ssl.SSLContext | None:
        """Return what TLS is spoken with; None without TLS."""
        if not self.ca:
            if self.certificate:
                raise CasError("etcd: a client certificate needs the CA's certificate too (ca=)")
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key or None)
        except (OSError, ssl.SSLError) as exc:
            raise CasError(f"etcd: the certificates cannot be used: {exc}") from None
        return context


class _Transaction(NamedTuple):
    compare: Sequence[Compare]
    put: Sequence[Put]


class _Refused(Exception):  # noqa: N818 - no error of ours: the caller asks the next endpoint
    """An endpoint did not take the request at all, so nothing of it happened."""


class _Unknown(Exception):  # noqa: N818 - as _Refused
    """An endpoint took the request and gave no answer that says what became of it."""


class EtcdStore:
    """Implements `fspf.cas.store.Store` for any number of processes. Keeps no state but connections.

    Transactions of concurrent callers travel as one: etcd takes transactions within a transaction, each with its own
    compares. Every answer must come from the one cluster, and from a state not older than any seen before: a
    cluster that was made anew, or put back, is refused.
    """

    def __init__(self, options: EtcdOptions) -> None:
        """Connects with the first request."""
        if not options.endpoints:
            raise CasError("etcd: no endpoint was given: etcd://host:port,host:port")
        self._options = options
        self._prefix = options.prefix.strip("/") + "/"
        self._scheme = "https" if options.ca else "http"
        self._context = options.context()
        self._session: aiohttp.ClientSession | None = None
        self._at = 0  # the endpoint that served last
        self._cluster = options.cluster
        self._revision = 0  # the newest that was seen
        self._closed = False
        self._writes: Batcher[_Transaction, int | None] = Batcher(self._do, begin=_Together, at_once=_BATCHES)
        self._reads: Batcher[str, Entry | None] = Batcher(self._read, begin=at_most(_MAX_BATCH), at_once=_BATCHES)
        self.requests = 0  # for metrics
        self.transactions = 0

    @property
    def url(self) -> str:
        return f"etcd://{','.join(self._options.endpoints)}/{self._prefix.rstrip('/')}"

    @property
    def cluster(self) -> str:
        """Id of the cluster, 16 hex digits; "" before the first answer."""
        return self._cluster

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        return await self._reads.submit(key)

    async def _read(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        if len(keys) == 1:
            answers = [await self._ask(_RANGE, {"key": self._key(keys[0])})]
        else:
            # Reads only: etcd answers it without writing anything, and linearizably all the same.
            reads = [{"requestRange": {"key": self._key(key)}} for key in keys]
            answer = await self._ask(_TXN, {"success": reads})
            answers = [one.get("response_range", {}) for one in answer["responses"]]
        return [self._entry(found[0])[1] if (found := one.get("kvs")) else None for one in answers]

    async def list(self, prefix: str) -> builtins.list[tuple[str, Entry]]:
        begin = (self._prefix + prefix).encode()
        end = base64.b64encode(_after(begin)).decode()
        found: builtins.list[tuple[str, Entry]] = []
        at, revision = begin, "0"
        while True:
            body = {"key": base64.b64encode(at).decode(), "range_end": end, "limit": _PAGE, "revision": revision}
            answer = await self._ask(_RANGE, body)
            found += [self._entry(one) for one in answer.get("kvs", ())]
            if not answer.get("more"):
                return found
            at = (self._prefix + found[-1][0]).encode() + b"\0"
            revision = answer["header"]["revision"]  # the pages that follow are of the same instant

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        check_transaction(compare, put)
        return await self._writes.submit(_Transaction(compare, put))

    async def _do(self, batch: Sequence[_Transaction]) -> Sequence[int | None]:
        bodies = [self._transaction(one) for one in batch]
        if len(bodies) == 1:
            answer = await self._tell(bodies[0])
            inner = [answer]
        else:
            answer = await self._tell({"success": [{"requestTxn": body} for body in bodies]})
            inner = [one["response_txn"] for one in answer["responses"]]
        self.transactions += len(batch)
        revision = int(answer["header"]["revision"])
        return [revision if one.get("succeeded") else None for one in inner]

    def _transaction(self, one: _Transaction) -> dict[str, Any]:
        compare = [
            # A key that is absent has revision 0 for etcd too.
            {"key": self._key(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
            for key, revision in one.compare
        ]
        success = [
            {"requestDeleteRange": {"key": self._key(key)}}
            if value is None
            else {"requestPut": {"key": self._key(key), "value": base64.b64encode(value).decode()}}
            for key, value in one.put
        ]
        return {"compare": compare, "success": success}

    async def members(self) -> builtins.list[str]:
        """Return the names of all members, as the quorum knows them (not only those that run)."""
        await self._ask(_RANGE, {"key": self._key("quorum")})  # linearizable: there is a quorum, or this raises
        answer = await self._ask(_MEMBERS, {})
        return sorted(one.get("name", one["ID"]) for one in answer["members"])

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writes.close()
        await self._reads.close()
        if self._session is not None:
            await self._session.close()

    # -- the wire

    async def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask until one endpoint answers: for what changes nothing."""
        deadline = time.monotonic() + _PATIENCE_S
        why = ""
        while True:
            for _ in self._options.endpoints:
                try:
                    return await self._post(path, body)
                except (_Refused, _Unknown) as exc:
                    why = str(exc)
                    self._at += 1
            if time.monotonic() > deadline:
                raise self._unreachable(why)
            await asyncio.sleep(_PAUSE_S)

    async def _tell(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a change to the first endpoint that takes it; never to a second one."""
        why = ""
        for _ in self._options.endpoints:
            try:
                return await self._post(_TXN, body)
            except _Refused as exc:
                why = str(exc)
                self._at += 1
            except _Unknown as exc:
                self._at += 1
                raise self._unreachable(str(exc)) from None
        raise self._unreachable(why)

    def _unreachable(self, why: str) -> CasUnreachableError:
        return CasUnreachableError(f"the store {self.url} gives no answer: {why}")

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._closed and self._session is None:
            raise CasError(f"the store {self.url} was closed")
        session = self._session = self._session or aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._context or False, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=_ATTEMPT_S, sock_connect=_CONNECT_S),
            trust_env=False,
        )
        endpoint = self._options.endpoints[self._at % len(self._options.endpoints)]
        seen = self._revision
        self.requests += 1
        data = io.BytesIO(json.dumps(body).encode())  # aiohttp sends a file in pieces, other tasks run between them
        try:
            async with session.post(f"{self._scheme}://{endpoint}{path}", data=data) as response:
                raw = await response.read()
                status = response.status
        except aiohttp.ClientConnectorError as exc:
            raise _Refused(f"{endpoint}: {exc.strerror or exc}") from None
        except TimeoutError:
            raise _Unknown(f"{endpoint} did not answer within {_ATTEMPT_S:g} s") from None
        except (aiohttp.ClientError, OSError) as exc:
            raise _Unknown(f"{endpoint}: {str(exc) or type(exc).__name__}") from None
        try:
            answer = json.loads(raw)
            if not isinstance(answer, dict):
                raise TypeError
            if status != 200:
                raise self._complaint(endpoint, status, answer)
            self._check(endpoint, answer["header"], seen)
        except (ValueError, KeyError, TypeError):
            raise _Unknown(f"{endpoint} does not speak as etcd does (HTTP status {status}, {raw[:80]!r})") from None
        else:
            return answer

    def _complaint(self, endpoint: str, status: int, answer: Mapping[str, Any]) -> Exception:
        message = str(answer.get("error") or answer.get("message") or f"HTTP status {status}")[:200]
        if status == 413 or (status == 400 and answer.get("code") == 3):  # too large, invalid: it will never do
            return CasError(f"the store {self.url} refuses the request: {message}")
        if "NOSPACE" in message or "database space exceeded" in message:
            message += ": compact and defragment the cluster, then disarm its alarm (etcdctl alarm disarm)"
        return _Unknown(f"{endpoint}: {message}")

    def _check(self, endpoint: str, header: Mapping[str, Any], seen: int) -> None:
        """Refuse an answer of another cluster, or of an older state than one that was seen before it was asked for."""
        cluster, revision = f"{int(header['cluster_id']):016x}", int(header.get("revision", 0))
        if self._cluster and cluster != self._cluster:
            raise RolledBackError(
                f"etcd cluster {self._cluster} expected, {endpoint} belongs to {cluster}: the cluster was made anew or "
                "restored from a snapshot; if that was you, have the recovery approved (docs/CAS.md, Recovery)"
            )
        self._cluster = cluster
        if "revision" in header and revision < seen:
            raise RolledBackError(
                f"etcd revision {seen} or newer expected, {endpoint} has {revision}: the cluster was put back to an "
                "older state; if that was you, have the recovery approved (docs/CAS.md, Recovery)"
            )
        self._revision = max(self._revision, revision)

    def _key(self, key: str) -> str:
        return base64.b64encode((self._prefix + key).encode()).decode()

    def _entry(self, found: Mapping[str, Any]) -> tuple[str, Entry]:
        key = base64.b64decode(found["key"]).decode()[len(self._prefix) :]
        return key, Entry(base64.b64decode(found.get("value", "")), int(found["mod_revision"]))


class _Together:
    """Which transactions may travel as one: etcd evaluates all compares first, and puts each key once."""

    def __init__(self) -> None:
        self._left = _MAX_BATCH
        self._size = 0
        self._put: set[str] = set()
        self._compared: set[str] = set()

    def __call__(self, one: _Transaction) -> bool:
        put = {key for key, _ in one.put}
        compared = {key for key, _ in one.compare}
        size = self._size + sum(len(value or b"") for _, value in one.put)
        apart = self._put.isdisjoint(put) and self._put.isdisjoint(compared) and self._compared.isdisjoint(put)
        if not self._left or not apart or (self._size and size > _MAX_BATCH_BYTES):
            return False
        self._left -= 1
        self._size = size
        self._put |= put
        self._compared |= compared
        return True


def _after(prefix: bytes) -> bytes:
    """Return the first key that is greater than every key with *prefix* (UTF-8 has no byte 255)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


assert ABSENT == 0  # etcd's revision of an absent key
