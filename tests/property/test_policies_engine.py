"""Several CAS processes change the policies of one store at the same time, and the store fails: what must hold at the end.

Single cases are in tests/unit/cas/test_policies.py; real stores in tests/cas.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from fspf.cas.policies import Outcome, Policies
from fspf.cas.policy_records import Belonging, Proposal, Record, Version
from fspf.cas.store import Compare, Entry, Put
from fspf.core.errors import CasUnreachableError, FspfError
from fspf.policy import access
from fspf.policy.access import Voices
from fspf.policy.approval import Action, Statement
from fspf.policy.document import parse_policy
from fspf.policy.model import Policy, Secret
from tests.support.memstore import MemoryStore
from tests.support.policies import key_id, person, signed

NAMES = ["a", "b", "a/x", "a/y", "a/x/z"]
PEOPLE = ["ann", "bob", "eve", "mallory"]
BOARD = f"access_policy: {{read: [ANY], update: [{{require-at-least-2: [{', '.join(key_id(one) for one in PEOPLE[:3])}]}}], create_sessions: [{key_id('ann')}, {key_id('bob')}]}}\n"
BODIES = [
    "", BOARD, f"access_policy: {{read: [ANY], update: [{key_id('ann')}, CREATOR]}}\n", BOARD + "volumes: [{name: v}]\n",
    "volumes: [{name: v, export: [b]}, {name: w}]\nsecrets: [{name: s, kind: ascii, size: 8, export: [b]}]\n",
    BOARD + "volumes: [{name: mine, import: {session: a, volume: v}}]\n", "secrets: [{name: s, import: a}]\n",
    f"volumes: [{{name: old, id: {'cd' * 16}, key: {'ab' * 32}, tag: {'ef' * 16}}}]\n",
]  # fmt: skip


Step = tuple[str, str, str, str, list[str]]  # what, about which policy, saying what, by whom, signed by whom


class UnruledStore(MemoryStore):
    """Takes a different time for each call, and sometimes loses a request or its answer."""

    def __init__(self, seed: int, faults: float) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self.faults = faults

    async def _wait(self) -> None:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)

    async def get(self, key: str) -> Entry | None:
        await self._wait()
        return await super().get(key)

    async def list(self, prefix: str) -> list[tuple[str, Entry]]:
        await self._wait()
        return await super().list(prefix)

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        await self._wait()
        if self._random.random() < self.faults:
            self.fail_next(done=self._random.random() < 0.5)
        revision = await super().transact(compare, put)
        await self._wait()
        return revision


class Issuing:
    """Stands for the secrets' values: they are there if and only if the policy is, made for its version."""

    async def issue(
        self, policy: Policy, old: Policy | None, imported: Mapping[str, tuple[Policy, Secret]]
    ) -> tuple[Sequence[Compare], Sequence[Put]]:
        return [], [Put(f"secret/{policy.name}", policy.hash.encode())]

    async def forget(self, policy: Policy) -> tuple[Sequence[Compare], Sequence[Put]]:
        return [], [Put(f"secret/{policy.name}", None)]


STEPS = 12  # of each client
WEIGHTS = {"create": 6, "update": 6, "delete": 4, "propose": 2, "approve": 3}


def draw_steps(rng: random.Random) -> list[Step]:
    """Draw what one client does: mostly as somebody who may, about few policies, so that clients meet."""
    steps = []
    for _ in range(STEPS):
        (what,) = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        (name,) = rng.choices(NAMES, [6, 3, 6, 2, 3])
        who = rng.choices(PEOPLE, [8, 4, 2, 1])[0]
        steps.append((what, name, rng.choice(BODIES), who, rng.sample(PEOPLE[:3], rng.choice([0, 1, 2, 2]))))
    return steps


