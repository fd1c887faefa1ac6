"""A volume and its mount for tests: made by the command line, always unmounted, its daemon's log always looked at.

What a test checks on the mount is its own business; leftovers in general are found by tests/conftest.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from fspf.cas import open_cas
from fspf.volume.volume import Volume
from tests.support import leftovers

REPO: Final = Path(__file__).resolve().parents[2]
_TIMEOUT_S: Final = 120


@dataclass
class Site:
    """A CAS, a volume, a mountpoint and a log below one directory."""

    root: Path
    allowed: list[str] = field(default_factory=list)  # regular expressions of log lines that a test expects
    disk: Path | None = None  # where the volume is, if not below `root`

    @property
    def volume(self) -> Path:
        return (self.disk or self.root) / "volume"

    @property
    def mountpoint(self) -> Path:
        return self.root / "mnt"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def cas_url(self) -> str:
        return f"sqlite://{self.root}/cas.sqlite"

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPO), "FSPF_CAS": self.cas_url, "PYTHONWARNINGS": "error"}

    def command(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "fspf", *map(str, words)]

    def run(self, *words: str | Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run the command line; *check* is the exit code that is expected."""
        done = subprocess.run(
            self.command(*words),
            env=self.environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, (
                f"{words}: exit {done.returncode}: {done.stdout}{done.stderr}{self.read_log()}"
            )
        return done

    def create(self) -> None:
        self.mountpoint.mkdir()
        self.run("create", self.volume)

    @contextlib.contextmanager
    def library(self, *, read_only: bool = False) -> Iterator[Volume]:
        """Open the unmounted volume in this process."""
        cas = open_cas(self.cas_url, create=False)
        try:
            with Volume.open(self.volume, cas, read_only=read_only, commit_interval=None) as volume:
                yield volume
        finally:
            cas.close()

    def mount(self, *options: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        words = ["mount", str(self.volume), str(self.mountpoint), "--log", str(self.log)]
        for option in options:
            words += ["-o", option]
        return self.run(*words, check=check)

    def umount(self, *words: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.run("umount", self.mountpoint, *words, check=check)

    def status(self) -> dict[str, Any]:
        document = json.loads(self.run("status", self.mountpoint, "--json").stdout)
        assert isinstance(document, dict)
        return document

    @property
    def pid(self) -> int:
        return int(self.status()["pid"])

    def open_to_others(self) -> None:
        """Let other users reach the mountpoint."""
        for path in (self.root, self.root.parent):
            path.chmod(0o711)
        self.mountpoint.chmod(0o777)

    def is_mounted(self) -> bool:
        return str(self.mountpoint) in leftovers.mounts_below(str(self.mountpoint))

    def kill(self) -> None:
        """End the daemon as a crash would."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        self.wait_gone(pid)
        deadline = (
            time.monotonic() + 10
        )  # its threads may outlive it by a moment, and requests of that moment are aborted
        while time.monotonic() < deadline:
            try:
                os.statvfs(self.mountpoint)
            except OSError as exc:
                if exc.errno == errno.ENOTCONN:
                    return
            time.sleep(0.01)
        raise AssertionError("the mount does not answer ENOTCONN")

    @staticmethod
    def wait_gone(pid: int, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while is_running(pid):
            assert time.monotonic() < deadline, f"process {pid} goes on"
            time.sleep(0.01)

    def detach_dead(self) -> None:
        """Take away what a killed daemon left."""
        done = self.umount()
        assert "gone already" in done.stderr

    def read_log(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def allow(self, pattern: str) -> None:
        self.allowed.append(pattern)

    def complaints(self) -> list[str]:
        """Lines of the daemon's log that nobody announced."""
        return [
            line
            for line in self.read_log().splitlines()
            if re.search(r" (WARNING|ERROR|CRITICAL) |^Traceback", line)
            and not any(re.search(pattern, line) for pattern in self.allowed)
        ]


SiteKind = TypeVar("SiteKind", bound=Site)


def as_nobody(code: str, *arguments: str | Path, groups: Sequence[int] = (), uid: int = 65534, gid: int = 65534) -> int:
    """Run Python code as another user; 0, or the errno of the OSError that it raised, or 255."""
    program = f"import os, sys\ntry:\n    {code}\nexcept OSError as exc:\n    sys.exit(exc.errno)"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program, *map(str, arguments)],
        user=uid,
        group=gid,
        extra_groups=list(groups),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.returncode


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except OSError:
        return False


def need_fuse() -> None:
    if os.geteuid() != 0:
        pytest.skip("no-root: mounting as the tests do needs root")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no-fuse: there is no /dev/fuse")


def make_site(root: Path, disk: Path | None = None) -> Iterator[Site]:
    """Give out a site with an unmounted volume; at the end nothing is mounted, and the log is clean."""
    yield from make_site_of(Site, root, disk)


def make_site_of(kind: type[SiteKind], root: Path, disk: Path | None = None) -> Iterator[SiteKind]:
    """The same for a site that does more."""
    need_fuse()
    site = kind(root, disk=disk)
    site.create()
    yield site
    problem = ""
    if site.is_mounted():
        done = site.umount(check=None)
        if done.returncode != 0:
            problem = f"unmounting at the end of the test: exit {done.returncode}: {done.stderr}"
            with contextlib.suppress(OSError, AssertionError, ValueError):
                os.kill(site.pid, signal.SIGKILL)
            leftovers.unmount(str(site.mountpoint))
    complaints = site.complaints()
    assert not complaints, "the daemon's log:\n" + "\n".join(complaints)
    assert not problem, f"{problem}\n{site.read_log()}"
