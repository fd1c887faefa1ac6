"""Copies of a volume are altered while they are mounted: what is read from them is right, or EIO; never anything else.

    python -m tests.fault.endurance.tamperer MOUNTPOINT SECONDS SEED MODEL…

reads everything on the mountpoint again and again, compares it with the workers' models as of the copy, and prints
how often it was right and how often refused. What alters the copy runs in the supervisor (`Vandal`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from tests.fault.endurance.model import ATTRIBUTE, CELL, File, Model, Names, WrongError, cell_bytes

REFUSED: Final = {errno.EIO, errno.EROFS, errno.ENOSPC}
_ALIGN: Final = 4096


class Reader:
    """Reads one worker's directory of a tampered mount, and writes to it."""

    def __init__(self, path: Path, model: Model, random: Random, counts: Counter[str]) -> None:
        self.path = path
        self.model = model
        self.random = random
        self.counts = counts
        self.files: dict[bytes, File] = {}

    @contextlib.contextmanager
    def refusable(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno not in REFUSED:
                raise WrongError(f"{what}: {exc}") from exc
            self.counts[f"{what} refused"] += 1
        else:
            self.counts[what] += 1

    def names(self) -> list[bytes]:
        """Check the names, and return those that are there."""
        found: list[bytes] = []
        with self.refusable("readdir"):
            found = os.listdir(os.fsencode(self.path))
        states = [names for names in self.model.past if set(names) == set(found)]
        if found and not states:
            raise WrongError(f"{self.path}: {sorted(found)[:20]} is no state of the directory")
        return found

    def number_of(self, name: bytes) -> int | None:
        """Check the attribute of a file against all states, and return its number."""
        possible: set[tuple[int, int | None]] = {
            entry for names in self.model.past if (entry := names.get(name)) is not None
        }
        if not possible:
            return None
        where = os.path.join(os.fsencode(self.path), name)
        try:
            number, tag = map(int, os.getxattr(where, ATTRIBUTE).split())
        except OSError as exc:
            if exc.errno == errno.ENODATA and any(tag is None for _, tag in possible):
                return next(number for number, tag in possible if tag is None)
            if exc.errno in REFUSED:
                self.counts["getxattr refused"] += 1
                return None
            raise WrongError(f"getxattr {name!r}: {exc}") from exc
        if (number, tag) not in possible:
            raise WrongError(f"{name!r}: attribute {number} {tag} found, {sorted(possible, key=repr)} expected")
        self.counts["getxattr"] += 1
        return number

    def look(self, *, write: bool) -> None:
        """Read everything once."""
        for name in self.names():
            number = self.number_of(name)
            if number is None:
                continue
            self.read(name, self.model.files[number])
            if write and self.random.random() < 0.3:
                self.write(name, self.model.files[number])

    def read(self, name: bytes, file: File) -> None:
        where = os.path.join(os.fsencode(self.path), name)
        descriptor = -1
        with self.refusable("open"):
            descriptor = os.open(where, os.O_RDONLY)
        if descriptor < 0:
            return
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(descriptor).st_size // CELL
            if not min(file.sizes) <= size <= max(file.sizes):
                raise WrongError(f"{name!r}: {size} cells, {file.sizes[-5:]} expected")
            step = _ALIGN // CELL
            for first in range(0, size, step):
                with self.refusable("pread"):
                    data = os.pread(descriptor, _ALIGN, first * CELL)
                    for cell in range(len(data) // CELL):
                        piece = data[cell * CELL : (cell + 1) * CELL]
                        file.check_cell(self.model.worker, first + cell, piece, newest=False)
        finally:
            os.close(descriptor)

    def write(self, name: bytes, file: File) -> None:
        """Overwrite some cells; whether it succeeds or not, each is then old or new."""
        where = os.path.join(os.fsencode(self.path), name)
        version = self.model.next_version()
        first, count = self.random.randrange(max(1, file.size)), self.random.choice((1, 3, 20))
        file.write(first, count, version)
        descriptor = -1
        with self.refusable("open"):
            descriptor = os.open(where, os.O_WRONLY)
        if descriptor < 0:
            return
        data = b"".join(
            cell_bytes(self.model.worker, file.number, cell, version) for cell in range(first, first + count)
        )
        with self.refusable("pwrite"):
            os.pwrite(descriptor, data, first * CELL)
        with self.refusable("fsync"):
            os.fsync(descriptor)
        with self.refusable("close"):
            os.close(descriptor)


class Vandal:
    """Alters the files of a volume directory while somebody uses it.

    Args:
        volume: The copy.
        older: An older copy of the same volume, or None.
    """

    def __init__(self, volume: Path, older: Path | None, random: Random) -> None:
        self.volume = volume
        self.older = older
        self.random = random
        self.counts: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vandal")

    def once(self) -> None:
        """Do one thing."""
        segments = sorted((self.volume / "segments").iterdir())
        segment = self.random.choice(segments)
        size = segment.stat().st_size
        if size < 2 * _ALIGN:
            return
        slot = self.random.randrange(size // _ALIGN) * _ALIGN
        what = self.random.choice(("bit", "bit", "block", "swap", "zero", "old", "old", "cut", "root"))
        with contextlib.suppress(FileNotFoundError), segment.open("r+b") as file:
            if what == "bit":
                offset = slot + self.random.randrange(_ALIGN)
                byte = os.pread(file.fileno(), 1, offset)
                os.pwrite(file.fileno(), bytes([(byte or b"\0")[0] ^ 1 << self.random.randrange(8)]), offset)
            elif what == "block":
                os.pwrite(file.fileno(), self.random.randbytes(_ALIGN), slot)
            elif what == "swap":
                other = self.random.randrange(size // _ALIGN) * _ALIGN
                one, two = os.pread(file.fileno(), _ALIGN, slot), os.pread(file.fileno(), _ALIGN, other)
                os.pwrite(file.fileno(), two, slot)
                os.pwrite(file.fileno(), one, other)
            elif what == "zero":
                os.pwrite(file.fileno(), bytes(_ALIGN), slot)
            elif what == "old" and self.older is not None:
                before = self.older / "segments" / segment.name
                if before.exists():
                    count = self.random.choice((1, 8, 64)) * _ALIGN
                    with before.open("rb") as old:
                        os.pwrite(file.fileno(), os.pread(old.fileno(), count, slot), slot)
            elif what == "cut" and self.random.random() < 0.05:
                os.truncate(segment, slot)
            elif what == "root" and self.older is not None and self.random.random() < 0.2:
                name = self.random.choice(("root.a", "root.b", "keyring"))
                (self.volume / name).write_bytes((self.older / name).read_bytes())
        self.counts[what] += 1

    def _loop(self) -> None:
        while not self._stop.wait(self.random.random() * 0.4):
            with contextlib.suppress(OSError):
                self.once()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def main(arguments: list[str]) -> None:
    mountpoint, seconds, seed, *models = arguments
    random = Random(int(seed))
    counts: Counter[str] = Counter()
    readers = []
    for each in models:
        model: Model = pickle.loads(Path(each).read_bytes())
        readers.append(Reader(Path(mountpoint) / f"worker-{model.worker}", model, random, counts))
    deadline = time.monotonic() + float(seconds)
    wrong = ""
    try:
        while time.monotonic() < deadline:
            for reader in readers:
                reader.look(write=random.random() < 0.5)
    except WrongError as exc:
        wrong = str(exc)
    print(json.dumps({"wrong": wrong, "counts": dict(counts)}))


__all__ = ["Names", "Reader", "Vandal"]

if __name__ == "__main__":
    from tests.fault.endurance import tamperer  # what is unpickled must not be of `__main__`

    tamperer.main(sys.argv[1:])
