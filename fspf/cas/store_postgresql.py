"""A store in a PostgreSQL database: for those who already run one. Several CAS processes may share it.

Sealing of values is left to `fspf.cas.sealed_store`; replication and fail-over to the database's owner: a URL may name
several hosts, the one that accepts writes is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import errors

from fspf.cas.batching import Batcher, at_most
from fspf.cas.store import Compare, Entry, Put, check_key, check_transaction
from fspf.core.errors import CasError, CasUnreachableError, UnsupportedFormatError

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncIterator, Sequence

SCHEMA_VERSION: Final = 1
_MAX_BATCH: Final = 100
_WRITERS: Final = 2  # connections for transactions, and batches under way at once
_READERS: Final = 2
_TIMEOUT_S: Final = 5.0  # for one batch
_CONNECT_S: Final = 3
_ATTEMPTS: Final = 3  # of a read: a connection that was idle may be dead
_SETTINGS: Final = (
    # An answer means durable, whatever the database's own default; with standbys, on those too.
    "-c synchronous_commit=on -c default_transaction_isolation=read\\ committed "
    f"-c statement_timeout={int(_TIMEOUT_S * 1000)} -c lock_timeout={int(_TIMEOUT_S * 1000)} "
    "-c idle_in_transaction_session_timeout=10000 -c standard_conforming_strings=on"
)

# In C collation text is ordered by its bytes: in UTF-8 that is the order of code points, which is Python's.
_SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS fspf;
CREATE TABLE IF NOT EXISTS fspf.meta (version integer NOT NULL);
INSERT INTO fspf.meta SELECT {version} WHERE NOT EXISTS (SELECT FROM fspf.meta);
CREATE SEQUENCE IF NOT EXISTS fspf.revision;
CREATE TABLE IF NOT EXISTS fspf.entry (
    key text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL,
    revision bigint NOT NULL
);
CREATE OR REPLACE FUNCTION fspf.transact(
    compared text[], expected bigint[], removed text[], put text[], contents bytea[]
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    new_revision bigint;
BEGIN
    IF EXISTS (
        SELECT FROM unnest(compared, expected) AS c(key, revision) LEFT JOIN fspf.entry AS e USING (key)
        WHERE coalesce(e.revision, 0) <> c.revision
    ) THEN
        RETURN NULL;
    END IF;
    new_revision := nextval('fspf.revision');
    DELETE FROM fspf.entry WHERE key = ANY(removed);
    INSERT INTO fspf.entry SELECT p.key, p.value, new_revision FROM unnest(put, contents) AS p(key, value)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision;
    RETURN new_revision;
END
$$;
"""
_LOCK: Final = "SELECT count(pg_advisory_xact_lock(n)) FROM unnest(%s::bigint[]) AS n"
_TRANSACT: Final = "SELECT fspf.transact(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::bytea[])"
_GET: Final = "SELECT key, value, revision FROM fspf.entry WHERE key = ANY(%s::text[])"
_LIST: Final = "SELECT key, value, revision FROM fspf.entry WHERE key >= %s AND key < %s ORDER BY key"
_SCHEMA_LOCK: Final = 0x66737066_63617331  # "fspfcas1"


class _Transaction(NamedTuple):
    compare: Sequence[Compare]
    put: Sequence[Put]


