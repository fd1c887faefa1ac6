"""One mount from opening the volume to its last commit: mounting, signals, and the order of shutdown.

Requests are `operations`; becoming a daemon, and telling the caller, `daemon`.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from fspf.core.errors import FspfError, LeaseHeldError
from fspf.mount.attach import attach
from fspf.mount.control import Control
from fspf.mount.operations import Operations
from fspf.mount.place import refuse_nesting
from fspf.mount.plane import Plane, control_pair
from fspf.mount.protocol import describe
from fspf.mount.system import notify_systemd, raise_dirty_limit, set_read_ahead, sync_filesystem, unmount, users_of
from fspf.mount.upkeep import Upkeep
from fspf.mount.uring import uring_offered
from fspf.volume.layout import Layout
from fspf.volume.volume import Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from fspf.core.anchor import Cas
    from fspf.mount.place import Plan

log = logging.getLogger(__name__)

_SQLITE_URL: Final = "sqlite://"
_GRACE_S: Final = 5.0  # for users of a mount that a signal ends
_READ_AHEAD_KIB: Final = 4096
_DIRTY_PERCENT: Final = 40  # of the dirty pages that the kernel allows in all
_MAX_TASKS: Final = 256  # requests under way, almost all of them waiting for commits


async def serve(plan: Plan, open_cas: Callable[[], Cas], on_live: Callable[[], None]) -> None:
    """Open the volume, mount it, serve it until it is unmounted, commit, and let go of everything.

    Args:
        open_cas: Called once; the CAS is closed here.
        on_live: Called when the mount answers; what it raises ends the mount.

    Raises:
        FspfError, OSError: Before `on_live` was called: nothing is mounted. After it: the last commit failed.
        BaseExceptionGroup: The file system broke; its mountpoint answers ENOTCONN.
    """
    options = plan.options
    async with AsyncExitStack() as stack:  # what is entered first is left last
        cas = open_cas()
        stack.callback(cas.close)
        if cas.url.startswith(_SQLITE_URL):
            refuse_nesting(cas.url[len(_SQLITE_URL) :], plan.mountpoint, "the CAS")
        volume = _open_volume(plan, cas)
        control = Control(
            volume,
            mountpoint=plan.mountpoint,
            options=options.words,
            cache_limit_bytes=options.total_cache_bytes,
        )
        upkeep = Upkeep(plan, control)
        stack.callback(upkeep.end)

        def farewell(
            _kind: type[BaseException] | None, exc: BaseException | None, _trace: TracebackType | None
        ) -> None:
            control.say_farewell({"ok": exc is None, "error": None if exc is None else describe(single(exc))})

        stack.push(farewell)  # after the volume is closed: its last commit is anchored, or *exc* says why not
        stack.callback(volume.close)
        os.chdir("/")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # nothing hurries the end …
        # … and from here on only `_Session` listens. What comes before it runs waits for it: nothing may be mounted by then
        # that no signal ends.
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        operations = Operations(volume, control, atime=options.atime, diratime=options.diratime)
        stack.callback(operations.forget_all)
        control.add_counters(operations.boundary.counters)
        session = _Session(plan, volume, operations, upkeep, on_live, signals)
        session.mount()
        stack.callback(session.close)
        if session.plane is not None:
            control.add_counters(session.plane.counters)
        stack.callback(upkeep.begin_end)
        log.info("%s is mounted on %s", plan.volume, plan.mountpoint)
        await session.run()
        log.info("%s is unmounted, the last commit begins", plan.mountpoint)
    log.info("the end: everything is committed")


def _open_volume(plan: Plan, cas: Cas) -> Volume:
    options = plan.options
    try:
        return Volume.open(
            plan.volume,
            cas,
            read_only=options.read_only,
            label=plan.label,
            cache_bytes=options.cache_bytes,
            commit_interval=options.commit_interval_s,
        )
    except LeaseHeldError:
        header, _ = Layout(plan.volume).read_header()  # the lock on this machine knows no names, the CAS does
        lease = cas.fetch(header.volume_id).lease
        if lease is None:
            raise
        raise LeaseHeldError(lease.holder) from None
    except OSError as exc:
        if exc.errno == errno.EROFS:
            raise FspfError(f"{plan.volume!r} lies on a read-only file system: mount the volume with -o ro") from exc
        raise


def single(exc: BaseException) -> BaseException:
    """Return the one exception that a group consists of, or the group."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


