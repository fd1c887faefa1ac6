"""Altered volumes seen through the native data plane: right bytes or EIO, for every request of the kernel.

What must be unreadable is computed by `tools.lib.tampering.oracle` from the altered bytes alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fspf.core.errors import FspfError, IntegrityError
from fspf.volume.volume import Volume
from tests.support.fakemount import FakeMount
from tools.lib.tampering.anatomy import NAMESPACE, Anatomy
from tools.lib.tampering.oracle import Damage, Truth, damage
from tools.lib.tampering.patient import Patient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fspf.core.anchor import Cas
    from tests.support.fakekernel import FakeKernel
    from tests.tamper.specimens import Specimen
    from tools.lib.tampering.cases import Case

_CACHE_BYTES: Final = 1 << 20
_MOST_READ: Final = 64  # chunks of one file; where it is damaged all of them
_PUNCH: Final = 3


@dataclass(slots=True)
class PlaneTally:
    """What was asked, how often it was refused, and what was wrong."""

    cases: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class PlaneExamination:
    """One altered volume, mounted on a fake kernel.

    Args:
        path: Where it is; for `changing` a copy that is used up.
    """

    def __init__(self, anatomy: Anatomy, truth: Truth, cas: Cas, case: Case, tally: PlaneTally, path: Path) -> None:
        self._anatomy = anatomy
        self._truth = truth
        self._cas = cas
        self._case = case
        self._tally = tally
        self._path = path
        self._unit = anatomy.header.chunk_size

    def _fault(self, text: str) -> None:
        self._tally.faults.append(f"{self._case.name}: {text}")

    @contextmanager
    def _asked(self, what: str, *, may_fail: bool) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno != errno.EIO:
                self._fault(f"{what}: EIO expected at worst, {exc}")
            elif not may_fail:
                self._fault(f"{what} was refused though all that it needs is intact")
            self._tally.refused[what.split(" ", maxsplit=1)[0]] += 1
        else:
            self._tally.right[what.split(" ", maxsplit=1)[0]] += 1

    def _opened(self, *, read_only: bool) -> Volume | None:
        try:
            return Volume.open(
                self._path, self._cas, read_only=read_only, cache_bytes=_CACHE_BYTES, commit_interval=None
            )
        except FspfError:
            return None  # what must open is tested without a mount

    # -- reading

    def reading(self, damages: dict[str, list[Damage]]) -> None:
        """Ask for everything, without changing anything."""
        volume = self._opened(read_only=True)
        if volume is None:
            return
        self._tally.cases += 1
        lost = bool(damages.get(NAMESPACE))
        with volume:
            try:
                mounted = FakeMount(volume)
            except IntegrityError as exc:  # the root directory's own page
                if not lost:
                    self._fault(f"it could not be mounted: {exc}")
                self._tally.refused["mount"] += 1
                return
            self._look(volume, mounted, damages, lost=lost)

    def _look(self, volume: Volume, mounted: FakeMount, damages: dict[str, list[Damage]], *, lost: bool) -> None:
        with mounted:
            found = self._walk(mounted.kernel, lost=lost)
            for ino, path in found.items():
                hurt = damages.get(f"ino {ino}", [])
                if ino in self._truth.extents:
                    refused = self._read(mounted.kernel, ino, hurt)
                    self._seek(mounted.kernel, ino, hurt)
                    if refused and not lost:
                        self._told(volume, path, hurt)

    def _told(self, volume: Volume, path: bytes, hurt: list[Damage]) -> None:
        """Check that the log and `fspf status` name file and range."""
        lines = [line for line in volume.status()["errors"] if repr(os.fsdecode(path)) in line or repr(path) in line]
        wanted = [f"bytes {each.start} to {each.end - 1} are {each.kind}" for each in hurt]
        if not any(words in line for words in wanted for line in lines):
            self._fault(f"status names {volume.status()['errors']}, not {path!r} with one of {wanted}")

    def _walk(self, kernel: FakeKernel, *, lost: bool) -> dict[int, bytes]:
        """Look everything up and list everything; returns the inodes that could be reached."""
        found: dict[int, bytes] = {}
        expected: dict[int, set[bytes]] = {1: set()}
        for ino, names in self._truth.names.items():
            if stat.S_ISDIR(self._anatomy.inodes[ino][0]):
                expected.setdefault(ino, set())
            for directory, name, _ in names:
                expected.setdefault(int(directory), set()).add(name)
        paths = {1: b""} | {ino: names[0][2] for ino, names in self._truth.names.items()}
        for ino in sorted(paths, key=lambda each: paths[each].count(b"/")):
            if ino != 1:
                with self._asked(f"lookup {paths[ino]!r}", may_fail=lost):
                    entry = kernel.walk(paths[ino].strip(b"/"))
                    mode, size = self._anatomy.inodes[ino]
                    if (entry.ino, entry.attr.mode) != (ino, mode):
                        self._fault(f"lookup {paths[ino]!r} gave inode {entry.ino}, mode {entry.attr.mode:o}")
                    if stat.S_ISREG(mode) and entry.attr.size != size:
                        self._fault(f"{paths[ino]!r}: size {entry.attr.size}, {size} expected")
                    found[ino] = paths[ino]
            if ino in expected and (ino == 1 or ino in found):
                for plus in (True, False):
                    with self._asked(f"readdir {paths[ino]!r}", may_fail=lost):
                        listed = set(kernel.listdir(ino, plus=plus))
                        if listed - {b".", b".."} != expected[ino]:
                            self._fault(f"readdir {paths[ino]!r} gave {sorted(listed ^ expected[ino])[:6]}")
        with self._asked("lookup of what is not there", may_fail=lost):
            try:
                kernel.lookup(1, b"no such name")
            except FileNotFoundError:
                pass
            else:
                self._fault("a name is there that nobody made")
        return found

    def _chunks(self, ino: int, hurt: list[Damage]) -> Iterator[tuple[int, bytes]]:
        """Return what to read of a file: offset and content, chunk by chunk."""
        count = 0
        for offset, content in self._truth.extents[ino]:
            for at in range(0, len(content), self._unit):
                piece = content[at : at + self._unit]
                where = offset + at
                near = any(each.start - self._unit <= where < each.end + self._unit for each in hurt)
                if near or count < _MOST_READ:
                    count += 1
                    yield where, piece

    def _is_hurt(self, hurt: list[Damage], offset: int, length: int) -> bool:
        return any(each.start < offset + length and offset < each.end for each in hurt)

    def _read(self, kernel: FakeKernel, ino: int, hurt: list[Damage]) -> bool:
        refused = False
        for offset, content in self._chunks(ino, hurt):
            bad = self._is_hurt(hurt, offset, len(content))
            with self._asked(f"read {ino} at {offset}", may_fail=bad):
                try:
                    data = kernel.read(ino, offset, self._unit)
                except OSError:
                    refused = True
                    raise
                if bad:
                    self._fault(f"read {ino} at {offset} succeeded, but the block is altered")
                elif data[: len(content)] != content:
                    self._fault(f"read {ino} at {offset}: wrong bytes")
        return refused

    def _seek(self, kernel: FakeKernel, ino: int, hurt: list[Damage]) -> None:
        nodes = any(each.level for each in hurt)
        for whence, expected in zip((os.SEEK_DATA, os.SEEK_HOLE), self._truth.first[ino], strict=True):
            with self._asked(f"lseek {ino}", may_fail=nodes):
                try:
                    got = kernel.lseek(ino, 0, whence)
                except OSError as exc:
                    if exc.errno != errno.ENXIO:
                        raise
                    got = -1
                if got != expected:
                    self._fault(f"lseek {ino} {whence}: {got}, {expected} expected")

    # -- changing

    def changing(self, damages: dict[str, list[Damage]]) -> None:
        """Write into, cut, punch and copy what is altered; then everything is right or refused, and is so after a commit."""
        if NAMESPACE in damages:
            return
        volume = self._opened(read_only=False)
        if volume is None:
            return
        self._tally.cases += 1
        contents: dict[int, dict[int, list[bytes]]] = {}  # inode → offset of a chunk → what may be there
        try:
            with FakeMount(volume) as mounted:
                found = self._walk(mounted.kernel, lost=False)
                for ino in found:
                    hurt = damages.get(f"ino {ino}", [])
                    if ino in self._truth.extents and hurt:
                        contents[ino] = self._change(mounted.kernel, ino, hurt)
                self._compare(mounted.kernel, contents, damages)
                new = mounted.kernel.create(1, b"new after all")
                mounted.kernel.write(new.ino, 0, b"x" * self._unit)
                mounted.kernel.fsync(new.ino)
        finally:
            volume.abandon()
        again = self._opened(read_only=True)
        if again is None:
            self._fault("after a commit it does not open any more")
            return
        with again, FakeMount(again) as mounted:
            for ino in self._truth.extents:
                mounted.kernel.walk(self._truth.names[ino][0][2].strip(b"/"))
            self._compare(mounted.kernel, contents, damages)

    def _change(self, kernel: FakeKernel, ino: int, hurt: list[Damage]) -> dict[int, list[bytes]]:
        """Try every change on the first altered chunk; returns what may be in which chunk."""
        may: dict[int, list[bytes]] = {offset: [content] for offset, content in self._chunks(ino, hurt)}
        size = self._truth.sizes[ino]
        worst = min(hurt, key=lambda each: each.level)
        first = worst.start
        if first not in may or len(may[first][0]) < 32:
            return may
        old = may[first][0]
        with self._asked("write of a part", may_fail=True):
            kernel.write(ino, first + 5, b"some bytes")
            self._fault(f"part of an altered chunk of {ino} was written: the rest of it is nobody's")
        with self._asked("truncate", may_fail=True):
            kernel.truncate(ino, first + 7)
            self._fault(f"an altered chunk of {ino} was cut: what is left of it is nobody's")
        with self._asked("fallocate", may_fail=True):
            kernel.fallocate(ino, _PUNCH, first + 3, 9)
            self._fault(f"a hole was punched into an altered chunk of {ino}: the rest of it is nobody's")
        target = kernel.create(1, b"copy of %d" % ino)
        with self._asked("copy_file_range", may_fail=True):
            count = kernel.copy_file_range(ino, first, target.ino, 0, len(old))
            if count:
                self._fault(f"{count} bytes of an altered chunk of {ino} were copied")
        if kernel.getattr(ino).size != size:
            self._fault(f"size of {ino} is {kernel.getattr(ino).size} after refused changes, {size} expected")
        if worst.level == 0 and len(old) == self._unit:  # below an altered node nothing can be written
            with self._asked("write of all", may_fail=False):
                kernel.write(ino, first, b"N" * len(old))
                kernel.fsync(ino)
                may[first] = [b"N" * len(old)]
                hurt.remove(worst)
        return may

    def _compare(
        self, kernel: FakeKernel, contents: dict[int, dict[int, list[bytes]]], damages: dict[str, list[Damage]]
    ) -> None:
        for ino in self._truth.extents:
            hurt = damages.get(f"ino {ino}", [])
            may = contents.get(ino) or {offset: [content] for offset, content in self._chunks(ino, hurt)}
            for offset, allowed in may.items():
                bad = self._is_hurt(hurt, offset, len(allowed[0]))
                with self._asked(f"read {ino} at {offset}", may_fail=bad):
                    data = kernel.read(ino, offset, self._unit)
                    if bad:
                        self._fault(f"read {ino} at {offset} succeeded, but the block is altered")
                    elif not any(data[: len(each)] == each for each in allowed):
                        self._fault(f"read {ino} at {offset}: wrong bytes after changes")


def explore_reading(specimen: Specimen, cases: list[Case], tally: PlaneTally) -> PlaneTally:
    """Apply each case in place, look through the data plane, undo."""
    patient = Patient(specimen.anatomy)
    for case in cases:
        try:
            case.apply(patient)
            if patient.touched and case.expected is None and not case.previous:
                examination = PlaneExamination(
                    specimen.anatomy, specimen.truth, specimen.cas, case, tally, specimen.anatomy.path
                )
                examination.reading(damage(patient))
        finally:
            patient.restore()
    return tally


def explore_changing(specimen: Specimen, cases: list[Case], tally: PlaneTally, scratch: Path) -> PlaneTally:
    """Apply each case to a copy of its own, and change things there."""
    for case in cases:
        copy = scratch / "copy"
        shutil.copytree(specimen.anatomy.path, copy)
        anatomy = Anatomy(**{name: getattr(specimen.anatomy, name) for name in Anatomy.__slots__})
        anatomy.path = copy
        patient = Patient(anatomy)
        case.apply(patient)
        if case.expected is None and not case.previous:
            examination = PlaneExamination(anatomy, specimen.truth, specimen.cas.copy(), case, tally, copy)
            examination.changing(damage(patient))
        shutil.rmtree(copy)
    return tally


__all__ = ["IntegrityError", "PlaneTally", "explore_changing", "explore_reading"]
