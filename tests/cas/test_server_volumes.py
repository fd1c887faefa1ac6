"""Volumes over the wire when things break: killed writers, a CAS that is away, copies put back, several processes of one CAS.

Requests that are wrong are in `test_server`, commits as such in tests/fault.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from fspf.cas.assembly import World
from fspf.cas.client import RemoteCas, key_holder
from fspf.cas.connection import Address
from fspf.cas.identity import make_identity
from fspf.core.anchor import NEVER_WRITTEN, Anchor, Holder
from fspf.core.errors import CasUnreachableError, FreshnessError, FspfError, LeaseHeldError
from fspf.core.freshness import Freshness
from fspf.volume.holder import this_process
from fspf.volume.volume import Volume
from tests.support.casserver import CasProcess, ThreadServer, init_server, start_server, thread_server
from tests.support.etcd import EtcdCluster
from tests.support.logs import Quiet
from tests.support.memstore import MemoryStore
from tests.support.mounted import Site

NOW: Final = 1_800_000_000_000_000_000
HOLDER: Final = Holder("host", "boot", 1, 1, 1, "test")


class Clock:
    """The time of a CAS."""

    def __init__(self) -> None:
        self.now_ns = NOW

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(scratch: Path, clock: Clock) -> Iterator[ThreadServer]:
    with thread_server(scratch, MemoryStore(), World(this_process("test"), clock)) as running:
        yield running


class ServerSite(Site):
    """A site whose CAS is a server."""

    url: str = ""

    @property
    def cas_url(self) -> str:
        return self.url

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "FSPF_CAS_IDENTITY": str(self.root / "identity.pem")}


def make_site(root: Path, url: str) -> ServerSite:
    site = ServerSite(root)
    site.url = url
    if not (root / "identity.pem").exists():
        make_identity(str(root / "identity.pem"))
        site.mountpoint.mkdir()
    return site


def mount(site: Site) -> int:
    """Mount and return the daemon's process id."""
    done = site.run("--json", "mount", "--log", site.log, site.volume, site.mountpoint)
    return int(done.stdout.split('"pid": ')[1].split("}")[0])


def wait_gone(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], 60)[0]
    finally:
        os.close(pidfd)


def write_and_sync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def test_killed_writer_keeps_the_lease_until_it_ends_and_what_was_synced_stays(
    server: ThreadServer, clock: Clock, scratch: Path
) -> None:
    site = make_site(scratch, server.url)
    site.run("create", site.volume)
    pid = mount(site)
    try:
        write_and_sync(site.mountpoint / "a", b"synced")
        os.kill(pid, signal.SIGKILL)
    finally:
        subprocess.run(["fusermount3", "-uz", str(site.mountpoint)], check=True)
    wait_gone(pid)
    refused = site.run("mount", site.volume, site.mountpoint, check=None)
    assert refused.returncode == 22
    assert f"/{pid} " in refused.stderr
    assert site.run("cat", f"{site.volume}:/a").stdout == "synced"
    clock.now_ns += 61 * 10**9
    mount(site)
    try:
        assert (site.mountpoint / "a").read_bytes() == b"synced"
        write_and_sync(site.mountpoint / "b", b"more")
    finally:
        site.run("umount", site.mountpoint)
    assert site.run("cat", f"{site.volume}:/b").stdout == "more"


def test_older_copy_is_refused(server: ThreadServer, scratch: Path) -> None:
    site = make_site(scratch, server.url)
    site.run("create", site.volume)
    mount(site)
    try:
        write_and_sync(site.mountpoint / "a", b"old")
    finally:
        site.run("umount", site.mountpoint)
    shutil.copytree(site.volume, scratch / "copy")
    mount(site)
    try:
        write_and_sync(site.mountpoint / "a", b"new")
    finally:
        site.run("umount", site.mountpoint)
    shutil.rmtree(site.volume)
    (scratch / "copy").rename(site.volume)
    assert site.run("mount", site.volume, site.mountpoint, check=None).returncode == FreshnessError.exit_code


