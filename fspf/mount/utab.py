"""Tell umount(8) that a helper of ours unmounts this mount, so that a plain `umount` waits for the last commit.

umount(8) does not look for a helper by itself when it is given an absolute path: of a FUSE mount it sees no more than "fuse". But it
reads the options that mount(8) keeps in /run/mount/utab, and there ``uhelper=fspf`` names /sbin/umount.fspf, which `fspf setup` installs.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from fspf.mount.system import mount_at

if TYPE_CHECKING:
    from collections.abc import Iterator

UTAB: Final = "/run/mount/utab"
_LOCK: Final = "/run/mount/utab.lock"
_HELPER: Final = "/sbin/umount.fspf"
_PATIENCE_S: Final = 1.0  # mount(8) may hold the lock until we are live
_ESCAPED: Final = b" \t\n\\"


def register(source: str, mountpoint: str) -> bool:
    """Add a line for the mount; False if that is not possible, or there is no helper."""
    if os.geteuid() != 0 or not os.path.exists(_HELPER):
        return False
    line = _line(source, mountpoint)
    with suppress(OSError), _locked() as locked:
        if locked:
            _write([*(each for each in _read() if each != line), line])
            return True
    return False


def unregister(source: str, mountpoint: str) -> None:
    """Remove the line, unless something is mounted there again."""
    if os.geteuid() != 0 or not os.path.exists(UTAB):
        return
    ours = _line(source, mountpoint)
    with suppress(OSError), _locked() as locked:
        if locked and mount_at(mountpoint) is None:
            before = _read()
            after = [line for line in before if line != ours]
            if after != before:
                _write(after)


def _line(source: str, mountpoint: str) -> bytes:
    return b"SRC=%s TARGET=%s ROOT=/ OPTS=uhelper=fspf\n" % (_mangle(source), _mangle(mountpoint))


def _mangle(text: str) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in _ESCAPED else bytes([byte]) for byte in os.fsencode(text))


@contextmanager
def _locked() -> Iterator[bool]:
    descriptor = os.open(_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    yield False
                    return
                time.sleep(0.02)
            else:
                yield True
                return
    finally:
        os.close(descriptor)


def _read() -> list[bytes]:
    try:
        with open(UTAB, "rb") as file:
            return file.readlines()
    except FileNotFoundError:
        return []


def _write(lines: list[bytes]) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix="utab.", dir=os.path.dirname(UTAB))
    with open(descriptor, "wb") as file:
        file.writelines(lines)
        os.fchmod(file.fileno(), 0o644)
    os.replace(temporary, UTAB)
