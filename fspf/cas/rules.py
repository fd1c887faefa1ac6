"""What a CAS grants and refuses: leases, anchors, keys, imports, as functions from values to values.

Storing the result in one transaction, the time and looking at processes are left to the store that asks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from fspf.core.anchor import NEVER_WRITTEN, Anchor, Lease
from fspf.core.errors import (
    AnchorMovedError,
    CasError,
    ConflictError,
    FreshnessError,
    LeaseHeldError,
    LeaseLostError,
    VolumeExistsError,
)
from fspf.core.freshness import Freshness, FreshnessMode
from fspf.core.types import MAX_EPOCH, NO_TAG, TAG_LEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.core.anchor import Holder

LEASE_TTL_NS: Final = 60_000_000_000  # a writer that was not heard of for so long may be replaced


@dataclass(frozen=True, slots=True)
class State:
    """The part of a volume's record that moves: all but its id, name and key."""

    freshness: Freshness
    anchor: Anchor = NEVER_WRITTEN
    epoch: int = 0  # last granted; only ever grows
    lease: Lease | None = None
    key_version: int = 1


def _checked_anchor(anchor: Anchor) -> Anchor:
    """Refuse a value that is no anchor, whoever sent it."""
    if anchor.generation < 0 or len(anchor.root_tag) != TAG_LEN:
        raise CasError(f"not an anchor: generation {anchor.generation}, tag of {len(anchor.root_tag)} bytes")
    if (anchor.generation == 0) != (anchor.root_tag == NO_TAG):
        raise CasError(f"not an anchor: generation {anchor.generation} with root tag {anchor.root_tag.hex()}")
    return anchor


def is_live(lease: Lease | None, *, now_ns: int, is_gone: Callable[[Holder], bool]) -> bool:
    """Tell whether *lease* keeps others out: it has not expired, and its holder is not known to be gone."""
    return lease is not None and now_ns < lease.expires_ns and not is_gone(lease.holder)


