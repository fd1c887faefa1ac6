"""What the kernel was told by the data plane, operation by operation, and whether a commit may look as it does.

The driver is `tests.fault.plane_workload`. Unlike `tests.property.model` it allows for commits at any moment: a commit
has all names and attributes as of one instant, and each content as of its last flush.
"""

from __future__ import annotations

import stat
import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.property.model import Seens


class Attributes(NamedTuple):
    mode: int
    target: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


Names = dict[tuple[int, bytes], int]  # directory and name → inode


class Snapshot(NamedTuple):
    """Names and attributes after one operation."""

    names: Names
    attributes: dict[int, Attributes]

    def paths(self) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        below: dict[int, list[tuple[bytes, int]]] = {}
        for (parent, name), ino in self.names.items():
            below.setdefault(parent, []).append((name, ino))
        todo = [(b"", 1)]
        while todo:
            path, ino = todo.pop()
            found[path] = ino
            todo += [(path + b"/" + name, each) for name, each in below.get(ino, [])]
        return found


class Promise(NamedTuple):
    """An fsync or commit that returned."""

    began: int  # number of the last operation that was done before it
    ino: int | None  # whose content it covers: 0 all, None none
    generation: int  # that was anchored when it returned


@dataclass(slots=True)
class Commit:
    """What a commit wrote, as it was read back at once."""

    tree: Seens
    newest: int  # number of the last operation that had begun


@dataclass(slots=True)
class History:
    """All that was done. Operations are numbered from 1; 0 is the empty volume."""

    snapshots: list[Snapshot] = field(default_factory=lambda: [Snapshot({}, {1: Attributes(0)})])
    versions: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)  # inode → (operation, content)
    replacing: list[tuple[int, int]] = field(default_factory=list)  # (operation, inode that took another's name)
    promises: list[Promise] = field(default_factory=list)
    commits: dict[int, Commit] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def number(self) -> int:
        """Number of the last operation that has begun."""
        return len(self.snapshots) - 1

    @property
    def now(self) -> Snapshot:
        return self.snapshots[-1]

    def begin(self, names: Names | None = None, attributes: dict[int, Attributes] | None = None) -> int:
        """Begin an operation after which things are so; its number. Hold the lock until it is done."""
        before = self.snapshots[-1]
        self.snapshots.append(
            Snapshot(before.names if names is None else names, before.attributes if attributes is None else attributes)
        )
        return self.number

    def content(self, ino: int) -> bytes:
        return self.versions[ino][-1][1] if ino in self.versions else b""

    # -- judging

    def problems(self) -> list[str]:
        """Say which commits are not what may be."""
        found = []
        for generation in sorted(self.commits):
            problem = self._problem(generation, self.commits[generation])
            if problem:
                found.append(f"generation {generation}: {problem}")
        return found

    def _problem(self, generation: int, commit: Commit) -> str:
        promised = [each for each in self.promises if each.generation <= generation]
        oldest = max((each.began for each in promised), default=0)
        paths = {path: seen.ino for path, seen in commit.tree.items()}
        shape = self._shape(commit.tree)
        if shape:
            return shape
        fitting = [
            number
            for number in range(oldest, commit.newest + 1)
            if self.snapshots[number].paths() == paths and self._same_attributes(self.snapshots[number], commit.tree)
        ]
        if not fitting:
            nearest = self.snapshots[commit.newest].paths()
            return (
                f"names and attributes are of no instant between operations {oldest} and {commit.newest}; from the last "
                f"they differ by {sorted(nearest.items() ^ paths.items())[:6]}"
            )
        wrong = ""
        for number in fitting:
            wrong = self._wrong_content(commit, number, promised)
            if not wrong:
                break
        return wrong

    @staticmethod
    def _shape(tree: Seens) -> str:
        """Check numbers of links."""
        names: dict[int, int] = {}
        subdirectories: dict[bytes, int] = {}
        for path, seen in tree.items():
            names[seen.ino] = names.get(seen.ino, 0) + 1
            if stat.S_ISDIR(seen.mode) and path:
                parent = path.rpartition(b"/")[0]
                subdirectories[parent] = subdirectories.get(parent, 0) + 1
        for path, seen in tree.items():
            expected = 2 + subdirectories.get(path, 0) if stat.S_ISDIR(seen.mode) else names[seen.ino]
            if seen.nlink != expected:
                return f"{path!r}: {seen.nlink} links, {expected} expected"
        return ""

    @staticmethod
    def _same_attributes(snapshot: Snapshot, tree: Seens) -> bool:
        return all(
            snapshot.attributes[seen.ino] == Attributes(seen.mode, seen.target, seen.xattrs)
            for path, seen in tree.items()
            if path
        )

    def _wrong_content(self, commit: Commit, number: int, promised: list[Promise]) -> str:
        for path, seen in commit.tree.items():
            if not stat.S_ISREG(seen.mode):
                continue
            oldest = max((each.began for each in promised if each.ino in {0, seen.ino}), default=0)
            replaced = [at for at, ino in self.replacing if ino == seen.ino and at <= number]
            oldest = max([oldest, *replaced])  # no commit has the new name without the new data
            versions = [(0, b""), *self.versions.get(seen.ino, [])]
            least = max(at for at, _ in versions if at <= oldest)
            allowed = [(at, data) for at, data in versions if least <= at <= commit.newest]
            if seen.content not in [data for _, data in allowed]:
                held = [at for at, data in versions if data == seen.content]
                return (
                    f"{path!r} (inode {seen.ino}) has {len(seen.content or b'')} bytes as after operation {held}, expected is "
                    f"one of {[at for at, _ in allowed]}"
                )
        return ""