class PostgresqlStore:
    """Implements `fspf.cas.store.Store` for any number of processes. Keeps no state but connections.

    Transactions of concurrent callers are one transaction of the database, sent in one go and synced once; each has its
    own compares. Before the first, the keys of all are locked in one order, so that batches of several processes wait
    for each other and never in a circle.
    """

    def __init__(self, url: str) -> None:
        """Connects with `open`, or the first request."""
        self._conninfo = url
        self._writers: asyncio.LifoQueue[_Link] = asyncio.LifoQueue()
        self._readers: asyncio.LifoQueue[_Link] = asyncio.LifoQueue()
        for queue, count in ((self._writers, _WRITERS), (self._readers, _READERS)):
            for _ in range(count):
                queue.put_nowait(_Link(url))
        self._writes: Batcher[_Transaction, int | None] = Batcher(self._do, begin=at_most(_MAX_BATCH), at_once=_WRITERS)
        self._reads: Batcher[str, Entry | None] = Batcher(self._read, begin=at_most(_MAX_BATCH), at_once=_READERS)
        self._closed = False
        self.transactions = 0  # for metrics
        self.commits = 0

    @property
    def url(self) -> str:
        parts = urlsplit(self._conninfo)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    async def open(self, *, create: bool) -> None:
        """Connect, and make what is missing in the database.

        Raises:
            CasError: It is no store, and *create* is false.
        """
        async with self._link(self._writers) as connection:
            found = await (await connection.execute("SELECT to_regclass('fspf.meta')::text")).fetchone()
            if found is None or found[0] is None:
                if not create:
                    raise CasError(f"there is no store in {self.url}: make it with fspf cas init")
                async with connection.transaction():
                    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
                    await connection.execute(_SCHEMA.replace("{version}", str(SCHEMA_VERSION)).encode())
            row = await (await connection.execute("SELECT version FROM fspf.meta")).fetchone()
            version = None if row is None else row[0]
            if version != SCHEMA_VERSION:
                raise UnsupportedFormatError(
                    f"the store {self.url} is of version {version}, this program knows {SCHEMA_VERSION}: use a newer fspf"
                )

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        return await self._reads.submit(key)

    async def _read(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        rows = {row[0]: Entry(bytes(row[1]), row[2]) for row in await self._rows(_GET, list(set(keys)))}
        return [rows.get(key) for key in keys]

    async def list(self, prefix: str) -> builtins.list[tuple[str, Entry]]:
        # Nothing of UTF-8 is above this, and it is not storable as a key: check_key wants printable text.
        rows = await self._rows(_LIST, prefix, prefix + "\U0010ffff")
        return [(key, Entry(bytes(value), revision)) for key, value, revision in rows]

    async def _rows(self, query: str, *arguments: Any) -> builtins.list[tuple[Any, ...]]:
        """Run a query that changes nothing; again if a connection turns out to be dead."""
        for attempt in range(_ATTEMPTS):
            try:
                async with self._link(self._readers) as connection:
                    cursor = await connection.execute(query.encode(), arguments, binary=True)
                    return await cursor.fetchall()
            except CasUnreachableError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        check_transaction(compare, put)
        return await self._writes.submit(_Transaction(compare, put))

    async def _do(self, batch: Sequence[_Transaction]) -> Sequence[int | None]:
        keys = {key for one in batch for key, _ in (*one.compare, *one.put)}
        async with self._link(self._writers) as connection:
            cursors = []
            async with connection.pipeline(), connection.transaction():
                await connection.execute(_LOCK, (sorted(map(_lock_number, keys)),))
                for compare, put in batch:
                    kept = [(key, value) for key, value in put if value is not None]
                    arguments = (
                        [key for key, _ in compare],
                        [revision for _, revision in compare],
                        [key for key, value in put if value is None],
                        [key for key, _ in kept],
                        [value for _, value in kept],
                    )
                    cursors.append(await connection.execute(_TRANSACT, arguments))
            rows = [await cursor.fetchone() for cursor in cursors]
        self.transactions += len(batch)
        self.commits += 1
        return [None if row is None else row[0] for row in rows]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writes.close()
        await self._reads.close()
        for queue in (self._writers, self._readers):
            while not queue.empty():
                await queue.get_nowait().close()

    @contextlib.asynccontextmanager
    async def _link(self, queue: asyncio.LifoQueue[_Link]) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        """Lend a connection; what goes wrong with it becomes an error of FSPF, and the next one gets a new connection."""
        if self._closed and queue.empty():
            raise CasError(f"the store {self.url} was closed")
        link = await queue.get()
        try:
            async with asyncio.timeout(_TIMEOUT_S + _CONNECT_S):
                yield await link.connected()
        except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError, OSError) as exc:
            await link.close()
            raise CasUnreachableError(f"the store {self.url} gives no answer: {_first_line(exc)}") from None
        except (errors.ReadOnlySqlTransaction, errors.InsufficientPrivilege) as exc:
            await link.close()
            raise CasUnreachableError(f"the store {self.url} cannot be written: {_first_line(exc)}") from None
        except psycopg.Error as exc:
            await link.close()
            raise CasError(f"the store {self.url}: {_first_line(exc)}") from None
        except BaseException:
            await link.close()  # in the middle of something
            raise
        finally:
            queue.put_nowait(link)


class _Link:
    """A connection that is made when it is needed, and again after it broke."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None

    async def connected(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._conninfo,
                autocommit=True,
                connect_timeout=_CONNECT_S,
                options=_SETTINGS,
                target_session_attrs="read-write",
                application_name="fspf-cas",
                prepare_threshold=1,
            )
        return self._connection

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _lock_number(key: str) -> int:
    """Map *key* to one of PostgreSQL's advisory locks; a collision only lets one wait for another."""
    return int.from_bytes(hashlib.sha256(b"fspf " + key.encode()).digest()[:8], "big", signed=True)


def _first_line(exc: BaseException) -> str:
    return str(exc).partition("\n")[0][:200] or type(exc).__name__
