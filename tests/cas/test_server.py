"""A CAS server over real TLS: what it refuses, and that it goes on serving others.

What it grants is tested by the contract of the Protocol (tests/unit/cas/test_contract.py), which it passes too.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fspf.attestation import key as key_evidence
from fspf.attestation.signatures import spki_of
from fspf.cas.client import RemoteCas, key_holder
from fspf.cas.connection import Address, WrongServerError, client_context
from fspf.cas.proof import Prover, SessionKey
from fspf.cas.tokens import binding_of
from fspf.cas.wire import from_base64, to_base64
from fspf.core.anchor import NEVER_WRITTEN, Anchor, Holder
from fspf.core.errors import (
    AccessDeniedError,
    AttestationError,
    CasError,
    CasUnreachableError,
    UnknownVolumeError,
    UsageError,
)
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey
from tests.support.casserver import CasProcess, init_server, start_server

STRICT = Freshness.strict()
HOLDER = Holder("host", "boot", 1, 1, 1, "test")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CasProcess]:
    directory = tmp_path_factory.mktemp("cas") / "server"
    init_server(directory)
    running = start_server(directory)
    yield running
    assert running.stop() == 0
    assert [event["event"] for event in running.events() if event.get("level") in {"error", "critical"}] == []


@pytest.fixture
def identity() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
def cas(server: CasProcess, identity: ed25519.Ed25519PrivateKey) -> Iterator[RemoteCas]:
    client = RemoteCas(Address.parse(server.url), key_holder(identity))
    yield client
    client.close()


def new_id() -> bytes:
    return secrets.token_bytes(16)


class Raw:
    """Requests as they are, without the client's care."""

    def __init__(self, url: str) -> None:
        self.host, self.port = Address.parse(url).hosts[0]
        self.connection = http.client.HTTPSConnection(self.host, self.port, context=client_context(), timeout=30)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, Any]:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        response = None
        for left in reversed(range(5)):
            try:
                self.connection.request(method, path, body, headers)
                response = self.connection.getresponse()
                break
            except (ssl.SSLEOFError, ConnectionError):
                # The server has answered and hung up before it had all of a body that is too large: http.client then reads no answer.
                self.connection.close()
                if not left:
                    raise
        assert response is not None
        data = response.read()
        try:
            document = json.loads(data)
        except ValueError:
            document = data
        return response.status, document, response.headers

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def raw(server: CasProcess) -> Iterator[Raw]:
    one = Raw(server.url)
    yield one
    one.close()


class Session:
    """A token, and all that is needed to use it well or badly."""

    def __init__(self, raw: Raw, key: SessionKey | None = None) -> None:
        self.raw = raw
        self.key: SessionKey = key or ed25519.Ed25519PrivateKey.generate()
        self.identity = ed25519.Ed25519PrivateKey.generate()
        self.request = self.fresh_request()
        status, reply, headers = raw.ask("POST", "/v1/tokens", json.dumps(self.request).encode())
        assert status == 201, reply
        self.token: str = reply["token"]
        self.nonce: str = headers["DPoP-Nonce"]

    def fresh_request(self) -> dict[str, Any]:
        _, challenge, _ = self.raw.ask("POST", "/v1/challenges", b"{}")
        spki = spki_of(self.key.public_key())
        binding = binding_of(from_base64(challenge["nonce"], "nonce"), spki)
        return {
            "nonce": challenge["nonce"],
            "public_key": to_base64(spki),
            "evidence": [key_evidence.make(self.identity, binding)],
        }

    def headers(
        self, method: str, path: str, body: bytes = b"", changes: dict[str, Any] | None = None
    ) -> dict[str, str]:
        values: dict[str, Any] = {
            "method": method,
            "url": f"https://{self.raw.host}:{self.raw.port}{path}",
            "token": self.token,
            "nonce": self.nonce,
            "body": body,
            "now_s": 1,
            **(changes or {}),
        }
        key = values.pop("key", self.key)
        return {"Authorization": f"DPoP {self.token}", "DPoP": Prover(key).prove(**values)}


# -- requests that are none


