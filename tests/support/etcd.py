"""etcd clusters for tests: Debian's etcd-server, one or several nodes started for real on loopback.

What is stored in them, and who may not lose it, is the tests' business; nodes can be killed, frozen and started again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

_START_S: Final = 30.0
_PAUSE_S: Final = 0.02  # between two looks at something that other processes are about to do


def require_etcd() -> None:
    """Skip the test where the program is missing."""
    if shutil.which("etcd") is None:
        pytest.skip("no-program: etcd of Debian's etcd-server")


class EtcdNode:
    """One member; its data outlive the process."""

    def __init__(self, name: str, directory: Path, client_port: int, peer_port: int) -> None:
        self.name = name
        self.directory = directory
        self.client_port = client_port
        self.peer_port = peer_port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer(self) -> str:
        return f"{self.name}=http://127.0.0.1:{self.peer_port}"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self, peers: str, token: str, extra: tuple[str, ...] = (), scheme: str = "http") -> None:
        """Start the process; whether it serves already is asked with `EtcdCluster.wait`."""
        assert self._process is None
        client, peer = f"{scheme}://{self.address}", f"http://127.0.0.1:{self.peer_port}"
        log = (self.directory.parent / f"{self.name}.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    "etcd",
                    *("--name", self.name, "--data-dir", str(self.directory)),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", peers, "--initial-cluster-token", token),
                    *("--heartbeat-interval", "50", "--election-timeout", "500"),
                    *("--logger", "zap", "--log-level", "warn"),
                    *extra,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "FSPF_TEST_RUN": os.environ.get("FSPF_TEST_RUN", "")},
            )

    def kill(self) -> None:
        """End it with SIGKILL: what it had promised must be on its disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it without ending it: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """Ask this node over its JSON gateway."""
        request = urllib.request.Request(f"http://{self.address}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=3) as answer:
            found: dict[str, Any] = json.load(answer)
        return found


class EtcdCluster:
    """One or several nodes that know each other."""

    def __init__(self, directory: Path, nodes: int, *, extra: tuple[str, ...] = (), scheme: str = "http") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            ports = [_reserve(stack) for _ in range(2 * nodes)]
        self.nodes = [EtcdNode(f"n{i}", directory / f"n{i}", ports[2 * i], ports[2 * i + 1]) for i in range(nodes)]
        self._extra = extra
        self._scheme = scheme
        self._peers = ",".join(node.peer for node in self.nodes)
        self._token = f"fspf-{ports[0]}"
        self._directory = directory
        self._numbers = itertools.count()

    @property
    def url(self) -> str:
        """What `open_store` takes."""
        return "etcd://" + ",".join(node.address for node in self.nodes)

    def new_url(self) -> str:
        """Return a URL below which nothing is stored yet."""
        return f"{self.url}/t{next(self._numbers)}"

    def start(self, *nodes: EtcdNode) -> None:
        for node in nodes or self.nodes:
            node.start(self._peers, self._token, self._extra, self._scheme)

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def wait(self) -> None:
        """Wait until every running node answers a linearizable read: so there is a leader, and all know it."""
        deadline = time.monotonic() + _START_S
        for node in self.nodes:
            while node.running:
                try:
                    node.call("/v3/kv/range", key="AA==")
                    break
                except (OSError, urllib.error.URLError):
                    assert time.monotonic() < deadline, self.logs()
                    time.sleep(_PAUSE_S)

    def leader(self) -> EtcdNode:
        """Which node leads now; waits for an election to end."""
        deadline = time.monotonic() + _START_S
        while True:
            for node in self.nodes:
                if node.running:
                    with contextlib.suppress(OSError):
                        status = node.call("/v3/maintenance/status")
                        if status.get("leader") == status["header"]["member_id"]:
                            return node
            assert time.monotonic() < deadline, self.logs()
            time.sleep(_PAUSE_S)

    def logs(self) -> str:
        """The end of what the nodes had to say."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self._directory.glob("*.log")))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@contextlib.contextmanager
def running_etcd(directory: Path, nodes: int = 1) -> Iterator[EtcdCluster]:
    """Start a cluster whose data are in *directory*; killed afterwards."""
    require_etcd()
    with EtcdCluster(directory, nodes) as cluster:
        cluster.wait()
        yield cluster


def _reserve(stack: contextlib.ExitStack) -> int:
    """Find a free port; it is kept until *stack* ends, so that no port is found twice."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    return port
