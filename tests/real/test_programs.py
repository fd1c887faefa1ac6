"""Real programs on a mount: they must not notice that it is one.

Single system calls are in tests/e2e.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fspf.volume.entries import clamp_time
from tests.support import compare, torture
from tests.support.mounted import REPO, Site

STDLIB = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
_PARTS = ("asyncio", "email", "encodings", "json", "lib2to3", "idlelib", "unittest", "xml", "ctypes", "distutils")

pytestmark = pytest.mark.timeout(900)


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program that must succeed; what it wrote."""
    if "/" not in str(command[0]) and shutil.which(command[0]) is None:
        pytest.skip(f"no-program: {command[0]}")
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def some_sources(destination: Path) -> None:
    """Copy a part of the standard library: some thousand files would take long on two busy processors."""
    destination.mkdir()
    for name in _PARTS:
        if (STDLIB / name).is_dir():
            shutil.copytree(STDLIB / name, destination / name, ignore=shutil.ignore_patterns("__pycache__"))


def digest(root: Path) -> str:
    """One hash of all names and contents below *root*."""
    total = hashlib.blake2b()
    for path in sorted(root.rglob("*")):
        total.update(os.fsencode(path.relative_to(root)))
        if path.is_file() and not path.is_symlink():
            total.update(path.read_bytes())
    return total.hexdigest()


# -- git

GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def test_git(site: Site, mnt: Path, tmp_path: Path) -> None:
    def git(*words: str | Path, cwd: Path) -> str:
        return run("git", *words, cwd=cwd, env=GIT)

    source = tmp_path / "source"
    some_sources(source)
    git("init", "-q", "-b", "main", cwd=source)
    git("add", "-A", cwd=source)
    git("commit", "-q", "-m", "first", cwd=source)
    work = mnt / "work"
    git("clone", "-q", source, work, cwd=mnt)
    assert git("status", "--porcelain", cwd=work) == ""
    for number, path in enumerate(sorted(work.rglob("*.py"))[:100]):
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
        else:
            path.rename(path.with_suffix(".txt"))
    git("checkout", "-q", "-b", "work", cwd=work)
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "second", cwd=work)
    git("checkout", "-q", "main", cwd=work)
    git("merge", "-q", "--no-ff", "-m", "merge", "work", cwd=work)
    git("gc", "-q", "--aggressive", "--prune=now", cwd=work)
    git("fsck", "--full", "--strict", cwd=work)
    git("push", "-q", "origin", "work", cwd=work)
    site.umount()
    site.mount()
    assert git("status", "--porcelain", cwd=work) == ""
    git("fsck", "--full", "--strict", cwd=work)
    assert git("rev-parse", "work", cwd=work) == git("rev-parse", "work", cwd=source)


# -- SQLite

SQLITE_WRITER = """
import random, sqlite3, sys
path, name, mode = sys.argv[1:]
connection = sqlite3.connect(path, timeout=120, isolation_level=None)
connection.execute(f"PRAGMA journal_mode={mode}")
rng = random.Random(name)
for step in range(60):
    connection.execute("BEGIN IMMEDIATE")
    total = connection.execute("SELECT value FROM counter").fetchone()[0]
    for number in range(10):
        connection.execute("INSERT INTO entry VALUES (?, ?, ?)", (name, step * 10 + number, rng.randbytes(rng.randrange(2000))))
    connection.execute("UPDATE counter SET value = ?", (total + 10,))
    connection.execute("ROLLBACK" if step % 6 == 5 else "COMMIT")
connection.close()
"""


@pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
def test_sqlite_with_several_writers(site: Site, mnt: Path, mode: str) -> None:
    path = mnt / "db"
    connection = sqlite3.connect(path)
    connection.executescript(
        f"PRAGMA journal_mode={mode}; CREATE TABLE entry(writer, number, data); CREATE TABLE counter(value);"
        " INSERT INTO counter VALUES (0); CREATE INDEX by_number ON entry(number, writer);"
    )
    connection.close()
    writers = [subprocess.Popen([sys.executable, "-c", SQLITE_WRITER, str(path), name, mode]) for name in "abcd"]
    assert [writer.wait(600) for writer in writers] == [0] * 4
    site.umount()
    site.mount()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM entry").fetchone() == (4 * 500,)
    assert connection.execute("SELECT value FROM counter").fetchone() == (4 * 500,)
    connection.close()


