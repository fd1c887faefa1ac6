"""MariaDB with a data directory of its own, in the foreground, on a Unix socket; and sysbench beside it.

Its defaults are left alone (so every commit is durable), except where files are and that it listens on no network.
What is compared is in apps.py.
"""

from __future__ import annotations

import contextlib
import re
import socket
from typing import TYPE_CHECKING, Final

from benchmarks.macro.measure import BenchError, need, run, server, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLES: Final = 4
THREADS: Final = 4
_RATE: Final = re.compile(r"transactions:\s+\d+\s+\(([0-9.]+) per sec\.\)")


@contextlib.contextmanager
def serving(data: Path, away: Path) -> Iterator[Path]:
    """Run the server on *data*; its socket, which is returned, and its log are in *away*."""
    away.mkdir(exist_ok=True)
    listening, log = away / "db.sock", away / "db.log"
    command = [
        "mariadbd", "--no-defaults", "--basedir=/usr", "--user=root", f"--datadir={data}", f"--socket={listening}",
        f"--pid-file={away / 'db.pid'}", "--skip-networking",
    ]  # fmt: skip

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(listening)) == 0

    with server(command, log) as process:
        until(answers, process, log)
        yield listening
    if process.returncode != 0:
        raise BenchError(f"mariadbd: exit {process.returncode}: {log.read_text(errors='replace').strip()[-400:]}")


def sysbench(listening: Path, what: str, rows: int, seconds: int = 0, seed: int = 1) -> str:
    return run([
        "sysbench", "oltp_read_write", "--db-driver=mysql", f"--mysql-socket={listening}", "--mysql-user=root",
        "--mysql-db=bench", f"--tables={TABLES}", f"--table-size={rows}", f"--threads={THREADS}",
        f"--time={seconds}", f"--rand-seed={seed}", what,
    ])  # fmt: skip


def prepare(data: Path, away: Path, rows: int) -> None:
    """Make a data directory with sysbench's tables, shut down cleanly; it is copied onto each file system."""
    need("mariadb-install-db", "mariadbd", "mariadb", "sysbench")
    run([
        "mariadb-install-db", "--no-defaults", "--basedir=/usr", "--user=root", f"--datadir={data}",
        "--auth-root-authentication-method=normal", "--skip-test-db",
    ])  # fmt: skip
    with serving(data, away) as listening:
        run(["mariadb", "--no-defaults", f"--socket={listening}", "--user=root", "-e", "create database bench"])
        sysbench(listening, "prepare", rows)


def transactions(listening: Path, rows: int, seconds: int, seed: int) -> float:
    """Return sysbench's transactions a second."""
    out = sysbench(listening, "run", rows, seconds, seed)
    found = _RATE.search(out)
    if found is None:
        raise BenchError(f"sysbench did not say how many transactions it made: {out[-400:]}")
    return float(found[1])
