"""Every disk that a crash may leave: a traced run, cut anywhere, with what was not synced kept, lost, torn or reordered.

The trace comes from tests/support/iotrace.py; whether a state is right is for the test to say.

What is assumed of the host's file system, and no more:

* what a file held when an fsync or fdatasync of it began is durable, size included, once that call has returned 0;
* 512 bytes are written whole or not at all; nothing else about unsynced data has an order, across files or within;
* a new, renamed or removed name is durable after an fsync of its directory; until then it may be there or not, but
  a rename is never half done, and later changes of a name do not survive earlier ones that did not.
"""

from __future__ import annotations

import errno
import os
import random as random_module
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.support.iotrace import Event, Op, Trace

SECTOR: Final = 512
PAGE: Final = 4096
_ZERO_PAGE: Final = bytes(PAGE)

_KEEP_SIZE: Final = 1  # FALLOC_FL_*
_PUNCH_HOLE: Final = 2
_ZERO_RANGE: Final = 16
_RENAME_EXCHANGE: Final = 2


class SparseFile:
    """A file as pages; copies share them, so a state costs what differs."""

    __slots__ = ("pages", "size")

    def __init__(self, content: bytes = b"") -> None:
        self.size = 0
        self.pages: dict[int, bytes] = {}
        if content:
            self.write(0, content)
            self.pages = {number: page for number, page in self.pages.items() if page != _ZERO_PAGE}

    def copy(self) -> SparseFile:
        twin = SparseFile()
        twin.size, twin.pages = self.size, dict(self.pages)
        return twin

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        at = offset
        while at < end:
            number, low = divmod(at, PAGE)
            high = min(PAGE, low + end - at)
            piece = data[at - offset : at - offset + high - low]
            if len(piece) == PAGE:
                self.pages[number] = piece
            else:
                page = self.pages.get(number, _ZERO_PAGE)
                self.pages[number] = page[:low] + piece + page[high:]
            at += high - low
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        if size < self.size:
            last, low = divmod(size, PAGE)
            for number in [number for number in self.pages if number > last or (number == last and low == 0)]:
                del self.pages[number]
            if low and last in self.pages:
                self.pages[last] = self.pages[last][:low] + bytes(PAGE - low)
        self.size = size

    def zero(self, offset: int, length: int) -> None:
        end = min(offset + length, self.size)
        at = offset
        while at < end:
            number, low = divmod(at, PAGE)
            high = min(PAGE, low + end - at)
            if number in self.pages:
                page = self.pages[number]
                self.pages[number] = page[:low] + bytes(high - low) + page[high:]
                if high - low == PAGE:
                    del self.pages[number]
            at += high - low

    def __bytes__(self) -> bytes:
        content = bytearray(self.size)
        for number, page in self.pages.items():
            content[number * PAGE : (number + 1) * PAGE] = page[: self.size - number * PAGE]
        return bytes(content)


@dataclass(frozen=True, slots=True)
class Symlink:
    target: str


Image = dict[str, SparseFile | Symlink | None]  # path below the root; None: a directory


def image_bytes(image: Image) -> dict[str, bytes | None]:
    """Regular files as bytes, directories as None: for small comparisons."""
    return {path: bytes(node) if isinstance(node, SparseFile) else None for path, node in image.items()}


@dataclass(frozen=True, slots=True)
class State:
    """One disk that may be found.

    Attributes:
        cut: events[:cut] had happened.
        variant: what became of the unsynced part, for messages.
        marks: labels marked before the cut, oldest first.
        fingerprint: equal for equal images of one trace.
    """

    cut: int
    variant: str
    image: Image
    marks: tuple[str, ...]
    fingerprint: int

    def __str__(self) -> str:
        return f"cut {self.cut}, {self.variant}, after {self.marks[-1] if self.marks else 'no mark'}"


# ------------------------------------------------------------------------- the running system


@dataclass(slots=True, eq=False)
class _Change:
    """An unsynced change of one file."""

    serial: int
    event: Event


@dataclass(slots=True, eq=False)
class _File:
    durable: SparseFile = field(default_factory=SparseFile)
    version: int = 0
    pending: list[_Change] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Directory:
    entries: dict[str, _Node] = field(default_factory=dict)  # as the running system sees it
    durable: dict[str, _Node] = field(default_factory=dict)


