"""The whole story through the commands: a board of three, a service with a TPM, its volume killed, rolled back and restored.

What each part refuses by itself is tested with the part.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.casserver import CasProcess, init_server, start_server
from tests.support.swtpm import running_swtpm

pytestmark = pytest.mark.timeout(300)

MEMBERS = ("ann", "bob", "eve")
POLICY = """\
version: "0.3"
name: messenger
services:
  - name: db
    image_name: image
    command: ["serve", "--password=$$SCONE::password$$"]
    attestation: [ {{ tpm: {{ ak: {ak}, pcrs: {{ 11: "{pcr}" }} }} }} ]
  - name: web
    environment: {{ MODE: "{mode}" }}
    attestation: [ {{ key: [{web}] }} ]
images:
  - {{ name: image, volumes: [ {{ name: data, path: /data }} ] }}
volumes:
  - {{ name: data }}
secrets:
  - {{ name: password, kind: ascii, size: 24 }}
access_policy:
  read: [ {readers} ]
  update: [ {{ require-at-least-2: [ {readers} ] }} ]
{restore}"""


@dataclass
class Person:
    """Somebody with an identity file; `run` is a command of his."""

    identity: Path
    server: CasProcess
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *words: object, code: int = 0) -> Any:
        environment = {**os.environ, "FSPF_CAS": self.server.url, "FSPF_CAS_IDENTITY": str(self.identity)}
        command = [sys.executable, "-m", "fspf", "--json", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env={**environment, **self.environment})
        assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stderr

    def cat(self, volume: Path, name: str) -> str | None:
        """Return what a file of a volume holds, None if the volume is refused."""
        environment = {**os.environ, "FSPF_CAS": self.server.url, **self.environment}
        command = [sys.executable, "-m", "fspf", "cat", f"{volume}:/{name}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode in {0, 20, 21}, done.stderr
        return done.stdout if done.returncode == 0 else None


@pytest.fixture
def server(scratch: Path) -> Iterator[CasProcess]:
    init_server(scratch / "server")
    process = start_server(scratch / "server")
    yield process
    assert process.stop() == 0


@pytest.fixture
def mountpoint(scratch: Path) -> Iterator[Path]:
    path = scratch / "mnt"
    path.mkdir()
    yield path
    while os.path.ismount(path):
        subprocess.run(["umount", "-l", path], check=True)


def test_board_service_rollback_restore(scratch: Path, server: CasProcess, mountpoint: Path) -> None:
    people = {name: Person(scratch / f"{name}.pem", server) for name in (*MEMBERS, "web", "stranger")}
    ids = {name: person.run("cas", "identity", person.identity)["key_id"] for name, person in people.items()}
    ann, bob, eve = (people[name] for name in MEMBERS)
    policy = scratch / "policy.yml"
    with running_swtpm(scratch / "tpm") as tpm:
        measured = ann.run("cas", "tpm", "--create", "--tcti", tpm.tcti)
        settings = {
            "ak": measured["ak"],
            "pcr": measured["pcrs"]["sha256"]["11"],
            "web": ids["web"],
            "readers": ", ".join(f'"{ids[name]}"' for name in MEMBERS),
            "mode": "test",
            "restore": "",
        }

        # Created by one; changed by two of three, and not by one, nor by a stranger.
        policy.write_text(POLICY.format(**settings))
        ann.run("policy", "create", policy)
        policy.write_text(POLICY.format(**settings | {"mode": "prod"}))
        plan = bob.run("policy", "plan", policy)
        assert "web" in json.dumps(plan)
        people["stranger"].run("policy", "update", policy, code=23)
        bob.run("policy", "update", policy, code=23)
        bob.run("policy", "update", policy, "--propose")
        agree(ann, "messenger", policy)
        assert "prod" in read(eve, "messenger")

        # The service: let in by its TPM, and by nothing else.
        service = Person(
            scratch / "none.pem",
            server,
            {
                "FSPF_CAS_SERVICE": "messenger#db",
                "FSPF_CAS_EVIDENCE": "tpm",
                "FSPF_TPM_TCTI": tpm.tcti,
                "FSPF_CAS_IDENTITY": "",
            },
        )
        configuration = service.run("cas", "configuration")
        password = configuration["command"][1].removeprefix("--password=")
        assert len(password) == 24
        volume_id = configuration["volumes"][0]["volume_id"]
        for name in ("stranger", "web"):
            people[name].environment["FSPF_CAS_SERVICE"] = "messenger#db"
            refusal = people[name].run("cas", "configuration", code=23)
            assert "tpm" in refusal
            assert password not in refusal
            del people[name].environment["FSPF_CAS_SERVICE"]

        # Its volume: mounted, killed, mounted again.
        volume = scratch / "volume"
        service.run("create", volume, "--id", volume_id)
        assert "UnknownVolumeError" in ann.run("ls", volume, code=23)  # the board has no key
        copies = []
        for number in range(3):
            mount_when_free(service, volume, mountpoint)
            (mountpoint / "state").write_text(f"state {number}")
            descriptor = os.open(mountpoint / "state", os.O_RDWR)
            os.fsync(descriptor)
            os.close(descriptor)
            if number == 1:
                pid = service.run("status", mountpoint)["pid"]
                os.kill(pid, signal.SIGKILL)
                subprocess.run(["umount", "-l", mountpoint], check=True)
                wait_for_end(pid)
            else:
                service.run("umount", mountpoint)
            shutil.copytree(volume, scratch / f"copy{number}")
            copies.append(service.run("cas", "show", volume_id)["records"][0])
        assert service.cat(volume, "state") == "state 2"

        # The copy of an older state is refused.
        for number in (0, 1):
            service.run("mount", scratch / f"copy{number}", mountpoint, code=21)

        # Two of the board let one older state in, and no other.
        statement = (
            "restore:\n"
            f"  - volume: data\n    tag: {copies[0]['root_tag']}\n    generation: {copies[0]['anchored_generation']}\n"
            f'    epoch: {service.run("cas", "show", volume_id)["records"][0]["epoch"] + 1}\n    reason: "disk died"\n'
        )
        policy.write_text(POLICY.format(**settings | {"mode": "prod", "restore": statement}))
        eve.run("policy", "update", policy, code=23)
        service.run("mount", scratch / "copy0", mountpoint, code=21)
        eve.run("policy", "update", policy, "--propose")
        agree(bob, "messenger", policy)
        for later in (scratch / "copy1", scratch / "copy2", volume):
            # Such a directory may still have all of the restored state: then that is what it shows, or nothing.
            assert service.cat(later, "state") in {"state 0", None}
        service.run("mount", scratch / "copy0", mountpoint)
        assert (mountpoint / "state").read_text() == "state 0"
        service.run("umount", mountpoint)
    assert password not in server.log.read_text()


def read(person: Person, name: str) -> str:
    return json.dumps(person.run("policy", "read", name))


def agree(person: Person, name: str, policy: Path) -> None:
    """Approve the one proposal that waits, with a signature of one's own."""
    pending = person.run("policy", "read", "--pending", name)
    (proposal,) = pending["proposals"]
    person.run("policy", "approve", name, proposal["statement"]["policy"], "--key", person.identity, "--yes")


def mount_when_free(person: Person, volume: Path, mountpoint: Path) -> None:
    """Mount, once the lease of a writer that was killed has expired: a server cannot see that he is gone."""
    deadline = time.monotonic() + 90
    while True:
        try:
            person.run("mount", volume, mountpoint)
        except AssertionError as exc:
            if "exit code 22" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def wait_for_end(pid: int) -> None:
    """Wait for a process that is no child of ours."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([descriptor], [], [], 60)
    finally:
        os.close(descriptor)
