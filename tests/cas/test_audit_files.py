"""The audit log on real files: full, read-only and missing disks, rotation, kill -9, and the commands that check it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fspf.cas.audit import Audit, Timing
from fspf.cas.audit_sink import FileSink
from fspf.core.anchor import NEVER_WRITTEN, Anchor, Holder
from fspf.core.audit import Head, parse_line
from fspf.core.audit_check import verify
from fspf.core.errors import FormatError
from tests.support import leftovers
from tests.support.logs import Quiet
from tests.support.memstore import MemoryStore

REPO = Path(__file__).resolve().parents[2]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY_HASH = hashlib.sha256(KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
HOLDER = Holder("host", "boot", 1, 2, 3, "cas")
VOLUME = "ab" * 16
TIMING = Timing(summary=3600, head=3600, heartbeat=3600, retry=3600, sink=30)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def nobody(holder: Holder) -> bool:
    return False


async def started(path: Path, store: MemoryStore | None = None) -> Audit:
    audit = Audit(store or MemoryStore(), KEY, FileSink(str(path)), holder=HOLDER, is_gone=nobody, timing=TIMING)
    await audit.start()
    return audit


def assert_good(*paths: Path, heads: dict[str, Head] | None = None) -> list[str]:
    """The files together are a good log; the kinds of its lines."""
    files = [(str(path), path.read_bytes().splitlines(keepends=True)) for path in paths]
    verify(files, [KEY.public_key()], heads).require_good()
    kinds = []
    for _, lines in files:
        for line in lines:
            with contextlib.suppress(FormatError):  # a torn line, which the check has noted
                kinds.append(parse_line(line.rstrip(b"\n")).kind)
    return kinds


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid():
        pytest.skip("no-root: mounting a small disk")
    point = tmp_path / "tiny"
    point.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(point)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"kernel: tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        for mounted in leftovers.mounts_below(str(point)):
            leftovers.unmount(mounted)


def test_full_disk_stops_nothing_and_loses_nothing(tiny: Path, quiet: Quiet) -> None:
    quiet.require("No space left on device")

    async def main() -> None:
        path, ballast = tiny / "audit.log", tiny / "ballast"
        audit = await started(path)
        ballast.write_bytes(bytes(32 << 10))
        for index in range(200):
            await audit.append("lease-granted", volume=VOLUME, index=index)
            audit.anchored(
                VOLUME, 1, Anchor(index, b"a" * 16) if index else NEVER_WRITTEN, Anchor(index + 1, b"b" * 16)
            )
        status = audit.status()
        assert status["sink_dead"] == os.strerror(errno.ENOSPC)
        assert status["bytes_kept"] > 0
        before = path.read_bytes()
        assert before.endswith(b"\n")  # what did not fit was cut off again
        ballast.unlink()
        mount("-o", "remount,size=1m", str(tiny))
        await audit.flush()
        assert audit.status()["sink_dead"] is None
        await audit.close()
        kinds = assert_good(path, heads={audit.chain: audit._chain.head})
        assert kinds.count("lease-granted") == 200
        assert {"sink-lost", "sink-back", "anchors", "stop"} <= set(kinds)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["missing directory", "read-only", "a directory", "a pipe"])
def test_sink_that_cannot_be_opened_is_dead_until_it_can(scratch: Path, how: str, quiet: Quiet) -> None:
    quiet.require("cannot be written")
    if how == "read-only" and os.geteuid():
        pytest.skip("no-root: mounting a small disk")

    async def main() -> None:
        directory = scratch / "logs"
        path = directory / "audit.log"
        match how:
            case "read-only":
                directory.mkdir()
                mount("-t", "tmpfs", "-o", "ro", "tmpfs", str(directory))
            case "a directory":
                path.mkdir(parents=True)
            case "a pipe":
                directory.mkdir()
                os.mkfifo(path)
        store = MemoryStore()
        audit = await started(path, store)
        await audit.append("policy-create", policy="a")
        assert audit.status()["sink_dead"]
        match how:
            case "missing directory":
                directory.mkdir()
            case "read-only":
                leftovers.unmount(str(directory))
            case "a directory":
                path.rmdir()
            case _:
                path.unlink()
        await audit.flush()
        assert not audit.status()["sink_dead"]
        await audit.close()
        assert "policy-create" in assert_good(path, heads={audit.chain: audit._chain.head})

    asyncio.run(main())


def test_file_that_is_rotated_is_made_anew(scratch: Path) -> None:
    async def main() -> None:
        path, old = scratch / "audit.log", scratch / "audit.log.1"
        audit = await started(path)
        await audit.append("policy-create")
        path.rename(old)
        await audit.append("policy-update")
        await audit.close()
        assert_good(old, path, heads={audit.chain: audit._chain.head})
        assert len(path.read_bytes().splitlines()) == 2
        assert path.stat().st_mode & 0o777 == 0o640

    asyncio.run(main())


def test_two_processes_share_a_file_and_a_torn_line_hurts_neither(scratch: Path) -> None:
    async def main() -> None:
        path, store = scratch / "audit.log", MemoryStore()
        one = await started(path, store)
        other = await started(path, store)
        await asyncio.gather(*(audit.append("lease-granted", index=i) for i in range(20) for audit in (one, other)))
        line = path.read_bytes().splitlines(keepends=True)[-1]
        with path.open("ab") as file:
            file.write(line[: len(line) // 2])  # as a power failure in the middle of a write
        await one.append("lease-released")
        await one.close()
        await other.close()
        assert_good(path, heads={one.chain: one._chain.head, other.chain: other._chain.head})

    asyncio.run(main())


VICTIM = """
import asyncio, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fspf.cas.audit import Audit
from fspf.cas.audit_sink import FileSink
from fspf.core.anchor import Holder
from tests.support.memstore import MemoryStore

