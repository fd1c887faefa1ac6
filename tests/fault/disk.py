"""A disk that may lose, tear and reorder whatever was not synced: from a trace of system calls to directories.

The recorder is `tests.support.iotrace`; what the directories must then contain is `tests.fault.state`'s business.

What is assumed of a host file system, and no more: fsync or fdatasync of a file makes its data and size durable,
fsync of a directory the names in it; 512 bytes are written whole or not at all; nothing else has an order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal

SECTOR: Final = 512  # bytes

Variant = Literal["none", "all", "names lost", "data lost", "torn", "subset", "late only"]
VARIANTS: Final[tuple[Variant, ...]] = ("none", "all", "names lost", "data lost", "torn", "subset", "late only")
Image = dict[str, bytes | None]  # by path below the root; None: a directory


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """One step of a traced process. Paths are relative to the traced directory.

    kind: write truncate grow punch | create mkdir rename unlink rmdir link | sync-begin sync-end | mark
    """

    kind: str
    path: str = ""
    other: str = ""  # new name of rename and link
    offset: int = 0  # of sync-begin and sync-end: which sync
    length: int = 0  # of punch; new size of truncate; least size of grow
    data: bytes = b""
    text: str = ""  # of mark


@dataclass(slots=True, eq=False)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Event] = field(default_factory=list)

    def image(self, pending: Iterable[Event]) -> bytes:
        data = bytearray(self.durable)
        for event in pending:
            _apply(data, event)
        return bytes(data)


def _apply(data: bytearray, event: Event) -> None:
    if event.kind == "truncate":
        if event.length < len(data):
            del data[event.length :]
        else:
            data.extend(bytes(event.length - len(data)))
    elif event.kind == "grow":
        data.extend(bytes(max(0, event.length - len(data))))
    elif event.kind == "punch":
        end = min(event.offset + event.length, len(data))
        if end > event.offset:
            data[event.offset : end] = bytes(end - event.offset)
    else:
        if event.offset > len(data):
            data.extend(bytes(event.offset - len(data)))
        data[event.offset : event.offset + len(event.data)] = event.data


def _tear(event: Event, random: Random) -> list[Event]:
    """Keep some sectors of a write: a prefix, a suffix, or any of them."""
    if event.kind != "write":
        return [event]
    first = event.offset // SECTOR
    last = (event.offset + len(event.data) - 1) // SECTOR
    count = last - first + 1
    how = random.randrange(3)
    edge = random.randrange(count + 1)
    kept = []
    for number in range(count):
        keep = number < edge if how == 0 else number >= edge if how == 1 else random.random() < 0.5
        if not keep:
            continue
        low = max((first + number) * SECTOR, event.offset)
        high = min((first + number + 1) * SECTOR, event.offset + len(event.data))
        kept.append(Event("write", event.path, offset=low, data=event.data[low - event.offset : high - event.offset]))
    return kept


@dataclass(slots=True, eq=False)
class _Naming:
    """A change of names: what *path* means from now on, None: nothing."""

    changes: tuple[tuple[str, _File | str | None], ...]  # "dir": a directory


class Disk:
    """What is durable, and what only the running system knows."""

    def __init__(self, image: Image | None = None) -> None:
        self.durable: dict[str, _File | str] = {}
        for path, data in (image or {}).items():
            self.durable[path] = "dir" if data is None else _File(bytearray(data))
        self.names = dict(self.durable)
        self.pending: list[_Naming] = []
        self.syncs: dict[int, tuple[_File | str, list[Any]]] = {}  # under way: what of, and what was pending

    def copy(self) -> Disk:
        return deepcopy(self)

    def _file(self, path: str) -> _File:
        file = self.names[path]
        assert isinstance(file, _File), path
        return file

    def apply(self, event: Event) -> None:
        """Let the system do one step."""
        match event.kind:
            case "write" | "truncate" | "grow" | "punch":
                self._file(event.path).pending.append(event)
            case "sync-begin":
                self._begin_sync(event)
            case "sync-end":
                self._end_sync(*self.syncs.pop(event.offset))
            case "create":
                self._name(_Naming(((event.path, _File()),)))
            case "mkdir":
                self._name(_Naming(((event.path, "dir"),)))
            case "rename":
                self._name(_Naming(((event.path, None), (event.other, self.names[event.path]))))
            case "link":
                self._name(_Naming(((event.other, self.names[event.path]),)))
            case "unlink" | "rmdir":
                self._name(_Naming(((event.path, None),)))
            case "mark":
                pass
            case _:
                raise AssertionError(event.kind)

    def _begin_sync(self, event: Event) -> None:
        meaning = self.names[event.path] if event.path else "dir"
        if isinstance(meaning, _File):
            self.syncs[event.offset] = (meaning, list(meaning.pending))
        else:
            here = [n for n in self.pending if any(os.path.dirname(path) == event.path for path, _ in n.changes)]
            self.syncs[event.offset] = (meaning, here)

    def _end_sync(self, what: _File | str, covered: list[Any]) -> None:
        """Make durable what was pending when the sync began."""
        if isinstance(what, _File):
            done = [event for event in what.pending if event in covered]
            what.durable = bytearray(what.image(done))
            what.pending = [event for event in what.pending if event not in covered]
        else:
            for naming in [naming for naming in self.pending if naming in covered]:
                _rename(self.durable, naming)
            self.pending = [naming for naming in self.pending if naming not in covered]

    def _name(self, naming: _Naming) -> None:
        _rename(self.names, naming)
        self.pending.append(naming)

    @property
    def has_pending(self) -> bool:
        return bool(self.pending) or any(
            isinstance(file, _File) and file.pending for file in (*self.names.values(), *self.durable.values())
        )

    def image(self, variant: Variant, random: Random) -> Image:
        """Return what the disk may hold if the power went now."""
        names = dict(self.durable)
        for naming in self.pending:
            keep = {"all": True, "data lost": True, "none": False, "names lost": False}.get(variant)
            if random.random() < 0.6 if keep is None else keep:
                _rename(names, naming)
        # A lost directory takes what is in it along.
        found = {
            path: file
            for path, file in sorted(names.items())
            if not os.path.dirname(path) or isinstance(names.get(os.path.dirname(path)), str)
        }
        result: Image = {}
        done: dict[int, bytes] = {}
        for path, file in found.items():
            if not isinstance(file, _File):
                result[path] = None
                continue
            if id(file) not in done:
                done[id(file)] = file.image(_keep(file.pending, variant, random))
            result[path] = done[id(file)]
        return result


def _rename(names: dict[str, _File | str], naming: _Naming) -> None:
    for path, meaning in naming.changes:
        if meaning is None:
            names.pop(path, None)
        else:
            names[path] = meaning


def _keep(pending: list[Event], variant: Variant, random: Random) -> list[Event]:
    match variant:
        case "none" | "data lost":
            return []
        case "all" | "names lost":
            return pending
        case "late only":  # the disk wrote the newest first
            return pending[random.randrange(len(pending)) :] if pending else []
        case "subset":
            return [event for event in pending if random.random() < 0.5]
        case "torn":
            return [part for event in pending if random.random() < 0.8 for part in _tear(event, random)]


def read_image(root: str) -> Image:
    """Read a directory."""
    image: Image = {}
    for here, directories, files in os.walk(root):
        for name in directories:
            image[os.path.relpath(os.path.join(here, name), root)] = None
        for name in files:
            with open(os.path.join(here, name), "rb") as file:
                image[os.path.relpath(file.name, root)] = file.read()
    return image


def write_image(image: Image, root: str) -> None:
    """Make a directory that does not exist yet."""
    os.mkdir(root)
    for path in sorted(image):
        data = image[path]
        if data is None:
            os.mkdir(os.path.join(root, path))
        else:
            with open(os.path.join(root, path), "wb") as file:
                file.write(data)