async def one_step(policies: Policies, step: Step, done: list[Outcome]) -> None:
    what, name, body, who, signers = step
    by = person(who)
    current = await policies.find(name)
    predecessor = "" if current is None else current.policy.hash
    head = f'version: "0.3"\nname: {name}\n'
    if what == "create":
        text = (head + body).encode()
        statement = Statement(Action.CREATE, name, "", parse_policy(text).hash)
        done.append(await policies.create(text, by, [signed(statement, one) for one in signers]))
    elif what in {"update", "propose"} and predecessor:
        text = f"{head}predecessor: {predecessor}\n{body}".encode()
        statement = Statement(Action.UPDATE, name, predecessor, parse_policy(text).hash)
        outcome = await policies.update(
            text, by, [signed(statement, one) for one in signers], propose=what == "propose"
        )
        if not outcome.pending:
            done.append(outcome)
    elif what == "delete" and predecessor:
        statement = Statement(Action.DELETE, name, predecessor)
        await policies.delete(name, predecessor, by, [signed(statement, one) for one in signers])
    elif what == "approve":
        for proposal, _ in await policies.pending(name, by):
            which = proposal.policy or proposal.predecessor
            outcome = await policies.approve(name, which, [signed(proposal.statement, one) for one in signers])
            if not outcome.pending:
                done.append(outcome)


async def run(seed: int, clients: int, faults: float) -> None:
    store = UnruledStore(seed, faults)
    done: list[Outcome] = []
    rng = random.Random(seed)

    async def client(steps: list[Step]) -> None:
        policies = Policies(store, lambda: 0, issuer=Issuing())  # a process of its own
        for step in steps:
            try:
                await one_step(policies, step, done)
            except CasUnreachableError:
                continue  # the outcome is not known
            except FspfError:
                continue

    await asyncio.gather(*(client(draw_steps(rng)) for _ in range(clients)))
    store.faults = 0.0
    check({key: entry.value for key, entry in store.entries.items()}, done)


def check(entries: dict[str, bytes], done: list[Outcome]) -> None:
    records = {
        one.name: one for key, value in entries.items() if key.startswith("policy/") for one in [Record.unpack(value)]
    }
    versions = {
        key.rpartition("/")[2]: Version.unpack(value)
        for key, value in entries.items()
        if key.startswith("policy-history/")
    }
    live = {name for name, one in records.items() if not one.deleted}

    for outcome in done:  # nothing that was acknowledged is lost
        assert versions[outcome.hash].name == outcome.name
    chained = set()
    for name, record in records.items():
        one: str = record.hash
        while one:  # one chain, without forks
            assert one not in chained
            chained.add(one)
            version = versions[one]
            policy = parse_policy(version.text)
            assert (policy.name, policy.hash, policy.predecessor or "") == (name, one, version.predecessor)
            if version.predecessor:  # and each step was agreed to by those whom the version before names
                before = parse_policy(versions[version.predecessor].text)
                voices = Voices(record.creator, name, frozenset(version.agreed))
                assert access.is_allowed(before.access_policy.update, voices)
            one = version.predecessor
        above = name.rpartition("/")[0]
        assert name not in live or not above or above in live
        assert record.children == sum(child.rpartition("/")[0] == name for child in live)
        assert (entries.get(f"secret/{name}") == record.hash.encode()) == (name in live)
        for volume, volume_id in record.volumes.items():
            belonging = Belonging.unpack(entries[f"volume-policy/{volume_id.hex()}"])
            assert (belonging.policy, belonging.incarnation, belonging.volume) == (name, record.incarnation, volume)
    ids = [volume_id for one in records.values() for volume_id in one.volumes.values()]
    assert len(ids) == len(set(ids)) == sum(key.startswith("volume-policy/") for key in entries)
    for key, value in entries.items():
        if key.startswith("policy-pending/"):
            Proposal.unpack(value)


@given(st.integers(0, 2**32), st.integers(2, 4), st.sampled_from([0.0, 0.2]))
@settings(deadline=None, max_examples=4 * settings().max_examples)
def test_policies_hold_together(seed: int, clients: int, faults: float) -> None:
    asyncio.run(run(seed, clients, faults))
