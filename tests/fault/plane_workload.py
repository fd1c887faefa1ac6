"""Workloads for the crash explorer that go through the native data plane: a fake kernel, one process, all I/O recorded.

Commits by the clock and the plane's own background thread run beside the requests. What every commit wrote is read back
at once; that it has what was promised, and is no mixture, is judged by `tests.fault.plane_model`; that no crash leaves
anything else, by the explorer.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from fspf.cas import hot
from fspf.cas.embedded import EmbeddedCas
from fspf.core.errors import FspfError
from fspf.core.freshness import Freshness
from fspf.core.log import Chain, follow
from fspf.volume import opening
from fspf.volume.commit import Commits, Prepared
from fspf.volume.layout import Layout, sync_directory
from fspf.volume.namespace import Namespace
from fspf.volume.volume import Volume
from tests.fault.memcas import KeepingCas, MemoryCas
from tests.fault.plane_model import Attributes, Commit, History, Promise
from tests.property.model import tree_in
from tests.support.fakemount import FakeMount

if TYPE_CHECKING:
    from fspf.core.anchor import Anchor, Lease
    from fspf.volume.intent import Intended
    from tests.fault.workload import Result
    from tests.support.fakekernel import FakeKernel

VOLUME: Final = "volume"  # its name in the traced directory
CAS: Final = "cas"  # directory of an embedded one
CHUNK: Final = 4096
_PUNCH: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
NAMES: Final = [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]


class BusyCas(EmbeddedCas):
    """An embedded CAS before whose every advance something else happens."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        self.before()
        super().advance(volume_id, lease, expected, new)

    def advance_with(
        self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, *, record: bytes, synced: int
    ) -> bool:
        self.before()
        return super().advance_with(volume_id, lease, expected, new, record=record, synced=synced)


