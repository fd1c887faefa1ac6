"""A lease's holder is gone only where this machine can see it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fspf.cas.liveness import holder_is_gone
from fspf.core.anchor import Holder

US = Holder("here", "boot-1", 100, 5000, 0, "test")


@pytest.fixture
def proc(scratch: Path) -> str:
    """A procfs with this boot's id, our namespace, and processes 100 (running), 101 (zombie), 102 (odd name)."""
    (scratch / "sys/kernel/random").mkdir(parents=True)
    (scratch / "sys/kernel/random/boot_id").write_text("boot-1\n")
    (scratch / "self/ns").mkdir(parents=True)
    (scratch / "self/ns/pid").touch()
    for pid, name, state in ((100, "fspf", "S"), (101, "fspf", "Z"), (102, "a) Z 1 (b", "R")):
        (scratch / str(pid)).mkdir()
        rest = " ".join(str(n) for n in range(4, 22))
        (scratch / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {rest} 5000 99 98\n")
    (scratch / "103").mkdir()
    (scratch / "103/stat").write_text("cut off")
    return str(scratch)


def same_namespace(proc: str, holder: Holder) -> Holder:
    return replace(holder, pid_namespace=os.stat(f"{proc}/self/ns/pid").st_ino)


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        pytest.param({}, False, id="runs"),
        pytest.param({"pid": 999}, True, id="no such process"),
        pytest.param({"pid_start": 4999}, True, id="pid was given to another process"),
        pytest.param({"pid": 101}, True, id="zombie"),
        pytest.param({"pid": 102}, False, id="a name with blanks and parentheses"),
        pytest.param({"pid": 103}, False, id="stat cannot be understood"),
        pytest.param({"boot_id": "boot-0"}, True, id="this machine, an earlier boot"),
        pytest.param({"boot_id": "boot-0", "host": "there"}, False, id="another machine"),
        pytest.param({"host": "container"}, False, id="this boot under another host name"),
        pytest.param({"host": "container", "pid": 999}, True, id="this boot under another host name, no such process"),
    ],
)
def test_same_namespace(proc: str, changes: dict[str, object], *, gone: bool) -> None:
    assert holder_is_gone(same_namespace(proc, replace(US, **changes)), proc=proc, host="here") is gone  # type: ignore[arg-type]


def test_pid_of_another_namespace_means_nothing_here(proc: str) -> None:
    assert not holder_is_gone(replace(US, pid=999, pid_namespace=1), proc=proc, host="here")


def test_without_procfs_nothing_is_known(scratch: Path) -> None:
    assert not holder_is_gone(replace(US, boot_id="boot-0"), proc=str(scratch / "none"), host="here")


def test_real_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        with open(f"/proc/{child.pid}/stat", "rb") as file:
            start = int(file.read().rsplit(b")", 1)[1].split()[19])
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
        holder = Holder(os.uname().nodename, boot_id, child.pid, start, namespace, "child")
        assert not holder_is_gone(holder)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert holder_is_gone(holder)  # dead, not yet collected
    finally:
        child.kill()
        child.communicate()
    assert holder_is_gone(holder)
