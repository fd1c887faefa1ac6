"""Decide which root record is the state to open, and what freshness mode a volume has.

Reading the records and asking the CAS is left to `fspf.volume`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from fspf.core.errors import FreshnessError, IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fspf.core.anchor import Anchor

_BOUNDED: Final = re.compile(r"bounded:([1-9][0-9]{0,8})ms(?:,([1-9][0-9]{0,8}))?", re.ASCII)


class State(Protocol):
    """A state of a volume: a root record, or a record of the intent log."""

    @property
    def generation(self) -> int: ...
    @property
    def tag(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...


S = TypeVar("S", bound=State)


class FreshnessMode(StrEnum):
    """How far a durable commit may be ahead of the CAS."""

    STRICT = "strict"  # fsync returns after the CAS acknowledged
    BOUNDED = "bounded"  # fsync returns when durable; the CAS lags at most so much
    NONE = "none"  # the CAS is not waited for, and an older state is not refused


@dataclass(frozen=True, slots=True)
class Freshness:
    """Freshness mode of one volume."""

    mode: FreshnessMode
    max_ms: int = 0  # bounded: longest lag of the CAS
    max_commits: int = 0  # bounded: most commits ahead of the CAS; 0 = no limit

    def __post_init__(self) -> None:
        """Refuse numbers that the mode does not have."""
        if (
            (self.mode is FreshnessMode.BOUNDED) != (self.max_ms > 0)
            or self.max_commits < 0
            or (self.max_commits and not self.max_ms)
        ):
            message = f"freshness {self.mode}: limits are for bounded only, and bounded needs a time above 0 ms"
            raise UsageError(message)

    @classmethod
    def strict(cls) -> Freshness:
        """Wait for the CAS at every fsync: the default."""
        return cls(FreshnessMode.STRICT)

    @classmethod
    def bounded(cls, max_ms: int, max_commits: int = 0) -> Freshness:
        """Let the CAS lag, but not further than this."""
        return cls(FreshnessMode.BOUNDED, max_ms, max_commits)

    @classmethod
    def none(cls) -> Freshness:
        """Give up protection against older states."""
        return cls(FreshnessMode.NONE)

    @classmethod
    def parse(cls, text: str) -> Freshness:
        """Read what `str()` writes: ``strict``, ``none``, ``bounded:500ms``, ``bounded:500ms,64``.

        Raises:
            UsageError: It is none of these.
        """
        if text == FreshnessMode.STRICT:
            return cls.strict()
        if text == FreshnessMode.NONE:
            return cls.none()
        if found := _BOUNDED.fullmatch(text):
            return cls.bounded(int(found[1]), int(found[2] or 0))
        message = (
            f"freshness is strict, none, bounded:500ms or bounded:500ms,64 (milliseconds and commits), not {text!r}"
        )
        raise UsageError(message)

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        if self.mode is not FreshnessMode.BOUNDED:
            return str(self.mode)
        return f"bounded:{self.max_ms}ms" + (f",{self.max_commits}" if self.max_commits else "")


def choose_root(claimed: Sequence[S], anchor: Anchor, last_epoch: int, freshness: Freshness | None = None) -> S:
    """Pick the state to open, newest first.

    Args:
        claimed: Records whose seal opened; authentic, but perhaps old.
        anchor: What the CAS holds now: the only witness of freshness.
        last_epoch: Epoch of the last lease granted for writing.
        freshness: The volume's mode; strict if not given.

    Raises:
        IntegrityError: There is no record at all.
        FreshnessError: Every record is older than *anchor*, or forks from it, or one shows that the CAS is older.
    """
    by_age = sorted(claimed, key=attrgetter("generation"), reverse=True)
    if not by_age:
        message = f"no root record can be read, generation {anchor.generation} is anchored: restore root.a and root.b from the newest copy"
        raise IntegrityError(message)
    unprotected = freshness is not None and freshness.mode is FreshnessMode.NONE
    from_the_future = [record for record in by_age if record.epoch > last_epoch]
    if from_the_future and not unprotected:
        # Only a lease makes an epoch, so this CAS has forgotten one: what it anchors may be old, whatever is beside it.
        raise _refusal(from_the_future[0], anchor, last_epoch)
    for record in by_age:
        if record.generation == anchor.generation and record.tag == anchor.root_tag:
            return record
        # One epoch is one writer with one linear history: a higher generation of the last epoch can only be a
        # later commit that had not reached the CAS when its writer died.
        if record.epoch == last_epoch and record.generation > anchor.generation:
            return record
        if unprotected and record.epoch <= last_epoch:
            return record
    raise _refusal(by_age[0], anchor, last_epoch)


def _refusal(newest: State, anchor: Anchor, last_epoch: int) -> FreshnessError:
    """Say in which way *newest* is not the anchored state."""
    expected, found = anchor.generation, newest.generation
    if newest.epoch > last_epoch:
        text = (
            f"generation {found} was written in epoch {newest.epoch}, the CAS has granted none above {last_epoch} "
            f"and anchors generation {expected}: the CAS itself is older than the volume, or is not the one that was used"
        )
    elif found < expected:
        text = f"older state: generation {expected} is anchored, the newest found is {found}: use the newest copy of the volume"
    elif found == expected:
        text = (
            f"fork: generation {expected} is anchored with root tag {anchor.root_tag.hex()}, "
            f"generation {found} was found with {newest.tag.hex()}: a copy was written to elsewhere"
        )
    else:
        text = (
            f"fork: generation {expected} is anchored, generation {found} was written in epoch {newest.epoch} "
            f"after its lease had ended (last granted: {last_epoch}): a stale writer or a copy"
        )
    return FreshnessError(text, expected_generation=expected, found_generation=found)
