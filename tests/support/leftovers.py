"""Find what a test left behind: mounts, processes, open files.

Compares two snapshots of this process's surroundings; `end` cleans up what it found so that the next test starts
clean. Whether a leftover is a failure is decided by the fixture in tests/conftest.py.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

MARK: Final = "FSPF_TEST_RUN"
GRACE_SECONDS: Final = 3.0  # a daemon that was told to end may take this long to be gone

# Files that libraries open once and keep.
_KEPT_OPEN: Final = (
    "/dev/null",
    "/dev/urandom",
    "/dev/random",
    "/dev/tty",
    "/dev/pts/",
    "/proc/",
    "/sys/",
    "/memfd:",
    "/dev/shm/sem.",
)


def mark_this_run() -> str:
    """Put a mark into the environment that every process started from here inherits, daemons included."""
    value = os.environ.setdefault(MARK, uuid.uuid4().hex)
    return f"{MARK}={value}"


def _unescape(field: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


def mounts_below(*roots: str) -> list[str]:
    """Mount points at or below one of *roots*, deepest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            point = _unescape(line.split(" ")[4])
            if any(point == root or point.startswith(root.rstrip("/") + "/") for root in roots):
                found.append(point)
    return sorted(found, key=len, reverse=True)


def unmount(point: str) -> None:
    """Take *point* away whatever its state."""
    for command in (["fusermount3", "-u", "-z", point], ["umount", "-l", point]):
        try:
            if subprocess.run(command, capture_output=True, timeout=20).returncode == 0:
                return
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue


def _processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def _open_files() -> dict[int, str]:
    files: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself
            continue
        if target.startswith("/") and not target.startswith(_KEPT_OPEN):
            files[int(name)] = target
    return files


def _stat_fields(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was there before a test."""

    run_mark: str
    processes: frozenset[int]
    open_files: dict[int, str]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(mark_this_run(), frozenset(_processes()), _open_files())

    def _ours(self, pid: int) -> str | None:
        """Name a process that a test started and that is still running, else nothing."""
        try:
            state, parent = _stat_fields(pid)[:2]
            if state in {"Z", "X"}:
                return None
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
            if int(parent) == os.getpid():
                return command or f"process {pid}"
            with open(f"/proc/{pid}/environ", "rb") as file:
                return command if self.run_mark.encode() in file.read().split(b"\0") else None
        except (OSError, ValueError):
            return None

    def _new_processes(self) -> dict[int, str]:
        found = {pid: self._ours(pid) for pid in _processes() - self.processes - {os.getpid()}}
        return {pid: command for pid, command in found.items() if command is not None}

    def _new_files(self) -> dict[int, str]:
        return {fd: path for fd, path in _open_files().items() if self.open_files.get(fd) != path}

    def end(self, *roots: str, keep: AbstractSet[str] = frozenset()) -> list[str]:
        """Compare with now: one line per leftover. New mounts below *roots* are taken away, new processes killed."""
        problems = []
        for point in mounts_below(*roots):
            if point in keep:
                continue
            problems.append(f"still mounted: {point}")
            unmount(point)
        processes = self._new_processes()
        deadline = time.monotonic() + GRACE_SECONDS
        while processes and time.monotonic() < deadline:
            time.sleep(0.02)
            processes = self._new_processes()
        for pid, command in processes.items():
            problems.append(f"still running: {pid} {command}")
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # a daemon is somebody else's child
                os.waitpid(pid, 0)
        files = self._new_files()
        if files:
            gc.collect()  # an exception's traceback may hold the last reference
            files = self._new_files()
        problems += [f"still open: {path}" for path in files.values()]
        return problems
