"""Load on a CAS server, generator included: one client after the other, then many at once, each moving its own volume's anchor.

    benchmarks/cas_load.py URL#KEYHASH [--clients 64] [--seconds 8] [--single 1000] [--services 6000]

With --services, so many attest as a service of a policy, all of them connected at once, fetch their configuration, attest with
a key of their own, make a volume and move its anchor.

Starting a server, and keeping the machine quiet, is left to the caller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import ssl
import time
from collections.abc import Callable
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric import ed25519

from fspf.attestation import key as key_evidence
from fspf.attestation.signatures import spki_of
from fspf.cas import exchange, wire
from fspf.cas.client import RemoteCas, key_holder
from fspf.cas.connection import Address, client_context
from fspf.cas.identity import id_of
from fspf.cas.proof import Prover
from fspf.cas.tokens import binding_of
from fspf.core.anchor import Anchor, Holder, Lease
from fspf.core.freshness import Freshness


def holder(number: int) -> Holder:
    return Holder("bench", "boot", number, 1, 1, "bench")


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def report(name: str, seconds: list[float], elapsed: float) -> None:
    p50, p99 = (quantile(seconds, part) * 1000 for part in (0.5, 0.99))
    print(
        f"{name}: {len(seconds) / elapsed:.0f}/s, p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max(seconds) * 1000:.2f} ms"
    )


def single(url: str, count: int) -> None:
    """One client, one anchor after the other, through the product's own client."""
    cas = RemoteCas(Address.parse(url), key_holder(ed25519.Ed25519PrivateKey.generate()))
    volume_id = secrets.token_bytes(16)
    record = cas.create(volume_id, "single", Freshness.strict())
    lease = cas.acquire(
        volume_id, expected=record.anchor, expected_epoch=record.epoch, adopt=record.anchor, holder=holder(1)
    )
    now = record.anchor
    seconds = []
    began = time.perf_counter()
    for generation in range(1, count + 1):
        new = Anchor(generation, generation.to_bytes(16, "big"))
        before = time.perf_counter()
        cas.advance(volume_id, lease, now, new)
        seconds.append(time.perf_counter() - before)
        now = new
    report("single stream", seconds, time.perf_counter() - began)
    cas.close()


class Stream:
    """One client of the load: its own connection, token and volume."""

    def __init__(self, address: Address, number: int) -> None:
        self.address = address
        self.number = number
        self.host, self.port = address.hosts[0]
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.volume_id = secrets.token_bytes(16)
        self.generation = 0
        self.now = Anchor(0, bytes(16))
        self.seconds: list[float] = []

    def prepare(self) -> None:
        cas = RemoteCas(self.address, key_holder(self.key))
        cas.create(self.volume_id, f"load {self.number}", Freshness.strict())
        self.lease: Lease = cas.acquire(
            self.volume_id, expected=self.now, expected_epoch=0, adopt=self.now, holder=holder(self.number)
        )
        session = cas._current_session()  # noqa: SLF001 - the load sends what the client sends
        self.token = session.token
        self.prover: Prover = cas._prover  # noqa: SLF001
        self.nonce = cas._nonces[self.host, self.port]  # noqa: SLF001
        cas.close()

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, ssl=client_context())

    async def run(self, until: Callable[[], bool]) -> None:
        path = f"/v1/volumes/{self.volume_id.hex()}/anchor"
        url = f"https://{self.host}:{self.port}{path}"
        while not until():
            self.generation += 1
            new = Anchor(self.generation, self.generation.to_bytes(16, "big"))
            document: dict[str, Any] = {
                "lease": wire.lease_members(self.lease),
                "expected": wire.anchor_members(self.now),
                "new": wire.anchor_members(new),
            }
            body = json.dumps(document, separators=(",", ":")).encode()
            before = time.perf_counter()
            proof = self.prover.prove(
                method="POST", url=url, token=self.token, nonce=self.nonce, body=body, now_s=int(time.time())
            )
            self.writer.write(
                f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
                f"Authorization: DPoP {self.token}\r\nDPoP: {proof}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head = await self.reader.readuntil(b"\r\n\r\n")
            lines = head.split(b"\r\n")
            headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
            answer = await self.reader.readexactly(int(headers[b"content-length"]))
            if b" 200 " not in lines[0]:
                raise RuntimeError(answer.decode())
            self.nonce = headers[b"dpop-nonce"].decode()
            self.seconds.append(time.perf_counter() - before)
            self.now = new


async def many(url: str, clients: int, seconds: float) -> None:
    streams = [Stream(Address.parse(url), number) for number in range(clients)]
    for stream in streams:
        stream.prepare()
    for stream in streams:
        await stream.connect()
    began = time.perf_counter()
    await asyncio.gather(*(stream.run(lambda: time.perf_counter() - began > seconds) for stream in streams))
    elapsed = time.perf_counter() - began
    report(f"{clients} clients", [one for stream in streams for one in stream.seconds], elapsed)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"generator: {used.ru_utime + used.ru_stime:.1f} s of CPU")
    for stream in streams:
        stream.writer.close()


