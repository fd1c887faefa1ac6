"""A PostgreSQL server for tests: Debian's, started for real on loopback, as a user without rights.

What is stored in it is the tests' business; each takes a database of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psycopg
import pytest

_START_S: Final = 60.0
_PAUSE_S: Final = 0.02
_USER: Final = "fspf"


def _programs() -> Path | None:
    """Where Debian keeps the programs of a server: not in PATH, newest version first."""
    for directory in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (directory / "postgres").exists() and (directory / "initdb").exists():
            return directory
    found = shutil.which("postgres")
    return None if found is None else Path(found).parent


class Postgresql:
    """One server; its data are a directory and outlive the process."""

    def __init__(self, directory: Path) -> None:
        programs = _programs()
        if programs is None:
            pytest.skip("no-program: postgres of Debian's postgresql")
        self._programs = programs
        self._directory = directory
        self._data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()
        self.port = 0
        # The server refuses to run as root; nobody and postgres are there on every Debian machine that has it.
        self._uid = pwd.getpwnam("postgres" if _exists("postgres") else "nobody") if os.geteuid() == 0 else None
        if self._uid is not None:
            os.chown(directory, self._uid.pw_uid, self._uid.pw_gid)
            for parent in directory.parents[:2]:  # it must get there
                with contextlib.suppress(PermissionError):
                    parent.chmod(parent.stat().st_mode | 0o011)
        self._run("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self._programs / program), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments),
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self._directory,
            user=None if self._uid is None else self._uid.pw_uid,
            group=None if self._uid is None else self._uid.pw_gid,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        assert self._process is None
        if not self.port:
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                self.port = listener.getsockname()[1]
        settings = [
            "listen_addresses=127.0.0.1",
            f"port={self.port}",
            f"unix_socket_directories={self._directory}",
            "shared_buffers=32MB",
            "max_connections=100",
            "fsync=on",
            "synchronous_commit=off",  # the store must ask for it itself
        ]
        log = (self._directory / "postgresql.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self._data), *itertools.chain(*(("-c", one) for one in settings))),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                user=None if self._uid is None else self._uid.pw_uid,
                group=None if self._uid is None else self._uid.pw_gid,
            )
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.admin_url, connect_timeout=5):
                return
            assert self._process.poll() is None, self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(_PAUSE_S)

    @property
    def admin_url(self) -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"

    def new_database(self) -> str:
        """Make an empty database; its URL."""
        name = f"t{next(self._numbers)}"
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{name}"

    def stop(self) -> None:
        """End it in order, without waiting for its clients."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once; what it had promised must be on its disk."""
        if self._process is not None:
            # SIGQUIT is PostgreSQL's own way to crash: its children end too, nothing is written home.
            self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def logs(self) -> str:
        return (self._directory / "postgresql.log").read_text(errors="replace")[-4000:]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@contextlib.contextmanager
def running_postgresql(directory: Path) -> Iterator[Postgresql]:
    """Make and start a server whose data are in *directory*; killed afterwards."""
    with Postgresql(directory) as server:
        yield server


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
