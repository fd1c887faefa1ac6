"""One worker of an endurance run: it works in a directory of the mount, knows what was promised, and checks.

    python -m tests.fault.endurance.worker NUMBER SEED PULSE

Commands come on stdin, one a line, answers go to stdout as JSON: ``run DIRECTORY`` works until ``pause``, or until the
mount is gone; ``verify DIRECTORY`` compares everything after a crash and goes on from what is found, ``compare DIRECTORY`` after an orderly
end, ``inspect DIRECTORY`` in the same mount; ``save FILE`` writes the model. PULSE is a file in which the supervisor sees which system call is under way since when.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import pickle
import select
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

from tests.fault.endurance.model import ATTRIBUTE, CELL, File, Model, Names, WrongError, cell_bytes

PULSE: Final = struct.Struct("<d40s")
MOST_FILES: Final = 24
MOST_CELLS: Final = 400
GONE: Final = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ESHUTDOWN}
FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2


class GoneError(Exception):
    """The mount went away during an operation."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.number = number


class Pulse:
    """Where the supervisor looks for calls that are not answered."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), PULSE.size)

    def set(self, what: str) -> None:
        self._map[:] = PULSE.pack(time.monotonic() if what else 0.0, what.encode()[:40])


class Commands:
    """Lines from the supervisor; unlike a text file it knows of those that were read together with another."""

    def __init__(self) -> None:
        self._heard = b""

    def is_there(self) -> bool:
        return b"\n" in self._heard or bool(select.select([0], [], [], 0)[0])

    def __iter__(self) -> Iterator[str]:
        while True:
            while b"\n" not in self._heard:
                got = os.read(0, 4096)
                if not got:
                    return
                self._heard += got
            line, _, self._heard = self._heard.partition(b"\n")
            yield line.decode()


class Worker:
    """A model and the system calls that follow it."""

    def __init__(self, number: int, seed: int, pulse: Pulse, commands: Commands) -> None:
        self.commands = commands
        self.model = Model(number)
        self.random = Random(seed)
        self.pulse = pulse
        self.directory = -1
        self.open: dict[int, tuple[File, int]] = {}  # number → file, descriptor
        self.operations = 0
        self.promises = 0
        self.refused = 0  # for want of space
        self.journal: list[str] = []

    # -- system calls

    @contextmanager
    def call(self, what: str) -> Iterator[None]:
        self.journal.append(what)
        if len(self.journal) > 20000:
            del self.journal[:10000]
        self.pulse.set(what)
        try:
            yield
        except OSError as exc:
            self.journal.append(f"  = {exc}")
            if exc.errno in GONE:
                raise GoneError(what, exc.errno) from exc
            raise
        finally:
            self.pulse.set("")

    def change(self, what: str, edit: Callable[[Names], None], call: Callable[[], object]) -> bool:
        """Change names; False if there was no room."""
        edit(self.model.step())
        try:
            with self.call(what):
                call()
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            self.model.take_back()
            self.refused += 1
            return False
        return True

    def close(self, number: int) -> None:
        file, descriptor = self.open.pop(number)
        try:
            with self.call(f"close {number}"):
                os.close(descriptor)
        except OSError as exc:
            if exc.errno not in FULL | {errno.EIO}:
                raise
            self._check_excuse(exc)
            file.doubt()

    def _check_excuse(self, exc: OSError) -> None:
        """EIO is what the kernel makes of lost pages: at a full disk, or when the mount has gone."""
        if exc.errno == errno.EIO and not self.refused:
            raise GoneError(f"an error without a reason: {exc}", errno.EIO) from exc

    def close_all(self) -> None:
        for number in list(self.open):
            with suppress(OSError, GoneError):
                self.close(number)
        self.open.clear()

    # -- operations

    def pick(self) -> tuple[bytes, File] | None:
        names = [(name, entry[0]) for name, entry in self.model.names.items() if entry is not None]
        if not names:
            return None
        name, number = self.random.choice(names)
        return name, self.model.files[number]

    def opened(self, name: bytes, file: File) -> int:
        if file.number not in self.open:
            if len(self.open) > 6:
                self.close(next(iter(self.open)))
            with self.call(f"open {file.number}"):
                self.open[file.number] = file, os.open(name, os.O_RDWR, dir_fd=self.directory)
        return self.open[file.number][1]

    def new_name(self) -> bytes:
        return b"n%d" % self.random.randrange(10**9)

    def create(self) -> tuple[bytes, File] | None:
        file = self.model.new_file()
        name = self.new_name()
        made: list[int] = []

        def edit(names: Names) -> None:
            names[name] = file.number, None

        def call() -> None:
            made.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.directory))

        if not self.change(f"create {file.number} {name!r}", edit, call):
            return None
        self.open[file.number] = file, made[0]
        self.tag(name, file)
        return name, file

    def tag(self, name: bytes, file: File) -> None:
        """Set its attribute, through the control plane."""
        version = self.model.next_version()

        def edit(names: Names) -> None:
            for each, entry in names.items():
                if entry is not None and entry[0] == file.number:
                    names[each] = file.number, version

        descriptor = self.opened(name, file)
        value = b"%d %d" % (file.number, version)
        if self.change(f"setxattr {file.number} {version}", edit, lambda: os.setxattr(descriptor, ATTRIBUTE, value)):
            file.tag = version

    def write(self, name: bytes, file: File) -> None:
        count = self.random.choice((1, 1, 2, 7, 8, 16, 40, 128))
        most = 4 * MOST_CELLS if self.random.random() < 0.03 else MOST_CELLS
        first = file.size if self.random.random() < 0.3 and file.size < most else self.random.randrange(most)
        version = self.model.next_version()
        descriptor = self.opened(name, file)
        data = b"".join(
            cell_bytes(self.model.worker, file.number, cell, version) for cell in range(first, first + count)
        )
        file.unfinished = None
        file.write(first, count, version)
        try:
            with self.call(f"pwrite {file.number} {first}+{count} v{version}"):
                done = os.pwrite(descriptor, data, first * CELL)
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            self.refused += 1
            file.doubt(first, first + count)
            file.size_doubtful = True
            return
        if done != len(data):
            self.refused += 1
            file.doubt(first, first + count)
            file.size_doubtful = True
        else:
            file.certain(first, count)

    def fsync(self, name: bytes, file: File) -> None:
        descriptor = self.opened(name, file)
        try:
            with self.call(f"fsync {file.number}"):
                (os.fsync if self.random.random() < 0.7 else os.fdatasync)(descriptor)
        except OSError as exc:
            if exc.errno not in FULL | {errno.EIO}:
                raise
            self._check_excuse(exc)
            self.refused += 1
            file.doubt()
            return
        self.promises += 1
        self.model.promised(file)

    def fsync_directory(self) -> None:
        try:
            with self.call("fsync ."):
                os.fsync(self.directory)
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            self.refused += 1
            return
        self.promises += 1
        self.model.promised(None)

    def truncate(self, name: bytes, file: File) -> None:
        size = self.random.randrange(MOST_CELLS)
        descriptor = self.opened(name, file)
        file.unfinished = None
        file.cut(size)
        try:
            with self.call(f"ftruncate {file.number} {size}"):
                os.ftruncate(descriptor, size * CELL)
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            self.refused += 1
            file.doubt(size)
            file.size_doubtful = True

    def punch(self, name: bytes, file: File) -> None:
        first, count = self.random.randrange(MOST_CELLS), self.random.choice((1, 8, 9, 64))
        descriptor = self.opened(name, file)
        file.unfinished = None
        file.punch(first, count)
        try:
            with self.call(f"punch {file.number} {first}+{count}"):
                _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, first * CELL, count * CELL)
        except OSError as exc:
            if exc.errno not in FULL:
                raise
            self.refused += 1
            file.doubt(first, first + count)

    def rename(self, name: bytes, file: File) -> None:
        target = self.new_name()

        def edit(names: Names) -> None:
            names[target] = names.pop(name)

        self.change(f"rename {name!r} {target!r}", edit, lambda: os.rename(
            name, target, src_dir_fd=self.directory, dst_dir_fd=self.directory
        ))  # fmt: skip

    def replace(self, target: bytes) -> None:
        """Replace a file as editors do, without an fsync."""
        made = self.create()
        if made is None:
            return
        name, file = made
        refused = self.refused
        for _ in range(self.random.randrange(1, 4)):
            self.write(name, file)
        self.close(file.number)
        whole = refused == self.refused and not file.doubtful and not file.size_doubtful

        def edit(names: Names) -> None:
            names[target] = names.pop(name)

        old = self.model.names.get(target)
        if self.change(f"replace {name!r} {target!r}", edit, lambda: os.rename(
            name, target, src_dir_fd=self.directory, dst_dir_fd=self.directory
        )):  # fmt: skip
            file.unfinished = name if whole else None
        if old is not None and old[0] in self.open and self.random.random() < 0.7:
            self.close(old[0])

    def unlink(self, name: bytes, file: File) -> None:
        def edit(names: Names) -> None:
            del names[name]

        self.change(f"unlink {name!r} {file.number}", edit, lambda: os.unlink(name, dir_fd=self.directory))
        if file.number in self.open and self.random.random() < 0.7:
            self.close(file.number)

    def directory_come_and_go(self) -> None:
        directories = [name for name, entry in self.model.names.items() if entry is None]
        if len(directories) < 4:
            name = self.new_name()

            def make(names: Names) -> None:
                names[name] = None

            self.change(f"mkdir {name!r}", make, lambda: os.mkdir(name, 0o700, dir_fd=self.directory))
        else:
            victim = self.random.choice(directories)

            def remove(names: Names) -> None:
                del names[victim]

            self.change(f"rmdir {victim!r}", remove, lambda: os.rmdir(victim, dir_fd=self.directory))

    def read(self, name: bytes, file: File) -> None:
        descriptor = self.opened(name, file)
        if self.random.random() < 0.3:
            with self.call(f"fadvise {file.number}"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        first = self.random.randrange(max(1, file.size))
        data = b""
        with self.call(f"pread {file.number} {first}+64"):  # until the end: a mount that goes cuts a read short
            while len(data) < 64 * CELL and (
                got := os.pread(descriptor, 64 * CELL - len(data), first * CELL + len(data))
            ):
                data += got
        expected = max(0, min(64, file.size - first))
        if len(data) != expected * CELL and not file.size_doubtful:
            raise WrongError(
                f"file {file.number}: {len(data)} bytes read at cell {first}, {expected} cells expected", file.number
            )
        for cell in range(len(data) // CELL):
            file.check_cell(self.model.worker, first + cell, data[cell * CELL : (cell + 1) * CELL], newest=True)

    def list_names(self) -> None:
        with self.call("readdir ."):
            found = set(os.listdir(self.directory))
        expected = {os.fsdecode(name) for name in self.model.names}
        if found != expected:
            raise WrongError(f"worker {self.model.worker}: names differ: {sorted(found ^ expected)[:8]}")

    def operate(self) -> None:
        """Do one operation."""
        chosen = self.random.random()
        self.operations += 1
        picked = self.pick()
        if picked is None or (chosen < 0.06 and len(self.model.names) < MOST_FILES):
            self.create()
        elif chosen < 0.1:
            self.replace(picked[0])
        elif chosen < 0.13:
            self.unlink(*picked)
        elif chosen < 0.16:
            self.rename(*picked)
        elif chosen < 0.2:
            self.truncate(*picked)
        elif chosen < 0.23:
            self.punch(*picked)
        elif chosen < 0.26:
            self.tag(*picked)
        elif chosen < 0.28:
            self.directory_come_and_go()
        elif chosen < 0.3:
            self.fsync_directory()
        elif chosen < 0.33:
            self.list_names()
        elif chosen < 0.45:
            self.read(*picked)
        elif chosen < 0.55:
            self.fsync(*picked)
        else:
            self.write(*picked)

    def history(self, exc: Exception) -> list[str]:
        """Return what was done last, and all that was done to the file that *exc* is about."""
        last = self.journal[-60:]
        if isinstance(exc, WrongError) and exc.file is not None:
            words = f" {exc.file}"
            about = [
                f"{line} {after if after.startswith('  =') else ''}"
                for line, after in zip(self.journal, [*self.journal[1:], ""], strict=True)
                if line.endswith(words) or f"{words} " in line or line == "verified"
            ]
            last += ["-- the file:", *about[-100:]]
        return last

    # -- what the supervisor asks for

    def run(self, path: str) -> dict[str, Any]:
        """Work until told to pause."""
        if self.directory < 0:
            with self.call(f"open {path}"):
                self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        while not self.commands.is_there():
            self.operate()
        return {"stopped": "paused"}

    def let_go(self, *, orderly: bool) -> None:
        """Close all files; *orderly*: what was written is then with the daemon."""
        if orderly:
            for number in list(self.open):
                self.close(number)
        self.close_all()
        if self.directory >= 0:
            with suppress(OSError):
                os.close(self.directory)
        self.directory = -1

    def look(self, path: str) -> tuple[Names, dict[int, tuple[bytes, bytes]]]:
        """Read everything, with fresh descriptors."""
        found: Names = {}
        contents: dict[int, tuple[bytes, bytes]] = {}
        for name in os.listdir(os.fsencode(path)):
            where = os.path.join(os.fsencode(path), name)
            if os.path.isdir(where):
                found[name] = None
                continue
            try:
                number, tag = map(int, os.getxattr(where, ATTRIBUTE).split())
                found[name] = number, tag
            except OSError as exc:
                if exc.errno != errno.ENODATA:
                    raise
                numbers = {n[name][0] for n in self.model.past if n.get(name) and n[name][1] is None}  # type: ignore[index]
                number = numbers.pop() if numbers else -1
                found[name] = number, None
            contents[number] = name, Path(os.fsdecode(where)).read_bytes()
        return found, contents

    def verify(self, path: str, *, newest: bool, same_mount: bool) -> dict[str, Any]:
        """Compare everything.

        Args:
            newest: Nothing was interrupted.
            same_mount: What is read may be in the kernel's memory only, and never have reached the file system.
        """
        with self.call(f"verify {path}"):
            found, contents = self.look(path)
        if newest and found != self.model.names:
            raise WrongError(
                f"worker {self.model.worker}: names: {sorted(found.items() ^ self.model.names.items(), key=repr)[:8]}"
            )
        if not same_mount:
            self.model.recognise(found)
        for number, (name, data) in contents.items():
            self.model.files[number].check(self.model.worker, name, data, newest=newest)
            if not same_mount:
                self.model.files[number].adopt(self.model.worker, data)
        self.journal.append("verified")
        return {"verified": len(contents)}


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    import ctypes

    this = ctypes.CDLL(None, use_errno=True)
    result = this.fallocate64(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def answer(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def main(arguments: list[str]) -> None:
    number, seed, pulse = arguments
    commands = Commands()
    worker = Worker(int(number), int(seed), Pulse(pulse), commands)
    for line in commands:
        word, _, rest = line.strip().partition(" ")
        try:
            if word == "run":
                try:
                    document = worker.run(rest)
                except (GoneError, OSError) as exc:
                    document = {"stopped": str(exc), "journal": worker.journal[-60:]}
            elif word == "pause":
                document = {"paused": True}
            elif word == "release":
                worker.let_go(orderly=rest == "orderly")
                document = {"released": True}
            elif word in {"verify", "compare", "inspect"}:
                document = worker.verify(rest, newest=word != "verify", same_mount=word == "inspect")
            elif word == "save":
                Path(rest).write_bytes(pickle.dumps(worker.model))
                document = {"saved": True}
            else:
                raise ValueError(line)
        except Exception as exc:  # noqa: BLE001  # whatever it is, the supervisor must hear of it
            document = {"wrong": f"{type(exc).__name__}: {exc}", "journal": worker.history(exc)}
        document |= {"operations": worker.operations, "promises": worker.promises, "refused": worker.refused}
        answer(document)


if __name__ == "__main__":
    from tests.fault.endurance import worker as this  # what is pickled must not be of `__main__`

    this.main(sys.argv[1:])
