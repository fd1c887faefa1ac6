"""The file API does what `os` and `io` do: the same calls on a volume and on a directory of the host."""

from __future__ import annotations

import errno
import gc
import io
import itertools
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fspf.cas import open_cas
from fspf.core.types import ROOT_INO
from fspf.volume.files import current_umask
from fspf.volume.volume import Volume

SMALL: dict[str, Any] = {"segment_slots": 64, "commit_interval": None}


@pytest.fixture
def volume(scratch: Path) -> Iterator[Volume]:
    cas = open_cas(f"sqlite://{scratch}/cas.sqlite")
    with Volume.create(scratch / "volume", cas, **SMALL) as made:
        yield made
    cas.close()


def code(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno is not None
    return caught.value.errno


# -- the same calls on both


class Host:
    """The calls of `Files`, done by os below a directory."""

    def __init__(self, base: str) -> None:
        self.base = base

    def p(self, path: str) -> str:
        return self.base + path

    def stat(self, path: str, follow: bool) -> Any:
        return facts(os.stat(self.p(path), follow_symlinks=follow))

    def listdir(self, path: str) -> Any:
        return sorted(os.listdir(self.p(path)))

    def scandir(self, path: str) -> Any:
        with os.scandir(self.p(path)) as found:
            return sorted(
                (e.name, e.is_dir(), e.is_file(), e.is_symlink(), e.is_dir(follow_symlinks=False)) for e in found
            )

    def walk(self, path: str, topdown: bool, follow: bool) -> Any:
        skip = len(self.base)
        found = [(a[skip:], sorted(b), sorted(c)) for a, b, c in os.walk(self.p(path), topdown, followlinks=follow)]
        return sorted(found)

    def tests(self, path: str) -> Any:
        q = self.p(path)
        return (
            os.path.exists(q),
            os.path.lexists(q),
            os.path.isfile(q),
            os.path.isdir(q),
            os.path.islink(q),
        )

    def write(self, path: str, mode: str, data: bytes) -> Any:
        with open(self.p(path), mode) as file:
            return file.write(data), file.tell()

    def read(self, path: str) -> Any:
        with open(self.p(path), "rb") as file:
            return file.read()

    def mkdir(self, path: str, mode: int) -> Any:
        os.mkdir(self.p(path), mode)

    def makedirs(self, path: str, exist_ok: bool) -> Any:
        os.makedirs(self.p(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> Any:
        os.rmdir(self.p(path))

    def unlink(self, path: str) -> Any:
        os.unlink(self.p(path))

    def rename(self, src: str, dst: str) -> Any:
        os.rename(self.p(src), self.p(dst))

    def link(self, src: str, dst: str) -> Any:
        os.link(self.p(src), self.p(dst))

    def symlink(self, target: str, path: str) -> Any:
        os.symlink(target, self.p(path))

    def readlink(self, path: str) -> Any:
        return os.readlink(self.p(path))

    def chmod(self, path: str, mode: int) -> Any:
        os.chmod(self.p(path), mode)

    def utime(self, path: str, ns: tuple[int, int], follow: bool) -> Any:
        os.utime(self.p(path), ns=ns, follow_symlinks=follow)
        found = os.stat(self.p(path), follow_symlinks=follow)
        return found.st_atime_ns, found.st_mtime_ns

    def truncate(self, path: str, size: int) -> Any:
        os.truncate(self.p(path), size)


class Inside(Host):
    """The same on a volume."""

    def __init__(self, volume: Volume, base: str) -> None:
        super().__init__(base)
        self.v: Any = volume

    def stat(self, path: str, follow: bool) -> Any:
        return facts(self.v.stat(self.p(path), follow_symlinks=follow))

    def listdir(self, path: str) -> Any:
        return sorted(self.v.listdir(self.p(path)))

    def scandir(self, path: str) -> Any:
        with self.v.scandir(self.p(path)) as found:
            return sorted(
                (e.name, e.is_dir(), e.is_file(), e.is_symlink(), e.is_dir(follow_symlinks=False)) for e in found
            )

    def walk(self, path: str, topdown: bool, follow: bool) -> Any:
        skip = len(self.base)
        found = [(a[skip:], sorted(b), sorted(c)) for a, b, c in self.v.walk(self.p(path), topdown, followlinks=follow)]
        return sorted(found)

    def tests(self, path: str) -> Any:
        q = self.p(path)
        return self.v.exists(q), self.v.lexists(q), self.v.isfile(q), self.v.isdir(q), self.v.islink(q)

    def write(self, path: str, mode: str, data: bytes) -> Any:
        with self.v.open(self.p(path), mode) as file:
            return file.write(data), file.tell()

    def read(self, path: str) -> Any:
        with self.v.open(self.p(path), "rb") as file:
            return file.read()

    def mkdir(self, path: str, mode: int) -> Any:
        self.v.mkdir(self.p(path), mode)

    def makedirs(self, path: str, exist_ok: bool) -> Any:
        self.v.makedirs(self.p(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> Any:
        self.v.rmdir(self.p(path))

    def unlink(self, path: str) -> Any:
        self.v.unlink(self.p(path))

    def rename(self, src: str, dst: str) -> Any:
        self.v.rename(self.p(src), self.p(dst))

    def link(self, src: str, dst: str) -> Any:
        self.v.link(self.p(src), self.p(dst))

    def symlink(self, target: str, path: str) -> Any:
        self.v.symlink(target, self.p(path))

    def readlink(self, path: str) -> Any:
        return self.v.readlink(self.p(path))

    def chmod(self, path: str, mode: int) -> Any:
        self.v.chmod(self.p(path), mode)

    def utime(self, path: str, ns: tuple[int, int], follow: bool) -> Any:
        self.v.utime(self.p(path), ns=ns, follow_symlinks=follow)
        found = self.v.stat(self.p(path), follow_symlinks=follow)
        return found.st_atime_ns, found.st_mtime_ns

    def truncate(self, path: str, size: int) -> Any:
        self.v.truncate(self.p(path), size)


def facts(found: os.stat_result) -> tuple[int, ...]:
    size = -1 if stat.S_ISDIR(found.st_mode) else found.st_size
    return (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, size)


names = st.sampled_from(["a", "b", "c", "d", ".", "x" * 255, "x" * 256])
paths = st.builds(
    lambda parts, up, slash: "/" + "/".join([*parts, *up]) + slash,
    st.lists(names, max_size=3),
    st.sampled_from([[], [], [], [".."], ["..", "a"]]),
    st.sampled_from(["", "", "", "/", "//"]),
).filter(lambda path: path.strip("/.").strip() != "" or ".." not in path)
targets = st.sampled_from(["a", "b", "a/b", "c/d/", "./c", "d/.", "", "x" * 256, "a/../b", "loop"])
modes = st.sampled_from([0o777, 0o644, 0o600, 0o4755, 0o2750, 0o1777, 0o000])
flags = st.booleans()
data = st.binary(max_size=9)
times = st.tuples(*[st.integers(min_value=-(2**31) * 10**9, max_value=2**33 * 10**9)] * 2)
steps = st.one_of(
    st.tuples(st.just("stat"), paths, flags),
    st.tuples(st.just("listdir"), paths),
    st.tuples(st.just("scandir"), paths),
    st.tuples(st.just("tests"), paths),
    st.tuples(st.just("write"), paths, st.sampled_from(["wb", "ab", "xb", "r+b", "w+b", "a+b", "x+b"]), data),
    st.tuples(st.just("write"), paths, st.just("wb"), data),
    st.tuples(st.just("read"), paths),
    st.tuples(st.just("mkdir"), paths, modes),
    st.tuples(st.just("mkdir"), paths, st.just(0o777)),
    st.tuples(st.just("makedirs"), paths, flags),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("symlink"), targets, paths),
    st.tuples(st.just("symlink"), targets, paths),
    st.tuples(st.just("readlink"), paths),
    st.tuples(st.just("chmod"), paths, modes),
    st.tuples(st.just("utime"), paths, times, flags),
    st.tuples(st.just("truncate"), paths, st.integers(min_value=-1, max_value=5000)),
)


def outcome(where: Host, step: tuple[Any, ...]) -> Any:
    name, *arguments = step
    try:
        return getattr(where, name)(*arguments)
    except OSError as exc:
        named = "" if name == "utime" else str(exc.filename).removeprefix(where.base)  # os.utime names nothing
        return type(exc).__name__, exc.errno, named


@pytest.fixture
def pair(volume: Volume, scratch: Path) -> Callable[[], tuple[Host, Host]]:
    """Make an empty directory on the host and in the volume, at each call another."""
    numbers = itertools.count()
    (scratch / "host").mkdir()

    def make() -> tuple[Host, Host]:
        name = f"/{next(numbers)}"
        os.mkdir(f"{scratch}/host{name}")
        volume.mkdir(name)
        return Host(f"{scratch}/host{name}"), Inside(volume, name)

    return make


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=st.lists(steps, max_size=25))
def test_paths_mean_what_they_mean_on_the_host(
    pair: Callable[[], tuple[Host, Host]], program: list[tuple[Any, ...]]
) -> None:
    host, inside = pair()
    for step in program:
        assert outcome(inside, step) == outcome(host, step), step
    for topdown, follow in ((True, False), (False, False)):
        assert inside.walk("/", topdown, follow) == host.walk("/", topdown, follow)


io_steps = st.one_of(
    st.tuples(st.just("read"), st.integers(min_value=-1, max_value=9000)),
    st.tuples(st.just("readline")),
    st.tuples(st.just("readinto"), st.integers(min_value=0, max_value=9000).map(bytearray)),
    st.tuples(st.just("write"), st.one_of(data, st.integers(min_value=0, max_value=70_000).map(lambda n: b"y\n" * n))),
    st.tuples(st.just("seek"), st.integers(min_value=-3, max_value=90_000), st.sampled_from([0, 0, 0, 1, 2, 7])),
    st.tuples(st.just("seek"), st.integers(min_value=-9000, max_value=0), st.sampled_from([1, 2])),
    st.tuples(st.just("truncate")),
    st.tuples(st.just("truncate"), st.integers(min_value=-1, max_value=200_000)),
    st.tuples(st.just("tell")),
    st.tuples(st.just("flush")),
    st.tuples(st.just("readable")),
    st.tuples(st.just("writable")),
    st.tuples(st.just("isatty")),
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    mode=st.sampled_from(["rb", "r+b", "wb", "w+b", "ab", "a+b"]),
    buffering=st.sampled_from([-1, 0, 10]),
    program=st.lists(io_steps, max_size=25),
)
def test_streams_do_what_streams_of_the_host_do(
    pair: Callable[[], tuple[Host, Host]], mode: str, buffering: int, program: list[tuple[Any, ...]]
) -> None:
    host, inside = pair()
    assert isinstance(inside, Inside)
    if mode == "a+b" and buffering < 0:
        buffering = 10  # what io reads ahead before an append shows, so buffers must be of one size
    for each in (host, inside):
        each.write("/f", "wb", b"line\n" * 3000)
    with open(host.p("/f"), mode, buffering) as real, inside.v.open(inside.p("/f"), mode, buffering) as ours:
        assert ours.mode == real.mode
        for name, *arguments in program:
            if name == "seek" and arguments[1] == 7:
                arguments[1] = os.SEEK_HOLE  # the same anywhere when there is no hole
                if arguments[0] > 10_000:
                    continue
            results = []
            for file in (real, ours):
                try:
                    results.append(getattr(file, name)(*arguments))
                except (OSError, ValueError) as exc:
                    results.append((type(exc).__name__, getattr(exc, "errno", None)))
            if name == "seek" and results[0] != results[1] and arguments[1] == os.SEEK_HOLE:
                for file in (real, ours):  # a hole that a seek and a write have made is where the file system says
                    file.seek(0)
                continue
            assert results[0] == results[1], (name, arguments)
    assert inside.read("/f") == host.read("/f")


# -- single promises


def test_a_text_file_is_a_text_file(volume: Volume) -> None:
    files: Any = volume
    with files.open("/t", "w", encoding="utf-16", newline="\r\n") as file:
        assert isinstance(file, io.TextIOWrapper)
        assert file.mode == "w"
        assert file.name == "/t"
        file.write("grün\nrot\n")
    with files.open(b"/t", encoding="utf-16") as file:
        assert file.name == b"/t"
        assert list(file) == ["grün\n", "rot\n"]
    with files.open("/t", "r+", encoding="utf-16") as file:
        file.seek(0, os.SEEK_END)
        file.write("blau")
    assert volume.read_text("/t", "utf-16").splitlines() == ["grün", "rot", "blau"]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("rb", io.BufferedReader), ("wb", io.BufferedWriter), ("r+b", io.BufferedRandom), ("ab", io.BufferedWriter)],
)
def test_streams_are_those_of_io(volume: Volume, mode: str, kind: type) -> None:
    volume.write_bytes("/f", b"1")
    with volume.open_stream("/f", mode) as file:
        assert isinstance(file, kind)
        assert isinstance(file.raw, io.RawIOBase)  # type: ignore[attr-defined]
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()


@pytest.mark.parametrize(
    "arguments",
    [
        ("rw",), ("",), ("bt",), ("r", 0), ("rb", -1, "utf-8"), ("rb", -1, None, "strict"), ("rb", -1, None, None, ""),
        ("r", -1, None, None, "x"), ("z",), ("rr",), ("+",),
    ],
)  # fmt: skip
def test_arguments_are_refused_as_by_the_builtin(volume: Volume, scratch: Path, arguments: tuple[Any, ...]) -> None:
    (scratch / "f").touch()
    volume.write_bytes("/f", b"")
    with pytest.raises(ValueError, match=r"."):
        open(scratch / "f", *arguments)  # noqa: SIM115
    with pytest.raises(ValueError, match=r"."):
        volume.open_stream("/f", *arguments)


def test_refused_arguments_change_nothing(volume: Volume) -> None:
    volume.write_bytes("/f", b"kept")
    with pytest.raises(ValueError, match="newline"):
        volume.open_stream("/f", "w", newline="x")
    assert volume.read_bytes("/f") == b"kept"


def test_a_forgotten_file_is_warned_of(volume: Volume) -> None:
    file = volume.open_stream("/f", "wb")
    file.write(b"x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del file
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]
    assert volume.read_bytes("/f") == b"x"


def test_appends_go_to_the_end_whoever_else_writes(volume: Volume) -> None:
    with volume.open_stream("/log", "ab", 0) as one, volume.open_stream("/log", "ab", 0) as two:
        for number in range(100):
            (one if number % 2 else two).write(b"%02d" % number)
    assert volume.read_bytes("/log") == b"".join(b"%02d" % number for number in range(100))


def test_data_and_holes_are_found(volume: Volume) -> None:
    with volume.open_stream("/s", "w+b") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
        file.truncate(4 << 20)
        assert file.seek(0, os.SEEK_DATA) == 1 << 20
        assert file.seek(1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
        assert code(lambda: file.seek(2 << 20, os.SEEK_DATA)) == errno.ENXIO
    assert volume.stat("/s").st_blocks == 8


def test_an_unlinked_file_lives_while_open(volume: Volume) -> None:
    with volume.open_stream("/f", "w+b") as file:
        file.write(b"still here")
        volume.unlink("/f")
        file.seek(0)
        assert file.read() == b"still here"
    assert not volume.exists("/f")


def test_dots_above_the_root_stay_there(volume: Volume) -> None:
    volume.mkdir("/a")
    volume.symlink("../../../../b", "/a/link")
    volume.write_bytes("/../../b", b"1")
    assert volume.read_bytes("/a/link") == b"1"
    assert volume.listdir("..") == volume.listdir("/")


def test_absolute_links_begin_at_the_root_of_the_volume(volume: Volume) -> None:
    volume.makedirs("/a/b")
    volume.symlink("/a", "/a/b/up")
    volume.write_bytes("/a/b/up/f", b"1")
    assert volume.read_bytes("a/f") == b"1"
    assert volume.readlink(b"/a/b/up") == b"/a"


@pytest.mark.parametrize(("links", "expected"), [(40, 0), (41, errno.ELOOP)])
def test_forty_links_are_followed(volume: Volume, links: int, expected: int) -> None:
    volume.write_bytes("/0", b"end")
    for number in range(links):
        volume.symlink(str(number), f"/{number + 1}")
    if expected:
        assert code(lambda: volume.read_bytes(f"/{links}")) == expected
    else:
        assert volume.read_bytes(f"/{links}") == b"end"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("a/" * 2047 + "a", errno.ENOENT, id="4095 bytes"),
        pytest.param("a/" * 2048, errno.ENAMETOOLONG, id="4096 bytes"),
        pytest.param("", errno.ENOENT, id="empty"),
    ],
)
def test_long_and_empty_paths(volume: Volume, path: str, expected: int) -> None:
    assert code(lambda: volume.stat(path)) == expected


