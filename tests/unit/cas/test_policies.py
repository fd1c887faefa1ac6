"""The engine of policies over a store: who may change what, boards that wait, the chain of versions, imports, volumes.

Documents and boards have their own tests in tests/unit/policy; real stores in test_stores.py and tests/cas.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from fspf.cas.policies import MAX_PENDING, Policies
from fspf.cas.store import ABSENT, MAX_TRANSACTION, Compare, Put
from fspf.core.errors import (
    AccessDeniedError,
    CasError,
    CasUnreachableError,
    ConflictError,
    PolicyError,
)
from fspf.policy.approval import Action, Statement, Verdict
from fspf.policy.document import parse_policy
from fspf.policy.model import Policy, Restore, Script, Secret, UpdatePolicy
from fspf.policy.principal import Principal
from tests.support.memstore import MemoryStore
from tests.support.policies import HEX32, key_id, person, signed

T = TypeVar("T")
ANN, BOB, EVE, MALLORY = (person(name) for name in ("ann", "bob", "eve", "mallory"))
SECOND = 1_000_000_000
BOARD = f"access_policy:\n  read: [{key_id('ann')}, {key_id('bob')}]\n  update: [{{require-at-least-2: [{', '.join(key_id(n) for n in ('ann', 'bob', 'eve'))}]}}]\n"


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now_ns


class Issuing:
    """Puts something in the same transaction, as the secrets' values are."""

    async def issue(
        self, policy: Policy, old: Policy | None, imported: Mapping[str, tuple[Policy, Secret]]
    ) -> tuple[Sequence[Compare], Sequence[Put]]:
        return [], [Put(f"secret/{policy.name}", (old.hash if old else "none").encode())]

    async def forget(self, policy: Policy) -> tuple[Sequence[Compare], Sequence[Put]]:
        return [], [Put(f"secret/{policy.name}", None)]


class Restoring:
    def __init__(self) -> None:
        self.epoch = 3

    async def restore(self, volume_id: bytes, statement: Restore) -> tuple[Sequence[Compare], Sequence[Put]]:
        if statement.epoch != self.epoch + 1:
            raise ConflictError(f"the next epoch is {self.epoch + 1}")
        return [], [Put(f"volume/{volume_id.hex()}", statement.tag)]


class Audit:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    async def append(self, kind: str, **fields: Any) -> None:
        json.dumps(fields)
        self.lines.append((kind, fields))


class World:
    """An engine, what it is given, and shortcuts."""

    def __init__(self, call_script: Callable[[Script, Mapping[str, Any]], Awaitable[bytes]] | None = None) -> None:
        self.store = MemoryStore()
        self.clock = Clock()
        self.audit = Audit()
        self.restoring = Restoring()
        self.policies = Policies(
            self.store, self.clock, issuer=Issuing(), restorer=self.restoring, call_script=call_script, audit=self.audit
        )

    async def make(self, name: str, body: str = "", by: Principal = ANN) -> str:
        return (await self.policies.create(document(name, body), by)).hash

    async def change(self, name: str, body: str, by: Principal = ANN, **more: Any) -> str:
        current = await self.policies.find(name)
        assert current is not None
        return (await self.policies.update(document(name, body, current.policy.hash), by, **more)).hash

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.audit.lines]


def document(name: str, body: str = "", predecessor: str = "") -> bytes:
    head = f'version: "0.3"\nname: {name}\n' + (f"predecessor: {predecessor}\n" if predecessor else "")
    return (head + body).encode()


def run(test: Callable[[World], Awaitable[T]], world: World | None = None) -> T:
    async def main() -> T:
        return await test(world or World())

    return asyncio.run(main())


def statement(text: bytes, action: Action = Action.UPDATE) -> Statement:
    policy = parse_policy(text)
    return Statement(action, policy.name, policy.predecessor or "", policy.hash)


# --------------------------------------------------------------------------------------------- one policy's life


def test_a_policy_is_created_read_replaced_and_deleted() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", "# one\n")
        assert await world.policies.read("a", ANN) == (document("a", "# one\n"), first)
        second = await world.change("a", "services: [{name: s}]\n")
        text, now = await world.policies.read("a", ANN)
        assert (b"services" in text, now) == (True, second)
        assert (await world.policies.history(first, ANN)).text == document("a", "# one\n")
        assert (await world.policies.history(second, ANN)).predecessor == first
        assert world.store.entries["secret/a"].value == first.encode()  # put together with the policy
        await world.policies.delete("a", second, ANN)
        with pytest.raises(AccessDeniedError, match="no policy a"):
            await world.policies.read("a", ANN)
        assert "secret/a" not in world.store.entries
        assert (await world.policies.history(first, ANN)).text == document("a", "# one\n")  # the history stays
        assert world.kinds == ["policy-create", "policy-update", "policy-delete"]

    run(test)


