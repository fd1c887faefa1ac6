"""System calls and files of Linux that the standard library does not offer: mounting, process hardening, mountinfo.

When to use them is left to the callers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import socket
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_NOATIME: Final = 1 << 10
MS_NODIRATIME: Final = 1 << 11
MS_POSIXACL: Final = 1 << 16  # FUSE then leaves the umask to us, which default ACLs need
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
CLONE_NEWNS: Final = 0x20000
PR_SET_DUMPABLE: Final = 4
PR_SET_IO_FLUSHER: Final = 57
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IMMUTABLE_FL: Final = 0x10
FSTYPE: Final = "fuse.fspf"
_OOM_SCORE_ADJ: Final = -500  # losing the daemon loses what others have not synced; ordinary programs go first

_libc = ctypes.CDLL(None, use_errno=True)  # releases the GIL around each call
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.syncfs.argtypes = [ctypes.c_int]


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        if path is None:
            raise OSError(number, os.strerror(number))
        raise OSError(number, os.strerror(number), path)


# -- mounting


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """Put a file system into the tree."""
    words = [os.fsencode(text) for text in (source, target, fstype, data)]
    _check(_libc.mount(words[0], words[1], words[2], flags, words[3]), target)


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmount as root by umount2(2), otherwise through fusermount3.

    Raises:
        OSError: EBUSY: somebody uses it; EINVAL: nothing is mounted there.
    """
    if os.geteuid() == 0:
        _check(_libc.umount2(os.fsencode(target), UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)), target)
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", target]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        number = errno.EBUSY if "busy" in text else errno.EPERM
        raise OSError(number, text or os.strerror(number), target)


def enter_mount_namespace(path: str) -> None:
    """Let this process, which must have one thread, see the mounts of another namespace (setns)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(descriptor, CLONE_NEWNS), path)
    finally:
        os.close(descriptor)


def sync_filesystem(path: str) -> None:
    """syncfs(2): the kernel hands all dirty pages of the file system at *path* to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(descriptor), path)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    device: str  # "major:minor"
    path: str
    fstype: str
    source: str
    flags: tuple[str, ...] = ()  # of this mount: ro, nosuid, …
    options: tuple[str, ...] = ()  # of the file system

    @property
    def owner(self) -> tuple[int, int]:
        """User and group id of whoever mounted a FUSE file system."""
        values = dict(word.partition("=")[::2] for word in self.options)
        return int(values.get("user_id", "0")), int(values.get("group_id", "0"))


def _unescape(text: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text))


def mounts() -> Iterator[MountEntry]:
    """Return what is mounted, the newest last."""
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            fields, kind = before.split(b" "), after.split(b" ")
            flags, options = (
                tuple(_unescape(text).split(",")) for text in (fields[5], kind[2] if len(kind) > 2 else b"")
            )
            yield MountEntry(
                fields[2].decode(), _unescape(fields[4]), kind[0].decode(), _unescape(kind[1]), flags, options
            )


def mount_at(path: str) -> MountEntry | None:
    """Return what is mounted exactly at *path* (the topmost), without touching it."""
    found = None
    for entry in mounts():
        if entry.path == path:
            found = entry
    return found


def set_read_ahead(device: str, kib: int) -> bool:
    """Raise the read-ahead of a mounted file system, where we may."""
    try:
        with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(kib))
    except OSError:
        return False
    return True


def raise_dirty_limit(device: str, percent: int) -> bool:
    """Let a mounted file system have more dirty pages than the hundredth of all that FUSE begins with, where we may.

    The kernel holds FUSE to that, and slows its writers down long before, so that a daemon that hangs harms nobody else.
    """
    try:
        for name, value in (("strict_limit", 0), ("max_ratio", percent)):
            with open(f"/sys/class/bdi/{device}/{name}", "w", encoding="ascii") as file:
                file.write(str(value))
    except OSError:
        return False
    return True


def make_immutable(path: str) -> None:
    """Set the immutable attribute of a directory, as ``chattr +i`` does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        raw = fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, struct.pack("l", 0))
        flags = struct.unpack_from("i", raw)[0]
        fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("l", flags | FS_IMMUTABLE_FL))
    finally:
        os.close(descriptor)


# -- processes


def users_of(mountpoint: str) -> list[tuple[int, str, str]]:
    """Return who uses a mount: (process id, command, how), as far as we may look."""
    prefix = mountpoint.rstrip("/") + "/"
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        how = _use_of(f"/proc/{name}", mountpoint, prefix)
        if how is not None:
            with suppress(OSError), open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                found.append((int(name), file.read().strip(), how))
    return sorted(found)


def _use_of(process: str, mountpoint: str, prefix: str) -> str | None:
    def inside(link: str) -> str | None:
        try:
            target = os.readlink(link)
        except OSError:
            return None
        return target if target == mountpoint or target.startswith(prefix) else None

    for link, how in (("cwd", "works in"), ("root", "is rooted in"), ("exe", "runs")):
        if (target := inside(f"{process}/{link}")) is not None:
            return f"{how} {target}"
    with suppress(OSError):
        for number in os.listdir(f"{process}/fd"):
            if (target := inside(f"{process}/fd/{number}")) is not None:
                return f"has {target} open"
    with suppress(OSError), open(f"{process}/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            position = line.find("/")
            if position >= 0 and line[position:].startswith(prefix):
                return f"has {line[position:].rstrip()} mapped"
    return None


def start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    return int(text[text.rindex(b")") + 2 :].split()[19])


def resident_bytes() -> int:
    """Return how much memory this process has."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def has_capability(number: int) -> bool:
    """Tell whether this process has a capability in effect."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False


def forbid_core_dumps() -> None:
    """Keep our memory out of core dumps and of processes of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))


def harden() -> None:
    """Keep our memory out of core dumps and other processes; be among the last that memory pressure ends."""
    forbid_core_dumps()
    _libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)  # may be refused; then memory reclaim can wait for us, which is rare
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_OOM_SCORE_ADJ))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def notify_systemd(state: str) -> None:
    """Tell systemd our *state* (``READY=1``) if it asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.sendto(state.encode(), address)
