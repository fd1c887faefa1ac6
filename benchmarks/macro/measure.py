"""What every line needs: emptying caches, running and timing programs, fio, and the figures that come out.

Which programs are run is each line's own business.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.macro.catalog import Sizes
    from benchmarks.macro.systems import System

# line -> system -> round -> figure
Figures = dict[str, dict[str, dict[int, float]]]
# (line, system) -> why there is no figure
Failures = dict[tuple[str, str], str]
Word = str | Path


class BenchError(Exception):
    """A program that the benchmark ran has failed."""


@dataclass
class Take:
    """One group of lines on one file system in one round: what is wanted, and where the figures go."""

    system: System
    round: int
    wanted: frozenset[str]
    sizes: Sizes
    tools: Path  # programs that the benchmark has built
    assets: Path  # inputs that it has made: archives, repositories
    figures: Figures
    failures: Failures = field(default_factory=dict)

    def wants(self, *keys: str) -> bool:
        """Tell whether any of these lines is asked for and makes sense here."""
        return any(key in self.wanted for key in keys)

    def record(self, key: str, value: float) -> None:
        if key in self.wanted:
            self.figures.setdefault(key, {}).setdefault(self.system.name, {})[self.round] = value

    @property
    def place(self) -> Path:
        return self.system.directory

    @contextlib.contextmanager
    def timed(self, key: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.record(key, time.perf_counter() - begin)

    @contextlib.contextmanager
    def attempt(self, *keys: str) -> Iterator[None]:
        """Let a failure here cost these lines only, not those that the visit would measure after them."""
        try:
            yield
        except (BenchError, OSError) as exc:
            if not self.system.alive:
                raise
            for key in keys:
                if key in self.wanted:
                    self.failures[key, self.system.name] = str(exc)


# Whatever ends us, a child of ours gets SIGTERM, on which every daemon here unmounts and every server ends.
TOGETHER: Final = ("setpriv", "--pdeathsig", "TERM", "--")
SERVER_END_S: Final = 60.0


def run(
    command: Sequence[Word],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    data: str | None = None,
    timeout: float = 900,
) -> str:
    """Run a program to its end and return its output; raise `BenchError` if it fails. It dies with an exception here."""
    words = [str(word) for word in command]
    with subprocess.Popen(
        words,
        cwd=cwd,
        env=None if env is None else {**os.environ, **env},
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            out, err = process.communicate(data, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise BenchError(f"{words[0]} had not ended after {timeout:.0f} s") from None
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise BenchError(f"{' '.join(words)[:200]}: exit {process.returncode}: {(err or out).strip()[-500:]}")
    return out


def need(*programs: str) -> None:
    """Raise `BenchError` for programs that are not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise BenchError(f"{' and '.join(missing)} not installed")


@contextlib.contextmanager
def server(
    command: Sequence[Word], log: Path, *, end: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block is left; by force if it does not end. Its output goes to *log*."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*TOGETHER, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C is for us, and what it has started ends with it
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(end)
        try:
            process.wait(SERVER_END_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, *, timeout: float = 60) -> None:
    """Wait until *true*; raise `BenchError` with the end of *log* if *process* ends first, or it takes too long."""
    limit = time.monotonic() + timeout
    while not true():
        if process.poll() is not None or time.monotonic() > limit:
            raise BenchError(f"the server did not start: {log.read_text(errors='replace').strip()[-400:]}")
        time.sleep(0.02)


def shell(script: str, *, cwd: Path | None = None, timeout: float = 900) -> None:
    """Run a line of sh; its output goes nowhere."""
    run(["sh", "-c", script], cwd=cwd, timeout=timeout)


def drop_caches() -> None:
    """Write back everything on the machine, then drop page cache, directory entries and inodes of every file system."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def cold(take: Take) -> None:
    """Nothing of the file system is in memory: its daemon was restarted and the machine's caches are empty."""
    take.system.remount()
    drop_caches()


def over_warm_backing(take: Take) -> None:
    """The daemon was restarted, what it stores is in the page cache."""
    take.system.unmount()
    for folder, _, names in os.walk(take.system.backing):
        for name in names:
            with contextlib.suppress(OSError), open(os.path.join(folder, name), "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
    take.system.mount()


def fio(
    take: Take, path: Path, kind: str, *, count: int, jobs: int = 1, size: int = 0, extra: Sequence[str] = ()
) -> float:
    """Run fio with 4 KiB blocks on an existing file; return requests a second.

    Args:
        path: The file; if there is `$jobnum` in its name, each job has one of its own.
        count: Requests of all jobs together.
        size: Bytes of the file, if it is not that of the lines on random access.
    """
    each = "$jobnum" in path.name
    where = [f"--directory={path.parent}", f"--filename_format={path.name}"] if each else [f"--filename={path}"]
    text = run(
        [
            "fio",
            "--name=line",
            *where,
            f"--rw={kind}",
            "--bs=4k",
            f"--size={size or take.sizes.random_bytes}",
            "--ioengine=psync",
            f"--numjobs={jobs}",
            "--thread",
            "--group_reporting",
            f"--number_ios={max(1, count // jobs)}",
            "--runtime=20",
            "--invalidate=0",
            "--randrepeat=1",
            f"--randseed={1000 + take.round}",
            "--gtod_reduce=1",
            "--allow_file_create=0",
            "--fallocate=none",
            "--output-format=json",
            *extra,
        ]
    )
    document: dict[str, Any] = json.loads(text[text.index("{") :])
    side = document["jobs"][0]["write" if "write" in kind else "read"]
    return float(side["iops"])


def resident_peak_mb(pid: int) -> float | None:
    """Peak resident memory of a process, in 10**6 bytes."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None
