"""Decisions of a CAS as values: what the contract's tests reach only with difficulty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fspf.cas import rules
from fspf.cas.rules import LEASE_TTL_NS, State
from fspf.core.anchor import Anchor, Holder, Lease
from fspf.core.errors import CasError, ConflictError, FspfError, LeaseHeldError, LeaseLostError
from fspf.core.freshness import Freshness
from fspf.core.types import MAX_EPOCH
from tests.unit.cas.conftest import NOW, anchor, holder

STATE: Final = State(Freshness.strict(), anchor(5), 3)
LEASE: Final = Lease(3, holder(), NOW + LEASE_TTL_NS)


def nobody_is_gone(_: Holder) -> bool:
    return False


def test_lease_lasts_a_minute() -> None:
    assert LEASE_TTL_NS == 60 * 10**9


def acquire(state: State, **changes: Any) -> State:
    asked: dict[str, Any] = {
        "expected": state.anchor,
        "expected_epoch": state.epoch,
        "adopt": state.anchor,
        "holder": holder("new"),
        "now_ns": NOW,
        "is_gone": nobody_is_gone,
    }
    return rules.acquire(state, **(asked | changes))


def test_live_lease_is_named_even_if_the_anchor_moved_too() -> None:
    with pytest.raises(LeaseHeldError):
        acquire(replace(STATE, lease=LEASE), expected=anchor(4))


def test_epochs_end() -> None:
    last = acquire(replace(STATE, epoch=MAX_EPOCH - 1))
    assert last.epoch == MAX_EPOCH
    with pytest.raises(CasError, match="used up"):
        acquire(replace(last, lease=None))


def test_whether_a_holder_is_gone_is_asked_only_if_it_matters() -> None:
    def never(_: Holder) -> bool:
        raise AssertionError

    acquire(STATE, is_gone=never)
    acquire(replace(STATE, lease=replace(LEASE, expires_ns=NOW)), is_gone=never)


def test_release_of_another_lease_is_the_same_object() -> None:
    held = replace(STATE, lease=LEASE)
    for other in (replace(LEASE, epoch=2), replace(LEASE, holder=holder("x"))):
        assert rules.release(held, other) is held
    assert rules.release(held, replace(LEASE, expires_ns=0)).lease is None


@pytest.mark.parametrize("other", [replace(LEASE, epoch=2), replace(LEASE, holder=holder("x"))])
def test_lease_is_epoch_and_holder(other: Lease) -> None:
    with pytest.raises(LeaseLostError):
        rules.renew(replace(STATE, lease=LEASE), other, now_ns=NOW)


@pytest.mark.parametrize("epoch", [-1, MAX_EPOCH + 1])
def test_imported_epoch_is_checked(epoch: int) -> None:
    with pytest.raises(CasError, match="epoch"):
        merge(None, replace(STATE, epoch=epoch))


@pytest.mark.parametrize("wrong", [Anchor(5, bytes(16)), Anchor(0, b"x" * 16), Anchor(-1, b"x" * 16), Anchor(1, b"")])
def test_imported_anchor_is_checked(wrong: Anchor) -> None:
    with pytest.raises(CasError, match="not an anchor"):
        merge(None, replace(STATE, anchor=wrong))


def merge(existing: State | None, incoming: State, *, same_key: bool = True, override: bool = False) -> State:
    return rules.merge(existing, incoming, same_key=same_key, override=override, now_ns=NOW, is_gone=nobody_is_gone)


anchors = st.integers(0, 6).map(anchor)
states = st.builds(
    State,
    freshness=st.sampled_from([Freshness.strict(), Freshness.bounded(5)]),
    anchor=anchors,
    epoch=st.integers(0, 5),
    lease=st.none() | st.just(LEASE),
)


@given(existing=states, incoming=states, same_key=st.booleans(), override=st.booleans())
def test_merge_never_repeats_an_epoch(existing: State, incoming: State, *, same_key: bool, override: bool) -> None:
    try:
        merged = merge(existing, incoming, same_key=same_key, override=override)
    except FspfError:
        assert not override
        return
    assert merged.epoch >= max(existing.epoch, incoming.epoch)
    assert merged.lease is None
    if not override:
        assert same_key
        assert existing.lease is None
        assert merged.anchor.generation >= existing.anchor.generation


@given(
    state=states,
    calls=st.lists(
        st.tuples(st.sampled_from(["acquire", "advance", "renew", "release"]), anchors, st.integers(0, 7)), max_size=12
    ),
)
def test_whatever_is_asked_anchor_and_epoch_only_grow(state: State, calls: list[tuple[str, Anchor, int]]) -> None:
    now_ns = NOW
    for what, where, epoch in calls:
        before = state
        now_ns += 20 * 10**9
        lease = Lease(epoch, holder(), 0)
        try:
            match what:
                case "acquire":
                    state = acquire(state, adopt=where, holder=holder(), now_ns=now_ns)
                case "advance":
                    state = rules.advance(state, lease, state.anchor, where, now_ns=now_ns)
                case "renew":
                    state = rules.renew(state, lease, now_ns=now_ns)
                case "release":
                    state = rules.release(state, lease)
        except FspfError:
            assert state is before
        assert state.epoch >= before.epoch
        assert state.anchor == before.anchor or state.anchor.generation > before.anchor.generation


# ----------------------------------------------------------------------------------------------------- restoring


def restore(state: State, old: Anchor, epoch: int) -> State:
    return rules.restore(state, old, epoch, now_ns=NOW, is_gone=nobody_is_gone)


def test_an_older_state_is_restored_and_no_other() -> None:
    restored = restore(STATE, anchor(2), 4)
    assert restored == replace(STATE, anchor=anchor(2), epoch=4)
    again = acquire(restored)
    assert (again.anchor, again.epoch) == (anchor(2), 5)
    with pytest.raises(CasError, match="only a later commit"):
        acquire(restored, adopt=anchor(1))


def test_a_restore_has_its_effect_once() -> None:
    restored = restore(STATE, anchor(2), 4)
    for epoch in (3, 4):
        with pytest.raises(ConflictError, match="the next one of this volume is 5"):
            restore(replace(restored, anchor=anchor(9)), anchor(2), epoch)
    with pytest.raises(ConflictError):
        restore(STATE, anchor(2), 5)


def test_the_writer_of_before_does_not_go_on() -> None:
    expired = replace(STATE, lease=replace(LEASE, expires_ns=NOW - 1))
    restored = restore(expired, anchor(2), 4)
    with pytest.raises(LeaseLostError, match="epoch 4 was granted since"):
        rules.advance(restored, LEASE, anchor(2), anchor(6), now_ns=NOW)


def test_nothing_is_restored_under_a_writer() -> None:
    with pytest.raises(LeaseHeldError):
        restore(replace(STATE, lease=LEASE), anchor(2), 4)


@pytest.mark.parametrize("generation", [0, 5, 6])
def test_only_older_states_are_restored(generation: int) -> None:
    with pytest.raises(CasError, match="only an older state"):
        restore(STATE, Anchor(generation, bytes(16) if generation == 0 else b"t" * 16), 4)


def test_an_epoch_is_left_after_a_restore() -> None:
    with pytest.raises(CasError, match="used up"):
        restore(replace(STATE, epoch=MAX_EPOCH - 1), anchor(2), MAX_EPOCH)
    last = restore(replace(STATE, epoch=MAX_EPOCH - 2), anchor(2), MAX_EPOCH - 1)
    assert acquire(last).epoch == MAX_EPOCH
