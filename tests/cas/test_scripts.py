"""Scripts of boards over real TLS: asked, answering, lying, slow, endless, and behind a wrong certificate.

How answers are counted is tested in tests/unit/cas/test_policies.py.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fspf.cas.policies import Policies
from fspf.cas.scripts import ScriptCaller
from fspf.core.errors import AccessDeniedError, CasUnreachableError
from fspf.policy.approval import MAX_DOCUMENT, Action, Statement
from fspf.policy.document import parse_policy
from fspf.policy.model import Script
from tests.support.memstore import MemoryStore
from tests.support.policies import key_id, person, private_key, signed

Behave = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Tls:
    """A server's key and certificate, which is its own CA."""

    pem: str
    context: ssl.SSLContext


def make_tls(directory: Path, name: str = "server", host: str = "127.0.0.1") -> Tls:
    key = private_key(name, "P-256")
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )  # fmt: skip
    from cryptography.hazmat.primitives import hashes

    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / f"{name}.pem"
    path.write_bytes(secret + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return Tls(certificate.decode(), context)


class Checker:
    """A real HTTPS server that behaves as it is told."""

    def __init__(self, tls: Tls, behave: Behave) -> None:
        self._tls = tls
        self._behave = behave
        self.requests: list[bytes] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls.context)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/check?by=test"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            self.requests.append(head + body)
            await self._behave(body, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):  # the last: the test is over
            pass
        finally:
            writer.transport.abort()


def reply(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


async def agrees(body: bytes, writer: asyncio.StreamWriter) -> None:
    request = json.loads(body)
    members = request["statement"]
    statement = Statement(Action(members["action"]), members["name"], members["predecessor"], members["policy"])
    assert parse_policy(request["document"].encode()).hash == statement.policy
    approval = signed(statement, "checker").members()
    answer = {"verdict": "approve", "public_key": approval["public_key"], "signature": approval["signature"]}
    writer.write(reply(json.dumps(answer).encode()))
    await writer.drain()


async def without_end(_body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
        await writer.drain()


async def head_without_end(_body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: " + b"x" * 4096 + b"\r\n")
        await writer.drain()


async def silent(_body: bytes, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


def says(data: bytes) -> Behave:
    async def behave(_body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return behave


def call(tls: Tls, behave: Behave, **settings: Any) -> tuple[bytes, list[bytes]]:
    async def main() -> tuple[bytes, list[bytes]]:
        async with Checker(tls, behave) as checker:
            caller = ScriptCaller(**settings)
            return await caller(Script(checker.url, ca=tls.pem), {"document": "ä"}), checker.requests

    return asyncio.run(main())


def test_it_posts_and_returns_the_answer(tmp_path: Path) -> None:
    answer, (request,) = call(make_tls(tmp_path), says(reply(b'{"verdict": "approve"}')))
    assert answer == b'{"verdict": "approve"}'
    assert request.startswith(b"POST /check?by=test HTTP/1.1\r\n")
    assert request.endswith(b'\r\n\r\n{"document": "\\u00e4"}')


FAILS = {
    "an error": (says(reply(b"no", "500 Oh")), "status 500"),
    "a redirection": (says(reply(b"", "302 Found", "Location: https://127.0.0.1/\r\n")), "status 302"),
    "no HTTP": (says(b"hello\r\n\r\n"), "does not answer"),
    "nothing": (says(b""), "does not answer"),
    "half an answer": (says(reply(b"x" * 100)[:-50]), "does not answer"),
    "a long answer": (says(reply(b"x" * (MAX_DOCUMENT + 1))), f"more than {MAX_DOCUMENT}"),
    "an answer without end": (without_end, f"more than {MAX_DOCUMENT}"),
    "a head without end": (head_without_end, "does not answer"),
}


@pytest.mark.parametrize("case", FAILS)
def test_what_is_no_answer_is_silence(case: str, tmp_path: Path) -> None:
    behave, expected = FAILS[case]
    with pytest.raises(CasUnreachableError, match=expected):
        call(make_tls(tmp_path), behave)


def test_a_slow_script_is_silent(tmp_path: Path) -> None:
    with pytest.raises(CasUnreachableError, match="time is over"):
        call(make_tls(tmp_path), silent, timeout_s=0.2)


def test_nobody_listens() -> None:
    with pytest.raises(CasUnreachableError):
        asyncio.run(ScriptCaller()(Script("https://127.0.0.1:1/"), {}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["another CA", "another host"])
def test_a_wrong_certificate_is_silence(tmp_path: Path, host: str) -> None:
    async def main() -> None:
        served = make_tls(tmp_path, "mallory", host)
        trusted = make_tls(tmp_path, "server").pem if host == "127.0.0.1" else served.pem
        async with Checker(served, agrees) as checker:
            with pytest.raises(CasUnreachableError, match=r"certificate verify failed"):
                await ScriptCaller()(Script(checker.url, ca=trusted), {})
            assert checker.requests == []

    asyncio.run(main())


def test_the_operator_may_forbid_an_address(tmp_path: Path) -> None:
    with pytest.raises(CasUnreachableError, match="does not allow"):
        call(make_tls(tmp_path), agrees, may_call=lambda host, _port: not host.startswith("127."))


def test_two_of_three_scripts_bring_a_policy_into_force(tmp_path: Path, quiet: Any) -> None:
    quiet.allow("did not answer about")

    async def main() -> None:
        tls = make_tls(tmp_path)
        async with Checker(tls, agrees) as one, Checker(tls, agrees) as two, Checker(tls, silent) as three:
            policies = Policies(MemoryStore(), lambda: 0, call_script=ScriptCaller(timeout_s=5))
            ca = json.dumps(tls.pem)
            # Each has a key of its own in earnest; here one key may count once only, so two of them are known by their CA.
            scripts = [
                f"{{script: '{one.url}', signer: {key_id('checker')}, ca: {ca}}}",
                f"{{script: '{two.url}', ca: {ca}}}",
            ]
            dead = f"{{script: 'https://127.0.0.1:1/', ca: {ca}}}"
            assert three.url
            board = f"access_policy: {{update: [{{require-at-least-2: [{', '.join([*scripts, dead])}]}}]}}\n"
            head = 'version: "0.3"\nname: a\n'
            first = await policies.create((head + board).encode(), person("ann"))
            text = f"{head}predecessor: {first.hash}\nservices: [{{name: s}}]\n{board}".encode()
            assert not (await policies.update(text, person("bob"))).pending
            worse = board.replace(two.url, "https://127.0.0.1:2/")
            second = (await policies.find("a")).policy.hash  # type: ignore[union-attr]
            changed = f"{head}predecessor: {second}\n{worse}".encode()
            await policies.update(changed, person("bob"))
            third = (await policies.find("a")).policy.hash  # type: ignore[union-attr]
            with pytest.raises(AccessDeniedError, match="2 of 3 have to agree, 1 did"):
                await policies.update(f"{head}predecessor: {third}\n".encode(), person("bob"))

    asyncio.run(main())
