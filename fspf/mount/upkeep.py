"""What a mount does by itself beside serving requests: end when idle, write its counters, tell systemd how it is.

What may be asked of a mount is `control`; ending on request, `session`.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from fspf.mount.metrics import render, write_file
from fspf.mount.system import notify_systemd, sync_filesystem, unmount

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.mount.control import Control
    from fspf.mount.place import Plan

log = logging.getLogger(__name__)

_METRICS_EVERY_S: Final = 15.0  # how often Prometheus usually looks
_EXTEND_EVERY_S: Final = 5.0
_EXTEND_BY_US: Final = 60_000_000


class Idleness:
    """Decides when a mount has been without use for long enough.

    Args:
        limit_s: How long.
        now: Monotonic seconds.
        activity: A number that grows with use.
    """

    def __init__(self, limit_s: float, now: float, activity: int) -> None:
        self._limit_s = limit_s
        self._since = now
        self._activity = activity

    def due(self, now: float, activity: int, *, in_use: bool) -> bool:
        """Take the present state; True if it is time to unmount."""
        if in_use or activity != self._activity:
            self._since, self._activity = now, activity
        return now - self._since >= self._limit_s

    def postpone(self, now: float, activity: int) -> None:
        """Somebody uses the mount after all: wait for the whole time again."""
        self._since, self._activity = now, activity


class Upkeep:
    """The clockwork of one mount.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, plan: Plan, control: Control, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._control = control
        self._clock = clock
        self._ended = threading.Event()
        self._complained = False

    async def run(self) -> None:
        """Keep going until cancelled. Starts when the mount answers."""
        async with trio.open_nursery() as nursery:
            if self._plan.options.idle_s is not None:
                nursery.start_soon(self._watch_idleness, self._plan.options.idle_s)
            if self._plan.options.metrics:
                nursery.start_soon(self._write_metrics, self._plan.options.metrics)
            if os.environ.get("NOTIFY_SOCKET"):
                nursery.start_soon(self._report)

    # -- ending by itself

    async def _watch_idleness(self, limit_s: float) -> None:
        place, control = self._plan.mountpoint, self._control
        idleness = Idleness(limit_s, self._clock(), control.activity())
        while True:
            await trio.sleep(min(max(limit_s / 10, 0.05), 10.0))
            if not idleness.due(self._clock(), control.activity(), in_use=control.open_files() > 0):
                continue
            try:
                await trio.to_thread.run_sync(sync_filesystem, place)
                await trio.to_thread.run_sync(unmount, place)
            except OSError as exc:
                if exc.errno != errno.EBUSY:  # a working directory in the mount, a file that is mapped: in use
                    log.warning("idle for %g s, but it cannot be unmounted: %s", limit_s, exc)
                idleness.postpone(self._clock(), control.activity())
            else:
                log.info("unmounted after %g s without use", limit_s)
                return

    # -- telling others

    async def _write_metrics(self, path: str) -> None:
        try:
            while True:
                text = render(self._control.document())
                await trio.to_thread.run_sync(self._try_to_write, path, text)
                await trio.sleep(_METRICS_EVERY_S)
        finally:
            with suppress(OSError):
                os.unlink(path)  # what is not mounted has no values

    def _try_to_write(self, path: str, text: str) -> None:
        try:
            write_file(path, text)
        except OSError as exc:
            if not self._complained:
                log.warning("metrics cannot be written to %s: %s", path, exc.strerror)
            self._complained = True
        else:
            self._complained = False

    async def _report(self) -> None:
        last = ""
        while True:
            document = self._control.document()
            state = document["failed"] or ("read-only" if document["read_only"] else "writable")
            text = (
                f"{self._plan.volume} on {self._plan.mountpoint}: {state}, generation {document['generation']}, "
                f"anchored {document['anchored_generation']}"
            )
            if text != last:
                notify_systemd(f"STATUS={' '.join(text.split())}")
            last = text
            if self._control.committing:  # ExecStop= waits for it before it unmounts
                notify_systemd(f"EXTEND_TIMEOUT_USEC={_EXTEND_BY_US}")
            await trio.sleep(_EXTEND_EVERY_S)

    def begin_end(self) -> None:
        """The mount has ended and the last commit begins: keep systemd patient until `end`."""
        if os.environ.get("NOTIFY_SOCKET"):
            threading.Thread(target=self._extend, name="fspf-systemd", daemon=True).start()

    def _extend(self) -> None:
        while True:
            notify_systemd(
                f"STOPPING=1\nEXTEND_TIMEOUT_USEC={_EXTEND_BY_US}\n"
                f"STATUS=waiting until the last commit of {self._plan.volume} is anchored"
            )
            if self._ended.wait(_EXTEND_EVERY_S):
                return

    def end(self) -> None:
        """Everything is over."""
        self._ended.set()
