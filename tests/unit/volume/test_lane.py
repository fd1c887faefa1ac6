"""The lane: what fsyncs write without Python is what Python would have written, and it stops where Python must have a say.

Every crash point of it is the crash explorer's (tests/fault), its memory and threads are the sanitizers' (tests/native).
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

import pytest

from fspf.cas.embedded import EmbeddedCas
from fspf.core.errors import FspfError, IntegrityError
from fspf.core.freshness import Freshness
from fspf.core.log import LogFrame, LogRecord
from fspf.core.types import ROOT_INO, Ino
from fspf.volume.commit import Commits
from fspf.volume.layout import LOG, Layout
from fspf.volume.volume import Volume
from tests.property.model import Seens, differences, tree_in
from tests.support.fakekernel import ROOT, FakeKernel
from tests.support.fakemount import FakeMount
from tests.support.logs import Quiet

CHUNK: Final = 4096


@dataclass(slots=True)
class Session:
    """A mounted volume with an embedded CAS, whose lane writes."""

    volume: Volume
    mounted: FakeMount
    cas: EmbeddedCas
    directory: Path
    busy: int = 0  # a file for fsyncs

    @property
    def kernel(self) -> FakeKernel:
        return self.mounted.kernel

    @property
    def commits(self) -> Commits:
        assert self.volume._commits is not None
        return self.volume._commits

    def lend(self) -> None:
        """Let the lane write, as it does after some fsyncs through Python."""
        for number in range(8):
            self.kernel.write(self.busy, 0, b"%d" % number)
            self.kernel.fsync(self.busy)
            if self.mounted.plane.relay.lane_is_armed:
                return
        raise AssertionError("nothing is lent")

    def lend_in_turn(self) -> None:
        """The same where each state is anchored only after the fsync was answered."""
        for number in range(20):
            self.kernel.write(self.busy, 0, b"%d" % number)
            self.kernel.fsync(self.busy)
            if self.mounted.plane.relay.lane_is_armed:
                return
            self.commits._drain()
        raise AssertionError("nothing is lent")

    def by_lane(self, action: Callable[[], object]) -> int:
        """How many records the lane wrote meanwhile."""
        before = self.mounted.plane.relay.stats()
        action()
        after = self.mounted.plane.relay.stats()
        found = after["lane_records"] - before["lane_records"]
        assert not found or after["upcalls"] == before["upcalls"]
        return found

    def records(self) -> list[LogRecord]:
        """Open all records of the log: each is in the one encoding that there is."""
        raw = (self.volume.path / LOG).read_bytes()
        found, offset = [], 0
        while raw[offset : offset + 8] == b"FSPF-LOG":
            frame = LogFrame.parse(raw, offset)
            found.append(frame.open(self.commits._log_key, self.volume._header_bytes))
            offset += frame.length
        return found

    def tree(self) -> Seens:
        assert self.mounted.plane.relay.flush_all() == 0
        return tree_in(self.volume)

    def kill(self, *, lose_log: bool = False) -> tuple[Path, EmbeddedCas]:
        """What a kill now would leave, or (lose_log) a power cut that took all that the log had not synced."""
        to = self.directory.with_name("killed")
        shutil.copytree(self.directory, to)
        cas = EmbeddedCas(str(to / "cas.sqlite"), is_gone=lambda _: True)
        if lose_log:
            raw = (to / "volume" / LOG).read_bytes()
            for record in cas.kept_records(self.volume.header.volume_id):
                raw = raw.replace(record, bytes(len(record)))
            (to / "volume" / LOG).write_bytes(raw)
        return to / "volume", cas


@contextmanager
def made_in(scratch: Path, *, freshness: Freshness | None = None, **more: Any) -> Iterator[Session]:
    directory = scratch / "live"
    directory.mkdir()
    cas = EmbeddedCas(str(directory / "cas.sqlite"))
    try:
        with (
            Volume.create(
                directory / "volume",
                cas,
                freshness=freshness or Freshness.strict(),
                segment_slots=256,
                commit_interval=None,
                **more,
            ) as volume,
            FakeMount(volume) as mounted,
        ):
            volume.commit()
            yield Session(volume, mounted, cas, directory, mounted.kernel.create(ROOT, b"busy").ino)
    finally:
        cas.close()


@pytest.fixture
def session(scratch: Path) -> Iterator[Session]:
    with made_in(scratch) as made:
        made.lend()
        yield made


def opened(found: tuple[Path, EmbeddedCas], expected: Seens) -> None:
    """A reader, a writer, and the reader after the writer find the same."""
    path, cas = found
    try:
        for read_only in (True, False, True):
            with Volume.open(path, cas, read_only=read_only, commit_interval=None) as volume:
                assert not differences(expected, tree_in(volume))
    finally:
        cas.close()


# -- the record


def nothing(_session: Session, _ino: int) -> None:
    pass


def many_names(session: Session, _ino: int) -> None:
    for length in (1, 31, 32, 200, 255):
        session.kernel.create(ROOT, b"n" * length)


def removed_names(session: Session, _ino: int) -> None:
    gone = session.kernel.create(ROOT, b"gone").ino
    session.lend()
    session.kernel.unlink(ROOT, b"gone")
    session.kernel.forget(gone)


def extreme_times(session: Session, ino: int) -> None:
    for at in (-1, -32, -33, -200, -70_000, -(2**33), 2**33 + 7, 127, 128, 65536):
        made = session.kernel.create(ROOT, b"t%d" % at).ino
        session.kernel.setattr(made, mtime_ns=at * 10**9 + 5, atime_ns=at)
    session.kernel.setattr(ino, uid=2**32 - 2, gid=70_000, mode=0o7777)


def cut_and_grown(session: Session, ino: int) -> None:
    session.kernel.truncate(ino, 5 * CHUNK + 17)
    session.kernel.truncate(ino, 9 * CHUNK)


def all_chunks(session: Session, ino: int) -> None:
    for number in range(16):
        session.kernel.write(ino, number * CHUNK, bytes([number]) * CHUNK)


def directories(session: Session, _ino: int) -> None:
    below = session.kernel.mkdir(ROOT, b"below").ino
    session.kernel.create(below, b"f")
    session.kernel.rename(ROOT, b"file", below, b"moved")


def sparse(session: Session, ino: int) -> None:
    session.kernel.write(ino, (5 << 20) + 3, b"far")


@pytest.mark.parametrize(
    "change",
    [nothing, many_names, removed_names, extreme_times, cut_and_grown, all_chunks, directories, sparse],
    ids=lambda change: change.__name__,
)
def test_a_record_is_what_python_would_write(session: Session, change: Callable[[Session, int], None]) -> None:
    ino = session.kernel.create(ROOT, b"file").ino
    session.kernel.write(ino, 0, b"before" * 4000)
    session.lend()
    change(session, ino)
    if not session.mounted.plane.relay.lane_is_armed:
        session.lend()
    session.kernel.write(ino, 3, b"data" * 1500)
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 1
    record = session.records()[-1]
    session.commits.catch_up()
    assert (record.generation, record.tag) == (session.commits.generation, session.commits.root_tag)
    assert session.commits.anchor == session.cas.fetch(session.volume.header.volume_id).anchor
    assert record.end_of_slots == session.volume.store.end_of_slots()
    (batch,) = record.batches
    with session.volume.lock:  # the rows reach the database now, by another way
        namespace = session.volume.namespace
        assert [tuple(namespace.inode(Ino(row[0])) or ()) for row in batch.inodes] == batch.inodes
        for parent, _cookie, name, number in batch.names:
            named = namespace.lookup(Ino(parent), name)
            assert named is not None
            assert named.ino == number
        assert (batch.next_ino, batch.next_cookie) == (namespace.next_ino, namespace.next_cookie)
        assert batch.reflushed == []
    (piece,) = (each for each in record.pieces if each.ino == ino)
    assert piece.size == session.kernel.getattr(ino).size
    for offset, data in zip(piece.chunks[::2], piece.chunks[1::2], strict=True):
        assert isinstance(offset, int)
        assert isinstance(data, bytes)
        assert session.kernel.read(ino, offset, len(data)) == data
    opened(session.kill(lose_log=True), session.tree())


def test_an_fsync_of_nothing_new_writes_nothing(session: Session) -> None:
    ino = session.busy
    session.kernel.write(ino, 0, b"new")
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 1
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 0
    assert session.by_lane(lambda: session.kernel.fsyncdir(ROOT)) == 0
    assert session.commits._lent is not None


@pytest.mark.parametrize("lose_log", [False, True])
def test_more_records_than_ring_and_log_hold(session: Session, *, lose_log: bool) -> None:
    """The ring goes round several times, the log is full once, root records come between."""
    chance = Random(4)
    inos = [session.kernel.create(ROOT, b"%d" % number).ino for number in range(3)]
    by_lane = 0
    for number in range(1300):
        ino = chance.choice(inos)
        session.kernel.write(ino, chance.randrange(30) * CHUNK, chance.randbytes(chance.choice((10, CHUNK))))
        by_lane += session.by_lane(lambda ino=ino: session.kernel.fsync(ino))  # type: ignore[misc]
        if number == 700:
            session.volume.commit()
    assert by_lane > 1200
    found = session.kill(lose_log=lose_log)
    opened(found, session.tree())


def test_clients_share_records(session: Session) -> None:
    """Beside commits, and others who enter the volume's lock: each fsync that returned is found again."""
    inos = [session.kernel.create(ROOT, b"client %d" % number).ino for number in range(6)]
    written: dict[int, bytes] = {}
    problems: list[BaseException] = []
    over = threading.Event()

    def client(ino: int) -> None:
        chance = Random(ino)
        try:
            for _ in range(60):
                data = chance.randbytes(2 * CHUNK)
                session.kernel.write(ino, 0, data)
                session.kernel.fsync(ino)
                written[ino] = data
        except BaseException as exc:  # noqa: BLE001  # told by the main thread
            problems.append(exc)

    threads = [threading.Thread(target=client, args=(ino,)) for ino in inos]
    for thread in threads:
        thread.start()

    def others() -> None:
        while not over.wait(0.003):
            session.volume.status()
            session.volume.commit()

    disturber = threading.Thread(target=others)
    disturber.start()
    for thread in threads:
        thread.join()
    over.set()
    disturber.join()
    assert not problems
    path, cas = session.kill(lose_log=True)
    with Volume.open(path, cas, read_only=True) as volume:
        for number, ino in enumerate(inos):
            with volume.open_file(volume.lookup(ROOT_INO, b"client %d" % number).ino) as file:
                assert file.read(0, 4 * CHUNK) == written[ino]
    cas.close()


