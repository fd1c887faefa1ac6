"""`fspf://` for fsspec: pandas, pyarrow, dask and zarr read and write volumes.

It translates; files are the business of `fspf.volume.files`, commits of the volume.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import stat
import threading
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final

from fsspec.spec import AbstractFileSystem
from fsspec.transaction import Transaction

from fspf.cas import open_cas
from fspf.core.format import HEADER_MAGIC
from fspf.volume.fileio import BUFFER_SIZE, copy_content
from fspf.volume.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from fspf.core.anchor import Cas
    from fspf.volume.fileio import RawFile

_LABEL: Final = "fsspec"


@dataclass(eq=False, slots=True)
class SharedVolume:
    """An open volume that several file system objects use.

    Attributes:
        lock: Held over a commit and over the end of a transaction, so that nobody commits half of one.
    """

    volume: Volume
    key: tuple[object, ...]
    cas: Cas | None  # ours to close, if not None
    users: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def commit(self) -> None:
        with self.lock:
            self.volume.commit()


class SharedVolumes:
    """The volumes that this process has open through fsspec: one per directory, CAS and way of opening."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[object, ...], SharedVolume] = {}

    def take(self, path: str, cas: str | Cas | None, *, read_only: bool) -> SharedVolume:
        """Return the volume, opened if it was not, with one user more."""
        real = os.path.realpath(path)
        # The process is part of the key: a forked child must not go on with its parent's lease and counters.
        key = (os.getpid(), real, cas if cas is None or isinstance(cas, str) else id(cas), read_only)
        with self._lock:
            shared = self._open.get(key)
            if shared is None:
                opened = open_cas(cas) if cas is None or isinstance(cas, str) else cas
                try:
                    volume = Volume.open(real, opened, read_only=read_only, label=_LABEL, commit_interval=None)
                except BaseException:
                    if opened is not cas:
                        opened.close()
                    raise
                shared = self._open[key] = SharedVolume(volume, key, opened if opened is not cas else None)
            shared.users += 1
            return shared

    def give_back(self, shared: SharedVolume) -> None:
        """Drop one user; the last one closes the volume, with a commit."""
        with self._lock:
            shared.users -= 1
            if shared.users or shared.key[0] != os.getpid():
                return
            self._open.pop(shared.key, None)
            try:
                shared.volume.close()
            finally:
                if shared.cas is not None:
                    shared.cas.close()


class FspfTransaction(Transaction):
    """All files that are written in it appear with one commit."""

    def complete(self, commit: bool = True) -> None:  # noqa: FBT001, FBT002  # fsspec's signature
        """Give all files their names and commit; or drop them."""
        fs = self.fs
        with fs.no_commits():
            super().complete(commit)
            if commit:
                fs.commit()


class VolumeWriter(io.BufferedWriter):
    """A file of a volume that is being written: committed when it is closed, or by its transaction.

    Attributes:
        path: Its name, as fsspec has it.
    """

    def __init__(
        self, raw: RawFile, fs: FspfFileSystem, path: str, shared: SharedVolume, names: tuple[str, str]
    ) -> None:
        super().__init__(raw, BUFFER_SIZE)
        self.path = path
        self._fs = fs
        self._shared = shared
        self._temporary, self._final = names  # equal outside of a transaction

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if self._temporary == self._final:
            self._fs.changed(self._shared)

    def commit(self) -> None:
        """Give it its name; the transaction commits the volume."""
        self.close()
        self._shared.volume.replace(self._temporary, self._final)

    def discard(self) -> None:
        """Drop it."""
        self.close()
        with suppress(FileNotFoundError):
            self._shared.volume.unlink(self._temporary)


class VolumeUpdater(io.BufferedRandom):
    """A file of a volume that is read and written; committed when it is closed."""

    def __init__(self, raw: RawFile, fs: FspfFileSystem, path: str, shared: SharedVolume) -> None:
        super().__init__(raw, BUFFER_SIZE)
        self.path = path
        self._fs = fs
        self._shared = shared

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        self._fs.changed(self._shared)