def test_a_null_byte_is_no_path(volume: Volume) -> None:
    with pytest.raises(ValueError, match="null byte"):
        volume.stat("a\0b")
    assert not volume.exists("a\0b")


def test_names_are_bytes(volume: Volume) -> None:
    volume.write_bytes(b"/\xff\xfe", b"1")
    assert volume.listdir("/") == ["\udcff\udcfe"]
    assert volume.listdir(b"/") == [b"\xff\xfe"]
    assert volume.read_bytes("/\udcff\udcfe") == b"1"
    assert volume.read_bytes(Path("/\udcff\udcfe")) == b"1"


@pytest.mark.parametrize("path", ["/nothing", b"/nothing", Path("/nothing")])
def test_errors_name_the_path_that_was_given(volume: Volume, path: Any) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        volume.stat(path)
    assert caught.value.filename == path
    with pytest.raises(FileNotFoundError) as caught:
        volume.rename(path, "/other")
    assert (caught.value.filename, caught.value.filename2) == (path, "/other")


def test_a_read_only_volume_gives_erofs(scratch: Path) -> None:
    cas = open_cas(f"sqlite://{scratch}/cas.sqlite")
    with Volume.create(scratch / "volume", cas, **SMALL) as volume:
        volume.write_bytes("/f", b"1")
    with Volume.open(scratch / "volume", cas, read_only=True) as volume:
        calls: list[Callable[[], object]] = [
            lambda: volume.write_bytes("/f", b""),
            lambda: volume.write_bytes("/new", b""),
            lambda: volume.mkdir("/d"),
            lambda: volume.unlink("/f"),
            lambda: volume.rename("/f", "/g"),
            lambda: volume.chmod("/f", 0o600),
            lambda: volume.utime("/f"),
            lambda: volume.truncate("/f", 0),
            lambda: volume.setxattr("/f", "user.a", b""),
        ]
        for call in calls:
            assert code(call) == errno.EROFS
        assert volume.read_bytes("/f") == b"1"
    cas.close()


