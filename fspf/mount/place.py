"""Judge whether a directory can become a mountpoint, and say what to do when it cannot.

Mounting there is left to `session`.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fspf.core.errors import FspfError, UsageError
from fspf.mount.system import FSTYPE, mount_at

if TYPE_CHECKING:
    from fspf.mount.options import MountOptions


class MountpointError(FspfError):
    """Nothing can be mounted at that place."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be mounted where. Paths are absolute and without symbolic links."""

    volume: str
    mountpoint: str
    options: MountOptions
    label: str

    @property
    def source(self) -> str:
        """What mount(8) shows as the source."""
        return self.options.fsname or f"fspf#{self.volume}"


def make_plan(volume: str, mountpoint: str, options: MountOptions) -> Plan:
    """Check the place and return the plan.

    Raises:
        MountpointError: The place is missing, in use, not empty, or holds a dead mount.
        UsageError: Volume and mountpoint contain each other.
    """
    place = os.path.realpath(mountpoint)
    home = os.path.realpath(volume)
    entry = mount_at(place)
    if entry is not None and entry.fstype == FSTYPE:
        if is_dead(place):
            raise MountpointError(f"{place!r} holds a mount whose daemon is gone: remove it with fspf umount {place}")
        raise MountpointError(f"{place!r} is a mounted volume already ({entry.source}): unmount it first")
    try:
        info = os.stat(place)
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:
            raise MountpointError(
                f"{place!r} holds a mount whose daemon is gone: remove it with umount -l {place}"
            ) from exc
        raise MountpointError(f"mountpoint {place!r}: {exc.strerror}") from exc
    if not stat.S_ISDIR(info.st_mode):
        raise MountpointError(f"mountpoint {place!r} is not a directory")
    refuse_nesting(home, place)
    try:
        if not options.nonempty and os.listdir(place):
            raise MountpointError(
                f"mountpoint {place!r} is not empty: choose an empty directory, or hide what is there with -o nonempty"
            )
    except PermissionError:
        pass  # mount(2) or fusermount3 has the last word
    return Plan(home, place, options, f"mount {place}")


def refuse_nesting(home: str, place: str, what: str = "the volume") -> None:
    """Refuse a mount that would hide what it needs, or be hidden in it.

    Raises:
        UsageError: One path is inside the other.
    """
    home = os.path.realpath(home)
    if home == place or home.startswith(place.rstrip("/") + "/"):
        raise UsageError(f"{what} {home!r} lies inside the mountpoint {place!r}: the mount would hide it")
    if place.startswith(home.rstrip("/") + "/"):
        raise UsageError(f"the mountpoint {place!r} lies inside {what} {home!r}")


def is_dead(place: str) -> bool:
    """Tell whether a FUSE mount has lost its daemon. stat may answer from the cache; statvfs does not."""
    try:
        os.statvfs(place)
    except OSError as exc:
        return exc.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    return False
