"""The recorder sees every change in order, injects what it is told, and the crash states contain what they must.

Small programs with known writes; the file system itself is tested in tests/fault.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.support import crash, iotrace
from tests.support.crash import SparseFile, Stage, all_states, image_bytes, states
from tests.support.iotrace import Event, Op, Trace

PRELUDE = "import os, sys, errno\nfrom tests.support.iotrace import mark, set_fault, hits\nos.chdir(sys.argv[1])\n"


def run(scratch: Path, program: str, *, fault: str = "", before: dict[str, bytes] | None = None) -> Trace:
    root = scratch / "root"
    root.mkdir(exist_ok=True)
    for name, content in (before or {}).items():
        (root / name).write_bytes(content)
    source = PRELUDE + textwrap.dedent(program)
    return iotrace.record([sys.executable, "-c", source, root], root, scratch / "trace", fault=fault)


def ran(scratch: Path, program: str, *, fault: str = "", before: dict[str, bytes] | None = None) -> Trace:
    trace = run(scratch, program, fault=fault, before=before)
    assert trace.returncode == 0, trace.output
    return trace


def files(state: crash.State) -> dict[str, bytes | None]:
    return image_bytes(state.image)


DURABLE = """
    fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"x" * 1000)
    os.fsync(fd)
    here = os.open(".", os.O_RDONLY)
    os.fsync(here)
    mark("acknowledged")
    os.pwrite(fd, b"later", 2000)
"""


def test_all_kinds_are_recorded_in_order(scratch: Path) -> None:
    trace = ran(
        scratch,
        """
        fd = os.open("a", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"one")
        os.pwrite(fd, b"two", 10)
        os.writev(fd, [b"th", b"ree"])
        os.pwritev(fd, [b"fo", b"ur"], 20)
        os.ftruncate(fd, 5)
        os.posix_fallocate(fd, 0, 8192)
        os.fdatasync(fd)
        mark("middle")
        os.mkdir("d")
        os.link("a", "d/b")
        os.rename("a", "c")
        os.symlink("target", "s")
        os.unlink("d/b")
        os.open("c", os.O_WRONLY | os.O_TRUNC)
        os.unlink("s"); os.unlink("c"); os.rmdir("d")
        os.sync()
        with open("/dev/null", "wb") as elsewhere: elsewhere.write(b"not seen")
        """,
    )
    found = [(event.op.name, event.path, event.path2 or event.offset, event.data) for event in trace.events]
    assert found == [
        ("CREATE", "a", 0, b""),
        ("WRITE", "a", 0, b"one"),
        ("WRITE", "a", 10, b"two"),
        ("WRITE", "a", 3, b"three"),
        ("WRITE", "a", 20, b"four"),
        ("TRUNCATE", "a", 5, b""),
        ("FALLOCATE", "a", 0, b""),
        ("SYNC_BEGIN", "a", 0, b""),
        ("SYNC_END", "a", 0, b""),
        ("MARK", "middle", 0, b""),
        ("MKDIR", "d", 0, b""),
        ("LINK", "a", "d/b", b""),
        ("RENAME", "a", "c", b""),
        ("SYMLINK", "s", "target", b""),
        ("UNLINK", "d/b", 0, b""),
        ("TRUNCATE", "c", 0, b""),
        ("UNLINK", "s", 0, b""),
        ("UNLINK", "c", 0, b""),
        ("RMDIR", "d", 0, b""),
        ("SYNC_ALL", "", 0, b""),
    ]


def test_append_and_duplicates_are_seen_at_their_place(scratch: Path) -> None:
    trace = ran(
        scratch,
        """
        fd = os.open("log", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"a")
        os.write(os.dup(fd), b"b")
        os.rename("log", "old")
        os.write(fd, b"c")
        """,
        before={"log": b"12345"},
    )
    writes = [(event.path, event.offset) for event in trace.events if event.op is Op.WRITE]
    assert writes == [("log", 5), ("log", 6), ("old", 7)]
    assert files(next(states(trace, len(trace.events)))) == {"old": b"12345abc"}


@pytest.mark.parametrize(("synchronous", "safe"), [("extra", True), ("full", False)])
def test_sqlite_behaves_as_documented(scratch: Path, synchronous: str, *, safe: bool) -> None:
    """FULL does not sync the directory after the journal's unlink: a commit may be rolled back by it. EXTRA does."""
    trace = ran(
        scratch,
        f"""
        import sqlite3
        base = sqlite3.connect("db")
        base.execute("pragma synchronous={synchronous}")
        base.execute("create table t(a)")
        with base: base.execute("insert into t values (1)")
        mark("committed")
        base.close()
        """,
    )
    found = set()
    stage = Stage(scratch / "stage")
    for state in all_states(trace):
        with contextlib.closing(sqlite3.connect(os.path.join(stage.put(state.image), "db"))) as base:
            assert base.execute("pragma integrity_check").fetchone() == ("ok",), str(state)
            if "committed" in state.marks:
                found.add(len(base.execute("select a from t").fetchall()))
    assert found == ({1} if safe else {0, 1})


