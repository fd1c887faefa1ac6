"""The CAS is away, slow, locked, or its answer is lost: nothing acknowledged is lost, and messages say what to do."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fspf.cas import EmbeddedCas
from fspf.core.anchor import Anchor, Lease
from fspf.core.errors import (
    CasUnreachableError,
    FspfError,
    LeaseError,
    LeaseHeldError,
    LeaseLostError,
    ReadOnlyError,
)
from fspf.core.freshness import Freshness
from fspf.core.types import ROOT_INO
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.support.logs import Quiet


def write(volume: Volume, name: bytes, data: bytes = b"data") -> None:
    """Make a file and have it promised."""
    ino = volume.mknod(ROOT_INO, name, 0o100600).ino
    with volume.open_file(ino, write=True) as file:
        file.write(0, data)
        file.fsync()


def names(volume: Volume) -> list[bytes]:
    return [entry.name for entry in volume.readdir(ROOT_INO)]


class Away:
    """Makes a `MemoryCas` unreachable: from now on, or at chosen calls."""

    def __init__(self, cas: MemoryCas) -> None:
        self.cas = cas
        self.before: set[str] = set()  # methods that do not arrive
        self.after: set[str] = set()  # methods whose answer is lost
        self.once = False
        cas.before = lambda what: self._hook(what, self.before)
        cas.after = lambda what: self._hook(what, self.after)

    def _hook(self, what: str, away: set[str]) -> None:
        if what in away or "*" in away:
            if self.once:
                away.discard(what)
            raise CasUnreachableError("no answer")


@pytest.fixture
def cas() -> MemoryCas:
    return MemoryCas()


@pytest.fixture
def make(scratch: Path, cas: MemoryCas) -> Iterator[Callable[..., Volume]]:
    made: list[Volume] = []

    def create(freshness: Freshness | None = None, timeout_s: float = 5.0) -> Volume:
        made.append(
            Volume.create(
                scratch / "v", cas, freshness=freshness, commit_interval=None, segment_slots=64, cas_timeout_s=timeout_s
            )
        )
        return made[-1]

    yield create
    for volume in made:
        volume.abandon()


def reopened(scratch: Path, cas: MemoryCas) -> list[bytes]:
    cas.before = cas.after = lambda _: None
    with Volume.open(scratch / "v", cas, commit_interval=None) as volume:
        return names(volume)


def test_strict_waits_while_the_cas_is_away_and_goes_on(
    make: Callable[..., Volume], cas: MemoryCas, quiet: Quiet
) -> None:
    quiet.require("the CAS is away, writers wait")
    volume = make()
    away = Away(cas)
    away.before = {"*"}
    timer = threading.Timer(0.4, away.before.clear)
    timer.start()
    began = time.monotonic()
    write(volume, b"a")
    assert time.monotonic() - began >= 0.3
    assert volume.status()["anchored_generation"] == volume.status()["generation"]
    timer.join()
    write(volume, b"b")
    volume.close()


def test_a_cas_that_stays_away_turns_the_volume_read_only(
    make: Callable[..., Volume], cas: MemoryCas, scratch: Path, quiet: Quiet
) -> None:
    quiet.allow("the CAS is away")
    quiet.require("turned read-only: the CAS was away for")
    volume = make(timeout_s=0.2)
    write(volume, b"a")
    Away(cas).before = {"*"}
    with pytest.raises(CasUnreachableError, match=r"durable but not anchored.*until it is opened again"):
        write(volume, b"b")
    with pytest.raises(ReadOnlyError, match="read-only"):
        volume.mknod(ROOT_INO, b"c", 0o100600)
    assert names(volume) == [b"a", b"b"]  # reading goes on
    assert volume.status()["failed"]
    with pytest.raises(FspfError, match="read-only"):
        volume.close()
    cas.expire_leases()  # it could not be released either
    assert reopened(scratch, cas) == [b"a", b"b"]


@pytest.mark.parametrize("arrived", [True, False])
def test_an_advance_of_unknown_outcome_is_asked_about(
    make: Callable[..., Volume], cas: MemoryCas, scratch: Path, quiet: Quiet, *, arrived: bool
) -> None:
    quiet.allow("the CAS is away, writers wait")
    volume = make()
    away = Away(cas)
    away.once = True
    (away.after if arrived else away.before).add("advance")
    write(volume, b"a")
    record = cas.fetch(volume.header.volume_id)
    assert record.anchor.generation == volume.status()["generation"]
    assert cas.calls.count("advance") == (
        2 if arrived else 3
    )  # creating, and this one: again only if it had not arrived
    write(volume, b"b")
    volume.close()
    assert reopened(scratch, cas) == [b"a", b"b"]


def test_an_advance_that_arrived_though_the_cas_stays_away(
    make: Callable[..., Volume], cas: MemoryCas, scratch: Path, quiet: Quiet
) -> None:
    """The answer and every later question are lost: read-only, and the next opening finds the anchor moved."""
    quiet.allow("the CAS is away")
    quiet.require("turned read-only")
    volume = make(timeout_s=0.1)
    away = Away(cas)

    def lost(what: str) -> None:
        if what == "advance":
            away.before = {"*"}
            raise CasUnreachableError("no answer")

    cas.after = lost
    with pytest.raises(CasUnreachableError):
        write(volume, b"a")
    with pytest.raises(FspfError):
        volume.close()
    cas.expire_leases()
    assert reopened(scratch, cas) == [b"a"]


def test_a_lost_lease_turns_the_volume_read_only(
    make: Callable[..., Volume], cas: MemoryCas, scratch: Path, quiet: Quiet
) -> None:
    quiet.require("turned read-only: the lease of epoch 1")
    volume = make()
    write(volume, b"a")
    cas.expire_leases()
    (volume.path / "lock").unlink()  # as on another machine: the lock on this one is not in the way
    other = Volume.open(scratch / "v", cas, commit_interval=None)
    write(other, b"theirs")
    with pytest.raises(LeaseLostError, match="no longer held"):
        write(volume, b"b")
    with pytest.raises(ReadOnlyError):
        volume.mknod(ROOT_INO, b"c", 0o100600)
    write(other, b"more")
    other.close()
    assert reopened(scratch, cas) == [b"a", b"theirs", b"more"]


def test_an_expired_lease_that_nobody_took_goes_on(make: Callable[..., Volume], cas: MemoryCas, scratch: Path) -> None:
    volume = make()
    cas.expire_leases()
    write(volume, b"a")
    volume.close()
    assert reopened(scratch, cas) == [b"a"]


def test_a_second_writer_is_refused(make: Callable[..., Volume], cas: MemoryCas, scratch: Path) -> None:
    volume = make()
    with pytest.raises(LeaseHeldError, match="open for writing"):
        Volume.open(scratch / "v", cas)
    volume._layout.close()  # without the lock of this machine there is still the lease
    with pytest.raises(LeaseHeldError) as caught:
        Volume.open(scratch / "v", cas)
    assert isinstance(caught.value, LeaseError)
    assert str(caught.value.holder.pid) in str(caught.value)


def test_bounded_returns_at_once_and_then_waits(make: Callable[..., Volume], cas: MemoryCas, quiet: Quiet) -> None:
    quiet.allow("the CAS is away, writers wait")
    volume = make(Freshness.bounded(200, 2))
    write(volume, b"a")
    away = Away(cas)
    away.before = {"*"}
    began = time.monotonic()
    write(volume, b"b")
    assert time.monotonic() - began < 0.15
    assert volume.status()["anchored_generation"] < volume.status()["generation"]
    timer = threading.Timer(0.6, away.before.clear)
    timer.start()
    for name in (b"c", b"d", b"e"):  # more than two commits, or more than 200 ms, behind
        write(volume, name)
    assert time.monotonic() - began >= 0.5
    timer.join()
    volume.close()
    assert volume._commits is not None
    assert cas.anchor(volume.header.volume_id).generation == volume._commits.generation


def test_bounded_turns_read_only_when_the_cas_stays_away(
    make: Callable[..., Volume], cas: MemoryCas, scratch: Path, quiet: Quiet
) -> None:
    quiet.allow("the CAS is away")
    quiet.require("turned read-only")
    volume = make(Freshness.bounded(50), timeout_s=0.3)
    Away(cas).before = {"*"}
    promised = []
    with pytest.raises((CasUnreachableError, ReadOnlyError)):
        for number in range(1000):
            write(volume, b"%d" % number)
            promised.append(b"%d" % number)
    assert promised
    with pytest.raises(FspfError):
        volume.close()
    cas.expire_leases()
    assert reopened(scratch, cas)[: len(promised)] == promised


def test_without_freshness_the_cas_is_not_waited_for(
    make: Callable[..., Volume], cas: MemoryCas, scratch: Path, quiet: Quiet
) -> None:
    quiet.allow("is not anchored, the CAS is away")
    volume = make(Freshness.none())
    away = Away(cas)
    away.before = {"*"}
    began = time.monotonic()
    for number in range(5):
        write(volume, b"%d" % number)
    assert time.monotonic() - began < 1
    volume.abandon()
    cas.expire_leases()
    assert len(reopened(scratch, cas)) == 5


@pytest.mark.parametrize("arrived", [True, False])
def test_a_creation_whose_cas_goes_away_leaves_nothing(cas: MemoryCas, scratch: Path, *, arrived: bool) -> None:
    for method in ("create", "acquire", "advance"):
        away = Away(cas)
        (away.after if arrived else away.before).add(method)
        away.before |= {"fetch", "advance"} if method == "advance" else set()
        with pytest.raises(CasUnreachableError):
            Volume.create(scratch / "v", cas, commit_interval=None, cas_timeout_s=0.05)
        assert not (scratch / "v").exists()
        cas.before = cas.after = lambda _: None
    Volume.create(scratch / "v", cas, commit_interval=None).close()


@pytest.fixture(autouse=True)
def _announced(quiet: Quiet, request: pytest.FixtureRequest) -> None:
    if "creation" in request.node.name:
        quiet.allow("the CAS is away|turned read-only")


@pytest.mark.parametrize("arrived", [True, False])
def test_an_opening_whose_lease_has_an_unknown_outcome(
    make: Callable[..., Volume], cas: MemoryCas, scratch: Path, *, arrived: bool
) -> None:
    make().close()
    away = Away(cas)
    away.once = True
    (away.after if arrived else away.before).add("acquire")
    try:
        volume = Volume.open(scratch / "v", cas, commit_interval=None)
    except CasUnreachableError:
        volume = Volume.open(scratch / "v", cas, commit_interval=None)  # it can be repeated at once
    write(volume, b"a")
    volume.close()


def test_a_locked_embedded_cas_is_waited_for(scratch: Path, quiet: Quiet) -> None:
    quiet.allow("the CAS is away, writers wait")
    cas = EmbeddedCas(str(scratch / "cas.sqlite"), busy_timeout_s=0.05)
    volume = Volume.create(scratch / "v", cas, commit_interval=None, cas_timeout_s=20)
    blocker = sqlite3.connect(scratch / "cas.sqlite", isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.4, lambda: blocker.execute("ROLLBACK"))
    timer.start()
    write(volume, b"a")
    timer.join()
    blocker.close()
    volume.close()
    with Volume.open(scratch / "v", cas, read_only=True) as again:
        assert names(again) == [b"a"]
    cas.close()


def test_an_embedded_cas_that_disappeared_is_away(scratch: Path, quiet: Quiet) -> None:
    quiet.allow("the CAS is away")
    quiet.require("turned read-only")
    cas = EmbeddedCas(str(scratch / "cas.sqlite"), busy_timeout_s=0.05)
    volume = Volume.create(scratch / "v", cas, commit_interval=None, cas_timeout_s=0.2)
    write(volume, b"a")
    for file in scratch.glob("cas.sqlite*"):
        file.rename(file.with_name("gone-" + file.name))
    with pytest.raises((FspfError, OSError)):
        write(volume, b"b")
    assert volume.failed
    with pytest.raises((FspfError, OSError)):
        volume.close()
    for file in scratch.glob("gone-*"):
        file.rename(file.with_name(file.name.removeprefix("gone-")))
    with Volume.open(scratch / "v", cas, read_only=True) as again:
        assert names(again) == [b"a", b"b"]
    cas.close()


def test_errors_have_an_errno_for_the_mount() -> None:
    assert CasUnreachableError.errno == errno.EIO
    assert ReadOnlyError.errno == errno.EROFS


def test_in_mode_none_a_try_that_arrives_late_is_no_stranger(
    cas: MemoryCas, make: Callable[..., Volume], quiet: Quiet
) -> None:
    """Found by tests/property/test_two_writers.py: the message was delayed, and the only writer turned read-only."""
    quiet.allow("is not anchored|CAS is away")
    volume = make(Freshness.none())
    late: list[tuple[Lease, Anchor, Anchor]] = []
    advance, tried = cas.advance, threading.Event()

    def delayed(volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        if not late:
            late.append((lease, expected, new))
            raise CasUnreachableError("no answer")
        if not tried.is_set():
            tried.set()
            advance(volume_id, *late[0])  # the first try arrives now, after it was given up
        advance(volume_id, lease, expected, new)

    cas.advance = delayed  # type: ignore[method-assign]
    write(volume, b"one")
    assert volume._commits is not None
    with volume._commits._lag:
        while not late or volume._commits._pending:
            volume._commits._lag.wait(1)
    write(volume, b"two")
    volume.close()
    assert tried.is_set()
    assert volume.failed is None
    assert cas.anchor(volume.header.volume_id) == Anchor(volume._commits.generation, volume._commits.root_tag)


def test_a_lease_of_another_volume_of_the_same_process_is_not_taken_for_ones_own(
    scratch: Path, cas: MemoryCas, make: Callable[..., Volume]
) -> None:
    """Found by tests/property/test_two_writers.py: both wrote under one epoch, so that either could be adopted after the other."""
    make().close()
    shutil.copytree(scratch / "v", scratch / "copy")
    acquire, others = cas.acquire, []

    def lost(volume_id: bytes, **given: Any) -> Lease:
        cas.acquire = acquire  # type: ignore[method-assign]
        others.append(Volume.open(scratch / "copy", cas, commit_interval=None))
        raise CasUnreachableError("no answer")

    cas.acquire = lost  # type: ignore[method-assign]
    try:
        with pytest.raises(CasUnreachableError):
            Volume.open(scratch / "v", cas, commit_interval=None)
    finally:
        others[0].close()