def test_only_those_named_may_do_anything_and_others_do_not_learn_that_it_exists() -> None:
    async def test(world: World) -> None:
        first = await world.make("a")
        policies = world.policies
        for name, there in (("a", first), ("b", HEX32)):
            for asking in (
                policies.read(name, MALLORY),
                policies.update(document(name, "services: []", there), MALLORY),
                policies.update(document(name, "services: []", HEX32), MALLORY),
                policies.update(document(name, "services: []", there), MALLORY, propose=True),
                policies.delete(name, there, MALLORY),
                policies.delete(name, HEX32, MALLORY),
            ):
                with pytest.raises(AccessDeniedError) as caught:
                    await asking
                assert str(caught.value) == f"there is no policy {name}, or this client may not read it"
            with pytest.raises(
                AccessDeniedError, match=f"^{name}/x would be below {name}: there is no such policy, or"
            ):
                await policies.create(document(f"{name}/x"), MALLORY)
            with pytest.raises(AccessDeniedError, match="there is no proposal"):
                await policies.approve(name, there, [])
            assert await policies.pending(name, MALLORY) == []
        with pytest.raises(AccessDeniedError, match="may not read it"):
            await policies.history(first, MALLORY)
        assert [one.policy.name for one in await world.policies.list("", ANN)] == ["a"]
        assert await world.policies.list("", MALLORY) == []
        assert await world.policies.list("b", ANN) == []

    run(test)


def test_a_lost_update_is_refused() -> None:
    async def test(world: World) -> None:
        first = await world.make("a")
        await world.policies.update(document("a", "services: [{name: x}]", first), ANN)
        with pytest.raises(ConflictError, match="replaced meanwhile"):
            await world.policies.update(document("a", "services: [{name: y}]", first), ANN)
        with pytest.raises(ConflictError, match="replaced meanwhile"):
            await world.policies.delete("a", first, ANN)
        with pytest.raises(PolicyError, match="predecessor is missing"):
            await world.policies.update(document("a", "services: [{name: y}]"), ANN)

    run(test)


def test_of_updates_at_the_same_time_one_wins() -> None:
    async def test(world: World) -> None:
        first = await world.make("a")
        texts = [document("a", f"services: [{{name: s{n}}}]", first) for n in range(8)]
        results = await asyncio.gather(*(world.policies.update(text, ANN) for text in texts), return_exceptions=True)
        won = [one for one in results if not isinstance(one, BaseException)]
        assert len(won) == 1
        assert all(isinstance(one, ConflictError) for one in results if isinstance(one, BaseException))
        assert (await world.policies.read("a", ANN))[1] == won[0].hash

    run(test)


def test_a_request_can_be_repeated() -> None:
    async def test(world: World) -> None:
        world.store.fail_next(done=True)
        with pytest.raises(CasUnreachableError):
            await world.make("a")
        assert (await world.make("a")) == (await world.policies.read("a", ANN))[1]  # it was done
        world.store.fail_next(done=False)
        with pytest.raises(CasUnreachableError):
            await world.change("a", "services: [{name: s}]")
        assert await world.change("a", "services: [{name: s}]") == (await world.policies.read("a", ANN))[1]

    run(test)


def test_an_old_version_does_not_come_back_by_repeating_old_requests() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", BOARD)
        text = document("a", BOARD + "services: [{name: s}]\n", first)
        approvals = [signed(statement(text), name) for name in ("ann", "bob")]
        second = (await world.policies.update(text, MALLORY, approvals)).hash
        back = document("a", BOARD, second)
        third = (
            await world.policies.update(back, MALLORY, [signed(statement(back), name) for name in ("ann", "eve")])
        ).hash
        assert third != first  # a version is one of a chain
        with pytest.raises(ConflictError):
            await world.policies.update(text, MALLORY, approvals)

    run(test)


def test_a_deleted_policy_does_not_come_back_by_repeating_its_creation() -> None:
    async def test(world: World) -> None:
        first = await world.make("a")
        await world.policies.delete("a", first, ANN)
        with pytest.raises(ConflictError, match="this very version of a was deleted"):
            await world.make("a")
        with pytest.raises(ConflictError, match="no predecessor"):
            await world.policies.create(document("a", "", HEX32), ANN)
        again = (await world.policies.create(document("a", "", first), ANN)).hash
        assert (await world.policies.read("a", ANN))[1] == again

    run(test)


def test_the_name_of_a_deleted_policy_stays_with_those_who_had_it() -> None:
    """Others may trust it: they import from it, or have its services on their boards."""

    async def test(world: World) -> None:
        first = await world.make("a", BOARD)
        gone = Statement(Action.DELETE, "a", first)
        await world.policies.delete("a", first, ANN, [signed(gone, "bob")])
        text = document("a", EXPORTER)
        with pytest.raises(AccessDeniedError, match="2 of 3 have to agree"):
            await world.policies.create(text, MALLORY)
        await world.policies.create(text, EVE, [signed(statement(text, Action.CREATE), "bob")])

    run(test)


