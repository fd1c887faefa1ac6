"""A copied-back store is refused, an unclean stop is not: with a TPM in software, and real kills.

What the store itself promises is in the modules beside this one.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fspf.cas.counter import Recovery, Witness, recover
from fspf.cas.store import Put
from fspf.cas.store_sqlite import SqliteStore
from fspf.cas.tpm import Tpm, TpmCounter
from fspf.core.errors import AccessDeniedError, CasError, CasUnreachableError, FspfError, RolledBackError
from fspf.core.keys import SecretKey
from tests.cas.counter_victim import MASTER
from tests.support.logs import Quiet
from tests.support.swtpm import Swtpm, running_swtpm

pytestmark = pytest.mark.timeout(180)
SUFFIXES = ("", "-wal", "-shm")


@pytest.fixture(scope="session")
def tpm_made(scratch_root: Path) -> Iterator[Swtpm]:
    with running_swtpm(Path(tempfile.mkdtemp(dir=scratch_root)) / "tpm") as tpm:
        TpmCounter(Tpm(tpm.tcti), MASTER, create=True)
        yield tpm


@pytest.fixture
def tpm(tpm_made: Swtpm) -> Swtpm:
    """One TPM for all: a counter only goes on."""
    return tpm_made


@pytest.fixture
def path(scratch: Path, tpm: Swtpm) -> Path:
    """A new store that was served once, and stopped in order."""
    path = scratch / "cas.sqlite"
    with_store(path, tpm, nothing, begin=True, create=True)
    return path


@pytest.fixture
def own(scratch: Path) -> Iterator[Swtpm]:
    """A TPM of this test's own, to be stopped and started."""
    with running_swtpm(scratch / "own-tpm") as tpm:
        TpmCounter(Tpm(tpm.tcti), MASTER, create=True)
        yield tpm


@pytest.fixture
def own_path(scratch: Path, own: Swtpm) -> Path:
    path = scratch / "own.sqlite"
    with_store(path, own, nothing, begin=True, create=True)
    return path


Body = Callable[[SqliteStore], Awaitable[None]]


async def nothing(store: SqliteStore) -> None:
    await store.get("n")


def putting(value: bytes) -> Body:
    async def body(store: SqliteStore) -> None:
        assert await store.transact([], [Put("n", value)]) is not None

    return body


async def value_of(store: SqliteStore) -> bytes | None:
    entry = await store.get("n")
    return None if entry is None else entry.value


def with_store(
    path: Path,
    tpm: Swtpm | None,
    body: Body,
    *,
    window_s: float = 0.0,
    begin: bool = False,
    create: bool = False,
    recovery: Recovery | None = None,
    counter: TpmCounter | None = None,
) -> Witness:
    """Serve the store, do *body*, stop in order."""

    async def run() -> Witness:
        store = SqliteStore(str(path), create=create)
        try:
            found = counter or TpmCounter(Tpm("" if tpm is None else tpm.tcti), MASTER)
            witness = Witness(MASTER, found, window_s=window_s, recovery=recovery)
            await store.watch(witness, begin=begin)
            await body(store)
            return witness
        finally:
            await store.close()

    return asyncio.run(run())


def read(path: Path, tpm: Swtpm) -> bytes | None:
    found: list[bytes | None] = []

    async def body(store: SqliteStore) -> None:
        found.append(await value_of(store))

    with_store(path, tpm, body)
    return found[0]


def copy(path: Path, to: Path) -> None:
    to.mkdir()
    for suffix in SUFFIXES:
        if Path(f"{path}{suffix}").exists():
            shutil.copy(f"{path}{suffix}", to / f"{path.name}{suffix}")


def put_back(path: Path, copied: Path) -> None:
    for suffix in SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
        if (copied / f"{path.name}{suffix}").exists():
            shutil.copy(copied / f"{path.name}{suffix}", f"{path}{suffix}")


def test_store_starts_again_and_again(path: Path, tpm: Swtpm) -> None:
    for value in (b"1", b"2"):
        witness = with_store(path, tpm, putting(value))
        assert witness.stored == witness.outside
    assert read(path, tpm) == b"2"


def test_copied_back_store_is_refused(path: Path, tpm: Swtpm, scratch: Path) -> None:
    with_store(path, tpm, putting(b"old"))
    copy(path, scratch / "old")
    with_store(path, tpm, putting(b"new"))
    copy(path, scratch / "new")
    put_back(path, scratch / "old")
    for _ in range(2):  # and stays refused
        with pytest.raises(RolledBackError, match=r"the outside counter is \d+.*it is \d+.*put the newest store back"):
            with_store(path, tpm, nothing)
    put_back(path, scratch / "new")
    assert read(path, tpm) == b"new"


