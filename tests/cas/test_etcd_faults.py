"""A cluster whose nodes die, freeze, lose their quorum or are exchanged: nothing acknowledged is lost, nobody is deceived.

The contract that holds without faults is in test_stores.py.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fspf.cas.open_store import open_store
from fspf.cas.store import Put, Store
from fspf.cas.store_etcd import EtcdOptions, EtcdStore
from fspf.core.errors import CasError, CasUnreachableError, RolledBackError, UsageError
from tests.cas.load import Load
from tests.support.etcd import EtcdCluster, require_etcd, running_etcd

pytestmark = pytest.mark.timeout(120)
WRITERS = 8


@pytest.fixture
def cluster(scratch: Path) -> Iterator[EtcdCluster]:
    with running_etcd(scratch / "etcd", nodes=3) as cluster:
        yield cluster


@pytest.mark.parametrize("which", ["leader", "follower"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_one_node_of_three_goes_under_load(cluster: EtcdCluster, which: str, how: str) -> None:
    async def run() -> None:
        stores = [await open_store(cluster.url), await open_store(cluster.url)]
        load = Load(stores, WRITERS)
        load.start()
        await load.advance(20)
        leader = cluster.leader()
        node = leader if which == "leader" else next(one for one in cluster.nodes if one is not leader)
        if how == "killed":
            node.kill()
        else:
            node.freeze()
        await load.advance(20)
        if how == "killed":
            cluster.start(node)
        else:
            node.thaw()
        await load.advance(20)
        await load.stop()
        await load.check(stores[0])
        for store in stores:
            await store.close()

    asyncio.run(run())


def test_without_quorum_nothing_is_answered_and_with_it_all_goes_on(cluster: EtcdCluster) -> None:
    async def run() -> None:
        store = await open_store(cluster.url)
        load = Load([store], WRITERS)
        load.start()
        await load.advance(10)
        gone = cluster.nodes[:2]
        for node in gone:
            node.kill()
        await load.refused()
        with pytest.raises(CasUnreachableError, match="gives no answer"):
            await store.get("w/0")  # also reads: what a lone node has may be old
        cluster.start(*gone)
        await load.advance(10)
        await load.stop()
        await load.check(store)
        await store.close()

    asyncio.run(run())


def test_whole_cluster_is_killed_and_comes_back(cluster: EtcdCluster) -> None:
    async def run() -> None:
        store = await open_store(cluster.url)
        load = Load([store], WRITERS)
        load.start()
        await load.advance(10)
        cluster.kill()
        await load.refused()
        cluster.start()
        await load.advance(10)
        await load.stop()
        await load.check(store)
        await store.close()

    asyncio.run(run())


def test_members_are_those_of_the_quorum(cluster: EtcdCluster) -> None:
    async def run() -> None:
        store = EtcdStore(EtcdOptions(tuple(node.address for node in cluster.nodes)))
        assert await store.members() == ["n0", "n1", "n2"]
        assert len(store.cluster) == 16
        cluster.nodes[0].kill()
        assert await store.members() == ["n0", "n1", "n2"]
        cluster.nodes[1].kill()
        with pytest.raises(CasUnreachableError):
            await store.members()
        await store.close()

    asyncio.run(run())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_dead_endpoints_are_passed_over(etcd_one: EtcdCluster) -> None:
    async def run() -> None:
        url = etcd_one.new_url()
        dead = url.replace("etcd://", f"etcd://127.0.0.1:{free_port()},127.0.0.1:{free_port()},")
        store = await open_store(dead)
        revision = await store.transact([], [Put("k", b"v")])
        assert await store.get("k") == (b"v", revision)
        await store.close()

    asyncio.run(run())


def test_no_endpoint_at_all() -> None:
    async def run() -> None:
        store = await open_store(f"etcd://127.0.0.1:{free_port()}")
        with pytest.raises(CasUnreachableError, match="gives no answer"):
            await store.transact([], [Put("k", b"v")])
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{}",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]",
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
)
def test_something_else_at_the_endpoint(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            store = await open_store(f"etcd://127.0.0.1:{port}")
            with pytest.raises(CasUnreachableError):
                await store.transact([], [Put("k", b"v")])
            await store.close()

    asyncio.run(run())


# -- clusters that are not the one, or not the newest


def test_pinned_cluster_is_the_only_one_accepted(etcd_one: EtcdCluster, etcd_three: EtcdCluster) -> None:
    async def run() -> None:
        store = EtcdStore(EtcdOptions((etcd_one.nodes[0].address,)))
        await store.get("k")
        pinned = store.cluster
        await store.close()
        for cluster, accepted in ((etcd_one, True), (etcd_three, False)):
            store_again = await open_store(f"{cluster.new_url()}?cluster={pinned}")
            if accepted:
                await put(store_again)
            else:
                with pytest.raises(RolledBackError, match=f"{pinned} expected"):
                    await put(store_again)
                with pytest.raises(RolledBackError):
                    await store_again.get("k")
            await store_again.close()

    asyncio.run(run())


async def put(store: Store) -> None:
    assert await store.transact([], [Put("k", b"v")]) is not None


def test_cluster_that_is_put_back_while_serving_is_noticed(scratch: Path) -> None:
    require_etcd()
    with EtcdCluster(scratch / "etcd", 1) as cluster:
        cluster.wait()

        async def run() -> None:
            store = await open_store(cluster.url)
            await put(store)
            (node,) = cluster.nodes
            node.kill()
            shutil.copytree(node.directory, scratch / "old")
            cluster.start(node)
            cluster.wait()
            await store.get("k")  # over a new connection: the old one broke
            for _ in range(10):
                await put(store)
            node.kill()
            shutil.rmtree(node.directory)
            shutil.copytree(scratch / "old", node.directory)
            cluster.start(node)
            cluster.wait()
            with pytest.raises(RolledBackError, match="put back"):
                await store.get("k")
            await store.close()

        asyncio.run(run())


# -- TLS


def openssl(*arguments: str, directory: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def pki(scratch: Path) -> Path:
    """A CA, and a certificate for server and client; and another CA."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    for name in ("ca", "other"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem", directory=directory)
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
    use = ["-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", "basicConstraints=CA:FALSE"]
    for name in ("server", "client"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        openssl(*new, "-subj", f"/CN={name}", *files, *signed, *use, directory=directory)
    return directory


def test_tls_with_client_certificates(pki: Path, scratch: Path) -> None:
    require_etcd()
    extra = ["--cert-file", "server.pem", "--key-file", "server.key", "--trusted-ca-file", "ca.pem"]
    options = (*(f"{pki}/{one}" if "." in one else one for one in extra), "--client-cert-auth")
    with EtcdCluster(scratch / "etcd", 1, extra=options, scheme="https") as cluster:

        async def run() -> None:
            good = f"{cluster.url}?ca={pki}/ca.pem&cert={pki}/client.pem&key={pki}/client.key"
            store = await open_store(good)
            for _ in range(100):
                try:
                    await put(store)
                    break
                except CasUnreachableError:  # it is starting
                    await asyncio.sleep(0.1)
            await put(store)
            assert await store.list("") != []
            await store.close()
            for bad in (
                f"{cluster.url}?ca={pki}/other.pem&cert={pki}/client.pem&key={pki}/client.key",  # who is this server?
                f"{cluster.url}?ca={pki}/ca.pem",  # who is this client?
                cluster.url,  # no TLS
            ):
                store = await open_store(bad)
                with pytest.raises(CasUnreachableError):
                    await put(store)
                await store.close()

        asyncio.run(run())


def test_unusable_certificates_are_refused_at_once(pki: Path) -> None:
    for options in (f"ca={pki}/missing.pem", f"ca={pki}/ca.key", f"cert={pki}/client.pem", f"ca={pki}/ca.pem&cert=/x"):
        with pytest.raises(CasError, match="certificate"):
            asyncio.run(open_store(f"etcd://127.0.0.1:1?{options}"))
    with pytest.raises(UsageError):
        asyncio.run(open_store("etcd://127.0.0.1:1?tls=1"))
    with pytest.raises(CasError, match="no endpoint"):
        asyncio.run(open_store("etcd:///prefix"))
