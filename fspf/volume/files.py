"""The file API of a volume: what `os`, `os.path`, `shutil` and the built-in `open` are for the host.

Paths are resolved by `fspf.volume.paths`; the rules for single inodes are those of `fspf.volume.inodes`.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final

from fspf.core.errors import ReadOnlyError
from fspf.core.types import ROOT_INO
from fspf.volume.either import ClassOrObject, also_by_inode
from fspf.volume.entries import ScandirIterator, clamp_time, now_ns, stat_result
from fspf.volume.fileio import Mode, RawFile, check_arguments, copy_content, wrap
from fspf.volume.inodes import InodeVolume
from fspf.volume.paths import NAME_MAX, Found, Last, encode, failure, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fspf.core.format import Header
    from fspf.core.types import Ino
    from fspf.volume.inodes import Attr

    AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_PAGE: Final = 512  # directory entries fetched at once


def current_umask() -> int:
    """Return the umask of this process without changing it for an instant, as os.umask would."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line[6:], 8)
    return 0o022  # Linux before 4.7


@contextmanager
def naming(path: object, path2: object = None) -> Iterator[None]:
    """Put *path* into every OSError, as `os` does, and give EROFS for a volume that is read-only."""
    try:
        yield
    except OSError as exc:
        if exc.errno is not None:
            exc.filename = path  # the inode layer knows the last component only
            if path2 is not None:
                exc.filename2 = path2
        raise
    except ReadOnlyError as exc:
        raise OSError(errno.EROFS, str(exc), path) from exc