def test_a_deletion_can_be_repeated() -> None:
    async def test(world: World) -> None:
        first = await world.make("a")
        world.store.fail_next(done=True)
        with pytest.raises(CasUnreachableError):
            await world.policies.delete("a", first, ANN)
        assert (await world.policies.delete("a", first, ANN)).hash == first
        with pytest.raises(AccessDeniedError):
            await world.policies.delete("a", HEX32, ANN)

    run(test)


def test_what_is_wrong_changes_nothing() -> None:
    async def test(world: World) -> None:
        before = dict(world.store.entries)
        for text in (b"", b"name: a", document("a", "services: [{nam: s}]"), document("../a")):
            with pytest.raises(PolicyError):
                await world.policies.create(text, ANN)
        with pytest.raises(AccessDeniedError, match="one creator"):
            await world.policies.create(document("a"), Principal())
        with pytest.raises(AccessDeniedError, match="one creator"):
            await world.policies.create(document("a"), Principal(frozenset({key_id("ann"), key_id("bob")})))
        with pytest.raises(ConflictError):
            await world.policies.create(document("a", "", HEX32), ANN)
        with pytest.raises(PolicyError, match="hash"):
            await world.policies.history("../x", ANN)
        assert world.store.entries == before

    run(test)


def test_a_store_that_was_altered_is_found_out() -> None:
    async def test(world: World) -> None:
        first = await world.make("a")
        key = f"policy-history/{first}"
        other = Policies(world.store, world.clock)
        entry = world.store.entries[key]
        await world.store.transact([], [Put(key, entry.value.replace(b"name: a", b"name: b"))])
        with pytest.raises(CasError, match="it was altered"):
            await other.find("a")
        await world.store.transact([], [Put(key, b"\xc1")])
        with pytest.raises(CasError, match="damaged"):
            await other.find("a")
        await world.store.transact([], [Put(key, None)])
        with pytest.raises(CasError, match="lacks version"):
            await other.find("a")

    run(test)


# ---------------------------------------------------------------------------------------------------- namespaces


def test_who_may_create_below_a_policy_is_said_by_that_policy() -> None:
    async def test(world: World) -> None:
        await world.make("top", f"access_policy: {{create_sessions: [{key_id('bob')}]}}\n")
        with pytest.raises(AccessDeniedError, match="has to agree"):
            await world.make("top/a", by=ANN)
        await world.make("top/a", by=BOB)
        await world.make("other", "access_policy: {create_sessions: [NONE]}\n")
        with pytest.raises(AccessDeniedError, match="nobody may"):
            await world.make("other/a")
        with pytest.raises(AccessDeniedError, match="no such policy"):
            await world.make("nowhere/a")
        with pytest.raises(AccessDeniedError, match="may create none below it"):
            await world.make("top/a/b", by=ANN)
        await world.make("top/a/b", by=BOB)

    run(test)


def test_a_policy_with_others_below_it_stays() -> None:
    async def test(world: World) -> None:
        top = await world.make("top")
        child = await world.make("top/a")
        with pytest.raises(ConflictError, match="1 policies are below top"):
            await world.policies.delete("top", top, ANN)
        await world.policies.delete("top/a", child, ANN)
        await world.policies.delete("top", top, ANN)

    run(test)


def test_deleting_above_and_creating_below_at_the_same_time() -> None:
    async def test(world: World) -> None:
        top = await world.make("top")
        results = await asyncio.gather(
            world.policies.delete("top", top, ANN), world.make("top/a"), return_exceptions=True
        )
        assert sum(isinstance(one, BaseException) for one in results) == 1
        assert ((await world.policies.find("top")) is None) == ((await world.policies.find("top/a")) is None)

    run(test)


def test_who_may_create_at_the_top_is_the_cas_s_choice() -> None:
    async def test(world: World) -> None:
        (member,) = parse_policy(document("x", f"access_policy: {{read: [{key_id('ann')}]}}")).access_policy.read
        policies = Policies(world.store, world.clock, may_create=(member,))
        with pytest.raises(AccessDeniedError):
            await policies.create(document("a"), BOB)
        await policies.create(document("a"), ANN)

    run(test)


# -------------------------------------------------------------------------------------------------------- boards


def test_two_of_three_are_needed() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", BOARD)
        text = document("a", BOARD + "services: [{name: s}]\n", first)
        to_sign = statement(text)
        ann, bob = signed(to_sign, "ann"), signed(to_sign, "bob", kind="ed25519")
        with pytest.raises(AccessDeniedError, match="2 of 3 have to agree, 1 did"):
            await world.policies.update(text, MALLORY, [ann])
        with pytest.raises(AccessDeniedError, match="2 of 3 have to agree, 1 did"):
            await world.policies.update(text, ANN, [ann])  # in person and in writing: one person
        with pytest.raises(AccessDeniedError, match="2 of 3 have to agree, 1 did"):
            await world.policies.update(text, MALLORY, [ann, signed(to_sign, "mallory")])
        with pytest.raises(PolicyError, match="is expected, this one is of"):
            await world.policies.update(text, MALLORY, [ann, signed(Statement(Action.DELETE, "a", first), "bob")])
        outcome = await world.policies.update(text, MALLORY, [ann, bob])
        assert (outcome.pending, (await world.policies.read("a", ANN))[1]) == (False, outcome.hash)
        version = await world.policies.history(outcome.hash, ANN)
        assert {json.loads(one)["signature"] for one in version.approvals} == {
            ann.members()["signature"],
            bob.members()["signature"],
        }

    run(test)


