"""`fspf policy`: what needs no CAS, and the requests that the others make, answered by the real engine over a store in memory.

TLS, tokens and HTTP are left out here (tests/cas has them); everything between the command line and the store is real.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from cryptography.hazmat.primitives import serialization

from fspf.cas.policies import Policies
from fspf.cas.policy_api import PolicyApi
from fspf.cas.policy_routes import PATH_PARAMETERS, ROUTES, PolicyCalls, PolicyRoute
from fspf.cli import policy as command
from fspf.cli.main import main
from fspf.policy.approval import parse_approval
from fspf.policy.document import parse_policy
from fspf.policy.principal import Principal
from tests.support.memstore import MemoryStore
from tests.support.policies import FULL, HEX32, key_id, person, private_key

BOARD = f"access_policy:\n  read: [ANY]\n  update: [{{require-at-least-2: [{', '.join(key_id(n) for n in ('ann', 'bob', 'eve'))}]}}]\n"
BASE = 'version: "0.3"\nname: top\n'


@dataclass(frozen=True)
class Call:
    principal: Principal
    path: dict[str, str]
    body: Any


class Loopback(PolicyCalls):
    """Answers calls as a server does, for one principal; what goes in and out has the shapes of the interface."""

    def __init__(self) -> None:
        self.policy_api = PolicyApi(Policies(MemoryStore(), lambda: 1_800_000_000_000_000_000))
        self.principal: Principal = person("ann")

    def call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        route, variables = self._route(method, path)
        members = json.loads(json.dumps(body))  # what is no JSON does not get here
        fits(route.request, members)

        async def answer() -> dict[str, Any]:
            result: dict[str, Any] = await getattr(self, route.handler)(Call(self.principal, variables, members))
            return result

        reply = json.loads(json.dumps(asyncio.run(answer())))
        fits(route.response, reply)
        return reply

    @staticmethod
    def _route(method: str, path: str) -> tuple[PolicyRoute, dict[str, str]]:
        for route in ROUTES:
            parts, wanted = path.split("/"), route.path.split("/")
            alike = len(parts) == len(wanted) and all(
                want.startswith("{") or want == part for want, part in zip(wanted, parts, strict=True)
            )
            if route.method == method and alike:
                found = {w[1:-1]: unquote(p) for w, p in zip(wanted, parts, strict=True) if w.startswith("{")}
                for name, value in found.items():
                    fits(PATH_PARAMETERS[name], value)
                return route, found
        raise AssertionError(f"no such path: {method} {path}")


def fits(schema: Mapping[str, Any], value: Any) -> None:
    """Check a value against the parts of JSON Schema that the routes use."""
    if "anyOf" in schema:
        assert any(_does_fit(one, value) for one in schema["anyOf"])
    elif "enum" in schema:
        assert value in schema["enum"]
    elif schema["type"] == "object":
        assert set(schema["required"]) <= set(value) <= set(schema["properties"])
        for key, one in value.items():
            fits(schema["properties"][key], one)
    elif schema["type"] == "array":
        assert len(value) <= schema["maxItems"]
        for one in value:
            fits(schema["items"], one)
    elif schema["type"] == "string":
        assert schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
        assert re.search(schema.get("pattern", ""), value)
    else:
        assert isinstance(value, {"boolean": bool, "integer": int, "null": type(None)}[schema["type"]])


def _does_fit(schema: Mapping[str, Any], value: Any) -> bool:
    try:
        fits(schema, value)
    except (AssertionError, TypeError):
        return False
    return True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Loopback:
    loopback = Loopback()

    @contextmanager
    def connected(args: Any, **_: Any) -> Iterator[Loopback]:
        yield loopback

    monkeypatch.setattr(command, "connected", connected)
    return loopback


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ann", "bob", "eve", "mallory"):
        encoded = private_key(name).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / f"{name}.pem").write_bytes(encoded)
    return tmp_path


def fspf(capsysbinary: pytest.CaptureFixture[bytes], *words: str) -> tuple[int, Any, str]:
    code = main(["policy", *words, "--json"])
    out, err = capsysbinary.readouterr()
    return code, json.loads(out) if out else None, err.decode()


def test_check_says_where(files: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (files / "good.yml").write_text(FULL)
    code, out, err = fspf(capsysbinary, "check", "good.yml")
    assert code == 0
    assert out["policies"][0]["hash"] == parse_policy(FULL.encode()).hash
    assert "good.yml:22:5: volume theirs" in err or "volume theirs" in err
    assert fspf(capsysbinary, "check", "--strict", "good.yml")[0] == 2
    (files / "bad.yml").write_text(BASE + "services:\n  - nam: x\n")
    code, out, err = fspf(capsysbinary, "check", "good.yml", "bad.yml")
    assert (code, out) == (2, None)
    assert "bad.yml:4:5: a service has no key 'nam'; did you mean name?" in err
    assert json.loads(err.splitlines()[-1])["error"]["type"] == "PolicyError"


def test_check_reads_stdin(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(BASE.encode())))
    assert fspf(capsysbinary, "check", "-")[0] == 0


@pytest.mark.parametrize("content", [b"\x1b[31m: x", b"", b"a: [", b"\xff\xfe", b"x" * (2 << 20), b'name: "\\e[2J"'])
def test_check_survives_anything(files: Path, content: bytes, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (files / "x.yml").write_bytes(content)
    assert main(["policy", "check", "x.yml"]) == 2
    out, err = capsysbinary.readouterr()
    assert out == b""
    assert b"\x1b" not in err
    assert err.startswith(b"fspf: error: x.yml")


def test_plan_of_two_files(files: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (files / "old.yml").write_text(FULL)
    (files / "new.yml").write_text(
        FULL.replace("update_policy: rollback_protected }", "update_policy: no_rollback_protection }")
    )
    code, out, _ = fspf(capsysbinary, "plan", "old.yml", "new.yml")
    assert code == 0
    (step,) = [one for one in out["steps"] if one["area"] == "freshness"]
    assert step["weaker"]
    assert main(["policy", "plan", "old.yml", "old.yml"]) == 0
    assert capsysbinary.readouterr().out == b"policy messenger/db: nothing changes\n"
    assert fspf(capsysbinary, "plan", "old.yml", "old.yml", "old.yml")[0] == 2


def test_sign_is_offline(files: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (files / "p.yml").write_text(BASE)
    code, out, err = fspf(capsysbinary, "sign", "p.yml", "--key", "ann.pem", "--predecessor", HEX32)
    assert code == 0
    approval = parse_approval(json.dumps(out).encode())
    expected = parse_policy((BASE + f"predecessor: {HEX32}\n").encode())
    assert approval.statement.policy == expected.hash
    assert approval.verify(approval.statement) == key_id("ann")
    assert "update top from" in err
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "ann.pem")[1]["statement"]["action"] == "create"
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "ann.pem", "--action", "update")[0] == 2
    assert fspf(capsysbinary, "sign", "--key", "ann.pem", "--action", "delete", "--name", "top")[0] == 2
    code, out, _ = fspf(
        capsysbinary, "sign", "--key", "ann.pem", "--action", "delete", "--name", "top", "--predecessor", HEX32
    )
    assert out["statement"] == {"action": "delete", "name": "top", "policy": "", "predecessor": HEX32}
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "p.yml")[0] == 24
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "nothing.pem")[0] == 1
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "ann.pem", "-o", "a.json")[0] == 0
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "ann.pem", "-o", "a.json")[0] == 1  # it is there


def test_sign_with_an_encrypted_key(files: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    encoded = private_key("ann").private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"horse")
    )
    (files / "sealed.pem").write_bytes(encoded)
    (files / "p.yml").write_text(BASE)
    (files / "right").write_text("horse\n")
    (files / "wrong").write_text("cow\n")
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "sealed.pem", "--passphrase-file", "right")[0] == 0
    assert fspf(capsysbinary, "sign", "p.yml", "--key", "sealed.pem", "--passphrase-file", "wrong")[0] == 24


def test_one_policy_s_life(files: Path, server: Loopback, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (files / "p.yml").write_text(BASE + "access_policy: {read: [CREATOR]}\n")
    code, first, _ = fspf(capsysbinary, "create", "p.yml")
    assert (code, first["pending"]) == (0, False)
    code, read, _ = fspf(capsysbinary, "read", "top")
    assert (read["document"], read["hash"]) == ((files / "p.yml").read_text(), first["hash"])
    assert main(["policy", "read", "top"]) == 0
    assert capsysbinary.readouterr().out == (files / "p.yml").read_bytes()
    (files / "p.yml").write_text(BASE + "# new\nservices: [{name: s}]\n")
    code, plan, _ = fspf(capsysbinary, "plan", "p.yml")
    assert (plan["old"], plan["steps"][0]["what"]) == (first["hash"], "service s")
    code, second, _ = fspf(capsysbinary, "update", "p.yml")
    assert code == 0
    text = fspf(capsysbinary, "read", "top")[1]["document"]
    assert f"predecessor: {first['hash']}\n" in text
    assert "# new" in text
    assert fspf(capsysbinary, "read", first["hash"])[1]["document"].endswith("{read: [CREATOR]}\n")
    (files / "stale.yml").write_text(BASE + f"predecessor: {first['hash']}\n")
    code, _, err = fspf(capsysbinary, "update", "stale.yml")
    assert code == 23
    assert "replaced meanwhile" in err
    assert fspf(capsysbinary, "list")[1]["policies"][0]["name"] == "top"
    server.principal = person("mallory")
    assert fspf(capsysbinary, "read", "top")[0] == 23
    assert fspf(capsysbinary, "list")[1]["policies"] == []
    server.principal = person("ann")
    assert fspf(capsysbinary, "delete", "top")[0] == 2  # nobody to confirm
    assert fspf(capsysbinary, "delete", "top", "--predecessor", HEX32, "--yes")[0] == 23
    assert fspf(capsysbinary, "delete", "top", "--yes")[1]["hash"] == second["hash"]
    assert fspf(capsysbinary, "read", "top")[0] == 23


def test_a_board_of_three_decides(files: Path, server: Loopback, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    (files / "p.yml").write_text(BASE + BOARD)
    fspf(capsysbinary, "create", "p.yml")
    server.principal = person("mallory")  # may carry what others have signed
    (files / "p.yml").write_text(BASE + BOARD + "services: [{name: s}]\n")
    code, _, err = fspf(capsysbinary, "update", "p.yml")
    assert code == 23
    assert "2 of 3 have to agree, 0 did" in err
    current = fspf(capsysbinary, "read", "top")[1]["hash"]
    for name in ("ann", "bob"):
        assert (
            fspf(capsysbinary, "sign", "p.yml", "--key", f"{name}.pem", "--predecessor", current, "-o", f"{name}.json")[
                0
            ]
            == 0
        )
    assert fspf(capsysbinary, "update", "p.yml", "--approval", "ann.json")[0] == 23
    code, waiting, _ = fspf(capsysbinary, "update", "p.yml", "--approval", "ann.json", "--propose")
    assert (code, waiting["pending"]) == (0, True)
    code, shown, _ = fspf(capsysbinary, "read", "--pending", "top")
    assert shown["proposals"] == []  # mallory has no voice
    server.principal = person("bob")
    code, shown, _ = fspf(capsysbinary, "read", "--pending", "top")
    assert shown["proposals"][0]["statement"]["policy"] == waiting["hash"]
    assert main(["policy", "read", "--pending", "top"]) == 0
    assert b"1 did; missing" in capsysbinary.readouterr().out
    assert fspf(capsysbinary, "approve", "top", waiting["hash"][:8], "--key", "mallory.pem", "--yes")[0] == 23
    assert fspf(capsysbinary, "approve", "top", "ffff", "--key", "bob.pem", "--yes")[0] == 23
    assert fspf(capsysbinary, "approve", "top", waiting["hash"][:8], "--key", "bob.pem")[0] == 2  # nobody to confirm
    code, done, _ = fspf(capsysbinary, "approve", "top", waiting["hash"][:8], "--approval", "bob.json")
    assert (code, done["pending"]) == (0, False)
    assert fspf(capsysbinary, "read", "top")[1]["hash"] == waiting["hash"]


def test_approving_shows_what_is_signed(
    files: Path, server: Loopback, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    (files / "p.yml").write_text(BASE + BOARD)
    fspf(capsysbinary, "create", "p.yml")
    (files / "p.yml").write_text(BASE + BOARD + "services: [{name: s}]\n")
    hash_ = fspf(capsysbinary, "update", "p.yml", "--propose")[1]["hash"]
    assert main(["policy", "approve", "top", hash_, "--key", "eve.pem", "--yes"]) == 0
    assert b"+ service: policy top gains service s" in capsysbinary.readouterr().out
    (files / "p.yml").write_text(BASE + BOARD)
    hash_ = fspf(capsysbinary, "update", "p.yml", "--propose")[1]["hash"]
    assert fspf(capsysbinary, "approve", "top", hash_, "--withdraw")[1]["withdrawn"] == hash_
    assert fspf(capsysbinary, "read", "--pending", "top")[1]["proposals"] == []


def test_whoever_has_a_voice_sees_what_he_signs_even_if_he_may_not_read(
    files: Path, server: Loopback, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    closed = BOARD.replace("read: [ANY]", "read: [CREATOR]")
    (files / "p.yml").write_text(BASE + closed)
    fspf(capsysbinary, "create", "p.yml")
    (files / "p.yml").write_text(BASE + closed + "services: [{name: s}]\n")
    hash_ = fspf(capsysbinary, "update", "p.yml", "--propose")[1]["hash"]
    server.principal = person("eve")
    assert fspf(capsysbinary, "read", "top")[0] == 23
    assert main(["policy", "approve", "top", hash_[:9], "--key", "eve.pem", "--yes"]) == 0
    assert b"+ service: policy top gains service s" in capsysbinary.readouterr().out


def test_a_server_that_shows_another_document_gets_no_signature(
    files: Path, server: Loopback, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "p.yml").write_text(BASE + BOARD)
    fspf(capsysbinary, "create", "p.yml")
    (files / "p.yml").write_text(BASE + BOARD + "services: [{name: s}]\n")
    hash_ = fspf(capsysbinary, "update", "p.yml", "--propose")[1]["hash"]
    honest = server.call

    def lying(method: str, path: str, body: dict[str, Any] | None) -> Any:
        reply = honest(method, path, body)
        if path.endswith("/proposals"):
            reply["proposals"][0]["document"] += "# harmless\nsecurity: {}\n"
        return reply

    monkeypatch.setattr(server, "call", lying)
    code, _, err = fspf(capsysbinary, "approve", "top", hash_, "--key", "eve.pem", "--yes")
    assert code == 2
    assert "another document" in err


def test_a_file_as_cas_has_no_policies(files: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["create", "vol", "--cas", f"sqlite:///{files}/cas"]) == 0
    capsysbinary.readouterr()
    code, _, err = fspf(capsysbinary, "read", "top", "--cas", f"sqlite:///{files}/cas")
    assert code == 2
    assert "policies are kept by a CAS server" in err


def test_no_path_is_another_s() -> None:
    """A policy may have any name: none is taken for a path of its own."""
    shapes = [(route.method, re.sub(r"{[a-z]+}", "{}", route.path)) for route in ROUTES]
    assert len(set(shapes)) == len(shapes)
    for _, path in shapes:
        for _, other in shapes:
            parts, others = path.split("/"), other.split("/")
            same = len(parts) == len(others) and all(
                a == b or "{}" in {a, b} for a, b in zip(parts, others, strict=True)
            )
            assert path == other or not same