VOLUME = "/v1/volumes/" + "0" * 32


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/", None, {}, 404),
        ("GET", "/v1", None, {}, 404),
        ("GET", "/v1/nothing", None, {}, 404),
        ("GET", "/v1//health", None, {}, 404),
        ("GET", "/v1/health/", None, {}, 404),
        ("GET", "/v1/%68ealth", None, {}, 404),
        ("POST", "/v1/health", b"{}", {}, 405),
        ("GET", "/v1/challenges", None, {}, 405),
        ("OPTIONS", "/v1/tokens", None, {}, 405),
        ("GET", f"{VOLUME}x", None, {}, 400),
        ("GET", "/v1/volumes/..%2f..", None, {}, 400),
        ("GET", "/v1/volumes/%ff", None, {}, 400),
        ("POST", "/v1/challenges", b"", {}, 400),
        ("POST", "/v1/challenges", b"{", {}, 400),
        ("POST", "/v1/challenges", b"\xff\xfe", {}, 400),
        ("POST", "/v1/challenges", b"[]", {}, 400),
        ("POST", "/v1/challenges", b'{"more": 1}', {}, 400),
        ("POST", "/v1/challenges", b"NaN", {}, 400),
        ("POST", "/v1/challenges", b"1" * 5000, {}, 400),
        ("POST", "/v1/challenges", b"[" * 60000, {}, 400),
        ("POST", "/v1/challenges", b'{"a":' * 10000, {}, 400),
        ("POST", "/v1/challenges", b"{}", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/challenges", b"{}", {"Content-Type": ""}, 415),
        ("POST", "/v1/challenges", b" " * 70000, {}, 413),
        ("POST", "/v1/challenges", b"{}", {"Content-Length": "99999999999"}, 413),
        ("POST", "/v1/tokens", b"{}", {}, 400),
        ("POST", "/v1/tokens", b'{"nonce":"","public_key":"","evidence":[]}', {}, 400),
        ("POST", "/v1/tokens", b'{"nonce":"AAAA","public_key":"AAAA","evidence":[{}]}', {}, 400),
        ("POST", "/v1/tokens", b'{"nonce":"AAAA","public_key":"AAAA","evidence":[{"type":"key"}]}', {}, 403),
        ("GET", "/v1/volumes", None, {}, 401),
        ("GET", "/v1/volumes", None, {"Authorization": "Bearer x"}, 401),
        ("GET", "/v1/volumes", None, {"Authorization": "DPoP "}, 401),
        ("GET", "/v1/volumes", None, {"Authorization": "DPoP x"}, 401),
        ("GET", "/v1/volumes", None, {"Authorization": "DPoP x", "DPoP": "a.b.c"}, 401),
        ("GET", "/v1/volumes", None, {"Authorization": "DPoP " + "A" * 9000, "DPoP": "x"}, 401),
        ("POST", f"{VOLUME}/anchor", b"{}", {}, 401),
        ("DELETE", VOLUME, None, {}, 401),
    ],
)
def test_bad_request_is_refused_with_a_reason(
    raw: Raw, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    found, problem, answered = raw.ask(method, path, body, **headers)
    assert found == status, problem
    assert answered["Content-Type"] == "application/problem+json"
    assert problem["status"] == status
    assert len(problem["detail"]) > 10
    assert problem["type"].startswith("urn:fspf:error:")


def test_method_that_is_not_served_names_those_that_are(raw: Raw) -> None:
    _, _, headers = raw.ask("PUT", "/v1/volumes")
    assert headers["Allow"] == "GET, POST"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"volume_id": "0" * 31},
        {"volume_id": "G" * 32},
        {"volume_id": "0" * 32 + "\n"},
        {"name": "x" * 5000},
        {"name": 5},
        {"name": "\ud800"},
        {"freshness": "sometimes"},
        {"freshness": "bounded:0ms"},
        {"public_key": "AAAA"},
        {"public_key": "!" * 44},
        {"public_key": to_base64(bytes(32))},
        {"owner": "me"},
    ],
    ids=str,
)
def test_malformed_volume_is_refused_and_nothing_stored(raw: Raw, body: dict[str, Any]) -> None:
    session = Session(raw)
    good = {
        "volume_id": new_id().hex(),
        "name": "n",
        "freshness": "strict",
        "public_key": to_base64(b"\x09" + bytes(31)),
    }
    data = json.dumps({**good, **body} if body else {}).encode()
    status, problem, _ = raw.ask("POST", "/v1/volumes", data, **session.headers("POST", "/v1/volumes", data))
    assert status == 400, problem
    status, reply, _ = raw.ask("GET", "/v1/volumes", **session.headers("GET", "/v1/volumes"))
    assert (status, reply) == (200, {"records": []})


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_half_a_head_is_no_request(server: CasProcess, cut: int) -> None:
    host, port = Address.parse(server.url).hosts[0]
    with client_context().wrap_socket(socket.create_connection((host, port))) as sock:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n"[:cut])
        sock.unwrap()


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET /v1/health HTTP/9.9\r\n\r\n",
        b"GET /v1/health\r\n\r\n",
        b"POST /v1/challenges HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/challenges HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/challenges HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET /v1/health HTTP/1.1\r\nHost: x\r\nBad header: y\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: CasProcess, head: bytes) -> None:
    host, port = Address.parse(server.url).hosts[0]
    with client_context().wrap_socket(socket.create_connection((host, port), timeout=30)) as sock:
        sock.sendall(head)
        assert sock.recv(65536)[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 505", b""}


def test_endless_head_is_cut_off(server: CasProcess) -> None:
    host, port = Address.parse(server.url).hosts[0]
    with client_context().wrap_socket(socket.create_connection((host, port), timeout=30)) as sock:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n")
        with pytest.raises(OSError):
            for _ in range(100_000):
                sock.sendall(b"X: " + b"y" * 1000 + b"\r\n")


# -- tokens and proofs


@pytest.mark.parametrize("kind", ["Ed25519", "P-256"])
def test_both_kinds_of_session_key_work(raw: Raw, kind: str) -> None:
    session = Session(raw, ec.generate_private_key(ec.SECP256R1()) if kind == "P-256" else None)
    status, reply, _ = raw.ask("GET", "/v1/volumes", **session.headers("GET", "/v1/volumes"))
    assert (status, reply) == (200, {"records": []})


def test_challenge_works_once(raw: Raw) -> None:
    session = Session(raw)
    status, problem, _ = raw.ask("POST", "/v1/tokens", json.dumps(session.request).encode())
    assert (status, problem["type"]) == (403, "urn:fspf:error:AccessDeniedError")
    assert "answered already" in problem["detail"]


def test_challenge_that_nobody_made_is_refused(raw: Raw) -> None:
    session = Session(raw)
    request = {**session.fresh_request(), "nonce": to_base64(secrets.token_bytes(40))}
    status, problem, _ = raw.ask("POST", "/v1/tokens", json.dumps(request).encode())
    assert (status, "not a challenge of this CAS" in problem["detail"]) == (403, True)


def test_evidence_for_another_key_is_refused_and_says_which_factor(raw: Raw) -> None:
    session = Session(raw)
    other = to_base64(spki_of(ed25519.Ed25519PrivateKey.generate().public_key()))
    request = {**session.fresh_request(), "public_key": other}
    status, problem, _ = raw.ask("POST", "/v1/tokens", json.dumps(request).encode())
    assert (status, problem["factor"]) == (403, "key.signature")


def test_request_works_once(raw: Raw, server: CasProcess) -> None:
    session = Session(raw)
    headers = session.headers("GET", "/v1/volumes")
    assert raw.ask("GET", "/v1/volumes", **headers)[0] == 200
    status, problem, answered = raw.ask("GET", "/v1/volumes", **headers)
    assert (status, problem["error"]) == (401, "invalid_dpop_proof")
    assert "used before" in problem["detail"]
    assert answered["WWW-Authenticate"].startswith("DPoP ")
    assert any("used before" in str(event.get("reason")) for event in server.events())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": "DELETE"}, "invalid_dpop_proof"),
        ({"url": "https://127.0.0.1:1/v1/volumes"}, "invalid_dpop_proof"),
        ({"url": "http://127.0.0.1/v1/volumes"}, "invalid_dpop_proof"),
        ({"body": b"{}"}, "invalid_dpop_proof"),
        ({"token": "another"}, "invalid_dpop_proof"),
        ({"nonce": ""}, "use_dpop_nonce"),
        ({"nonce": "of another process"}, "use_dpop_nonce"),
        ({"now_s": "soon"}, "invalid_dpop_proof"),
        ({"key": ed25519.Ed25519PrivateKey.generate()}, "invalid_dpop_proof"),
        ({"key": ec.generate_private_key(ec.SECP256R1())}, "invalid_dpop_proof"),
    ],
    ids=["method", "server", "scheme", "body", "token", "no nonce", "nonce", "time", "stolen token", "stolen, P-256"],
)
def test_proof_for_something_else_is_refused(raw: Raw, changes: dict[str, Any], code: str) -> None:
    session = Session(raw)
    status, problem, headers = raw.ask("GET", "/v1/volumes", **session.headers("GET", "/v1/volumes", changes=changes))
    assert (status, problem["error"]) == (401, code), problem
    assert headers["DPoP-Nonce"]


