"""See whether the process that holds a lease is gone, where this machine can tell.

What follows from it is decided in `fspf.cas.rules`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fspf.core.anchor import Holder

_START_TIME: Final = 22 - 3  # field 22 of /proc/PID/stat, counted from the state, which is field 3
_DEAD_STATES: Final = frozenset({b"Z", b"X", b"x"})


def holder_is_gone(holder: Holder, *, proc: str = "/proc", host: str | None = None) -> bool:
    """Tell whether *holder* certainly no longer runs; False if that cannot be seen from here.

    Args:
        holder: Who was granted a lease.
        proc: Where procfs is mounted.
        host: Name of this machine; asked of the kernel if not given.
    """
    try:
        with open(f"{proc}/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot_id = file.read().strip()
        pid_namespace = os.stat(f"{proc}/self/ns/pid").st_ino
    except (OSError, ValueError):
        return False
    if boot_id != holder.boot_id:
        # Another boot of this machine ended every process of the one before. Of other machines nothing is known.
        return holder.host == (os.uname().nodename if host is None else host)
    if pid_namespace != holder.pid_namespace:
        return False
    try:
        with open(f"{proc}/{holder.pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    fields = stat[stat.rfind(b")") + 2 :].split()  # the name in field 2 may hold blanks and parentheses
    if len(fields) <= _START_TIME:
        return False
    return fields[0] in _DEAD_STATES or fields[_START_TIME] != str(holder.pid_start).encode()
