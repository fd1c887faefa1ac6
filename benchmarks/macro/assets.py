"""The inputs of the lines: programs compiled here, archives, repositories, sources, data, a database, wheels.

What is done with them is in lines_*.py and apps.py. All but the wheels are made from fixed seeds, so that every run on every machine moves the same bytes.
"""

from __future__ import annotations

import io
import random
import shlex
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.macro import mariadb
from benchmarks.macro.measure import BenchError, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.macro.catalog import Sizes
    from benchmarks.macro.measure import Word

REPO: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = Path(__file__).resolve().parent
FILES_PER_DIRECTORY: Final = 20


def build_tools(target: Path, *, with_null: bool) -> None:
    """Compile stream.c, and nullfs.c if it is asked for."""
    target.mkdir(exist_ok=True)
    common = ["gcc", "-O2", "-Wall", "-Wextra", "-pthread"]
    run([*common, "-o", target / "stream", SOURCES / "stream.c"])
    if with_null:
        flags = shlex.split(run(["pkg-config", "--cflags", "--libs", "fuse3"]))
        run([*common, "-o", target / "nullfs", SOURCES / "nullfs.c", *flags])


def small_files(count: int, mean_bytes: int) -> Iterable[tuple[str, bytes]]:
    """Yield names and contents like those of a large source tree: most files small, a few large."""
    rng = random.Random(50_000)
    pool = rng.randbytes(1 << 20)
    for number in range(count):
        folder = number // FILES_PER_DIRECTORY
        size = min(int(rng.expovariate(1.0) ** 2 * mean_bytes / 2) + 16, 1 << 19)
        start = rng.randrange(len(pool) - size)
        yield f"tree/part{folder // 50:03}/module{folder % 50:02}/file{number:06}.txt", pool[start : start + size]


def make_archive(path: Path, count: int, mean_bytes: int) -> int:
    """Write a tar of *count* small files; return the bytes of their contents."""
    total = 0
    seen: set[str] = set()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in small_files(count, mean_bytes):
            parts = name.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                folder = "/".join(parts[:depth])
                if folder not in seen:
                    seen.add(folder)
                    entry = tarfile.TarInfo(folder)
                    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                    archive.addfile(entry)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1_700_000_000
            archive.addfile(entry, io.BytesIO(content))
            total += len(content)
    return total


def make(target: Path, groups: list[str], sizes: Sizes) -> dict[str, str]:
    """Make what *groups* need; return the groups whose inputs could not be made, and why."""
    target.mkdir(exist_ok=True)
    makers: dict[str, Callable[[], object]] = {
        "tree": lambda: make_archive(target / "tree.tar", sizes.tree_files, sizes.tree_mean_bytes),
        "nginx": lambda: make_web(target / "www", sizes.web_files),
        "mariadb": lambda: mariadb.prepare(target / "mariadb", target / "away", sizes.sbtest_rows),
        "gcc": lambda: make_project(target / "project", sizes.c_files),
        "pandas": lambda: run(
            [sys.executable, "-m", "benchmarks.macro.data_job", "make", target / "data", str(sizes.data_bytes)],
            cwd=REPO,
        ),
    }
    problems = {}
    if {"git", "appgit"} & set(groups):
        make_repository(target, sizes.git_files)
    for group in groups:
        try:
            makers.get(group, lambda: None)()
        except BenchError as exc:
            problems[group] = str(exc)
    return problems


def make_web(target: Path, count: int) -> None:
    """Write pages as a web server has them, in twenty directories."""
    rng = random.Random(80)
    pool = rng.randbytes(1 << 20)
    for number in range(count):
        path = target / f"d{number % 20:02}" / f"f{number:05}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = min(int(rng.expovariate(1.0) * 12_000) + 200, 1 << 18)
        start = rng.randrange(len(pool) - size)
        path.write_bytes(pool[start : start + size])