def test_what_was_synced_is_in_every_state(scratch: Path) -> None:
    trace = ran(scratch, DURABLE)
    after = [state for state in all_states(trace) if "acknowledged" in state.marks]
    assert len(after) >= 2
    for state in after:
        content = files(state)["f"]
        assert content is not None
        assert content[:1000] == b"x" * 1000, str(state)


@pytest.mark.parametrize(
    "forgotten",
    [
        pytest.param("os.fsync(fd)", id="of the file"),
        pytest.param("os.fsync(here)", id="of the directory"),
    ],
)
def test_forgotten_fsync_is_found(scratch: Path, forgotten: str) -> None:
    trace = ran(scratch, DURABLE.replace(forgotten, "pass"))
    after = [files(state).get("f") for state in all_states(trace) if "acknowledged" in state.marks]
    assert any(content is None or content[:1000] != b"x" * 1000 for content in after)


def test_states_before_the_sync_hold_torn_and_reordered_writes(scratch: Path) -> None:
    trace = ran(
        scratch,
        """
        fd = os.open("f", os.O_RDWR)
        os.pwrite(fd, b"A" * 1024, 0)
        os.pwrite(fd, b"B" * 1024, 4096)
        """,
        before={"f": b"." * 8192},
    )
    found = {files(state)["f"] for state in states(trace, len(trace.events), random=30)}
    seen = {(content[:512], content[512:1024], content[4096:4608], content[4608:5120]) for content in found if content}
    a, b, o = b"A" * 512, b"B" * 512, b"." * 512
    assert {(o, o, o, o), (a, a, o, o), (o, o, b, b), (a, a, b, b), (a, a, b, o), (a, a, o, b)} <= seen
    assert all(set(x) <= {a, b, o} for x in seen)  # never anything below a sector


def test_replacing_by_rename_is_atomic_but_may_be_late_or_empty(scratch: Path) -> None:
    program = """
        fd = os.open("new", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, b"new")
        SYNC
        os.rename("new", "f")
        mark("renamed")
    """
    safe = ran(scratch, program.replace("SYNC", "os.fsync(fd)"), before={"f": b"old"})
    assert {files(state)["f"] for state in all_states(safe)} == {b"old", b"new"}
    (scratch / "root" / "f").write_bytes(b"old")
    unsafe = ran(scratch, program.replace("SYNC", ""))
    assert {files(state)["f"] for state in all_states(unsafe)} == {b"old", b"new", b""}


