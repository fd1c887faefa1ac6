"""What one worker of an endurance run has done to its directory, and what of it a crash may and may not undo.

Every 512 bytes of every file say who wrote them, where, and when: so each cell that is read is known to be right, old
or wrong. How the operations are carried out is `tests.fault.endurance.worker`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

CELL: Final = 512  # a page is whole cells: no crash of the daemon tears one
_HEAD: Final = struct.Struct("<8sIIIIQ")
_MAGIC: Final = b"fspfcell"
_ZEROS: Final = bytes(CELL)
ATTRIBUTE: Final = b"user.endurance"


class WrongError(AssertionError):
    """Something was lost, or something was found that nobody wrote there.

    Args:
        file: Number of the file, whose whole history is then told.
    """

    def __init__(self, message: str, file: int | None = None) -> None:
        super().__init__(message)
        self.file = file


def cell_bytes(worker: int, file: int, cell: int, version: int) -> bytes:
    """Return what version *version* of a cell holds; version 0 is a hole."""
    if version == 0:
        return _ZEROS
    mixed = ((worker << 40 ^ file << 20 ^ cell) * 2654435761 + version) & 0xFFFFFFFFFFFFFFFF
    head = _HEAD.pack(_MAGIC, worker, file, cell, version, mixed)
    return head * (CELL // _HEAD.size)


def version_of(data: bytes, worker: int, file: int, cell: int) -> int:
    """Return which version *data* is. Raises `WrongError` for anything that was never written there."""
    if data == _ZEROS:
        return 0
    magic, *_, version, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or data != cell_bytes(worker, file, cell, version):
        found = _HEAD.unpack_from(data) if magic == _MAGIC else data[:32].hex()
        raise WrongError(f"worker {worker}, file {file}, cell {cell}: never written there: {found}")
    return int(version)


@dataclass(slots=True)
class File:
    """One file of a worker.

    Attributes:
        cells: The versions that may be found for each cell, the newest last.
        sizes: In cells, that may be found, the newest last.
        doubtful: Cells of which a write failed or may have: no later fsync makes the newest certain.
        unfinished: Its name before it replaced another by rename, after it had been written and closed: under any other
            name it has all its data.
        tag: Value of its attribute; None before that is set.
    """

    number: int
    cells: list[tuple[int, ...]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [0])
    doubtful: set[int] = field(default_factory=set)
    size_doubtful: bool = False
    unfinished: bytes | None = None
    tag: int | None = None

    @property
    def size(self) -> int:
        return self.sizes[-1]

    def write(self, first: int, count: int, version: int) -> None:
        """Note that a write is about to begin."""
        end = first + count
        while len(self.cells) < end:
            self.cells.append((0,))
        for cell in range(first, end):
            self.cells[cell] = (*self.cells[cell], version)
        if end > self.size:
            self.sizes.append(end)

    def cut(self, size: int) -> None:
        """Note that a truncation to *size* cells is about to begin."""
        for cell in range(size, len(self.cells)):
            if self.cells[cell][-1] != 0:
                self.cells[cell] = (*self.cells[cell], 0)
        self.sizes.append(size)

    def punch(self, first: int, count: int) -> None:
        for cell in range(first, min(first + count, len(self.cells))):
            if self.cells[cell][-1] != 0:
                self.cells[cell] = (*self.cells[cell], 0)

    def doubt(self, first: int = 0, end: int | None = None) -> None:
        """Note that what was written since the last fsync may never arrive."""
        for cell in range(first, len(self.cells) if end is None else min(end, len(self.cells))):
            if len(self.cells[cell]) > 1:
                self.doubtful.add(cell)
        if len(self.sizes) > 1:
            self.size_doubtful = True

    def certain(self, first: int, count: int) -> None:
        """Note that a write of these cells succeeded: an earlier failure no longer matters."""
        self.doubtful.difference_update(range(first, first + count))

    def promised(self) -> None:
        """Note that an fsync returned: from now on nothing older may be found."""
        for cell, versions in enumerate(self.cells):
            if len(versions) > 1 and cell not in self.doubtful:
                self.cells[cell] = versions[-1:]
        if not self.size_doubtful:
            self.sizes = self.sizes[-1:]

    def check(self, worker: int, name: bytes, data: bytes, *, newest: bool) -> None:
        """Compare with what was read, from the beginning to the end. *newest*: nothing is excused by a crash."""
        newest = newest or (self.unfinished is not None and name != self.unfinished)
        size, rest = divmod(len(data), CELL)
        sizes = self.sizes[-1:] if newest and not self.size_doubtful else self.sizes
        if rest or not min(sizes) <= size <= max(sizes):
            raise WrongError(
                f"worker {worker}, file {self.number}: {len(data)} bytes, cells may be {self.sizes[-9:]}", self.number
            )
        for cell in range(size):
            self.check_cell(worker, cell, data[cell * CELL : (cell + 1) * CELL], newest=newest)

    def check_cell(self, worker: int, cell: int, data: bytes, *, newest: bool) -> None:
        found = version_of(data, worker, self.number, cell)
        allowed = self.cells[cell] if cell < len(self.cells) else (0,)
        if newest and cell not in self.doubtful:
            allowed = allowed[-1:]
        if found not in allowed:
            raise WrongError(
                f"worker {worker}, file {self.number}, cell {cell}: version {found} found, {allowed[-9:]} expected",
                self.number,
            )

    def adopt(self, worker: int, data: bytes) -> None:
        """Take what was found after a crash as what is there, durably."""
        count = len(data) // CELL
        self.cells = [
            (version_of(data[cell * CELL : (cell + 1) * CELL], worker, self.number, cell),) for cell in range(count)
        ]
        self.sizes = [count]
        self.doubtful.clear()
        self.size_doubtful = False
        self.unfinished = None


Names = dict[bytes, tuple[int, int | None] | None]  # name → (number, tag) of a file, None: a directory


@dataclass(slots=True)
class Model:
    """All of one worker.

    Attributes:
        past: What the directory may hold after a crash, oldest first; the last is what it holds now.
        files: By number; also those without a name.
    """

    worker: int
    past: list[Names] = field(default_factory=lambda: [{}])
    files: dict[int, File] = field(default_factory=dict)
    last_number: int = 0
    last_version: int = 0

    @property
    def names(self) -> Names:
        return self.past[-1]

    def next_version(self) -> int:
        self.last_version += 1
        return self.last_version

    def new_file(self) -> File:
        self.last_number += 1
        file = self.files[self.last_number] = File(self.last_number)
        return file

    def step(self) -> Names:
        """Begin a change of names: change what is returned, before the system call."""
        self.past.append(dict(self.past[-1]))
        return self.past[-1]

    def take_back(self) -> None:
        """The system call failed and did nothing."""
        self.past.pop()

    def promised(self, file: File | None) -> None:
        """Note that an fsync returned: all names are durable, and the data of *file*."""
        self.past = self.past[-1:]
        self._forget_nameless()
        for each in self.files.values():
            if each is file or each.unfinished is not None:
                each.promised()
                each.unfinished = None

    def _forget_nameless(self) -> None:
        used = {entry[0] for entry in self.names.values() if entry is not None}
        self.files = {number: each for number, each in self.files.items() if number in used}

    def recognise(self, found: Names) -> None:
        """Check that a crash may have left the directory so, and go on from there."""
        if found not in self.past:
            nearest = min(self.past, key=lambda names: len(names.items() ^ found.items()))
            raise WrongError(
                f"worker {self.worker}: no state of its directory since the last promise ({len(self.past)} of them); "
                f"nearest lacks or has too much: {sorted(nearest.items() ^ found.items())[:6]}"
            )
        self.past = [found]
        for entry in found.values():
            if entry is not None:
                self.files[entry[0]].tag = entry[1]
        self._forget_nameless()
