"""The C files without Python, under AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and libFuzzer.

Programs are built once per state of the sources, into build/sanitized.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "fspf_native"
HERE = Path(__file__).parent
NIGHTLY = os.environ.get("FSPF_NIGHTLY", "") not in {"", "0"}
SEED = int(os.environ.get("FSPF_SEED", "0")) or int(time.time())
KINDS = {"address": "address,undefined", "thread": "thread", "fuzzer": "fuzzer,address,undefined"}


def build(kind: str, main_name: str = "") -> Path:
    """Compile harness.c or fuzz.c, or another main, with the C files that have no Python.h."""
    if shutil.which("clang") is None:
        pytest.skip("no-clang: the sanitizers of clang are not installed")
    main = HERE / (main_name or ("fuzz.c" if kind == "fuzzer" else "harness.c"))
    sources = [p for p in sorted(NATIVE.glob("*.c")) if not p.name.startswith(("binding", "module"))]
    digest = hashlib.sha256()
    for path in [main, *sources, *sorted(NATIVE.glob("*.h")), *sorted(HERE.glob("*.h"))]:
        digest.update(path.read_bytes())
    program = ROOT / "build" / "sanitized" / f"{main.stem}-{kind}-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    for old in program.parent.glob(f"{main.stem}-{kind}-*"):
        old.unlink(missing_ok=True)
    made = program.with_name(f".{program.name}.{os.getpid()}")
    command = ["clang", "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra"]
    command += [f"-fsanitize={KINDS[kind]}", "-fno-sanitize-recover=all", f"-I{NATIVE}", f"-I{HERE}", str(main)]
    command += [*map(str, sources), "-lcrypto", "-lpthread", "-o", str(made)]
    compiled = subprocess.run(command, capture_output=True, text=True)
    if "libclang_rt" in compiled.stderr and compiled.returncode:
        pytest.skip("no-clang: the sanitizer runtime of clang is not installed")
    assert compiled.returncode == 0, compiled.stderr
    assert "warning" not in compiled.stderr, compiled.stderr
    made.rename(program)
    return program


def run(program: Path, *arguments: str, seconds: int) -> None:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{program.name} {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"


@pytest.mark.timeout(3600 if NIGHTLY else 300)
@pytest.mark.parametrize("mode", ["ops", "faults"])
@pytest.mark.parametrize("number", range(200 if NIGHTLY else 5))
def test_random_operations(scratch: Path, mode: str, number: int) -> None:
    run(build("address"), mode, str(SEED + number), "4000" if NIGHTLY else "1000", str(scratch), seconds=600)


@pytest.mark.timeout(3600 if NIGHTLY else 300)
@pytest.mark.parametrize("kind", ["thread", "address"])
def test_threads(scratch: Path, kind: str) -> None:
    run(build(kind), "threads", str(SEED), "120000" if NIGHTLY else "3000", str(scratch), seconds=1200)


@pytest.mark.timeout(7200 if NIGHTLY else 300)
def test_fuzz(scratch: Path) -> None:
    (scratch / "corpus").mkdir()
    run(
        build("fuzzer"),
        f"-max_total_time={3600 if NIGHTLY else 10}",
        "-timeout=20",
        "-max_len=2000",
        f"-seed={SEED % 2**31}",
        f"-artifact_prefix={HERE}/crash-",
        str(scratch / "corpus"),
        seconds=7000,
    )


@pytest.mark.timeout(7200 if NIGHTLY else 300)
@pytest.mark.parametrize("mode", ["kernel", "wild", "leave"])
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_relay(scratch: Path, kind: str, mode: str) -> None:
    """Applications through a kernel of ours: each request is answered once, and the table agrees with itself at the end."""
    program = build(kind, "relay_harness.c")
    for number in range(100 if NIGHTLY else 2):
        store = scratch / str(number)
        store.mkdir()
        rounds = (1000 if kind == "address" else 200) * (5 if NIGHTLY else 1)
        run(program, mode, str(SEED + number), str(rounds), str(store), seconds=600)


@pytest.mark.timeout(7200 if NIGHTLY else 300)
def test_fuzz_relay(scratch: Path) -> None:
    (scratch / "corpus").mkdir()
    run(
        build("fuzzer", "fuzz_relay.c"),
        f"-max_total_time={3600 if NIGHTLY else 10}",
        "-timeout=20",
        "-len_control=0",
        "-max_len=400",
        f"-seed={SEED % 2**31}",
        f"-artifact_prefix={HERE}/crash-relay-",
        str(scratch / "corpus"),
        seconds=7000,
    )
