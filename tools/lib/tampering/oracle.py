"""Decide, from the altered bytes alone, what must still be readable, and compare it with what the library does.

The rules: a block that is not what it was makes exactly its range of its file unreadable, with the kind that
docs/FORMAT.md 5 and `fspf_native.ChunkError` name; an operation on names and attributes may fail only if a page that it needs
is damaged; everything else gives the truth.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fspf.core.errors import DamagedFileError, FspfError, IntegrityError
from fspf.core.types import ROOT_INO, Ino
from fspf.volume.check import verify_volume
from fspf.volume.scrub import scrub
from fspf.volume.vfs import TreeFile
from fspf.volume.volume import Volume
from tools.lib.tampering.anatomy import NAMESPACE, SPACE_MAP, Anatomy, Block
from tools.lib.tampering.patient import Patient, checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fspf.core.anchor import Cas
    from tools.lib.tampering.cases import Case

_CACHE_BYTES: Final = 1 << 20
_NO_EXTENT: Final = -1  # ENXIO of seek_data and seek_hole


@dataclass(frozen=True, slots=True)
class Operation:
    """One question about names and attributes, with its right answer and the namespace pages it needs."""

    name: str
    ask: Callable[[Volume], Any]
    answer: Any
    pages: frozenset[int]


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of one tree that must be unreadable, and the kind that must be reported for it."""

    start: int
    end: int
    kind: str
    level: int
    slot: int


@dataclass(slots=True)
class Truth:
    """What a volume holds, taken before it was altered."""

    operations: list[Operation] = field(default_factory=list)
    open_pages: frozenset[int] = frozenset()
    file_pages: dict[int, frozenset[int]] = field(default_factory=dict)  # ino -> pages that opening it needs
    extents: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)  # ino -> (offset, content)
    sizes: dict[int, int] = field(default_factory=dict)
    first: dict[int, tuple[int, int]] = field(default_factory=dict)  # ino -> seek_data(0), seek_hole(0)
    names: dict[int, list[tuple[Ino, bytes, bytes]]] = field(default_factory=dict)  # ino -> directory, name, path
    generation: int = 0


# -- taking the truth