# -- where Python has a say


def change_xattr(session: Session, ino: int) -> None:
    session.kernel.setxattr(ino, b"user.x", b"y")


def make_link(session: Session, _ino: int) -> None:
    session.kernel.symlink(ROOT, b"link", b"target")


def write_much(session: Session, ino: int) -> None:
    session.kernel.write(ino, 0, bytes(40 * CHUNK))


def seal(session: Session, _ino: int) -> None:
    session.mounted.plane.relay.relieve(0)


def look(session: Session, _ino: int) -> None:
    session.volume.status()


@pytest.mark.parametrize(
    "change", [change_xattr, make_link, write_much, seal, look], ids=lambda change: change.__name__
)
def test_what_rows_do_not_tell_is_left_to_python(session: Session, change: Callable[[Session, int], None]) -> None:
    ino = session.busy
    session.kernel.write(ino, 0, b"something")
    change(session, ino)
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 0
    found = session.kill(lose_log=False)
    opened(found, session.tree())


def test_without_freshness_it_goes_without(scratch: Path) -> None:
    with (
        made_in(scratch, freshness=Freshness.none()) as session,
        pytest.raises(AssertionError, match="nothing is lent"),
    ):
        session.lend()


def test_in_bounded_mode_it_anchors_at_once(scratch: Path) -> None:
    """One sync either way; the CAS then does not lag at all."""
    with made_in(scratch, freshness=Freshness.bounded(60_000)) as session:
        for _ in range(3):
            session.commits._drain()
            session.volume.commit()
        session.commits._drain()
        session.lend_in_turn()
        for number in range(5):
            session.kernel.write(session.busy, number * CHUNK, b"bounded" * 100)
            assert session.by_lane(lambda: session.kernel.fsync(session.busy)) == 1
        session.commits.catch_up()
        assert session.cas.fetch(session.volume.header.volume_id).anchor.generation == session.commits.generation
        opened(session.kill(lose_log=True), session.tree())