def test_proposals_wait_for_one_after_the_other() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", BOARD)
        text = document("a", BOARD + "services: [{name: s}]\n", first)
        to_sign = statement(text)
        outcome = await world.policies.update(text, ANN, propose=True)
        assert (outcome.pending, outcome.hash) == (True, to_sign.policy)
        assert "2 of 3 have to agree, 1 did" in outcome.missing
        assert (await world.policies.read("a", ANN))[1] == first
        ((proposal, missing),) = await world.policies.pending("a", BOB)
        assert (proposal.statement, proposal.text, proposal.by) == (to_sign, text, str(ANN))
        assert missing == outcome.missing
        assert await world.policies.pending("a", MALLORY) == []
        with pytest.raises(AccessDeniedError, match="not among those"):
            await world.policies.approve("a", outcome.hash, [signed(to_sign, "mallory")])
        with pytest.raises(PolicyError):
            await world.policies.approve(
                "a", outcome.hash, [signed(Statement(Action.UPDATE, "b", first, outcome.hash), "bob")]
            )
        again = await world.policies.approve("a", outcome.hash, [signed(to_sign, "ann")])
        assert again.pending  # ann has agreed already
        done = await world.policies.approve("a", outcome.hash, [signed(to_sign, "eve")])
        assert not done.pending
        assert (await world.policies.read("a", ANN))[1] == outcome.hash
        assert await world.policies.pending("a", BOB) == []
        with pytest.raises(AccessDeniedError, match="no proposal"):
            await world.policies.approve("a", outcome.hash, [signed(to_sign, "bob")])

    run(test)


def test_a_board_member_agrees_in_person() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", BOARD)
        outcome = await world.policies.update(document("a", BOARD + "services: []\n", first), ANN, propose=True)
        assert (await world.policies.approve("a", outcome.hash, [], BOB)).pending  # he only looked
        assert not (await world.policies.approve("a", outcome.hash, [], BOB, in_person=True)).pending

    run(test)


def test_a_proposal_goes_stale_with_its_predecessor() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", BOARD)
        slow = await world.policies.update(document("a", BOARD + "services: []\n", first), ANN, propose=True)
        fast = document("a", BOARD + "images: []\n", first)
        second = (await world.policies.update(fast, ANN, [signed(statement(fast), "bob")])).hash
        with pytest.raises(ConflictError, match="replaced meanwhile"):
            await world.policies.approve(
                "a", slow.hash, [signed(Statement(Action.UPDATE, "a", first, slow.hash), "bob")]
            )
        next_one = await world.policies.update(document("a", BOARD, second), ANN, propose=True)
        assert [one.policy for one, _ in await world.policies.pending("a", ANN)] == [next_one.hash]

    run(test)


def test_proposals_are_bounded_and_only_for_those_with_a_voice() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", BOARD)
        with pytest.raises(AccessDeniedError, match="may not read it"):
            await world.policies.update(document("a", BOARD + "services: []\n", first), MALLORY, propose=True)
        public = await world.make("b", BOARD.replace("read: [", "read: [ANY, "))
        with pytest.raises(AccessDeniedError, match="only those who have a voice"):
            await world.policies.update(document("b", "", public), MALLORY, propose=True)
        for n in range(MAX_PENDING):
            await world.policies.update(
                document("a", BOARD + f"services: [{{name: s{n}}}]\n", first), ANN, propose=True
            )
        last = document("a", BOARD + "services: []\n", first)
        with pytest.raises(ConflictError, match="wait already"):
            await world.policies.update(last, ANN, propose=True)
        ((proposal, _), *_) = await world.policies.pending("a", ANN)
        with pytest.raises(AccessDeniedError, match="whoever made it"):
            await world.policies.withdraw("a", proposal.policy, BOB)
        await world.policies.withdraw("a", proposal.policy, ANN)
        assert (await world.policies.update(last, ANN, propose=True)).pending

    run(test)


