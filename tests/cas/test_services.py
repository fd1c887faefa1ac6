"""A service from its policy to its mounted volume: attestation by a TPM, a board, a copy put back, a restore. For real, end to end.

Each step's refusals in detail are in the tests of attestation, policies and secrets.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fspf.attestation import Trust, verify
from fspf.attestation.make_tpm import Tpm
from fspf.cas import assembly
from fspf.cas.identity import make_identity, public_pem
from fspf.core.errors import CasError, FreshnessError
from fspf.volume.holder import this_process
from tests.support.casserver import ThreadServer, thread_server
from tests.support.logs import Quiet
from tests.support.memstore import MemoryStore
from tests.support.mounted import Site
from tests.support.swtpm import Swtpm, running_swtpm

POLICY = """\
version: "0.3"
name: messenger
{predecessor}
services:
  - name: db
    image_name: db_image
    command: ["db", "--password", "$$SCONE::password$$"]
    environment: {{ MODE: {mode} }}
    attestation:
      - tpm: {{ ak: {ak}, pcrs: {{ 16: "{pcr}" }} }}
images:
  - name: db_image
    volumes: [ {{ name: data, path: /data }} ]
    injection_files: [ {{ path: /etc/db.conf, content: "password=$$SCONE::password$$\\n" }} ]
volumes: [ {{ name: data }} ]
secrets: [ {{ name: password, kind: ascii, size: 24 }} ]
{restore}
access_policy:
  read: [ ANY ]
  update:
    - require-at-least-2:
{signers}
"""


@pytest.fixture(scope="module")
def swtpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swtpm]:
    with running_swtpm(tmp_path_factory.mktemp("tpm") / "state") as running:
        yield running


class Clock:
    """The time of the CAS."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()

    def __call__(self) -> int:
        return self.now_ns


class World(Site):
    """A server, an operator, a board of three, a service with a TPM."""

    def __init__(self, root: Path, server: ThreadServer, swtpm: Swtpm) -> None:
        super().__init__(root)
        self.server = server
        self.as_service = False
        self.swtpm = swtpm
        self.tpm = Tpm(swtpm.tcti)
        self.tpm.create_ak()
        shown = verify(self.tpm.quote(bytes(32), {"sha256": (16,)}), bytes(32), Trust(), 0)
        self.pcr: str = shown.values["pcrs"]["sha256", 16]
        self.board = {name: make_identity(str(root / f"{name}.pem")) for name in ("one", "two", "three")}
        make_identity(str(root / "operator.pem"))
        self.mountpoint.mkdir()

    @property
    def cas_url(self) -> str:
        return self.server.url

    @property
    def environment(self) -> dict[str, str]:
        if not self.as_service:
            return {**super().environment, "FSPF_CAS_IDENTITY": str(self.root / "operator.pem")}
        return {
            **super().environment,
            "FSPF_CAS_SERVICE": "messenger#db",
            "FSPF_CAS_EVIDENCE": "tpm",
            "FSPF_TPM_TCTI": self.swtpm.tcti,
            "FSPF_TPM_PCRS": "sha256:16",
        }

    def policy(self, *, mode: str = "prod", predecessor: str = "", restore: str = "") -> Path:
        signers = "\n".join(f"        - signer: {json.dumps(public_pem(key))}" for key in self.board.values())
        text = POLICY.format(
            predecessor=f"predecessor: {predecessor}" if predecessor else "",
            mode=mode,
            ak=self.tpm.ak_id(),
            pcr=self.pcr,
            restore=restore,
            signers=signers,
        )
        path = self.root / "policy.yaml"
        path.write_text(text)
        return path

    def approvals(self, policy: Path, *names: str) -> list[str]:
        words = []
        for name in names:
            output = self.root / f"approval-{name}-{os.urandom(4).hex()}.json"
            self.run("policy", "sign", policy, "--key", self.root / f"{name}.pem", "-o", output)
            words += ["--approval", str(output)]
        return words

    def hash(self, *words: str | Path) -> str:
        return str(json.loads(self.run("--json", "policy", *words).stdout)["hash"])


def mount(site: Site) -> int:
    return int(json.loads(site.run("--json", "mount", "--log", site.log, site.volume, site.mountpoint).stdout)["pid"])