def acquire(
    state: State,
    *,
    expected: Anchor,
    expected_epoch: int,
    adopt: Anchor,
    holder: Holder,
    now_ns: int,
    is_gone: Callable[[Holder], bool],
) -> State:
    """Grant the right to write under the next epoch, and make *adopt* the anchor.

    Args:
        state: What is stored.
        expected: Anchor that the caller fetched.
        expected_epoch: Last granted epoch that the caller fetched.
        adopt: State that the caller chose to open.
        holder: Who will write.
        now_ns: The CAS's clock, UTC.
        is_gone: Whether a holder is known to be gone; False where that cannot be seen.

    Raises:
        LeaseHeldError: A live lease is somebody's. Asked first: it says most to a person.
        AnchorMovedError: Anchor or epoch are not as expected.
        CasError: *adopt* is older than the anchor though the volume is protected, or epochs are used up.
    """
    _checked_anchor(adopt)
    if state.lease is not None and is_live(state.lease, now_ns=now_ns, is_gone=is_gone):
        seconds = max(1, -(-(state.lease.expires_ns - now_ns) // 1_000_000_000))
        raise LeaseHeldError(
            state.lease.holder,
            f"the volume is open for writing by {state.lease.holder}, whose lease ends in {seconds} s "
            "unless it is renewed: close it there, or open read-only",
        )
    if state.anchor != expected or state.epoch != expected_epoch:
        raise AnchorMovedError(
            expected,
            state.anchor,
            f"the CAS has {state.anchor}, epoch {state.epoch}; {expected}, epoch {expected_epoch} was expected: "
            "another writer was faster; open the volume again",
        )
    unprotected = state.freshness.mode is FreshnessMode.NONE
    if adopt != expected and adopt.generation <= expected.generation and not unprotected:
        raise CasError(f"the anchor does not go from {expected} to {adopt}: only a later commit can be adopted")
    if state.epoch >= MAX_EPOCH:
        raise CasError(f"all {MAX_EPOCH} epochs of this volume are used up: copy its content into a new volume")
    epoch = state.epoch + 1
    return replace(state, anchor=adopt, epoch=epoch, lease=Lease(epoch, holder, now_ns + LEASE_TTL_NS))


def _held(state: State, lease: Lease) -> Lease:
    """Return the stored lease if it is *lease*, however old.

    An expired lease that nobody else took is still the last one granted: its writer is the only one, so it goes on.
    """
    stored = state.lease
    if stored is None or stored.epoch != lease.epoch or stored.holder != lease.holder:
        now = f"now {stored.holder} writes in epoch {stored.epoch}" if stored else "it was released"
        if stored is None and state.epoch != lease.epoch:
            now = f"epoch {state.epoch} was granted since"
        raise LeaseLostError(f"the lease of epoch {lease.epoch} ({lease.holder}) is no longer held: {now}")
    return stored


def renew(state: State, lease: Lease, *, now_ns: int) -> State:
    """Prolong *lease*.

    Raises:
        LeaseLostError: It is not the one that is held.
    """
    return replace(state, lease=replace(_held(state, lease), expires_ns=now_ns + LEASE_TTL_NS))


def advance(state: State, lease: Lease, expected: Anchor, new: Anchor, *, now_ns: int) -> State:
    """Move the anchor from *expected* to *new* under *lease*, and prolong the lease.

    Raises:
        LeaseLostError: *lease* is not the one that is held.
        AnchorMovedError: The anchor is not *expected*.
        CasError: *new* is not of a higher generation.
    """
    _checked_anchor(new)
    renewed = renew(state, lease, now_ns=now_ns)
    if state.anchor != expected:
        raise AnchorMovedError(expected, state.anchor)
    if new.generation <= expected.generation:
        raise CasError(f"the anchor does not go from {expected} to {new}: generations only grow")
    return replace(renewed, anchor=new)


def release(state: State, lease: Lease) -> State:
    """End *lease*; the same object comes back if it is not the one that is held."""
    if state.lease is None or state.lease.epoch != lease.epoch or state.lease.holder != lease.holder:
        return state
    return replace(state, lease=None)


def rekey(state: State, lease: Lease, expected: Anchor, new: Anchor, *, now_ns: int) -> State:
    """Move the anchor as `advance` does and count the key's version up; the store replaces the key.

    Raises:
        LeaseLostError: *lease* is not the one that is held.
        AnchorMovedError: The anchor is not *expected*.
        CasError: *new* is not of a higher generation.
    """
    advanced = advance(state, lease, expected, new, now_ns=now_ns)
    return replace(advanced, key_version=state.key_version + 1)


def set_freshness(state: State, freshness: Freshness) -> State:
    """Change the mode; a writer that has the volume open keeps the old one until it opens it again."""
    return replace(state, freshness=freshness)


def restore(state: State, old: Anchor, epoch: int, *, now_ns: int, is_gone: Callable[[Holder], bool]) -> State:
    """Make an older state the newest again, by a statement that those agreed to who may replace the volume's policy.

    The statement's epoch is used up here: no commit of the epochs before can be adopted any more, no writer of theirs goes
    on, and the statement has its effect once.

    Args:
        state: What is stored.
        old: The state that the statement names.
        epoch: The epoch that it names: the one after the last.
        now_ns: The CAS's clock, UTC.
        is_gone: As for `acquire`.

    Raises:
        LeaseHeldError: The volume is open for writing.
        ConflictError: The epoch is not the next one: the statement was made for another time, or has had its effect.
        CasError: *old* is not older than the anchor, or epochs are used up.
    """
    _checked_anchor(old)
    if state.lease is not None and is_live(state.lease, now_ns=now_ns, is_gone=is_gone):
        raise LeaseHeldError(state.lease.holder)
    if epoch != state.epoch + 1:
        raise ConflictError(f"the statement is for epoch {epoch}, the next one of this volume is {state.epoch + 1}")
    if not 0 < old.generation < state.anchor.generation:
        raise CasError(f"only an older state is restored: {old} is not older than {state.anchor}")
    if epoch >= MAX_EPOCH:  # one has to be left for whoever goes on from there
        raise CasError(f"all {MAX_EPOCH} epochs of this volume are used up: copy its content into a new volume")
    return replace(state, anchor=old, epoch=epoch, lease=None)


def merge(
    existing: State | None,
    incoming: State,
    *,
    same_key: bool,
    override: bool,
    now_ns: int,
    is_gone: Callable[[Holder], bool],
) -> State:
    """Decide what an imported record makes of the one that is there.

    Args:
        existing: What is stored, None if nothing is.
        incoming: What the exported document says; its lease does not count.
        same_key: Whether both have the same volume key.
        override: The caller insists: the key may change and the anchor may go back. Epochs never do.
        now_ns: The CAS's clock, UTC.
        is_gone: As for `acquire`.

    Raises:
        LeaseHeldError: A live lease is somebody's.
        VolumeExistsError: The keys differ.
        FreshnessError: The import would move the anchor back, or to another history.
    """
    _checked_anchor(incoming.anchor)
    if not 0 <= incoming.epoch <= MAX_EPOCH:
        raise CasError(f"not a record: epoch {incoming.epoch} is not in 0 to {MAX_EPOCH}")
    if existing is None:
        return replace(incoming, lease=None)
    if not override:
        if existing.lease is not None and is_live(existing.lease, now_ns=now_ns, is_gone=is_gone):
            raise LeaseHeldError(existing.lease.holder)
        if not same_key:
            raise VolumeExistsError(
                "this CAS has the volume with another key: nothing was imported; use --replace only if the imported one is right"
            )
        here, there = existing.anchor, incoming.anchor
        if there != here and there.generation <= here.generation:
            raise FreshnessError(
                f"this CAS anchors {here}, the imported record says {there}: an import does not move an anchor back",
                expected_generation=here.generation,
                found_generation=there.generation,
            )
    # Epochs are fencing tokens: a number that was granted once is never granted again.
    epoch = max(existing.epoch, incoming.epoch)
    return replace(incoming, epoch=epoch, lease=None)
