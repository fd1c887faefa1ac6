"""Show FSPF at work on this machine, step by step; every step is checked, and the first that does not hold ends it.

Uses only the command line and ordinary programs, as a person would. Set-up is tools/setup's business.

    tools/demo                     with /usr/share/doc
    tools/demo --source DIRECTORY  with a directory of yours (it is only read)
    tools/demo --keep              leave the work directory for a look around
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

REPO: Final = Path(__file__).resolve().parents[2]
FSPF: Final = str(Path(sys.executable).parent / "fspf")
SECRET: Final = "a-sentence-that-storage-must-never-see-7f3a9c"
COLOUR: Final = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
INTEGRITY, FRESHNESS = 20, 21  # exit codes, docs/CLI.md
SHOWN_LINES: Final = 6


def paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


class DemoError(Exception):
    """A step did not hold."""


class Demo:
    """One run in one work directory. Whatever happens, `clean` unmounts and removes it."""

    def __init__(self, source: Path, work: Path) -> None:
        self.source = source
        self.work = work
        self.volume = work / "docs.fspf"
        self.old = work / "old-copy.fspf"
        self.mountpoint = work / "mnt"
        self.checks = 0
        self._step = 0
        self._old_roots: dict[str, bytes] = {}
        self._environment = dict(
            os.environ, FSPF_CAS=f"sqlite://{work}/cas.sqlite", PATH=self._path(), LC_ALL="C.UTF-8"
        )
        # Whoever runs the demo has git settings of their own, which are none of its business.
        self._environment |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "NO_COLOR": "1"}
        for role in ("AUTHOR", "COMMITTER"):
            self._environment |= {f"GIT_{role}_NAME": "Demo", f"GIT_{role}_EMAIL": "demo@localhost"}

    @staticmethod
    def _path() -> str:
        return f"{Path(FSPF).parent}{os.pathsep}{os.environ['PATH']}"

    # --------------------------------------------------------------------- telling and checking

    def step(self, title: str) -> None:
        self._step += 1
        print(f"\n{paint('1', f'{self._step}. {title}')}", flush=True)

    def hold(self, claim: str, truth: object, *, detail: str = "") -> None:
        """Show *claim* as true, or end the demo."""
        if not truth:
            print(f"   {paint('31', '✘')} {claim}", flush=True)
            raise DemoError(f"{claim}{': ' + detail if detail else ''}")
        self.checks += 1
        print(f"   {paint('32', '✔')} {claim}", flush=True)

    def run(
        self, *command: str | os.PathLike[str], code: int | None = 0, show: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run and show one command; its exit code must be *code* (None: any)."""
        words = [os.fspath(word) for word in command]
        print(f"   {paint('36', '$ ' + self._short(words))}", flush=True)
        done = subprocess.run(
            words,
            env=self._environment,
            cwd=cwd or self.work,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=600,
            check=False,
        )
        lines = (done.stdout + done.stderr).splitlines()
        if show or (code is not None and done.returncode != code):
            for line in lines[:SHOWN_LINES]:
                print(f"     {self._tidy(line)[:150]}", flush=True)
            if len(lines) > SHOWN_LINES:
                print(f"     … {len(lines) - SHOWN_LINES} more lines", flush=True)
        if code is not None and done.returncode != code:
            raise DemoError(
                f"exit code {code} expected, {done.returncode} found: {shlex.join(words)}\n{done.stderr[-2000:]}"
            )
        return done

    def json(self, *command: str | os.PathLike[str], code: int = 0) -> Any:
        return json.loads(self.run(*command, "--json", code=code, show=False).stdout)

    def _short(self, words: Sequence[str]) -> str:
        return self._tidy(shlex.join(words))

    def _tidy(self, text: str) -> str:
        return text.replace(FSPF, "fspf").replace(f"{self.work}/", "")

    # --------------------------------------------------------------------- the story

    def play(self) -> None:
        self.encrypt()
        self.only_ciphertext()
        self.mount_and_use()
        self.unmount()
        self.round_trip()
        self.flipped_bit()
        self.old_state()

    def encrypt(self) -> None:
        self.step(f"A directory becomes a protected volume: {self.source}")
        plain = self.work / "plain"
        self.run("cp", "-a", self.source, plain)
        (plain / "SECRET.txt").write_text(f"{SECRET}\n" * 2000, encoding="utf-8")
        self.run("fspf", "encrypt", plain, self.volume)
        self.run("fspf", "info", self.volume)
        self.run("fspf", "ls", "-l", f"{self.volume}:/SECRET.txt")
        info = self.json("fspf", "info", self.volume)
        self.hold("the newest state is anchored in the CAS", info["generation"] == info["anchored_generation"])

    def only_ciphertext(self) -> None:
        self.step("Storage holds only ciphertext")
        self.run("ls", "-l", self.volume)
        found = self.run("grep", "-c", SECRET, self.work / "plain" / "SECRET.txt")
        self.hold("the sentence stands in the plain file", int(found.stdout) == 2000)
        self._nothing_plain()
        names = self.run("grep", "-r", "-l", "-a", "SECRET.txt", self.volume, code=1)
        self.hold("nor do the names of files", names.stdout == "")

    def _nothing_plain(self) -> None:
        found = self.run("grep", "-r", "-l", "-a", SECRET, self.volume, code=1)
        self.hold("nowhere below the volume does it appear", found.stdout == "")

    def mount_and_use(self) -> None:
        self.step("Mounted, it is used by ordinary programs that know nothing of it")
        self.mountpoint.mkdir()
        self.run("fspf", "mount", self.volume, self.mountpoint)
        self.run("findmnt", "-n", "-o", "FSTYPE,SOURCE,OPTIONS", self.mountpoint)
        self.run("ls", self.mountpoint)
        self.run("cp", "-a", self.mountpoint / "SECRET.txt", self.mountpoint / "copy.txt")
        self.run("cmp", self.work / "plain" / "SECRET.txt", self.mountpoint / "copy.txt")
        self.hold("cp: the copy is byte for byte the same", True)
        self._git()
        self._sqlite()
        status = self.json("fspf", "status", self.mountpoint)
        self.hold("the mount reports no error", not status["errors"] and status["failed"] is None, detail=str(status))

    def _git(self) -> None:
        project = self.mountpoint / "project"
        self.run("git", "init", "-q", "-b", "main", project)
        for number in range(20):
            (project / f"chapter-{number}.txt").write_text(f"{SECRET} {number}\n" * 500, encoding="utf-8")
        self.run("git", "add", "-A", cwd=project)
        self.run("git", "commit", "-q", "-m", "twenty chapters", cwd=project)
        self.run("git", "gc", "-q", cwd=project)
        self.run("git", "fsck", "--full", "--strict", cwd=project)
        clone = self.work / "clone"
        self.run("git", "clone", "-q", project, clone)
        self.hold("git: a repository that lives on the mount can be cloned", (clone / "chapter-19.txt").exists())

    def _sqlite(self) -> None:
        base = self.mountpoint / "people.db"
        sql = (
            "create table people(id integer primary key, name text);"
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)"
            f" insert into people select i, '{SECRET} ' || i from n;"
        )
        self.run("sqlite3", base, sql)
        found = self.run("sqlite3", base, "pragma integrity_check; select count(*) from people;")
        self.hold("sqlite3: 20000 rows, integrity ok", found.stdout.split() == ["ok", "20000"])

    def unmount(self) -> None:
        self.step("Unmounting returns when the last commit is anchored")
        self.run("fspf", "umount", self.mountpoint)
        self.hold("it is no longer mounted", not os.path.ismount(self.mountpoint))
        self.hold("and the directory below is empty", not any(self.mountpoint.iterdir()))
        self._nothing_plain()
        self.run("fspf", "verify", self.volume)

    def round_trip(self) -> None:
        self.step("What was put in comes out again")
        out = self.work / "out"
        self.run("fspf", "decrypt", self.volume, out)
        added = [f"--exclude=/{name}" for name in ("copy.txt", "people.db", "project")]
        flags = ["-aHAX", "--dry-run", "--delete", "--checksum", "--itemize-changes"]
        done = self.run("rsync", *flags, *added, f"{self.work}/plain/", f"{out}/")
        # The top directory's own time changed when the programs above added their files.
        different = [line for line in done.stdout.splitlines() if line.split(maxsplit=1)[-1] != "./"]
        self.hold("rsync finds no difference in content, mode, owner, time, links, ACL or xattrs", not different)
        shutil.rmtree(out)

    def flipped_bit(self) -> None:
        self.step("An attacker who watches the disk flips one bit of a new file")
        self.run("cp", "-a", "--sparse=always", self.volume, self.old)  # for the next step
        self._old_roots = {name: (self.old / name).read_bytes() for name in ("root.a", "root.b")}
        self.run("fspf", "mount", self.volume, self.mountpoint)
        payroll = self.work / "payroll.csv"
        payroll.write_text("".join(f"{n};{SECRET};{n * 7919 % 10007}\n" for n in range(80_000)), encoding="utf-8")
        self.run("cp", payroll, self.mountpoint / "payroll.csv")
        self.run("fspf", "umount", self.mountpoint)
        path, offset = self._new_data()
        flip(path, offset)
        print(f"     one bit of byte {offset} of {self._tidy(str(path))}")

        self.run("fspf", "mount", "-o", "ro", self.volume, self.mountpoint)
        done = self.run("cat", self.mountpoint / "payroll.csv", code=1, show=False)
        self.hold("reading it: Input/output error", "Input/output error" in done.stderr, detail=done.stderr)
        self.hold("and no wrong byte before that", payroll.read_text(encoding="utf-8").startswith(done.stdout))
        self.run("cmp", self.work / "plain" / "SECRET.txt", self.mountpoint / "SECRET.txt")
        self.hold("other files are as readable as before", True)
        self.run("fspf", "umount", self.mountpoint)

        self.run("fspf", "verify", self.volume, code=INTEGRITY)
        findings = self.json("fspf", "verify", self.volume, code=INTEGRITY)["findings"]
        self.hold("verify has one finding, exit code 20", len(findings) == 1, detail=str(findings))
        found = findings[0]
        claim = f"it names the file and the range: {found['path']}, {found['length']} bytes at {found['offset']}"
        self.hold(claim, found["path"] == "/payroll.csv" and found["length"] > 0, detail=str(found))
        flip(path, offset)
        self.run("fspf", "verify", self.volume)
        self.hold("with the bit put back, everything is well again", True)

    def _new_data(self) -> tuple[Path, int]:
        """Compare the disk before and after: a byte in the middle of the longest run of chunks that changed."""
        best: tuple[int, Path, int] = (0, self.volume, 0)
        size = self.json("fspf", "info", self.volume)["chunk_size"]
        slots = self.json("fspf", "info", self.volume)["segment_slots"]
        for segment in sorted((self.volume / "segments").iterdir()):
            before = self.old / "segments" / segment.name
            with open(segment, "rb") as now, open(before if before.exists() else os.devnull, "rb") as then:
                run = 0
                for slot in range(slots + 1):
                    if slot < slots and now.read(size) != then.read(size):
                        run += 1
                        continue
                    best = max(best, (run, segment, (slot - run // 2 - 1) * size + 1234))
                    run = 0
        length, path, offset = best
        self.hold(f"{length} neighbouring chunks of storage have changed", length > 100)
        return path, offset

    def old_state(self) -> None:
        self.step("An attacker puts an older copy of the volume in place, authentic in every byte")
        newest = self.work / "newest.fspf"
        fresh = self.json("fspf", "info", self.volume)["generation"]
        self.volume.rename(newest)
        self.old.rename(self.volume)
        self._refused("the older copy", fresh)
        shutil.rmtree(self.volume)

        print("   now only its root records, among the newest of everything else")
        self.run("cp", "-a", "--sparse=always", newest, self.volume)
        self._put_back_roots()
        self._refused("the mixture", fresh)
        shutil.rmtree(self.volume)

        newest.rename(self.volume)
        self.run("fspf", "mount", self.volume, self.mountpoint)
        self.run("cmp", self.work / "payroll.csv", self.mountpoint / "payroll.csv")
        self.run("fspf", "umount", self.mountpoint)
        self.hold("the newest state opens as before", True)

    def _put_back_roots(self) -> None:
        for name, content in self._old_roots.items():
            (self.volume / name).write_bytes(content)

    def _refused(self, what: str, fresh: int) -> None:
        done = self.run("fspf", "mount", self.volume, self.mountpoint, code=FRESHNESS)
        self.hold(f"{what} is not mounted, exit code 21", not os.path.ismount(self.mountpoint))
        done = self.run("fspf", "--json", "cat", f"{self.volume}:/SECRET.txt", code=FRESHNESS, show=False)
        error = next(line["error"] for line in map(json.loads, done.stderr.splitlines()) if "error" in line)
        expected, found = error["expected_generation"], error["found_generation"]
        self.hold("nothing of it is read", SECRET not in done.stdout)
        self.hold(f"both are named: generation {expected} expected, {found} found", expected == fresh > found)

    # --------------------------------------------------------------------- the end

    def clean(self) -> None:
        """Unmount and remove everything."""
        if os.path.ismount(self.mountpoint):
            for command in (["fspf", "umount", "--lazy"], ["fusermount3", "-u", "-z"], ["umount", "-l"]):
                subprocess.run(
                    [*command, str(self.mountpoint)],
                    env=self._environment,
                    capture_output=True,
                    timeout=60,
                    check=False,
                )
                if not os.path.ismount(self.mountpoint):
                    break
        if not os.path.ismount(self.mountpoint):
            shutil.rmtree(self.work, ignore_errors=True)


def flip(path: Path, offset: int) -> None:
    """Flip one bit; a second time puts it back."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x01]))


def stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=Path("/usr/share/doc"), help="directory to protect; only read")
    parser.add_argument("--work", type=Path, help="where to make the work directory (default: $TMPDIR or /var/tmp)")
    parser.add_argument("--keep", action="store_true", help="leave the work directory there")
    given = parser.parse_args()
    if not given.source.is_dir():
        parser.error(f"{given.source} is no directory")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        print("tools/demo: error: /dev/fuse cannot be used here, and the demo mounts a volume", file=sys.stderr)
        print(
            "tools/demo: hint: on a real machine 'modprobe fuse'; in a container start it with --device /dev/fuse",
            file=sys.stderr,
        )
        return 1
    signal.signal(signal.SIGTERM, stop)
    parent = given.work or Path(os.environ.get("TMPDIR", "/var/tmp"))
    demo = Demo(given.source.resolve(), Path(tempfile.mkdtemp(prefix="fspf-demo-", dir=parent)).resolve())
    begin = time.monotonic()
    try:
        demo.play()
    except (DemoError, OSError, subprocess.SubprocessError) as exc:
        print(f"\ntools/demo: error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntools/demo: interrupted", file=sys.stderr)
        return 130
    finally:
        if given.keep:
            print(f"\nleft for you: {demo.work}  (fspf --cas {demo.work}/cas.sqlite …)")
        else:
            demo.clean()
    print(
        f"\n{paint('32', 'Everything held.')} {demo.checks} checks in {time.monotonic() - begin:.0f} s; all cleaned up."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
