"""What a mount does by itself beside serving requests; and what it tells systemd.

What may be asked of a mount is `control`.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

import trio

from fspf.mount.system import notify_systemd

if TYPE_CHECKING:
    from fspf.mount.control import Control
    from fspf.mount.place import Plan

log = logging.getLogger(__name__)

_TICK_S: Final = 1.0
_EXTEND_EVERY_S: Final = 5.0
_EXTEND_BY_S: Final = 60.0


class Upkeep:
    """The clockwork of one mount."""

    def __init__(self, plan: Plan, control: Control) -> None:
        self._plan = plan
        self._control = control
        self._ended = threading.Event()

    async def run(self) -> None:
        """Keep ticking until cancelled. Starts when the mount answers."""
        await trio.sleep_forever()

    def begin_end(self) -> None:
        """The mount has ended and the last commit begins: keep systemd patient until `end`."""
        threading.Thread(target=self._extend, name="fspf-systemd", daemon=True).start()

    def _extend(self) -> None:
        while True:
            notify_systemd(
                f"EXTEND_TIMEOUT_USEC={int(_EXTEND_BY_S * 1e6)}\nSTATUS=waiting until the last commit of "
                f"{self._plan.volume} is anchored"
            )
            if self._ended.wait(_EXTEND_EVERY_S):
                return

    def end(self) -> None:
        """Everything is over."""
        self._ended.set()