def test_what_others_change_in_the_cas_is_kept(session: Session) -> None:
    ino = session.busy
    volume_id = session.volume.header.volume_id
    other = EmbeddedCas(str(session.directory / "cas.sqlite"))
    other.set_freshness(volume_id, Freshness.bounded(100))
    session.kernel.write(ino, 0, b"after it")
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 0
    assert other.fetch(volume_id).freshness == Freshness.bounded(100)
    session.commits.catch_up()
    assert other.fetch(volume_id).anchor == session.commits.anchor
    other.close()
    opened(session.kill(), session.tree())


def test_every_record_prolongs_the_lease(session: Session) -> None:
    volume_id = session.volume.header.volume_id
    before = session.cas.fetch(volume_id).lease
    ino = session.busy
    session.kernel.write(ino, 0, b"later")
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 1
    after = session.cas.fetch(volume_id).lease
    assert before is not None
    assert after is not None
    assert after.expires_ns > before.expires_ns
    session.commits.renew()
    assert session.cas.fetch(volume_id).lease == after, "there was no need"


def test_a_writer_that_has_not_heard_of_the_cas_for_long_asks_first(session: Session) -> None:
    session.commits.catch_up()
    with mock.patch("fspf.volume.commit._LONG_SILENCE_S", 0.0):
        session.lend()
        session.kernel.write(session.busy, 0, b"who knows")
        assert session.by_lane(lambda: session.kernel.fsync(session.busy)) == 0
    assert session.volume.failed is None


