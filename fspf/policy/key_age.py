"""Which volume keys are too old for their policy.

When a key was made is known to whoever keeps it; changing it is left to `fspf rekey`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fspf.policy.model import Policy


class KeyAge(NamedTuple):
    """One volume key, and how its age stands to the policy's `max_age`."""

    volume: str  # by its name in the policy
    age_s: int
    max_age_s: int

    @property
    def due(self) -> bool:
        """Whether the key is to be replaced."""
        return self.age_s >= self.max_age_s

    @property
    def due_in_s(self) -> int:
        """Seconds until then; negative: it is over."""
        return self.max_age_s - self.age_s


def key_ages(policy: Policy, made_ns: Mapping[str, int], *, now_ns: int) -> list[KeyAge]:
    """Tell how old the keys are of those of a policy's own volumes that have a `max_age`, the most overdue first.

    Args:
        policy: The version in force.
        made_ns: When each volume's key was made or last replaced, UTC ns since 1970, by the volume's name. A volume
            that is not in it has no key yet.
        now_ns: UTC ns since 1970. A key that seems to be made later than now has age 0.
    """
    ages = [
        KeyAge(volume.name, max(0, now_ns - made_ns[volume.name]) // 1_000_000_000, volume.max_age_s)
        for volume in policy.volumes
        if volume.max_age_s is not None and volume.import_from is None and volume.name in made_ns
    ]
    return sorted(ages, key=lambda age: (age.due_in_s, age.volume))