_Node = _File | _Directory | Symlink
_Key = tuple[int, str]  # id of a directory, name


@dataclass(slots=True, eq=False)
class _Naming:
    """An unsynced, atomic change of names: what each stands for afterwards (None: nothing)."""

    serial: int
    changes: list[tuple[_Directory, str, _Node | None]]
    needs: list[_Key] = field(default_factory=list)  # names that it depends on without changing them

    def keys(self) -> list[_Key]:
        return [(id(directory), name) for directory, name, _ in self.changes] + self.needs


def _apply(content: SparseFile, event: Event) -> None:
    if event.op is Op.WRITE:
        content.write(event.offset, event.data)
    elif event.op is Op.TRUNCATE:
        content.truncate(event.offset)
    elif event.flags & (_PUNCH_HOLE | _ZERO_RANGE):
        end = event.offset + event.arg
        if not event.flags & _KEEP_SIZE and end > content.size:
            content.truncate(end)
        content.zero(event.offset, event.arg)
    elif event.flags in {0, _KEEP_SIZE}:
        if not event.flags and event.offset + event.arg > content.size:
            content.truncate(event.offset + event.arg)
    else:
        raise NotImplementedError(f"fallocate mode {event.flags}")


def _apply_torn(content: SparseFile, event: Event, sectors: frozenset[int]) -> None:
    """Write only some sectors of *event*, numbered from the one that holds its first byte."""
    first = event.offset // SECTOR
    for sector in sorted(sectors):
        low = max((first + sector) * SECTOR, event.offset)
        high = min((first + sector + 1) * SECTOR, event.offset + len(event.data))
        content.write(low, event.data[low - event.offset : high - event.offset])


# serial -> True (kept), False (lost), or the sectors of a torn write that were kept
_Choice = Callable[[_Change], bool | frozenset[int]]