def test_fsync_waits_while_the_cas_is_away(scratch: Path) -> None:
    init_server(scratch / "server")
    first = start_server(scratch / "server")
    port = Address.parse(first.url).hosts[0][1]
    second: CasProcess | None = None
    site = make_site(scratch, first.url)
    try:
        site.run("create", site.volume)
        mount(site)
        try:
            write_and_sync(site.mountpoint / "a", b"before")
            first.stop(signal.SIGKILL)
            written = threading.Thread(target=write_and_sync, args=(site.mountpoint / "b", b"while it was away"))
            written.start()
            said = threading.Event()
            while "the CAS is away, writers wait" not in site.read_log():
                said.wait(0.05)  # nobody tells us: the log is another process's
            assert written.is_alive()
            second = start_server(scratch / "server", listen=f"127.0.0.1:{port}")
            written.join()
            assert json.loads(site.run("--json", "status", site.mountpoint).stdout)["failed"] is None
            write_and_sync(site.mountpoint / "c", b"after")
        finally:
            site.run("umount", site.mountpoint)
        assert site.run("cat", f"{site.volume}:/b").stdout == "while it was away"
        assert site.run("cat", f"{site.volume}:/c").stdout == "after"
    finally:
        first.stop()
        if second is not None:
            assert second.stop() == 0


def write(volume: Volume, name: bytes) -> None:
    volume.write_bytes(b"/" + name, name)
    volume.fsync()


def test_cas_that_stays_away_turns_the_volume_read_only_and_nothing_is_lost(scratch: Path, quiet: Quiet) -> None:
    quiet.allow("the CAS is away")
    quiet.require("turned read-only")
    init_server(scratch / "server")
    first = start_server(scratch / "server")
    port = Address.parse(first.url).hosts[0][1]
    cas = RemoteCas(Address.parse(first.url), key_holder(ed25519.Ed25519PrivateKey.generate()))
    second: CasProcess | None = None
    volume = Volume.create(scratch / "volume", cas, commit_interval=None, cas_timeout_s=0.2)
    try:
        write(volume, b"a")
        first.stop(signal.SIGKILL)
        with pytest.raises(CasUnreachableError, match="anchored: the volume is read-only until it is opened again"):
            write(volume, b"b")
        with pytest.raises(OSError, match="turned read-only"):
            write(volume, b"c")
        with pytest.raises((FspfError, OSError)):
            volume.close()
        second = start_server(scratch / "server", listen=f"127.0.0.1:{port}")
        with pytest.raises(LeaseHeldError):  # a server knows nothing of our processes: the lease ends by time
            Volume.open(scratch / "volume", cas)
        lease = cas.fetch(volume.header.volume_id).lease
        assert lease is not None
        cas.release(volume.header.volume_id, lease)
        with Volume.open(scratch / "volume", cas, commit_interval=None) as again:
            assert again.read_bytes(b"/b") == b"b"
    finally:
        cas.close()
        first.stop()
        if second is not None:
            assert second.stop() == 0


def test_client_goes_on_with_another_process_of_the_same_cas(etcd_one: EtcdCluster, scratch: Path) -> None:
    init_server(scratch / "server", "--store", f"{etcd_one.url}/{secrets.token_hex(4)}")
    one, two = start_server(scratch / "server"), start_server(scratch / "server")
    try:
        hosts = (*Address.parse(one.url).hosts, *Address.parse(two.url).hosts)
        cas = RemoteCas(Address(hosts, one.key_hash), key_holder(ed25519.Ed25519PrivateKey.generate()))
        volume_id, now = secrets.token_bytes(16), NEVER_WRITTEN
        cas.create(volume_id, "v", Freshness.strict())
        lease = cas.acquire(volume_id, expected=now, expected_epoch=0, adopt=now, holder=HOLDER)
        for generation in range(1, 11):
            new = Anchor(generation, bytes([generation]) * 16)
            if generation == 6:
                one.stop(signal.SIGKILL)
            try:
                cas.advance(volume_id, lease, now, new)
            except CasUnreachableError:  # its outcome is unknown: asked, as a volume does
                if cas.fetch(volume_id).anchor != new:
                    cas.advance(volume_id, lease, now, new)
            now = new
        assert cas.fetch(volume_id).anchor == now
        cas.close()
    finally:
        one.stop()
        assert two.stop() == 0
