"""What copying a tree into or out of a volume shares: progress, summary, directories of the host.

The copying itself is in `fspf.volume.importer` and `fspf.volume.exporter`.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from fspf.core.errors import FspfError, IntegrityError

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator

_MAX_KEPT: Final = 1000  # problems of one kind that are kept in full; the rest is counted
_MAX_DESCRIPTORS: Final = 128  # directories open at once
OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
ACL_OR_KNOWN: Final = ("user.", "trusted.", "security.", "system.")  # xattr namespaces that a volume keeps


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that could not be done as asked."""

    path: bytes  # relative to the top of the tree; b"." for the top
    message: str

    def __str__(self) -> str:
        return f"{os.fsdecode(self.path)!r}: {self.message}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is; given to a callback now and then."""

    entries: int
    bytes: int  # of content
    path: builtins.bytes  # directory that is worked on


@dataclass(slots=True)
class Summary:
    """What was done.

    Attributes:
        bytes: Sum of the sizes of regular files.
        data_bytes: What of it was copied: neither hole nor unchanged.
        warnings: Things left out on purpose, or refused by the host; by kind.
        errors: Things that are missing or wrong in the result.
        damaged: Subset of `errors` that comes from damage in the volume.
    """

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    special: int = 0  # devices, fifos
    hard_links: int = 0  # names beyond the first
    bytes: int = 0
    data_bytes: int = 0
    unchanged: int = 0
    updated: int = 0
    removed: int = 0
    warnings: list[Problem] = field(default_factory=list)
    errors: list[Problem] = field(default_factory=list)
    damaged: list[Problem] = field(default_factory=list)
    not_kept: int = 0  # warnings and errors that were counted only

    @property
    def entries(self) -> int:
        return self.directories + self.files + self.symlinks + self.special + self.hard_links

    @property
    def exit_code(self) -> int:
        """0, 20 if the volume is damaged, 1 for any other error."""
        if self.damaged:
            return IntegrityError.exit_code
        return FspfError.exit_code if self.errors else 0

    def warn(self, path: builtins.bytes, message: str) -> None:
        self._keep(self.warnings, Problem(path or b".", message))

    def error(self, path: builtins.bytes, error: BaseException | str) -> None:
        if isinstance(error, OSError):
            error = error.strerror or str(error)
        self._keep(self.errors, Problem(path or b".", str(error)))

    def damage(self, path: builtins.bytes, error: IntegrityError) -> None:
        problem = Problem(path or b".", str(error))
        self._keep(self.errors, problem)
        self._keep(self.damaged, problem)

    def _keep(self, kept: list[Problem], problem: Problem) -> None:
        if len(kept) < _MAX_KEPT:
            kept.append(problem)
        else:
            self.not_kept += 1

    def as_dict(self) -> dict[str, Any]:
        """Return what --json shows."""
        numbers = ("directories", "files", "symlinks", "special", "hard_links", "bytes", "data_bytes")
        changes = ("unchanged", "updated", "removed", "not_kept")
        result: dict[str, Any] = {name: getattr(self, name) for name in numbers + changes}
        for name in ("warnings", "errors", "damaged"):
            result[name] = [{"path": os.fsdecode(p.path), "message": p.message} for p in getattr(self, name)]
        return result


class HostDirectory:
    """One directory of the host, reached from the top by names only: no symbolic link is ever followed.

    Attributes:
        path: Relative to the top, for messages; empty for the top.
        fd: Its descriptor, -1 if it is not open now; belongs to the `HostTree`, which may close it while `pins` is 0.
        pins: How many use the descriptor now.
    """

    __slots__ = ("fd", "name", "parent", "path", "pins")

    def __init__(self, parent: HostDirectory | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.path: bytes = b"/".join(part for part in (parent.path if parent else b"", name) if part)
        self.fd = -1
        self.pins = 0


D = TypeVar("D", bound=HostDirectory)


class HostTree(Generic[D]):
    """Opens directories below a top, at most some at once, however deep they are. Thread-safe."""

    def __init__(self, top: str | bytes | os.PathLike[str], root: D) -> None:
        """Open *top* as *root*; a symbolic link there is the user's and is followed."""
        self.root: D = root
        self.root.fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root.pins = 1
        self._lock = threading.Lock()
        self._open: OrderedDict[HostDirectory, None] = OrderedDict()

    @contextmanager
    def opened(self, directory: HostDirectory) -> Iterator[int]:
        """Give a descriptor that stays open inside the block.

        Raises:
            OSError: ENOTDIR or ELOOP if something else took the place of one of the directories.
        """
        with self._lock:
            if directory.fd < 0:
                self._reach(directory)
            directory.pins += 1
            if directory is not self.root:
                self._open.move_to_end(directory)
            fd = directory.fd
        try:
            yield fd
        finally:
            with self._lock:
                directory.pins -= 1

    def _reach(self, directory: HostDirectory) -> None:
        chain = []
        here = directory
        while here.fd < 0:
            chain.append(here.name)
            assert here.parent is not None  # the top is open
            here = here.parent
        fd, ours = here.fd, False
        for name in reversed(chain):
            try:
                below = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
            finally:
                if ours:
                    os.close(fd)
            fd, ours = below, True
        directory.fd = fd
        self._open[directory] = None
        for other in list(self._open):
            if len(self._open) <= _MAX_DESCRIPTORS:
                break
            if other.pins == 0 and other is not directory:
                self._shut(other)

    def _shut(self, directory: HostDirectory) -> None:
        del self._open[directory]
        os.close(directory.fd)
        directory.fd = -1

    def release(self, directory: HostDirectory) -> None:
        """Say that *directory* is not needed soon."""
        with self._lock:
            if directory in self._open and directory.pins == 0:
                self._shut(directory)

    def close(self) -> None:
        with self._lock:
            for directory in list(self._open):
                with suppress(OSError):
                    self._shut(directory)
            if self.root.fd >= 0:
                os.close(self.root.fd)
                self.root.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
