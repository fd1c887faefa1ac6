"""What the importer asks of its source: is it fit, which of its places are regions, what is in one file.

Reading many small files ahead is in `fspf.volume.reader`.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from fspf.core.errors import UsageError
from fspf.core.types import ROOT_INO
from fspf.volume.paths import failure
from fspf.volume.reader import SMALL, SourceDirectory, open_for_reading
from fspf.volume.transfer import HostTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fspf.volume.volume import Volume


def check_places(top: Path, volume: Volume, *, update: bool) -> None:
    if not top.is_dir():
        raise UsageError(f"{os.fspath(top)!r} is no directory")
    inside, outside = volume.path.resolve(), top.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UsageError(f"{os.fspath(top)!r} and the volume {os.fspath(volume.path)!r} lie inside each other")
    if not update and volume.readdir(ROOT_INO, 0, 1):
        raise UsageError(f"the volume {os.fspath(volume.path)!r} is not empty; --update makes it equal to the source")


def regions_of(top: Path, authenticated: Sequence[str | PurePath]) -> set[bytes]:
    regions = set()
    for given in authenticated:
        path = PurePath(given)
        if path.is_absolute():
            try:
                path = path.relative_to(top.absolute())
            except ValueError:
                raise UsageError(f"{os.fspath(given)!r} is not below {os.fspath(top)!r}") from None
        if ".." in path.parts or not os.path.lexists(top / path):
            raise UsageError(f"there is no {os.fspath(given)!r} below {os.fspath(top)!r}")
        regions.add(b"" if path == PurePath() else os.fsencode(path))
    return regions


class SourceError(Exception):
    """The host could not read a file of the source; the volume's storage is well."""


@contextmanager
def reading() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise SourceError(exc.strerror or str(exc)) from exc


def open_source(tree: HostTree[SourceDirectory], directory: SourceDirectory, name: bytes) -> tuple[int, os.stat_result]:
    with reading(), tree.opened(directory) as directory_fd:
        source = open_for_reading(name, directory_fd)
        try:
            return source, regular_status(source)
        except BaseException:
            os.close(source)
            raise


def pieces(source: int) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset, data) of what is no hole. The memory is used again for the next piece."""
    buffer = memoryview(bytearray(SMALL))
    offset = 0
    while True:
        with reading():
            try:
                start = os.lseek(source, offset, os.SEEK_DATA)
                end = os.lseek(source, start, os.SEEK_HOLE)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    return
                if exc.errno != errno.EINVAL:
                    raise
                start, end = offset, -1  # no such thing there: all is data
        offset = start
        while end < 0 or offset < end:
            with reading():
                count = os.preadv(source, [buffer if end < 0 else buffer[: end - offset]], offset)
            if not count:
                return
            yield offset, buffer[:count]
            offset += count


def pread(source: int, offset: int) -> bytes:
    with reading():
        return os.pread(source, SMALL, offset)


def regular_status(fd: int) -> os.stat_result:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise failure(errno.ESTALE)
    return status
