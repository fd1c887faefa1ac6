"""A database that dies, forbids or is something else: nothing acknowledged is lost, and what is wrong is said.

The contract that holds without faults is in test_stores.py.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fspf.cas.open_store import open_store
from fspf.cas.store import Put
from fspf.core.errors import CasError, CasUnreachableError, FspfError
from tests.cas.load import Load
from tests.support.logs import Quiet
from tests.support.postgresql import Postgresql, running_postgresql

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server(scratch: Path) -> Iterator[Postgresql]:
    with running_postgresql(Path(tempfile.mkdtemp(dir=scratch))) as server:
        yield server


@pytest.mark.parametrize("how", ["crashed", "stopped"])
def test_server_goes_under_load_and_comes_back(server: Postgresql, how: str, quiet: Quiet) -> None:
    quiet.allow("the connection is lost")  # psycopg's own words; the store says it too

    async def run() -> None:
        url = server.new_database()
        stores = [await open_store(url, create=True), await open_store(url)]
        load = Load(stores, 8)
        load.start()
        await load.advance(30)
        if how == "crashed":
            server.kill()
        else:
            server.stop()
        await load.refused()
        with pytest.raises(CasUnreachableError, match="gives no answer"):
            await stores[0].get("w/0")
        await asyncio.to_thread(server.start)
        await load.advance(30)
        await load.stop()
        await load.check(stores[0])
        for store in stores:
            await store.close()

    asyncio.run(run())


def test_answer_means_durable_whatever_the_servers_default(postgresql: Postgresql) -> None:
    async def run() -> None:
        url = postgresql.new_database()
        with psycopg.connect(url, autocommit=True) as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
            connection.execute("ALTER ROLE fspf SET default_transaction_isolation = 'serializable'")
        store = await open_store(url, create=True)
        try:
            link = store._writers.get_nowait()  # type: ignore[attr-defined]
            connection_of_store = await link.connected()
            for setting, value in (("synchronous_commit", "on"), ("transaction_isolation", "read committed")):
                row = await (await connection_of_store.execute(f"SHOW {setting}")).fetchone()
                assert row == (value,)
            store._writers.put_nowait(link)  # type: ignore[attr-defined]
        finally:
            await store.close()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER ROLE fspf RESET default_transaction_isolation")

    asyncio.run(run())


def test_serving_does_not_make_a_store(postgresql: Postgresql) -> None:
    url = postgresql.new_database()
    with pytest.raises(CasError, match="there is no store"):
        asyncio.run(open_store(url))


def test_several_may_make_the_same_store(postgresql: Postgresql) -> None:
    async def run() -> None:
        url = postgresql.new_database()
        stores = await asyncio.gather(*(open_store(url, create=True) for _ in range(4)))
        assert None not in await asyncio.gather(*(store.transact([], [Put("k", b"v")]) for store in stores))
        for store in stores:
            await store.close()

    asyncio.run(run())


def test_newer_store_is_refused(postgresql: Postgresql) -> None:
    async def run() -> None:
        url = postgresql.new_database()
        await (await open_store(url, create=True)).close()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE fspf.meta SET version = 99")
        with pytest.raises(FspfError, match="use a newer fspf"):
            await open_store(url)

    asyncio.run(run())


def test_database_that_only_reads(postgresql: Postgresql) -> None:
    async def run() -> None:
        url = postgresql.new_database()
        await (await open_store(url, create=True)).close()
        name = url.rpartition("/")[2]
        with psycopg.connect(postgresql.admin_url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        with pytest.raises(CasUnreachableError, match=r"read.only"):
            await open_store(url)

    asyncio.run(run())


def test_password_is_in_no_message(postgresql: Postgresql) -> None:
    secret = f"postgresql://nobody:hunter2@127.0.0.1:{postgresql.port}/t999?password=hunter2"
    with pytest.raises(CasUnreachableError) as refused:
        asyncio.run(open_store(secret))
    assert "hunter2" not in str(refused.value)
