"""Software TPMs for tests: Debian's swtpm, made and started for real on loopback.

What is done with a TPM (quotes, sealing, counters) is the caller's business; `tool` runs one program of tpm2-tools on it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

_START_S: Final = 20.0
_PROGRAMS: Final = ("swtpm", "swtpm_setup", "tpm2_getrandom")


def require_swtpm() -> None:
    """Skip the test where the programs are missing."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no-program: {', '.join(missing)} of Debian's swtpm, swtpm-tools and tpm2-tools")


class Swtpm:
    """One TPM: its state is a directory and outlives the process, as a TPM outlives a power cycle.

    Attributes:
        directory: State; copy it while the TPM is stopped, and you have cloned or rolled back a TPM.
        tcti: What tpm2-tools and tpm2-pytss take to find it (`TPM2TOOLS_TCTI`, `--tcti`).
    """

    def __init__(self, directory: Path) -> None:
        """Manufacture it (about 0.3 s) unless *directory* holds one already; it is not running yet."""
        self.directory = directory
        self.tcti = ""
        self._process: subprocess.Popen[bytes] | None = None
        if not (directory / "tpm2-00.permall").exists():
            directory.mkdir(parents=True, exist_ok=True)
            command = [
                "swtpm_setup",
                "--tpm2",
                "--tpmstate",
                str(directory),
                "--create-ek-cert",
                "--create-platform-cert",
            ]
            # Its certificate authority would be made below /var/lib, shared by all: each TPM here gets its own.
            configuration = _local_ca(directory)
            done = subprocess.run(
                [*command, "--overwrite", "--config", str(configuration)], capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Power on: TPM2_Startup(CLEAR) is done, PCRs are zero."""
        assert self._process is None
        (self.directory / ".lock").unlink(missing_ok=True)
        for _ in range(5):  # another process may take one of the two ports first
            port = _free_pair()
            log = (self.directory / "swtpm.log").open("ab")
            with log:
                self._process = subprocess.Popen(
                    [
                        "swtpm",
                        "socket",
                        "--tpm2",
                        *("--tpmstate", f"dir={self.directory}"),
                        *("--server", f"type=tcp,bindaddr=127.0.0.1,port={port}"),
                        *("--ctrl", f"type=tcp,bindaddr=127.0.0.1,port={port + 1}"),  # the TCTI expects the next port
                        *("--flags", "not-need-init,startup-clear"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            if self._listens(port + 1):
                self.tcti = f"swtpm:host=127.0.0.1,port={port}"
                return
            self.kill()
        raise AssertionError((self.directory / "swtpm.log").read_text(errors="replace"))

    def _listens(self, port: int) -> bool:
        """Wait for the control channel, which is bound last; connecting to the data channel would occupy it."""
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            time.sleep(0.01)
        return False

    def stop(self) -> None:
        """Power off after an orderly TPM2_Shutdown."""
        if self._process is not None:
            if self._process.poll() is None:
                self.tool("tpm2_shutdown", "-c")
                self._process.terminate()
            self._wait()

    def kill(self) -> None:
        """Power off without a word to the TPM."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Power cycle: PCRs are zero again, NV indices and persistent keys stay."""
        self.stop()
        self.start()

    def tool(self, *command: str, data: bytes | None = None) -> bytes:
        """Run one program of tpm2-tools; what it wrote to stdout."""
        environment = os.environ | {"TPM2TOOLS_TCTI": self.tcti}
        done = subprocess.run(list(command), input=data, capture_output=True, env=environment, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode(errors='replace')}"
        return done.stdout

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@contextlib.contextmanager
def running_swtpm(directory: Path) -> Iterator[Swtpm]:
    """Make and start a TPM whose state is in *directory*; killed afterwards."""
    require_swtpm()
    with Swtpm(directory) as tpm:
        yield tpm


def _local_ca(directory: Path) -> Path:
    """Write configuration for swtpm_setup that makes a certificate authority of this TPM's own."""
    ca = directory / "ca"
    ca.mkdir()
    local = directory / "swtpm-localca.conf"
    local.write_text(
        f"statedir = {ca}\nsigningkey = {ca}/signkey.pem\nissuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n"
    )
    options = directory / "swtpm-localca.options"
    options.write_text("--platform-manufacturer FSPF\n--platform-version 1\n--platform-model test\n")
    setup = directory / "swtpm_setup.conf"
    setup.write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca') or '/usr/bin/swtpm_localca'}\n"
        f"create_certs_tool_config = {local}\ncreate_certs_tool_options = {options}\nactive_pcr_banks = sha256\n"
    )
    return setup


def _free_pair() -> int:
    """Find a port that is free together with the next one."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                two.bind(("127.0.0.1", port + 1))
                return port
