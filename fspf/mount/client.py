"""Talk to a live mount from another process: its status, and an unmount that ends with the last commit.

What the mount answers is in `control`.
"""

from __future__ import annotations

import errno
import json
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from fspf.core.errors import FspfError
from fspf.mount.place import is_dead
from fspf.mount.protocol import CONTROL, STATUS, ReportedError
from fspf.mount.system import FSTYPE, mount_at, start_of, sync_filesystem, unmount, users_of

_MAX_MESSAGE: Final = 65536  # bytes


class NotMountedError(FspfError):
    """There is no FSPF mount at that place."""


class MountDeadError(FspfError):
    """The mount's daemon is gone."""


class MountBusyError(FspfError):
    """Somebody uses the mount."""


def place_of(mountpoint: str) -> str:
    """Return the path of an FSPF mount as the kernel writes it.

    Raises:
        NotMountedError: There is none.
    """
    place = os.path.realpath(mountpoint)
    entry = mount_at(place)
    if entry is None:
        raise NotMountedError(f"{mountpoint!r}: nothing is mounted there")
    if entry.fstype != FSTYPE:
        raise NotMountedError(f"{mountpoint!r}: a mount of type {entry.fstype}, not of FSPF")
    return place


def status_of(place: str) -> dict[str, Any]:
    """Ask the mount at *place* how it is.

    Raises:
        MountDeadError: Its daemon is gone.
        NotMountedError: It gives no status, so it is none of ours.
        OSError: EPERM: we are neither its owner nor root.
    """
    try:
        raw = os.getxattr(place, STATUS)
    except OSError as exc:
        if exc.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
            raise MountDeadError(
                f"{place!r}: the daemon of this mount is gone: remove it with fspf umount {place}, then mount again"
            ) from exc
        if exc.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
            raise NotMountedError(f"{place!r}: this mount gives no status") from exc
        raise
    document: dict[str, Any] = json.loads(raw)
    return document


@dataclass(frozen=True, slots=True)
class Unmounted:
    """How an unmount went.

    Attributes:
        waited: The daemon has ended and its last commit is safe.
        remark: What the user should know, or "".
    """

    waited: bool
    remark: str = ""


def unmount_and_wait(place: str, *, lazy: bool = False, force: bool = False, timeout_s: float = 60.0) -> Unmounted:
    """Commit, unmount, and wait until the daemon has anchored its last commit and is gone.

    Args:
        place: From `place_of`.
        lazy: Unmount even while it is in use; the daemon then ends with the last user, and nobody waits for it.
        force: Unmount even if the commit fails; what was not committed is lost.

    Raises:
        ReportedError: The commit failed; with its exit code. Before the unmount: it stays mounted.
        MountBusyError: It is in use, and stays mounted.
        FspfError: The daemon goes on for longer than *timeout_s*.
    """
    if is_dead(place):
        unmount(place, lazy=True)
        return Unmounted(waited=True, remark="its daemon was gone already: what had not been synced is lost")
    status = status_of(place)
    pid = int(status["pid"])
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        process = _open_process(pid, status["pid_start"])
        remark = ""
        try:
            try:
                if not status["read_only"] or status["failed"]:
                    remark = _commit(place, force=force)
                listens = _ask_for_farewell(place, writer)
            finally:
                os.close(writer)
            try:
                unmount(place, lazy=lazy)
            except OSError as exc:
                if exc.errno != errno.EBUSY:
                    raise
                users = "; ".join(f"{name} ({number}) {how}" for number, name, how in users_of(place))
                raise MountBusyError(
                    f"{place!r} is in use: {users or 'by a process that cannot be seen from here'}"
                ) from exc
            if lazy:
                return Unmounted(waited=False, remark=f"the daemon ({pid}) ends when the last user is gone")
            waited = _wait(place, pid, process, reader, listens=listens, timeout_s=timeout_s)
            return Unmounted(waited=waited, remark=remark)
        finally:
            if process is not None:
                os.close(process)
    finally:
        os.close(reader)


def _open_process(pid: int, started: int | None) -> int | None:
    """Return a pidfd of the daemon; None if it cannot be seen from here."""
    if started is None or start_of(pid) != started:
        return None
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    if start_of(pid) != started:
        os.close(process)
        return None
    return process


def _commit(place: str, *, force: bool) -> str:
    """Bring everything that anybody wrote to the volume, and anchor it; a remark on what had failed before."""
    remark = ""
    try:
        try:
            sync_filesystem(place)
        except OSError as exc:  # also for a write that failed long ago and was reported to the writer only
            sync_filesystem(place)
            remark = f"something that was written to it was lost earlier: {exc.strerror}"
        os.setxattr(place, CONTROL, b"commit")
    except OSError as exc:
        if force:
            return f"its last commit failed: {exc.strerror}"
        error = None
        with suppress(FspfError, OSError):
            error = status_of(place).get("last_error")
        message = error["message"] if error else exc.strerror
        raise ReportedError(
            f"{place!r} stays mounted, its data could not be committed: {message}; --force unmounts all the same",
            exit_code=error["exit_code"] if error else 1,
        ) from exc
    return remark


def _ask_for_farewell(place: str, writer: int) -> bool:
    """Ask the daemon to tell us how it ended."""
    try:
        os.setxattr(place, CONTROL, b"farewell %d" % writer)
    except OSError:  # a read-only mount, or a daemon that may not look at us
        return False
    return True


def _wait(place: str, pid: int, process: int | None, reader: int, *, listens: bool, timeout_s: float) -> bool:
    """Wait for the daemon's end; False if it cannot be seen from here."""
    deadline = time.monotonic() + timeout_s
    raw = b""
    while listens:
        if not select.select([reader], [], [], max(deadline - time.monotonic(), 0))[0]:
            raise _still_there(place, pid)
        part = os.read(reader, _MAX_MESSAGE)
        if not part:
            break
        raw += part
    if process is not None and not select.select([process], [], [], max(deadline - time.monotonic(), 0))[0]:
        raise _still_there(place, pid)
    if not listens:
        return process is not None
    if not raw:
        raise ReportedError(f"the daemon ({pid}) of {place!r} died before its last commit; what was synced is safe")
    message = json.loads(raw)
    if not message["ok"]:
        error = message["error"]
        raise ReportedError(
            f"{place!r} is unmounted, but its last commit failed: {error['message']}", exit_code=error["exit_code"]
        )
    return True


def _still_there(place: str, pid: int) -> FspfError:
    return FspfError(
        f"{place!r} is unmounted here, but its daemon ({pid}) goes on: another mount namespace (a container) may hold a copy"
    )