def test_sync_covers_only_what_stood_before_it_began() -> None:
    def event(op: Op, offset: int = 0, data: bytes = b"", arg: int = 0) -> Event:
        return Event(op, "f", "", 7, offset, arg, 0, 1, 0, data)

    events = [
        event(Op.WRITE, 0, b"a"),
        event(Op.SYNC_BEGIN, arg=1),
        event(Op.WRITE, 1, b"b"),
        event(Op.SYNC_END, arg=1),
    ]
    trace = Trace(events, {"": None, "f": b""}, {"": 1, "f": 7})
    assert {files(state)["f"] for state in states(trace, 4)} == {b"a", b"ab"}
    assert {files(state)["f"] for state in states(trace, 3)} >= {b"", b"a", b"ab", b"\0b"}
    failed = Trace([*events[:3], event(Op.SYNC_END, -1, arg=1)], trace.start, trace.inodes)
    assert b"" in {files(state)["f"] for state in states(failed, 4)}


def test_lost_directory_takes_its_files_along(scratch: Path) -> None:
    trace = ran(
        scratch,
        """
        os.mkdir("d")
        fd = os.open("d/f", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, b"x"); os.fsync(fd); os.fsync(os.open("d", os.O_RDONLY))
        """,
    )
    found = [files(state) for state in states(trace, len(trace.events))]
    assert {} in found
    assert {"d": None, "d/f": b"x"} in found


def test_punched_hole_may_be_lost(scratch: Path) -> None:
    trace = ran(
        scratch,
        """
        import ctypes
        fd = os.open("f", os.O_RDWR)
        call = ctypes.CDLL(None).fallocate64
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
        assert call(fd, 3, 4096, 4096) == 0
        """,
        before={"f": b"y" * 12288},
    )
    punched = b"y" * 4096 + bytes(4096) + b"y" * 4096
    assert {files(state)["f"] for state in states(trace, len(trace.events))} == {b"y" * 12288, punched}


FAULTS = {
    "third write": ("op=write,nth=3,errno=ENOSPC", "1 2 ENOSPC 4 5"),
    "sticky": ("op=write,nth=3,errno=EIO,sticky", "1 2 EIO EIO EIO"),
    "by path": ("op=write,errno=EIO,path=nowhere", "1 2 3 4 5"),
    "any": ("op=any,nth=2,errno=EIO", "1 EIO 3 4 5"),
    "two rules": ("op=write,nth=1,errno=EIO;op=write,nth=4,errno=ENOSPC", "EIO 2 3 ENOSPC 5"),
    "short": ("op=write,nth=2,short=4", "1 short4 3 4 5"),
    "fsync only": ("op=fsync,errno=EIO", "1 2 3 4 5"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_hits_the_chosen_call(scratch: Path, name: str) -> None:
    rules, expected = FAULTS[name]
    trace = ran(
        scratch,
        f"""
        fd = os.open("f", os.O_RDWR)
        set_fault({rules!r})
        out = []
        for number in range(1, 6):
            try:
                n = os.pwrite(fd, b"x" * 10, 0)
                out.append(str(number) if n == 10 else f"short{{n}}")
            except OSError as exc:
                out.append(errno.errorcode[exc.errno])
        print(*out)
        """,
        before={"f": b""},
    )
    assert trace.output.strip() == expected
    assert trace.count(Op.WRITE) == sum(word[0] in "12345s" for word in expected.split())


@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("fsync", "os.fsync(fd)"),
        ("fsync", "os.fdatasync(fd)"),
        ("truncate", "os.ftruncate(fd, 1)"),
        ("truncate", "os.truncate('f', 1)"),
        ("fallocate", "os.posix_fallocate(fd, 0, 10)"),
        ("open", "os.open('f', os.O_RDONLY)"),
        ("create", "os.open('g', os.O_WRONLY | os.O_CREAT)"),
        ("rename", "os.rename('f', 'g')"),
        ("unlink", "os.unlink('f')"),
        ("mkdir", "os.mkdir('d')"),
        ("link", "os.link('f', 'g')"),
        ("read", "os.pread(fd, 1, 0)"),
        ("read", "os.read(fd, 1)"),
    ],
)
def test_every_kind_of_call_can_fail(scratch: Path, op: str, call: str) -> None:
    program = f"""
        fd = os.open("f", os.O_RDWR)
        set_fault("op={op},errno=EDQUOT")
        try:
            {call}
        except OSError as exc:
            assert exc.errno == errno.EDQUOT, exc
        else:
            raise SystemExit("not injected")
        assert hits() == 1
        set_fault("")
        {call}
    """
    ran(scratch, program, before={"f": b"content"})


