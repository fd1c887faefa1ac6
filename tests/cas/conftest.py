"""Fixtures of the level `cas`: the stores, started for real, once for the whole run.

Making and stopping servers is left to tests/support.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fspf.cas.open_store import open_store
from fspf.cas.sealed_store import SealedStore
from fspf.cas.store import Store
from fspf.core.keys import SecretKey
from tests.support.etcd import EtcdCluster, running_etcd
from tests.support.memstore import MemoryStore
from tests.support.postgresql import Postgresql, running_postgresql

# Opens the store under test, each time it is called once more: for another process's view of the same data.
Opener = Callable[[], Awaitable[Store]]


@pytest.fixture(scope="session")
def etcd_one(scratch_root: Path) -> Iterator[EtcdCluster]:
    with running_etcd(Path(tempfile.mkdtemp(dir=scratch_root))) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def etcd_three(scratch_root: Path) -> Iterator[EtcdCluster]:
    with running_etcd(Path(tempfile.mkdtemp(dir=scratch_root)), nodes=3) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def postgresql(scratch_root: Path) -> Iterator[Postgresql]:
    with running_postgresql(Path(tempfile.mkdtemp(dir=scratch_root))) as server:
        yield server


SERVERS = {"etcd": "etcd_one", "etcd-3-nodes": "etcd_three", "postgresql": "postgresql"}  # the fixture of each
STORES = ("memory", "sqlite", *SERVERS, "sealed")


# Of session scope, so that a server is started before the test that first needs it looks at what is running.
@pytest.fixture(scope="session", params=STORES)
def any_server(request: pytest.FixtureRequest) -> EtcdCluster | Postgresql | str:
    return _server(request)


@pytest.fixture(scope="session", params=SERVERS)
def shared_server(request: pytest.FixtureRequest) -> EtcdCluster | Postgresql | str:
    return _server(request)


def _server(request: pytest.FixtureRequest) -> EtcdCluster | Postgresql | str:
    name: str = request.param
    found: EtcdCluster | Postgresql | str = request.getfixturevalue(SERVERS[name]) if name in SERVERS else name
    return found


@pytest.fixture
def opener(any_server: EtcdCluster | Postgresql | str, scratch: Path) -> Opener:
    """Open the store under test. It is empty when the test begins."""
    return opener_of(any_server, scratch)


@pytest.fixture
def shared_opener(shared_server: EtcdCluster | Postgresql | str, scratch: Path) -> Opener:
    """Open a store that several processes can share."""
    return opener_of(shared_server, scratch)


def opener_of(server: EtcdCluster | Postgresql | str, scratch: Path) -> Opener:
    """Return what opens a new store of one kind."""
    if server in {"memory", "sealed"}:
        memory = MemoryStore()
        key = SecretKey.generate()

        async def open_memory() -> Store:
            await asyncio.sleep(0)
            return memory if server == "memory" else SealedStore(memory, key)

        return open_memory
    if isinstance(server, str):
        return lambda: open_store(f"sqlite://{scratch}/cas.sqlite", create=True)
    url = server.new_database() if isinstance(server, Postgresql) else server.new_url()
    return lambda: open_store(url, create=True)
