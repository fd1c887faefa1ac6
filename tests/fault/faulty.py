"""Let the n-th call of one kind fail, for every n, and look what the volume makes of it. Runs under the recorder.

    python -m tests.fault.faulty ROOT OPERATION ERROR [FIRST LAST]

Prints a JSON report: how many calls there were, what the outcomes were, and everything that was not as it must be:
a clear error or none; what was acknowledged is there, now and after reopening; after the fault is gone the volume goes
on, or it has turned read-only and goes on after reopening.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fspf.core.errors import FspfError, ReadOnlyError
from fspf.core.types import ROOT_INO
from fspf.volume.check import verify_volume
from fspf.volume.contents import OpenFile
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.fault.slots_truth import slot_problems
from tests.support.iotrace import hits, set_fault

Tree = dict[str, bytes]
CHUNK = 4096


class Life:
    """Steps that can be repeated until they succeed, each with one promise at its end."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.kept: OpenFile | None = None

    def put(self, name: str, content: bytes, *, sync: bool = True) -> None:
        try:
            ino = self.volume.lookup(ROOT_INO, name.encode()).ino
        except FileNotFoundError:
            ino = self.volume.mknod(ROOT_INO, name.encode(), 0o100600).ino
        with self.volume.open_file(ino, write=True) as file:
            file.truncate(len(content))
            file.write(0, content)
            if sync:
                file.fsync()

    def dirty(self) -> None:
        """Leave changes of `a` unsynced while `b` is."""
        if self.kept is None:
            self.kept = self.volume.open_file(self.volume.lookup(ROOT_INO, b"a").ino, write=True)
        self.kept.write(100, b"later")
        self.put("b", b"b" * 9000)

    def settle(self) -> None:
        self.volume.commit()
        if self.kept is not None:
            kept, self.kept = self.kept, None
            kept.close()

    def move(self) -> None:
        with suppress(FileNotFoundError):
            self.volume.rename(ROOT_INO, b"b", ROOT_INO, b"c")
        self.volume.commit()

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            self.volume.unlink(ROOT_INO, b"c")
        self.volume.commit()
        self.volume.store.trim()


A1, A2 = b"a" * 3 * CHUNK, b"a" * 100 + b"later" + b"a" * (3 * CHUNK - 105)
BIG = bytes(range(256)) * (40 * 16)
STEPS: list[tuple[Callable[[Life], None], Tree]] = [  # what is done, and what is there once it returned
    (lambda life: life.put("a", A1), {"a": A1}),
    (lambda life: life.dirty(), {"a": A1, "b": b"b" * 9000}),
    (lambda life: life.settle(), {"a": A2, "b": b"b" * 9000}),
    (lambda life: life.move(), {"a": A2, "c": b"b" * 9000}),
    (lambda life: life.put("big", BIG), {"a": A2, "c": b"b" * 9000, "big": BIG}),
    (lambda life: life.remove(), {"a": A2, "big": BIG}),
    (lambda life: life.put("big", BIG[::-1]), {"a": A2, "big": BIG[::-1]}),
    (lambda life: life.put("end", b"."), {"a": A2, "big": BIG[::-1], "end": b"."}),
]


def tree_of(volume: Volume) -> Tree:
    found = {}
    for entry in volume.readdir(ROOT_INO):
        with volume.open_file(entry.attr.ino) as file:
            found[entry.name.decode()] = file.read(0, entry.attr.size)
    return found


def is_clear(exc: BaseException) -> bool:
    """Tell whether an error is one of ours or the host's, and says something."""
    if isinstance(exc, OSError):
        return exc.errno in {errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE, errno.EROFS} and bool(str(exc))
    return isinstance(exc, FspfError) and bool(str(exc))


