"""HTTPS to a CAS server whose key is pinned: kept-alive connections to whichever of its processes answers.

What is asked, by whom, and what errors mean is left to `client`.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import select
import ssl
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fspf.core.errors import CasError, CasUnreachableError, UsageError

CONNECT_TIMEOUT_S: Final = 5.0
REQUEST_TIMEOUT_S: Final = 25.0  # longer than the server lets its store take
DEFAULT_PORT: Final = 8443
_MAX_REPLY: Final = 64 << 20
_MAX_IDLE: Final = 8  # connections
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SCHEME: Final = "https://"


class WrongServerError(CasError):
    """The server is not the CAS whose key is pinned."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a CAS is: its processes, and the hash of the key that all of them have."""

    hosts: tuple[tuple[str, int], ...]
    key_hash: str  # "" if the URL does not say it

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``https://host[:port][,host[:port]…][#keyhash]``.

        Raises:
            UsageError: It is none.
        """
        rest, _, fragment = url.removeprefix(_SCHEME).partition("#")
        rest = rest.removesuffix("/")
        if not url.startswith(_SCHEME) or not rest or any(char in rest for char in "/?@ "):
            raise UsageError(f"a CAS server is named by https://HOST:PORT#KEYHASH, not {url!r}")
        hosts = []
        for one in rest.split(","):
            try:
                parts = urlsplit(f"//{one}")
                host, port = parts.hostname, parts.port
            except ValueError:
                host, port = None, None
            if not host or (port is not None and port == 0):
                raise UsageError(f"HOST:PORT is expected in the URL of a CAS, not {one!r}")
            hosts.append((host, port or DEFAULT_PORT))
        return cls(tuple(hosts), check_hash(fragment) if fragment else "")

    @property
    def name(self) -> str:
        """The URL without the hash."""
        return _SCHEME + ",".join(authority(host, port) for host, port in self.hosts)

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        return f"{self.name}#{self.key_hash}" if self.key_hash else self.name


def check_hash(text: str) -> str:
    """Return *text* in lower case if it is the hash of a key.

    Raises:
        UsageError: It is none.
    """
    lower = text.strip().lower().replace(":", "")
    if not _HASH.fullmatch(lower):
        raise UsageError(f"the hash of a CAS's key has 64 hex digits, unlike {text!r}")
    return lower


def authority(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class NotSentError(CasUnreachableError):
    """Nothing was sent: the request certainly had no effect, and another process can be asked."""


class _Pinned(http.client.HTTPSConnection):
    """A connection that goes on only if the server's key is the pinned one."""

    def __init__(self, host: str, port: int, key_hash: str, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=CONNECT_TIMEOUT_S, context=context)
        self.key_hash = key_hash

    def connect(self) -> None:
        """Connect, and compare the key before a byte of a request is sent."""
        super().connect()
        found = served_key_hash(self.sock)
        if found != self.key_hash:
            self.close()
            raise WrongServerError(
                f"{authority(self.host, self.port)} is not the CAS that was pinned: key hash {self.key_hash} expected, {found} found: "
                "ask its operator before you trust the other key"
            )
        self.sock.settimeout(REQUEST_TIMEOUT_S)

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it (or said something that nobody asked for)."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))


def served_key_hash(sock: Any) -> str:
    """Return the hash of the key with which the server at the other end has just authenticated itself."""
    der = sock.getpeercert(binary_form=True)
    spki = (
        x509.load_der_x509_certificate(der).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    return hashlib.sha256(spki).hexdigest()


def client_context() -> ssl.SSLContext:
    """Return a context for TLS 1.3. It verifies no certificate chain: the pinned key is what counts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Connections:
    """The connections of one client. Thread-safe, and safe to use after a fork.

    Args:
        address: Has a key hash.
    """

    def __init__(self, address: Address) -> None:
        assert address.key_hash
        self._address = address
        self._context = client_context()
        self._lock = threading.Lock()
        self._idle: deque[_Pinned] = deque(maxlen=_MAX_IDLE)
        self._pid = os.getpid()
        self._first = 0  # index of the process that answered last
        self._closed = False

    def close(self) -> None:
        """Close what is idle. Idempotent."""
        with self._lock:
            self._closed = True
            idle, self._idle = list(self._idle), deque(maxlen=_MAX_IDLE)
        if os.getpid() == self._pid:
            for connection in idle:
                connection.close()

    def take(self) -> _Pinned:
        """Return an open connection: a kept one, or a new one to the first process that can be reached.

        Raises:
            NotSentError: None can be reached.
            WrongServerError: A server has another key than the pinned one.
        """
        self._check_process()
        while True:
            with self._lock:
                if self._closed:
                    raise CasError(f"the connection to the CAS {self._address.name} is closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._open()
            if not connection.is_stale:
                return connection
            connection.close()

    def give_back(self, connection: _Pinned) -> None:
        """Keep a connection for the next request."""
        with self._lock:
            if not self._closed and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _open(self) -> _Pinned:
        hosts = self._address.hosts
        problems = []
        for step in range(len(hosts)):
            index = (self._first + step) % len(hosts)
            host, port = hosts[index]
            connection = _Pinned(host, port, self._address.key_hash, self._context)
            try:
                connection.connect()
            except (OSError, ssl.SSLError) as exc:
                connection.close()
                problems.append(f"{authority(host, port)}: {_reason(exc)}")
                continue
            self._first = index
            return connection
        raise NotSentError(f"the CAS cannot be reached: {'; '.join(problems)}")

    def avoid(self, connection: _Pinned) -> None:
        """Drop all connections to the process of *connection*, and begin with another one next time."""
        hosts = self._address.hosts
        where = (connection.host, connection.port)
        with self._lock:
            kept = [one for one in self._idle if (one.host, one.port) != where]
            dropped = [one for one in self._idle if (one.host, one.port) == where]
            self._idle = deque(kept, maxlen=_MAX_IDLE)
            if hosts[self._first] == where:
                self._first = (self._first + 1) % len(hosts)
        for one in (*dropped, connection):
            one.close()

    def _check_process(self) -> None:
        """After a fork, leave the parent's connections to the parent."""
        if os.getpid() != self._pid:
            self._lock = threading.Lock()
            for connection in self._idle:
                sock = connection.sock
                connection.sock = None  # closing it would say goodbye in the parent's name
                os.close(sock.detach())
            self._idle = deque(maxlen=_MAX_IDLE)
            self._pid = os.getpid()


def ask(connection: _Pinned, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
    """Send a request and wait for its answer.

    Raises:
        CasUnreachableError: There was no (whole) answer: what happened is not known.
    """
    where = authority(connection.host, connection.port)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read(_MAX_REPLY)
    except (OSError, ssl.SSLError, http.client.HTTPException) as exc:
        connection.close()
        raise CasUnreachableError(f"the CAS at {where} gave no answer: {_reason(exc)}") from None
    return Reply(response.status, response.headers, data)


def _reason(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "timed out"
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return str(exc.reason).lower().replace("_", " ")
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return str(exc) or type(exc).__name__