class Files(InodeVolume):
    """The methods that take paths: str, bytes or PathLike; "/" is the root, relative is from the root.

    Those that the inode layer has under the same name take either; what starts with a number is for the inode layer.

    str names are those of `os.fsencode`. Errors are OSErrors with the path in `filename`; content that does not verify
    raises `DamagedFileError`. Permission bits are kept but not enforced: whoever opened the volume may do all.
    """

    if TYPE_CHECKING:
        header: Header

    def __init_subclass__(cls) -> None:
        """Let the name `open` serve the class and its objects."""
        super().__init_subclass__()
        opening = vars(cls).get("open")
        if isinstance(opening, classmethod):
            setattr(cls, "open", ClassOrObject(opening, Files.open_stream))  # noqa: B010  # mypy: it stays a method

    @property
    def device(self) -> int:
        """st_dev: a number that two volumes hardly share."""
        return int.from_bytes(self.header.volume_id[:4], "little")

    # -- looking

    def _find(self, path: AnyPath, *, follow: bool = True) -> Attr:
        attr = resolve(self, encode(path), Last.FOLLOW if follow else Last.NOFOLLOW).attr
        assert attr is not None  # FOLLOW and NOFOLLOW find or raise
        return attr

    def _place(self, path: AnyPath) -> Found:
        """Return where the last component is, or is to be."""
        return resolve(self, encode(path), Last.PARENT)

    def _exists_at(self, place: Found) -> bool:
        if len(place.name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG)
        try:
            self.lookup(place.parent, place.name)
        except FileNotFoundError:
            return False
        return True

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> os.stat_result:
        with naming(path):
            return stat_result(self._find(path, follow=follow_symlinks), self.device)

    def lstat(self, path: AnyPath) -> os.stat_result:
        return self.stat(path, follow_symlinks=False)

    def _mode(self, path: AnyPath, *, follow: bool = True) -> int:
        """Return the mode, 0 if there is nothing. Damage is no absence: it raises."""
        try:
            return self._find(path, follow=follow).mode
        except (OSError, ValueError):
            return 0

    def exists(self, path: AnyPath) -> bool:
        return self._mode(path) != 0

    def lexists(self, path: AnyPath) -> bool:
        return self._mode(path, follow=False) != 0

    def isfile(self, path: AnyPath) -> bool:
        return stat.S_ISREG(self._mode(path))

    def isdir(self, path: AnyPath) -> bool:
        return stat.S_ISDIR(self._mode(path))

    def islink(self, path: AnyPath) -> bool:
        return stat.S_ISLNK(self._mode(path, follow=False))

    @also_by_inode(InodeVolume.readlink)
    def readlink(self, path: AnyPath) -> str | bytes:
        """Return the target, as bytes if *path* is bytes."""
        with naming(path):
            attr = self._find(path, follow=False)
            if not stat.S_ISLNK(attr.mode):
                raise failure(errno.EINVAL)
            target = super().readlink(attr.ino)
        return target if isinstance(os.fspath(path), bytes) else os.fsdecode(target)

    # -- directories

    def scandir(self, path: AnyPath = "/") -> ScandirIterator:
        with naming(path):
            attr = self._find(path)
            if not stat.S_ISDIR(attr.mode):
                raise failure(errno.ENOTDIR)
        return ScandirIterator(self, os.fspath(path), attr.ino)

    def listdir(self, path: AnyPath = "/") -> list[Any]:
        return [entry.name for entry in self.scandir(path)]

    def walk(
        self,
        top: AnyPath = "/",
        topdown: bool = True,  # noqa: FBT001, FBT002  # the signature of os.walk
        onerror: Callable[[OSError], object] | None = None,
        followlinks: bool = False,  # noqa: FBT001, FBT002
    ) -> Iterator[tuple[Any, list[Any], list[Any]]]:
        """Yield (directory, names of directories, names of others) as `os.walk`."""
        todo: list[Any] = [os.fspath(top)]
        while todo:
            here = todo.pop()
            if isinstance(here, tuple):
                yield here
                continue
            directories: list[Any] = []
            others: list[Any] = []
            below: list[Any] = []
            try:
                for entry in self.scandir(here):
                    try:
                        is_directory = entry.is_dir()
                    except OSError:  # a loop of links
                        is_directory = False
                    (directories if is_directory else others).append(entry.name)
                    if not topdown and is_directory and (followlinks or not entry.is_symlink()):
                        below.append(entry.path)
            except OSError as exc:
                if onerror is not None:
                    onerror(exc)
                continue
            if topdown:
                yield here, directories, others
                for name in reversed(directories):
                    path = posixpath.join(here, name)
                    if followlinks or not self.islink(path):
                        todo.append(path)
            else:
                todo.append((here, directories, others))
                todo.extend(reversed(below))

    def _owner_in(self, parent: Ino) -> tuple[int, int, int]:
        """Return uid, gid and the setgid bit for what is made in *parent*: a setgid directory hands on its group."""
        attr = self.getattr(parent)
        if attr.mode & stat.S_ISGID:
            return os.geteuid(), attr.gid, stat.S_ISGID
        return os.geteuid(), os.getegid(), 0

    @also_by_inode(InodeVolume.mkdir)
    def mkdir(self, path: AnyPath, mode: int = 0o777) -> None:
        with naming(path):
            place = self._place(path)
            if not place.name or self._exists_at(place):
                raise failure(errno.EEXIST)
            uid, gid, setgid = self._owner_in(place.parent)
            permissions = (mode & 0o1777 & ~current_umask()) | setgid
            super().mkdir(place.parent, place.name, permissions, uid=uid, gid=gid)

    def makedirs(self, path: AnyPath, mode: int = 0o777, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Make *path* and what is missing above it, as `os.makedirs`."""
        plain: Any = os.fspath(path)
        head, tail = posixpath.split(plain)
        if not tail:
            head, tail = posixpath.split(head)
        if head and tail and not self.exists(head):
            with suppress(FileExistsError):  # somebody else made it
                self.makedirs(head, exist_ok=exist_ok)
            if tail in {".", b"."}:
                return
        try:
            self.mkdir(plain, mode)
        except OSError:
            if not exist_ok or not self.isdir(plain):
                raise

    @also_by_inode(InodeVolume.rmdir)
    def rmdir(self, path: AnyPath) -> None:
        with naming(path):
            place = self._place(path)
            if not place.name:
                raise failure({b".": errno.EINVAL, b"..": errno.ENOTEMPTY, b"": errno.EBUSY}[place.dots])
            super().rmdir(place.parent, place.name)

    def rmtree(
        self,
        path: AnyPath,
        ignore_errors: bool = False,  # noqa: FBT001, FBT002  # the signature of shutil.rmtree
        onerror: Callable[[bytes, OSError], object] | None = None,
    ) -> None:
        """Delete a directory with all that is in it; a symbolic link to one is refused.

        Args:
            path: The directory.
            ignore_errors: Go on after errors and say nothing.
            onerror: Called with path and error instead of raising.
        """

        def report(where: bytes, exc: OSError) -> None:
            if ignore_errors:
                return
            if onerror is None:
                raise exc
            onerror(where, exc)

        try:
            with naming(path):
                place = self._place(path)
                attr = self._find(path, follow=False)
                if not stat.S_ISDIR(attr.mode):
                    raise failure(errno.ENOTDIR)
                if not place.name:
                    raise failure(errno.EBUSY if attr.ino == ROOT_INO else errno.EINVAL)
        except OSError as exc:
            report(encode(path), exc)
            return
        self.remove_tree(place.parent, place.name, attr.ino, encode(path).rstrip(b"/"), report)

    def remove_tree(
        self, parent: Ino, name: bytes, ino: Ino, path: bytes, report: Callable[[bytes, OSError], None]
    ) -> None:
        """Delete directory *ino*, known as *name* in *parent*, without recursion: trees may be deeper than the stack."""
        stack = [(parent, name, ino, path, 0)]
        while stack:
            above, called, here, where, after = stack.pop()
            page = self.readdir(here, after, _PAGE)
            if not page:
                try:
                    with naming(where):
                        super().rmdir(above, called)
                except OSError as exc:
                    report(where, exc)
                continue
            stack.append((above, called, here, where, page[-1].cookie))
            for entry in page:
                below = where + b"/" + entry.name
                if stat.S_ISDIR(entry.attr.mode):
                    stack.append((here, entry.name, entry.attr.ino, below, 0))
                    continue
                try:
                    with naming(below):
                        super().unlink(here, entry.name)
                except OSError as exc:
                    report(below, exc)

    # -- names

    @also_by_inode(InodeVolume.unlink)
    def unlink(self, path: AnyPath) -> None:
        with naming(path):
            place = self._place(path)
            if not place.name:
                raise failure(errno.EISDIR)
            attr = self.lookup(place.parent, place.name)
            if stat.S_ISDIR(attr.mode):
                raise failure(errno.EISDIR)
            if place.slash:
                raise failure(errno.ENOTDIR)
            super().unlink(place.parent, place.name)

    def remove(self, path: AnyPath) -> None:
        self.unlink(path)

    @also_by_inode(InodeVolume.rename)
    def rename(self, src: AnyPath, dst: AnyPath) -> None:
        """Give *src* the name *dst*; what was there is replaced."""
        with naming(src, dst):
            old, new = self._place(src), self._place(dst)
            if not old.name or not new.name:
                raise failure(errno.EBUSY)
            attr = self.lookup(old.parent, old.name)
            if len(new.name) > NAME_MAX:
                raise failure(errno.ENAMETOOLONG)
            if not stat.S_ISDIR(attr.mode) and (old.slash or new.slash):
                raise failure(errno.ENOTDIR)
            super().rename(old.parent, old.name, new.parent, new.name)

    def replace(self, src: AnyPath, dst: AnyPath) -> None:
        self.rename(src, dst)

    @also_by_inode(InodeVolume.link)
    def link(self, src: AnyPath, dst: AnyPath) -> None:
        """Give *src* the name *dst* as well; if it is a symbolic link, the link itself."""
        with naming(src, dst):
            attr = self._find(src, follow=False)
            place = self._new_name(dst)
            if stat.S_ISDIR(attr.mode):
                raise failure(errno.EPERM)
            super().link(attr.ino, place.parent, place.name)

    @also_by_inode(InodeVolume.symlink)
    def symlink(self, src: AnyPath, dst: AnyPath, target_is_directory: bool = False) -> None:  # noqa: FBT001, FBT002
        """Make a symbolic link at *dst* that says *src*; the last argument is ignored, as by `os.symlink` on Linux."""
        with naming(src, dst):
            target = encode(src)
            if not target:
                raise failure(errno.ENOENT)
            place = self._new_name(dst)
            uid, gid, _ = self._owner_in(place.parent)
            super().symlink(place.parent, place.name, target, uid=uid, gid=gid)

    def _new_name(self, path: AnyPath) -> Found:
        """Return the place for a name that does not exist and is none of a directory."""
        place = self._place(path)
        if not place.name or self._exists_at(place):
            raise failure(errno.EEXIST)
        if place.slash:
            raise failure(errno.ENOENT)
        return place

    # -- attributes

    def chmod(self, path: AnyPath, mode: int, *, follow_symlinks: bool = True) -> None:
        with naming(path):
            attr = self._find(path, follow=follow_symlinks)
            if stat.S_ISLNK(attr.mode):
                raise failure(errno.EOPNOTSUPP)
            self.setattr(attr.ino, mode=stat.S_IFMT(attr.mode) | stat.S_IMODE(mode))

    def chown(self, path: AnyPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Change the owner; -1 leaves uid or gid as it is."""
        with naming(path):
            ino = self._find(path, follow=follow_symlinks).ino
            self.setattr(ino, uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)

    def utime(
        self,
        path: AnyPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        if ns is None:
            ns = (now_ns(),) * 2 if times is None else (_to_ns(times[0]), _to_ns(times[1]))
        with naming(path):
            ino = self._find(path, follow=follow_symlinks).ino
            self.setattr(ino, atime_ns=clamp_time(ns[0]), mtime_ns=clamp_time(ns[1]))

    def truncate(self, path: AnyPath, length: int) -> None:
        with naming(path):
            if length < 0:
                raise failure(errno.EINVAL)
            attr = self._find(path)
            if not stat.S_ISREG(attr.mode):
                raise failure(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.EINVAL)
            self.setattr(attr.ino, size=length)

    @also_by_inode(InodeVolume.getxattr)
    def getxattr(self, path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        with naming(path):
            return super().getxattr(self._find(path, follow=follow_symlinks).ino, os.fsencode(attribute))

    @also_by_inode(InodeVolume.setxattr)
    def setxattr(
        self,
        path: AnyPath,
        attribute: str | bytes,
        value: bytes,
        flags: int = 0,
        *,
        follow_symlinks: bool = True,
    ) -> None:
        with naming(path):
            ino = self._find(path, follow=follow_symlinks).ino
            super().setxattr(ino, os.fsencode(attribute), bytes(value), flags)

    @also_by_inode(InodeVolume.listxattr)
    def listxattr(self, path: AnyPath = "/", *, follow_symlinks: bool = True) -> list[str]:
        with naming(path):
            ino = self._find(path, follow=follow_symlinks).ino
            return [os.fsdecode(name) for name in super().listxattr(ino)]

    @also_by_inode(InodeVolume.removexattr)
    def removexattr(self, path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
        with naming(path):
            super().removexattr(self._find(path, follow=follow_symlinks).ino, os.fsencode(attribute))

    # -- content

    def open_stream(
        self,
        path: AnyPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a file and return what the built-in `open` would; fileno() is what the object cannot do."""
        parsed = Mode.parse(mode)
        check_arguments(parsed, buffering, encoding, errors, newline)
        with naming(path):
            raw = self._open_raw(path, parsed)
        stream = wrap(raw, parsed, buffering, encoding, errors, newline)
        if parsed.writable:
            self.streams.add(stream)
        return stream

    def _open_raw(self, path: AnyPath, mode: Mode) -> RawFile:
        raw_path = encode(path)
        last = {"r": Last.FOLLOW, "x": Last.CREATE_EXCL}.get(mode.kind, Last.CREATE)
        while True:
            found = resolve(self, raw_path, last)
            attr = found.attr
            if attr is not None:
                break
            uid, gid, _ = self._owner_in(found.parent)
            permissions = 0o666 & ~current_umask()
            try:
                attr = self.mknod(found.parent, found.name, stat.S_IFREG | permissions, uid=uid, gid=gid)
            except FileExistsError:
                if mode.kind == "x":
                    raise
                continue  # another thread was faster
            return RawFile(self.open_file(attr.ino, write=True), os.fspath(path), mode)
        if mode.kind == "x":
            raise failure(errno.EEXIST)
        if stat.S_ISDIR(attr.mode):
            raise failure(errno.EISDIR)
        if not stat.S_ISREG(attr.mode):
            raise failure(errno.ENXIO)  # nobody is at the other end of a fifo or device in here
        handle = self.open_file(attr.ino, write=mode.writable)
        try:
            if mode.kind == "w":
                handle.truncate(0)
            return RawFile(handle, os.fspath(path), mode)
        except BaseException:
            handle.close()
            raise

    def read_bytes(self, path: AnyPath) -> bytes:
        with self.open_stream(path, "rb", 0) as stream:
            data: bytes = stream.read()
            return data

    def write_bytes(self, path: AnyPath, data: bytes) -> int:
        with self.open_stream(path, "wb", 0) as stream:
            return stream.write(data)

    def read_text(self, path: AnyPath, encoding: str | None = None, errors: str | None = None) -> str:
        with self.open_stream(path, "r", -1, encoding or "utf-8", errors) as stream:
            text: str = stream.read()
            return text

    def write_text(self, path: AnyPath, text: str, encoding: str | None = None, errors: str | None = None) -> int:
        with self.open_stream(path, "w", -1, encoding or "utf-8", errors) as stream:
            return stream.write(text)

    def copyfile(self, src: AnyPath, dst: AnyPath) -> None:
        """Copy the content of a file, holes as holes; *dst* is created or replaced."""
        with (
            naming(src, dst),
            self._open_raw(src, Mode.parse("rb")) as source,
            self._open_raw(dst, Mode.parse("ab")) as target,
        ):
            if self._find(src).ino == self._find(dst).ino:
                raise failure(errno.EINVAL)
            copy_content(source.handle, target.handle)


def _to_ns(seconds: float) -> int:
    whole, fraction = divmod(seconds, 1)
    return int(whole) * 10**9 + int(fraction * 1e9)
