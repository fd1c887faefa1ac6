"""Alter the files of a volume's copy, and undo it.

What is altered, and what must follow from it, is decided elsewhere.
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING, Final

import xxhash

from tools.lib.tampering.fields import ENTRY_LEN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tools.lib.tampering.anatomy import Anatomy

SMALL_FILES: Final = ("header", "keyring", "keyring.bak", "root.a", "root.b")


def checksum(data: bytes) -> bytes:
    """Return XXH3-64 as FORMAT.md stores it."""
    return xxhash.xxh3_64_intdigest(data).to_bytes(8, "little")


class Patient:
    """A copy of a volume under the knife.

    Attributes:
        touched: Names of files that were altered since the last `restore`.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.path: Path = anatomy.path
        self.touched: set[str] = set()
        self._undo: list[Callable[[], object]] = []

    # -- whole files

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def names(self) -> list[str]:
        """Return the segments' names, in order."""
        names = os.listdir(self.path / "segments")
        return sorted(
            f"segments/{name}" for name in names if len(name) == 8 and not set(name) - set("0123456789abcdef")
        )

    def replace(self, name: str, data: bytes) -> None:
        """Give *name* other bytes."""
        self._save(name)
        self._remove(name)
        (self.path / name).write_bytes(data)

    def remove(self, name: str) -> None:
        self._save(name)
        self._remove(name)

    def make(self, name: str, maker: Callable[[Path], object]) -> None:
        """Put something else than a file in the place of *name*."""
        self._save(name)
        self._remove(name)
        maker(self.path / name)

    def swap(self, name: str, other: str) -> None:
        one, two = self.read(name), self.read(other)
        self.replace(name, two)
        self.replace(other, one)

    def truncate(self, name: str, length: int) -> None:
        self._save(name)
        os.truncate(self.path / name, length)

    def create(self, name: str, data: bytes) -> None:
        """Add a file that was not there."""
        self.touched.add(name)
        self._undo.append(lambda: (self.path / name).unlink(missing_ok=True))
        (self.path / name).write_bytes(data)

    def _save(self, name: str) -> None:
        path = self.path / name
        self.touched.add(name)
        if path.is_dir():  # the segments directory
            aside = path.with_name(path.name + ".aside")

            def back() -> None:
                self._remove(name)
                aside.rename(path)

            path.rename(aside)
            self._undo.append(back)
            return
        data = path.read_bytes() if path.exists() else None

        def write_back() -> None:
            self._remove(name)
            if data is not None:
                path.write_bytes(data)

        self._undo.append(write_back)

    def _remove(self, name: str) -> None:
        path = self.path / name
        try:
            kind = stat.S_IFMT(path.lstat().st_mode)
        except FileNotFoundError:
            return
        if kind == stat.S_IFDIR:
            shutil.rmtree(path)
        else:
            path.unlink()

    # -- ranges

    def write(self, name: str, offset: int, data: bytes) -> None:
        path = self.path / name
        fd = os.open(path, os.O_RDWR)
        try:
            before, length = os.pread(fd, len(data), offset), os.fstat(fd).st_size
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)
        self.touched.add(name)

        def back() -> None:
            fd = os.open(path, os.O_RDWR)
            try:
                os.pwrite(fd, before, offset)
                os.ftruncate(fd, length)
            finally:
                os.close(fd)

        self._undo.append(back)

    def read_slot(self, slot: int) -> bytes | None:
        """Return what the slot holds now, None if it is not there."""
        return self._range(slot, self.anatomy.slot_offset(slot), self.anatomy.header.chunk_size)

    def read_entry(self, slot: int) -> bytes | None:
        return self._range(slot, self.anatomy.entry_offset(slot), ENTRY_LEN)

    def _range(self, slot: int, offset: int, length: int) -> bytes | None:
        path = self.path / self.anatomy.segment_of(slot)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return None
        except OSError:  # also where the directory itself is something else
            return None
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        return data if len(data) == length else None

    def write_slot(self, slot: int, data: bytes, *, entry: bytes | None = None, fix: bool = False) -> None:
        """Put *data* into a slot.

        Args:
            entry: Also its checksum entry.
            fix: Make the checksum right, leave the hint.
        """
        self.write(self.anatomy.segment_of(slot), self.anatomy.slot_offset(slot), data)
        if fix:
            old = self.read_entry(slot)
            assert old is not None
            entry = checksum(data) + old[8:]
        if entry is not None:
            self.write_entry(slot, entry)

    def write_entry(self, slot: int, entry: bytes) -> None:
        assert len(entry) == ENTRY_LEN
        self.write(self.anatomy.segment_of(slot), self.anatomy.entry_offset(slot), entry)

    # -- the end

    def restore(self) -> None:
        """Undo everything."""
        while self._undo:
            self._undo.pop()()
        self.touched.clear()

    def fingerprint(self) -> dict[str, tuple[int, int, int]]:
        """Return type, size and a checksum of everything in the directory."""
        found: dict[str, tuple[int, int, int]] = {}
        for directory, directories, files in os.walk(self.path):
            for name in directories + files:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                digest = 0
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as file:
                        digest = xxhash.xxh3_64_intdigest(file.read())
                found[os.path.relpath(path, self.path)] = (stat.S_IFMT(status.st_mode), status.st_size, digest)
        return found
