"""FSPF as an ordinary user: a Python that the user can run, and a device that the user may open.

What the user does is the test's business.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounted import REPO

NOBODY: Final = 65534
_TIMEOUT_S: Final = 120
_SETPRIV: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
DEVICE: Final = "/dev/fuse"


@functools.cache
def python() -> tuple[str, str]:
    """A Python that every user can run, and the PYTHONPATH with which it finds FSPF: ours may lie in a home directory."""
    path = f"{REPO}{os.pathsep}{sysconfig.get_path('purelib')}"
    for candidate in (sys.executable, "/usr/bin/python3"):
        command = [*_SETPRIV, "env", "-i", f"PYTHONPATH={path}", candidate, "-c", "import fspf.mount.session"]
        with contextlib.suppress(OSError):
            if subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0:
                return candidate, path
    pytest.skip("filesystem: another user can reach neither this Python nor the repository")


@dataclass
class Ordinary:
    """The user nobody, with a home."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.home),
            "PYTHONPATH": python()[1],
            "FSPF_CAS": str(self.home / "cas.sqlite"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def volume(self) -> Path:
        return self.home / "volume"

    @property
    def mountpoint(self) -> Path:
        return self.home / "mnt"

    @property
    def log(self) -> Path:
        return self.home / "log"

    def run(self, *words: str | Path, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run a program as the user, within *prefix* (`unshare …`)."""
        return subprocess.run(
            [*_SETPRIV, *prefix, *map(str, words)],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )

    def fspf(self, *words: str | Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        done = self.run(python()[0], "-m", "fspf", *words)
        if check is not None:
            assert done.returncode == check, f"{words}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def mount(self, *words: str, check: int = 0) -> subprocess.CompletedProcess[str]:
        return self.fspf("mount", self.volume, self.mountpoint, "--log", self.log, *words, check=check)


def make_ordinary(home: Path) -> Iterator[Ordinary]:
    """Give out a user with a volume."""
    for path in (home, *home.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            with contextlib.suppress(OSError):
                path.chmod(path.stat().st_mode | 0o011)
    place = home / "home"
    place.mkdir()
    (place / "mnt").mkdir()
    for path in (place, place / "mnt"):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755)
    user = Ordinary(place)
    user.fspf("create", user.volume, "-q")
    yield user
    log = user.log.read_text(encoding="utf-8") if user.log.exists() else ""
    assert " ERROR " not in log
    assert " CRITICAL " not in log


@contextlib.contextmanager
def device_for_all() -> Iterator[None]:
    """Let every user open /dev/fuse, as Debian's udev does."""
    before = stat.S_IMODE(os.stat(DEVICE).st_mode)
    os.chmod(DEVICE, 0o666)
    try:
        yield
    finally:
        os.chmod(DEVICE, before)