def test_altered_proof_is_refused_wherever_it_was_altered(raw: Raw) -> None:
    session = Session(raw)
    good = session.headers("GET", "/v1/volumes")
    header, payload, signature = good["DPoP"].split(".")
    for bad in (
        f"{header}.{payload}.{signature[:-4]}AAAA",
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f"{header}.{payload}.{signature}.{signature}",
        f"{payload}.{payload}.{signature}",
        f"{header}.{header}.{signature}",
        f"{header}.{payload}.{signature}=",
        f"{header}.{payload}.é",
        f"eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6Im5vbmUifQ.{payload}.",
    ):
        status, problem, _ = raw.ask("GET", "/v1/volumes", Authorization=good["Authorization"], DPoP=bad)
        assert status == 401, (bad, problem)
    assert raw.ask("GET", "/v1/volumes", **good)[0] == 200


def test_token_of_another_cas_is_refused(raw: Raw, server: CasProcess, scratch: Path) -> None:
    init_server(scratch / "other")
    other = start_server(scratch / "other")
    theirs = Raw(other.url)
    try:
        session = Session(theirs)
        session.raw = raw
        status, problem, _ = raw.ask("GET", "/v1/volumes", **session.headers("GET", "/v1/volumes"))
        assert (status, problem["error"]) == (401, "invalid_token")
    finally:
        theirs.close()
        assert other.stop() == 0


