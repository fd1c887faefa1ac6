"""A CAS whose SQLite store was put back: refused by the TPM's counter, let in again by those who may approve it, and logged.

The counter's rule in every order of events is in `test_counter`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from fspf.attestation.signatures import spki_of
from fspf.cas.client import RemoteCas, key_holder
from fspf.cas.connection import Address
from fspf.cas.counter import Recovery
from fspf.cas.identity import make_identity, public_pem
from fspf.cas.recovery import Approvers, approve, approved
from fspf.core.errors import AccessDeniedError, CasError, RolledBackError, UsageError
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey
from tests.support.casserver import init_server, start_server
from tests.support.swtpm import Swtpm, running_swtpm

STATEMENT = Recovery(3, 9, "0123456789abcdef", "the disk died")


@pytest.fixture
def swtpm(scratch: Path) -> Iterator[Swtpm]:
    with running_swtpm(scratch / "tpm") as running:
        yield running


def fspf(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fspf", *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )


def test_store_that_was_put_back_is_let_in_by_its_approvers_only(scratch: Path, swtpm: Swtpm) -> None:
    options = ["--tpm", swtpm.tcti, "--recovery-needs", "2"]
    for name in ("one", "two", "three"):
        key = make_identity(str(scratch / f"{name}.pem"))
        (scratch / f"{name}.pub").write_text(public_pem(key))
        options += ["--recovery-approver", str(scratch / f"{name}.pub")]
    home = scratch / "server"
    init_server(home, *options)
    shutil.copytree(home, scratch / "backup")
    identity = ed25519.Ed25519PrivateKey.generate()

    def create(name: str) -> None:
        running = start_server(home, *recovery)
        try:
            client = RemoteCas(Address.parse(running.url), key_holder(identity))
            client.create(name.encode().ljust(16, b"."), name, Freshness.strict())
            client.close()
        finally:
            assert running.stop() == 0

    recovery: list[str] = []
    create("first")
    for file in scratch.glob("server/store.sqlite*"):
        file.unlink()
    shutil.copy(scratch / "backup" / "store.sqlite", home)
    refused = fspf("cas", "serve", home, "--listen", "127.0.0.1:0")
    assert refused.returncode == RolledBackError.exit_code, refused.stderr
    found = re.search(r"counters (\d+) and (\d+), state ([0-9a-f]{16})", refused.stderr)
    assert found, refused.stderr
    numbers = ["--stored", found[1], "--outside", found[2], "--state", found[3], "--reason", "the disk died"]
    for name in ("one", "three"):
        done = fspf("cas", "recovery", *numbers, "--key", scratch / f"{name}.pem", "-o", scratch / f"{name}.json")
        assert done.returncode == 0, done.stderr
    alone = fspf("cas", "serve", home, "--listen", "127.0.0.1:0", "--recovery", scratch / "one.json")
    assert (alone.returncode, "2 approvers are needed, 1" in alone.stderr) == (CasError.exit_code, True), alone.stderr
    recovery = ["--recovery", str(scratch / "one.json"), "--recovery", str(scratch / "three.json")]
    create("second")
    kinds = [json.loads(line)["kind"] for line in (home / "audit.log").read_text().splitlines()]
    assert kinds.count("recovery") == 1
    recovery = []
    create("third")  # and from then on as before


KEYS = [ed25519.Ed25519PrivateKey.generate() for _ in range(3)]
APPROVERS = Approvers(2, tuple(spki_of(key.public_key()) for key in KEYS))


def documents(*keys: ed25519.Ed25519PrivateKey, statement: Recovery = STATEMENT) -> list[bytes]:
    return [approve(statement, key).encode() for key in keys]


def test_enough_approvals_count() -> None:
    assert approved(documents(KEYS[0], KEYS[2]), APPROVERS) == STATEMENT
    assert approved(documents(*KEYS), APPROVERS) == STATEMENT


def test_one_approver_twice_is_one() -> None:
    with pytest.raises(AccessDeniedError, match="1 have signed"):
        approved(documents(KEYS[0], KEYS[0]), APPROVERS)


def test_strangers_approval_is_refused() -> None:
    with pytest.raises(AccessDeniedError, match="not one of those"):
        approved(documents(KEYS[0], KEYS[1], ed25519.Ed25519PrivateKey.generate()), APPROVERS)


def test_approvals_of_different_statements_are_refused() -> None:
    other = documents(KEYS[1], statement=STATEMENT._replace(stored=4))
    with pytest.raises(UsageError, match="different recoveries"):
        approved(documents(KEYS[0]) + other, APPROVERS)


@pytest.mark.parametrize("member", ["stored", "outside", "state", "reason"])
def test_altered_statement_is_refused(member: str) -> None:
    changed = []
    for one in documents(KEYS[0], KEYS[1]):
        members = json.loads(one)
        members[member] = members[member] + 1 if isinstance(members[member], int) else "fedcba9876543210"
        changed.append(json.dumps(members).encode())
    with pytest.raises(AccessDeniedError, match="signature"):
        approved(changed, APPROVERS)


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b"\xff", b'{"stored": 1}', b"[" * 100_000])
def test_what_is_no_approval_is_refused(document: bytes) -> None:
    with pytest.raises(UsageError):
        approved([document], APPROVERS)


def test_approvers_are_sealed() -> None:
    master = SecretKey.generate()
    sealed = APPROVERS.seal(master)
    assert Approvers.open(sealed, master) == APPROVERS
    for bad, key in ((sealed[:-1] + bytes([sealed[-1] ^ 1]), master), (sealed, SecretKey.generate()), (b"", master)):
        with pytest.raises(CasError):
            Approvers.open(bad, key)


@pytest.mark.parametrize("needs", [0, 4, -1])
def test_numbers_that_cannot_be_reached_are_refused(needs: int) -> None:
    with pytest.raises(UsageError):
        Approvers(needs, APPROVERS.keys)