class Disk:
    """What is durable, and what only the running system knows. `apply` lets time pass, `states` cuts the power."""

    def __init__(self, trace: Trace) -> None:
        self._root = _Directory()
        self._files: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {trace.inodes.get("", 0): self._root}
        self._names: list[_Naming] = []
        self._begun: dict[tuple[int, int], int] = {}
        self._serial = 0
        self._marks: list[str] = []
        self._cut = 0
        for path in sorted(trace.start):
            if not path:
                continue
            parent, name = self._place(path)
            content = trace.start[path]
            ino = trace.inodes[path]
            node: _Node
            if content is None:
                node = self._directories[ino] = _Directory()
            else:
                node = self._files.setdefault(ino, _File(SparseFile(content)))
            parent.entries[name] = parent.durable[name] = node

    def _place(self, path: str) -> tuple[_Directory, str]:
        *above, name = path.split("/")
        here = self._root
        for part in above:
            below = here.entries[part]
            assert isinstance(below, _Directory), path
            here = below
        return here, name

    def _file(self, event: Event) -> _File:
        try:
            return self._files[event.ino]
        except KeyError:
            raise AssertionError(f"{event.path!r} appeared without being seen to be created") from None

    def _next(self) -> int:
        self._serial += 1
        return self._serial

    def _rename(self, *changes: tuple[_Directory, str, _Node | None], needs: Iterable[_Key] = ()) -> None:
        for directory, name, node in changes:
            if node is None:
                directory.entries.pop(name, None)
            else:
                directory.entries[name] = node
        self._names.append(_Naming(self._next(), list(changes), list(needs)))

    def apply(self, event: Event) -> None:
        self._cut += 1
        match event.op:
            case Op.WRITE | Op.TRUNCATE | Op.FALLOCATE:
                self._file(event).pending.append(_Change(self._next(), event))
            case Op.SYNC_BEGIN:
                self._begun[event.pid, event.arg] = self._next()
            case Op.SYNC_END:
                begun = self._begun.pop((event.pid, event.arg))
                if event.offset == 0:  # a failed sync promises nothing
                    self._sync(event, begun)
            case Op.SYNC_ALL:
                for file in self._files.values():
                    self._sync_file(file, self._serial)
                for naming in self._names:
                    self._make_durable(naming)
                self._names = []
            case Op.CREATE | Op.MKDIR | Op.SYMLINK:
                parent, name = self._place(event.path)
                node: _Node
                if event.op is Op.CREATE:
                    self._directories.pop(event.ino, None)  # inode numbers are used again
                    node = self._files[event.ino] = _File()
                elif event.op is Op.MKDIR:
                    self._files.pop(event.ino, None)
                    node = self._directories[event.ino] = _Directory()
                else:
                    node = Symlink(event.path2)
                self._rename((parent, name, node))
            case Op.RENAME:
                (source, old), (target, new) = self._place(event.path), self._place(event.path2)
                node = source.entries[old]
                other = target.entries.get(new)
                if event.flags & _RENAME_EXCHANGE:
                    assert other is not None
                    self._rename((source, old, other), (target, new, node))
                elif other is not node:  # two names of one file: nothing happens
                    self._rename((source, old, None), (target, new, node))
            case Op.LINK:
                (source, old), (target, new) = self._place(event.path), self._place(event.path2)
                self._rename((target, new, source.entries[old]), needs=[(id(source), old)])
            case Op.UNLINK | Op.RMDIR:
                parent, name = self._place(event.path)
                self._rename((parent, name, None))
            case Op.MARK:
                self._marks.append(event.path)
            case Op.FAULT:
                pass
            case _:
                raise AssertionError(event.op)

    def _sync(self, event: Event, begun: int) -> None:
        if event.ino not in self._directories:
            self._sync_file(self._file(event), begun)
            return
        directory = self._directories[event.ino]
        wanted: set[_Key] = set()
        later: list[_Naming] = []
        durable: list[_Naming] = []
        for naming in reversed(self._names):  # newest first: what a durable change stands on is durable as well
            mine = naming.serial < begun and any(where is directory for where, _, _ in naming.changes)
            if mine or (naming.serial < begun and wanted.intersection(naming.keys())):
                durable.append(naming)
                wanted.update(naming.keys())
            else:
                later.append(naming)
        for naming in reversed(durable):
            self._make_durable(naming)
        self._names = later[::-1]

    @staticmethod
    def _make_durable(naming: _Naming) -> None:
        for directory, name, node in naming.changes:
            if node is None:
                directory.durable.pop(name, None)
            else:
                directory.durable[name] = node

    @staticmethod
    def _sync_file(file: _File, begun: int) -> None:
        covered = [change for change in file.pending if change.serial <= begun]
        if covered:
            file.durable = file.durable.copy()
            for change in covered:
                _apply(file.durable, change.event)
            file.version = covered[-1].serial
            file.pending = [change for change in file.pending if change.serial > covered[-1].serial]

    # --------------------------------------------------------------------- cutting the power

    def _pending(self) -> list[_Change]:
        """Unsynced changes of files that a name may lead to, oldest first."""
        return sorted((c for file in self._files.values() for c in file.pending), key=lambda change: change.serial)

    def image(self, keep: _Choice, keep_name: Callable[[_Naming], bool]) -> tuple[Image, int]:
        """Build what is found if exactly the unsynced changes chosen were carried out; and its fingerprint."""
        overlay: dict[_Key, _Node | None] = {}
        broken: set[_Key] = set()
        for naming in self._names:
            if broken.isdisjoint(naming.keys()) and keep_name(naming):
                overlay |= {(id(directory), name): node for directory, name, node in naming.changes}
            else:
                broken.update(naming.keys())
        image: Image = {}
        contents: dict[int, tuple[SparseFile, object]] = {}
        prints: list[object] = []

        def walk(directory: _Directory, prefix: str) -> None:
            entries: dict[str, _Node | None] = dict(directory.durable)
            entries |= {name: node for (where, name), node in overlay.items() if where == id(directory)}
            for name in sorted(entries):
                node = entries[name]
                path = prefix + name
                if isinstance(node, _Directory):
                    image[path] = None
                    prints.append(path)
                    walk(node, path + "/")
                elif isinstance(node, Symlink):
                    image[path] = node
                    prints.append((path, node.target))
                elif node is not None:
                    if id(node) not in contents:
                        contents[id(node)] = self._content(node, keep)
                    image[path], found = contents[id(node)]
                    prints.append((path, id(node), found))

        walk(self._root, "")
        return image, hash(tuple(prints))

    @staticmethod
    def _content(file: _File, keep: _Choice) -> tuple[SparseFile, object]:
        chosen = [(change, kept) for change in file.pending if (kept := keep(change)) is not False]
        if not chosen:
            return file.durable, file.version  # shared: nobody changes a durable content in place
        content = file.durable.copy()
        for change, kept in chosen:
            if isinstance(kept, frozenset):
                _apply_torn(content, change.event, kept)
            else:
                _apply(content, change.event)
        return content, (file.version, tuple((change.serial, kept) for change, kept in chosen))

    def states(self, *, random: int = 4, seed: int = 0) -> Iterator[State]:
        """All kinds of loss at this moment, without repetition; *random*: how many seeded mixtures besides."""
        pending = self._pending()
        seen: set[int] = set()

        def state(variant: str, keep: _Choice, keep_name: Callable[[_Naming], bool]) -> Iterator[State]:
            image, fingerprint = self.image(keep, keep_name)
            if fingerprint not in seen:
                seen.add(fingerprint)
                yield State(self._cut, variant, image, tuple(self._marks), fingerprint)

        yield from state("all kept", lambda _: True, lambda _: True)
        if not pending and not self._names:
            return
        yield from state("all lost", lambda _: False, lambda _: False)
        yield from state("names lost", lambda _: True, lambda _: False)
        yield from state("data lost", lambda _: False, lambda _: True)
        yield from state("last name lost", lambda _: True, lambda naming: naming is not self._names[-1])
        if pending:
            first, last = pending[0], pending[-1]
            yield from state("first lost", lambda change: change is not first, lambda _: True)
            yield from state("last lost", lambda change: change is not last, lambda _: True)
            yield from state("last only", lambda change: change is last, lambda _: True)
            for how in ("begin", "end"):
                yield from state(f"last torn: {how}", _tear_only(last, how), lambda _: True)
        for place in sorted(
            {_top(change) for change in pending}
        ):  # file systems of their own, each keeps what it likes
            yield from state(f"only {place} lost", _Within(place, kept=False), lambda _: True)
            yield from state(f"only {place} kept", _Within(place, kept=True), lambda _: True)
        for number in range(random):
            mix = _Mixture(random_module.Random(f"{seed} {self._cut} {number}"))
            yield from state(f"mixture {number} of seed {seed}", mix.keep, mix.keep_name)


