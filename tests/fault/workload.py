"""What runs under the recorder: a volume and its model, with every CAS step and every promise marked in the trace.

    python -m tests.fault.workload NAME SEED DIRECTORY RESULT

DIRECTORY is traced; RESULT gets, pickled, what the explorer must know: the tree at each generation and the state of
the CAS after each of its steps.
"""

from __future__ import annotations

import pickle
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from fspf.cas import EmbeddedCas
from fspf.core.freshness import Freshness
from fspf.volume.layout import sync_directory
from fspf.volume.rekey import rekey
from fspf.volume.volume import Volume
from tests.fault import sabotage
from tests.fault.memcas import MemoryCas
from tests.fault.plane_sabotage import PLANE_SABOTAGES, nothing
from tests.fault.plane_workload import CAS, PLANE_WORKLOADS, VOLUME, run_plane
from tests.property.model import Clock, Seens
from tests.property.pair import CHUNK, Pair, engine_clock, random_step
from tests.support.iotrace import mark

SEGMENT_SLOTS: Final = 64  # the smallest there is
SEGMENT_BYTES: Final = SEGMENT_SLOTS * CHUNK
QUOTA_BYTES: Final = 8 * SEGMENT_BYTES

if TYPE_CHECKING:
    from fspf.core.anchor import Cas

Mark = Callable[[str], None]


@dataclass(slots=True)
class Result:
    """What the explorer must know.

    Marks in the trace: ``cas-begin N`` (a step is under way that would lead to `cas[N]`), ``cas N`` (it is done),
    ``ack G`` (an operation returned that promised generation G). With an embedded CAS there are only the last: its
    file is in the trace.
    """

    trees: dict[int, Seens] = field(default_factory=dict)
    cas: list[bytes] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # commits that are not what was promised, crash or no crash


