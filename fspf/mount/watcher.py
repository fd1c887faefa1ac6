"""A small process that takes a mount away when its daemon has died: the mount option auto_unmount.

It is forked before the daemon knows any key. Whether it is wanted, `options` says; the orderly end is `session`'s.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Self

from fspf.mount.system import mount_at, unmount


class Watcher:
    """The daemon's end of it."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    @classmethod
    def start(cls, mountpoint: str) -> Self:
        """Fork it. No thread may run yet."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        if os.fork() == 0:
            with suppress(BaseException):
                _watch(reader, mountpoint)
            os._exit(0)
        os.close(reader)
        return cls(writer)

    def arm(self, mountpoint: str) -> None:
        """The mount is live: remember which one it is."""
        entry = mount_at(mountpoint)
        if entry is not None:
            os.write(self._writer, entry.device.encode() + b"\n")

    def close(self) -> None:
        """Let it go; it looks once whether there is anything to take away."""
        os.close(self._writer)


def _watch(reader: int, mountpoint: str) -> None:
    os.setsid()
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in {0, 1, 2, reader}:
            with suppress(OSError):
                os.close(int(name))
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as file:
        file.write("fspf-watcher")
    told = b""
    while part := os.read(reader, 4096):  # its end is the daemon's end, however that came
        told += part
    device = told.decode().strip()
    entry = mount_at(mountpoint)
    if device and entry is not None and entry.device == device:
        unmount(mountpoint, lazy=True)