def make_project(target: Path, count: int) -> None:
    """Write a C program: *count* sources and as many headers, which include their neighbours'; and its Makefile."""
    target.mkdir()
    rng = random.Random(99)
    functions = 40
    for number in range(count):
        (target / f"part{number}.h").write_text(
            f"#ifndef PART{number}\n#define PART{number}\n"
            + "".join(f"int work{number}_{f}(int x, double *out);\n" for f in range(functions))
            + "#endif\n"
        )
        includes = {number, *(rng.randrange(count) for _ in range(8))}
        text = ["#include <math.h>", "#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>"]
        text += [f'#include "part{other}.h"' for other in sorted(includes)]
        for f in range(functions):
            terms = " + ".join(f"(x ^ {rng.randrange(1 << 16)}) % {rng.randrange(3, 99)}" for _ in range(6))
            text.append(
                f"int work{number}_{f}(int x, double *out)\n{{\n    char name[64];\n    int sum = 0;\n"
                f"    for (int i = 0; i < {rng.randrange(2, 9)}; i++) {{\n        x += i;\n        sum += {terms};\n"
                f'        if (sum > 1000) {{\n            snprintf(name, sizeof name, "%d", sum);\n'
                f"            sum = (int)strlen(name);\n        }}\n        *out += sqrt(fabs((double)sum));\n    }}\n"
                f"    return sum;\n}}"
            )
        (target / f"part{number}.c").write_text("\n".join(text) + "\n")
    main = [f'#include "part{number}.h"' for number in range(count)]
    main += ["int main(void)", "{", "    double out = 0;", "    int sum = 0;"]
    main += [f"    sum += work{number}_0({number}, &out);" for number in range(count)]
    main += ["    return sum + (int)out == -1;", "}"]
    (target / "main.c").write_text("\n".join(main) + "\n")
    (target / "Makefile").write_text(
        "CFLAGS = -O1 -MMD\nOBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))\n"
        "program: $(OBJECTS)\n\t$(CC) -o $@ $^ -lm\n-include $(OBJECTS:.o=.d)\n"
    )


def wheels(names: tuple[str, ...], *, fetch: bool) -> Path | None:
    """Return a directory with the wheels of *names* and what they depend on, fetched once; None if it cannot be had."""
    target = REPO / "build" / "bench" / f"wheels-{sys.implementation.cache_tag}-{'-'.join(names)}"
    complete = target / "complete"
    if complete.exists():
        return target
    if not fetch:
        return None
    options: list[Word] = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--dest", target]
    try:
        run([sys.executable, "-m", "pip", "download", *options, *names])
    except BenchError as exc:
        print(f"tools/bench: note: {exc}", file=sys.stderr)
        return None
    complete.touch()
    return target


def make_repository(target: Path, count: int) -> None:
    """Make a bare repository with two branches that differ in half of their files."""
    source = target / "source"
    pool = random.Random(4000)
    words = ["alpha", "beta", "gamma", "delta", "value", "return", "if", "else", "struct", "while"]
    git: list[Word] = [
        "git",
        "-C",
        source,
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@localhost",
        "-c",
        "gc.auto=0",
    ]
    run(["git", "init", "-q", "-b", "main", source])
    for branch in ("main", "other"):
        if branch == "other":
            run([*git, "checkout", "-q", "-b", branch])
        for number in range(count):
            if branch == "other" and number % 2:
                continue
            path = source / f"part{number // 400}" / f"module{number // 20 % 20}" / f"file{number}.c"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = pool.randrange(20, 200)
            path.write_text("".join(f"{' '.join(pool.choices(words, k=6))} {line};\n" for line in range(lines)))
        run([*git, "add", "-A"])
        run([*git, "commit", "-q", "-m", branch])
    run(["git", "clone", "-q", "--bare", source, target / "repository.git"])
    run(["git", "-C", target / "repository.git", "repack", "-q", "-a", "-d"])
    run(["rm", "-rf", source])
