"""What every store promises, against each of them started for real; the reference is the store in memory.

What only one kind of store can suffer (killed nodes, full disks) is in the modules beside this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fspf.cas.open_store import open_store
from fspf.cas.store import ABSENT, MAX_KEY_LEN, MAX_TRANSACTION, MAX_VALUE_LEN, SEALING_ROOM, Compare, Entry, Put, Store
from fspf.core.errors import CasError, UsageError
from tests.cas.conftest import Opener
from tests.support.memstore import MemoryStore

pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def opened(opener: Opener) -> AsyncIterator[Store]:
    store = await opener()
    try:
        yield store
    finally:
        await store.close()


def runs(opener: Opener, body: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
    """Run *body* on an open store."""

    async def run() -> None:
        async with opened(opener) as store:
            await body(store)

    asyncio.run(run())


async def put(store: Store, key: str, value: bytes) -> int:
    revision = await store.transact([], [Put(key, value)])
    assert revision is not None
    return revision


def test_value_is_had_back_with_its_revision(opener: Opener) -> None:
    async def body(store: Store) -> None:
        assert await store.get("volume/a") is None
        for value in (b"", b"\0\xff", b"x" * 100_000):
            revision = await put(store, "volume/a", value)
            assert revision > 0
            assert await store.get("volume/a") == Entry(value, revision)

    runs(opener, body)


def test_each_put_has_another_revision(opener: Opener) -> None:
    async def body(store: Store) -> None:
        seen = [await put(store, "k", b"same"), await put(store, "k", b"same")]
        await store.transact([], [Put("k", None)])
        seen.append(await put(store, "k", b"same"))
        assert seen == sorted(set(seen))

    runs(opener, body)


def test_compare_decides(opener: Opener) -> None:
    async def body(store: Store) -> None:
        first = await store.transact([Compare("k", ABSENT)], [Put("k", b"1")])
        assert first is not None
        assert await store.transact([Compare("k", ABSENT)], [Put("k", b"2")]) is None
        assert await store.transact([Compare("k", first + 1000)], [Put("k", b"2")]) is None
        assert await store.get("k") == Entry(b"1", first)
        second = await store.transact([Compare("k", first)], [Put("k", b"2")])
        assert second is not None
        assert second > first
        assert await store.transact([Compare("k", first)], [Put("k", b"3")]) is None
        assert await store.get("k") == Entry(b"2", second)

    runs(opener, body)


def test_all_or_nothing(opener: Opener) -> None:
    async def body(store: Store) -> None:
        one = await put(store, "one", b"1")
        two = await put(store, "two", b"2")
        changes = [Put("one", None), Put("two", b"22"), Put("three", b"3")]
        assert await store.transact([Compare("one", one), Compare("two", two + 1000)], changes) is None
        assert await store.list("") == [("one", Entry(b"1", one)), ("two", Entry(b"2", two))]
        revision = await store.transact([Compare("one", one), Compare("two", two)], changes)
        assert revision is not None
        assert await store.list("") == [("three", Entry(b"3", revision)), ("two", Entry(b"22", revision))]

    runs(opener, body)


def test_deleting_what_is_absent_is_no_error(opener: Opener) -> None:
    async def body(store: Store) -> None:
        assert await store.transact([Compare("k", ABSENT)], [Put("k", None)]) is not None
        assert await store.get("k") is None
        assert await store.transact([Compare("k", ABSENT)], []) is not None  # a question, no change
        assert await store.transact([Compare("k", 7)], []) is None

    runs(opener, body)


def test_compare_of_a_key_that_is_not_put(opener: Opener) -> None:
    async def body(store: Store) -> None:
        guard = await put(store, "guard", b"")
        assert await store.transact([Compare("guard", guard)], [Put("k", b"1")]) is not None
        await put(store, "guard", b"")
        assert await store.transact([Compare("guard", guard)], [Put("k", b"2")]) is None
        entry = await store.get("k")
        assert entry is not None
        assert entry.value == b"1"

    runs(opener, body)


KEYS = ["a", "a/", "a/b", "a/b/c", "a/c", "a0", "a\N{SECTION SIGN}", "a\N{GRINNING FACE}", "a\uff01", "b", "%2F", "Z z"]


def test_list_is_by_prefix_and_in_order(opener: Opener) -> None:
    async def body(store: Store) -> None:
        for key in reversed(KEYS):
            await put(store, key, key.encode())
        for prefix in ("", "a", "a/", "a/b", "b", "c", "a\N{SECTION SIGN}", "%"):
            found = await store.list(prefix)
            assert [key for key, _ in found] == sorted(key for key in KEYS if key.startswith(prefix))
            assert all(entry.value == key.encode() for key, entry in found)

    runs(opener, body)


def test_long_list_is_of_one_instant(opener: Opener) -> None:
    """More than one page; a writer moves one mark through it meanwhile, which must be seen exactly once."""

    async def body(store: Store) -> None:
        keys = [f"k/{number:04}" for number in range(1200)]
        for group in batched(keys):
            await store.transact([], [Put(key, b"") for key in group])
        await put(store, keys[0], b"mark")
        done = asyncio.Event()

        async def mover() -> None:
            at = 0
            while not done.is_set():
                after = (at + 601) % len(keys)
                assert await store.transact([], [Put(keys[at], b""), Put(keys[after], b"mark")]) is not None
                at = after

        task = asyncio.create_task(mover())
        for _ in range(10):
            found = await store.list("k/")
            assert [key for key, _ in found] == keys
            assert [entry.value for _, entry in found].count(b"mark") == 1
        done.set()
        await task

    runs(opener, body)


def batched(keys: list[str]) -> list[list[str]]:
    return [keys[at : at + MAX_TRANSACTION] for at in range(0, len(keys), MAX_TRANSACTION)]


def test_largest_of_everything(opener: Opener) -> None:
    async def body(store: Store) -> None:
        key = "k" * MAX_KEY_LEN
        value = bytes(range(256)) * (MAX_VALUE_LEN // 256)
        await put(store, key, value)
        entry = await store.get(key)
        assert entry is not None
        assert entry.value == value
        many = [Put(f"{number}", b"v") for number in range(MAX_TRANSACTION // 2)]
        assert await store.transact([Compare(one.key, ABSENT) for one in many], many) is not None
        # Several large ones at once: what travels together must still be small enough.
        await asyncio.gather(*(put(store, f"large/{number}", value) for number in range(6)))
        assert [entry.value for _, entry in await store.list("large/")] == [value] * 6

    runs(opener, body)


@pytest.mark.parametrize(
    ("compare", "changes"),
    [
        pytest.param([], [Put("k" * (MAX_KEY_LEN + 1), b"")], id="key too long"),
        pytest.param([], [Put("", b"")], id="empty key"),
        pytest.param([], [Put("a\0b", b"")], id="NUL in a key"),
        pytest.param([], [Put("a\ud800", b"")], id="surrogate in a key"),
        pytest.param([], [Put("k", bytes(MAX_VALUE_LEN + SEALING_ROOM + 1))], id="value too long"),
        pytest.param([], [Put("k", b"1"), Put("k", b"2")], id="a key put twice"),
        pytest.param([Compare("a", 0)] * 2, [Put(f"{n}", b"") for n in range(MAX_TRANSACTION - 1)], id="too many"),
        pytest.param([Compare("", 0)], [], id="empty key compared"),
    ],
)
def test_what_no_store_can_keep_is_refused(opener: Opener, compare: list[Compare], changes: list[Put]) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(CasError):
            await store.transact(compare, changes)
        assert await store.list("") == []
        await put(store, "k", b"and it goes on")

    runs(opener, body)


def test_counter_by_compare_and_put_loses_nothing(opener: Opener) -> None:
    tasks, times = 16, 8

    async def body(store: Store) -> None:
        async def increment() -> None:
            for _ in range(times):
                while True:
                    entry = await store.get("counter")
                    value = 0 if entry is None else int(entry.value)
                    revision = ABSENT if entry is None else entry.revision
                    if await store.transact([Compare("counter", revision)], [Put("counter", b"%d" % (value + 1))]):
                        break

        await asyncio.gather(*(increment() for _ in range(tasks)))
        entry = await store.get("counter")
        assert entry is not None
        assert int(entry.value) == tasks * times

    runs(opener, body)


def test_failing_compare_affects_only_itself(opener: Opener) -> None:
    """Many at once, so that stores put them together: every third fails, the others are done, each once."""

    async def body(store: Store) -> None:
        async def one(number: int) -> int | None:
            compare = Compare(f"k{number}", 7 if number % 3 == 0 else ABSENT)
            return await store.transact([compare], [Put(f"k{number}", b"%d" % number)])

        for _ in range(2):  # with no connection yet, and with one
            answers = await asyncio.gather(*(one(number) for number in range(150)))
            assert [number for number, answer in enumerate(answers) if answer is None] == list(range(0, 150, 3))
            found = dict(await store.list("k"))
            assert {key: entry.revision for key, entry in found.items()} == {
                f"k{number}": answer for number, answer in enumerate(answers) if answer is not None
            }
            await asyncio.gather(*(store.transact([], [Put(key, None)]) for key in found))

    runs(opener, body)


def test_own_write_is_read_by_all_tasks(opener: Opener) -> None:
    async def body(store: Store) -> None:
        async def one(number: int) -> None:
            for value in range(10):
                revision = await put(store, f"k{number}", b"%d" % value)
                assert await store.get(f"k{number}") == Entry(b"%d" % value, revision)
                assert await store.get("absent") is None

        await asyncio.gather(*(one(number) for number in range(20)))

    runs(opener, body)


def test_one_of_many_wins(opener: Opener) -> None:
    async def body(store: Store) -> None:
        answers = await asyncio.gather(
            *(store.transact([Compare("lock", ABSENT)], [Put("lock", b"%d" % number)]) for number in range(40))
        )
        (winner,) = [number for number, answer in enumerate(answers) if answer is not None]
        entry = await store.get("lock")
        assert entry is not None
        assert entry == (b"%d" % winner, answers[winner])

    runs(opener, body)


def test_cancelled_caller_disturbs_nobody(opener: Opener) -> None:
    async def body(store: Store) -> None:
        tasks = [asyncio.create_task(put(store, f"k{number}", b"v")) for number in range(30)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, int) for result in results[1::2])
        found = {key for key, _ in await store.list("k")}
        assert found >= {f"k{number}" for number in range(1, 30, 2)}

    runs(opener, body)


def test_data_outlive_the_store_object(opener: Opener) -> None:
    async def body() -> None:
        async with opened(opener) as store:
            revision = await put(store, "k", b"v")
            assert await store.get("k") == Entry(b"v", revision)
        if store.url != MemoryStore().url:
            with pytest.raises(CasError):
                await store.get("k")
            await store.close()  # once more
        async with opened(opener) as store:
            assert await store.get("k") == Entry(b"v", revision)
            assert await put(store, "k", b"w") > revision

    asyncio.run(body())


def test_two_processes_see_each_other(shared_opener: Opener) -> None:
    async def body() -> None:
        async with opened(shared_opener) as one, opened(shared_opener) as two:
            revision = await put(one, "k", b"1")
            assert await two.get("k") == Entry(b"1", revision)
            assert await two.transact([Compare("k", revision)], [Put("k", b"2")]) is not None
            assert await one.transact([Compare("k", revision)], [Put("k", b"3")]) is None

            async def add(store: Store) -> None:
                for _ in range(20):
                    while True:
                        entry = await store.get("n")
                        value, seen = (0, ABSENT) if entry is None else (int(entry.value), entry.revision)
                        if await store.transact([Compare("n", seen)], [Put("n", b"%d" % (value + 1))]):
                            break

            await asyncio.gather(*(add(store) for store in (one, two, one, two)))
            entry = await two.get("n")
            assert entry is not None
            assert int(entry.value) == 80

    asyncio.run(body())


def test_crossing_transactions_of_two_processes_never_hang(shared_opener: Opener) -> None:
    """Each needs both keys, in either order."""

    async def body() -> None:
        async with opened(shared_opener) as one, opened(shared_opener) as two:
            answers = await asyncio.gather(
                *(
                    store.transact([], [Put(first, b"%d" % number), Put(second, b"%d" % number)])
                    for number in range(30)
                    for store, first, second in ((one, "a", "b"), (two, "b", "a"))
                )
            )
            assert None not in answers
            a, b = await one.get("a"), await two.get("b")
            assert a == b

    asyncio.run(body())


# -- against the reference

_keys = st.sampled_from(["a", "a/b", "a/c", "b"])
_step = st.one_of(
    st.tuples(
        st.just("transact"),
        st.lists(st.tuples(_keys, st.sampled_from(["now", "absent", "other"])), max_size=2),
        st.dictionaries(_keys, st.none() | st.binary(max_size=4), max_size=3),
    ),
    st.tuples(st.just("list"), st.sampled_from(["", "a", "a/", "z"]), st.just(None)),
    st.tuples(st.just("get"), _keys, st.just(None)),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_step, min_size=1, max_size=25))
def test_behaves_as_the_reference(opener: Opener, steps: list[tuple[str, Any, Any]]) -> None:
    async def body(store: Store) -> None:
        for key, _ in await store.list(""):
            await store.transact([], [Put(key, None)])
        model = MemoryStore()

        async def expected(key: str, which: str, of: Store) -> Compare:
            entry = await of.get(key)
            now = ABSENT if entry is None else entry.revision
            return Compare(key, {"now": now, "absent": ABSENT, "other": now + 1_000_000}[which])

        for kind, first, second in steps:
            if kind == "transact":
                changes = [Put(key, value) for key, value in second.items()]
                answers = []
                for one in (store, model):
                    compare = [await expected(key, which, one) for key, which in first]
                    answers.append(await one.transact(compare, changes))
                assert (answers[0] is None) == (answers[1] is None)
            elif kind == "list":
                found = [(key, entry.value) for key, entry in await store.list(first)]
                assert found == [(key, entry.value) for key, entry in await model.list(first)]
            else:
                values = [entry and entry.value for entry in (await store.get(first), await model.get(first))]
                assert values[0] == values[1]

    runs(opener, body)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/cas",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/path",
        "sqlite:///p?x=1",
        "mysql://h/d",
        "etcd://h:1/?x=1",
    ],
)
def test_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        asyncio.run(open_store(url, create=True))
