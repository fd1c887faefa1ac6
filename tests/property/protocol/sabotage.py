"""Break the protocol on purpose, each time in one way, to see that the model notices.

Each is a context manager that patches the rules, the volume's code or the model's CAS in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest import mock

from fspf.cas import rules
from fspf.cas.rules import State
from fspf.core import freshness as freshness_module
from fspf.core.anchor import Anchor, Holder, Lease
from fspf.core.errors import CasUnreachableError, FspfError
from fspf.volume import opening as opening_module
from fspf.volume.commit import Commits
from tests.property.protocol import replay, world

Patch = AbstractContextManager[Any]


def _rule(name: str, instead: Callable[..., Any]) -> Patch:
    return mock.patch.object(rules, name, instead)


def advance_compares_nothing() -> Patch:
    def advance(state: State, lease: Lease, _expected: Anchor, new: Anchor, *, now_ns: int) -> State:
        return replace(rules.renew(state, lease, now_ns=now_ns), anchor=new)

    return _rule("advance", advance)


def advance_is_not_fenced() -> Patch:
    original = rules.advance

    def advance(state: State, lease: Lease, expected: Anchor, new: Anchor, *, now_ns: int) -> State:
        return original(state, state.lease or lease, expected, new, now_ns=now_ns)

    return _rule("advance", advance)


def epoch_is_used_again() -> Patch:
    original = rules.acquire

    def acquire(state: State, **given: Any) -> State:
        after = original(state, **given)
        assert after.lease is not None
        return replace(after, epoch=state.epoch, lease=replace(after.lease, epoch=state.epoch))

    return _rule("acquire", acquire)


def held_lease_is_given_away() -> Patch:
    return _rule("is_live", lambda *_given, **_named: False)


def acquire_compares_no_anchor() -> Patch:
    original = rules.acquire

    def acquire(state: State, *, expected: Anchor, expected_epoch: int, adopt: Anchor, **given: Any) -> State:
        del expected, expected_epoch
        after = original(state, expected=state.anchor, expected_epoch=state.epoch, adopt=state.anchor, **given)
        return replace(after, anchor=adopt)

    return _rule("acquire", acquire)


def renew_brings_a_lost_lease_back() -> Patch:
    def renew(state: State, lease: Lease, *, now_ns: int) -> State:
        return replace(state, lease=replace(lease, expires_ns=now_ns + rules.LEASE_TTL_NS))

    return _rule("renew", renew)


def release_ends_anybodys_lease() -> Patch:
    return _rule("release", lambda state, _lease: replace(state, lease=None))


def put_without_compare() -> Patch:
    return mock.patch.object(world.World, "compares", return_value=True)


def store_may_be_old() -> Patch:
    return mock.patch.object(world, "may_serve", return_value=True)


def answered_before_the_counter() -> Patch:
    return mock.patch.object(world.World, "count_outside")


def start_moves_on_by_one() -> Patch:
    return mock.patch.object(world, "first_answered", lambda kept, outside: max(kept.counter, outside + 1))


def statement_is_for_any_epoch() -> Patch:
    original = rules.restore

    def restore(state: State, old: Anchor, _epoch: int, **given: Any) -> State:
        return original(state, old, state.epoch + 1, **given)

    return _rule("restore", restore)


def statement_leaves_the_epoch() -> Patch:
    """Restore, and let what was written in the last epoch be adopted as before."""
    original = rules.restore

    def restore(state: State, old: Anchor, epoch: int, **given: Any) -> State:
        return replace(original(state, old, epoch, **given), epoch=state.epoch)

    return _rule("restore", restore)


def _choice(accepts: Callable[[Any, Anchor, int], bool]) -> Patch:
    original = freshness_module.choose_root

    def choose_root(claimed: Sequence[Any], anchor: Anchor, last_epoch: int, freshness: Any = None) -> Any:
        for record in sorted(claimed, key=lambda one: -int(one.generation)):
            if accepts(record, anchor, last_epoch):
                return record
        return original(claimed, anchor, last_epoch, freshness)

    return mock.patch.object(opening_module, "choose_root", choose_root)


def any_epoch_is_adopted() -> Patch:
    return _choice(lambda record, anchor, _epoch: record.generation > anchor.generation)


def tag_is_not_compared() -> Patch:
    return _choice(lambda record, anchor, _epoch: record.generation == anchor.generation)


def newest_of_the_epoch_is_enough() -> Patch:
    """Accept what is of the last epoch, also below the anchor."""
    return _choice(lambda record, _anchor, epoch: record.epoch == epoch)


def unknown_advance_is_success() -> Patch:
    return mock.patch.object(Commits, "_has_arrived", return_value=True)


def unknown_advance_is_failure() -> Patch:
    """Send it again without a look at what has arrived."""

    def advance(self: Commits, new: Anchor) -> None:
        while True:
            try:
                self._cas.advance(self._volume_id, self._lease, self.anchor, new)
                break
            except CasUnreachableError:
                continue
            except FspfError as exc:
                self._fail(exc)
                raise
        self.anchor = new

    return mock.patch.object(Commits, "_advance", advance)


def unknown_acquire_is_success() -> Patch:
    """Take a lease for one's own whoever has it: as if no two holders differed."""

    def differs(_self: Holder, _other: object) -> bool:
        return False

    return mock.patch.object(Holder, "__ne__", differs)


