"""Two writers, and everything that may happen to them: the whole protocol of anchors and leases, as a model.

Real are `fspf.cas.rules`, `fspf.core.freshness` and what the volume does with them (`acquire_state`, `find_state`,
`Commits`); the disk, the network, the CAS's store and time are values. It is a property of values, found by search, so
it is in this level; crashes of real processes and disks are in tests/fault and tests/cas.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.property.protocol.sabotage import SABOTAGES, Sabotage
from tests.property.protocol.settings import EXPLORED, SETTINGS
from tests.property.protocol.walk import BrokenError, explore, recovers, walk
from tests.support.plugin import CI, NIGHTLY

STEPS = 500  # of one walk
WALKS = (
    2000 if NIGHTLY else 20 if CI else 8
)  # for each of thirteen settings; CI: 130 000 steps in all, nightly: 13 millions
SECONDS = 30 if NIGHTLY else 4 if CI else 2  # of a search that goes all ways
FIRST_SEED = 0

# A search that never gets there shows nothing. In mode none no older state is refused; alone there is nobody to be taken over from.
HAPPENS = ("leases", "take-overs", "fsyncs", "open: done", "read: done", "close: done", "kill", "timeout")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_protocol_keeps_its_promises(name: str) -> None:
    setting = SETTINGS[name]
    happened: Counter[str] = Counter()
    for seed in range(FIRST_SEED, FIRST_SEED + WALKS):
        world = walk(setting, seed, STEPS)
        happened += world.count
        if setting.clients == 1:
            assert recovers(world), f"seed {seed}: the volume cannot be opened when all faults have ended"
    print(f"{name}: seeds {FIRST_SEED} to {FIRST_SEED + WALKS - 1}, {WALKS * STEPS} steps, {dict(happened)}")
    restoring = ("restored", "a statement refused") if setting.restores else ()
    rolling_back = ("a store refused", "another store served") if setting.sqlite else ()
    missing = [word for word in (*HAPPENS, *restoring, *rolling_back) if not happened[word]]
    assert not missing, f"it never happened: {missing}"


@pytest.mark.parametrize("name", EXPLORED)
def test_every_way_of_a_small_world_keeps_the_promises(name: str) -> None:
    found = explore(EXPLORED[name], seconds=SECONDS)
    end = "all there are" if found.complete else "not all"
    print(f"{name}: {found.states} distinct states, every way of {found.depth} steps; {end}")
    assert found.states > 1000
    assert found.depth >= 8


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda one: one.apply.__name__)
def test_a_broken_protocol_is_noticed(sabotage: Sabotage) -> None:
    setting = SETTINGS[sabotage.setting]
    problem = ""
    with sabotage.apply():
        for seed in range(400):
            try:
                world = walk(setting, seed, STEPS)
            except BrokenError as exc:
                problem = exc.problem
                break
            if setting.clients == 1 and not recovers(world):
                problem = "the volume cannot be opened when all faults have ended"
                break
    assert problem, "not noticed"
    print(f"seed {seed}: {problem}")
    assert sabotage.says in problem
