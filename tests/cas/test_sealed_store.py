"""What a store's host cannot learn from sealed values, and cannot do to them.

The contract of a store holds for a sealed one too: tests/cas/test_stores.py runs on both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from fspf.cas.sealed_store import MAX_SEGMENT_LEN, SealedStore
from fspf.cas.store import MAX_VALUE_LEN, Entry, Put
from fspf.cas.store_sqlite import SqliteStore
from fspf.core.errors import CasError
from fspf.core.keys import SecretKey
from tests.support.memstore import MemoryStore

KEY = SecretKey.from_bytes(bytes(range(32)))

POLICY = "policy/" + quote("messenger/db", safe="")
VOLUME = "volume/00112233445566778899aabbccddeeff"
SECRET = "secret/" + quote("messenger/db", safe="") + "/rootpass"
AUDIT = "audit/0000000000000042"
VALUES = {POLICY: b"name: messenger/db\n" * 3, VOLUME: b"\x11" * 40, SECRET: b"hunter2-hunter2", AUDIT: b"{granted}"}
HIDDEN = [b"messenger", b"00112233445566778899aabbccddeeff", bytes.fromhex("00112233445566778899aabbccddeeff")]


def everything_below(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir())


def test_neither_name_nor_value_is_in_the_file(scratch: Path) -> None:
    async def run() -> None:
        store = SealedStore(SqliteStore(str(scratch / "cas.sqlite")), KEY)
        for _ in range(2):
            for key, value in VALUES.items():
                await store.transact([], [Put(key, value)])
        await store.transact([], [Put(POLICY, None)])
        raw = everything_below(scratch)  # the log too
        await store.close()
        raw += everything_below(scratch)
        for secret in (*HIDDEN, b"rootpass", b"hunter2", b"\x11" * 16, b"granted"):
            assert secret not in raw
        assert b"audit/0000000000000042" in raw  # so the search finds what is there

    asyncio.run(run())


def test_equal_values_look_different() -> None:
    async def run() -> None:
        below = MemoryStore()
        store = SealedStore(below, KEY)
        seen = set()
        for key in ("volume/a", "volume/b", "volume/a"):
            await store.transact([], [Put(key, b"same")])
            seen |= {entry.value for entry in below.entries.values()}
        assert len(seen) == 3

    asyncio.run(run())


def test_equal_parts_of_names_look_different_under_different_parents() -> None:
    async def run() -> None:
        below = MemoryStore()
        store = SealedStore(below, KEY)
        await store.transact([], [Put("secret/p/x", b""), Put("secret/q/x", b""), Put("policy/p", b"")])
        parts = [part for key in below.entries for part in key.split("/")[1:]]
        assert len(set(parts)) == len(parts) == 5

    asyncio.run(run())


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["audit/0000000000000001", "audit/0000000000000002", "policy/a%2Fb", "policy/a%2Fc", "policy/z", "top"]),
        ("policy/", ["policy/a%2Fb", "policy/a%2Fc", "policy/z"]),
        ("policy/a%2F", ["policy/a%2Fb", "policy/a%2Fc"]),
        ("poli", ["policy/a%2Fb", "policy/a%2Fc", "policy/z"]),
        ("audit/", ["audit/0000000000000001", "audit/0000000000000002"]),
        ("audit/000000000000000", ["audit/0000000000000001", "audit/0000000000000002"]),
        ("audit/0000000000000002", ["audit/0000000000000002"]),
        ("policy/a%2Fb/", []),
        ("t", ["top"]),
        ("x", []),
    ],
)
def test_prefixes_work_as_if_nothing_were_sealed(prefix: str, expected: list[str]) -> None:
    async def run() -> None:
        store = SealedStore(MemoryStore(), KEY)
        await store.transact([], [Put(key, key.encode()) for key in reversed(expected)])
        others = ["audit/0000000000000001", "audit/0000000000000002", "policy/a%2Fb", "policy/a%2Fc", "policy/z", "top"]
        await store.transact([], [Put(key, key.encode()) for key in others])
        found = await store.list(prefix)
        assert [key for key, _ in found] == expected
        assert all(entry.value == key.encode() for key, entry in found)

    asyncio.run(run())


Tamper = Callable[[MemoryStore, list[str]], None]


def swapped(store: MemoryStore, keys: list[str]) -> None:
    store.entries[keys[0]], store.entries[keys[1]] = store.entries[keys[1]], store.entries[keys[0]]


def moved(store: MemoryStore, keys: list[str]) -> None:
    store.entries[keys[0]] = store.entries[keys[1]]


def cut_off(store: MemoryStore, keys: list[str]) -> None:
    store.entries[keys[0]] = Entry(store.entries[keys[0]].value[:-1], 1)


def emptied(store: MemoryStore, keys: list[str]) -> None:
    store.entries[keys[0]] = Entry(b"", 1)


@pytest.mark.parametrize("tamper", [swapped, moved, cut_off, emptied])
@pytest.mark.parametrize("way", ["get", "list"])
def test_swapped_moved_or_cut_value_is_refused(tamper: Tamper, way: str) -> None:
    async def run() -> None:
        below = MemoryStore()
        store = SealedStore(below, KEY)
        await store.transact([], [Put("volume/a", b"one of some length"), Put("volume/b", b"two of same length")])
        keys = [store._key("volume/a"), store._key("volume/b")]
        tamper(below, keys)
        with pytest.raises(CasError, match=r"memory://.*restore the store from a backup"):
            await ask(store, way)

    asyncio.run(run())


async def ask(store: SealedStore, way: str) -> None:
    if way == "get":
        await store.get("volume/a")
    else:
        await store.list("volume/")


def test_any_altered_byte_of_a_value_is_refused() -> None:
    async def run() -> None:
        below = MemoryStore()
        store = SealedStore(below, KEY)
        await store.transact([], [Put("volume/a", b"value")])
        (key,) = below.entries
        whole = below.entries[key].value
        for at in range(len(whole)):
            altered = bytearray(whole)
            altered[at] ^= 1
            below.entries[key] = Entry(bytes(altered), 1)
            with pytest.raises(CasError):
                await store.get("volume/a")
        below.entries[key] = Entry(whole, 1)
        assert await store.get("volume/a") == Entry(b"value", 1)

    asyncio.run(run())


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"), id="altered"),
        pytest.param(lambda key: key + "=", id="padded"),
        pytest.param(lambda key: key.replace("=", ""), id="without its mark"),
        pytest.param(lambda key: "policy" + key.removeprefix("volume"), id="under another parent"),
        pytest.param(lambda _: "volume/plain", id="plain"),
        pytest.param(lambda _: "volume/=", id="of nothing"),
        pytest.param(lambda _: "volume/=\N{SECTION SIGN}", id="not ASCII"),
    ],
)
def test_forged_key_is_refused_in_lists(forged: Callable[[str], str]) -> None:
    async def run() -> None:
        below = MemoryStore()
        store = SealedStore(below, KEY)
        await store.transact([], [Put("volume/a", b"value")])
        ((key, entry),) = below.entries.items()
        below.entries = {forged(key): entry}
        with pytest.raises(CasError, match="altered"):
            await store.list("")

    asyncio.run(run())


def test_another_master_key_opens_nothing() -> None:
    async def run() -> None:
        below = MemoryStore()
        await SealedStore(below, KEY).transact([], [Put("volume/a", b"value")])
        other = SealedStore(below, SecretKey.generate())
        assert await other.get("volume/a") is None
        with pytest.raises(CasError, match="give the right key"):
            await other.list("volume/")

    asyncio.run(run())


def test_newer_value_is_told_from_a_damaged_one() -> None:
    async def run() -> None:
        below = MemoryStore()
        store = SealedStore(below, KEY)
        await store.transact([], [Put("volume/a", b"value")])
        ((key, entry),) = below.entries.items()
        below.entries[key] = Entry(b"\2" + entry.value[1:], 1)
        with pytest.raises(CasError, match="use a newer fspf"):
            await store.get("volume/a")

    asyncio.run(run())


def test_limits() -> None:
    async def run() -> None:
        store = SealedStore(MemoryStore(), KEY)
        await store.transact([], [Put("policy/" + "n" * MAX_SEGMENT_LEN, bytes(MAX_VALUE_LEN))])
        entry = await store.get("policy/" + "n" * MAX_SEGMENT_LEN)
        assert entry is not None
        assert len(entry.value) == MAX_VALUE_LEN
        refused: list[Awaitable[object]] = [
            store.transact([], [Put("policy/a", bytes(MAX_VALUE_LEN + 1))]),
            store.get("policy/" + "n" * (MAX_SEGMENT_LEN + 1)),
            store.get("=abc/def"),
        ]
        for one in refused:
            with pytest.raises(CasError):
                await one

    asyncio.run(run())
