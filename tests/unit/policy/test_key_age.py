"""Volume keys that are older than their policy allows."""

from __future__ import annotations

from fspf.policy.key_age import KeyAge, key_ages
from fspf.policy.model import Import, Policy, Volume

SECOND = 1_000_000_000
NOW = 1_800_000_000 * SECOND
POLICY = Policy(
    "a",
    "0" * 64,
    volumes=(
        Volume("young", max_age_s=100),
        Volume("old", max_age_s=100),
        Volume("just", max_age_s=100),
        Volume("ageless"),
        Volume("new", max_age_s=100),
        Volume("theirs", max_age_s=1, import_from=Import("b", "x")),
    ),
)


def test_keys_are_due_at_their_max_age_most_overdue_first() -> None:
    made = {
        "young": NOW - 99 * SECOND,
        "old": NOW - 500 * SECOND,
        "just": NOW - 100 * SECOND,
        "ageless": 0,
        "theirs": 0,
    }
    ages = key_ages(POLICY, made, now_ns=NOW)
    assert ages == [KeyAge("old", 500, 100), KeyAge("just", 100, 100), KeyAge("young", 99, 100)]
    assert [age.due for age in ages] == [True, True, False]
    assert [age.due_in_s for age in ages] == [-400, 0, 1]


def test_clock_that_went_back_makes_no_key_old() -> None:
    assert key_ages(POLICY, {"young": NOW + 500 * SECOND}, now_ns=NOW) == [KeyAge("young", 0, 100)]