class _Session:
    """The connection to the kernel."""

    def __init__(
        self,
        plan: Plan,
        volume: Volume,
        operations: Operations,
        upkeep: Upkeep,
        on_live: Callable[[], None],
        signals: AsyncIterator[int],
    ) -> None:
        self._plan = plan
        self._signals = signals
        self._volume = volume
        self.plane: Plane | None = None
        self._until_live = ExitStack()
        self._operations = operations
        self._upkeep = upkeep
        self._on_live = on_live
        self._live = False
        self._left = trio.Event()  # the connection has ended
        self._leaving = False

    # -- mounting

    def mount(self) -> None:
        """Mount. Requests wait until `run`.

        Raises:
            FspfError: The kernel or fusermount3 refused.
        """
        options = self._plan.options
        # The data plane reads contents from their rows' roots.
        native = options.native and not self._volume.has_replayed_contents
        if options.native and not native:
            log.info(
                "the last writer crashed: requests are answered in Python, until the volume was mounted for writing"
            )
        if native and options.uring:
            self._until_live.enter_context(uring_offered())
        try:
            descriptor = attach(self._plan, read_only=self._volume.read_only)
        except BaseException:
            self._until_live.close()
            raise
        try:
            if native:
                descriptor = self._start_plane(descriptor)
            pyfuse3.init(self._operations, f"/dev/fd/{descriptor}", set())
            if self.plane is not None:
                self.plane.start()
        except BaseException:
            self._until_live.close()
            with suppress(OSError):
                unmount(self._plan.mountpoint, lazy=True)
            raise

    def _start_plane(self, device: int) -> int:
        """Put the data plane between the kernel and pyfuse3; the descriptor that pyfuse3 gets."""
        options = self._plan.options
        ours, theirs = control_pair()
        self._operations.native = True
        self.plane = Plane(
            self._volume,
            self._operations,
            device,
            ours.detach(),
            atime=options.atime,
            diratime=options.diratime,
            cache_bytes=options.meta_cache_bytes,
            uring=options.uring,
            spin=options.spin,
            uid=-1 if options.view_uid is None else options.view_uid,
            gid=-1 if options.view_gid is None else options.view_gid,
            umask=-1 if options.view_umask is None else options.view_umask,
        )
        return theirs.detach()

    def close(self) -> None:
        """Close the connection. A mount that never came to life is removed; any other that is left answers ENOTCONN."""
        self._until_live.close()
        if not self._live:
            with suppress(OSError):
                unmount(self._plan.mountpoint, lazy=True)
        if self.plane is not None:
            self.plane.stop()
        pyfuse3.close(unmount=False)

    # -- serving

    async def run(self) -> None:
        """Answer requests until the file system is unmounted, by anybody."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._announce, nursery)
            nursery.start_soon(self._listen, nursery)
            if self.plane is not None:
                nursery.start_soon(self._follow, self.plane)
            try:
                await pyfuse3.main(max_tasks=_MAX_TASKS)
            finally:
                self._left.set()
                nursery.cancel_scope.cancel()

    async def _follow(self, plane: Plane) -> None:
        """End pyfuse3 when the kernel's side has ended: its socket does not tell an end from an error."""
        await trio.lowlevel.wait_readable(plane.relay.wake_fd)
        pyfuse3.terminate()

    async def _announce(self, nursery: trio.Nursery) -> None:
        """Wait until the mount answers, then say so."""
        place = self._plan.mountpoint
        info = await trio.to_thread.run_sync(os.stat, place, abandon_on_cancel=True)
        device = f"{os.major(info.st_dev)}:{os.minor(info.st_dev)}"
        set_read_ahead(device, _READ_AHEAD_KIB)
        raise_dirty_limit(device, _DIRTY_PERCENT)
        self._until_live.close()
        self._on_live()
        self._live = True
        gc.collect()
        gc.freeze()  # what was loaded stays for ever: no collection need look at it while an fsync waits
        notify_systemd(f"READY=1\nSTATUS={self._plan.volume} on {place}")
        nursery.start_soon(self._upkeep.run)

    async def _listen(self, nursery: trio.Nursery) -> None:
        """Unmount at the first SIGTERM or SIGINT; later ones change nothing."""
        async for number in self._signals:
            if self._leaving:
                log.info("signal %d: already unmounting", number)
                continue
            self._leaving = True
            log.info("signal %d: unmounting", number)
            notify_systemd("STOPPING=1")
            nursery.start_soon(self._leave)

    async def _leave(self) -> None:
        """Unmount; take the file system from users who stay after a while. What they had written is committed."""
        place = self._plan.mountpoint
        try:
            await trio.to_thread.run_sync(sync_filesystem, place)
        except OSError as exc:
            log.warning("the kernel could not write back everything: %s", exc)
        try:
            await trio.to_thread.run_sync(unmount, place)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                users = ", ".join(f"{name} ({pid}) {how}" for pid, name, how in users_of(place))
                log.warning("%s is in use: %s; it ends in %.0f s", place, users or "by others", _GRACE_S)
                with suppress(OSError):
                    await trio.to_thread.run_sync(lambda: unmount(place, lazy=True))
            else:
                log.warning("%s could not be unmounted: %s", place, exc)
        with trio.move_on_after(_GRACE_S):
            await self._left.wait()
        if not self._left.is_set():
            pyfuse3.terminate()