class Session:
    """One life of a volume, under way."""

    def __init__(self, directory: Path, mark: Mark, *, freshness: str, seed: int, cas: str = "memory") -> None:
        self.path = directory / VOLUME
        self.mark = mark
        self.freshness = Freshness.parse(freshness)
        self.random = Random(seed)
        self.quota_bytes = QUOTA_BYTES
        self.result = Result()
        self.clock = Clock()
        self.cas: Cas
        if cas == "memory":
            self.cas = memory = MemoryCas()
            self.result.cas.append(memory.snapshot())
            memory.before, memory.after = self._before, self._after
        else:  # in the same trace: what it had not synced is lost as well
            (directory / CAS).mkdir()
            sync_directory(directory)  # it was there before
            self.cas = EmbeddedCas(str(directory / CAS / "cas.sqlite"), vfs="unix-excl")  # nothing mapped: traceable
        self.pair: Pair | None = None
        self.others: Callable[[], None] | None = None  # what others do while a commit waits for disk or CAS

    def _before(self, what: str) -> None:
        if what != "fetch":
            self.mark(f"cas-begin {len(self.result.cas)} {what}")
        if what == "advance":
            self.meanwhile()

    def meanwhile(self) -> None:
        """Let others do something, if we are in the thread of the workload."""
        if self.others is not None and threading.current_thread() is threading.main_thread():
            self.others()

    def busy_store(self, store: Any) -> Any:
        """Return a store in whose `sync` others go on: before it, and after it before the root record is written."""

        def sync() -> int:
            self.meanwhile()
            count = int(store.sync())
            self.meanwhile()
            return count

        return sabotage.Instead(store, sync=sync)

    def _after(self, what: str) -> None:
        assert isinstance(self.cas, MemoryCas)
        self.result.cas.append(self.cas.snapshot())
        self.mark(f"cas {len(self.result.cas) - 1} {what}")

    # -- steps; each tells the explorer what it promised

    @property
    def volume(self) -> Volume:
        assert self.pair is not None
        return self.pair.volume

    def _note(self, *, promised: bool) -> None:
        """Remember the tree of the newest generation, and say that it was promised."""
        assert self.pair is not None
        commits = self.volume._commits
        assert commits is not None
        if commits.generation not in self.result.trees:
            self.result.trees[commits.generation] = self.pair.model.committed_tree()
        if promised:
            self.mark(f"ack {commits.generation}")

    def create(self) -> None:
        volume = Volume.create(
            self.path,
            self.cas,
            freshness=self.freshness,
            segment_slots=SEGMENT_SLOTS,
            commit_interval=None,
            max_bytes=self.quota_bytes,
        )
        self.pair = Pair(volume, self.clock)
        self._note(promised=True)

    def open(self) -> None:
        assert self.pair is not None
        self.pair.volume = Volume.open(self.path, self.cas, commit_interval=None, max_bytes=self.quota_bytes)
        self.pair.forget_handles()
        self.pair.check_tree()
        self._note(promised=True)

    def close(self) -> None:
        assert self.pair is not None
        self.pair.close_all()
        self.pair.model.commit()
        self.volume.close()
        self._note(promised=True)

    def abandon(self) -> None:
        """Crash, as far as one process can."""
        assert self.pair is not None
        self.volume.abandon()
        self.pair.model.crash()

    def fsync(self, ino: int | None = None) -> None:
        assert self.pair is not None
        self.pair.fsync(ino)
        self._note(promised=True)

    def commit(self) -> None:
        assert self.pair is not None
        self.pair.commit()
        self._note(promised=True)

    def trim(self) -> None:
        self.volume.store.trim()

    def rekey(self) -> None:
        """Rekey the closed volume: one generation more with the same tree."""
        newest = max(self.result.trees)
        self.result.trees[newest + 1] = self.result.trees[newest]
        rekey(self.path, self.cas)
        self.mark(f"ack {newest + 1}")

    def steps(self, count: int) -> None:
        """Do *count* random operations, some of which promise something."""
        assert self.pair is not None
        pair = self.pair
        for _ in range(count):
            chosen = self.random.random()
            if chosen < 0.06:
                self.fsync(self.random.choice(pair.handles).ino if pair.handles else None)
            elif chosen < 0.1:
                self.commit()
            elif chosen < 0.12:
                self.trim()
            else:
                random_step(pair, self.random)


def scripted(session: Session) -> None:
    """Each kind of change once, with commits between that take single files along."""
    session.create()
    pair = session.pair
    assert pair is not None
    one, two = pair.mknod(1, b"one", 0o100644), pair.mknod(1, b"two", 0o100600, uid=5)
    below = pair.mkdir(1, b"below")
    assert one
    assert two
    assert below
    first, second = pair.open(one), pair.open(two)
    assert first
    assert second
    pair.write(first, 0, b"first " * 3000)
    pair.write(second, 100, b"second " * 3000)
    session.fsync(one)  # two stays behind
    pair.write(first, 5000, b"over" * 2000)
    pair.rename((1, b"two"), (below, b"moved"))
    session.fsync(one)
    session.commit()
    pair.truncate(first, 4097)
    pair.punch(second, 0, 2 * CHUNK)
    pair.link(one, below, b"hard")
    pair.symlink(below, b"soft", b"../one")
    pair.setxattr(two, b"user.x", b"y" * 300)
    session.commit()
    pair.unlink(1, b"one")
    pair.mknod(1, b"one", 0o100644)
    pair.rename((below, b"hard"), (1, b"one"))
    session.fsync()
    pair.unlink(1, b"one")  # still open
    session.fsync()
    session.close()
    session.open()
    session.trim()
    third = pair.open(two)
    assert third
    for _ in range(4):
        pair.write(third, 0, session.random.randbytes(30 * CHUNK))
        session.fsync(two)
        session.trim()
    session.close()
    session.rekey()
    session.open()
    third = pair.open(two)
    assert third
    pair.write(third, 3, b"the end")
    session.commit()
    pair.write(third, 3, b"never seen")
    pair.unlink(below, b"soft")


