"""Secrets of a policy from the document to the running service: real TLS sockets, openssl, an engine over a store."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from fspf.cas import secret_store
from fspf.cas.configuration import Configuration, configuration_of, document
from fspf.cas.issuer import SecretIssuer
from fspf.core.errors import CasError, ConflictError, FspfError
from fspf.policy.document import parse_policy
from fspf.policy.model import Policy
from tests.support.memstore import MemoryStore

DAY = 86_400 * 1_000_000_000

DOCUMENT = """\
version: "0.3"
name: messenger/db
services:
  - name: server
    image_name: image
    command: [serve, --password, "$$SCONE::pass$$"]
    environment: { TOKEN: "$$SCONE::token:hex$$", MODE: prod }
    pwd: /
    attestation: [ { mrenclave: 0000000000000000000000000000000000000000000000000000000000000001 } ]
  - name: client
    image_name: image
    command: [ask]
    attestation: [ { mrenclave: 0000000000000000000000000000000000000000000000000000000000000002 } ]
images:
  - name: image
    volumes: [ { name: data, path: /data } ]
    injection_files:
      - { path: /server.pem, permission: 0o400, content: "$$SCONE::server:privatekey$$$$SCONE::server:chain$$" }
      - { path: /client.pem, content: "$$SCONE::client:privatekey$$$$SCONE::client:chain$$" }
      - { path: /ca.pem, permission: 0o444, content: "$$SCONE::ca:chain$$" }
volumes:
  - name: data
secrets:
  - { name: pass, kind: ascii, size: 24 }
  - { name: unused, kind: ascii, size: 24 }
  - { name: token, kind: binary, size: 16 }
  - { name: key, kind: private-key, key_type: KEYTYPE }
  - { name: ca, kind: x509-ca, private_key: key, common_name: messenger }
  - { name: server, kind: x509, issuer: ca, endpoint: server, san: ["dns:db.local"] }
  - { name: client, kind: x509, issuer: ca, endpoint: client, common_name: client }
access_policy: { read: [CREATOR], update: [CREATOR] }
"""


def parsed(text: str = DOCUMENT, key_type: str = "P-256") -> Policy:
    return parse_policy(text.replace("KEYTYPE", key_type).encode())


class World:
    """A store, an issuer, and a clock that is set."""

    def __init__(self, **options: Any) -> None:
        import time

        self.store = MemoryStore()
        self.now_ns = time.time_ns()
        self.issuer = SecretIssuer(self.store, clock=lambda: self.now_ns, **options)

    async def put(self, policy: Policy, old: Policy | None = None) -> None:
        compare, put = await self.issuer.issue(policy, old, {})
        assert await self.store.transact(compare, put) is not None

    async def configure(self, policy: Policy, service: str = "server") -> Configuration:
        values = await self.issuer.values_for(policy, service, {})
        return configuration_of(policy, service, values, {"data": "ab" * 16})


def files_of(configuration: Configuration, directory: Path) -> dict[str, str]:
    directory.mkdir(parents=True)
    paths = {}
    for file in configuration.files:
        path = directory / file.path.lstrip("/")
        path.write_bytes(file.content)
        paths[path.name] = str(path)
    return paths


def handshake(server: dict[str, str], client: dict[str, str], *, name: str = "db.local") -> str:
    """A mutual TLS connection between what the two were given; what the server saw of the client."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server["server.pem"])
    serving.load_verify_locations(server["ca.pem"])
    serving.verify_mode = ssl.CERT_REQUIRED
    asking = ssl.create_default_context(cafile=client["ca.pem"])
    asking.load_cert_chain(client["client.pem"])
    for context in (serving, asking):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    seen: list[str] = []
    failed: list[Exception] = []

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            try:
                connection, _ = listener.accept()
                with connection, serving.wrap_socket(connection, server_side=True) as tls:
                    certificate = tls.getpeercert()
                    assert certificate is not None
                    seen.append(str(certificate["subject"]))
                    tls.sendall(b"ok")
            except OSError as exc:  # an SSLError is one
                failed.append(exc)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), 20) as plain:
                with asking.wrap_socket(plain, server_hostname=name) as tls:
                    received = tls.recv(2)
        finally:
            thread.join(20)
    if failed:
        raise failed[0]
    assert received == b"ok"
    return seen[0]