@contextmanager
def _pages_read(chunk_size: int) -> Iterator[set[int]]:
    """Record which namespace pages SQLite reads."""
    pages: set[int] = set()
    original = TreeFile.xRead

    def recording(self: TreeFile, amount: int, offset: int) -> bytes:
        pages.update(range(offset // chunk_size, (offset + amount - 1) // chunk_size + 1))
        return original(self, amount, offset)

    TreeFile.xRead = recording  # type: ignore[method-assign]
    try:
        yield pages
    finally:
        TreeFile.xRead = original  # type: ignore[method-assign]


def _call(method: str, *arguments: Any) -> Callable[[Volume], Any]:
    return lambda volume: getattr(volume, method)(*arguments)


def take_truth(anatomy: Anatomy, cas: Cas) -> Truth:
    """Read everything of an intact volume."""
    truth = Truth(generation=anatomy.state.generation)
    size = anatomy.header.chunk_size
    with _pages_read(size) as pages:
        volume = Volume.open(anatomy.path, cas, read_only=True, cache_bytes=_CACHE_BYTES)
    truth.open_pages = frozenset(pages)
    with volume:

        def cold(ask: Callable[[Volume], Any]) -> tuple[Any, frozenset[int]]:
            volume.namespace.connection.release_memory()
            getattr(volume.namespace, "_rows", {}).clear()  # what it keeps of earlier answers
            with _pages_read(size) as pages:
                answer = ask(volume)
            return answer, frozenset(pages)

        def add(name: str, ask: Callable[[Volume], Any]) -> Any:
            answer, pages = cold(ask)
            truth.operations.append(Operation(name, ask, answer, pages))
            return answer

        for ino in anatomy.inodes:
            add(f"getattr {ino}", _call("getattr", ino))
        todo: list[tuple[Ino, bytes]] = [(ROOT_INO, b"")]
        seen: set[int] = set()
        while todo:
            directory, path = todo.pop()
            for entry in add(f"readdir {path!r}", _call("readdir", directory, 0, 100_000)):
                attr, name = entry.attr, entry.name
                add(f"lookup {path + b'/' + name!r}", _call("lookup", directory, name))
                truth.names.setdefault(attr.ino, []).append((directory, name, path + b"/" + name))
                if stat.S_ISDIR(attr.mode):
                    todo.append((attr.ino, path + b"/" + name))
                if stat.S_ISLNK(attr.mode):
                    add(f"readlink {attr.ino}", _call("readlink", attr.ino))
                if attr.ino in seen:
                    continue
                seen.add(attr.ino)
                for key in add(f"listxattr {attr.ino}", _call("listxattr", attr.ino)):
                    add(f"getxattr {attr.ino} {key!r}", _call("getxattr", attr.ino, key))
        add("lookup of what is not there", lambda volume: _errno_of(lambda: volume.lookup(ROOT_INO, b"no such name")))
        for ino, (mode, length) in anatomy.inodes.items():
            if not stat.S_ISREG(mode):
                continue
            file, truth.file_pages[ino] = cold(_call("open_file", ino))
            with file:
                assert file.size == length
                truth.sizes[ino] = length
                truth.first[ino] = _first(file)
                truth.extents[ino] = [
                    (low, file.read(low, high - low)) for low, high in _extents(anatomy, f"ino {ino}", length)
                ]
    return truth


def _errno_of(ask: Callable[[], Any]) -> int:
    try:
        ask()
    except OSError as exc:
        return exc.errno or 0
    return 0


def _first(file: Any) -> tuple[int, int]:
    found = []
    for seek in (file.seek_data, file.seek_hole):
        try:
            found.append(seek(0))
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            found.append(_NO_EXTENT)
    return found[0], found[1]


def _extents(anatomy: Anatomy, tree: str, size: int) -> list[tuple[int, int]]:
    """Return ranges that take in all data of a file and the edges of its holes."""
    unit = anatomy.header.chunk_size
    chunks = {0, max(size - 1, 0) // unit}
    for block in anatomy.blocks:
        if block.tree == tree and block.level == 0:
            chunks |= {block.offset // unit + step for step in (-1, 0, 1)}
    ranges: list[tuple[int, int]] = []
    for chunk in sorted(chunks):
        low, high = chunk * unit, min((chunk + 1) * unit, size)
        if not 0 <= low < high:
            continue
        if ranges and ranges[-1][1] == low:
            ranges[-1] = (ranges[-1][0], high)
        else:
            ranges.append((low, high))
    return ranges


# -- what must follow from the altered bytes


def kind_of(block: Block, claimed: bytes | None, entry: bytes | None) -> str | None:
    """Return how a block must be reported whose slot now holds *claimed*, beside *entry*; None if it is intact."""
    if claimed == block.sealed:
        return None  # the table never makes a good block bad
    if claimed is None or entry is None:
        return "missing"
    if not any(entry) and not any(claimed):
        return "missing"
    if checksum(claimed) != entry[:8]:
        return "torn"
    hint = (int.from_bytes(entry[8:11], "little"), int.from_bytes(entry[11:16], "little"))
    return "stale" if hint < block.nonce else "tampered"


def damage(patient: Patient) -> dict[str, list[Damage]]:
    """Return what must be unreadable now, by tree; nodes nearer to the root first, for they are met first."""
    found: dict[str, list[Damage]] = {}
    anatomy = patient.anatomy
    whole = "segments" in patient.touched
    for block in anatomy.blocks:
        if not whole and anatomy.segment_of(block.slot) not in patient.touched:
            continue
        kind = kind_of(block, patient.read_slot(block.slot), patient.read_entry(block.slot))
        if kind is not None:
            entry = Damage(block.offset, block.offset + block.length, kind, block.level, block.slot)
            found.setdefault(block.tree, []).append(entry)
    for each in found.values():
        each.sort(key=lambda item: (-item.level, item.start))
    return found


def _at(damages: list[Damage], offset: int) -> Damage | None:
    return next((each for each in damages if each.start <= offset < each.end), None)


def _pages_of(damages: list[Damage], chunk_size: int) -> set[int]:
    return {page for each in damages for page in range(each.start // chunk_size, -(-each.end // chunk_size))}


# -- comparing


class Examination:
    """One look at one altered volume.

    Attributes:
        faults: What is wrong; empty means that the library did exactly what it must.
    """

    def __init__(self, patient: Patient, truth: Truth, cas: Cas, case: Case) -> None:
        self._patient = patient
        self._anatomy = patient.anatomy
        self._truth = truth
        self._cas = cas
        self._case = case
        self.faults: list[str] = []

    def _fault(self, text: str) -> None:
        if len(self.faults) < 20:
            self.faults.append(f"{self._case.name}: {text}")

    def reading(self) -> None:
        """Open for reading, and ask for everything."""
        damages = damage(self._patient)
        volume = self._open(damages, read_only=True)
        if volume is None:
            return
        with volume:
            if volume.root_record is None or volume.root_record.generation != self._truth.generation:
                self._fault(f"generation {volume.root_record and volume.root_record.generation} was opened")
            self._names(volume, damages.get(NAMESPACE, []))
            self._contents(volume, damages)

    def writing_is_refused(self) -> None:
        """Open for writing what cannot even be opened for reading."""
        volume = self._open(damage(self._patient), read_only=False)
        if volume is not None:
            volume.abandon()

    def _expected_refusal(self, damages: dict[str, list[Damage]]) -> tuple[str, int, str] | None:
        if self._case.expected is not None:
            return self._case.expected.error, self._case.expected.exit_code, self._case.expected.text
        lost = _pages_of(damages.get(NAMESPACE, []), self._anatomy.header.chunk_size)
        return ("IntegrityError", 20, "namespace") if lost & self._truth.open_pages else None

    def _open(self, damages: dict[str, list[Damage]], *, read_only: bool) -> Volume | None:
        expected = self._expected_refusal(damages)
        how = "reading" if read_only else "writing"
        before = self._patient.fingerprint() if expected is not None else {}
        record = self._cas.fetch(self._anatomy.header.volume_id) if expected is not None else None
        try:
            volume = Volume.open(
                self._patient.path,
                self._cas,
                read_only=read_only,
                cache_bytes=_CACHE_BYTES,
                commit_interval=None,
            )
        except FspfError as exc:
            if expected is None:
                self._fault(f"opening for {how} was refused: {type(exc).__name__}: {exc}")
                return None
            error, code, text = expected
            classes = [each.__name__ for each in type(exc).__mro__]
            if error not in classes or exc.exit_code != code or text not in str(exc):
                self._fault(
                    f"opening for {how}: {error} ({code}, {text!r}) expected, {type(exc).__name__} ({exc.exit_code}): {exc}"
                )
            after = self._patient.fingerprint()
            before.pop("lock", None)
            after.pop("lock", None)
            if before != after:
                changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
                self._fault(f"opening for {how} was refused and yet changed {', '.join(changed)}")
            now = self._cas.fetch(self._anatomy.header.volume_id)
            assert record is not None
            if (now.anchor, now.lease, now.key_version) != (record.anchor, record.lease, record.key_version):
                self._fault(f"opening for {how} was refused and yet changed the CAS: {now.anchor}, {now.lease}")
            return None
        except Exception as exc:  # noqa: BLE001  # an exception of the wrong kind is what is looked for
            self._fault(f"opening for {how} ended in {type(exc).__name__}: {exc}")
            return None
        if expected is not None:
            self._fault(f"opened for {how}, {expected[0]} ({expected[1]}) expected")
            volume.abandon()
            return None
        return volume

    def _names(self, volume: Volume, damages: list[Damage]) -> None:
        lost = _pages_of(damages, self._anatomy.header.chunk_size)
        for operation in self._truth.operations:
            may_fail = bool(lost and operation.pages & lost)
            try:
                answer = operation.ask(volume)
            except IntegrityError as exc:
                if not may_fail:
                    self._fault(f"{operation.name} failed though its pages are intact: {exc}")
                elif not any(f" {each.kind} " in str(exc) for each in damages):
                    self._fault(f"{operation.name}: wrong kind ({damages[0].kind} expected): {exc}")
                continue
            except Exception as exc:  # noqa: BLE001
                self._fault(f"{operation.name} ended in {type(exc).__name__}: {exc}")
                continue
            if answer != operation.answer:
                self._fault(f"{operation.name} gave a wrong answer")

    def _contents(self, volume: Volume, damages: dict[str, list[Damage]]) -> None:
        lost = _pages_of(damages.get(NAMESPACE, []), self._anatomy.header.chunk_size)
        for ino, extents in self._truth.extents.items():
            try:
                file = volume.open_file(Ino(ino))
            except IntegrityError as exc:
                if not self._truth.file_pages[ino] & lost:
                    self._fault(f"inode {ino} could not be opened though its page is intact: {exc}")
                continue
            except Exception as exc:  # noqa: BLE001
                self._fault(f"opening inode {ino} ended in {type(exc).__name__}: {exc}")
                continue
            with file:
                hurt = damages.get(f"ino {ino}", [])
                for offset, content in extents:
                    self._range(file, ino, offset, content, hurt)
                    if hurt:
                        unit = self._anatomy.header.chunk_size
                        for at in range(0, len(content), unit):
                            self._range(file, ino, offset + at, content[at : at + unit], hurt)
                self._seeking(file, ino, hurt)

    def _range(self, file: Any, ino: int, offset: int, content: bytes, hurt: list[Damage]) -> None:
        """Read one range: the truth, or an exception that names the first damaged byte of it."""
        unit = self._anatomy.header.chunk_size
        end = offset + len(content)
        touching = [each for each in hurt if each.start < end and offset < each.end]
        first = min((max(each.start, offset // unit * unit) for each in touching), default=None)
        expected = None if first is None else _at(hurt, first)
        try:
            got = file.read(offset, len(content))
        except DamagedFileError as exc:
            if expected is None:
                self._fault(f"inode {ino}, {offset} to {end}: refused though intact: {exc}")
                return
            found = (exc.kind, exc.offset, exc.offset + exc.length)
            if found != (expected.kind, expected.start, expected.end):
                self._fault(
                    f"inode {ino}, reading {offset} to {end}: {expected.kind} from {expected.start} to {expected.end} expected, {found} reported"
                )
            if exc.path and exc.path not in {path for _, _, path in self._truth.names.get(ino, [])}:
                self._fault(f"inode {ino}: the message names {exc.path!r}")
            return
        except Exception as exc:  # noqa: BLE001
            self._fault(f"inode {ino}, {offset} to {end}: {type(exc).__name__}: {exc}")
            return
        if expected is not None:
            wrong = "with wrong bytes" if got != content else "with the right bytes"
            self._fault(f"inode {ino}, {offset} to {end}: read {wrong} though {expected.kind} from {expected.start}")
        elif got != content:
            self._fault(f"inode {ino}, {offset} to {end}: WRONG BYTES")

    def _seeking(self, file: Any, ino: int, hurt: list[Damage]) -> None:
        try:
            found = _first(file)
        except DamagedFileError as exc:
            if not hurt:
                self._fault(f"inode {ino}: seeking was refused though intact: {exc}")
            return
        except Exception as exc:  # noqa: BLE001
            self._fault(f"inode {ino}: seeking ended in {type(exc).__name__}: {exc}")
            return
        if found != self._truth.first[ino]:
            self._fault(f"inode {ino}: data and hole at {found}, {self._truth.first[ino]} expected")

    # -- verify and scrub

    def verifying(self) -> None:
        """Let `fspf verify` look: one finding per damaged range, and nothing else."""
        damages = damage(self._patient)
        expected: set[tuple[bytes, int, int, str]] = set()
        for tree, each in damages.items():
            if tree in {NAMESPACE, SPACE_MAP}:
                expected |= {(b"", d.start, d.end, d.kind) for d in _outermost(each)}
                continue
            for name in self._names_of(tree)[:1]:
                expected |= {(name, d.start, d.end, d.kind) for d in _outermost(each)}
        if self._expected_refusal(damages) is not None or NAMESPACE in damages:
            return  # which names survive is the concern of `reading`
        volume = self._open(damages, read_only=True)
        if volume is None:
            return
        try:
            with volume:
                findings = [finding for finding in verify_volume(volume, threads=1) if finding.scope != "directory"]
        except Exception as exc:  # noqa: BLE001
            self._fault(f"verify ended in {type(exc).__name__}: {exc}")
            return
        for finding in findings:
            end = finding.offset + finding.length
            alike = [
                e
                for e in expected
                if e[3] == finding.kind and e[1] <= finding.offset and end <= max(x[2] for x in expected)
            ]
            if not alike:
                self._fault(f"verify: {finding} was not expected")
        for name, start, end, kind in expected:
            names = {
                path
                for paths in self._truth.names.values()
                if any(p == name for _, _, p in paths)
                for _, _, path in paths
            }
            covered = any(
                (finding.path in names or finding.path == name)
                and finding.kind == kind
                and finding.offset <= start
                and end <= finding.offset + finding.length
                for finding in findings
            )
            if not covered:
                self._fault(f"verify did not report {name!r} {start} to {end} as {kind}")

    def _names_of(self, tree: str) -> list[bytes]:
        return [path for _, _, path in self._truth.names.get(int(tree.split()[1]), [])]

    def scrubbing(self) -> None:
        """Let `fspf scrub` look: exactly the slots whose bytes do not fit their checksum."""
        if not (self._patient.path / "segments").is_dir():
            return
        expected = set()
        anatomy = self._anatomy
        for name in self._patient.touched & set(self._patient.names()):
            first = int(name.rpartition("/")[2], 16) * anatomy.header.segment_slots
            for slot in range(first, first + anatomy.header.segment_slots):
                claimed, entry = self._patient.read_slot(slot), self._patient.read_entry(slot)
                if claimed is None or entry is None:
                    return  # cut off: a finding of the segment, not of the slot
                if any(entry) and checksum(claimed) != entry[:8]:
                    expected.add(slot)
        found = set()
        try:
            for finding in scrub(self._patient.path):
                if finding.slot is not None and finding.kind == "torn":
                    found |= set(range(finding.slot, finding.slot + finding.length // anatomy.header.chunk_size))
        except FspfError as exc:
            if exc.exit_code not in {1, 20}:
                self._fault(f"scrub: {exc}")
            return
        except Exception as exc:  # noqa: BLE001
            self._fault(f"scrub ended in {type(exc).__name__}: {exc}")
            return
        if self._case.group.startswith("header"):
            return  # without a geometry there are no slots
        if found != expected:
            self._fault(f"scrub: slots {sorted(expected)} expected, {sorted(found)} found")

    # -- going on with it

    def living(self) -> None:
        """Open for writing, delete what is damaged, write something new, close; then everything else must be there.

        The patient is used up by it.
        """
        damages = damage(self._patient)
        if NAMESPACE in damages:
            return
        volume = self._open(damages, read_only=False)
        if volume is None:
            return
        new = os.urandom(3 * self._anatomy.header.chunk_size + 17)
        gone = {int(tree.split()[1]) for tree in damages if tree not in {NAMESPACE, SPACE_MAP}}
        try:
            with volume:
                for ino in gone:
                    for directory, name, _ in self._truth.names[ino]:
                        volume.unlink(directory, name)
                with volume.open_file(volume.mknod(ROOT_INO, b"new", 0o100644).ino, write=True) as file:
                    file.write(0, new)
                volume.commit()
        except Exception as exc:  # noqa: BLE001
            self._fault(f"deleting what is damaged ended in {type(exc).__name__}: {exc}")
            volume.abandon()
            return
        try:
            with Volume.open(self._patient.path, self._cas, read_only=True, cache_bytes=_CACHE_BYTES) as volume:
                ino = volume.lookup(ROOT_INO, b"new").ino
                with volume.open_file(ino) as file:
                    if file.read(0, len(new) + 1) != new:
                        self._fault("the new file has other bytes")
                for each, extents in self._truth.extents.items():
                    if each in gone:
                        continue
                    with volume.open_file(Ino(each)) as file:
                        for offset, content in extents:
                            self._range(file, each, offset, content, [])
                remaining = {ino for ino in gone if _errno_of(partial(volume.getattr, Ino(ino))) != errno.ENOENT}
                if remaining:
                    self._fault(f"inodes {remaining} are still there after they were deleted")
                for finding in verify_volume(volume, threads=1):
                    self._fault(f"verify afterwards: {finding}")
        except Exception as exc:  # noqa: BLE001
            self._fault(f"reading afterwards ended in {type(exc).__name__}: {exc}")


def _outermost(damages: list[Damage]) -> list[Damage]:
    """Drop what lies below a damaged node: it is not looked for."""
    kept: list[Damage] = []
    for each in damages:  # nodes first
        if not any(above.start <= each.start and each.end <= above.end for above in kept):
            kept.append(each)
    return kept
