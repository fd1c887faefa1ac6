"""What only a store in a file can suffer: a killed process, a full or broken disk, a second process, a foreign file.

The contract that holds without faults is in test_stores.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from fspf.cas.store import ABSENT, Compare, Put
from fspf.cas.store_sqlite import SqliteStore
from fspf.core.errors import CasError, CasUnreachableError, FspfError

pytestmark = pytest.mark.timeout(120)


class FaultFile(apsw.VFSFile):
    """A file whose operations fail on demand."""

    def __init__(self, name: Any, flags: list[int], faults: Faults) -> None:
        super().__init__("", name, flags)
        self._faults = faults

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - apsw's name
        self._faults.check("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        self._faults.check("sync")
        super().xSync(flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - apsw's name
        self._faults.check("read")
        return super().xRead(amount, offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802 - apsw's name
        self._faults.check("truncate")
        super().xTruncate(size)


class Faults(apsw.VFS):
    """A VFS over the usual one: the *at*-th operation of a kind fails, and those after it while *lasting*."""

    def __init__(self) -> None:
        super().__init__("fspf-store-faults", "")
        self.counts: dict[str, int] = {}
        self.kind = ""
        self.at = 0
        self.lasting = False
        self.error: type[apsw.Error] = apsw.IOError
        self.fired = 0

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        return FaultFile(name, flags, self)

    def set(self, kind: str, at: int, error: type[apsw.Error], *, lasting: bool) -> None:
        self.kind, self.error, self.lasting = kind, error, lasting
        self.at = self.counts.get(kind, 0) + at

    def check(self, kind: str) -> None:
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == self.kind and (number == self.at or (self.lasting and number > self.at)):
            self.fired += 1
            raise self.error("injected")


@pytest.fixture
def faults() -> Iterator[Faults]:
    vfs = Faults()
    yield vfs
    vfs.unregister()


@pytest.fixture
def path(scratch: Path) -> Path:
    return scratch / "cas.sqlite"


def test_many_transactions_share_one_fsync(path: Path, faults: Faults) -> None:
    async def run() -> None:
        store = SqliteStore(str(path), vfs="fspf-store-faults")
        before, commits = faults.counts["sync"], store.commits
        await asyncio.gather(*(store.transact([], [Put(f"k{number}", b"v")]) for number in range(300)))
        assert store.commits - commits <= 3  # one may have begun with the first alone
        assert faults.counts["sync"] - before <= 3
        before = faults.counts["sync"]
        await asyncio.gather(*(store.transact([Compare(f"k{n}", ABSENT)], [Put(f"k{n}", b"w")]) for n in range(300)))
        await store.get("k1")
        await store.list("k")
        assert faults.counts["sync"] == before  # nothing was changed
        await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
@pytest.mark.parametrize("kind", ["write", "sync"])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_disk_that_fails_in_a_commit(
    path: Path, faults: Faults, kind: str, at: int, error: type[apsw.Error], lasting: bool
) -> None:
    """Nothing half done, reads stay true, and the store goes on when the disk does."""

    async def run() -> None:
        store = SqliteStore(str(path), vfs="fspf-store-faults")
        told = {f"k{number}": 0 for number in range(4)}
        tried = dict(told)

        async def step(key: str) -> None:
            tried[key] += 1
            await store.transact([], [Put(key, b"%d" % tried[key]), Put(f"copy/{key}", b"%d" % tried[key])])
            told[key] = tried[key]

        async def check(store: SqliteStore) -> None:
            for key, acknowledged in told.items():
                entry, copy = await store.get(key), await store.get(f"copy/{key}")
                assert entry is not None
                assert entry == copy
                assert acknowledged <= int(entry.value) <= tried[key]
                told[key] = int(entry.value)  # what was seen once counts from then on

        await asyncio.gather(*map(step, told))
        faults.set(kind, at, error, lasting=lasting)
        failures: list[BaseException] = []
        for _ in range(6):
            outcomes = await asyncio.gather(*map(step, told), return_exceptions=True)
            failures += [one for one in outcomes if isinstance(one, BaseException)]
            with contextlib.suppress(CasUnreachableError):  # while it cannot be opened anew
                await check(store)
        assert faults.fired
        assert {type(one) for one in failures} <= {CasUnreachableError}
        if failures:
            expected = "no space left" if error is apsw.FullError else "input/output error"
            assert all(expected in str(one) for one in failures)
        faults.kind = ""
        await check(store)
        await asyncio.gather(*map(step, told))
        await check(store)
        await store.close()
        again = SqliteStore(str(path))
        await check(again)
        await again.close()

    asyncio.run(run())


def test_two_processes_are_refused(path: Path) -> None:
    async def run() -> None:
        store = SqliteStore(str(path))
        await store.transact([], [Put("k", b"v")])
        command = [sys.executable, "-m", "tests.cas.sqlite_victim", str(path), "1"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        assert f"is served by process {os.getpid()}: stop it first" in done.stderr
        with pytest.raises(CasError, match="is served by process"):
            SqliteStore(str(path))
        link = path.with_name("link")
        link.symlink_to(path)
        with pytest.raises(CasError, match="is served by process"):
            SqliteStore(str(link))
        assert await store.get("k") == (b"v", 1)
        await store.close()
        await SqliteStore(str(path)).close()

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(5))
def test_kill_at_random_instants_loses_nothing_acknowledged(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    told: dict[str, int] = {}
    for _ in range(4):
        command = [sys.executable, "-m", "tests.cas.sqlite_victim", str(path), "16"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(rng.randrange(1, 400))]
            time.sleep(rng.random() / 200)  # an instant between two outputs: nothing is waited for
            process.kill()
            lines += process.stdout.readlines()
        for line in lines:
            task, _, value = line.decode().strip().partition(" ")
            told[task] = max(told.get(task, 0), int(value or 0))

        async def check() -> None:
            store = SqliteStore(str(path), create=False)
            for task, value in told.items():
                entry, copy = await store.get(f"n/{task}"), await store.get(f"copy/{task}")
                assert entry is not None
                assert entry == copy  # both puts of a transaction or none
                assert value <= int(entry.value) <= value + 1
                told[task] = int(entry.value)
            await store.close()

        asyncio.run(check())


def test_killed_maker_leaves_no_half_of_a_store(path: Path) -> None:
    for leftover in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}.new{leftover}").write_bytes(b"half")

    async def run() -> None:
        store = SqliteStore(str(path))
        await store.transact([], [Put("k", b"v")])
        await store.close()
        assert not list(path.parent.glob("*.new*"))

    asyncio.run(run())


def foreign_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE entry (key, value, revision)")


def newer(path: Path) -> None:
    asyncio.run(SqliteStore(str(path)).close())
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("PRAGMA user_version = 99")


def without_meta(path: Path) -> None:
    asyncio.run(SqliteStore(str(path)).close())
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM meta")


def damaged(path: Path) -> None:
    asyncio.run(SqliteStore(str(path)).close())
    raw = bytearray(path.read_bytes())
    raw[4096 - 64 :] = bytes(len(raw) - 4096 + 64)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(foreign_sqlite, "is not a store of a CAS server", id="another database"),
        pytest.param(newer, "use a newer fspf", id="newer version"),
        pytest.param(without_meta, "damaged", id="without its counter"),
        pytest.param(damaged, "damaged", id="damaged"),
        pytest.param(lambda path: path.write_bytes(b"no database at all" * 100), "is not a store", id="no database"),
        pytest.param(lambda path: path.write_bytes(b""), "empty", id="empty"),
        pytest.param(lambda path: path.mkdir(), "is not a file", id="directory"),
    ],
)
def test_what_is_no_store_is_refused_and_left_alone(path: Path, make: Any, says: str) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(FspfError, match=says):
        SqliteStore(str(path))
    if path.is_file():
        assert path.read_bytes() == before


def test_missing_store_is_not_made_by_serving(path: Path) -> None:
    with pytest.raises(CasError, match="there is no store"):
        SqliteStore(str(path), create=False)
    assert not list(path.parent.iterdir())
    with pytest.raises(CasUnreachableError):
        SqliteStore(str(path / "below" / "nothing"))


def test_file_is_for_its_owner_only(path: Path) -> None:
    async def run() -> None:
        store = SqliteStore(str(path))
        await store.transact([], [Put("k", b"v")])
        modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
        assert modes == dict.fromkeys(("cas.sqlite", "cas.sqlite-wal", "cas.sqlite-shm", "cas.sqlite.lock"), 0o600)
        await store.close()

    asyncio.run(run())


def test_deleted_values_are_overwritten(path: Path) -> None:
    async def run() -> None:
        store = SqliteStore(str(path))
        await store.transact([], [Put("k", b"a very secret value" * 10)])
        await store.transact([], [Put("k", None)])
        await store.close()

    asyncio.run(run())
    assert b"very secret" not in path.read_bytes()
