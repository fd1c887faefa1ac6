"""Whether the kernel offers FUSE over io_uring, and letting it do so for a mount of root's.

Using the offer is `fspf_native/uring.c`; what it gains, docs/adr/0008-uring.md.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_URING_PARAMETER: Final = "/sys/module/fuse/parameters/enable_uring"
_URING_LOCK: Final = "/run/fspf-uring.lock"


@contextmanager
def uring_offered() -> Iterator[None]:
    """Let the kernel offer FUSE over io_uring to a mount that is made inside; root only, otherwise nothing happens.

    The kernel looks at its parameter when a mount begins. It is set back at the end, so that nobody else's mounts change.
    """
    with ExitStack() as stack:
        try:
            with open(_URING_PARAMETER, encoding="ascii") as parameter:
                offered = parameter.read().strip() == "Y"
            if not offered:
                descriptor = os.open(_URING_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _write(_URING_PARAMETER, "Y")
                stack.callback(_write, _URING_PARAMETER, "N")
        except OSError as exc:  # an older kernel, or not root: /dev/fuse will do
            log.debug("FUSE over io_uring is not offered: %s", exc)
        yield


def _write(path: str, text: str) -> None:
    with suppress(OSError), open(path, "w", encoding="ascii") as file:
        file.write(text)
