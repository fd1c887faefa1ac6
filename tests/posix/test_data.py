"""Data as several see it at once: mappings, direct I/O, appends, asynchronous I/O, and times of change.

Random sequences are in tests/real: test_fsx.py, test_stress.py, test_equality.py.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.posix.conftest import Place
from tests.support.posix import ALICE, KEEP_SIZE, PUNCH_HOLE, fallocate, make, mode_of, opened, run_all, tick, times


def test_times_of_change_survive(d: Path, fs: Place) -> None:
    """Kernel and mount both take the time of a fallocate(2); once in a hundred times the clock ticks between."""
    files = [d / str(number) for number in range(600)]
    for file in files:
        file.touch()
    tick()
    for file in files:
        with opened(file) as descriptor:
            if not fs.can(fallocate, descriptor, KEEP_SIZE | PUNCH_HOLE, 0, 5000):
                return
    before = [times(file) for file in files]
    fs.remount()
    after = [times(file) for file in files]
    assert [old[1:] for old in before] == [new[1:] for new in after]


def test_chown_to_nobody_clears_set_id(d: Path) -> None:
    """It changes no owner, so that the request says nothing of one; only the file's owner may."""
    path = make("file", d / "x", 0o6755)
    ALICE.gets(errno.EPERM, os.chown, path, -1, -1)
    assert mode_of(path) == 0o6755
    os.chown(path, -1, -1)
    assert mode_of(path) == 0o755


APPENDER = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(300):
    record = f"{sys.argv[2]}{number:06d}".encode().ljust(117, b"-") + b"\\n"
    assert os.write(descriptor, record) == len(record)
"""


def test_many_writers_append(d: Path) -> None:
    path = d / "log"
    path.touch()
    writers = [subprocess.Popen([sys.executable, "-c", APPENDER, path, name]) for name in "abcdef"]
    assert run_all(writers) == [0] * 6
    records = path.read_bytes().split(b"\n")
    assert records.pop() == b""
    assert {len(record) for record in records} == {117}
    for name in b"abcdef":
        own = [int(record[1:7]) for record in records if record[0] == name]
        assert own == list(range(300))


def test_mapping_and_calls_see_each_other(d: Path) -> None:
    path = d / "x"
    path.write_bytes(bytes(3 * 4096))
    with opened(path) as descriptor, mmap.mmap(descriptor, 3 * 4096) as mapped:
        pid = os.fork()
        if pid == 0:  # another process changes the mapping and the file
            mapped[5000:5005] = b"child"
            with opened(path) as own:
                os.pwrite(own, b"write", 100)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert mapped[100:105] == b"write"
        assert os.pread(descriptor, 5, 5000) == b"child"
        with opened(path, os.O_RDONLY | os.O_DIRECT) as direct, mmap.mmap(-1, 4096) as page:
            assert os.preadv(direct, [page], 4096) == 4096  # what is only mapped is written before it is read
            assert page[904:909] == b"child"
        with opened(path, os.O_WRONLY | os.O_DIRECT) as direct, mmap.mmap(-1, 4096) as page:
            page[:] = b"d" * 4096
            assert os.pwritev(direct, [page], 8192) == 4096
        assert mapped[8192:8200] == b"dddddddd"
        assert os.pread(descriptor, 4, 8192) == b"dddd"


def test_a_mapping_ends_with_the_file(d: Path) -> None:
    path = d / "x"
    path.write_bytes(b"x" * 8192)
    with opened(path) as descriptor, mmap.mmap(descriptor, 8192) as mapped:
        assert mapped[8191] == ord("x")
        os.ftruncate(descriptor, 100)
        assert mapped[100:4096] == bytes(3996)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            os._exit(mapped[5000])
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS
        os.ftruncate(descriptor, 8192)
        assert mapped[:8192] == b"x" * 100 + bytes(8092)


def test_what_msync_wrote_is_there_after_remounting(d: Path, fs: Place) -> None:
    path = d / "x"
    path.write_bytes(bytes(100_000))
    with opened(path) as descriptor, mmap.mmap(descriptor, 100_000) as mapped:
        mapped[50_000:50_006] = b"mapped"
        mapped.flush()
    fs.remount()
    assert path.read_bytes()[50_000:50_006] == b"mapped"


@pytest.mark.parametrize(
    ("engine", "direct"), [("libaio", 0), ("libaio", 1), ("io_uring", 1), ("mmap", 0), ("psync", 1)]
)
def test_fio_verifies_what_it_wrote(d: Path, engine: str, direct: int) -> None:
    command = ["fio", "--name=x", f"--directory={d}", f"--ioengine={engine}", f"--direct={direct}", "--rw=randrw"]
    command += [
        "--bsrange=4k-64k",
        "--size=4m",
        "--numjobs=3",
        "--iodepth=8",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
    ]
    command += ["--blockalign=4k", "--randseed=7", "--group_reporting", "--minimal"]
    done = subprocess.run(command, cwd=d, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