def test_xattrs(volume: Volume) -> None:
    volume.write_bytes("/f", b"")
    volume.symlink("f", "/l")
    volume.setxattr("/l", "user.a", b"1")
    assert volume.getxattr("/f", b"user.a") == b"1"
    assert volume.listxattr("/f") == ["user.a"]
    assert volume.listxattr("/l", follow_symlinks=False) == []
    assert code(lambda: volume.setxattr("/f", "user.a", b"2", os.XATTR_CREATE)) == errno.EEXIST
    volume.removexattr("/f", "user.a")
    assert code(lambda: volume.getxattr("/f", "user.a")) == errno.ENODATA


def test_owner_and_times(volume: Volume) -> None:
    volume.write_bytes("/f", b"")
    volume.chown("/f", 12, -1)
    volume.utime("/f", ns=(1, 2**62 + 1))
    found = volume.stat("/f")
    assert (found.st_uid, found.st_gid, found.st_atime_ns, found.st_mtime_ns) == (12, os.getegid(), 1, 2**62 + 1)
    volume.utime("/f", (1.5, -0.25))
    assert volume.stat("/f").st_mtime_ns == -250_000_000
    with pytest.raises(ValueError, match="both"):
        volume.utime("/f", (1, 1), ns=(1, 1))


def test_a_setgid_directory_hands_on_its_group(volume: Volume) -> None:
    volume.mkdir("/d")
    volume.chown("/d", -1, 77)
    volume.chmod("/d", 0o2777)
    volume.mkdir("/d/e")
    volume.write_bytes("/d/f", b"")
    assert volume.stat("/d/e").st_gid == volume.stat("/d/f").st_gid == 77
    assert volume.stat("/d/e").st_mode & stat.S_ISGID


