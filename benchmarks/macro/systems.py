"""The file systems that are compared: how each is installed, made, mounted, unmounted and removed.

All of them lie below one working directory on one disk. What is measured on them is in lines_*.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar, Final

import fspf
from benchmarks.macro.measure import TOGETHER, BenchError, run
from benchmarks.volume import generate

REPO: Final = Path(__file__).resolve().parents[2]
PASSWORD: Final = "benchmark"
MOUNT_TIMEOUT_S: Final = 60.0
UNMOUNT_TIMEOUT_S: Final = 300.0


def commit() -> str:
    """Name the commit that is measured."""
    done = subprocess.run(
        ["git", "-C", REPO, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "no git"


def is_mounted(path: Path) -> bool:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split()[4] == str(path) for line in file)


class System:
    """Plain ext4 (or whatever the disk has): a directory. Also the base of all others."""

    name: ClassVar[str] = "ext4"
    package: ClassVar[str] = ""
    program: ClassVar[str] = ""

    def __init__(self, work: Path, tools: Path) -> None:
        self.tools = tools
        self.root = work / self.name
        self.backing = self.root / "backing"
        self.log = self.root / "log"

    @property
    def directory(self) -> Path:
        """Where applications find their files."""
        return self.backing

    @property
    def pid(self) -> int | None:
        """The daemon, while mounted."""
        return None

    @property
    def alive(self) -> bool:
        """Whether more can be measured here."""
        return True

    @classmethod
    def missing(cls) -> str:
        """Say what keeps this file system from being measured here, or nothing."""
        if cls.program and shutil.which(cls.program) is None:
            return f"{cls.program} is not installed"
        return ""

    @classmethod
    def version(cls) -> str:
        return f"of Linux {os.uname().release}"

    def create(self) -> None:
        """Make an empty file system."""
        self.destroy()
        self.backing.mkdir(parents=True)

    def mount(self) -> None: ...

    def unmount(self) -> None: ...

    def give_up(self) -> None:
        """End a daemon that hangs, so that whoever waits for it gets an error. May be called from another thread."""

    def remount(self) -> None:
        """Restart the daemon, so that it remembers nothing."""
        self.unmount()
        self.mount()

    def sync(self) -> None:
        """Write back what was written here, to the disk; the same two calls for everybody."""
        for path in dict.fromkeys((self.directory, self.backing)):
            run(["sync", "-f", path])

    def destroy(self) -> None:
        """Unmount and remove everything; never leaves a daemon."""
        self.unmount()
        shutil.rmtree(self.root, ignore_errors=True)


class Daemon(System):
    """A FUSE file system whose daemon is our child, in the foreground."""

    def __init__(self, work: Path, tools: Path) -> None:
        super().__init__(work, tools)
        self.mountpoint = self.root / "mnt"
        self.process: subprocess.Popen[bytes] | None = None
        self.mount_s = 0.0  # how long the last mount took to answer

    @property
    def directory(self) -> Path:
        return self.mountpoint

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def environment(self) -> dict[str, str]:
        return {}

    def daemon_command(self) -> list[str]:
        """The command line that serves the mount until it is unmounted."""
        raise NotImplementedError  # each file system has its own

    def format(self) -> None:
        """Make the encrypted directory."""

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(
            ["dpkg-query", "-W", "-f=${Version}", cls.package],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        return f"{done.stdout.strip() or 'unknown'} (Debian)"

    def create(self) -> None:
        super().create()
        self.mountpoint.mkdir()
        self.format()

    def mount(self) -> None:
        if self.process is not None:
            return
        begin = time.perf_counter()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*TOGETHER, *self.daemon_command()],
                env={**os.environ, **self.environment()},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for us: we unmount
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{PASSWORD}\n".encode())
            self.process.stdin.close()
        below = os.stat(self.root).st_dev
        while not (os.stat(self.mountpoint).st_dev != below and os.statvfs(self.mountpoint)):
            if self.process.poll() is not None or time.perf_counter() - begin > MOUNT_TIMEOUT_S:
                self.kill()
                raise BenchError(f"{self.name} did not mount: {self.tail()}")
            time.sleep(0.0005)
        self.mount_s = time.perf_counter() - begin

    def unmount(self) -> None:
        """Unmount and wait until the daemon has ended; by force if it must be."""
        problem = ""
        if self.process is not None and is_mounted(self.mountpoint):
            for _ in range(20):  # somebody may still be letting go of a file
                done = subprocess.run(["umount", self.mountpoint], capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    break
                problem = done.stderr.strip()
                time.sleep(0.1)
            else:
                subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)
        if self.process is not None:
            try:
                self.process.wait(UNMOUNT_TIMEOUT_S if not problem else 20)
            except subprocess.TimeoutExpired:
                self.kill()
                raise BenchError(f"{self.name} did not end after unmounting: {problem or self.tail()}") from None
            finally:
                self.process = None
        elif is_mounted(self.mountpoint):
            subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)

    def give_up(self) -> None:
        process = self.process
        if process is not None:
            process.kill()

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        if is_mounted(self.mountpoint):
            subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace").strip()[-400:]
        return ""


class Null(Daemon):
    """The null file system: nullfs.c."""

    name = "null"
    program = "nullfs"

    @classmethod
    def missing(cls) -> str:
        return "" if shutil.which("pkg-config") and shutil.which("gcc") else "it is compiled, and there is no compiler"

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(["pkg-config", "--modversion", "fuse3"], capture_output=True, text=True, check=False)
        return f"nullfs.c on libfuse {done.stdout.strip()}"

    def daemon_command(self) -> list[str]:
        return [str(self.tools / "nullfs"), "-f", str(self.mountpoint)]

    def mount(self) -> None:
        super().mount()
        raise_read_ahead(self.mountpoint)


class Fspf(Daemon):
    """FSPF from this working tree, strict freshness, the CAS a file on the same disk."""

    name = "fspf"
    freshness: ClassVar[str] = "strict"

    @classmethod
    def version(cls) -> str:
        return f"{fspf.__version__} ({commit()})"

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(REPO), "FSPF_CAS": f"sqlite://{self.root}/cas.sqlite"}

    def words(self, *words: str | Path) -> list[str]:
        return [sys.executable, "-m", "fspf", *map(str, words)]

    def format(self) -> None:
        shutil.rmtree(self.backing)
        run(self.words("create", "--freshness", self.freshness, self.backing), env=self.environment())

    def fill(self, files: int) -> None:
        """Replace the volume by one of *files* files, made through the library: a mount would take far longer."""
        self.unmount()
        shutil.rmtree(self.backing)
        generate(self.backing, self.environment()["FSPF_CAS"], files)

    def daemon_command(self) -> list[str]:
        return self.words("mount", "-f", self.backing, self.mountpoint)


class FspfBounded(Fspf):
    """The same with bounded freshness: the CAS may lag half a second."""

    name = "fspf-bounded"
    freshness = "bounded:500ms"


class Gocryptfs(Daemon):
    name = "gocryptfs"
    package = "gocryptfs"
    program = "gocryptfs"

    def format(self) -> None:
        run(["gocryptfs", "-q", "-init", self.backing], data=f"{PASSWORD}\n")

    def daemon_command(self) -> list[str]:
        return ["gocryptfs", "-q", "-fg", str(self.backing), str(self.mountpoint)]


class Securefs(Daemon):
    name = "securefs"
    package = "securefs"
    program = "securefs"

    def format(self) -> None:
        run(["securefs", "create", "--pass", PASSWORD, self.backing])

    def daemon_command(self) -> list[str]:
        return ["securefs", "mount", "--pass", PASSWORD, str(self.backing), str(self.mountpoint)]


class Cryfs(Daemon):
    name = "cryfs"
    package = "cryfs"
    program = "cryfs"

    def environment(self) -> dict[str, str]:
        state = str(self.root / "state")  # it refuses a directory that it has seen with other keys
        return {
            "CRYFS_FRONTEND": "noninteractive",
            "CRYFS_NO_UPDATE_CHECK": "true",
            "CRYFS_LOCAL_STATE_DIR": state,
        }

    def daemon_command(self) -> list[str]:
        return ["cryfs", "-f", "--create-missing-basedir", str(self.backing), str(self.mountpoint)]


class Encfs(Daemon):
    name = "encfs"
    package = "encfs"
    program = "encfs"

    def daemon_command(self) -> list[str]:
        return ["encfs", "-f", "--standard", "--stdinpass", str(self.backing), str(self.mountpoint)]


SYSTEMS: Final[dict[str, type[System]]] = {
    kind.name: kind for kind in (System, Null, Fspf, FspfBounded, Gocryptfs, Securefs, Cryfs, Encfs)
}


def raise_read_ahead(mountpoint: Path, kib: int = 4096) -> None:
    """Let the kernel read ahead as far as a daemon that asks for it would get."""
    device = os.stat(mountpoint).st_dev
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(f"{kib}\n", "ascii")