@pytest.mark.parametrize("key_type", ["P-256", "P-384", "Ed25519", "RSA-2048"])
def test_two_services_of_a_policy_speak_mutual_tls(scratch: Path, key_type: str) -> None:
    async def main() -> tuple[Configuration, Configuration]:
        world, policy = World(), parsed(key_type=key_type)
        await world.put(policy)
        return await world.configure(policy), await world.configure(policy, "client")

    server, client = asyncio.run(main())
    assert "client" in handshake(files_of(server, scratch / "s"), files_of(client, scratch / "c"))
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(files_of(server, scratch / "s2"), files_of(client, scratch / "c2"), name="other.local")


def test_services_of_another_policy_are_not_trusted(scratch: Path) -> None:
    async def main() -> list[Configuration]:
        found = []
        for name in ("messenger/db", "stranger/db"):
            world, policy = World(), parsed(DOCUMENT.replace("messenger/db", name))
            await world.put(policy)
            found += [await world.configure(policy)]
        return found

    ours, theirs = asyncio.run(main())
    server, client = files_of(ours, scratch / "s"), files_of(theirs, scratch / "c")
    with pytest.raises(ssl.SSLError):
        handshake(server, client)
    with pytest.raises(ssl.SSLError):  # even if the client is careless, the server is not
        handshake(server, client | {"ca.pem": server["ca.pem"]})


def test_services_started_before_and_after_an_update_trust_each_other(scratch: Path) -> None:
    """The CA got another key in between, twice: links lead from each to each."""

    async def main() -> list[Configuration]:
        world, policy = World(), parsed()
        found, old = [], None
        for _ in range(3):
            await world.put(policy, old)
            found.append(await world.configure(policy))
            old = policy
        return found

    generations = [files_of(each, scratch / str(index)) for index, each in enumerate(asyncio.run(main()))]
    for server in generations:
        for client in generations:
            handshake(server, client)


def test_after_a_rotation_whoever_left_is_no_longer_trusted(scratch: Path) -> None:
    async def main() -> list[Configuration]:
        world, policy = World(), parsed()
        await world.put(policy)
        before = await world.configure(policy)
        assert await world.issuer.rotate(policy, ["key", "pass"], {}) == ["ca", "client", "key", "pass", "server"]
        return [before, await world.configure(policy)]

    before, after = asyncio.run(main())
    assert before.command[2] != after.command[2]
    left, stayed = files_of(before, scratch / "left"), files_of(after, scratch / "stayed")
    handshake(stayed, stayed)
    for server, client in ((stayed, left), (left, stayed)):
        with pytest.raises(ssl.SSLError):
            handshake(server, client)