def test_creation_and_deletion_wait_too() -> None:
    async def test(world: World) -> None:
        board = BOARD.replace(
            "  update", "  create_sessions: [{require-all: [CREATOR, " + key_id("bob") + "]}]\n  update"
        )
        top = await world.make("top", board)
        text = document("top/a")
        outcome = await world.policies.create(text, BOB, propose=True)
        assert outcome.pending
        assert await world.policies.find("top/a") is None
        done = await world.policies.approve("top/a", outcome.hash, [signed(statement(text, Action.CREATE), "ann")])
        assert not done.pending
        current = await world.policies.find("top/a")
        assert current is not None
        assert current.record.creator == BOB.identity  # who proposed it, not who agreed last
        child = await world.policies.delete("top/a", outcome.hash, BOB)
        assert not child.pending
        going = await world.policies.delete("top", top, ANN, propose=True)
        assert going.pending
        await world.policies.approve("top", top, [signed(Statement(Action.DELETE, "top", top), "eve")])
        assert await world.policies.find("top") is None

    run(test)


def test_a_veto_has_its_time() -> None:
    async def test(world: World) -> None:
        body = f"access_policy: {{update: [{{require-all: [{key_id('ann')}], veto: [{key_id('eve')}], veto_within: 2 hours}}]}}\n"
        first = await world.make("a", body)
        text = document("a", body + "services: []\n", first)
        with pytest.raises(AccessDeniedError, match="may still veto it for 7200 s"):
            await world.policies.update(text, ANN)
        outcome = await world.policies.update(text, ANN, propose=True)
        world.clock.now_ns += 7199 * SECOND
        assert "for 1 s" in (await world.policies.approve("a", outcome.hash, [])).missing
        world.clock.now_ns += SECOND
        assert not (await world.policies.approve("a", outcome.hash, [])).pending
        second = outcome.hash
        text = document("a", body, second)
        outcome = await world.policies.update(text, ANN, propose=True)
        await world.policies.approve("a", outcome.hash, [signed(statement(text), "eve", Verdict.REJECT)])
        world.clock.now_ns += 10_000 * SECOND
        assert "has vetoed it" in (await world.policies.approve("a", outcome.hash, [])).missing
        assert (await world.policies.read("a", ANN))[1] == second

    run(test)


def test_approvals_at_the_same_time_are_all_kept() -> None:
    async def test(world: World) -> None:
        names = [f"member{n}" for n in range(6)]
        board = f"access_policy: {{update: [{{require-all: [{', '.join(key_id(name) for name in names)}]}}]}}\n"
        first = await world.make("a", board)
        text = document("a", board + "services: []\n", first)
        outcome = await world.policies.update(text, person(names[0]), propose=True)
        outcomes = await asyncio.gather(
            *(world.policies.approve("a", outcome.hash, [signed(statement(text), name)]) for name in names[1:])
        )
        assert [one.pending for one in outcomes].count(False) == 1
        assert (await world.policies.find("a")).policy.hash == outcome.hash  # type: ignore[union-attr]

    run(test)


# ------------------------------------------------------------------------------------------------------- scripts

CHECKERS = [f"{{script: 'https://check{n}.example/', signer: {key_id(f'check{n}')}}}" for n in range(3)]


def checkers(behaviour: Mapping[str, str]) -> Callable[[Script, Mapping[str, Any]], Awaitable[bytes]]:
    """Answer as scripts would: approve, reject, forge, break, or hang up."""

    async def call(script: Script, request: Mapping[str, Any]) -> bytes:
        await asyncio.sleep(0)
        name = script.url.removeprefix("https://").partition(".")[0]
        what = behaviour[name]
        if what == "dead":
            raise CasUnreachableError(f"{script.url} does not answer")
        if what == "broken":
            return b"<html>502</html>"
        members = request["statement"]
        asked = Statement(Action(members["action"]), members["name"], members["predecessor"], members["policy"])
        assert parse_policy(request["document"].encode()).hash == asked.policy
        verdict = Verdict.REJECT if what == "reject" else Verdict.APPROVE
        signer = "mallory" if what == "forge" else name
        approval = signed(asked, signer, verdict).members()
        return json.dumps(
            {"verdict": str(verdict), "public_key": approval["public_key"], "signature": approval["signature"]}
        ).encode()

    return call


@pytest.mark.parametrize(
    ("behaviour", "enough"),
    [
        (("approve", "approve", "approve"), True),
        (("approve", "dead", "approve"), True),  # N - F of N
        (("approve", "broken", "dead"), False),
        (("approve", "forge", "approve"), True),
        (("forge", "forge", "approve"), False),
        (("reject", "approve", "approve"), True),
        (("reject", "reject", "approve"), False),
    ],
)
def test_scripts_of_which_some_may_fail(
    behaviour: tuple[str, ...], *, enough: bool, caplog: pytest.LogCaptureFixture, quiet: Any
) -> None:
    quiet.allow(r"did not answer about")

    async def test(world: World) -> None:
        board = f"access_policy: {{update: [{{require-at-least-2: [{', '.join(CHECKERS)}]}}]}}\n"
        first = await world.make("a", board)
        text = document("a", board + "services: []\n", first)
        if enough:
            assert not (await world.policies.update(text, MALLORY)).pending
        else:
            with pytest.raises(AccessDeniedError, match="2 of 3 have to agree"):
                await world.policies.update(text, MALLORY)

    run(test, World(checkers({f"check{n}": one for n, one in enumerate(behaviour)})))


