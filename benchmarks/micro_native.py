"""Speed of `fspf_native` as ratios to `openssl speed`, all measured in one run on one thread.

    .venv/bin/python benchmarks/micro_native.py [--directory DIR] [--rounds N] [--elapsed] [--json]

Both sides count processor time (user and system), so that other people's work on the machine is not in the ratio;
``--elapsed`` counts time on the wall instead. The openssl figure is taken before each line and the best of its
readings counts. Volumes are measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fspf_native import SecretKey, Store, Tree, open_chunks, seal_chunks, xxh3

CHUNK: Final = 4096
PIECE: Final = 1 << 20  # bytes per call of the streams
STREAM: Final = 256 << 20  # bytes of the tree
READS: Final = 200_000
TARGETS: Final = {"seal batch": 0.8, "open batch": 0.8, "tree write": 0.6, "tree read": 0.6, "random reads/s": 100_000}


def openssl(*extra: str) -> float:
    """Bytes per second of `openssl speed -evp aes-256-gcm` at 4096 bytes."""
    command = ["openssl", "speed", "-evp", "aes-256-gcm", "-bytes", str(CHUNK), "-seconds", "1", *extra]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1].rstrip("k")) * 1000


def rate(work: Callable[[], int], rounds: int, clock: Callable[[], float]) -> float:
    """Best of some rounds of a second, as long as those of openssl, in units per second."""
    best = 0.0
    for _ in range(rounds):
        start, now, amount = clock(), 0.0, 0
        while now < 1.0:
            amount += work()
            now = clock() - start
        best = max(best, amount / now)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description="Micro benchmark of fspf_native.")
    parser.add_argument("--directory", type=Path, help="where the segments go (default: /dev/shm)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--elapsed", action="store_true", help="time on the wall, for a quiet machine")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    extra = ["-elapsed"] if arguments.elapsed else []
    clock = time.perf_counter if arguments.elapsed else time.process_time
    directory = Path(tempfile.mkdtemp(prefix="fspf-micro-", dir=arguments.directory or "/dev/shm"))

    key = SecretKey.generate()
    plain = os.urandom(PIECE)
    sealed, opened, tags = bytearray(PIECE), bytearray(PIECE), bytearray(PIECE // CHUNK * 16)
    store = Store(directory, writable=True)
    store.begin_epoch(1, key)
    store.start_empty()
    tree = Tree(store)
    small = plain[:CHUNK]
    offsets = [random.randrange(STREAM // CHUNK) * CHUNK for _ in range(READS)]
    buffer = bytearray(PIECE)

    def seal() -> int:
        for _ in range(200):
            seal_chunks(key, 0, plain, sealed, tags, CHUNK)
        return 200 * PIECE

    def open_() -> int:
        for _ in range(200):
            open_chunks(key, 0, sealed, tags, opened, CHUNK)
        return 200 * PIECE

    def settle() -> int:
        tree.flush()
        store.commit_anchored(store.commit_begin())
        return STREAM

    def write() -> int:
        for offset in range(0, STREAM, PIECE):
            tree.write(plain, offset)
        return settle()

    def write_small() -> int:
        for offset in range(0, STREAM, CHUNK):
            tree.write(small, offset)
        return settle()

    def read() -> int:
        for offset in range(0, STREAM, PIECE):
            tree.readinto(buffer, offset)
        return STREAM

    def read_random() -> int:
        for offset in offsets:
            tree.read(offset, CHUNK)
        return READS

    def checksum() -> int:
        for _ in range(200):
            xxh3(plain)
        return 200 * PIECE

    write()
    write()  # twice, so that both generations of slots have their pages
    steps: list[tuple[str, Callable[[], int], str]] = [
        ("seal batch", seal, "B/s"),
        ("open batch", open_, "B/s"),
        ("tree write", write, "B/s"),
        ("tree read", read, "B/s"),
        ("tree write 4 KiB", write_small, "B/s"),
        ("random reads/s", read_random, "/s"),
        ("xxh3", checksum, "B/s"),
    ]
    base, base_open = 0.0, 0.0
    found: dict[str, tuple[float, str]] = {}
    for name, work, unit in steps:
        base, base_open = max(base, openssl(*extra)), max(base_open, openssl(*extra, "-aead", "-decrypt"))
        found[name] = (rate(work, arguments.rounds, clock), unit)
    base = max(base, openssl(*extra))

    store.close()
    shutil.rmtree(directory)
    rows = []
    for name, (value, unit) in found.items():
        target = TARGETS.get(name)
        figure = value / base if unit == "B/s" else value
        rows.append(
            {
                "name": name,
                "rate": round(value),
                "ratio": round(value / base, 3),
                "target": target,
                "met": target is None or figure >= target,
            }
        )
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    if arguments.json:
        json.dump(
            {"machine": machine, "openssl": round(base), "openssl_open": round(base_open), "rows": rows},
            sys.stdout,
            indent=2,
        )
        print()
    else:
        print(
            f"{machine}; openssl speed -evp aes-256-gcm, 4096 bytes: {base / 1e6:.0f} MB/s ({base_open / 1e6:.0f} opening)"
        )
        for row, (value, unit) in zip(rows, found.values(), strict=True):
            shown = f"{value / 1e6:8.0f} MB/s  {value / base:5.2f} of openssl" if unit == "B/s" else f"{value:8.0f} /s"
            verdict = "" if row["target"] is None else f"   target {row['target']}: {'met' if row['met'] else 'MISSED'}"
            print(f"{row['name']:<18} {shown}{verdict}")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