def test_umask_is_honoured_and_left_alone(volume: Volume) -> None:
    before = os.umask(0o027)
    try:
        assert current_umask() == 0o027
        volume.write_bytes("/f", b"")
        volume.mkdir("/d")
        assert stat.S_IMODE(volume.stat("/f").st_mode) == 0o640
        assert stat.S_IMODE(volume.stat("/d").st_mode) == 0o750
    finally:
        assert os.umask(before) == 0o027


def test_rmtree_takes_all_but_what_links_point_to(volume: Volume) -> None:
    volume.makedirs("/t/a/b/c")
    volume.mkdir("/kept")
    volume.write_bytes("/kept/f", b"1")
    volume.symlink("/kept", "/t/a/link")
    for number in range(1200):
        volume.write_bytes(f"/t/{number}", b"")
    assert code(lambda: volume.rmtree("/t/a/link")) == errno.ENOTDIR
    volume.rmtree("/t")
    assert volume.listdir("/") == ["kept"]
    assert volume.listdir("/kept") == ["f"]
    assert code(lambda: volume.rmtree("/t")) == errno.ENOENT
    volume.rmtree("/t", ignore_errors=True)


def test_a_tree_deeper_than_the_stack(volume: Volume) -> None:
    parent = ROOT_INO
    for _ in range(1500):
        parent = volume.mkdir(parent, b"d", 0o755).ino
    volume.rmtree("/d")
    assert volume.listdir("/") == []