def _top(change: _Change) -> str:
    return change.event.path.split("/", 1)[0]


class _Within:
    """What is below one directory is kept, and nothing else; or the other way round."""

    def __init__(self, place: str, *, kept: bool) -> None:
        self._place = place
        self._kept = kept

    def __call__(self, change: _Change) -> bool:
        return (_top(change) == self._place) == self._kept


def _tear_only(torn: _Change, how: str) -> _Choice:
    sectors = _sectors(torn.event, how)
    return lambda change: sectors if change is torn else True


def _sectors(event: Event, how: str, generator: random_module.Random | None = None) -> bool | frozenset[int]:
    """Sectors of a write that make it: the "begin", the "end" or "any"; all or nothing if it cannot be torn."""
    if event.op is not Op.WRITE:
        return False
    count = (event.offset + len(event.data) - 1) // SECTOR - event.offset // SECTOR + 1
    if count < 2:
        return False
    edge = count // 2 if generator is None else generator.randrange(1, count)
    if how == "any" and generator is not None:
        return frozenset(number for number in range(count) if generator.random() < 0.5)
    return frozenset(range(edge) if how == "begin" else range(edge, count))


class _Mixture:
    """Random fates; how likely each is differs from mixture to mixture, so that rare combinations turn up too."""

    def __init__(self, generator: random_module.Random) -> None:
        self._generator = generator
        self._lost = generator.choice((0.1, 0.5, 0.9))
        self._torn = generator.choice((0.0, 0.2, 0.6))
        self._name_lost = generator.choice((0.0, 0.3, 0.7))

    def keep(self, change: _Change) -> bool | frozenset[int]:
        if self._generator.random() < self._lost:
            return False
        if self._generator.random() < self._torn:
            return _sectors(change.event, self._generator.choice(("begin", "end", "any")), self._generator)
        return True

    def keep_name(self, naming: _Naming) -> bool:
        return self._generator.random() >= self._name_lost