# ------------------------------------------------------------------------------------------- what policies share

EXPORTER = (
    "volumes: [{name: data, export: [{to: {session: b}, update_policy: ephemeral}]}]\n"
    "secrets:\n  - {name: pw, kind: ascii, size: 9, export: [b]}\n  - {name: raw, kind: binary, size: 9, export: [b]}\n"
)
IMPORTER = (
    "services: [{name: s, image_name: i, command: [$$SCONE::pw$$]}]\n"
    "images: [{name: i, volumes: [{name: theirs, path: /d, update_policy: ephemeral}]}]\n"
    "volumes: [{name: theirs, import: {session: a, volume: data}}]\nsecrets: [{name: pw, import: a}]\n"
)


def test_both_sides_have_to_agree() -> None:
    async def test(world: World) -> None:
        with pytest.raises(PolicyError, match="a does not export data to this policy, or there is none") as caught:
            await world.make("b", IMPORTER)
        assert (caught.value.line, caught.value.column) == (5, 34)
        await world.make("a")
        with pytest.raises(PolicyError, match="does not export"):
            await world.make("b", IMPORTER)
        await world.change("a", EXPORTER)
        with pytest.raises(PolicyError, match="does not export"):
            await world.make("c", IMPORTER)
        await world.make("b", IMPORTER)
        policy = parse_policy(document("b", IMPORTER))
        found = await world.policies.links.imported_secrets(policy)
        assert {name: (theirs.name, secret.name) for name, (theirs, secret) in found.items()} == {"pw": ("a", "pw")}
        await world.change("a", EXPORTER.replace("size: 9, export: [b]", "size: 9"))  # taken back
        with pytest.raises(AccessDeniedError, match="does not export"):
            await world.policies.links.imported_secrets(policy)

    run(test)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("update_policy: ephemeral", "update_policy: rollback_protected", "may be ephemeral, not rollback_protected"),
        ("import: a", "import: {session: a, secret: raw}", ""),
        ("$$SCONE::pw$$", "$$SCONE::pw:pem$$", "only keys and certificates"),
        ("{name: pw, import: a}", "{name: pw, kind: binary, import: a}", "is ascii, not binary"),
        ("import: a", f"import: {{session: a, session_hash: {HEX32}}}", "another is in force"),
        ("import: a", "import: {session: a, secret: nothing}", "does not export nothing"),
    ],
)
def test_what_an_importer_may_do(old: str, new: str, expected: str) -> None:
    async def test(world: World) -> None:
        await world.make("a", EXPORTER)
        assert old in IMPORTER
        body = IMPORTER.replace(old, new)
        if "kind: binary" in new:  # else its own kind forbids it already
            body = body.replace("$$SCONE::pw$$", "$$SCONE::pw:hex$$")
        if expected:
            with pytest.raises(PolicyError, match=expected) as caught:
                await world.make("b", body)
            assert caught.value.line > 0
        else:
            with pytest.raises(PolicyError, match="bytes are no text"):  # raw is binary, which only the exporter knew
                await world.make("b", body)

    run(test)


def test_an_exporter_that_changes_while_it_is_imported_is_seen() -> None:
    async def test(world: World) -> None:
        await world.make("a", EXPORTER)
        results = await asyncio.gather(
            world.make("b", IMPORTER), world.change("a", "services: []\n"), return_exceptions=True
        )
        imported = not isinstance(results[0], BaseException)
        order = [fields["name"] for kind, fields in world.audit.lines if kind in {"policy-create", "policy-update"}]
        assert order == (["a", "b", "a"] if imported else ["a", "a"])

    run(test)


# ------------------------------------------------------------------------------------------------------- volumes

DATABASE = (
    "services:\n  - {name: db, image_name: i, fspf_key: '@KEY@', fspf_tag: " + "ab" * 16 + "}\n  - {name: other}\n"
    "images: [{name: i, volumes: [{name: data, path: /d}]}]\n"
    "volumes: [{name: data, export: [{to: b, update_policy: ephemeral}]}]\n"
).replace("@KEY@", HEX32)


def service(policy: str = "a", name: str = "db", instance: str = "1") -> Principal:
    return Principal(policy=policy, service=name, instance=instance)


