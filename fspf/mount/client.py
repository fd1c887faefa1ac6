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
from typing import TYPE_CHECKING, Any

from fspf.core.errors import FspfError
from fspf.mount import utab
from fspf.mount.farewell import Farewell
from fspf.mount.owner import as_owner
from fspf.mount.place import is_dead
from fspf.mount.protocol import CONTROL, STATUS, ReportedError
from fspf.mount.system import FSTYPE, mount_at, start_of, sync_filesystem, unmount, users_of

if TYPE_CHECKING:
    from fspf.mount.system import MountEntry


class NotMountedError(FspfError):
    """There is no FSPF mount at that place."""


class MountDeadError(FspfError):
    """The mount's daemon is gone."""


class MountBusyError(FspfError):
    """Somebody uses the mount."""


class NotOursError(FspfError):
    """The mount belongs to another user."""


def mount_of(mountpoint: str) -> MountEntry:
    """Return the FSPF mount at a place, without touching it: it may be dead, or another user's.

    Raises:
        NotMountedError: There is none.
    """
    place = os.path.realpath(mountpoint)
    entry = mount_at(place)
    if entry is None:
        raise NotMountedError(f"{mountpoint!r}: nothing is mounted there")
    if entry.fstype != FSTYPE:
        raise NotMountedError(f"{mountpoint!r}: a mount of type {entry.fstype}, not of FSPF")
    return entry


def status_of(entry: MountEntry) -> dict[str, Any]:
    """Ask a mount how it is; as root, also that of another user.

    Raises:
        MountDeadError: Its daemon is gone.
        NotMountedError: It gives no status, so it is none of ours.
        NotOursError: We are neither its owner nor root, or cannot reach it.
    """
    place = entry.path
    try:
        raw = as_owner(entry, lambda: os.getxattr(place, STATUS).decode("ascii"))
    except OSError as exc:
        if exc.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
            raise MountDeadError(
                f"{place!r}: the daemon of this mount is gone: remove it with fspf umount {place}, then mount again"
            ) from exc
        if exc.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
            raise NotMountedError(f"{place!r}: this mount gives no status") from exc
        if exc.errno in {errno.EACCES, errno.EPERM}:
            raise NotOursError(
                f"{place!r} belongs to {_user_name(entry.owner[0])}: ask as that user, or as root"
                if os.geteuid() != 0
                else f"{place!r} belongs to {_user_name(entry.owner[0])}, who cannot reach it either: {exc.strerror}"
            ) from exc
        raise
    document: dict[str, Any] = json.loads(raw)
    return document


def _user_name(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"user {uid}"


@dataclass(frozen=True, slots=True)
class Unmounted:
    """How an unmount went.

    Attributes:
        waited: The daemon has ended and its last commit is safe.
        remark: What the user should know, or "".
    """

    waited: bool
    remark: str = ""


def unmount_and_wait(
    entry: MountEntry, *, lazy: bool = False, force: bool = False, timeout_s: float = 60.0
) -> Unmounted:
    """Commit, unmount, and wait until the daemon has anchored its last commit and is gone.

    Args:
        entry: From `mount_of`.
        lazy: Unmount even while it is in use; the daemon then ends with the last user, and nobody waits for it.
        force: Unmount even if the commit fails; what was not committed is lost.

    Raises:
        ReportedError: The commit failed; with its exit code. Before the unmount: it stays mounted.
        MountBusyError: It is in use, and stays mounted.
        FspfError: The daemon goes on for longer than *timeout_s*.
    """
    place = entry.path
    if as_owner(entry, lambda: is_dead(place)):
        detach(entry)
        return Unmounted(waited=True, remark="its daemon was gone already: what had not been synced is lost")
    try:
        status = status_of(entry)
    except NotOursError as exc:
        if os.geteuid() != 0:
            raise
        _unmount(place, lazy=lazy)  # root need not look into it to unmount it
        return Unmounted(
            waited=False,
            remark=f"unmounted, but nobody knows whether its last commit went well, for it could not be asked: {exc}",
        )
    pid = int(status["pid"])
    with Farewell(entry, pid) as farewell:
        process = _open_process(pid, status["pid_start"])
        try:
            remark = ""
            if (
                "ro" in entry.flags + entry.options and not status["read_only"]
            ):  # by mount -o remount,ro: no command gets through
                remark = "it was remounted read-only, so how its last commit went is only in its log"
            else:
                if not status["read_only"] or status["failed"]:
                    remark = _commit(entry, force=force)
                farewell.ask()
            _unmount(place, lazy=lazy)
            if lazy:
                return Unmounted(waited=False, remark=f"the daemon ({pid}) ends when the last user is gone")
            waited = _wait(place, pid, process, farewell, timeout_s=timeout_s)
            return Unmounted(waited=waited, remark=remark)
        finally:
            if process is not None:
                os.close(process)


def detach_dead(entry: MountEntry) -> bool:
    """Take the mount away if its daemon is gone; False if it lives."""
    if not as_owner(entry, lambda: is_dead(entry.path)):
        return False
    detach(entry)
    return True


def detach(entry: MountEntry) -> None:
    """Take away what a daemon that is gone has left."""
    unmount(entry.path, lazy=True)
    utab.unregister(entry.source, entry.path)


def _unmount(place: str, *, lazy: bool) -> None:
    try:
        unmount(place, lazy=lazy)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        users = "; ".join(f"{name} ({number}) {how}" for number, name, how in users_of(place))
        raise MountBusyError(f"{place!r} is in use: {users or 'by a process that cannot be seen from here'}") from exc


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


def _commit(entry: MountEntry, *, force: bool) -> str:
    """Bring everything that anybody wrote to the volume, and anchor it; a remark on what had failed before."""
    place = entry.path

    def commit() -> str:
        remark = ""
        try:
            sync_filesystem(place)
        except OSError as exc:  # also for a write that failed long ago and was reported to the writer only
            sync_filesystem(place)
            remark = f"something that was written to it was lost earlier: {exc.strerror}"
        os.setxattr(place, CONTROL, b"commit")
        return remark

    try:
        return str(as_owner(entry, commit))
    except OSError as exc:
        if force:
            return f"its last commit failed: {exc.strerror}"
        error = None
        with suppress(FspfError, OSError):
            error = status_of(entry).get("last_error")
        message = error["message"] if error else exc.strerror
        raise ReportedError(
            f"{place!r} stays mounted, its data could not be committed: {message}; --force unmounts all the same",
            exit_code=error["exit_code"] if error else 1,
        ) from exc


def _wait(place: str, pid: int, process: int | None, farewell: Farewell, *, timeout_s: float) -> bool:
    """Wait for the daemon's end; False if it cannot be seen from here."""
    deadline = time.monotonic() + timeout_s
    raw = farewell.wait(deadline) if farewell.expected else b""
    if raw is None or (
        process is not None and not select.select([process], [], [], max(deadline - time.monotonic(), 0))[0]
    ):
        raise _still_there(place, pid)
    if not farewell.expected:
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
