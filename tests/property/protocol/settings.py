"""The worlds in which the protocol is tried: each has what one kind of mistake needs to show.

What may happen in one is said by `world.Setting`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fspf.core.freshness import Freshness
from tests.property.protocol.world import Setting

_BOUNDED: Final = Freshness.bounded(500, 2)
_NONE: Final = Freshness.none()

SETTINGS: Final = {
    # Three hosts, each shown its own copy of the volume; two CAS processes over one store.
    "strict": Setting(clients=3, places=3, processes=2),
    "bounded": Setting(clients=3, places=3, processes=2, freshness=_BOUNDED),
    "none": Setting(clients=2, places=2, processes=2, freshness=_NONE),
    # One disk that nobody tampers with.
    "shared": Setting(clients=2, places=1, processes=2, disk=0),
    "alone": Setting(clients=1, places=1, processes=2, disk=0),
    "alone, bounded": Setting(clients=1, places=1, processes=2, disk=0, freshness=_BOUNDED),
    "alone, none": Setting(clients=1, places=1, processes=2, disk=0, freshness=_NONE),
    # The store is copied, and put back while the CAS is down.
    "rollback": Setting(clients=2, places=2, processes=1, sqlite=True),
    "rollback, bounded": Setting(clients=2, places=2, processes=1, sqlite=True, freshness=_BOUNDED),
    # The owner changes the mode while others write.
    "modes": Setting(clients=2, places=2, processes=2, modes_change=True),
    # A board lets older states in, with statements that are used late and more than once.
    "restore": Setting(clients=2, places=2, processes=2, restores=True),
    "restore, bounded": Setting(clients=2, places=2, processes=2, restores=True, freshness=_BOUNDED),
    # One process opens two copies of one volume.
    "one process": Setting(clients=2, places=2, processes=2, one_process=True),
}

# Small enough to go all ways. What is left out makes nothing new: a message that is lost is one that is not delivered.
_SMALL: Final = Setting(
    atomic=True, duplicates=0, jumps=0, store=0, reads=0, logs=False, renewals=False, closes=False, timeouts=1, expiries=1, commits=2
)  # fmt: skip
EXPLORED: Final = {
    "two writers": replace(_SMALL, kills=0, disk=0, openings=2),
    "two copies": replace(_SMALL, kills=1, disk=1, openings=3),
}