class FspfFileSystem(AbstractFileSystem):
    """Volumes as an fsspec file system.

    Without *volume*, paths are those of the host: `fspf:///srv/vol/in/side` is `/in/side` in the volume `/srv/vol`. With
    it, they are inside: `fspf:///in/side`. The first directory of a path that is a volume counts: whoever can write into a
    volume's directory cannot put another volume there to be read instead.

    An object that has been used holds its volumes open, with the lease if not *read_only*, until `close`, the end of a `with`
    block, or the end of the process. Changes are committed at once, in a transaction at its end.

    Args:
        volume: The volume directory; then paths are inside.
        cas: URL of the CAS, or a Cas; default as everywhere.
        read_only: Take no lease.
        autocommit: Commit after every change. Without, `commit` and `close` do.
        auto_mkdir: Make missing directories for a file that is written, as object stores need none.
    """

    protocol: ClassVar[str] = "fspf"
    root_marker = "/"
    transaction_type = FspfTransaction
    _volumes: ClassVar[SharedVolumes] = SharedVolumes()

    def __init__(
        self,
        volume: str | os.PathLike[str] | None = None,
        *,
        cas: str | Cas | None = None,
        read_only: bool = False,
        autocommit: bool = True,
        auto_mkdir: bool = True,
        **storage_options: Any,
    ) -> None:
        super().__init__(**storage_options)
        self._volume = None if volume is None else os.path.abspath(os.fspath(volume))
        self._cas = cas
        self._read_only = read_only
        self._autocommit = autocommit
        self._auto_mkdir = auto_mkdir
        self._lock = threading.Lock()
        self._held: dict[str, SharedVolume] = {}
        self._local = threading.local()
        self._end = weakref.finalize(self, _give_all_back, self._volumes, self._held)

    # -- volumes

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        plain = os.fspath(path)
        for prefix in ("fspf://", "fspf::"):
            plain = plain.removeprefix(prefix)
        return "/" + plain.strip("/")

    def _locate(self, path: str) -> tuple[SharedVolume, str, str]:
        """Return the volume, the path inside, and what stands before it in names."""
        path = self._strip_protocol(path)
        if self._volume is not None:
            return self._shared(self._volume), path, ""
        parts = path.split("/")
        for count in range(2, len(parts) + 1):
            candidate = "/".join(parts[:count])
            if candidate in self._held or _is_volume(candidate):
                return self._shared(candidate), "/" + "/".join(parts[count:]), candidate
        raise FileNotFoundError(errno.ENOENT, "no directory of this path is a volume", path)

    def _shared(self, path: str) -> SharedVolume:
        with self._lock:
            shared = self._held.get(path)
            if shared is None or shared.key[0] != os.getpid():
                shared = self._held[path] = self._volumes.take(path, self._cas, read_only=self._read_only)
            return shared

    def open_volume(self, path: str = "/") -> Volume:
        """Return the `Volume` behind *path*."""
        return self._locate(path)[0].volume

    def commit(self) -> None:
        """Commit every volume that this object has open."""
        if not self._read_only:
            for shared in list(self._held.values()):
                shared.commit()

    def changed(self, shared: SharedVolume) -> None:
        """Commit after a change, unless that is for later."""
        if self._autocommit and not self._intrans and not getattr(self._local, "depth", 0):
            shared.commit()

    @contextmanager
    def no_commits(self) -> Iterator[None]:
        """Keep others from committing the volumes of this object."""
        held = sorted(self._held.values(), key=id)
        for shared in held:
            shared.lock.acquire()
        try:
            yield
        finally:
            for shared in held:
                shared.lock.release()

    @contextmanager
    def _one_commit(self) -> Iterator[None]:
        """Let this thread's changes inside the block be one commit."""
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            yield
        finally:
            self._local.depth -= 1
            if not self._local.depth and self._autocommit and not self._intrans:
                self.commit()

    def close(self) -> None:
        """Commit and give the volumes back; the next use opens them again."""
        with self._lock:
            _give_all_back(self._volumes, self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- looking

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Return name, size, type ("file", "directory", "other"), and what stat says; links are followed."""
        shared, inside, prefix = self._locate(path)
        return _info(shared.volume, inside, (prefix + inside).rstrip("/") or "/", shared.volume.lstat(inside))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:  # noqa: FBT001, FBT002  # fsspec's signature
        """Return the entries of a directory, or the one of a file."""
        shared, inside, prefix = self._locate(path)
        volume = shared.volume
        if volume.isdir(inside):
            with volume.scandir(inside) as entries:
                found = [
                    _info(volume, each.path, prefix + each.path, each.stat(follow_symlinks=False)) for each in entries
                ]
        else:
            found = [self.info(path)]
        found.sort(key=lambda each: str(each["name"]))
        return found if detail else [each["name"] for each in found]

    def exists(self, path: str, **kwargs: Any) -> bool:
        return self._asks(path, "exists")

    def lexists(self, path: str, **kwargs: Any) -> bool:
        return self._asks(path, "lexists")

    def isfile(self, path: str) -> bool:
        return self._asks(path, "isfile")

    def isdir(self, path: str) -> bool:
        return self._asks(path, "isdir")

    def islink(self, path: str) -> bool:
        return self._asks(path, "islink")

    def _asks(self, path: str, question: str) -> bool:
        """Answer no if there is no volume; damage is no answer, it raises."""
        try:
            shared, inside, _ = self._locate(path)
        except FileNotFoundError:
            return False
        answer: bool = getattr(shared.volume, question)(inside)
        return answer

    def created(self, path: str) -> datetime:
        shared, inside, _ = self._locate(path)
        from fspf.core.types import Ino

        return _date(shared.volume.getattr(Ino(shared.volume.stat(inside).st_ino)).btime_ns)

    def modified(self, path: str) -> datetime:
        shared, inside, _ = self._locate(path)
        return _date(shared.volume.stat(inside).st_mtime_ns)

    # -- content

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,  # noqa: FBT001, FBT002  # fsspec's signature
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> IO[bytes]:
        shared, inside, _ = self._locate(path)
        volume = shared.volume
        kind = mode.replace("b", "")
        if kind == "r":
            stream = volume.open_stream(inside, "rb")
            stream.raw.warns = False  # type: ignore[attr-defined]  # pyarrow leaves its readers to the collector
            return stream
        if self._auto_mkdir and "r" not in kind:
            volume.makedirs(posixpath.dirname(inside), exist_ok=True)
        temporary = inside
        if not autocommit and kind in {"w", "x"}:
            if kind == "x" and volume.lexists(inside):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            temporary = posixpath.join(posixpath.dirname(inside), f".fspf-{os.urandom(8).hex()}.part")
        raw: Any = volume.open_stream(temporary, kind + "b", 0)
        if "+" in kind:
            return VolumeUpdater(raw, self, path, shared)
        return VolumeWriter(raw, self, path, shared, (temporary, inside))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Return the content, or bytes *start* to *end* of it; negative ones count from the end."""
        shared, inside, _ = self._locate(path)
        with shared.volume.open_stream(inside, "rb", 0) as stream:
            size = stream.seek(0, os.SEEK_END)
            first, behind, _ = slice(start, end).indices(size)
            stream.seek(first)
            data: bytes = stream.read(max(behind - first, 0))
            return data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        with self.open(path, "xb" if mode == "create" else "wb") as stream:
            stream.write(value)

    def pipe(self, path: Any, value: bytes | None = None, **kwargs: Any) -> None:
        with self._one_commit():
            super().pipe(path, value, **kwargs)

    def put(self, lpath: Any, rpath: Any, *args: Any, **kwargs: Any) -> Any:
        with self._one_commit():
            return super().put(lpath, rpath, *args, **kwargs)

    def copy(self, path1: Any, path2: Any, *args: Any, **kwargs: Any) -> Any:
        with self._one_commit():
            return super().copy(path1, path2, *args, **kwargs)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file (holes stay holes) or make a directory as *path1* is one."""
        source, inside1, _ = self._locate(path1)
        target, inside2, _ = self._locate(path2)
        if source.volume.isdir(inside1):
            target.volume.makedirs(inside2, exist_ok=True)
        else:
            if self._auto_mkdir:
                target.volume.makedirs(posixpath.dirname(inside2), exist_ok=True)
            if source is target:
                source.volume.copyfile(inside1, inside2)
            else:
                with (
                    source.volume.open_stream(inside1, "rb", 0) as reader,
                    target.volume.open_stream(inside2, "wb", 0) as writer,
                ):
                    copy_content(reader.handle, writer.handle)  # type: ignore[attr-defined]  # RawFile
        self.changed(target)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:  # noqa: FBT001, FBT002  # fsspec's signature
        """Create an empty file; if there is one, empty it, or with *truncate* False set its times."""
        shared, inside, _ = self._locate(path)
        if self._auto_mkdir:
            shared.volume.makedirs(posixpath.dirname(inside), exist_ok=True)
        if truncate or not shared.volume.exists(inside):
            shared.volume.write_bytes(inside, b"")
        else:
            shared.volume.utime(inside)
        self.changed(shared)

    # -- names

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:  # noqa: FBT001, FBT002  # fsspec's signature
        shared, inside, _ = self._locate(path)
        if create_parents:
            shared.volume.makedirs(inside)
        else:
            shared.volume.mkdir(inside)
        self.changed(shared)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002  # fsspec's signature
        shared, inside, _ = self._locate(path)
        if exist_ok and shared.volume.isdir(inside):
            return
        shared.volume.makedirs(inside, exist_ok=exist_ok)
        self.changed(shared)

    def rmdir(self, path: str) -> None:
        shared, inside, _ = self._locate(path)
        shared.volume.rmdir(inside)
        self.changed(shared)

    def rm_file(self, path: str) -> None:
        shared, inside, _ = self._locate(path)
        shared.volume.unlink(inside)
        self.changed(shared)

    def _rm(self, path: str) -> None:
        self.rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: FBT001, FBT002  # fsspec's signature
        """Delete files, with *recursive* also directories; patterns are expanded."""
        with self._one_commit():
            paths = self.expand_path(path, recursive=False) if maxdepth is None else None
            if paths is None:
                super().rm(path, recursive=recursive, maxdepth=maxdepth)
                return
            for each in paths:
                shared, inside, _ = self._locate(each)
                if recursive and shared.volume.isdir(inside) and not shared.volume.islink(inside):
                    self._rm_tree(shared.volume, inside)
                else:
                    shared.volume.unlink(inside)

    @staticmethod
    def _rm_tree(volume: Volume, inside: str) -> None:
        if inside != "/":
            volume.rmtree(inside)
            return
        for entry in list(volume.scandir("/")):  # the root itself stays
            if entry.is_dir(follow_symlinks=False):
                volume.rmtree(entry.path)
            else:
                volume.unlink(entry.path)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:  # noqa: FBT001, FBT002  # fsspec's signature
        """Rename, into *path2* if that is a directory; between volumes, copy and delete."""
        source, inside1, _ = self._locate(path1)
        target, inside2, _ = self._locate(path2)
        if source is not target:
            self.copy(path1, path2, recursive=True)
            self.rm(path1, recursive=True)
            return
        if target.volume.isdir(inside2):
            inside2 = posixpath.join(inside2, posixpath.basename(inside1))
        if self._auto_mkdir:
            target.volume.makedirs(posixpath.dirname(inside2), exist_ok=True)
        source.volume.rename(inside1, inside2)
        self.changed(source)

    def mv_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        self.mv(path1, path2)

    def chmod(self, path: str, mode: int) -> None:
        shared, inside, _ = self._locate(path)
        shared.volume.chmod(inside, mode)
        self.changed(shared)


def _is_volume(directory: str) -> bool:
    try:
        with open(directory + "/header", "rb") as header:
            return bool(header.read(len(HEADER_MAGIC)) == HEADER_MAGIC)
    except OSError:
        return False


def _give_all_back(volumes: SharedVolumes, held: dict[str, SharedVolume]) -> None:
    while held:
        volumes.give_back(held.popitem()[1])


def _date(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, tz=UTC)


def _info(volume: Volume, inside: str, name: str, status: os.stat_result) -> dict[str, Any]:
    result: dict[str, Any] = {"name": name, "islink": stat.S_ISLNK(status.st_mode)}
    if result["islink"]:
        result["destination"] = volume.readlink(inside)
        with suppress(OSError):  # a link to nothing is of type "other"
            status = volume.stat(inside)
    kind = {stat.S_IFDIR: "directory", stat.S_IFREG: "file"}.get(stat.S_IFMT(status.st_mode), "other")
    return result | {
        "size": 0 if kind == "directory" else status.st_size,
        "type": kind,
        "created": status.st_ctime,
        "mtime": status.st_mtime,
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "ino": status.st_ino,
        "nlink": status.st_nlink,
    }


__all__ = ["FspfFileSystem"]