# -- faults


@contextmanager
def unwritable(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_ring_that_cannot_be_written_costs_a_sync_and_nothing_else(session: Session) -> None:
    ino = session.busy
    session.commits.catch_up()
    lend = EmbeddedCas.lend_ring
    with unwritable(session.directory / "cas.sqlite") as descriptor:

        def broken(self: EmbeddedCas, volume_id: bytes) -> Any:
            ring = lend(self, volume_id)
            return ring and ring._replace(descriptor=descriptor)

        with mock.patch.object(EmbeddedCas, "lend_ring", broken):
            session.lend()
        session.kernel.write(ino, 0, b"all the same")
        assert session.by_lane(lambda: session.kernel.fsync(ino)) == 0
    session.commits.catch_up()
    assert session.volume.failed is None
    assert session.cas.fetch(session.volume.header.volume_id).anchor.generation == session.commits.generation
    opened(session.kill(), session.tree())


def test_a_log_that_cannot_be_written_turns_the_volume_read_only(scratch: Path, quiet: Quiet) -> None:
    with pytest.raises(FspfError), made_in(scratch) as session:
        session.lend()
        ino = session.busy
        session.commits.catch_up()
        with (
            unwritable(session.volume.path / LOG) as descriptor,
            mock.patch.object(Layout, "log_descriptor", descriptor),
        ):
            session.lend()
        session.kernel.write(ino, 0, b"lost")
        with pytest.raises(OSError, match=r"."):
            session.kernel.fsync(ino)
        assert session.volume.failed is not None
        quiet.allow("read-only|could not be")


# -- a host that is not honest


@pytest.mark.parametrize("at", [0, 30, 70, 2000, 5000])
def test_an_altered_log_is_no_hindrance_while_the_cas_has_the_records(session: Session, at: int) -> None:
    ino = session.kernel.create(ROOT, b"file").ino
    session.kernel.fsync(ino)
    session.lend()
    for number in range(3):
        session.kernel.write(ino, number * CHUNK, bytes([number + 1]) * CHUNK)
        assert session.by_lane(lambda: session.kernel.fsync(ino)) == 1
    path, cas = session.kill()
    raw = bytearray((path / LOG).read_bytes())
    raw[_last_frame(bytes(raw)) + at] ^= 1
    (path / LOG).write_bytes(raw)
    opened((path, cas), session.tree())


def test_records_of_the_cas_are_believed_no_more_than_those_of_the_log(session: Session) -> None:
    ino = session.busy
    session.kernel.write(ino, 0, b"x" * CHUNK)
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 1
    path, cas = session.kill(lose_log=True)
    kept = EmbeddedCas.kept_records

    def altered(self: EmbeddedCas, volume_id: bytes) -> list[bytes]:
        return [record[:100] + bytes([record[100] ^ 1]) + record[101:] for record in kept(self, volume_id)]

    with mock.patch.object(EmbeddedCas, "kept_records", altered), pytest.raises(IntegrityError):
        Volume.open(path, cas, read_only=True)
    cas.close()


def _last_frame(raw: bytes) -> int:
    offset = 0
    while True:
        after = offset + LogFrame.parse(raw, offset).length
        if raw[after : after + 8] != b"FSPF-LOG":
            return offset
        offset = after


def test_the_kernel_is_told_nothing_that_is_not_so(session: Session) -> None:
    """Attributes after fsyncs by the lane are those that a new mount shows."""
    ino = session.kernel.create(ROOT, b"seen", stat.S_IFREG | 0o640).ino
    session.kernel.write(ino, 100, b"z" * 9000)
    session.lend()
    session.kernel.write(ino, 0, b"y")
    assert session.by_lane(lambda: session.kernel.fsync(ino)) == 1
    before = session.kernel.getattr(ino)
    session.volume.commit()
    after = session.kernel.getattr(ino)
    assert (before.size, before.mode, before.mtime_ns) == (after.size, after.mode, after.mtime_ns)
