"""Measure what issue 2 asks of volumes: encrypt against cp -a, opening by size, fsync, memory.

Every figure is a ratio to something measured in the same run. Native figures are in micro_native.py. Run it as
`python benchmarks/volume.py [--source DIR] [--files N] [--write]`; --write adds the rows to results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import fspf
from fspf.core.types import ROOT_INO

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS: Final = Path(__file__).with_name("results.md")
ROUNDS: Final = 15


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    against: str
    ratio: str
    target: str


def seconds(action: Callable[[], object]) -> float:
    """Return how long *action* takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def run(*command: str | Path, env: dict[str, str]) -> tuple[float, int]:
    """Run a command; return seconds and peak memory in KiB (of the process and its descendants that it waited for)."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss


def measure_encrypt(source: Path, work: Path, env: dict[str, str]) -> list[Row]:
    """`fspf encrypt` and `decrypt` of *source* against `cp -a` of it, interleaved, warm cache, each ended by sync."""
    fspf_command = [sys.executable, "-m", "fspf"]
    files = sum(len(names) for _, _, names in os.walk(source))
    copies: list[float] = []
    encrypts: list[float] = []
    decrypts: list[float] = []
    verifies: list[float] = []
    memory: dict[str, int] = {}
    run("cp", "-a", source, work / "warm-up", env=env)
    shutil.rmtree(work / "warm-up")
    for _ in range(3):
        os.sync()
        copies.append(run("cp", "-a", source, work / "copy", env=env)[0] + seconds(os.sync))
        shutil.rmtree(work / "copy")
        os.sync()
        took, memory["encrypt"] = run(*fspf_command, "encrypt", source, work / "volume", env=env)
        encrypts.append(took + seconds(os.sync))
        took, memory["verify"] = run(*fspf_command, "verify", work / "volume", env=env)
        verifies.append(took)
        took, memory["decrypt"] = run(*fspf_command, "decrypt", work / "volume", work / "plain", env=env)
        decrypts.append(took + seconds(os.sync))
        shutil.rmtree(work / "plain")
        _, memory["ls -lR"] = run(*fspf_command, "ls", "-lR", work / "volume", env=env)
        _, memory["scrub"] = run(*fspf_command, "scrub", work / "volume", env=env)
        shutil.rmtree(work / "volume")
    copy = statistics.median(copies)
    rows = [
        Row(f"{name} of {files} files", f"{statistics.median(times):.2f} s", f"cp -a {copy:.2f} s",
            f"{statistics.median(times) / copy:.2f}", target)
        for name, times, target in (("encrypt", encrypts, "<= 2"), ("decrypt", decrypts, ""), ("verify", verifies, ""))
    ]  # fmt: skip
    rows += [
        Row(f"peak memory of fspf {name}", f"{kib / 1024:.0f} MiB", "200 MB", f"{kib * 1024 / 200e6:.2f}", "<= 1")
        for name, kib in memory.items()
    ]
    return rows


def generate(path: Path, cas: str, files: int) -> None:
    """Make a volume of *files* small files, 1000 a directory."""
    with fspf.create(path, cas) as volume:
        directory = ROOT_INO
        for number in range(files):
            if number % 1000 == 0:
                directory = volume.create_inode(ROOT_INO, b"d%06d" % (number // 1000), 0o040755, uid=0, gid=0)
            ino = volume.create_inode(directory, b"file-%09d" % number, 0o100644, uid=0, gid=0)
            if number % 10 == 0:
                with volume.open_file(ino, write=True) as file:
                    file.write(0, b"content of one file")


def measure_opening(work: Path, cas: str, sizes: list[int]) -> list[Row]:
    """Open volumes of several sizes for writing, in turn, against an empty one."""
    paths = {}
    for size in sizes:
        paths[size] = work / f"files-{size}"
        generate(paths[size], cas, size)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size, path in paths.items():
            start = time.perf_counter()
            volume = fspf.open(path, cas)
            volume.stat("/")
            times[size].append(time.perf_counter() - start)
            volume.close()
    empty = statistics.median(times[sizes[0]])
    return [
        Row(f"open a volume of {size} files", f"{statistics.median(times[size]) * 1e3:.1f} ms",
            f"empty {empty * 1e3:.1f} ms", f"{statistics.median(times[size]) / empty:.2f}", "<= 1.5")
        for size in sizes[1:]
    ]  # fmt: skip


def measure_fsync(work: Path, cas: str) -> list[Row]:
    """A 4 KiB write and fsync in a volume (embedded CAS, strict), against the same on the host's file system."""
    plain = os.open(work / "plain-file", os.O_RDWR | os.O_CREAT)
    os.pwrite(plain, bytes(64 << 20), 0)
    os.fsync(plain)
    block = os.urandom(4096)
    ours: list[float] = []
    theirs: list[float] = []

    def host(offset: int) -> None:
        os.pwrite(plain, block, offset)
        os.fsync(plain)

    with fspf.create(work / "fsync-volume", cas) as volume:
        ino = volume.create_inode(ROOT_INO, b"file", 0o100644, uid=0, gid=0)
        with volume.open_file(ino, write=True) as file:
            for offset in range(0, 64 << 20, 1 << 20):
                file.write(offset, bytes(1 << 20))
            file.fsync()

            def shielded(offset: int) -> None:
                file.write(offset, block)
                file.fsync()

            for number in range(600):
                offset = number * 7919 % 16384 * 4096
                ours.append(seconds(lambda offset=offset: shielded(offset)))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                theirs.append(seconds(lambda offset=offset: host(offset)))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
    os.close(plain)
    our, their = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
    return [
        Row(
            "4 KiB write + fsync, strict, embedded CAS",
            f"{our:.2f} ms median",
            f"ext4 {their:.2f} ms",
            f"{our / their:.1f}",
            "<= 3 ms",
        )
    ]


def table(rows: list[Row]) -> str:
    lines = ["| what | figure | against | ratio | target |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.figure} | {row.against} | {row.ratio} | {row.target} |" for row in rows]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Name the machine: processor, cores, kernel, file system."""
    model = "unknown processor"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path(os.__file__).parent, help="tree to encrypt")
    parser.add_argument("--files", type=int, default=1_000_000, help="files of the largest generated volume")
    parser.add_argument("--only", choices=["encrypt", "opening", "fsync"], action="append")
    parser.add_argument("--work", type=Path, help="where to work; default a temporary directory on the disk")
    parser.add_argument("--write", action="store_true", help="add the rows to results.md")
    args = parser.parse_args()
    only = args.only or ["encrypt", "opening", "fsync"]
    with tempfile.TemporaryDirectory(dir=args.work or "/var/tmp", prefix="fspf-bench-") as name:
        work = Path(name)
        cas = f"sqlite://{work}/cas.sqlite"
        env = os.environ | {"FSPF_CAS": cas}
        rows: list[Row] = []
        if "fsync" in only:
            rows += measure_fsync(work, cas)
        if "encrypt" in only:
            rows += measure_encrypt(args.source, work, env)
        if "opening" in only:
            rows += measure_opening(work, cas, [0, 50_000, args.files])
    text = table(rows)
    print(text)
    if args.write:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n## benchmarks/volume.py, {time.strftime('%Y-%m-%d')}, {machine()}\n\n{text}")
    print(json.dumps([row.ratio for row in rows]))


if __name__ == "__main__":
    main()