@pytest.mark.parametrize(
    ("rules", "code", "content"),
    [
        ("op=write,nth=2,errno=kill", -signal.SIGKILL, b"aa"),
        ("op=write,nth=2,errno=kill,after", -signal.SIGKILL, b"aabb"),
        ("op=write,nth=2,errno=kill,short=1", -signal.SIGKILL, b"aab"),
        ("op=write,nth=2,errno=exit", 99, b"aa"),
    ],
)
def test_process_can_be_killed_at_a_call(scratch: Path, rules: str, code: int, content: bytes) -> None:
    program = "fd = os.open('f', os.O_RDWR)\nos.write(fd, b'aa')\nos.write(fd, b'bb')\n"
    trace = run(scratch, program, fault=rules, before={"f": b""})
    assert trace.returncode == code, trace.output
    assert (scratch / "root" / "f").read_bytes() == content
    assert files(next(states(trace, len(trace.events)))) == {"f": content}
    assert trace.events[-1].op is (Op.FAULT if len(content) == 2 else Op.WRITE)


@pytest.mark.parametrize(
    "rules", ["op=write", "op=wirte,errno=EIO", "errno=EIO", "op=write,errno=EWHAT", "op=write,nth=0,errno=EIO"]
)
def test_misspelt_rule_is_refused(scratch: Path, rules: str) -> None:
    trace = run(scratch, "print('ran')", fault=rules)
    assert trace.returncode == 98
    assert "not understood" in trace.output


def test_unseen_kinds_of_writing_are_refused(scratch: Path) -> None:
    program = "import mmap\nwith open('f', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m: m[0] = 65"
    with pytest.raises(iotrace.UnsupportedTraceError, match="mmap"):
        run(scratch, program, before={"f": b"x"})


def test_threads_and_children_share_one_order(scratch: Path) -> None:
    trace = ran(
        scratch,
        """
        import threading
        fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
        def work(k):
            for i in range(200): os.pwrite(fd, b"%d" % k * 100, 1000 * i)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        pid = os.fork()
        if pid == 0:
            work(7); os._exit(0)
        for t in threads: t.start()
        for t in threads: t.join()
        os.waitpid(pid, 0)
        """,
    )
    assert trace.count(Op.WRITE) == 800
    assert len({event.pid for event in trace.events}) == 2


def test_program_in_c_is_seen_through_every_alias(scratch: Path) -> None:
    source = scratch / "p.c"
    source.write_text(
        """
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <sys/uio.h>
        #include <unistd.h>
        int main(void) {
            int fd = openat(AT_FDCWD, "f", O_RDWR | O_CREAT, 0644);
            struct iovec v[2] = {{"ab", 2}, {"cd", 2}};
            return !(write(fd, "1", 1) == 1 && pwrite(fd, "2", 1, 1) == 1 && pwritev(fd, v, 2, 2) == 4
                && pwritev2(fd, v, 2, 6, 0) == 4 && ftruncate(fd, 9) == 0 && sync_file_range(fd, 0, 0, 0) == 0
                && fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 8192) == 0 && renameat2(AT_FDCWD, "f", AT_FDCWD, "g", 1) == 0
                && fdatasync(fd) == 0);
        }
        """,
        encoding="utf-8",
    )
    for bits in ("32", "64"):
        program = scratch / f"p{bits}"
        root = scratch / f"root{bits}"
        root.mkdir()
        subprocess.run(
            ["gcc", f"-D_FILE_OFFSET_BITS={bits}", "-O2", "-D_FORTIFY_SOURCE=2", source, "-o", program], check=True
        )
        trace = iotrace.record(["sh", "-c", f"cd {root} && exec {program}"], root, scratch / "trace")
        assert trace.returncode == 0, trace.output
        assert [event.op.name for event in trace.events] == [
            "CREATE", "WRITE", "WRITE", "WRITE", "WRITE", "TRUNCATE", "FALLOCATE", "RENAME", "SYNC_BEGIN", "SYNC_END",
        ]  # fmt: skip
        assert files(next(states(trace, len(trace.events)))) == {"g": b"12abcdabc"}