def test_openssl_verifies_chain_and_purpose(scratch: Path) -> None:
    async def main() -> list[Configuration]:
        world, policy = World(), parsed()
        await world.put(policy)
        first = await world.configure(policy)
        await world.put(policy, policy)
        return [first, await world.configure(policy)]

    first, second = asyncio.run(main())
    old, new = files_of(first, scratch / "old"), files_of(second, scratch / "new")
    for trusted in (old, new):
        for purpose, good in (("sslserver", True), ("sslclient", False)):
            command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", trusted["ca.pem"]]
            command += ["-untrusted", new["server.pem"], new["server.pem"]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert (done.returncode == 0) is good, done.stdout + done.stderr


def test_configuration_has_everything_and_only_what_is_needed() -> None:
    async def main() -> None:
        world, policy = World(), parsed()
        await world.put(policy)
        values = await world.issuer.values_for(policy, "server", {})
        assert set(values) == {"pass", "token", "server", "client", "ca"}
        configuration = await world.configure(policy)
        assert configuration.command == ("serve", "--password", values["pass"].raw.decode())
        assert configuration.environment == {"TOKEN": values["token"].raw.hex(), "MODE": "prod"}
        assert [(file.path, file.permission) for file in configuration.files] == [
            ("/server.pem", 0o400), ("/client.pem", 0o400), ("/ca.pem", 0o444)
        ]  # fmt: skip
        (volume,) = configuration.volumes
        assert (volume.name, volume.volume_id, volume.path) == ("data", "ab" * 16, "/data")
        text = repr(configuration) + repr(values)
        for hidden in (
            values["pass"].raw.decode(),
            values["token"].raw.hex(),
            "PRIVATE KEY",
            repr(values["token"].raw),
        ):
            assert hidden not in text
        assert document(configuration)["volumes"][0]["volume_id"] == "ab" * 16

    asyncio.run(main())


def test_missing_secret_and_volume_are_one_error_and_nothing_partial() -> None:
    async def main() -> None:
        world, policy = World(), parsed()
        await world.put(policy)
        values = await world.issuer.values_for(policy, "server", {})
        shown = [value.raw.hex() for value in values.values() if value.raw]
        del values["pass"], values["ca"]
        with pytest.raises(CasError, match="there is no secret ca, no secret pass, no volume data") as caught:
            configuration_of(policy, "server", values, {})
        assert not any(one in str(caught.value) for one in shown)
        with pytest.raises(CasError, match="has no service other"):
            configuration_of(policy, "other", values, {})

    asyncio.run(main())


def test_values_change_with_the_policy_or_not_at_all() -> None:
    async def main() -> None:
        world, policy = World(), parsed()
        await world.put(policy)
        stored = await secret_store.load(world.store, policy.name)
        first = await world.issuer.issue(policy, policy, {})
        await world.issuer.rotate(policy, ["pass"], {})
        assert await world.store.transact(*first) is None  # made from values that are no longer those
        again = await secret_store.load(world.store, policy.name)
        assert again.values["pass"] != stored.values["pass"]
        assert again.values["token"] == stored.values["token"]
        compare, put = await world.issuer.forget(policy)
        assert await world.store.transact(compare, put) is not None
        assert await secret_store.load(world.store, policy.name) == ({}, 0)

    asyncio.run(main())


def test_rotation_that_meets_an_update_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        world, policy = World(), parsed()
        await world.put(policy)
        compare, put = await world.issuer.issue(policy, policy, {})
        load = secret_store.load

        async def overtaken(store: Any, name: str) -> secret_store.Stored:
            found = await load(store, name)
            assert await world.store.transact(compare, put) is not None
            return found

        monkeypatch.setattr(secret_store, "load", overtaken)
        with pytest.raises(ConflictError, match="somebody else"):
            await world.issuer.rotate(policy, ["pass"], {})

    asyncio.run(main())


def test_certificates_are_renewed_when_their_end_is_near(scratch: Path) -> None:
    async def main() -> list[Configuration]:
        world, policy = World(), parsed()
        world.now_ns -= 80 * DAY
        await world.put(policy)
        before = await world.configure(policy)
        assert await world.issuer.renew(policy, {}) == []
        world.now_ns += 80 * DAY
        assert await world.issuer.renew(policy, {}) == ["server", "client"]
        return [before, await world.configure(policy)]

    before, after = asyncio.run(main())
    handshake(files_of(after, scratch / "s"), files_of(before, scratch / "c"))


@pytest.mark.parametrize("seed", range(20))
def test_damaged_values_are_an_error_and_never_shown(seed: int) -> None:
    async def main() -> None:
        world, policy = World(), parsed()
        await world.put(policy)
        rng = random.Random(seed)
        packed = secret_store.pack((await secret_store.load(world.store, policy.name)).values)
        damaged = packed[: rng.randrange(len(packed))] if seed % 2 else rng.randbytes(rng.randrange(60))
        with pytest.raises(FspfError, match=r"damaged|version"):
            secret_store.unpack(damaged)

    asyncio.run(main())