def test_refused_store_serves_nothing(path: Path, tpm: Swtpm, scratch: Path) -> None:
    copy(path, scratch / "old")
    with_store(path, tpm, putting(b"new"))
    put_back(path, scratch / "old")

    async def run() -> None:
        store = SqliteStore(str(path), create=False)
        try:
            with pytest.raises(RolledBackError):
                await store.watch(Witness(MASTER, TpmCounter(Tpm(tpm.tcti), MASTER)))
            with pytest.raises(RolledBackError):
                await store.get("n")
            with pytest.raises(RolledBackError):
                await store.transact([], [Put("n", b"x")])
        finally:
            await store.close()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["value", "whole row", "row removed", "row added", "counter alone"])
def test_single_rows_cannot_be_put_back(path: Path, tpm: Swtpm, how: str) -> None:
    """Newest counter, older rows: every row is authentic by itself."""
    with_store(path, tpm, putting(b"old"))
    with closing(sqlite3.connect(path)) as file:
        (old_guard,) = file.execute("SELECT value FROM meta WHERE name = 'guard'").fetchone()
        old = file.execute("SELECT key, value, revision FROM entry").fetchall()
    with_store(path, tpm, putting(b"new"))
    with closing(sqlite3.connect(path)) as file, file:
        if how == "value":
            file.execute("UPDATE entry SET value = ?", (old[0][1],))
        elif how == "whole row":
            file.execute("UPDATE entry SET value = ?, revision = ?", old[0][1:])
        elif how == "row removed":
            file.execute("DELETE FROM entry")
        elif how == "row added":
            file.execute("INSERT INTO entry SELECT key || '2', value, revision FROM entry")
        else:
            file.execute("UPDATE meta SET value = ? WHERE name = 'guard'", (old_guard,))
    with pytest.raises(RolledBackError):
        with_store(path, tpm, nothing)


def test_store_without_its_counter_is_refused(path: Path, tpm: Swtpm) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("DELETE FROM meta WHERE name = 'guard'")
    with pytest.raises(RolledBackError, match="no counter of its own"):
        with_store(path, tpm, nothing)


@pytest.mark.parametrize(
    "altered",
    [
        pytest.param("CAST(substr(value, 1, length(value) - 1) || 'x' AS BLOB)", id="last byte"),
        pytest.param("substr(value, 2)", id="cut off"),
        pytest.param("x''", id="empty"),
        pytest.param("substr(value, 1, 5) || 'x'", id="text"),
        pytest.param("7", id="a number"),
    ],
)
def test_altered_counter_is_refused(path: Path, tpm: Swtpm, altered: str) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(f"UPDATE meta SET value = {altered} WHERE name = 'guard'")
    with pytest.raises(CasError, match=r"altered|damaged"):
        with_store(path, tpm, nothing)


