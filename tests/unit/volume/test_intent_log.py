"""The intent log under a volume: what a kill leaves in it is found again, and nothing else counts.

Its form is tested in tests/unit/core/test_log.py, every crash point by tests/fault.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from fspf.core.errors import CasUnreachableError, FreshnessError, FspfError, IntegrityError, WrongKeyError
from fspf.core.format import ROOT_NAMES
from fspf.core.freshness import Freshness
from fspf.core.log import LOG_LEN, LOG_PAGE, LogFrame
from fspf.core.types import ROOT_INO, Ino
from fspf.volume.check import verify_volume
from fspf.volume.commit import Commits
from fspf.volume.contents import Contents
from fspf.volume.exporter import decrypt_tree
from fspf.volume.layout import LOG, Layout
from fspf.volume.rekey import rekey
from fspf.volume.scrub import scrub
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.property.model import Seens, differences, tree_in
from tests.support.fakekernel import ROOT, FakeKernel
from tests.support.fakemount import FakeMount
from tests.support.logs import Quiet

SMALL: Final[dict[str, Any]] = {"commit_interval": None}
CHUNK: Final = 4096


@dataclass(slots=True)
class Killed:
    """The files of a volume whose writer was killed, and its CAS at that instant."""

    path: Path
    snapshot: bytes

    @property
    def cas(self) -> MemoryCas:
        return MemoryCas(self.snapshot)

    def open(self, *, read_only: bool = True, **more: Any) -> Volume:
        return Volume.open(self.path, self.cas, read_only=read_only, commit_interval=None, **more)


@dataclass(slots=True)
class Session:
    """A volume that is mounted, under way."""

    volume: Volume
    mounted: FakeMount
    cas: MemoryCas

    @property
    def kernel(self) -> FakeKernel:
        return self.mounted.kernel

    @property
    def commits(self) -> Commits:
        assert self.volume._commits is not None
        return self.volume._commits

    def file(self, name: bytes, data: bytes = b"", parent: int = ROOT) -> int:
        ino = self.kernel.create(parent, name).ino
        if data:
            self.kernel.write(ino, 0, data)
        return ino

    def logs(self, action: Callable[[], object]) -> None:
        """*action* commits by one record of the log, and by nothing else."""
        before = (self.commits.logged, self.commits.generation)
        action()
        assert (self.commits.logged, self.commits.generation) == (before[0] + 1, before[1] + 1)

    def sync(self, ino: int = 0) -> None:
        self.logs((lambda: self.kernel.fsync(ino)) if ino else (lambda: self.kernel.fsyncdir(ROOT)))

    def tree(self) -> Seens:
        """Read all that the kernel was answered. It is sealed for that, so: after `kill`."""
        assert self.mounted.plane.relay.flush_all() == 0
        return tree_in(self.volume)

    def kill(self, name: str = "killed") -> Killed:
        """What a SIGKILL now would leave."""
        to = self.volume.path.with_name(name)
        shutil.copytree(self.volume.path, to)
        return Killed(to, self.cas.snapshot())


@contextmanager
def mounted_on(scratch: Path, *, freshness: Freshness | None = None, **more: Any) -> Iterator[Session]:
    cas = MemoryCas()
    freshness = freshness or Freshness.strict()
    with (
        Volume.create(scratch / "volume", cas, freshness=freshness, segment_slots=256, **SMALL, **more) as volume,
        FakeMount(volume) as mounted,
    ):
        volume.commit()
        yield Session(volume, mounted, cas)


@pytest.fixture
def session(scratch: Path) -> Iterator[Session]:
    with mounted_on(scratch) as made:
        yield made


def content(volume: Volume, name: bytes) -> bytes:
    with volume.open_file(volume.lookup(ROOT_INO, name).ino) as file:
        return file.read(0, file.size)


def assert_found(killed: Killed, expected: Seens) -> None:
    """A reader, a writer, and the reader after the writer find the same, whole."""
    with killed.open() as volume:
        assert not differences(expected, tree_in(volume))
        assert [str(finding) for finding in verify_volume(volume)] == []
    cas = killed.cas
    with Volume.open(killed.path, cas, **SMALL) as volume:
        assert not differences(expected, tree_in(volume))
    with Volume.open(killed.path, cas, read_only=True) as volume:
        assert volume.root_record is not None
        assert volume.base_generation == volume.root_record.generation, "closed: nothing is left to replay"
        assert not differences(expected, tree_in(volume))
        assert list(verify_volume(volume)) == []
    assert list(scrub(killed.path)) == []


# -- what a kill leaves is found again


def _new_file(s: Session) -> int:
    return s.file(b"new", b"n" * 9000)


def _empty_file(s: Session) -> int:
    return s.file(b"empty")


def _sparse(s: Session) -> int:
    ino = s.file(b"sparse")
    for offset in (0, 10 * CHUNK + 5, (1 << 30) + 77):
        s.kernel.write(ino, offset, b"island" * 100)
    return ino


def _overwritten(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.write(ino, CHUNK - 3, b"across the border")
    return ino


def _appended(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.write(ino, s.kernel.getattr(ino).size, b"more" * 2000)
    return ino


def _truncated(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.truncate(ino, 2 * CHUNK + 1)
    return ino


def _cut_and_extended(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.truncate(ino, 100)
    s.kernel.write(ino, 3 * CHUNK, b"behind a hole")
    s.kernel.truncate(ino, 9 * CHUNK + 9)
    return ino


def _emptied(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.truncate(ino, 0)
    return ino


def _punched(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.fallocate(ino, 3, 100, 2 * CHUNK)
    return ino


def _renamed_over(s: Session) -> int:
    ino = s.file(b"draft", b"the new text")
    s.kernel.fsync(ino)
    s.kernel.rename(ROOT, b"draft", ROOT, b"old")
    return ino


def _unlinked(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.unlink(ROOT, b"old")
    s.kernel.forget(ino)
    return 0


def _attributes(s: Session) -> int:
    ino = s.kernel.lookup(ROOT, b"old").ino
    s.kernel.setattr(ino, mode=0o604)
    s.kernel.setattr(ino, mtime_ns=1_234_567_890_123_456_789)
    return ino


def _directories(s: Session) -> int:
    directory = s.kernel.mkdir(ROOT, b"d").ino
    inner = s.kernel.mkdir(directory, b"e").ino
    ino = s.file(b"f", b"deep", inner)
    s.kernel.link(ino, directory, b"second name")
    return ino


def _before_the_epoch(s: Session) -> int:
    ino = s.file(b"ancient", b"x")
    s.kernel.setattr(ino, mtime_ns=-1_500_000_001)
    return ino


CHANGES: Final = [
    _new_file, _empty_file, _sparse, _overwritten, _appended, _truncated, _cut_and_extended, _emptied, _punched,
    _renamed_over, _unlinked, _attributes, _directories, _before_the_epoch,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_what_a_kill_leaves_is_found(session: Session, change: Callable[[Session], int]) -> None:
    session.file(b"old", bytes(range(256)) * 100)
    session.volume.commit()
    ino = change(session)
    before = session.commits.logged
    session.kernel.fsync(ino) if ino else session.kernel.fsyncdir(ROOT)
    if change is not _punched:  # a hole is not for the log
        assert session.commits.logged == before + 1
    killed = session.kill()
    assert_found(killed, session.tree())


def test_many_records_are_replayed_in_their_order(session: Session) -> None:
    ino = session.file(b"f", b"0" * 10_000)
    session.sync(ino)
    for number in range(1, 30):
        session.kernel.write(ino, number * 333, b"%d" % number * 100)
        if number % 7 == 0:
            session.kernel.truncate(ino, 9_000 - number)
        session.file(b"%d" % number, b"x" * number)
        session.sync(ino)
    killed = session.kill()
    for number in range(1, 30):  # whose fsync was not asked for
        assert session.kernel.lookup(ROOT, b"%d" % number).ino
    with killed.open() as volume:
        assert content(volume, b"f") == session.kernel.read(ino, 0, 20_000)
        assert len(volume.readdir(ROOT_INO, limit=100)) == 30


def test_a_content_that_is_sealed_between_two_records_is_not_written_twice(session: Session) -> None:
    ino = session.file(b"f", b"1" * 5000)
    session.sync(ino)
    assert session.mounted.plane.relay.flush_all() == 0
    session.kernel.write(ino, 100, b"2")
    session.sync(ino)
    assert_found(session.kill("after the seal"), session.tree())
    session.kernel.truncate(ino, 50)
    assert session.mounted.plane.relay.flush_all() == 0
    session.kernel.write(ino, 60, b"3")
    session.kernel.unlink(ROOT, b"f")
    session.sync()
    killed = session.kill("unlinked")
    with killed.open() as volume:
        assert volume.readdir(ROOT_INO) == []


def test_what_was_open_without_a_name_is_gone(session: Session) -> None:
    ino = session.file(b"f", b"open")
    session.volume.commit()
    session.kernel.open(ino)
    session.kernel.unlink(ROOT, b"f")
    session.kernel.write(ino, 0, b"still open")
    session.sync(ino)
    killed = session.kill()
    with killed.open(read_only=False) as volume:
        assert volume.readdir(ROOT_INO) == []
        assert volume.status()["files"] == 1


def test_the_second_kill_is_no_worse_than_the_first(session: Session) -> None:
    session.sync(session.file(b"f", b"first"))
    killed = session.kill()
    cas = killed.cas
    volume = Volume.open(killed.path, cas, **SMALL)
    again = shutil.copytree(killed.path, killed.path.with_name("again"))
    snapshot = cas.snapshot()
    volume.close()
    assert_found(Killed(again, snapshot), session.tree())


@pytest.mark.parametrize("freshness", [Freshness.bounded(600_000), Freshness.none()], ids=str)
def test_modes_that_do_not_wait_for_the_cas(scratch: Path, freshness: Freshness) -> None:
    with mounted_on(scratch, freshness=freshness) as session:
        ino = session.file(b"f", b"a" * 100)
        session.kernel.fsync(ino)
        for number in range(20):
            session.kernel.write(ino, number, b"%d" % number)
            session.sync(ino)
        killed = session.kill()
        expected = session.tree()
        with killed.open() as volume:
            assert not differences(expected, tree_in(volume))
        session.volume.commit()  # the log begins anew, the CAS may be behind
        session.kernel.write(ino, 0, b"later")
        session.sync(ino)
        assert_found(session.kill("restarted"), session.tree())


# -- the writer


def test_closing_leaves_nothing_to_replay(scratch: Path) -> None:
    with mounted_on(scratch) as session:
        session.sync(session.file(b"f", b"x"))
        cas = session.cas
    with Volume.open(scratch / "volume", cas, read_only=True) as volume:
        assert volume.root_record is not None
        assert volume.base_generation == volume.root_record.generation
        assert volume.root_record.space_map is not None
        assert content(volume, b"f") == b"x"


def test_a_root_record_restarts_the_log(session: Session) -> None:
    ino = session.file(b"f", b"x")
    session.sync(ino)
    session.kernel.write(ino, 0, b"y" * 9000)
    session.sync(ino)
    first = (session.volume.path / LOG).read_bytes()
    session.volume.commit()
    session.kernel.write(ino, 0, b"z")
    session.sync(ino)
    second = (session.volume.path / LOG).read_bytes()
    length = LogFrame.parse(second, 0).length
    assert second[:length] != first[:length]
    assert second[length:] == first[length:]
    with session.kill().open() as volume:
        assert content(volume, b"f") == session.kernel.read(ino, 0, 10_000)


def test_roots_never_overwrite_the_base_of_the_log(session: Session) -> None:
    ino = session.file(b"f", b"x")
    for number in range(6):
        for _ in range(number % 3):
            session.kernel.write(ino, 0, b"%d" % number)
            session.sync(ino)
        base = session.commits._base_generation
        session.kernel.write(ino, 0, b"-")
        session.volume.commit()
        assert session.commits._base_generation % 2 != base % 2
        assert session.commits.generation == session.commits._base_generation


def test_a_full_log_is_followed_by_a_root(session: Session) -> None:
    session.sync(session.file(b"f", b"x"))
    session.commits._log_end = LOG_LEN - LOG_PAGE
    ino = session.file(b"g", b"y" * 6000)
    before = session.commits.logged
    session.kernel.fsync(ino)
    assert session.commits.logged == before
    assert session.commits._log_end == 0
    assert_found(session.kill(), session.tree())
    session.kernel.write(ino, 0, b"z")
    session.sync(ino)


def test_what_found_no_room_in_the_log_nor_in_a_root_is_in_the_next_root(
    session: Session, monkeypatch: pytest.MonkeyPatch, quiet: Quiet
) -> None:
    """A record that is not written took the rows and the piece with it: no later record may stand for them."""
    quiet.require("fsync: .*No space left")
    session.sync(session.file(b"f", b"x"))
    ino = session.file(b"g", b"y" * 6000)
    commit_to_log, prepare = Commits._commit_to_log, session.commits._prepare
    monkeypatch.setattr(Commits, "_commit_to_log", lambda *_: False)  # the log is full

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(session.commits, "_prepare", no_room)
    with pytest.raises(OSError, match="fsync"):
        session.kernel.fsync(ino)
    monkeypatch.setattr(Commits, "_commit_to_log", commit_to_log)
    monkeypatch.setattr(session.commits, "_prepare", prepare)
    session.kernel.fsync(ino)
    with session.kill().open() as volume:
        assert content(volume, b"g") == b"y" * 6000


def test_what_the_control_plane_changed_needs_a_root(session: Session) -> None:
    ino = session.file(b"f", b"x")
    session.sync(ino)
    session.kernel.setxattr(ino, b"user.a", b"b")
    before = session.commits.logged
    session.kernel.fsync(ino)
    assert session.commits.logged == before
    assert_found(session.kill(), session.tree())
    session.kernel.write(ino, 0, b"y")
    session.sync(ino)
    assert_found(session.kill("and on"), session.tree())


def test_more_rows_than_a_record_should_hold_are_a_commit(session: Session) -> None:
    for number in range(600):
        session.file(b"%d" % number)
    before = session.commits.logged
    session.kernel.fsyncdir(ROOT)
    assert session.commits.logged == before
    assert_found(session.kill(), session.tree())


def test_without_room_for_the_log_every_fsync_is_a_commit(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, quiet: Quiet
) -> None:
    quiet.require("no room for the intent log")

    def no_room(_: Layout, name: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    with mounted_on(scratch) as session:
        monkeypatch.setattr(Layout, "_replace", no_room)
        for number in range(3):
            session.kernel.fsync(session.file(b"%d" % number, b"x"))
        assert session.commits.logged == 0
        assert not (session.volume.path / LOG).exists()
        killed = session.kill()
        expected = session.tree()
        monkeypatch.undo()
        assert_found(killed, expected)


def test_a_long_session_keeps_its_descriptors_and_memory(session: Session) -> None:
    ino = session.file(b"f", b"x")
    session.sync(ino)

    def descriptors() -> list[str]:
        """Those of the log and the roots; the store keeps a bounded number of segments open."""
        links = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        return sorted(
            link for link in links if link.endswith((*ROOT_NAMES, LOG)) and link.startswith(str(session.volume.path))
        )

    session.volume.commit()
    before = descriptors()
    assert len(before) == 3
    intent = session.volume.intent
    for number in range(300):
        session.kernel.write(ino, number, b"y")
        session.sync(ino)
        assert len(intent.unrecorded) == 0
        if number % 50 == 49:
            session.volume.commit()
            assert not intent.backlog
            assert not intent.logged
    assert descriptors() == before


def test_a_reader_beside_the_writer_sees_records_and_changes_nothing(session: Session) -> None:
    ino = session.file(b"f", b"x")
    for number in range(5):
        session.kernel.write(ino, 0, b"%d" % number)
        session.sync(ino)
        names = {path.name: path.read_bytes() for path in session.volume.path.iterdir() if path.is_file()}
        with Volume.open(session.volume.path, session.cas, read_only=True) as seen:
            assert content(seen, b"f") == b"%d" % number
            session.kernel.write(ino, 0, b"!")
            session.kernel.fsync(ino)
            assert content(seen, b"f") == b"%d" % number
            assert list(verify_volume(seen)) == []
        assert names.keys() == {path.name for path in session.volume.path.iterdir() if path.is_file()}


def test_a_reader_that_is_overtaken_looks_again(scratch: Path, monkeypatch: pytest.MonkeyPatch, quiet: Quiet) -> None:
    """The CAS lags, so it does not tell that the log was begun anew between the roots and the log."""
    quiet.allow("the CAS is away")

    def away(what: str) -> None:
        if what == "advance":
            raise CasUnreachableError("the CAS is away")

    with mounted_on(scratch, freshness=Freshness.bounded(600_000)) as session:
        ino = session.file(b"f", b"1")
        session.sync(ino)
        session.commits._drain()
        hook, session.cas.before = session.cas.before, away
        read_log = Layout.read_log

        def overtaken(layout: Layout) -> bytes:
            monkeypatch.setattr(Layout, "read_log", read_log)
            session.kernel.write(ino, 0, b"2")
            session.volume.commit()
            session.kernel.write(ino, 0, b"3")
            session.sync(ino)
            return read_log(layout)

        monkeypatch.setattr(Layout, "read_log", overtaken)
        with Volume.open(session.volume.path, session.cas, read_only=True) as seen:
            assert content(seen, b"f") == b"3"
        session.cas.before = hook


# -- what is on the disk is not what was anchored


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def with_records(session: Session) -> Killed:
    """Three records in the log; the third is anchored."""
    ino = session.file(b"f", b"one" * 3000)
    session.sync(ino)
    session.kernel.write(ino, 0, b"two" * 3000)
    session.sync(ino)
    session.kernel.write(ino, 0, b"three" * 1000)
    session.sync(ino)
    return session.kill()


def refusal(killed: Killed, *, writer: bool = True) -> FspfError:
    """Reader and writer refuse it alike, and nothing was changed by it."""
    found = []
    for read_only in (True, not writer):
        cas = killed.cas
        before = {path.name: path.read_bytes() for path in killed.path.iterdir() if path.is_file()}
        with pytest.raises(FspfError) as info:
            Volume.open(killed.path, cas, read_only=read_only, **SMALL)
        assert cas.snapshot() == killed.snapshot or cas.calls.count("acquire") == 0
        assert before == {path.name: path.read_bytes() for path in killed.path.iterdir() if path.is_file()}
        found.append(info.value)
    assert type(found[0]) is type(found[1])
    assert str(found[0]) == str(found[1])
    return found[0]


def test_an_older_copy_of_the_log_is_refused_with_both_generations(session: Session) -> None:
    ino = session.file(b"f", b"old")
    session.sync(ino)
    old = (session.volume.path / LOG).read_bytes()
    generation = session.commits.generation
    session.kernel.write(ino, 0, b"new")
    session.sync(ino)
    killed = session.kill()
    (killed.path / LOG).write_bytes(old)
    problem = refusal(killed)
    assert isinstance(problem, FreshnessError)
    assert (problem.expected_generation, problem.found_generation) == (generation + 1, generation)


def test_a_missing_log_is_refused(with_records: Killed) -> None:
    (with_records.path / LOG).unlink()
    assert isinstance(refusal(with_records), IntegrityError)


def test_the_log_of_another_volume_is_refused(with_records: Killed, tmp_path: Path) -> None:
    with mounted_on(tmp_path) as other:
        other.sync(other.file(b"f", b"x"))
        shutil.copy(other.volume.path / LOG, with_records.path / LOG)
    assert isinstance(refusal(with_records), IntegrityError)


def frames(killed: Killed) -> list[tuple[int, LogFrame]]:
    raw = (killed.path / LOG).read_bytes()
    found, offset = [], 0
    while raw[offset : offset + 8] == b"FSPF-LOG":
        frame = LogFrame.parse(raw, offset)
        found.append((offset, frame))
        offset += frame.length
    return found


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_anchored_record_that_is_cut_off_is_torn(with_records: Killed, which: int) -> None:
    offset, _ = frames(with_records)[which]
    os.truncate(with_records.path / LOG, offset + 512)
    problem = refusal(with_records)
    assert type(problem) is IntegrityError
    assert "torn or rotten, not tampered with" in str(problem)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_anchored_record_that_was_altered_is_tampered_with(with_records: Killed, which: int) -> None:
    offset, frame = frames(with_records)[which]
    from fspf.core.log import _frame

    forged = _frame(frame.key_version, frame.epoch, frame.nonce, bytes(16), frame.sealed)
    _overwrite(with_records.path / LOG, offset, forged)
    problem = refusal(with_records)
    assert type(problem) is IntegrityError
    assert "tampered with" in str(problem)
    assert "torn" not in str(problem)


def test_a_record_that_was_never_anchored_may_be_lost(session: Session) -> None:
    ino = session.file(b"f", b"anchored")
    session.sync(ino)
    snapshot = session.cas.snapshot()
    session.kernel.write(ino, 0, b"ANCHORED")
    session.sync(ino)
    killed = session.kill()
    killed.snapshot = snapshot  # it died before the CAS heard of the last record
    with killed.open() as volume:
        assert content(volume, b"f") == b"ANCHORED"
    offset, _ = frames(killed)[1]
    _overwrite(killed.path / LOG, offset + 64, b"torn")
    with killed.open() as volume:
        assert content(volume, b"f") == b"anchored"
    with killed.open(read_only=False) as volume:
        assert content(volume, b"f") == b"anchored"


def test_old_root_and_new_log_and_the_reverse_are_refused(session: Session) -> None:
    ino = session.file(b"f", b"1")
    session.volume.commit()
    session.kernel.write(ino, 0, b"2")
    session.sync(ino)
    path = session.volume.path
    old = {name: (path / name).read_bytes() for name in (*ROOT_NAMES, LOG)}
    for turn in range(2):  # both roots are newer then
        session.kernel.write(ino, 0, b"%d" % turn)
        session.volume.commit()
    session.kernel.write(ino, 0, b"3")
    session.sync(ino)
    killed = session.kill()
    new = {name: (killed.path / name).read_bytes() for name in (*ROOT_NAMES, LOG)}
    for name in ROOT_NAMES:
        (killed.path / name).write_bytes(old[name])
    assert isinstance(refusal(killed), FreshnessError)
    for name in ROOT_NAMES:
        (killed.path / name).write_bytes(new[name])
    (killed.path / LOG).write_bytes(old[LOG])
    assert isinstance(refusal(killed), FreshnessError)
    (killed.path / LOG).write_bytes(new[LOG])
    with killed.open() as volume:
        assert content(volume, b"f") == b"3"


def test_mode_none_takes_what_is_there(scratch: Path) -> None:
    with mounted_on(scratch, freshness=Freshness.none()) as session:
        ino = session.file(b"f", b"old")
        session.kernel.fsync(ino)
        session.kernel.write(ino, 0, b"OLD")
        session.sync(ino)
        old = (session.volume.path / LOG).read_bytes()
        session.kernel.write(ino, 0, b"new")
        session.sync(ino)
        killed = session.kill()
        (killed.path / LOG).write_bytes(old)
        with killed.open() as volume:
            assert content(volume, b"f") == b"OLD"


# -- other commands on such a volume


def test_rekey_takes_along_what_the_log_has(session: Session, with_records: Killed) -> None:
    expected = session.tree()
    old = with_records.cas
    cas = with_records.cas
    rekey(with_records.path, cas)
    with Volume.open(with_records.path, cas, read_only=True) as volume:
        assert not differences(expected, tree_in(volume))
        assert list(verify_volume(volume)) == []
    with pytest.raises((FreshnessError, IntegrityError, WrongKeyError)):
        Volume.open(with_records.path, old, read_only=True)


def test_verify_salvage_and_decrypt_have_what_the_log_has(
    session: Session, with_records: Killed, tmp_path: Path
) -> None:
    session.kernel.truncate(session.kernel.lookup(ROOT, b"f").ino, 3 * CHUNK)  # not committed
    expected = b"three" * 1000 + (b"two" * 3000)[5000:]
    assert list(scrub(with_records.path)) == []
    with with_records.open() as volume:
        assert list(verify_volume(volume, salvage=tmp_path / "salvaged")) == []
        decrypt_tree(volume, tmp_path / "decrypted")
    assert (tmp_path / "salvaged" / "f").read_bytes() == expected
    assert (tmp_path / "decrypted" / "f").read_bytes() == expected
    with with_records.open() as volume:
        state = volume.root_record
        assert state is not None
        assert (state.files, state.total_bytes) == (2, len(expected))  # what `fspf info` shows


@pytest.mark.parametrize("change", ["overwrite", "append", "cut"])
def test_damage_of_what_the_log_replaces_costs_nothing(session: Session, change: str) -> None:
    ino = session.file(b"f", b"a" * 3000)
    session.volume.commit()
    with session.volume.lock:
        row = session.volume.namespace.inode(Ino(ino))
    assert row is not None
    assert row.pointer is not None
    slot = int.from_bytes(row.pointer[:5], "little")
    if change == "cut":
        session.kernel.truncate(ino, 2000)
    else:
        session.kernel.write(ino, 5 if change == "overwrite" else 3000, b"b" * 100)
    session.sync(ino)
    killed = session.kill()
    slots = session.volume.header.segment_slots
    _overwrite(killed.path / "segments" / f"{slot // slots:08x}", slot % slots * CHUNK, b"\xff" * 8)
    expected = session.kernel.read(ino, 0, CHUNK)
    if change == "cut":  # its first 2000 bytes are nowhere else
        assert "cannot be replayed, a content that it changes is torn" in str(refusal(killed, writer=False))
        return
    with killed.open() as volume:
        assert content(volume, b"f") == expected
        assert list(verify_volume(volume)) == []
    with killed.open(read_only=False) as volume:
        assert content(volume, b"f") == expected


def test_a_replay_that_finds_no_room_loses_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = session.file(b"f", b"x" * 9000)
    session.sync(ino)
    killed = session.kill()
    expected = session.tree()
    cas = killed.cas

    def no_room(this: object, content: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Contents, "flush", no_room)
        with pytest.raises(OSError, match="No space left") as info:
            Volume.open(killed.path, cas, **SMALL)
        assert info.value.errno == errno.ENOSPC
    with Volume.open(killed.path, cas, read_only=True) as volume:
        assert not differences(expected, tree_in(volume))
    with Volume.open(killed.path, cas, **SMALL) as volume:
        assert not differences(expected, tree_in(volume))


def test_a_quota_that_the_replay_exceeds_is_told_and_loses_nothing(session: Session, quiet: Quiet) -> None:
    quiet.allow("No space left|quota is used up")
    for number in range(12):
        session.sync(session.file(b"%d" % number, b"%d" % (number % 10) * 30_000))
    killed = session.kill()
    expected = session.tree()
    cas = killed.cas
    with pytest.raises(OSError, match="No space left") as info:
        Volume.open(killed.path, cas, max_bytes=40 * CHUNK, **SMALL)
    assert info.value.errno == errno.ENOSPC
    with Volume.open(killed.path, cas, read_only=True) as volume:
        assert not differences(expected, tree_in(volume))
    with Volume.open(killed.path, cas, **SMALL) as volume:
        assert not differences(expected, tree_in(volume))


def test_the_log_takes_its_blocks_before_it_is_used(session: Session) -> None:
    session.sync(session.file(b"f"))
    status = (session.volume.path / LOG).stat()
    assert status.st_size == LOG_LEN
    assert status.st_blocks * 512 >= LOG_LEN
    assert stat.S_IMODE(status.st_mode) == 0o600