def test_copyfile_keeps_holes(volume: Volume) -> None:
    with volume.open_stream("/a", "wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
        file.truncate(4 << 30)
    volume.copyfile("/a", "/b")
    assert volume.stat("/b").st_size == 4 << 30
    assert volume.stat("/b").st_blocks == volume.stat("/a").st_blocks
    with volume.open_stream("/b", "rb") as file:
        file.seek(1 << 30)
        assert file.read(5) == b"end\0\0"


def test_special_files_cannot_be_opened(volume: Volume) -> None:
    volume.mknod(ROOT_INO, b"fifo", stat.S_IFIFO | 0o600)
    assert code(lambda: volume.open_stream("/fifo")) == errno.ENXIO


def test_a_damaged_file_is_an_error_and_not_absence(scratch: Path) -> None:
    from fspf.core.errors import DamagedFileError

    cas = open_cas(f"sqlite://{scratch}/cas.sqlite")
    with Volume.create(scratch / "volume", cas, **SMALL) as volume:
        volume.write_bytes("/f", b"\1" * 40960)
        volume.commit()
        damage(scratch / "volume", volume)
        with pytest.raises(DamagedFileError):
            volume.read_bytes("/f")
        with volume.open_stream("/f", "rb") as stream, pytest.raises(DamagedFileError):
            stream.read()
        volume.unlink("/f")
    cas.close()


def damage(path: Path, volume: Volume) -> None:
    """Overwrite what is in the first chunk of /f on storage."""
    before = volume.stat("/f").st_blocks
    assert before
    found: Any = volume.namespace.connection.execute("SELECT pointer FROM inode WHERE size = 40960").fetchone()
    root: bytes = found[0]
    node_slot = int.from_bytes(root[:5], "little")
    slots, chunk = volume.header.segment_slots, volume.header.chunk_size
    with open(path / "segments" / f"{node_slot // slots:08x}", "r+b") as file:
        for slot in range(max(node_slot % slots - 10, 0), node_slot % slots):
            file.seek(slot * chunk)
            file.write(os.urandom(chunk))