# -- copying


def test_tar(mnt: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    some_sources(source)
    run("tar", "-C", source, "-cf", mnt / "archive.tar", ".")
    (mnt / "unpacked").mkdir()
    run("tar", "-C", mnt / "unpacked", "-xpf", mnt / "archive.tar")
    assert digest(mnt / "unpacked") == digest(source)
    run("tar", "-C", mnt / "unpacked", "--compare", "-f", mnt / "archive.tar")
    run("tar", "-C", mnt / "unpacked", "-czf", tmp_path / "back.tgz", ".")
    (tmp_path / "back").mkdir()
    run("tar", "-C", tmp_path / "back", "-xpzf", tmp_path / "back.tgz")
    assert digest(tmp_path / "back") == digest(source)
    run("rm", "-rf", mnt / "unpacked")
    assert os.listdir(mnt) == ["archive.tar"]


def oddities(root: Path, *, huge: bool = False) -> Path:
    """Make a torture tree; sparse files of 4 GiB only if *huge*: without SEEK_HOLE, which pyfuse3 lacks, they are read whole."""
    torture.make(root)
    if not huge:
        for path in root.rglob("sparse-*"):
            if path.stat().st_size > 1 << 30:
                path.unlink()
    return root


def difference(one: Path, other: Path) -> list[str]:
    """List what differs, but for times after 2262, which a volume cannot hold."""
    return [line for line in compare.compare(one, other) if not ("2400" in line and ": mtime " in line)]


@pytest.mark.parametrize("huge", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_copying_a_torture_tree_there_and_back(site: Site, mnt: Path, tmp_path: Path, huge: bool) -> None:
    source = oddities(tmp_path / "source", huge=huge)
    run("cp", "-a", source, mnt / "copy")
    assert difference(source, mnt / "copy") == []
    site.umount()
    site.mount()
    assert difference(source, mnt / "copy") == []
    run("cp", "-a", mnt / "copy", tmp_path / "back")
    assert difference(source, tmp_path / "back") == []
    run("rm", "-rf", mnt / "copy")
    assert os.listdir(mnt) == []


def test_rsync_both_ways(site: Site, mnt: Path, tmp_path: Path) -> None:
    source = oddities(tmp_path / "source")
    # By default rsync takes times within one second for the same, and then leaves them.
    flags = ("-aHAXS", "--numeric-ids", "--devices", "--specials", "--modify-window=-1")
    run("rsync", *flags, f"{source}/", f"{mnt}/copy/")
    assert difference(source, mnt / "copy") == []
    site.umount()
    site.mount()
    out = run("rsync", *flags, "--itemize-changes", "--checksum", "--dry-run", "--delete", f"{source}/", f"{mnt}/copy/")
    assert [line for line in out.splitlines() if "2400" not in line] == []
    run("rsync", *flags, f"{mnt}/copy/", f"{tmp_path}/back/")
    assert difference(source, tmp_path / "back") == []


def test_making_a_torture_tree_on_the_mount(site: Site, mnt: Path) -> None:
    oddities(mnt / "tree")
    before = compare.read_tree(mnt / "tree")
    site.umount()
    site.mount()
    after = compare.read_tree(mnt / "tree")
    assert before.keys() == after.keys()
    for path, entry in before.items():  # the kernel shows times after 2262 as they were set until it forgets them
        mtime_ns = clamp_time(entry.mtime_ns)
        again = after[path]
        assert (again.kind, again.mode, again.owner, again.mtime_ns) == (entry.kind, entry.mode, entry.owner, mtime_ns)
        assert (again.size, again.links, again.content) == (entry.size, entry.links, entry.content), path


# -- building and installing

PROGRAM = """
#include <stdio.h>
int part_%(n)d(int x) { return x * %(n)d + 1; }
"""


def test_a_c_build(mnt: Path) -> None:
    project = mnt / "project"
    project.mkdir()
    count = 20
    for number in range(count):
        (project / f"part{number}.c").write_text(PROGRAM % {"n": number})
    calls = "".join(f"int part_{n}(int); " for n in range(count))
    body = "".join(f"total += part_{n}({n}); " for n in range(count))
    (project / "main.c").write_text(
        f'#include <stdio.h>\n{calls}int main(void) {{ int total = 0; {body}printf("%d\\n", total); }}'
    )
    objects = " ".join(["main.o", *(f"part{n}.o" for n in range(count))])
    (project / "Makefile").write_text(f"program: {objects}\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -g -O2 -c -o $@ $<\n")
    run("make", "-s", "-j4", cwd=project)
    assert run("./program", cwd=project).strip() == str(sum(n * n + 1 for n in range(count)))
    assert "up to date" in run("make", cwd=project)
    (project / "part3.c").write_text((PROGRAM % {"n": 3}).replace("+ 1", "+ 2"))
    run("make", "-s", cwd=project)
    assert run("./program", cwd=project).strip() == str(sum(n * n + 1 for n in range(count)) + 1)
    run("strip", "program", cwd=project)
    run("ar", "rcs", "lib.a", *[f"part{n}.o" for n in range(count)], cwd=project)


def test_pip_install_into_a_virtual_environment(site: Site, mnt: Path) -> None:
    """A wheel made here, for that needs no network, and pip itself: some hundred files."""
    run(sys.executable, "-m", "venv", mnt / "venv")
    package = mnt / "package"
    (package / "greeting").mkdir(parents=True)
    (package / "greeting" / "__init__.py").write_text("def main() -> None:\n    print('installed')\n")
    (package / "setup.cfg").write_text(
        "[metadata]\nname = greeting\nversion = 1\n[options]\npackages = greeting\n"
        "[options.entry_points]\nconsole_scripts =\n    greet = greeting:main\n"
    )
    (package / "pyproject.toml").write_text(
        "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
    )
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        mnt / "wheels",
        package,
    )
    run(
        mnt / "venv" / "bin" / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--find-links",
        mnt / "wheels",
        "greeting",
    )
    assert run(mnt / "venv" / "bin" / "greet") == "installed\n"
    site.umount()
    site.mount()
    assert run(mnt / "venv" / "bin" / "greet") == "installed\n"
    run(mnt / "venv" / "bin" / "python", "-m", "pip", "uninstall", "-q", "-y", "greeting")


def test_python_runs_from_the_mount(mnt: Path) -> None:
    shutil.copytree(REPO / "fspf", mnt / "fspf")
    shutil.copytree(REPO / "fspf_native", mnt / "fspf_native")
    text = run(sys.executable, "-c", "import fspf; print(fspf.__file__)", cwd=mnt, env={"PYTHONPATH": str(mnt)})
    assert text.strip() == str(mnt / "fspf" / "__init__.py")


# -- many that sync

FSYNCER = """
import os, sys
for number in range(100):
    path = f"{sys.argv[1]}/{sys.argv[2]}-{number}"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, path.encode())
    os.fsync(descriptor)
    os.close(descriptor)
    os.rename(path, path + ".done")
"""


def test_many_processes_that_sync(mnt: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", FSYNCER, str(mnt), name]) for name in "abcdefgh"]
    assert [worker.wait(300) for worker in workers] == [0] * 8
    assert len(list(mnt.glob("*.done"))) == 800


@pytest.mark.nightly
def test_the_whole_standard_library(site: Site, mnt: Path) -> None:
    """Everything that Python's own library has, copied there, read back after remounting, and removed."""
    run("cp", "-a", STDLIB, mnt / "lib")
    site.umount()
    site.mount()
    run("diff", "-r", "--no-dereference", STDLIB, mnt / "lib")
    run("rm", "-rf", mnt / "lib")
