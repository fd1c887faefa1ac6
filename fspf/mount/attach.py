"""Get a connection to the kernel for one mount: mount(2) where we may, otherwise fusermount3.

What is asked for is `options`; serving the connection is left to `session`.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import subprocess
from typing import TYPE_CHECKING, Final

from fspf.core.errors import FspfError
from fspf.mount.system import (
    FSTYPE,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_POSIXACL,
    MS_RDONLY,
    MS_SYNCHRONOUS,
    has_capability,
    mount,
)

if TYPE_CHECKING:
    from fspf.mount.place import Plan

DEVICE: Final = "/dev/fuse"
FUSERMOUNT: Final = "fusermount3"
_CAP_SYS_ADMIN: Final = 21
_SELINUX: Final = "/sys/fs/selinux/enforce"


class AttachError(FspfError):
    """The kernel, or fusermount3 for it, did not make the mount."""


def attach(plan: Plan, *, read_only: bool) -> int:
    """Mount, and return the descriptor on which the kernel asks. Requests wait until somebody answers there.

    Raises:
        AttachError: It was refused; the message has the reason and what helps.
    """
    refused: AttachError | None = None
    if os.geteuid() == 0 or has_capability(_CAP_SYS_ADMIN):
        try:
            return _mount(plan, read_only=read_only)
        except AttachError as exc:
            if not isinstance(exc.__cause__, PermissionError):
                raise
            refused = exc  # root of a container without CAP_SYS_ADMIN: its fusermount3 may have it
    try:
        return _fusermount(plan, read_only=read_only)
    except AttachError as exc:
        if refused is None:
            raise
        raise AttachError(f"{refused}; {exc}") from exc


def _mount(plan: Plan, *, read_only: bool) -> int:
    """mount(2), which can ask for what fusermount3 cannot."""
    options = plan.options
    _check_context(options.context)
    flags = MS_POSIXACL
    for wanted, flag in (
        (read_only, MS_RDONLY),
        (not options.suid, MS_NOSUID),
        (not options.dev, MS_NODEV),
        (not options.exec, MS_NOEXEC),
        (options.sync, MS_SYNCHRONOUS),
        (not options.atime, MS_NOATIME),
        (not options.diratime, MS_NODIRATIME),
    ):
        flags |= flag if wanted else 0
    try:
        descriptor = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise AttachError(f"{DEVICE} cannot be opened: {exc.strerror}: {_device_hint(exc.errno)}") from exc
    words = [
        f"fd={descriptor}",
        f"rootmode={stat.S_IFDIR:o}",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        "default_permissions",
    ]
    if options.allow_other:
        words.append("allow_other")
    if options.context:
        words.append(f'context="{options.context}"')
    try:
        mount(plan.source, plan.mountpoint, FSTYPE, flags, ",".join(words))
    except OSError as exc:
        os.close(descriptor)
        hint = ": mounting needs CAP_SYS_ADMIN in this namespace" if exc.errno == errno.EPERM else ""
        raise AttachError(f"the kernel does not mount on {plan.mountpoint!r}: {exc.strerror}{hint}") from exc
    return descriptor


def _check_context(context: str) -> None:
    """Refuse a label that the kernel would not understand, before it says no more than "invalid argument"."""
    if context and not os.path.exists(_SELINUX):
        raise AttachError(
            f"mount option context={context}: SELinux is off on this machine ({_SELINUX} is not there): mount without it"
        )


def _device_hint(number: int | None) -> str:
    if number in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        return "load the module (modprobe fuse), or give the container the device (--device /dev/fuse)"
    if number == errno.EPERM:  # the device cgroup, not the mode
        return "the container may not use the device: give it --device /dev/fuse"
    return "its mode must allow it (Debian: 0666)"


def _fusermount(plan: Plan, *, read_only: bool) -> int:
    """Let the set-user-id program of libfuse mount; its own words become the error."""
    _check_context(plan.options.context)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    words = _fusermount_words(plan, read_only=read_only)
    with ours:
        with theirs:
            try:
                process = subprocess.Popen(
                    [FUSERMOUNT, "-o", ",".join(words), "--", plan.mountpoint],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as exc:
                raise AttachError(
                    f"{FUSERMOUNT} cannot be run: {exc.strerror}: users other than root mount through it; "
                    "Debian package fuse3"
                ) from exc
        _, raw_stderr = process.communicate()
        lines = raw_stderr.decode(errors="replace").split("\n")
        text = "; ".join(line.removeprefix(f"{FUSERMOUNT}: ").strip() for line in lines if line.strip())
        descriptor = _receive(ours)
        if descriptor is None:
            reason = text or f"exit code {process.returncode} and no message"
            raise AttachError(f"{FUSERMOUNT} did not mount on {plan.mountpoint!r}: {reason}{_fusermount_hint(text)}")
        return descriptor


def _receive(channel: socket.socket) -> int | None:
    """Take the descriptor that fusermount3 sent before it ended."""
    number = array.array("i")
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(number.itemsize), socket.MSG_DONTWAIT)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            number.frombytes(data[: number.itemsize])
            os.set_inheritable(number[0], False)
            return number[0]
    return None


def _fusermount_hint(text: str) -> str:
    if "user_allow_other" in text:
        return ": root adds the line user_allow_other there, or mount without -o allow_other"
    if DEVICE in text:
        return f": {_device_hint(errno.ENOENT if 'No such' in text or 'not found' in text else errno.EACCES)}"
    if "no write access" in text or "not owned" in text:
        return ": the mountpoint must belong to you"
    return ""


def _fusermount_words(plan: Plan, *, read_only: bool) -> list[str]:
    options = plan.options
    source = "".join(c if c.isascii() and c.isprintable() and c not in ",\\" else "_" for c in plan.source)
    words = ["default_permissions", f"fsname={source}", "subtype=fspf", "nosuid", "nodev"]
    for wanted, word in (
        (read_only, "ro"),
        (options.allow_other, "allow_other"),
        (not options.exec, "noexec"),
        (options.sync, "sync"),
        (not options.atime, "noatime"),
        (bool(options.context), f"context={options.context}"),
    ):
        if wanted:
            words.append(word)
    return words