def victim(path: Path, tpm: Swtpm, step: str, number: int, window_s: float = 0.0) -> int:
    """Let a process serve the store until it is killed at a step; the last value that it was told is stored."""
    command = [sys.executable, "-m", "tests.cas.counter_victim", str(path), tpm.tcti, str(window_s), step, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == -9, done.stderr
    lines = done.stdout.split()
    return int(lines[-1]) if lines else 0


@pytest.mark.parametrize("window_s", [0.0, 0.1], ids=["strict", "window"])
@pytest.mark.parametrize("number", range(1, 5))
@pytest.mark.parametrize("step", ["write", "committed", "incremented"])
def test_kill_between_any_two_steps_loses_nothing_and_locks_nobody_out(
    path: Path, tpm: Swtpm, step: str, number: int, window_s: float
) -> None:
    """The first two commits and increments are the start's own, the next ones change a value."""
    told = victim(path, tpm, step, number, window_s)
    found = int(read(path, tpm) or b"0")
    assert told <= found <= told + 1
    assert victim(path, tpm, step, 5, window_s) >= found


@pytest.mark.parametrize("step", ["committed", "incremented"])
def test_commit_that_was_never_answered_cannot_replace_one_that_was(
    path: Path, tpm: Swtpm, scratch: Path, step: str
) -> None:
    """A fork: a state is kept whose commit was not answered; the store goes on from the state before it."""
    with_store(path, tpm, putting(b"7"))
    copy(path, scratch / "before")
    victim(path, tpm, step, 3)  # 8 is stored and not answered
    copy(path, scratch / "fork")
    put_back(path, scratch / "before")
    outcome: FspfError | None = None
    try:
        with_store(path, tpm, putting(b"answered"))
    except RolledBackError as exc:
        outcome = exc
    if outcome is None:
        put_back(path, scratch / "fork")
        with pytest.raises(RolledBackError):
            with_store(path, tpm, nothing)
    else:
        put_back(path, scratch / "fork")
        assert read(path, tpm) == b"8"


def test_two_copies_served_at_once_are_found_out(path: Path, tpm: Swtpm, scratch: Path) -> None:
    copy(path, scratch / "other")

    async def run() -> None:
        stores = [SqliteStore(str(one), create=False) for one in (path, scratch / "other" / path.name)]
        outcomes: list[object] = []
        try:
            for store in stores:
                try:
                    await store.watch(Witness(MASTER, TpmCounter(Tpm(tpm.tcti), MASTER)))
                except RolledBackError as exc:
                    outcomes.append(exc)
            for _ in range(3):
                tasks = [store.transact([], [Put("n", b"x")]) for store in stores]
                outcomes += await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for store in stores:
                await store.close()
        # The second was started from a copy that the first one's start had made old.
        assert [isinstance(one, RolledBackError) for one in outcomes] == [True] + [False, True] * 3

    asyncio.run(run())


def test_another_user_of_the_counter_is_noticed(path: Path, tpm: Swtpm, quiet: Quiet) -> None:
    quiet.require("another process uses it")

    async def body(store: SqliteStore) -> None:
        TpmCounter(Tpm(tpm.tcti), MASTER).increment()
        with pytest.raises(RolledBackError, match="another process uses it"):
            await store.transact([], [Put("n", b"x")])
        with pytest.raises(RolledBackError):
            await store.get("n")

    with_store(path, tpm, body)


def test_tpm_restart_is_no_rollback(own_path: Path, own: Swtpm) -> None:
    with_store(own_path, own, putting(b"1"))
    own.restart()
    assert read(own_path, own) == b"1"
    own.kill()  # and a power cut
    own.start()
    assert read(own_path, own) == b"1"


def test_missing_tpm_is_said_and_changes_nothing(own_path: Path, own: Swtpm) -> None:
    with_store(own_path, own, putting(b"1"))
    before = own_path.read_bytes()
    own.stop()
    try:
        with pytest.raises(CasUnreachableError, match="TPM"):
            with_store(own_path, own, nothing)
    finally:
        own.start()
    assert own_path.read_bytes() == before
    assert read(own_path, own) == b"1"


def test_tpm_that_goes_away_while_serving(own_path: Path, own: Swtpm) -> None:
    """Nothing is answered or shown without it; when it is back, all goes on."""

    async def body(store: SqliteStore) -> None:
        await putting(b"1")(store)
        own.stop()
        try:
            with pytest.raises(CasUnreachableError):
                await store.transact([], [Put("n", b"2")])
            with pytest.raises(CasUnreachableError):
                await store.get("n")
        finally:
            own.start()
        assert await value_of(store) in {b"1", b"2"}
        await putting(b"3")(store)
        assert await value_of(store) == b"3"

    counter = TpmCounter(Tpm(own.tcti), MASTER)

    class Following(Tpm):
        """The same TPM, although a restarted one in software has another port."""

        def run(self, *arguments: str, given: bytes | None = None, cwd: str | None = None) -> bytes:
            return Tpm(own.tcti).run(*arguments, given=given, cwd=cwd)

    counter._tpm = Following(own.tcti)
    with_store(own_path, own, body, counter=counter)
    assert read(own_path, own) == b"3"


@pytest.fixture
def other_tpm(scratch: Path) -> Iterator[Swtpm]:
    with running_swtpm(scratch / "tpm-2") as tpm:
        yield tpm


def test_another_tpm_is_refused(path: Path, other_tpm: Swtpm, tpm: Swtpm) -> None:
    with pytest.raises(CasUnreachableError):  # it has no such counter
        with_store(path, other_tpm, nothing)
    counter = TpmCounter(Tpm(other_tpm.tcti), MASTER, create=True)
    witness = with_store(path, tpm, nothing)
    while counter.read() < witness.stored:  # and one that counted just as far is another all the same
        counter.increment()
    with pytest.raises(RolledBackError, match="another TPM"):
        with_store(path, other_tpm, nothing)
    assert read(path, tpm) is None


def test_counter_that_was_made_anew_starts_above(scratch: Path, other_tpm: Swtpm) -> None:
    path = scratch / "cas.sqlite"
    TpmCounter(Tpm(other_tpm.tcti), MASTER, create=True)
    with_store(path, other_tpm, putting(b"1"), begin=True, create=True)
    before = TpmCounter(Tpm(other_tpm.tcti), MASTER).read()
    other_tpm.tool("tpm2_nvundefine", "-C", "o", "0x01805f00")
    assert TpmCounter(Tpm(other_tpm.tcti), MASTER, create=True).read() > before
    with pytest.raises(RolledBackError):
        with_store(path, other_tpm, nothing)


def test_counter_of_another_master_key_does_not_count(tpm: Swtpm) -> None:
    with pytest.raises(FspfError):
        TpmCounter(Tpm(tpm.tcti), SecretKey.generate())


# -- recovery


def refusal(path: Path, tpm: Swtpm) -> str:
    with pytest.raises(RolledBackError) as refused:
        with_store(path, tpm, nothing)
    return str(refused.value)


def approved(message: str, reason: str = "disk lost, backup of Tuesday") -> Recovery:
    """Read the numbers that a person would take over from the refusal."""
    words = message.partition("(counters ")[2].partition(")")[0].replace(",", "").split()
    return Recovery(int(words[0]), int(words[2]), words[4], reason)


def test_approved_recovery_lets_one_state_in_and_is_logged(path: Path, tpm: Swtpm, scratch: Path, quiet: Quiet) -> None:
    for name in ("older", "old"):
        with_store(path, tpm, putting(name.encode()))
        copy(path, scratch / name)
    with_store(path, tpm, putting(b"new"))
    copy(path, scratch / "new")
    put_back(path, scratch / "old")
    statement = recover(approved(refusal(path, tpm)), "signed", lambda _bytes, _signatures: None)

    put_back(path, scratch / "older")  # it is for one state, not for another
    with pytest.raises(RolledBackError, match="for another state"):
        with_store(path, tpm, nothing, recovery=statement)

    put_back(path, scratch / "old")
    quiet.require("recovery: .*backup of Tuesday")
    with_store(path, tpm, putting(b"after"), recovery=statement)
    assert read(path, tpm) == b"after"
    for name in ("older", "old", "new"):  # none of them counts any more, nor does the statement
        put_back(path, scratch / name)
        with pytest.raises(RolledBackError):
            with_store(path, tpm, nothing, recovery=statement)


def test_recovery_moves_a_store_to_another_tpm(path: Path, tpm: Swtpm, other_tpm: Swtpm, quiet: Quiet) -> None:
    with_store(path, tpm, putting(b"1"))
    TpmCounter(Tpm(other_tpm.tcti), MASTER, create=True)
    statement = approved(refusal(path, other_tpm), "new machine")
    quiet.require("recovery: .*new machine")
    with_store(path, other_tpm, nothing, recovery=statement)
    assert read(path, other_tpm) == b"1"
    with pytest.raises(RolledBackError):
        with_store(path, tpm, nothing)


def test_recovery_needs_its_signatures_and_a_reason() -> None:
    def check(signed: bytes, signatures: object) -> None:
        if signatures != signed:
            raise AccessDeniedError("no signature of the board")

    statement = Recovery(1, 2, "00", "because")
    assert recover(statement, statement.signed_bytes(), check) == statement
    with pytest.raises(AccessDeniedError):
        recover(statement._replace(reason="another"), statement.signed_bytes(), check)
    with pytest.raises(CasError, match="reason"):
        recover(statement._replace(reason=" "), b"", check)


# -- windows


def test_window_answers_without_the_tpm_and_its_end_settles(path: Path, tpm: Swtpm, scratch: Path) -> None:
    counts: list[int] = []

    async def body(store: SqliteStore) -> None:
        before = TpmCounter(Tpm(tpm.tcti), MASTER).read()
        for number in range(20):
            await putting(b"%d" % number)(store)
        counts.append(TpmCounter(Tpm(tpm.tcti), MASTER).read() - before)
        copy(path, scratch / "inside")
        await putting(b"last")(store)

    witness = with_store(path, tpm, body, window_s=3600.0)
    assert counts == [0]
    assert witness.stored == witness.outside  # a stop in order ends the window
    put_back_from = scratch / "inside"
    copy(path, scratch / "end")
    put_back(path, put_back_from)
    with pytest.raises(RolledBackError):  # no state from inside the window counts any more
        with_store(path, tpm, nothing)
    put_back(path, scratch / "end")
    assert read(path, tpm) == b"last"


def test_window_ends_by_itself(path: Path, tpm: Swtpm) -> None:
    async def body(store: SqliteStore) -> None:
        await putting(b"1")(store)
        guard = store._guard
        assert isinstance(guard, Witness)
        while guard.stored != guard.outside:  # noqa: ASYNC110 - nothing is asked of the store: it does it by itself
            await asyncio.sleep(0.01)

    with_store(path, tpm, body, window_s=0.05)