def openings_look_alike() -> Patch:
    def this_process(_label: str) -> Holder:
        return replay._current.run.holder

    return mock.patch.object(replay, "this_process", this_process)


def promise_comes_before_the_cas() -> Patch:
    return mock.patch.object(Commits, "_promise")


def closing_does_not_wait() -> Patch:
    return mock.patch.object(Commits, "_advance_last")


def root_is_written_over_the_logs_base() -> Patch:
    original = Commits._write_root

    def write_root(self: Commits, prepared: Any, *, log_follows: bool) -> Anchor:
        self._base_generation = 0
        return original(self, prepared, log_follows=log_follows)

    return mock.patch.object(Commits, "_write_root", write_root)


@dataclass(frozen=True, slots=True)
class Sabotage:
    """A way to break it, the world that shows it and what is said then."""

    apply: Callable[[], Patch]
    setting: str
    says: str  # part of what the model says


SABOTAGES: Final = (
    Sabotage(advance_compares_nothing, "alone", "which is not made of it"),
    Sabotage(advance_is_not_fenced, "strict", "a stale writer"),
    Sabotage(epoch_is_used_again, "alone", "is granted a second time"),
    Sabotage(held_lease_is_given_away, "shared", "is held"),
    Sabotage(acquire_compares_no_anchor, "bounded", "which is not made of it"),
    Sabotage(renew_brings_a_lost_lease_back, "shared", ""),
    Sabotage(release_ends_anybodys_lease, "shared", "the only writer turned read-only"),
    Sabotage(put_without_compare, "strict", ""),
    Sabotage(store_may_be_old, "rollback", ""),
    Sabotage(answered_before_the_counter, "rollback", ""),
    Sabotage(start_moves_on_by_one, "rollback", ""),
    Sabotage(statement_is_for_any_epoch, "restore", "statement"),
    Sabotage(statement_leaves_the_epoch, "restore", "does not use up"),
    Sabotage(any_epoch_is_adopted, "bounded", "which"),
    Sabotage(tag_is_not_compared, "strict", ""),
    Sabotage(newest_of_the_epoch_is_enough, "strict", "which does not have what was acknowledged"),
    Sabotage(unknown_advance_is_success, "alone", "does not have it"),
    Sabotage(unknown_advance_is_failure, "alone", "the only writer turned read-only"),
    Sabotage(unknown_acquire_is_success, "strict", ""),
    Sabotage(openings_look_alike, "one process", "both write under epoch"),
    Sabotage(promise_comes_before_the_cas, "alone", "does not have it"),
    Sabotage(closing_does_not_wait, "alone, bounded", "does not have it"),
    Sabotage(root_is_written_over_the_logs_base, "alone", ""),
)