def test_sparse_file_is_a_file() -> None:
    generator = random.Random(5)
    for _ in range(200):
        sparse, plain = SparseFile(), bytearray()
        for _ in range(12):
            at, length = generator.randrange(20000), generator.randrange(9000)
            match generator.randrange(3):
                case 0:
                    data = generator.randbytes(length)
                    plain.extend(bytes(max(0, at + length - len(plain))))
                    plain[at : at + length] = data
                    sparse.write(at, data)
                case 1:
                    plain = plain[:at] + bytes(max(0, at - len(plain)))
                    sparse.truncate(at)
                case _:
                    end = min(at + length, len(plain))
                    plain[at:end] = bytes(max(0, end - at))
                    sparse.zero(at, length)
            assert bytes(sparse) == plain


def test_stage_shows_each_image_whatever_happened_in_between(scratch: Path) -> None:
    stage = Stage(scratch / "stage")
    root = scratch / "stage"

    def content() -> dict[str, bytes | None]:
        return {path: data for path, data in iotrace.read_directory(root)[0].items() if path}

    one: crash.Image = {
        "a": SparseFile(b"1" * 10000),
        "d": None,
        "d/b": SparseFile(b"2"),
        "s": SparseFile(bytes(1 << 20)),
    }
    two: crash.Image = {"a": SparseFile(b"3" * 5000), "d": SparseFile(b"was a directory")}
    for image in (one, two, one, one):
        stage.put(image)
        assert content() == image_bytes(image)
    for spoil in (
        lambda: (root / "a").write_bytes(b"1" * 9999 + b"0"),
        lambda: os.truncate(root / "a", 3),
        (root / "a").unlink,
        lambda: os.rename(root / "d", root / "e"),
        lambda: os.link(root / "a", root / "new"),
        lambda: os.chmod(root / "a", 0),
    ):
        spoil()
        stage.put(one)
        assert content() == image_bytes(one)
        assert os.stat(root / "a").st_mode & 0o777 == 0o600
    assert os.stat(root / "s").st_blocks == 0


def test_three_thousand_states_a_minute_of_a_small_volume(scratch: Path) -> None:
    """Segments of 64 slots (260 KiB) written in commits: building and staging must leave most of the time to the test."""
    trace = ran(
        scratch,
        """
        os.mkdir("segments")
        for s in range(4):
            fd = os.open(f"segments/{s:08x}", os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(fd, 263168)
            for commit in range(8):
                for slot in range(8):
                    os.pwrite(fd, os.urandom(4096), (commit * 8 + slot) * 4096)
                os.fdatasync(fd)
                root = os.open(f"root.{'ab'[commit % 2]}", os.O_RDWR | os.O_CREAT, 0o644)
                os.pwrite(root, os.urandom(4096), 0); os.fdatasync(root)
                mark(f"commit {commit}")
        """,
    )
    stage = Stage(scratch / "stage")
    begin = time.monotonic()
    count = 0
    for state in all_states(trace):
        stage.put(state.image)
        count += 1
    seconds = time.monotonic() - begin
    rate = 60 * count / seconds
    assert count > 1000
    assert rate > 10_000, f"{rate:.0f} states a minute"  # seen on 2 cores: 10 times that
