"""Open the store that a URL names.

The kinds of stores are modules of their own, which are loaded when they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

import apsw

from fspf.cas.store import ABSENT, Compare, Entry, Put, Store
from fspf.core.errors import CasUnreachableError, UsageError
from fspf.core.keys import SecretKey


async def open_store(url: str, master: SecretKey) -> Store:  # noqa: ARG001
    """Open the store at *url*; its values are sealed under a key derived from *master*.

    Raises:
        UsageError: No such kind of store.
        CasUnreachableError: It does not answer.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        return _Interim(unquote(rest))
    raise UsageError(f"a store is named by sqlite:///PATH, etcd://HOST:PORT or postgresql://…, not {scheme!r}")


class _Interim:
    """Until store_sqlite is there."""

    def __init__(self, path: str) -> None:
        self.url = f"sqlite://{path}"
        try:
            self._db = apsw.Connection(path)
            self._db.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value BLOB, revision INTEGER)")
            self._db.execute("CREATE TABLE IF NOT EXISTS r (n INTEGER)")
            if self._db.execute("SELECT n FROM r").get is None:
                self._db.execute("INSERT INTO r VALUES (0)")
        except apsw.Error as exc:
            raise CasUnreachableError(f"{self.url}: {exc}") from None

    async def get(self, key: str) -> Entry | None:
        row = self._db.execute("SELECT value, revision FROM kv WHERE key = ?", (key,)).fetchone()
        return None if row is None else Entry(row[0], row[1])

    async def list(self, prefix: str) -> list[tuple[str, Entry]]:
        rows = self._db.execute(
            "SELECT key, value, revision FROM kv WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return [(k, Entry(v, r)) for k, v, r in rows]

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        with self._db:
            for key, revision in compare:
                entry = await self.get(key)
                if (ABSENT if entry is None else entry.revision) != revision:
                    return None
            new = self._db.execute("UPDATE r SET n = n + 1 RETURNING n").get
            for key, value in put:
                if value is None:
                    self._db.execute("DELETE FROM kv WHERE key = ?", (key,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO kv VALUES (?, ?, ?)", (key, value, new))
        return int(new)

    async def close(self) -> None:
        self._db.close()