def mixed(session: Session) -> None:
    """Random operations in several sessions."""
    session.create()
    session.steps(120)
    session.close()
    session.open()
    session.steps(120)
    session.abandon()
    session.open()
    session.steps(60)
    session.close()
    session.rekey()
    session.open()
    session.steps(40)


def churn(session: Session) -> None:
    """Overwrite the same files again and again, so that slots are freed and given out again at once."""
    session.quota_bytes = 4 * SEGMENT_BYTES
    session.create()
    pair = session.pair
    assert pair is not None
    inos = [pair.mknod(1, b"%d" % number, 0o100644) for number in range(4)]
    handles = [pair.open(ino) for ino in inos if ino]
    for number in range(30):
        handle = session.random.choice(handles)
        assert handle
        pair.write(handle, session.random.randrange(10) * CHUNK, session.random.randbytes(18 * CHUNK))
        if number % 3:
            session.fsync(handle.ino)
        else:
            session.commit()
        if number % 4 == 0:
            session.trim()
    session.close()


def busy(session: Session) -> None:
    """As `churn`, with another writer who goes on while a commit waits for the disk and for the CAS."""
    # So small that freed slots are soon used again; with a CAS that lags more of them wait.
    session.quota_bytes = (3 if session.freshness == Freshness.strict() else 6) * SEGMENT_BYTES
    session.create()
    pair = session.pair
    assert pair is not None
    inos = [pair.mknod(1, b"%d" % number, 0o100644) for number in range(3)]

    def rewrite() -> None:
        ino = session.random.choice(inos)
        assert ino is not None
        handle = pair.open(ino)
        assert handle is not None
        pair.write(handle, session.random.randrange(16) * CHUNK, session.random.randbytes(8 * CHUNK))
        pair.close(handle)  # flushes: its blocks are written now

    session.others = rewrite
    for number in range(20):
        rewrite()
        session.commit()
        if number % 5 == 0:
            session.trim()
    session.others = None
    session.close()


def creation(session: Session) -> None:
    """Create and close, nothing else."""
    session.create()
    session.close()


def rekeys(session: Session) -> None:
    """Rekey a volume that was left in each way."""
    session.create()
    pair = session.pair
    assert pair is not None
    pair.mkdir(1, b"d")
    session.commit()
    session.abandon()
    session.rekey()
    session.rekey()
    session.open()
    pair.mknod(1, b"f", stat.S_IFREG | 0o600)
    session.close()
    session.rekey()
    session.open()
    session.close()


WORKLOADS: Final[dict[str, Callable[[Session], None]]] = {
    each.__name__: each for each in (scripted, mixed, churn, busy, creation, rekeys)
}


def run(
    name: str,
    seed: int,
    directory: Path,
    mark: Mark,
    *,
    freshness: str = "strict",
    broken: str = "",
    cas: str = "memory",
) -> Result:
    """Run a workload; the volume is left as it is, as if the process was killed."""
    if name in PLANE_WORKLOADS:
        result = Result()
        with sabotage.by_name("" if broken in PLANE_SABOTAGES else broken):
            run_plane(
                name, seed, directory, result, mark, PLANE_SABOTAGES.get(broken, nothing), cas=cas, broken=bool(broken)
            )
        return result
    session = Session(directory, mark, freshness=freshness, seed=seed, cas=cas)
    with engine_clock(session.clock), sabotage.by_name(broken), sabotage.commits_with(session.busy_store):
        WORKLOADS[name](session)
    return session.result


def main(arguments: list[str]) -> None:
    name, seed, directory, target, *options = arguments
    settings: dict[str, Any] = dict(option.split("=", 1) for option in options)
    result = run(name, int(seed), Path(directory), mark, **settings)
    mark("end")
    Path(target).write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    from tests.fault import workload  # what is pickled must not be of `__main__`

    workload.main(sys.argv[1:])