def states(trace: Trace, cut: int, *, random: int = 4, seed: int = 0) -> Iterator[State]:
    """Yield what may be found if the power goes after events[:cut]."""
    disk = Disk(trace)
    for event in trace.events[:cut]:
        disk.apply(event)
    yield from disk.states(random=random, seed=seed)


def all_states(trace: Trace, *, random: int = 4, seed: int = 0, every: int = 1) -> Iterator[State]:
    """Yield the states of every cut, each image once per mark that it follows.

    Args:
        every: Look only at each n-th cut, and at those right after a mark or a sync.
    """
    disk = Disk(trace)
    seen: set[tuple[int, int]] = set()
    important = {Op.MARK, Op.SYNC_END, Op.RENAME, Op.CREATE, Op.UNLINK}
    for cut in range(len(trace.events) + 1):
        if cut > 0:
            disk.apply(trace.events[cut - 1])
            if cut % every and trace.events[cut - 1].op not in important:
                continue
        for state in disk.states(random=random, seed=seed):
            key = (state.fingerprint, len(state.marks))
            if key not in seen:
                seen.add(key)
                yield state


# ------------------------------------------------------------------------- onto a real directory


class Stage:
    """A directory that is made to hold one image after the other, writing only what differs.

    The program under test may change what it likes in between, but not by mmap: a file is written anew if its
    time stamp, which no program would set by itself, or its size or blocks are not those that were left here.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        os.makedirs(self.root, exist_ok=True)
        self._tick = 10**17  # ns: 1973
        self._left: dict[str, tuple[tuple[int, ...], SparseFile]] = {}

    def put(self, image: Image) -> str:
        """Make the directory equal to *image*; its path."""
        found = self._existing()
        for path in sorted(found, key=len, reverse=True):
            node = image.get(path, False)
            kind = stat.S_IFMT(found[path].st_mode)
            fits = (node is None and kind == stat.S_IFDIR) or (isinstance(node, SparseFile) and kind == stat.S_IFREG)
            if not fits:
                full = os.path.join(self.root, path)
                shutil.rmtree(full) if kind == stat.S_IFDIR else os.unlink(full)
                del found[path]
                self._left.pop(path, None)
        for path in sorted(image):
            node = image[path]
            full = os.path.join(self.root, path)
            if isinstance(node, Symlink):
                os.symlink(node.target, full)
            elif node is None:
                if path not in found or not os.path.isdir(full):
                    os.mkdir(full)
            else:
                self._write(path, full, node, found.get(path))
        return self.root

    def _existing(self) -> dict[str, os.stat_result]:
        found: dict[str, os.stat_result] = {}
        stack = [""]
        while stack:
            prefix = stack.pop()
            with os.scandir(os.path.join(self.root, prefix)) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    found[path] = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(path + "/")
        return found

    @staticmethod
    def _signature(result: os.stat_result) -> tuple[int, ...]:
        return (result.st_ino, result.st_size, result.st_blocks, result.st_mtime_ns, result.st_nlink, result.st_mode)

    def _write(self, path: str, full: str, content: SparseFile, there: os.stat_result | None) -> None:
        before = SparseFile()
        if there is not None:
            signature, left = self._left.get(path, ((), before))
            if signature == self._signature(there):
                if left is content:
                    return
                before = left
            else:  # somebody else's: also hard links and modes
                os.unlink(full)
        fd = os.open(full, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            for number in before.pages.keys() - content.pages.keys():
                if number * PAGE < content.size:
                    os.pwrite(fd, _ZERO_PAGE, number * PAGE)
            new = sorted(number for number, page in content.pages.items() if before.pages.get(number) is not page)
            for first, pages in _runs(new, content.pages):
                if os.pwrite(fd, pages, first * PAGE) != len(pages):
                    raise OSError(errno.ENOSPC, f"no room for crash states in {self.root}")
            os.ftruncate(fd, content.size)
            self._tick += 1
            os.utime(fd, ns=(self._tick, self._tick))
            self._left[path] = (self._signature(os.fstat(fd)), content)
        finally:
            os.close(fd)


def _runs(numbers: list[int], pages: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Join neighbouring pages."""
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], b"".join(pages[number] for number in numbers[start:index])
            start = index
