"""Vault KV v2 as a source of secrets, against answers as its documentation has them.

There is no Vault to be had here: a real HTTP(S) server gives these answers. What a real Vault does beyond them is not tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fspf.cas.vault import Vault, VaultSettings
from fspf.core.errors import AccessDeniedError, CasError, CasUnreachableError, FspfError, UsageError
from fspf.policy.model import VaultSource

VALUE = "corr3ct-h0rse"
SOURCE = VaultSource("kv", "prod/db", "password")
RULES = (("messenger/*", "kv/prod/*"),)
TOKEN = "hvs.t0ken"


def secret(fields: dict[str, Any] | None = None, version: int = 3) -> dict[str, Any]:
    metadata = {"created_time": "2026-01-02T03:04:05Z", "deletion_time": "", "destroyed": False, "version": version}
    data = {"data": {"password": VALUE, "user": "app"} if fields is None else fields, "metadata": metadata}
    return {"request_id": "1", "lease_id": "", "renewable": False, "lease_duration": 0, "data": data, "auth": None}


def gone(**metadata: Any) -> dict[str, Any]:
    return {"data": {"data": None, "metadata": {"deletion_time": "", "destroyed": False, "version": 2} | metadata}}


def login(token: str, duration: int) -> dict[str, Any]:
    return {
        "auth": {"client_token": token, "accessor": "a", "lease_duration": duration, "renewable": True},
        "data": None,
    }


DENIED = {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}


@dataclass
class Recorded:
    """A server that gives recorded answers, and remembers what it was asked."""

    url: str = ""
    answers: dict[tuple[str, str], list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    hang: threading.Event | None = None

    def answer(self, method: str, path: str, *answers: tuple[int, Any]) -> None:
        self.answers[method, path] = list(answers)


Serve = Callable[..., Recorded]


@pytest.fixture
def serve() -> Iterator[Serve]:
    running: list[tuple[ThreadingHTTPServer, threading.Thread, Recorded]] = []

    def start(context: ssl.SSLContext | None = None) -> Recorded:
        recorded = Recorded()

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                recorded.asked.append((self.command, self.path, dict(self.headers.items()), body))
                if recorded.hang is not None:
                    recorded.hang.wait(20)
                answers = recorded.answers.get((self.command, self.path), [(404, {"errors": []})])
                status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "https://elsewhere.example/v1/kv/data/prod/db")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(raw)

            do_GET = do_POST = _do  # noqa: N815  # the base class's names

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that does not trust us leaves in the middle

        server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme, host = ("https", "localhost") if context is not None else ("http", "127.0.0.1")
        recorded.url = f"{scheme}://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread, recorded))
        return recorded

    yield start
    for server, thread, recorded in running:
        if recorded.hang is not None:
            recorded.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()


def fetch(recorded: Recorded, source: VaultSource = SOURCE, policy: str = "messenger/db", **settings: Any) -> bytes:
    options: dict[str, Any] = {"token": TOKEN, "rules": RULES} | settings
    vault = Vault(VaultSettings(recorded.url, **options))
    return asyncio.run(vault.fetch(policy, source)).raw


PATH = "/v1/kv/data/prod/db"


def test_field_is_read_with_token_and_namespace(serve: Serve) -> None:
    recorded = serve()
    recorded.answer("GET", PATH, (200, secret()))
    assert fetch(recorded, namespace="team") == VALUE.encode()
    ((_, _, headers, _),) = recorded.asked
    assert headers["X-Vault-Token"] == TOKEN
    assert headers["X-Vault-Namespace"] == "team"
    assert headers["X-Vault-Request"] == "true"


def test_version_is_pinned(serve: Serve) -> None:
    recorded = serve()
    recorded.answer("GET", f"{PATH}?version=2", (200, secret({"password": "older"}, 2)))
    assert fetch(recorded, VaultSource("kv", "prod/db", "password", 2)) == b"older"


def test_approle_logs_in_once_and_again_when_the_token_was_revoked(serve: Serve) -> None:
    recorded = serve()
    recorded.answer("POST", "/v1/auth/approle/login", (200, login("one", 3600)), (200, login("two", 3600)))
    recorded.answer("GET", PATH, (200, secret()), (200, secret()), (403, DENIED), (200, secret()))
    settings = VaultSettings(recorded.url, rules=RULES, role_id="role", secret_id="s3cret")
    vault = Vault(settings)
    for _ in range(3):
        assert asyncio.run(vault.fetch("messenger/db", SOURCE)).raw == VALUE.encode()
    tokens = [headers.get("X-Vault-Token") for _, _, headers, _ in recorded.asked]
    assert tokens == [None, "one", "one", "one", None, "two"]
    assert json.loads(recorded.asked[0][3]) == {"role_id": "role", "secret_id": "s3cret"}


def test_approle_token_is_not_used_to_its_end(serve: Serve) -> None:
    recorded = serve()
    recorded.answer("POST", "/v1/auth/approle/login", (200, login("one", 60)), (200, login("two", 60)))
    recorded.answer("GET", PATH, (200, secret()))
    now = [0.0]
    settings = VaultSettings(recorded.url, rules=RULES, role_id="role", secret_id="s3cret")
    vault = Vault(settings, monotonic=lambda: now[0])
    for at in (0.0, 49.0, 51.0):
        now[0] = at
        asyncio.run(vault.fetch("messenger/db", SOURCE))
    assert [headers.get("X-Vault-Token") for _, _, headers, _ in recorded.asked] == [None, "one", "one", None, "two"]


@pytest.mark.parametrize(
    ("status", "answer", "error", "message"),
    [
        pytest.param(403, DENIED, AccessDeniedError, "denies the CAS kv/prod/db", id="permission denied"),
        pytest.param(404, {"errors": []}, CasError, "no secret kv/prod/db", id="missing"),
        pytest.param(404, gone(destroyed=True), CasError, "was destroyed", id="destroyed"),
        pytest.param(404, gone(deletion_time="2026-01-01T00:00:00Z"), CasError, "was deleted", id="deleted"),
        pytest.param(200, secret({"user": "app"}), CasError, "has no field password", id="missing field"),
        pytest.param(200, secret({"password": 7}), CasError, "is no text", id="number"),
        pytest.param(200, secret({"password": ""}), CasError, "is no text", id="empty"),
        pytest.param(200, secret({"password": "x" * 70000}), CasError, "is no text of 1 to", id="long"),
        pytest.param(200, b'{"data": {"data": {"password": "\\ud800"}}}', CasError, "is no text", id="surrogate"),
        pytest.param(200, {"data": {"password": VALUE}}, CasError, "version 2", id="KV version 1"),
        pytest.param(200, b"<html>", CasError, "version 2", id="no JSON"),
        pytest.param(200, b"[" * 100_000, CasError, "version 2", id="deep JSON"),
        pytest.param(200, b" " * (2 << 20), CasError, "more than 1048576 bytes", id="endless"),
        pytest.param(503, {"errors": ["Vault is sealed"]}, CasUnreachableError, "sealed", id="sealed"),
        pytest.param(429, {}, CasUnreachableError, "cannot answer now", id="standby"),
        pytest.param(307, {}, CasError, "points to another server", id="redirect"),
        pytest.param(405, {"errors": ["unsupported operation"]}, CasError, "unsupported operation", id="other"),
    ],
)
def test_errors_are_clear_and_without_values(
    serve: Serve, status: int, answer: Any, error: type[FspfError], message: str
) -> None:
    recorded = serve()
    recorded.answer("GET", PATH, (status, answer))
    with pytest.raises(error, match=message) as caught:
        fetch(recorded)
    assert VALUE not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_vault_that_does_not_answer_in_time_is_unreachable(serve: Serve) -> None:
    recorded = serve()
    recorded.hang = threading.Event()
    with pytest.raises(CasUnreachableError, match=r"did not answer within 0\.2 s"):
        fetch(recorded, timeout_s=0.2)


def test_vault_that_is_not_there_is_unreachable() -> None:
    with pytest.raises(CasUnreachableError, match="cannot be reached"):
        fetch(Recorded(url="http://127.0.0.1:9"))


def test_wrong_approle_is_said(serve: Serve) -> None:
    recorded = serve()
    recorded.answer("POST", "/v1/auth/approle/login", (400, {"errors": ["invalid role or secret ID"]}))
    with pytest.raises(AccessDeniedError, match="refuses the CAS's AppRole"):
        fetch(recorded, token="", role_id="role", secret_id="wrong")


@pytest.mark.parametrize(
    ("policy", "source"),
    [
        ("other/db", SOURCE),
        ("messenger", SOURCE),
        ("messenger/db", VaultSource("kv", "test/db", "password")),
        ("messenger/db", VaultSource("other", "prod/db", "password")),
        ("messenger/db", VaultSource("kv", "prod/../secret", "password")),
        ("messenger/db", VaultSource("kv", "prod//db", "password")),
    ],
)
def test_policy_reads_only_what_the_operator_allows(serve: Serve, policy: str, source: VaultSource) -> None:
    recorded = serve()
    with pytest.raises(AccessDeniedError):
        fetch(recorded, source, policy)
    assert recorded.asked == []


def test_without_rules_nothing_may_be_read(serve: Serve) -> None:
    recorded = serve()
    with pytest.raises(AccessDeniedError, match="no rule that allows it"):
        fetch(recorded, rules=())


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("http://vault.example:8200", {"token": "x"}, "use https"),
        ("ftp://vault.example", {"token": "x"}, "no address"),
        ("https://vault.example/v1", {"token": "x"}, "no address"),
        ("https://user:pass@vault.example", {"token": "x"}, "no user and password"),
        ("https://vault.example", {}, "either a token or"),
        ("https://vault.example", {"token": "x", "role_id": "y"}, "either a token or"),
    ],
)
def test_settings_that_cannot_work_are_refused(url: str, more: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VaultSettings(url, **more)  # type: ignore[arg-type]


def test_nothing_secret_is_in_a_repr() -> None:
    settings = VaultSettings("https://vault.example", token=TOKEN)
    assert TOKEN not in repr(settings) + repr(Vault(settings))


def tls_context(directory: Path) -> tuple[ssl.SSLContext, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, SHA256())
    )
    (directory / "crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (directory / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "crt", directory / "key")
    return context, str(directory / "crt")


def test_vault_over_tls_must_show_a_trusted_certificate(serve: Serve, scratch: Path) -> None:
    context, ca_file = tls_context(scratch)
    recorded = serve(context)
    recorded.answer("GET", PATH, (200, secret()))
    assert fetch(recorded, ca_file=ca_file) == VALUE.encode()
    with pytest.raises(CasError, match="does not show a certificate that we trust"):
        fetch(recorded)
    assert len(recorded.asked) == 1  # the token was not sent