def write_and_sync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def state_of(site: Site) -> dict[str, Any]:
    (record,) = json.loads(site.run("--json", "cas", "show", site.volume).stdout)["records"]
    return dict(record)


def test_service_with_a_board_and_a_tpm_end_to_end(scratch: Path, swtpm: Swtpm, quiet: Quiet) -> None:
    quiet.allow("refused")
    clock = Clock()
    with thread_server(scratch, MemoryStore(), assembly.World(this_process("test"), clock)) as server:
        site = World(scratch, server, swtpm)
        first = site.hash("create", site.policy())
        _update_needs_two(site, first)
        old = _use_the_volume(site)
        _copy_is_refused(site)
        site.as_service = False  # others than the service get nothing
        assert site.run("ls", site.volume, check=None).returncode == CasError.exit_code
        clock.now_ns += 61 * 10**9  # the killed writer's lease ends
        _only_the_approved_state_is_let_in(site, old)
        _other_software_is_refused(site)
    log = scratch / "server" / "audit.log"
    site.run("cas", "audit", "verify", log, "--key-hash", server.home.audit_key_hash)
    kinds = [json.loads(line)["kind"] for line in log.read_text().splitlines()]
    for kind in ("policy-create", "policy-update", "attestation-refused", "configuration-released", "key-released"):
        assert kind in kinds
    assert kinds.count("volume-restore") == 1


def _update_needs_two(site: World, first: str) -> None:
    update = site.policy(mode="debug", predecessor=first)
    assert "MODE" in site.run("policy", "plan", update).stdout
    alone = site.run("policy", "update", update, *site.approvals(update, "two"), check=None)
    assert alone.returncode == CasError.exit_code
    assert site.hash("read", "messenger") == first
    site.run("policy", "update", update, *site.approvals(update, "two", "three"))
    assert site.hash("read", "messenger") != first


def _use_the_volume(site: World) -> dict[str, Any]:
    """Attest, be configured, make the volume, write to it, then be killed after writing more; return what the first state was."""
    site.as_service = True
    configuration = json.loads(site.run("cas", "configuration").stdout)
    assert configuration["command"][:2] == ["db", "--password"]
    assert len(configuration["command"][2]) == 24
    assert configuration["environment"] == {"MODE": "debug"}
    (used,) = configuration["volumes"]
    site.run("create", "--id", used["volume_id"], site.volume)
    mount(site)
    try:
        write_and_sync(site.mountpoint / "a", b"first")
    finally:
        site.run("umount", site.mountpoint)
    old = state_of(site)
    shutil.copytree(site.volume, site.root / "backup")
    pid = mount(site)
    try:
        write_and_sync(site.mountpoint / "a", b"second")
        os.kill(pid, signal.SIGKILL)
    finally:
        subprocess.run(["fusermount3", "-uz", str(site.mountpoint)], check=True)
    assert site.run("cat", f"{site.volume}:/a").stdout == "second"
    return old


def _copy_is_refused(site: World) -> None:
    shutil.rmtree(site.volume)
    shutil.copytree(site.root / "backup", site.volume)
    assert site.run("ls", site.volume, check=None).returncode == FreshnessError.exit_code


def _only_the_approved_state_is_let_in(site: World, old: dict[str, Any]) -> None:
    site.as_service = True
    epoch = state_of(site)["epoch"]
    site.as_service = False
    current = site.hash("read", "messenger")
    restore = (
        f"restore: [ {{ volume: data, tag: {old['root_tag']}, generation: {old['anchored_generation']}, "
        f"epoch: {epoch + 1}, reason: the disk died }} ]"
    )
    policy = site.policy(mode="debug", predecessor=current, restore=restore)
    alone = site.run("policy", "update", policy, *site.approvals(policy, "one"), check=None)
    assert alone.returncode == CasError.exit_code
    site.run("policy", "update", policy, *site.approvals(policy, "one", "three"))
    site.as_service = True
    assert site.run("cat", f"{site.volume}:/a").stdout == "first"


def _other_software_is_refused(site: World) -> None:
    """Once something else was measured, the same machine gets nothing, and is told which register is wrong."""
    site.swtpm.tool("tpm2_pcrextend", "16:sha256=" + "11" * 32)
    refused = site.run("ls", site.volume, check=None)
    assert refused.returncode == CasError.exit_code
    assert "pcrs.16" in refused.stderr