class Case:
    """One fault in one life."""

    def __init__(self, root: Path, rule: str) -> None:
        self.path = root / "volume"
        self.rule = rule
        self.cas = MemoryCas()
        self.problems: list[str] = []
        self.outcome = "not noticed"
        self.calls = 0

    def _arm(self) -> None:
        set_fault(self.rule)

    def _disarm(self) -> None:
        self.calls += hits()
        set_fault("")

    def _complain(self, exc: BaseException, where: str) -> None:
        self.outcome = type(exc).__name__
        if not is_clear(exc):
            self.problems.append(f"{where}: unclear {type(exc).__name__}: {exc}")

    def run(self) -> None:
        """Let the fault happen in the middle of a volume's life."""
        volume = Volume.create(self.path, self.cas, commit_interval=None, segment_slots=64)
        life = Life(volume)
        before: Tree = {}
        self._arm()
        armed = True
        for number, (step, after) in enumerate(STEPS):
            try:
                step(life)
            except (OSError, FspfError) as exc:
                self._complain(exc, f"step {number}")
                if armed:
                    self._disarm()
                    armed = False
                if volume.failed is not None:
                    self._read_only(volume, before, after, number)
                    return
                self.outcome += ", goes on"
                try:
                    step(life)
                except (OSError, FspfError) as again:
                    self.problems.append(f"step {number} does not succeed after the fault is gone: {again!r}")
                    volume.abandon()
                    return
            before = after
        try:
            volume.close()
        except (OSError, FspfError) as exc:
            self._complain(exc, "close")
        if armed:
            self._disarm()
        self._reopen([before], "at the end")

    def _read_only(self, volume: Volume, before: Tree, after: Tree, number: int) -> None:
        """A volume that failed: still readable, never written again, nothing acknowledged lost."""
        self.outcome += ", read-only"
        try:
            volume.mknod(ROOT_INO, b"more", 0o100600)
            self.problems.append(f"step {number}: a failed volume can be written")
        except ReadOnlyError as exc:
            if "read-only" not in str(exc):
                self.problems.append(f"unclear: {exc}")
        for name in before.keys() & after.keys():
            try:
                volume.lookup(ROOT_INO, name.encode())
            except (OSError, FspfError) as exc:
                self.problems.append(f"step {number}: {name} cannot be found in a failed volume: {exc!r}")
        try:
            volume.close()
            self.problems.append(f"step {number}: closing a failed volume says nothing")
        except (OSError, FspfError) as exc:
            self._complain(exc, "close")
            self.outcome += ", read-only"
        self._reopen([before, after], f"after step {number}")

    def _reopen(self, allowed: list[Tree], when: str) -> None:
        try:
            volume = Volume.open(self.path, self.cas, commit_interval=None)
        except (OSError, FspfError) as exc:
            self.problems.append(f"{when}: does not open again: {exc!r}")
            return
        try:
            found = tree_of(volume)
            if found not in allowed:
                self.problems.append(f"{when}: { {name: len(data) for name, data in found.items()} } found")
            Life(volume).put("after", b"after")
        finally:
            volume.close()
        with Volume.open(self.path, self.cas, read_only=True) as again:
            self.problems += [f"{when}: {finding}" for finding in verify_volume(again, threads=1)]
            self.problems += [f"{when}: {problem}" for problem in slot_problems(again)]

    def run_create(self) -> None:
        """Let the fault happen while the volume is made."""
        self._arm()
        try:
            Volume.create(self.path, self.cas, commit_interval=None, segment_slots=64).close()
        except (OSError, FspfError) as exc:
            self._complain(exc, "create")
            self._disarm()
            if self.path.exists() and self.outcome != "VolumeExistsError":
                left = [entry.name for entry in self.path.iterdir()]
                if "header" in left:
                    return  # it was made; only its closing failed
                self.problems.append(f"a failed creation left {left}")
            self.cas = MemoryCas()
            Volume.create(self.path, self.cas, commit_interval=None, segment_slots=64).close()
        else:
            self._disarm()
        self._reopen([{}], "after create")

    def run_open(self) -> None:
        """Let the fault happen while the volume is opened, after a crash."""
        volume = Volume.create(self.path, self.cas, commit_interval=None, segment_slots=64)
        life = Life(volume)
        for step, _ in STEPS[:5]:
            step(life)
        volume.abandon()
        tree = STEPS[4][1]
        self._arm()
        try:
            volume = Volume.open(self.path, self.cas, commit_interval=None)
            if volume._rebuild is not None:
                volume._rebuild.wait()
            volume.abandon()
        except (OSError, FspfError) as exc:
            self._complain(exc, "open")
        self._disarm()
        self._reopen([tree], "after open")


def main(arguments: list[str]) -> None:
    root, what, rule, *limits = arguments
    logging.disable(logging.CRITICAL)
    first, last = (int(limits[0]), int(limits[1])) if limits else (1, 10_000)
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    done = 0
    for number in range(first, last + 1):
        case = Case(Path(root), f"{rule},nth={number}")
        getattr(case, what)()
        shutil.rmtree(root)
        Path(root).mkdir()
        problems += [f"{case.rule}: {problem}" for problem in case.problems]
        if case.calls < number:
            break  # so many calls of the kind there are not
        done += 1
        outcomes[case.outcome] += 1
    print(json.dumps({"calls": done, "outcomes": outcomes, "problems": problems}))


if __name__ == "__main__":
    main(sys.argv[1:])
