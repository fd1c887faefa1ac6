"""The supervisor's side of an endurance run's processes: workers, fio, samples of the daemon, stacks of what hangs.

What happens when is `tests.fault.endurance.run`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.fault.endurance.worker import PULSE
from tests.support.mounted import REPO

_BYTES_OF_THREAD: Final = (1 << 20) + (64 << 10)
HANG_S: Final = 90.0  # a call that is not answered for so long hangs; a full disk and a CAS that is away take less


class HangError(AssertionError):
    """A request was not answered."""


class Member:
    """One worker process."""

    def __init__(self, number: int, seed: int, scratch: Path) -> None:
        self.number = number
        self.last: dict[str, Any] = {}
        self.pulse = scratch / f"pulse-{number}"
        self.pulse.write_bytes(bytes(PULSE.size))
        self.model = scratch / f"model-{number}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.endurance.worker", str(number), str(seed), str(self.pulse)],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._heard = b""

    def tell(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(words.encode() + b"\n")

    @property
    def has_answered(self) -> bool:
        assert self.process.stdout is not None
        return b"\n" in self._heard or bool(select.select([self.process.stdout], [], [], 0)[0])

    def hear(self) -> dict[str, Any]:
        """Return the next answer. Raises `HangError` when there is none and no system call ends either."""
        assert self.process.stdout is not None
        alive, beat = time.monotonic(), b""
        while b"\n" not in self._heard:
            if not select.select([self.process.stdout], [], [], 1.0)[0]:
                if self.pulse.read_bytes() != beat:
                    alive, beat = time.monotonic(), self.pulse.read_bytes()
                if time.monotonic() - alive > HANG_S:
                    raise HangError(f"worker {self.number} does not answer: {self.waiting()}")
                continue
            got = self.process.stdout.read(65536)
            if not got:
                raise AssertionError(f"worker {self.number} ended: {self.process.wait(10)}")
            self._heard += got
        line, _, self._heard = self._heard.partition(b"\n")
        self.last = json.loads(line)
        if "wrong" in self.last:
            raise AssertionError("\n".join([f"worker {self.number}: {self.last['wrong']}", *self.last["journal"]]))
        return self.last

    def ask(self, words: str) -> dict[str, Any]:
        self.tell(words)
        return self.hear()

    def waiting(self) -> tuple[str, float]:
        """Return which call is under way, and for how long."""
        since, what = PULSE.unpack(self.pulse.read_bytes())
        return what.rstrip(b"\0").decode(), time.monotonic() - since if since else 0.0

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def stacks(pid: int) -> str:
    """Return where all threads of a process are: the C stacks, and what the kernel waits for."""
    lines = []
    with contextlib.suppress(OSError):
        for thread in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/task/{thread}/comm").read_text().strip()
                lines.append(f"{thread} {name} {Path(f'/proc/{pid}/task/{thread}/wchan').read_text()}")
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["gdb", "-p", str(pid), "-batch", "-nx", "-ex", "set pagination off", "-ex", "thread apply all bt 14"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines += [line for line in done.stdout.splitlines() if line.startswith(("#", "Thread"))]
    return "\n".join(lines)


@dataclass(slots=True)
class Sample:
    """How large the daemon was."""

    at: float  # seconds since it was mounted
    resident: int  # bytes
    descriptors: int
    threads: int

    @property
    def net_resident(self) -> int:
        """Bytes without the threads': as many as were ever busy at once stay, each with a buffer."""
        return self.resident - self.threads * _BYTES_OF_THREAD

    @property
    def net_descriptors(self) -> int:
        """Without one for each thread."""
        return self.descriptors - self.threads


@dataclass(slots=True)
class Samples:
    """Sizes of one daemon over its life."""

    taken: list[Sample] = field(default_factory=list)

    def take(self, pid: int, at: float) -> None:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            fields = Path(f"/proc/{pid}/statm").read_text().split()
            status = Path(f"/proc/{pid}/status").read_text()
            threads = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:"))
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            self.taken.append(Sample(at, int(fields[1]) * 4096, descriptors, threads))

    def settled(self, warm_up: float) -> list[Sample]:
        return [sample for sample in self.taken if sample.at >= warm_up]

    def slope(self, warm_up: float) -> float:
        """Return by how many bytes a second the daemon grew after its warm-up: least squares."""
        points = [(sample.at, sample.resident) for sample in self.settled(warm_up)]
        if len(points) < 8:
            return 0.0
        mean_x = sum(x for x, _ in points) / len(points)
        mean_y = sum(y for _, y in points) / len(points)
        spread = sum((x - mean_x) ** 2 for x, _ in points)
        return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class Fio:
    """fio with verification, again and again, beside everything else; it stops when the mount goes."""

    def __init__(self) -> None:
        self.runs = self.bytes = 0
        self.problem = ""
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._excused = threading.Event()

    def start(self, directory: Path) -> None:
        self._stop.clear()
        self._excused.clear()
        directory.mkdir(exist_ok=True)
        self._thread = threading.Thread(target=self._loop, args=(directory,), name="fio")
        self._thread.start()

    def excuse(self, *, last: bool) -> None:
        """From now on a failure is no news: the mount ends (*last*: do not begin anew), or the disk is full."""
        self._excused.set()
        if last:
            self._stop.set()

    def stop(self) -> None:
        self._excused.set()
        self._stop.set()
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.send_signal(signal.SIGINT)
        if self._thread is not None:
            self._thread.join(HANG_S)
            if self._thread.is_alive():
                raise HangError("fio does not end")
            self._thread = None

    def _loop(self, directory: Path) -> None:
        turn = 0
        while not self._stop.is_set():
            turn += 1
            mode = ("randwrite", "randrw", "write")[turn % 3]
            command = [
                "fio", "--name=verify", "--directory=.", f"--rw={mode}", "--bsrange=512-64k", "--size=6m",
                "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--ioengine=psync", f"--direct={turn % 2}",
                f"--randseed={turn}", "--fsync=64", "--rate=6m", "--group_reporting", "--minimal", "--exitall_on_error",
                "--fallocate=none", "--blockalign=512",
            ]  # fmt: skip
            try:  # by its working directory: below a mountpoint without a mount it would work in plain text
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory
                )
            except OSError:
                return
            output, _ = self._process.communicate()
            if self._process.returncode == 0:
                self.runs += 1
                self.bytes += 6 << 20
            elif "verify:" in output or "bad magic" in output or not self._excused.is_set():
                self.problem = self.problem or f"fio {mode}: exit {self._process.returncode}: {output[-1500:]}"
                return
            if self._excused.is_set():
                self._stop.wait(0.5)
