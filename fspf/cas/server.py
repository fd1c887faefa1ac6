"""The process of a CAS server: sockets, TLS, the ASGI server, logs, and an orderly end.

What requests do is `service`'s business; the directory it runs from is `home`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import resource
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvicorn
import uvloop

from fspf.cas.application import Application
from fspf.cas.assembly import OpenStore, World, open_sealed, service_of
from fspf.cas.connections import Book, GuardedProtocol, Limits
from fspf.cas.counter import Recovery
from fspf.cas.home import CERTIFICATE, PRIVATE_KEY, Home, parse_listen
from fspf.cas.service import Service
from fspf.core.anchor import Holder
from fspf.core.errors import CasError, CasUnreachableError, UsageError
from fspf.core.keys import SecretKey

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
KEEP_ALIVE_S: Final = 75
GRACE_S: Final = 10  # for requests that are under way at the end
_PURGE_EVERY_S: Final = 60.0


def tls_context(certificate: str, private_key: str) -> ssl.SSLContext:
    """Return a context for TLS 1.3 and nothing else.

    Raises:
        CasError: The files do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # keep-alive serves better, and a resumed session costs memory here
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as exc:
        raise CasError(f"{certificate} and {private_key} cannot be used: {exc}") from None
    return context


def listen_on(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UsageError: There is no such address.
        CasUnreachableError: It is in use, or may not be used.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise UsageError(f"{host!r} is no address to listen on: {exc}") from None
    family, kind, protocol, _, address = infos[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise CasUnreachableError(f"cannot listen on {host}:{port}: {exc.strerror}") from None
    return sock


class _Server(uvicorn.Server):
    """uvicorn, which tells when it serves and when it stops."""

    def __init__(
        self, config: uvicorn.Config, service: Service, on_live: Callable[[], None], sock: socket.socket, limits: Limits
    ) -> None:
        super().__init__(config)
        self.servers = []  # connections are accepted by us
        self._service = service
        self._on_live = on_live
        self._sock = sock
        self._book = Book(limits, service.metrics)
        self._accepting: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `run`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        protocol_class: type[GuardedProtocol] = type("Protocol", (GuardedProtocol,), {"book": self._book})

        def protocol() -> GuardedProtocol:
            return protocol_class(config=self.config, server_state=self.server_state, app_state={})

        assert self.config.ssl is not None
        self._accepting = asyncio.create_task(self._book.accept(self._sock, protocol, self.config.ssl))
        self.started = True
        self._on_live()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what was begun."""
        self._service.stopping = True
        log.info("stopping")
        if self._accepting is not None:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        self._sock.close()
        self._book.end()
        await super().shutdown(sockets=sockets)


async def serve(
    home: Home,
    master: SecretKey,
    *,
    opened: OpenStore = open_sealed,
    sock: socket.socket,
    on_live: Callable[[], None],
    stop: asyncio.Event,
    world: World,
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
) -> None:
    """Serve until *stop* is set.

    Args:
        opened: Opens the store; for tests.
        sock: Listening.
        on_live: Called when requests are answered.
    """
    async with service_of(home, master, opened, world) as service:
        config = uvicorn.Config(
            Application(service),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            backlog=BACKLOG,
        )
        config.load()
        config.ssl = tls_context(home.path(CERTIFICATE), home.path(PRIVATE_KEY))
        server = _Server(config, service, on_live, sock, limits)
        async with asyncio.TaskGroup() as tasks:
            upkeep = tasks.create_task(_keep_up(service))
            follow = tasks.create_task(_follow(stop, server))
            await server.serve(sockets=[])
            upkeep.cancel()
            follow.cancel()
    log.info("stopped")


async def _follow(stop: asyncio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True


async def _keep_up(service: Service) -> None:
    """Do what is due from time to time."""
    while True:
        await asyncio.sleep(_PURGE_EVERY_S)
        try:
            await service.gate.purge()
        except CasUnreachableError as exc:
            log.warning("old challenges could not be removed: %s", exc)


def run(
    home: Home,
    master: SecretKey,
    *,
    holder: Holder,
    recovery: Recovery | None = None,
    listen: str | None,
    on_live: Callable[[str], None],
) -> None:
    """Serve in this process until a signal ends it.

    Args:
        holder: This process.
        recovery: An approved statement that lets one older state of the store in.
        listen: HOST:PORT, instead of the settings'.
        on_live: Called with the URL, and the hash of the key, when requests are answered.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is a descriptor
    host, port = parse_listen(listen or home.listen)
    sock = listen_on(host, port)
    url = f"https://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}#{home.key_hash}"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            _until_signal(
                lambda stop: serve(
                    home,
                    master,
                    opened=functools.partial(open_sealed, recovery=recovery),
                    world=World(holder, recovery=recovery),
                    sock=sock,
                    on_live=lambda: on_live(url),
                    stop=stop,
                )
            )
        )


async def _until_signal(begin: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await begin(stop)


class JsonFormatter(logging.Formatter):
    """One JSON document per line: time, level, logger, event, and what the caller added."""

    _USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        members = {
            "time": f"{stamp}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        members |= {name: value for name, value in vars(record).items() if name not in self._USUAL}
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members, default=str)


def log_to_stderr(*, debug: bool) -> None:
    """Let this process log JSON lines to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
