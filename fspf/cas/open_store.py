"""Which store a URL names: `sqlite:///path`, `etcd://host:port,…/prefix`, `postgresql://…`.

Each store is a module of its own, loaded only when a URL names it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from fspf.cas.store import Store

ETCD_ENVIRONMENT: Final = {"ca": "FSPF_ETCD_CA", "cert": "FSPF_ETCD_CERT", "key": "FSPF_ETCD_KEY"}
_FORMS: Final = "sqlite:///path, etcd://host:port,host:port/prefix or postgresql://user@host/database"


async def open_store(url: str, *, create: bool = False) -> Store:
    """Open the store that *url* names.

    Args:
        url: For etcd, `?ca=…&cert=…&key=…` name PEM files (or the variables of `ETCD_ENVIRONMENT` do) and
            `?cluster=…` the id of the only cluster to be accepted.
        create: Whether a store may be made where there is none.

    Raises:
        UsageError: *url* names no store.
        CasError, CasUnreachableError, RolledBackError: As the store says.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.strip("/") or options:
            raise UsageError(f"{url!r} names no file: sqlite:///var/lib/fspf/cas.sqlite")
        from fspf.cas.store_sqlite import SqliteStore

        path = unquote(parts.path)
        return await asyncio.to_thread(lambda: SqliteStore(path, create=create))
    if parts.scheme == "etcd":
        from fspf.cas.store_etcd import DEFAULT_PREFIX, EtcdOptions, EtcdStore

        unknown = options.keys() - {"ca", "cert", "key", "cluster"}
        if unknown:
            raise UsageError(f"etcd URL: unknown option {min(unknown)!r}; known are ca, cert, key, cluster")
        for name, variable in ETCD_ENVIRONMENT.items():
            options.setdefault(name, os.environ.get(variable, ""))
        return EtcdStore(
            EtcdOptions(
                endpoints=tuple(one for one in parts.netloc.split(",") if one),
                prefix=unquote(parts.path).strip("/") or DEFAULT_PREFIX,
                ca=options["ca"],
                certificate=options["cert"],
                key=options["key"],
                cluster=options.get("cluster", ""),
            )
        )
    if parts.scheme in {"postgresql", "postgres"}:
        from fspf.cas.store_postgresql import PostgresqlStore

        store = PostgresqlStore(url)
        await store.open(create=create)
        return store
    raise UsageError(f"{url!r} names no store: {_FORMS}")