def test_volume_of_another_key_looks_like_none(server: CasProcess, cas: RemoteCas) -> None:
    mine = new_id()
    record = cas.create(mine, "mine", STRICT)
    lease = cas.acquire(mine, expected=NEVER_WRITTEN, expected_epoch=0, adopt=NEVER_WRITTEN, holder=HOLDER)
    stranger = RemoteCas(Address.parse(server.url), key_holder(ed25519.Ed25519PrivateKey.generate()))
    new = Anchor(1, b"t" * 16)
    try:
        for ask in (
            lambda: stranger.fetch(mine),
            lambda: stranger.advance(mine, lease, NEVER_WRITTEN, new),
            lambda: stranger.renew(mine, lease),
            lambda: stranger.release(mine, lease),
            lambda: stranger.rekey(mine, lease, NEVER_WRITTEN, new, SecretKey.generate()),
            lambda: stranger.set_freshness(mine, Freshness.none()),
            lambda: stranger.remove(mine),
        ):
            with pytest.raises(UnknownVolumeError):
                ask()
        assert stranger.list() == []
        with pytest.raises(CasError):
            stranger.import_records([record], override=True)
    finally:
        stranger.close()
    assert cas.fetch(mine).lease == lease
    assert cas.fetch(mine).key == record.key


def test_client_without_identity_is_told_what_to_do(server: CasProcess) -> None:
    client = RemoteCas(Address.parse(server.url), None)
    with pytest.raises(UsageError, match="--cas-identity"):
        client.list()
    client.close()


def test_malformed_evidence_names_the_factor(server: CasProcess) -> None:
    client = RemoteCas(
        Address.parse(server.url), lambda _binding: [{"type": "key", "public_key": "AAAA", "signature": ""}]
    )
    with pytest.raises(AttestationError, match="public_key"):
        client.list()
    client.close()


def test_unknown_service_is_refused(server: CasProcess, identity: ed25519.Ed25519PrivateKey) -> None:
    from fspf.cas.client import Service

    client = RemoteCas(Address.parse(server.url), key_holder(identity), Service("no/such", "service"))
    with pytest.raises(AccessDeniedError, match="no service"):
        client.list()
    client.close()


# -- TLS


def test_tls_1_2_is_refused(server: CasProcess) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, port = Address.parse(server.url).hosts[0]
    with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection((host, port)) as sock:
        context.wrap_socket(sock)


def test_plain_http_is_refused(server: CasProcess) -> None:
    host, port = Address.parse(server.url).hosts[0]
    with socket.create_connection((host, port), timeout=30) as sock:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not sock.recv(1024).startswith(b"HTTP")


def test_server_with_another_key_gets_no_request(server: CasProcess, identity: ed25519.Ed25519PrivateKey) -> None:
    wrong = Address(Address.parse(server.url).hosts, "0" * 64)
    client = RemoteCas(wrong, key_holder(identity))
    with pytest.raises(WrongServerError, match=server.key_hash):
        client.list()
    client.close()


def test_there_is_no_trust_on_first_use(server: CasProcess) -> None:
    with pytest.raises(UsageError, match="key hash"):
        RemoteCas(Address.parse(server.url.partition("#")[0]), None)


# -- the process


def test_others_are_served_beside_thousands_of_half_open_connections(server: CasProcess, cas: RemoteCas) -> None:
    host, port = Address.parse(server.url).hosts[0]
    silent = [socket.create_connection((host, port)) for _ in range(2000)]
    slow = []
    try:
        for _ in range(50):
            sock = client_context().wrap_socket(socket.create_connection((host, port)))
            sock.sendall(b"POST /v1/challenges HTTP/1.1\r\nHost: x\r\n")
            slow.append(sock)
        volume_id = new_id()
        cas.create(volume_id, "served", STRICT)
        assert cas.fetch(volume_id).name == "served"
        with open(f"/proc/{server.process.pid}/status", encoding="ascii") as file:
            used_kib = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        assert used_kib < 300 << 10
    finally:
        for one in (*silent, *slow):
            one.close()


