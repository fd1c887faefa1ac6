"""Calls the scripts of boards: one POST over TLS, in bounded time and memory.

What the answer means, and whether it is signed as it should be, is read by `fspf.policy.approval`; who is asked, and when, by `policy_boards`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import h11

from fspf.core.errors import CasUnreachableError
from fspf.policy.approval import MAX_DOCUMENT
from fspf.policy.model import Script

TIMEOUT_S: Final = 10.0  # of one call, all in all
_HTTPS: Final = 443
_OK: Final = 200
_PIECE: Final = 16 << 10  # bytes read at once


class ScriptCaller:
    """Calls scripts. Redirections are not followed: a policy names who decides.

    Args:
        timeout_s: After this time a script is silent.
        may_call: Whether the CAS's operator allows this host and port; a policy's author chooses addresses, and the CAS may
            reach some that its author cannot.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S, may_call: Callable[[str, int], bool] | None = None) -> None:
        self._timeout_s = timeout_s
        self._may_call = may_call

    async def __call__(self, script: Script, document: Mapping[str, Any]) -> bytes:
        """Return the body of a script's answer.

        Raises:
            CasUnreachableError: There is none, or it is no success.
        """
        body = json.dumps(document).encode("ascii")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(script, body)
        except (OSError, ValueError, h11.ProtocolError) as exc:  # TimeoutError is an OSError
            reason = "time is over" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
            raise CasUnreachableError(f"script {script.url} does not answer: {reason}") from None

    async def _post(self, script: Script, body: bytes) -> bytes:
        parts = urlsplit(script.url)
        host, port = parts.hostname or "", parts.port or _HTTPS
        if self._may_call is not None and not self._may_call(host, port):
            raise ValueError("the operator of this CAS does not allow calls to it")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = [
            ("Host", parts.netloc),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        connection = h11.Connection(h11.CLIENT)
        request = connection.send(h11.Request(method="POST", target=target, headers=head)) or b""
        request += (connection.send(h11.Data(data=body)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        reader, writer = await asyncio.open_connection(host, port, ssl=_context(script))
        try:
            writer.write(request)
            await writer.drain()
            return await _answer(connection, reader)
        finally:
            writer.transport.abort()  # a script that does not close its side does not keep ours


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> bytes:
    """Read a response to its end, as far as it may be long."""
    answer = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_PIECE))
        elif isinstance(event, h11.Response) and event.status_code != _OK:
            raise ValueError(f"status {event.status_code}")
        elif isinstance(event, h11.Data):
            answer += bytes(event.data)
            if len(answer) > MAX_DOCUMENT:
                raise ValueError(f"more than {MAX_DOCUMENT} bytes")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return answer


def _context(script: Script) -> ssl.SSLContext:
    """Trust the script's CA and no other; without one, the usual ones: then its answer is signed."""
    context = ssl.create_default_context(cadata=script.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
