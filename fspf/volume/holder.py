"""Describe this process as the holder of a lease.

Whether a holder is still alive is for the CAS to judge.
"""

from __future__ import annotations

import os
from pathlib import Path

from fspf.core.anchor import Holder


def this_process(label: str) -> Holder:
    """Return who we are: host, boot, process and its start, so that the CAS can see when we are gone.

    Each call is another opening: when the answer of the CAS was lost, the lease tells whether it is the one asked for.
    """
    stat = Path("/proc/self/stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()  # after the command's name, which may hold anything
    return Holder(
        host=os.uname().nodename,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        pid=os.getpid(),
        pid_start=int(fields[19]),  # proc(5): field 22 of all, in clock ticks since boot
        pid_namespace=Path("/proc/self/ns/pid").stat().st_ino,
        label=label,
        opening=int.from_bytes(os.urandom(6), "little"),
    )