async def main():
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    audit = Audit(MemoryStore(), key, FileSink(sys.argv[1]), holder=Holder("h", "b", 1, 2, 3, "v"))
    await audit.start()
    async def one(worker):
        for index in range(1_000_000):
            await audit.append("attestation-granted", worker=worker, index=index)
            print(worker, index, flush=True)
    await asyncio.gather(*(one(worker) for worker in range(4)))

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40, 173])
def test_kill_loses_nothing_that_was_answered(scratch: Path, lines: int) -> None:
    path = scratch / "audit.log"
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(path)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        answered = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        answered += process.stdout.readlines()
    told = {tuple(map(int, line.split())) for line in answered if line.endswith(b"\n")}
    assert len(told) >= lines
    raw = path.read_bytes().splitlines(keepends=True)
    found = set()
    for line in raw:
        if line.endswith(b"\n"):
            fields = parse_line(line.rstrip(b"\n")).fields
            found.add((fields.get("worker"), fields.get("index")))
    assert told <= found
    problems = verify([("log", raw)], [KEY.public_key()]).problems
    assert {problem.kind for problem in problems} <= {"truncated", "torn"}  # of the one write that was under way


# -- the commands


def fspf(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fspf", "cas", "audit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=60)


@pytest.fixture
def logged(scratch: Path) -> tuple[Path, Path]:
    """A log with the history of a volume, and what the CAS says of its heads."""
    path, heads = scratch / "audit.log", scratch / "heads.json"

    async def main() -> None:
        audit = await started(path)
        await audit.append("volume-created", volume=VOLUME, name="data")
        await audit.append("lease-granted", volume=VOLUME, epoch=1)
        await audit.append("lease-granted", volume="cd" * 16, epoch=1)
        audit.anchored(VOLUME, 1, NEVER_WRITTEN, Anchor(1, b"a" * 16))
        audit.anchored("cd" * 16, 1, NEVER_WRITTEN, Anchor(9, b"c" * 16))
        await audit.close()
        heads.write_text(json.dumps({"heads": {audit.chain: list(audit._chain.head)}}))

    asyncio.run(main())
    return path, heads


def test_command_verifies(logged: tuple[Path, Path]) -> None:
    path, heads = logged
    done = fspf("verify", path, "--key-hash", KEY_HASH, "--heads", heads, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["good"]
    assert (report["chains"][0]["authentic"], report["chains"][0]["ended"]) == (report["lines"], True)


@pytest.mark.parametrize(
    ("damage", "kind", "line"),
    [
        pytest.param(lambda lines: lines[:-1], "truncated", 5, id="cut"),
        pytest.param(lambda lines: [*lines[:2], *lines[3:]], "gap", 3, id="left out"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "reordered", 3, id="swapped"),
        pytest.param(lambda lines: [*lines[:1], lines[1].replace(b"data", b"date"), *lines[2:]], "forged", 2, id="edited"),
        pytest.param(lambda lines: [*lines[:1], b"hello\n", *lines[1:]], "damaged", 2, id="added"),
    ],
)  # fmt: skip
def test_command_tells_what_was_done_and_where(logged: tuple[Path, Path], damage: Any, kind: str, line: int) -> None:
    path, heads = logged
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    done = fspf("verify", path, "--key-hash", KEY_HASH, "--heads", heads, "--json")
    assert done.returncode == 20
    assert [(each["kind"], each["line"]) for each in json.loads(done.stdout)["problems"]] == [(kind, line)]
    assert fspf("export", path, "--key-hash", KEY_HASH, "--heads", heads, "--volume", VOLUME).returncode == 20


def test_command_refuses_another_key(logged: tuple[Path, Path]) -> None:
    path, _ = logged
    done = fspf("verify", path, "--key-hash", "0" * 64)
    assert done.returncode == 24
    assert KEY_HASH in done.stderr
    assert fspf("verify", path, "--key-hash", "xyz").returncode == 2


def test_command_exports_the_history_of_a_volume(logged: tuple[Path, Path]) -> None:
    path, _ = logged
    done = fspf("export", path, "--key-hash", KEY_HASH, "--volume", VOLUME, "--json")
    assert done.returncode == 0, done.stderr
    events = json.loads(done.stdout)["events"]
    assert [event["kind"] for event in events] == ["volume-created", "lease-granted", "anchors"]
    assert (events[2]["from"], events[2]["to"]) == (0, 1)
    assert "cd" * 16 not in done.stdout
    text = fspf("export", path, "--key-hash", KEY_HASH, "--volume", VOLUME)
    assert len(text.stdout.splitlines()) == 3
