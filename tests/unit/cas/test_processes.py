"""The embedded CAS among processes: one winner, nothing lost when one is killed, forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import pytest

from fspf.cas import EmbeddedCas
from fspf.cas.liveness import holder_is_gone
from fspf.core.anchor import NEVER_WRITTEN, CasRecord, Holder, Lease
from fspf.core.errors import LeaseHeldError
from fspf.core.freshness import Freshness
from tests.unit.cas.conftest import OpenEmbedded, anchor, holder, volume

ROOT: Final = str(Path(__file__).resolve().parents[3])
A: Final = volume(1)

COMMON: Final = f"""
import os, sys
sys.path.insert(0, {ROOT!r})
from fspf.cas import EmbeddedCas
from fspf.core.anchor import Holder, NEVER_WRITTEN
from fspf.core.errors import LeaseHeldError, AnchorMovedError
from tests.unit.cas.conftest import anchor, volume
def me(label):
    with open("/proc/self/stat", "rb") as file:
        start = int(file.read().rsplit(b")", 1)[1].split()[19])
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot_id = file.read().strip()
    return Holder(os.uname().nodename, boot_id, os.getpid(), start, os.stat("/proc/self/ns/pid").st_ino, label)
cas = EmbeddedCas(sys.argv[1])
A = volume(1)
"""
ACQUIRE: Final = """
record = cas.fetch(A)
print("ready", flush=True)
input()
try:
    lease = cas.acquire(A, expected=NEVER_WRITTEN, expected_epoch=0, adopt=NEVER_WRITTEN, holder=me(sys.argv[2]))
    print("won", lease.epoch, flush=True)
    input()
except (LeaseHeldError, AnchorMovedError) as exc:
    print(type(exc).__name__, exc, flush=True)
"""
WRITE: Final = """
record = cas.fetch(A)
lease = cas.acquire(A, expected=record.anchor, expected_epoch=record.epoch, adopt=record.anchor, holder=me("writer"))
now = record.anchor
while True:
    new = anchor(now.generation + 1)
    os.write(1, b"%d\\n" % new.generation)
    cas.advance(A, lease, now, new)
    os.write(1, b"%d done\\n" % new.generation)
    now = new
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMON + script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.fixture
def cas(open_embedded: OpenEmbedded) -> EmbeddedCas:
    """With the real clock and real processes."""
    return open_embedded(clock=time.time_ns, is_gone=holder_is_gone)


@pytest.fixture
def record(cas: EmbeddedCas) -> CasRecord:
    return cas.create(A, "data", Freshness.strict())


def test_of_four_processes_one_acquires(cas: EmbeddedCas, record: CasRecord, cas_path: str) -> None:
    children = [start(ACQUIRE, cas_path, f"p{number}") for number in range(4)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    answers = []
    for child in children:
        assert child.stdout is not None
        answers.append(child.stdout.readline())
    lease = cas.fetch(A).lease
    assert sorted(answer.split()[0] for answer in answers) == ["LeaseHeldError"] * 3 + ["won"]
    winner = next(child for child, answer in zip(children, answers, strict=True) if answer.startswith("won"))
    assert lease is not None
    assert lease.holder.pid == winner.pid
    for answer in answers:
        assert answer.startswith("won") or f"/{winner.pid} ({lease.holder.label})" in answer
    for child in children:
        _, complaints = child.communicate("\n")
        assert complaints == ""
    assert acquire(cas).epoch == 2  # it left without releasing, and is seen to be gone


def acquire(cas: EmbeddedCas) -> Lease:
    record = cas.fetch(A)
    return cas.acquire(
        A, expected=record.anchor, expected_epoch=record.epoch, adopt=record.anchor, holder=holder("parent")
    )


def test_killed_writer_leaves_the_old_anchor_or_the_new_one(cas: EmbeddedCas, record: CasRecord, cas_path: str) -> None:
    for attempt in range(10):
        child = start(WRITE, cas_path)
        assert child.stdout is not None
        for _ in range(3 + 5 * attempt):
            child.stdout.readline()
        time.sleep(attempt * 0.0007)  # somewhere within an advance
        child.send_signal(signal.SIGKILL)
        rest, complaints = child.communicate()
        assert complaints == ""
        lines = [line for line in rest.splitlines() if line]
        found = cas.fetch(A)
        assert found.epoch == attempt + 1
        if lines:
            generation = int(lines[-1].split()[0])
            assert found.anchor.generation in ({generation} if "done" in lines[-1] else {generation - 1, generation})
        assert found.anchor == anchor(found.anchor.generation)
    assert cas.fetch(A).epoch == 10


def test_opened_before_a_fork_used_after_it_in_both(cas: EmbeddedCas, record: CasRecord) -> None:
    lease = acquire(cas)
    cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cas.advance(A, lease, anchor(1), anchor(2))
            cas.close()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert cas.fetch(A).anchor == anchor(2)
    cas.advance(A, lease, anchor(2), anchor(3))
    assert cas.fetch(A).anchor == anchor(3)


def test_parent_that_closes_does_not_take_the_childs_commits(
    cas: EmbeddedCas, record: CasRecord, open_embedded: OpenEmbedded
) -> None:
    lease = acquire(cas)
    go, gone = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
            os.write(gone[1], b"x")
            os.read(go[0], 1)
            cas.advance(A, lease, anchor(1), anchor(2))
            status = 0
        finally:
            os._exit(status)
    os.read(gone[0], 1)
    assert cas.fetch(A).anchor == anchor(1)
    cas.close()
    os.write(go[1], b"x")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for end in (*go, *gone):
        os.close(end)
    assert open_embedded(create=False).fetch(A).anchor == anchor(2)


def test_fork_without_hooks_is_noticed(cas: EmbeddedCas, record: CasRecord) -> None:
    """As C code forks: nobody was told, the connection was open."""
    lease = acquire(cas)
    connection = cas._file._connection
    assert connection is not None
    real = os.getpid
    try:
        os.getpid = lambda: -1
        cas.advance(A, lease, NEVER_WRITTEN, anchor(1))
        assert cas._file._connection is not connection
        cas._file._disconnect()
    finally:
        os.getpid = real
    assert cas.fetch(A).anchor == anchor(1)
    connection.close()


def test_forks_and_commits_at_once(cas: EmbeddedCas, record: CasRecord) -> None:
    lease = acquire(cas)
    failures: list[BaseException] = []

    def write() -> None:
        now = NEVER_WRITTEN
        try:
            for generation in range(1, 101):
                cas.advance(A, lease, now, anchor(generation))
                now = anchor(generation)
        except BaseException as exc:  # noqa: BLE001 - shown by the main thread
            failures.append(exc)

    thread = threading.Thread(target=write)
    thread.start()
    while thread.is_alive():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if cas.fetch(A).anchor.generation <= 100 else 1
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    thread.join()
    assert not failures
    assert cas.fetch(A).anchor == anchor(100)


def test_own_process_is_alive(cas: EmbeddedCas, record: CasRecord) -> None:
    with open("/proc/self/stat", "rb") as file:
        begun = int(file.read().rsplit(b")", 1)[1].split()[19])
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    us = Holder("here", boot_id, os.getpid(), begun, os.stat("/proc/self/ns/pid").st_ino, "us")
    cas.acquire(A, expected=NEVER_WRITTEN, expected_epoch=0, adopt=NEVER_WRITTEN, holder=us)
    with pytest.raises(LeaseHeldError):
        cas.acquire(A, expected=NEVER_WRITTEN, expected_epoch=1, adopt=NEVER_WRITTEN, holder=us)