def test_a_service_has_the_volumes_of_its_image_and_no_others() -> None:
    async def test(world: World) -> None:
        links = world.policies.links
        await world.make("a", DATABASE)
        await world.make(
            "b",
            IMPORTER.replace(
                "services: [{name: s, image_name: i, command: [$$SCONE::pw$$]}]", "services: [{name: s, image_name: i}]"
            ).replace("secrets: [{name: pw, import: a}]\n", ""),
        )
        (mounted,) = await links.volumes_for(service())
        assert (mounted.path, mounted.update_policy, mounted.policy) == ("/d", UpdatePolicy.ROLLBACK_PROTECTED, "a")
        assert await links.volume_access(service(), mounted.record_id) == mounted
        (theirs,) = await links.volumes_for(service("b", "s"))
        assert (theirs.local_name, theirs.name) == ("theirs", "data")
        assert (theirs.record_id, theirs.update_policy, theirs.policy) == (
            mounted.record_id,
            UpdatePolicy.EPHEMERAL,
            "a",
        )
        for stranger in (service("a", "other"), service("a", "nobody"), service("c", "db"), ANN, Principal()):
            with pytest.raises(AccessDeniedError):
                await links.volume_access(stranger, mounted.record_id)

    run(test)


def test_a_volume_keeps_its_id_and_its_anchor_over_updates() -> None:
    async def test(world: World) -> None:
        await world.make("a", DATABASE)
        (before,) = await world.policies.links.volumes_for(service())
        anchor = f"volume/{before.record_id.hex()}"
        await world.store.transact([], [Put(anchor, b"the anchor")])
        await world.change("a", "services: []\n")
        with pytest.raises(AccessDeniedError):
            await world.policies.links.volume_access(service(), before.record_id)
        await world.change("a", DATABASE + "# again\n")
        (after,) = await world.policies.links.volumes_for(service())
        assert after.record_id == before.record_id
        assert world.store.entries[anchor].value == b"the anchor"

    run(test)


def test_who_takes_the_name_of_a_deleted_policy_does_not_get_its_volumes() -> None:
    async def test(world: World) -> None:
        links = world.policies.links
        await world.make("top", "access_policy: {create_sessions: [ANY]}\n")
        first = await world.make("top/a", DATABASE)
        (before,) = await links.volumes_for(service("top/a"))
        main = await links.volume_access(service("top/a"), b"m" * 16)
        await world.policies.delete("top/a", first, ANN)
        await world.make("top/a", DATABASE + "# mine\nsecurity: {}\n", by=MALLORY)
        (after,) = await links.volumes_for(service("top/a"))
        assert after.record_id != before.record_id
        assert after.incarnation != before.incarnation
        with pytest.raises(AccessDeniedError):
            await links.volume_access(service("top/a"), main.record_id)
        assert (await links.volume_access(service("top/a"), b"m" * 16)).record_id != main.record_id

    run(test)


def test_each_instance_has_its_own_anchor_of_the_main_volume() -> None:
    async def test(world: World) -> None:
        links = world.policies.links
        await world.make("a", DATABASE)
        image = b"m" * 16
        one, two, one_again = [await links.volume_access(service(instance=n), image) for n in ("1", "2", "1")]
        assert one == one_again
        assert one.record_id not in {two.record_id, image}
        assert (one.main, one.volume_id, one.initial_tag, one.key) == (True, image, bytes.fromhex("ab" * 16), HEX32)
        at_once = await asyncio.gather(*(links.volume_access(service(instance="3"), image) for _ in range(8)))
        assert len({one.record_id for one in at_once}) == 1
        for instance in ("", "x" * 101):
            with pytest.raises(AccessDeniedError, match="says which one"):
                await links.volume_access(service(instance=instance), image)
        with pytest.raises(AccessDeniedError):  # another's record is no main volume
            await links.volume_access(service(instance="1"), two.record_id)

    run(test)


def test_instances_share_a_main_volume_that_is_not_reinitializable() -> None:
    async def test(world: World) -> None:
        body = DATABASE.replace(
            "fspf_tag:", f"fspf_volume: {'cd' * 16}, fspf_update_policy: rollback_protected, fspf_tag:"
        )
        await world.make("a", body)
        links = world.policies.links
        one, two = [await links.volume_access(service(instance=n), b"\xcd" * 16) for n in ("1", "")]
        assert one.record_id == two.record_id
        with pytest.raises(AccessDeniedError):
            await links.volume_access(service(), b"m" * 16)  # the policy names which one

    run(test)


def test_a_volume_that_exists_belongs_to_one_policy() -> None:
    async def test(world: World) -> None:
        body = f"volumes: [{{name: @, id: {'cd' * 16}, key: {HEX32}, tag: {'ab' * 16}}}]\n"
        await world.make("a", body.replace("@", "v"))
        with pytest.raises(ConflictError, match="belongs to another policy"):
            await world.make("b", body.replace("@", "v"))
        with pytest.raises(PolicyError, match="has the name v"):
            await world.change("a", body.replace("@", "w"))
        current = await world.policies.find("a")
        assert current is not None
        assert current.record.volumes == {"v": b"\xcd" * 16}

    run(test)