POLICY = """\
version: "0.3"
name: load-{number}
services:
  - name: worker
    image_name: image
    command: ["worker", "--password", "$$SCONE::password$$"]
    environment: {{ MODE: load }}
    attestation: [ {{ key: ["{key}"] }} ]
images:
  - name: image
    injection_files: [ {{ path: /etc/worker.conf, content: "password=$$SCONE::password$$\\n" }} ]
secrets: [ {{ name: password, kind: ascii, size: 24 }} ]
"""


class Worker:
    """One service: one connection, two tokens."""

    def __init__(self, address: Address, policy: str, identity: ed25519.Ed25519PrivateKey) -> None:
        self.host, self.port = address.hosts[0]
        self.policy = policy
        self.identity = identity
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.prover = Prover(self.key)
        self.token = self.nonce = ""

    async def connect(self, context: ssl.SSLContext) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, ssl=context)

    async def ask(self, path: str, document: Any) -> Any:
        body = json.dumps(document, separators=(",", ":")).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        if self.token:
            url = f"https://{self.host}:{self.port}{path}"
            proof = self.prover.prove(
                method="POST", url=url, token=self.token, nonce=self.nonce, body=body, now_s=int(time.time())
            )
            head += f"Authorization: DPoP {self.token}\r\nDPoP: {proof}\r\n"
        self.writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines[1:] if line)
        answer = json.loads(await self.reader.readexactly(int(headers[b"content-length"])))
        self.nonce = headers[b"dpop-nonce"].decode()
        if answer.get("error") == "use_dpop_nonce":
            return await self.ask(path, document)
        if lines[0].split()[1][:1] != b"2":
            raise RuntimeError(str(answer))
        return answer

    async def attest(self, identity: ed25519.Ed25519PrivateKey, **service: str) -> None:
        self.token = ""
        nonce = (await self.ask("/v1/challenges", {}))["nonce"]
        spki = spki_of(self.key.public_key())
        evidence = key_evidence.make(identity, binding_of(wire.from_base64(nonce, "nonce"), spki))
        body = {"nonce": nonce, "public_key": wire.to_base64(spki), "evidence": [evidence], **service}
        self.token = (await self.ask("/v1/tokens", body))["token"]

    async def work(self) -> None:
        await self.attest(self.identity, policy=self.policy, service="worker")
        configuration = await self.ask("/v1/configuration", {})
        if len(configuration["command"][2]) != 24:
            raise RuntimeError("no password in the configuration")
        await self.attest(ed25519.Ed25519PrivateKey.generate())
        path = f"/v1/volumes/{(volume := secrets.token_hex(16))}"
        public = wire.to_base64(exchange.Side().public)
        await self.ask("/v1/volumes", {"volume_id": volume, "name": "v", "freshness": "strict", "public_key": public})
        now = wire.anchor_members(Anchor(0, bytes(16)))
        body = {"expected": now, "expected_epoch": 0, "adopt": now, "holder": wire.holder_members(holder(1))}
        lease = (await self.ask(f"{path}/lease", body))["lease"]
        for generation in range(1, 4):
            new = wire.anchor_members(Anchor(generation, bytes([generation]) * 16))
            await self.ask(f"{path}/anchor", {"lease": lease, "expected": now, "new": new})
            now = new


async def services(url: str, count: int, together: int) -> None:
    address = Address.parse(url)
    identity = ed25519.Ed25519PrivateKey.generate()
    cas = RemoteCas(address, key_holder(identity))
    policy = f"load-{secrets.token_hex(4)}"
    document = POLICY.format(number=policy.removeprefix("load-"), key=id_of(identity))
    cas.call("POST", "/v1/policies", {"document": document})
    cas.close()
    workers = [Worker(address, policy, identity) for _ in range(count)]
    context = client_context()
    turns = asyncio.Semaphore(together)
    seconds: list[float] = []
    failures: list[str] = []

    async def one(worker: Worker) -> None:
        async with turns:
            before = time.perf_counter()
            try:
                await worker.connect(context)
                await worker.work()
            except (OSError, RuntimeError, EOFError) as exc:
                failures.append(repr(exc))
            seconds.append(time.perf_counter() - before)

    began = time.perf_counter()
    await asyncio.gather(*(one(worker) for worker in workers))
    report(f"{count} services, all connected at the end, {together} at work", seconds, time.perf_counter() - began)
    print(f"{time.perf_counter() - began:.1f} s in all, {len(failures)} failures {failures[:3]}")
    for worker in workers:
        worker.writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--services", type=int, default=0)
    parser.add_argument("--together", type=int, default=256)
    parser.add_argument("--single", type=int, default=1000)
    args = parser.parse_args()
    if args.single:
        single(args.url, args.single)
    if args.clients:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(many(args.url, args.clients, args.seconds))
    if args.services:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(services(args.url, args.services, args.together))


if __name__ == "__main__":
    main()