def test_metrics_and_descriptions(raw: Raw) -> None:
    Session(raw)
    status, text, headers = raw.ask("GET", "/metrics")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    assert b'fspf_cas_attestations_total{result="granted"}' in text
    assert raw.ask("GET", "/v1/health")[:2] == (200, {"status": "ok"})
    assert raw.ask("GET", "/v1/ready")[:2] == (200, {"status": "ready"})
    status, described, _ = raw.ask("GET", "/openapi.json")
    assert described["openapi"] == "3.1.0"
    assert "/v1/volumes/{volume_id}/anchor" in described["paths"]


def test_what_was_answered_survives_a_kill(scratch: Path, identity: ed25519.Ed25519PrivateKey) -> None:
    init_server(scratch / "server")
    first = start_server(scratch / "server")
    port = Address.parse(first.url).hosts[0][1]
    client = RemoteCas(Address.parse(first.url), key_holder(identity))
    volume_id, now = new_id(), NEVER_WRITTEN
    key = client.create(volume_id, "v", STRICT).key
    lease = client.acquire(volume_id, expected=now, expected_epoch=0, adopt=now, holder=HOLDER)
    for generation in range(1, 20):
        new = Anchor(generation, bytes([generation]) * 16)
        client.advance(volume_id, lease, now, new)
        now = new
    first.stop(signal.SIGKILL)
    with pytest.raises(CasUnreachableError):
        client.advance(volume_id, lease, now, Anchor(20, b"x" * 16))
    second = start_server(scratch / "server", listen=f"127.0.0.1:{port}")
    try:
        # The same client: its token counts in the new process, its connections and nonces are made anew.
        record = client.fetch(volume_id)
        assert (record.anchor, record.epoch, record.key) == (now, lease.epoch, key)
        client.advance(volume_id, lease, now, Anchor(20, b"x" * 16))
    finally:
        client.close()
        assert second.stop() == 0


def test_orderly_end_answers_what_was_begun_and_ends_with_0(scratch: Path) -> None:
    init_server(scratch / "server")
    running = start_server(scratch / "server")
    raw = Raw(running.url)
    assert raw.ask("GET", "/v1/health")[0] == 200
    assert running.stop() == 0
    raw.close()
    assert [event["event"] for event in running.events()][-2:] == ["stopping", "stopped"]


def test_client_goes_on_after_a_fork(cas: RemoteCas) -> None:
    volume_id = new_id()
    cas.create(volume_id, "v", STRICT)
    pid = os.fork()
    if pid == 0:
        try:
            cas.set_freshness(volume_id, Freshness.none())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert cas.fetch(volume_id).freshness == Freshness.none()


def test_second_process_on_one_sqlite_store_is_refused(server: CasProcess) -> None:
    with pytest.raises(AssertionError, match="served by process"):
        start_server(server.directory)


def test_store_of_another_cas_is_refused(scratch: Path) -> None:
    for name in ("a", "b"):
        init_server(scratch / name)
    (scratch / "a" / "store.sqlite").unlink()
    (scratch / "b" / "store.sqlite").rename(scratch / "a" / "store.sqlite")
    with pytest.raises(AssertionError, match="store"):
        start_server(scratch / "a")


def test_lost_answer_is_not_asked_again(server: CasProcess, cas: RemoteCas, monkeypatch: pytest.MonkeyPatch) -> None:
    """An advance whose answer is lost raises; the caller finds that it has arrived."""
    volume_id = new_id()
    cas.create(volume_id, "v", STRICT)
    lease = cas.acquire(volume_id, expected=NEVER_WRITTEN, expected_epoch=0, adopt=NEVER_WRITTEN, holder=HOLDER)
    new = Anchor(1, b"t" * 16)
    sent: list[str] = []

    def lose(self: http.client.HTTPConnection) -> None:
        sent.append("answer lost")
        monkeypatch.undo()
        real = self.sock.recv(1)  # it was answered
        assert real
        raise TimeoutError

    monkeypatch.setattr(http.client.HTTPConnection, "getresponse", lose)
    with pytest.raises(CasUnreachableError, match="timed out"):
        cas.advance(volume_id, lease, NEVER_WRITTEN, new)
    assert sent == ["answer lost"]
    assert cas.fetch(volume_id).anchor == new