def test_naming_the_volume_of_another_gives_no_access_to_it() -> None:
    async def test(world: World) -> None:
        body = f"volumes: [{{name: v, id: {'cd' * 16}, key: {HEX32}, tag: {'ab' * 16}}}]\n"
        await world.store.transact([], [Put(f"volume/{'cd' * 16}", b"of a key")])
        with pytest.raises(ConflictError, match="or to a key"):
            await world.make("a", body, by=MALLORY)
        await world.store.transact([], [Put(f"volume/{'cd' * 16}", None)])
        first, _ = await asyncio.gather(
            world.make("a", body),
            world.store.transact([], [Put(f"volume/{'cd' * 16}", b"of a key")]),
            return_exceptions=True,
        )
        assert isinstance(first, ConflictError)  # it came between looking and putting

    run(test)


def test_more_than_one_transaction_holds_is_refused() -> None:
    async def test(world: World) -> None:
        names = ", ".join(f"{{name: v{n}}}" for n in range(MAX_TRANSACTION))
        with pytest.raises(PolicyError, match="in several steps"):
            await world.make("a", f"volumes: [{names}]\n")
        assert not [key for key in world.store.entries if key.startswith("policy")]

    run(test)


# ----------------------------------------------------------------------------------------------------- restoring


def test_a_restore_statement_moves_an_anchor_once() -> None:
    async def test(world: World) -> None:
        await world.make("a", DATABASE)
        (mounted,) = await world.policies.links.volumes_for(service())
        anchor = f"volume/{mounted.record_id.hex()}"
        await world.store.transact([], [Put(anchor, b"new")])
        old_state = f"restore: [{{volume: data, tag: {'0f' * 16}, generation: 7, epoch: @, reason: disk died}}]\n"
        with pytest.raises(ConflictError, match="the next epoch is 4"):
            await world.change("a", DATABASE + old_state.replace("@", "3"))
        assert world.store.entries[anchor].value == b"new"
        await world.change("a", DATABASE + old_state.replace("@", "4"))
        assert world.store.entries[anchor].value == b"\x0f" * 16
        kind, fields = world.audit.lines[-1]
        assert (kind, fields["volume"], fields["epoch"], fields["reason"]) == ("volume-restore", "data", 4, "disk died")
        world.restoring.epoch = 4
        await world.store.transact([], [Put(anchor, b"newer")])
        await world.change(
            "a", DATABASE + old_state.replace("@", "4") + "security: {}\n"
        )  # still there: it has had its effect
        assert world.store.entries[anchor].value == b"newer"
        await world.change("a", DATABASE)
        with pytest.raises(ConflictError, match="the next epoch is 5"):  # and it does not work again
            await world.change("a", DATABASE + old_state.replace("@", "4"))

    run(test)


def test_an_instance_is_restored_by_its_name() -> None:
    async def test(world: World) -> None:
        await world.make("a", DATABASE)
        main = await world.policies.links.volume_access(service(instance="7"), b"m" * 16)
        text = f"restore: [{{volume: db/@, tag: {'0f' * 16}, generation: 7, epoch: 4, reason: x}}]\n"
        with pytest.raises(PolicyError, match="never had an instance 8"):
            await world.change("a", DATABASE + text.replace("@", "8"))
        await world.change("a", DATABASE + text.replace("@", "7"))
        assert world.store.entries[f"volume/{main.record_id.hex()}"].value == b"\x0f" * 16

    run(test)


def test_nothing_is_restored_without_the_board() -> None:
    async def test(world: World) -> None:
        first = await world.make("a", BOARD + DATABASE)
        text = document(
            "a",
            BOARD + DATABASE + f"restore: [{{volume: data, tag: {'0f' * 16}, generation: 7, epoch: 4, reason: x}}]\n",
            first,
        )
        with pytest.raises(AccessDeniedError, match="2 of 3"):
            await world.policies.update(text, ANN)
        assert not [key for key in world.store.entries if key.startswith("volume/")]
        await world.policies.update(text, ANN, [signed(statement(text), "eve")])

    run(test)


def test_a_plan_is_for_those_who_may_read() -> None:
    async def test(world: World) -> None:
        await world.make("a", DATABASE)
        assert (await world.policies.plan(document("a", DATABASE), ANN)).steps == ()
        with pytest.raises(AccessDeniedError):
            await world.policies.plan(document("a", DATABASE), MALLORY)
        assert (await world.policies.plan(document("c", DATABASE), MALLORY)).old is None

    run(test)


def test_every_transaction_compares() -> None:
    """Each put of a policy's record is guarded by its revision: two processes never overwrite each other."""

    class Watching(MemoryStore):
        async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
            guarded = {one.key for one in compare}
            for one in put:
                if one.key.startswith(("policy/", "policy-history/", "volume-policy/")) and one.value is not None:
                    assert one.key in guarded, one.key
            return await super().transact(compare, put)

    async def test(world: World) -> None:
        world.store = Watching()
        world.policies = Policies(world.store, world.clock)
        first = await world.make("a", DATABASE)
        await world.make("a/b")
        await world.change("a", DATABASE + "security: {}\n")
        await world.policies.links.volume_access(service(), b"m" * 16)
        assert (await world.store.get(f"policy-history/{first}")) is not None
        assert ABSENT == 0

    run(test)
