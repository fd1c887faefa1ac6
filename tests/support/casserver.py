"""CAS servers for tests: in a thread of this process with a clock that is set, or as a process of its own.

What they are asked is left to the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from fspf.cas.assembly import World
from fspf.cas.client import Evidence, RemoteCas, key_holder
from fspf.cas.connection import Address
from fspf.cas.home import Home, make_home
from fspf.cas.server import listen_on, serve
from fspf.cas.store import Store
from fspf.core.keys import SecretKey


@dataclass
class ThreadServer:
    """A server in a thread."""

    home: Home
    url: str

    def client(self, evidence: Evidence | None = None) -> RemoteCas:
        """Return a client with a key of its own."""
        return RemoteCas(Address.parse(self.url), evidence or key_holder(ed25519.Ed25519PrivateKey.generate()))


@contextmanager
def thread_server(directory: Path, store: Store, world: World) -> Iterator[ThreadServer]:
    """Serve *store* over real TLS on loopback until the end of the block."""
    home = make_home(str(directory / "server"))
    live = threading.Event()
    failures: list[BaseException] = []
    sock = listen_on("127.0.0.1", 0)
    url = f"https://127.0.0.1:{sock.getsockname()[1]}#{home.key_hash}"
    stop = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def opened(_home: Home, _master: SecretKey) -> Store:
        loops.append(asyncio.get_running_loop())
        return store

    def run() -> None:
        try:
            asyncio.run(serve(home, home.unlock(), opened=opened, sock=sock, on_live=live.set, stop=stop, world=world))
        except BaseException as exc:  # noqa: BLE001 - shown by the main thread
            failures.append(exc)
        finally:
            live.set()

    thread = threading.Thread(target=run, name="cas-server")
    thread.start()
    live.wait()
    try:
        if not failures:
            yield ThreadServer(home, url)
    finally:
        if loops and not failures:
            loops[0].call_soon_threadsafe(stop.set)
        thread.join()
    if failures:
        raise failures[0]


@dataclass
class CasProcess:
    """A server that was started with `fspf cas serve`."""

    directory: Path
    url: str
    key_hash: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait()

    def events(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def init_server(directory: Path, *options: str) -> None:
    """Make a server's directory."""
    subprocess.run(
        [sys.executable, "-m", "fspf", "cas", "init", str(directory), *options], check=True, capture_output=True
    )


def start_server(directory: Path, *options: str, listen: str = "127.0.0.1:0") -> CasProcess:
    """Start a server and wait until it answers."""
    log = directory.parent / f"{directory.name}.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "fspf", "--json", "cas", "serve", str(directory), "--listen", listen, *options],
            stdout=subprocess.PIPE,
            stderr=stream,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    if not line:
        raise AssertionError(f"the server ended with {process.wait()}: {log.read_text()[-2000:]}")
    said = json.loads(line)
    return CasProcess(directory, said["url"], said["key_hash"], process, log)


StartServer = Callable[..., CasProcess]
