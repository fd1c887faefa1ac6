"""Which state is opened, as a table of every rollback, fork and recovery."""

from __future__ import annotations

from typing import Final

import pytest

from fspf.core.anchor import NEVER_WRITTEN, Anchor
from fspf.core.errors import FreshnessError, IntegrityError, UsageError
from fspf.core.format import RootRecord
from fspf.core.freshness import Freshness, FreshnessMode, choose_root
from fspf.core.types import EMPTY_ROOT

STRICT: Final = Freshness.strict()
BOUNDED: Final = Freshness.bounded(500)
NONE: Final = Freshness.none()


def tag(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def record(name: str, epoch: int) -> RootRecord:
    """A record named by its generation and, for a fork, a letter: `7`, `7x`."""
    generation = int("".join(c for c in name if c.isdigit()))
    return RootRecord(
        volume_id=bytes(16),
        generation=generation,
        epoch=epoch,
        previous_tag=tag("previous"),
        anchor_generation=0,
        anchor_tag=bytes(16),
        namespace=EMPTY_ROOT,
        space_map=None,
        end_of_slots=0,
        files=1,
        total_bytes=0,
        keyring_epochs=1,
        created_ns=0,
        tag=tag(name),
    )


def anchor(name: str) -> Anchor:
    return Anchor(int(name), tag(name)) if name != "0" else NEVER_WRITTEN


ACCEPTED: Final = [
    # claimed records (name, epoch), anchor, last epoch -> chosen
    pytest.param([("7", 3), ("6", 3)], "7", 3, "7", id="the anchored state, its predecessor beside it"),
    pytest.param([("6", 3), ("7", 3)], "7", 3, "7", id="in whichever file it is"),
    pytest.param([("7", 3)], "7", 3, "7", id="only the anchored state is whole"),
    pytest.param([("7", 2), ("6", 2)], "7", 3, "7", id="a lease was granted and nothing written"),
    pytest.param([("8", 3), ("7", 3)], "7", 3, "8", id="durable, not anchored when the writer died"),
    pytest.param([("8", 3), ("7", 2)], "7", 3, "8", id="first commit of its epoch, not anchored"),
    pytest.param([("8", 3)], "7", 3, "8", id="not anchored, the anchored one torn"),
    pytest.param([("9", 3), ("8", 3)], "7", 3, "9", id="bounded: two commits ahead of the CAS"),
    pytest.param([("31", 3), ("30", 3)], "7", 3, "31", id="bounded: many commits ahead"),
    pytest.param([("1", 1)], "0", 1, "1", id="first commit of a volume, not anchored"),
    pytest.param([("1", 1)], "1", 1, "1", id="first commit of a volume"),
    pytest.param([("2", 1), ("1", 1)], "0", 1, "2", id="never anchored, two commits"),
    pytest.param([("8x", 2), ("7", 2)], "7", 3, "7", id="stale writer wrote after its lease had ended"),
    pytest.param([("7x", 2), ("7", 3)], "7", 3, "7", id="fork of the same generation beside the anchored state"),
]
REFUSED: Final = [
    # claimed records, anchor, last epoch -> generation found, what the message says
    pytest.param([("6", 3), ("5", 3)], "7", 3, 6, "older state", id="old copy of the last epoch"),
    pytest.param([("6", 2), ("5", 2)], "7", 3, 6, "older state", id="old copy of an earlier epoch"),
    pytest.param([("1", 1)], "7", 3, 1, "older state", id="the volume as it was created"),
    pytest.param([("6", 3)], "7", 3, 6, "older state", id="the anchored record torn or removed, its predecessor whole"),
    pytest.param([("7x", 3), ("6", 3)], "7", 3, 7, "fork", id="same generation and epoch, another tag"),
    pytest.param([("7x", 2)], "7", 3, 7, "fork", id="same generation of an earlier epoch"),
    pytest.param([("8x", 2), ("7x", 2)], "7", 3, 8, "fork", id="a copy that a stale writer wrote to"),
    pytest.param([("8x", 2)], "7", 3, 8, "stale writer", id="newer generation of an ended epoch"),
    pytest.param([("9", 5), ("8", 5)], "7", 3, 9, "CAS itself is older", id="CAS put back from a backup"),
    pytest.param([("8", 4), ("7", 3)], "7", 3, 8, "CAS itself is older", id="CAS put back, its state is still there"),
    pytest.param(
        [("7", 3), ("6", 4)], "7", 3, 6, "CAS itself is older", id="a lower generation of an epoch never granted"
    ),
    pytest.param([("1", 1)], "0", 0, 1, "CAS itself is older", id="CAS never granted a lease"),
    pytest.param([("1x", 1)], "0", 2, 1, "fork", id="first commit of an epoch that ended"),
]


@pytest.mark.parametrize(("claimed", "anchored", "last_epoch", "chosen"), ACCEPTED)
@pytest.mark.parametrize("freshness", [None, STRICT, BOUNDED], ids=str)
def test_newest_state_of_the_anchored_history_is_chosen(
    claimed: list[tuple[str, int]], anchored: str, last_epoch: int, chosen: str, freshness: Freshness | None
) -> None:
    records = [record(*one) for one in claimed]
    assert choose_root(records, anchor(anchored), last_epoch, freshness).tag == tag(chosen)


@pytest.mark.parametrize(("claimed", "anchored", "last_epoch", "found", "says"), REFUSED)
@pytest.mark.parametrize("freshness", [None, STRICT, BOUNDED], ids=str)
def test_every_other_state_is_refused_with_both_generations(
    claimed: list[tuple[str, int]], anchored: str, last_epoch: int, found: int, says: str, freshness: Freshness | None
) -> None:
    with pytest.raises(FreshnessError, match=says) as caught:
        choose_root([record(*one) for one in claimed], anchor(anchored), last_epoch, freshness)
    expected = anchor(anchored).generation
    assert (caught.value.expected_generation, caught.value.found_generation) == (expected, found)
    assert f"generation {expected}" in str(caught.value)
    assert str(found) in str(caught.value)
    assert caught.value.exit_code == 21


@pytest.mark.parametrize(("claimed", "anchored", "last_epoch", "found", "says"), REFUSED)
def test_mode_none_takes_the_newest_of_a_granted_epoch(
    claimed: list[tuple[str, int]], anchored: str, last_epoch: int, found: int, says: str
) -> None:
    records = [record(*one) for one in claimed]
    granted = [one.generation for one in records if one.epoch <= last_epoch]
    if granted:
        assert choose_root(records, anchor(anchored), last_epoch, NONE).generation == max(granted)
    else:
        with pytest.raises(FreshnessError):
            choose_root(records, anchor(anchored), last_epoch, NONE)


@pytest.mark.parametrize("freshness", [STRICT, NONE], ids=str)
def test_no_record_is_damage_not_age(freshness: Freshness) -> None:
    with pytest.raises(IntegrityError, match="no root record can be read") as caught:
        choose_root([], anchor("7"), 3, freshness)
    assert caught.value.exit_code == 20


@pytest.mark.parametrize(
    ("text", "freshness"),
    [
        ("strict", STRICT),
        ("none", NONE),
        ("bounded:500ms", Freshness(FreshnessMode.BOUNDED, 500, 0)),
        ("bounded:1ms,1", Freshness.bounded(1, 1)),
        ("bounded:60000ms,64", Freshness.bounded(60_000, 64)),
    ],
)
def test_freshness_round_trip(text: str, freshness: Freshness) -> None:
    assert Freshness.parse(text) == freshness
    assert str(freshness) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "STRICT", "strict ", "bounded", "bounded:", "bounded:0ms", "bounded:500", "bounded:5s", "bounded:1ms,0"),
        *(
            "bounded:-1ms",
            "bounded:1ms,",
            "bounded:1ms,1,1",
            "bounded:01ms",
            "bounded:\u0661ms",
            "bounded:9999999999ms",
        ),
    ],
)
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="strict, none, bounded:500ms"):
        Freshness.parse(text)


def test_limits_belong_to_bounded() -> None:
    for wrong in ((FreshnessMode.STRICT, 5, 0), (FreshnessMode.BOUNDED, 0, 0), (FreshnessMode.NONE, 0, 3)):
        with pytest.raises(UsageError):
            Freshness(*wrong)