class PlaneSession:
    """A volume that is mounted on a fake kernel, under way.

    Attributes:
        others: What is done within a commit, by its thread: before its state is flushed, while it syncs, before the CAS.
    """

    def __init__(self, directory: Path, result: Result, mark: Callable[[str], None], seed: int, *, cas: str) -> None:
        self.path = directory / VOLUME
        self.result = result
        self.mark = mark
        self.random = Random(seed)
        self.history = History()
        self.cas: MemoryCas | BusyCas
        if cas == "embedded":  # in the same trace: what it had not synced is lost as well
            (directory / CAS).mkdir()
            sync_directory(directory)  # it was there before
            self.cas = BusyCas(str(directory / CAS / "cas.sqlite"), vfs="unix-excl")  # nothing mapped: traceable
            self.cas.before = self.meanwhile
        else:
            self.cas = KeepingCas() if cas == "keeping" else MemoryCas()
            self.cas.before, self.cas.after = self._before, self._after
            self.result.cas.append(self.cas.snapshot())
        self.others: Callable[[], None] | None = None
        self.fsync_is_fsync = True  # else: sabotage, contents are not flushed
        self.mounted: FakeMount | None = None
        self.volume: Volume | None = None
        self.inos: set[int] = set()
        self.logged = 0  # commits that were records of the intent log
        self.by_lane = 0  # those of them that Python did not write

    # -- the CAS and commits, watched

    def _before(self, what: str) -> None:
        if what != "fetch":
            self.mark(f"cas-begin {len(self.result.cas)} {what}")
        if what == "advance":
            self.meanwhile()

    def _after(self, what: str) -> None:
        assert isinstance(self.cas, MemoryCas)
        self.result.cas.append(self.cas.snapshot())
        self.mark(f"cas {len(self.result.cas) - 1} {what}")

    def meanwhile(self) -> None:
        """Let others go on, unless an operation is under way that may wait for this very commit."""
        if self.others is not None and self.mounted is not None and self.history.lock.acquire(blocking=False):
            others, self.others = self.others, None  # not within itself
            try:
                others()
            finally:
                self.others = others
                self.history.lock.release()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Read back what every commit wrote, and let others go on inside of it."""
        write_root, commit = Commits._write_root, Namespace.commit
        write_log, intend = Layout.write_log, Volume._intend
        take_back = Commits._take_back
        newest_taken = [0]

        def read_back(generation: int, newest: int) -> None:
            with Volume.open(self.path, self.cas, read_only=True) as seen:
                assert seen.root_record is not None
                assert seen.root_record.generation == generation
                tree = tree_in(seen)
            self.result.trees[generation] = tree
            self.history.commits[generation] = Commit(tree, newest)

        def read_back_lane(generation: int) -> None:
            """Records that the lane has written, perhaps several since anybody looked: each as if it were the last."""
            newest = self.history.number

            def cut_off(*arguments: Any, **named: Any) -> Chain:
                chain = follow(*arguments, **named)
                return chain._replace(records=tuple(each for each in chain.records if each.generation <= generation))

            with (
                mock.patch.object(opening, "follow", cut_off),
                Volume.open(self.path, self.cas, read_only=True, accept_stale=True) as seen,
            ):
                assert seen.root_record is not None
                assert seen.root_record.generation == generation
                tree = tree_in(seen)
            self.result.trees[generation] = tree
            self.history.commits[generation] = Commit(tree, newest)
            self.logged += 1
            self.by_lane += 1

        def take_back_and_read(this: Commits) -> None:
            before = this.generation
            take_back(this)
            for generation in range(before + 1, this.generation + 1):
                if generation not in self.result.trees:
                    read_back_lane(generation)

        def write_and_read(this: Commits, prepared: Prepared, *, log_follows: bool) -> Anchor:
            self.meanwhile()
            newest = self.history.number  # an operation that began later is not in this state
            anchor = write_root(this, prepared, log_follows=log_follows)
            read_back(anchor.generation, newest)
            return anchor

        def intend_and_let_others(this: Volume, inos: set[int]) -> Intended | None:
            intended = intend(this, inos)
            newest_taken[0] = self.history.number
            if intended is not None and (intended.batches or intended.pieces):
                self.meanwhile()
            return intended

        def log_and_read(this: Layout, offset: int, frame: bytes) -> None:
            write_log(this, offset, frame)
            assert self.volume is not None
            commits = self.volume._commits
            assert commits is not None
            read_back(commits.generation + 1, newest_taken[0])
            self.logged += 1

        def flush_and_let_others(this: Namespace) -> None:
            commit(this)
            self.meanwhile()

        with (
            mock.patch.object(Commits, "_write_root", write_and_read),
            mock.patch.object(Commits, "_take_back", take_back_and_read),
            mock.patch.object(Volume, "_intend", intend_and_let_others),
            mock.patch.object(Layout, "write_log", log_and_read),
            mock.patch.object(Namespace, "commit", flush_and_let_others),
        ):
            yield

    # -- life

    @property
    def kernel(self) -> FakeKernel:
        assert self.mounted is not None
        return self.mounted.kernel

    def _anchored(self) -> int:
        assert self.volume is not None
        commits = self.volume._commits
        assert commits is not None
        return commits.anchored_generation

    def _promise(self, began: int, ino: int | None) -> None:
        generation = self._anchored()
        with self.history.lock:
            self.history.promises.append(Promise(began, ino, generation))
        self.mark(f"ack {generation}")

    def create(self) -> None:
        """Make an empty volume; before there is a header nothing can be read back."""
        volume = Volume.create(
            self.path, self.cas, freshness=Freshness.strict(), segment_slots=64, commit_interval=None
        )
        empty = tree_in(volume)
        commits = volume._commits
        assert commits is not None
        self.result.trees[commits.generation] = empty
        self.mark(f"ack {commits.generation}")
        self.result.trees[commits.generation + 1] = empty
        volume.close()
        self.mark(f"ack {commits.generation}")

    def open(self, *, interval: float | None, max_bytes: int) -> None:
        self.volume = Volume.open(self.path, self.cas, commit_interval=interval, max_bytes=max_bytes)
        self.mounted = FakeMount(self.volume)
        self._promise(self.history.number, None)

    def close(self) -> None:
        """Unmount and close: everything is promised."""
        assert self.mounted is not None
        assert self.volume is not None
        began = self.history.number
        self.mounted.unmount()
        self.mounted = None
        self.volume.close()
        self._promise(began, 0)
        self.inos.clear()

    # -- operations

    def done(self) -> int:
        """Return the number of the last operation, when none is under way."""
        with self.history.lock:
            return self.history.number

    def entries(self, kind: int) -> list[tuple[tuple[int, bytes], int]]:
        """Return the names of all inodes of a kind."""
        now = self.history.now
        return [(at, ino) for at, ino in sorted(now.names.items()) if stat.S_IFMT(now.attributes[ino].mode) == kind]

    def known(self, ino: int) -> int:
        """Let the kernel know an inode, as it does before it asks anything about it."""
        if ino != 1 and ino not in self.inos:
            parent, name = next(at for at, each in self.history.now.names.items() if each == ino)
            self.known(parent)
            assert self.kernel.lookup(parent, name).ino == ino
            self.inos.add(ino)
        return ino

    def make(self, parent: int, name: bytes, mode: int, target: bytes | None = None) -> int:
        """Make a file, directory or symbolic link: its number is known only afterwards."""
        history, kernel = self.history, self.kernel
        self.known(parent)
        with history.lock:
            number = history.begin()
            if stat.S_ISDIR(mode):
                made = kernel.mkdir(parent, name, stat.S_IMODE(mode))
            elif target is not None:
                made = kernel.symlink(parent, name, target)
            else:
                made = kernel.create(parent, name, stat.S_IMODE(mode))
            self.inos.add(made.ino)
            history.snapshots[number] = history.snapshots[number]._replace(
                names={**history.now.names, (parent, name): made.ino},
                attributes={**history.now.attributes, made.ino: Attributes(made.attr.mode, target)},
            )
        return made.ino

    def change(self, ino: int, content: bytes, call: Callable[[], object]) -> None:
        self.known(ino)
        with self.history.lock:
            number = self.history.begin()
            self.history.versions.setdefault(ino, []).append((number, content))
            call()

    def write(self, ino: int, offset: int, data: bytes) -> None:
        old = self.history.content(ino)
        padded = old.ljust(offset, b"\0")
        self.change(
            ino, padded[:offset] + data + padded[offset + len(data) :], lambda: self.kernel.write(ino, offset, data)
        )

    def truncate(self, ino: int, size: int) -> None:
        self.change(ino, self.history.content(ino)[:size].ljust(size, b"\0"), lambda: self.kernel.truncate(ino, size))

    def punch(self, ino: int, offset: int, length: int) -> None:
        old = self.history.content(ino)
        end = min(len(old), offset + length)
        new = old[:offset] + bytes(end - offset) + old[end:] if end > offset else old
        self.change(ino, new, lambda: self.kernel.fallocate(ino, _PUNCH, offset, length))

    def copy(self, source: int, target: int, length: int) -> None:
        data = self.history.content(source)[:length]
        if data and source != target:
            new = data + self.history.content(target)[len(data) :]
            self.known(source)
            self.change(target, new, lambda: self.kernel.copy_file_range(source, 0, target, 0, len(data)))

    def chmod(self, ino: int, mode: int) -> None:
        self.known(ino)
        with self.history.lock:
            before = self.history.now.attributes
            changed = before[ino]._replace(mode=stat.S_IFMT(before[ino].mode) | mode)
            self.history.begin(attributes={**before, ino: changed})
            self.kernel.setattr(ino, mode=mode)

    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        self.known(ino)
        with self.history.lock:
            before = self.history.now.attributes
            xattrs = tuple(sorted({**dict(before[ino].xattrs), name: value}.items()))
            self.history.begin(attributes={**before, ino: before[ino]._replace(xattrs=xattrs)})
            self.kernel.setxattr(ino, name, value)

    def link(self, ino: int, parent: int, name: bytes) -> None:
        self.known(ino)
        self.known(parent)
        with self.history.lock:
            self.history.begin({**self.history.now.names, (parent, name): ino})
            self.kernel.link(ino, parent, name)

    def remove(self, at: tuple[int, bytes], *, forget: bool = True) -> None:
        ino = self.history.now.names[at]
        self.known(ino)
        with self.history.lock:
            names = {each: other for each, other in self.history.now.names.items() if each != at}
            self.history.begin(names)
            is_directory = stat.S_ISDIR(self.history.now.attributes[ino].mode)
            (self.kernel.rmdir if is_directory else self.kernel.unlink)(*at)
            if forget and ino not in names.values():
                self.inos.discard(ino)
                self.kernel.forget(ino)

    def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], *, exchange: bool = False) -> None:
        with self.history.lock:
            names = dict(self.history.now.names)
            ino, other = names[old], names.get(new)
            self.known(ino)
            self.known(new[0])
            if other is not None:
                self.known(other)
            if exchange:
                assert other is not None
                names[old] = other
            else:
                del names[old]
            names[new] = ino
            number = self.history.begin(names)
            if other is not None:
                self.history.replacing.append((number, ino))
                if exchange:
                    self.history.replacing.append((number, other))
            self.kernel.rename(*old, *new, 2 if exchange else 0)
            if other is not None and other not in names.values():
                self.inos.discard(other)
                self.kernel.forget(other)

    def fsync(self, ino: int) -> None:
        """Not under the lock: a commit may let others go on, who take it."""
        self.known(ino)
        began = self.done()
        if self.fsync_is_fsync:
            self.kernel.fsync(ino)
        else:
            self.kernel.fsyncdir(1)
        self._promise(began, ino)

    def fsync_directory(self) -> None:
        began = self.done()
        self.kernel.fsyncdir(1)
        self._promise(began, None)

    def commit(self) -> None:
        assert self.volume is not None
        began = self.done()
        self.volume.commit()
        self._promise(began, 0)

    def relieve(self) -> None:
        """What the background thread does when much is dirty, or waits for long."""
        assert self.mounted is not None
        self.mounted.plane.relay.relieve(0)

    # -- by chance

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice((10, CHUNK, CHUNK + 1, 3 * CHUNK, 9 * CHUNK)))

    def step(self) -> None:
        """Do one operation."""
        chance = self.random
        files = self.entries(stat.S_IFREG)
        directories = [1, *(ino for _, ino in self.entries(stat.S_IFDIR))]
        place = chance.choice(directories), chance.choice(NAMES)
        free = place not in self.history.now.names
        if not files:
            if free:
                self.make(*place, stat.S_IFREG | 0o600)
            return
        at, ino = chance.choice(files)
        match chance.choices(range(15), (9, 3, 2, 20, 5, 4, 6, 8, 2, 4, 3, 7, 2, 2, 3))[0]:
            case 0 if free:
                self.make(*place, stat.S_IFREG | 0o640)
            case 1 if free and len(directories) < 5:
                self.make(*place, stat.S_IFDIR | 0o755)
            case 2 if free:
                self.link(ino, *place)
            case 3:
                self.write(ino, chance.choice((0, 1, CHUNK, 5 * CHUNK + 7, chance.randrange(14 * CHUNK))), self.data())
            case 4:
                self.truncate(ino, chance.choice((0, 100, CHUNK, 6 * CHUNK, 12 * CHUNK + 1)))
            case 5:
                self.punch(ino, chance.randrange(8 * CHUNK), chance.choice((10, CHUNK, 5 * CHUNK)))
            case 6:
                self.remove(at)
            case 7 if self.rename_is_allowed(at, place):
                self.rename(at, place)
            case 7:
                self.replace(at)
            case 8 if len(files) > 1:
                other, _ = chance.choice(files)
                if self.history.now.names[other] != ino:
                    self.rename(at, other, exchange=True)
            case 9:
                self.setxattr(ino, b"user.x", chance.randbytes(40))
            case 10:
                self.chmod(ino, chance.randrange(0o1000) | 0o400)
            case 11:
                self.fsync(ino)
            case 12:
                self.fsync_directory()
            case 13:
                self.commit()
            case 14 if chance.random() < 0.5:
                self.copy(ino, chance.choice(files)[1], 5 * CHUNK)
            case _:
                self.relieve()

    def rename_is_allowed(self, old: tuple[int, bytes], new: tuple[int, bytes]) -> bool:
        names, attributes = self.history.now.names, self.history.now.attributes
        other = names.get(new)
        return other is None or (other != names[old] and not stat.S_ISDIR(attributes[other].mode))

    def replace(self, at: tuple[int, bytes]) -> None:
        """Write a new file and rename it over an old one, as editors do without fsync."""
        name = b"new"
        if (1, name) in self.history.now.names:
            return
        ino = self.make(1, name, stat.S_IFREG | 0o600)
        self.write(ino, 0, self.data())
        self.write(ino, 2 * CHUNK, self.data())
        self.rename((1, name), at)


def scripted(session: PlaneSession) -> None:
    """Each kind of change once, with commits between that take single files along."""
    session.open(interval=None, max_bytes=_QUOTA)
    one = session.make(1, b"one", stat.S_IFREG | 0o644)
    two = session.make(1, b"two", stat.S_IFREG | 0o600)
    below = session.make(1, b"below", stat.S_IFDIR | 0o755)
    session.write(one, 0, b"first " * 3000)
    session.write(two, 100, b"second " * 3000)
    session.fsync(one)  # two stays behind
    session.write(one, 5000, b"over" * 2000)
    session.rename((1, b"two"), (below, b"moved"))
    session.fsync(one)
    session.relieve()
    session.truncate(one, 4097)
    session.punch(two, 0, 2 * CHUNK)
    session.link(one, below, b"hard")
    session.make(below, b"soft", stat.S_IFLNK | 0o777, b"../one")
    session.setxattr(two, b"user.x", b"y" * 300)
    session.chmod(two, 0o604)
    session.commit()
    session.remove((1, b"one"))
    other = session.make(1, b"one", stat.S_IFREG | 0o644)
    session.write(other, 0, b"replaced soon" * 1000)
    session.rename((below, b"hard"), (1, b"one"))
    session.fsync_directory()
    session.remove((1, b"one"), forget=False)  # still open
    session.write(two, 3 * CHUNK, b"more" * 5000)
    session.fsync(two)
    session.replace((below, b"moved"))
    session.fsync_directory()
    third = session.make(1, b"third", stat.S_IFREG | 0o644)
    session.copy(session.history.now.names[below, b"moved"], third, 4 * CHUNK)
    session.rename((1, b"third"), (below, b"moved"), exchange=True)
    session.commit()
    session.close()
    session.open(interval=None, max_bytes=_QUOTA)
    moved = session.history.now.names[below, b"moved"]
    for _ in range(4):
        session.write(moved, 0, session.random.randbytes(30 * CHUNK))
        session.fsync(moved)
    session.remove((below, b"moved"))
    session.write(session.history.now.names[1, b"third"], 3, b"never seen")


def _mixed(session: PlaneSession, steps: int) -> None:
    for _ in range(steps):
        session.step()


def mixed(session: PlaneSession) -> None:
    """Random operations in two lives, with commits by the clock."""
    session.open(interval=0.03, max_bytes=_QUOTA)
    _mixed(session, 150)
    session.close()
    session.open(interval=0.03, max_bytes=_QUOTA)
    _mixed(session, 80)


def churn(session: PlaneSession) -> None:
    """Others overwrite, replace and delete within every commit; so little is free that it is used again at once."""
    session.open(interval=0.05, max_bytes=5 * 64 * CHUNK)
    inos = [session.make(1, b"%d" % number, stat.S_IFREG | 0o600) for number in range(3)]
    theirs = [session.make(1, b"theirs %d" % number, stat.S_IFREG | 0o600) for number in range(3)]
    for ino in (*inos, *theirs):
        session.write(ino, 0, session.random.randbytes(12 * CHUNK))
    session.commit()

    def rewrite() -> None:
        ino = session.random.choice(theirs)
        session.write(ino, session.random.randrange(6) * CHUNK, session.random.randbytes(7 * CHUNK))
        if session.random.random() < 0.5:
            session.truncate(ino, 3 * CHUNK)
        session.relieve()  # as the background thread does

    session.others = rewrite
    for number in range(30):
        session.write(
            session.random.choice(inos), session.random.randrange(6) * CHUNK, session.random.randbytes(7 * CHUNK)
        )
        if number % 3 == 0:
            session.replace((1, b"0"))
            inos[0] = session.history.now.names[1, b"0"]
        if number % 5 == 0:
            session.commit()
        else:
            session.fsync(session.random.choice(inos))
    session.others = None


def fsyncs(session: PlaneSession) -> None:
    """Small changes with an fsync each, more than a CAS keeps; root records come seldom between."""
    session.open(interval=None, max_bytes=_QUOTA)
    inos = [session.make(1, b"%d" % number, stat.S_IFREG | 0o600) for number in range(3)]
    for ino in inos:
        session.write(ino, 0, session.random.randbytes(6 * CHUNK))
    session.commit()
    for number in range(70):
        ino = session.random.choice(inos)
        session.write(
            ino,
            session.random.randrange(8) * CHUNK,
            session.random.randbytes(session.random.choice((10, CHUNK, 3 * CHUNK))),
        )
        session.fsync(ino)
        if number in {30, 31}:
            session.commit()
        if number == 45:
            session.write(ino, 0, session.random.randbytes(12 * CHUNK))  # too large to be kept
            session.fsync(ino)
        if number == 50:
            assert session.volume is not None
            with suppress(FspfError):  # as if another command had looked after the CAS
                session.cas.set_freshness(session.volume.header.volume_id, Freshness.strict())


def clients(session: PlaneSession) -> None:
    """Several clients write and fsync files of their own at the same time."""
    session.open(interval=0.02, max_bytes=_QUOTA)
    problems: list[BaseException] = []

    def client(name: bytes, ino: int, seed: int) -> None:
        chance = Random(seed)
        try:
            for _ in range(8):
                session.write(ino, chance.randrange(4) * CHUNK, chance.randbytes(5 * CHUNK))
                session.fsync(ino)
                with session.history.lock:
                    made = session.make(1, name + b" new", stat.S_IFREG | 0o600)
                session.write(made, 0, chance.randbytes(2 * CHUNK))
                if chance.random() < 0.5:
                    session.rename((1, name + b" new"), (1, name))
                    ino = made
                else:
                    session.remove((1, name + b" new"))
        except BaseException as exc:  # noqa: BLE001  # told by the main thread
            problems.append(exc)

    names = [b"client %d" % number for number in range(4)]
    inos = [session.make(1, name, stat.S_IFREG | 0o600) for name in names]
    threads = [
        threading.Thread(target=client, args=(name, ino, session.random.randrange(1 << 30)))
        for name, ino in zip(names, inos, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


_QUOTA: Final = 8 * 64 * CHUNK
_RING_LEN: Final = 96 << 10  # of the embedded CAS: soon full, and cheap to look at

PLANE_WORKLOADS: Final[dict[str, Callable[[PlaneSession], None]]] = {
    f"plane_{each.__name__}": each for each in (scripted, mixed, churn, fsyncs, clients)
}


def run_plane(
    name: str,
    seed: int,
    directory: Path,
    result: Result,
    mark: Callable[[str], None],
    sabotage: Callable[[PlaneSession], AbstractContextManager[Any]],
    *,
    cas: str = "memory",
    broken: bool = False,
) -> None:
    """Run a workload; the volume is left as it is, as if the process was killed.

    Args:
        cas: "memory"; "keeping" (it has records of the log, too); or "embedded", whose files lie in *directory*.
    """
    session = PlaneSession(directory, result, mark, seed, cas=cas)
    session.create()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(hot, "RING_LEN", _RING_LEN))
        stack.enter_context(session.watched())
        stack.enter_context(sabotage(session))
        try:
            PLANE_WORKLOADS[name](session)
        except OSError as exc:
            result.problems.append(f"a request failed: {exc}")
        mark("end of plane")
        if session.volume is not None and session.volume._commits is not None:
            session.volume._commits.catch_up()
        if session.mounted is not None:
            session.mounted.break_off()
            assert session.volume is not None
            session.volume.abandon()
    if cas == "embedded" and not broken and not session.by_lane and name != "plane_churn":  # others flush all the time
        result.problems.append("no fsync was done by the lane")
    result.problems += session.history.problems()
