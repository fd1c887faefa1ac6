"""Connections to a CAS server: how many, how long a client may take, and what happens when there are too many.

HTTP itself is uvicorn's business; what requests do, `application`'s.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fspf.cas.metrics import Metrics

log = logging.getLogger(__name__)

MAX_HEAD: Final = 32 << 10  # bytes of a request's first line and headers


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed.

    Attributes:
        handshakes: Connections that have not finished TLS; the oldest goes when one more comes.
        connections: Connections that have; the one that was idle longest goes when one more comes.
        handshake_s, head_s, goodbye_s: How long TLS, the head of a request and the end of TLS may take.
    """

    handshakes: int = 512
    connections: int = 2048
    handshake_s: float = 5.0
    head_s: float = 10.0
    goodbye_s: float = 1.0


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with a bound on the head of a request and on the time that it takes to arrive."""

    book: Book

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.book.opened(self)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.book.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._head_timer is None:
                self._expect_head()
            self._head_bytes += len(data)
            self.book.used(self)
            super().data_received(data)
            if self._head_bytes > MAX_HEAD and self._is_in_head():
                self.book.metrics.refused_connections.labels("head").inc()
                self.transport.abort()
            return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_response_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_response_complete()

    def _is_in_head(self) -> bool:
        return self._in_head

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn declares
        return cycle is None or bool(cycle.response_complete)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.book.limits.head_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self.book.metrics.refused_connections.labels("slow").inc()
            self.transport.abort()


class Book:
    """All connections of one process, and the rules for them."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self._open: OrderedDict[GuardedProtocol, None] = OrderedDict()  # the longest unused first
        self._handshakes: OrderedDict[socket.socket, asyncio.Task[None]] = OrderedDict()

    def opened(self, connection: GuardedProtocol) -> None:
        """Note that TLS is done; make room."""
        self._open[connection] = None
        self.metrics.connections.set(len(self._open))
        if len(self._open) > self.limits.connections:
            victim = next((one for one in self._open if one.is_idle), connection)
            self.metrics.refused_connections.labels("many").inc()
            victim.transport.abort()

    def used(self, connection: GuardedProtocol) -> None:
        """Note that it is in use."""
        if connection in self._open:
            self._open.move_to_end(connection)

    def closed(self, connection: GuardedProtocol) -> None:
        """Note that it is gone."""
        self._open.pop(connection, None)
        self.metrics.connections.set(len(self._open))

    # -- accepting

    async def accept(self, sock: socket.socket, protocol: Any, context: ssl.SSLContext) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(sock)
            except OSError as exc:  # out of descriptors: those that are there must end first
                log.warning("no connection can be accepted: %s", exc.strerror)
                self._drop_oldest_handshake()
                await asyncio.sleep(0.1)
                continue
            if len(self._handshakes) >= self.limits.handshakes:
                self._drop_oldest_handshake()
            task = loop.create_task(self._shake_hands(peer, protocol, context))
            self._handshakes[peer] = task
            task.add_done_callback(lambda _task, peer=peer: self._handshakes.pop(peer, None))  # type: ignore[misc]

    def _drop_oldest_handshake(self) -> None:
        if self._handshakes:
            peer, task = self._handshakes.popitem(last=False)
            self.metrics.refused_connections.labels("handshakes").inc()
            task.cancel()
            with suppress(OSError):
                peer.close()

    async def _shake_hands(self, peer: socket.socket, protocol: Any, context: ssl.SSLContext) -> None:
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                protocol,
                peer,
                ssl=context,
                ssl_handshake_timeout=self.limits.handshake_s,
                ssl_shutdown_timeout=self.limits.goodbye_s,
            )
        except (OSError, ssl.SSLError) as exc:
            self.metrics.refused_connections.labels("tls").inc()
            level = logging.INFO if isinstance(exc, ssl.SSLError) else logging.DEBUG  # silence is nothing to tell of
            log.log(level, "no TLS 1.3", extra={"reason": str(exc)[:200]})
            with suppress(OSError):
                peer.close()

    def end(self) -> None:
        """End the handshakes that are under way."""
        for task in list(self._handshakes.values()):
            task.cancel()
