"""A TPM in software (swtpm), reached by tpm2-tools over sockets of the file system.

What is done with it is up to the tests: counters, quotes, sealing. Its state is a directory that can be copied and put back.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_PROGRAMS: Final = ("swtpm", "tpm2_quote")


class Swtpm:
    """One TPM; `start` is power on, `stop` is power off."""

    def __init__(self, directory: Path) -> None:
        """Args:
        directory: With a short path: socket names have at most 107 bytes.
        """
        self.directory = directory
        self.state = directory / "state"
        self.state.mkdir(exist_ok=True)
        self._pid = 0

    @property
    def tcti(self) -> str:
        """How to reach it, for `TPM2TOOLS_TCTI` and libraries."""
        return f"swtpm:path={self.directory}/s"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a program that is to use it."""
        return os.environ | {"TPM2TOOLS_TCTI": self.tcti}

    def start(self) -> None:
        """Power on. Returns when it listens."""
        socket = self.directory / "s"
        pid = self.directory / "pid"
        subprocess.run(
            [
                "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}", "--server", f"type=unixio,path={socket}",
                "--ctrl", f"type=unixio,path={socket}.ctrl", "--flags", "not-need-init,startup-clear",
                "--log", f"file={self.directory}/log", "--pid", f"file={pid}", "--daemon",
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=20,
        )  # fmt: skip
        self._pid = int(pid.read_text(encoding="ascii"))

    def stop(self) -> None:
        """Power off, also in the middle of something."""
        if not self._pid:
            return
        descriptor = os.pidfd_open(self._pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            select.select([descriptor], [], [], 20)
        finally:
            os.close(descriptor)
        self._pid = 0

    def restart(self) -> None:
        """Power off and on: PCRs are zeros again, what is persistent stays."""
        self.stop()
        self.start()

    def tool(self, name: str, *arguments: str | Path, check: bool = True) -> bytes:
        """Run one of the tpm2-tools (`tool("pcrread", "sha256:11")`), and return what it prints."""
        done = subprocess.run(
            [f"tpm2_{name}", *map(str, arguments)], env=self.environment, capture_output=True, timeout=60, cwd=self.directory
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"tpm2_{name} {arguments}: exit {done.returncode}: {done.stderr.decode()}")
        return done.stdout


@contextmanager
def software_tpm() -> Iterator[Swtpm]:
    """Run a new TPM; skip the test where the programs are not installed."""
    missing = [program for program in _PROGRAMS if not shutil.which(program)]
    if missing:
        pytest.skip(f"no-program: {' '.join(missing)}")
    directory = Path(tempfile.mkdtemp(prefix="fspf-tpm-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"))
    tpm = Swtpm(directory)
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop()
        shutil.rmtree(directory)
