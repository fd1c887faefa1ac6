"""`fspf://` keeps fsspec's promises, commits when it says, and holds a volume as long as it says."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fspf.cas import open_cas
from fspf.core.errors import LeaseHeldError
from fspf.fsspec import FspfFileSystem
from fspf.volume.volume import Volume

SMALL: dict[str, Any] = {"segment_slots": 64, "commit_interval": None}


@pytest.fixture
def url(scratch: Path) -> str:
    return f"sqlite://{scratch}/cas.sqlite"


@pytest.fixture
def path(scratch: Path, url: str) -> str:
    cas = open_cas(url)
    Volume.create(scratch / "volume", cas, **SMALL).close()
    cas.close()
    return str(scratch / "volume")


@pytest.fixture
def fs(path: str, url: str) -> Iterator[Any]:
    made = FspfFileSystem(volume=path, cas=url, skip_instance_cache=True)
    yield made
    made.close()


def committed(path: str, url: str, name: str) -> bytes | None:
    """Return what a second opening, elsewhere, finds now."""
    cas = open_cas(url)
    try:
        with Volume.open(path, cas, read_only=True) as volume:
            return volume.read_bytes(name) if volume.exists(name) else None
    finally:
        cas.close()


def test_it_is_registered(path: str, url: str) -> None:
    assert fsspec.get_filesystem_class("fspf") is FspfFileSystem


def test_a_url_leads_into_the_first_volume_of_its_path(path: str, url: str) -> None:
    with fsspec.open(f"fspf://{path}/a/b.txt", "w", cas=url) as file:
        file.write("grün")
    with fsspec.open(f"fspf://{path}/a/b.txt", "r", cas=url, encoding="utf-8") as file:
        assert file.read() == "grün"
    fs, inside = fsspec.core.url_to_fs(f"fspf://{path}/a", cas=url)
    assert inside == f"{path}/a"
    assert fs.ls(inside, detail=False) == [f"{path}/a/b.txt"]
    assert fs.ls(path, detail=False) == [f"{path}/a"]
    assert fs.find(path) == [f"{path}/a/b.txt"]
    assert fs.info(path)["type"] == "directory"
    assert not fs.exists(os.path.dirname(path) + "/nothing/f")
    with pytest.raises(FileNotFoundError, match="is a volume"):
        fs.info("/nothing")
    fs.close()


def test_what_is_planted_in_a_volume_directory_is_not_followed(path: str, url: str, scratch: Path) -> None:
    cas = open_cas(url)
    with Volume.create(scratch / "other", cas, **SMALL) as other:
        other.write_bytes("/f", b"of another volume")
    cas.close()
    (scratch / "other").rename(Path(path) / "a")
    fs = FspfFileSystem(cas=url, skip_instance_cache=True)
    assert not fs.exists(f"{path}/a/f")
    fs.close()


def test_files(fs: Any) -> None:
    fs.pipe_file("/d/f", b"0123456789")
    assert fs.cat_file("/d/f") == b"0123456789"
    assert fs.cat_file("/d/f", 2, 5) == b"234"
    assert fs.cat_file("/d/f", -3) == b"789"
    assert fs.cat_file("/d/f", 5, -2) == b"567"
    assert fs.cat_file("/d/f", 8, 100) == b"89"
    assert fs.cat_ranges(["/d/f"] * 2, [0, 4], [2, 6]) == [b"01", b"45"]
    assert fs.size("/d/f") == 10
    assert fs.head("/d/f", 3) == b"012"
    assert fs.tail("/d/f", 3) == b"789"
    with fs.open("/d/f", "ab") as file:
        file.write(b"!")
    with fs.open("/d/f", "r+b") as file:
        file.seek(1)
        file.write(b"#")
    assert fs.cat("/d/f") == b"0#23456789!"
    with pytest.raises(FileExistsError):
        fs.open("/d/f", "xb")
    with pytest.raises(FileExistsError):
        fs.pipe_file("/d/f", b"", mode="create")
    with fs.open("/d/g", "xb") as file:
        file.write(b"new")
    assert fs.read_text("/d/g") == "new"
    with pytest.raises(FileNotFoundError):
        fs.open("/nothing", "rb")
    with pytest.raises(IsADirectoryError):
        fs.open("/d", "rb")


def test_listing(fs: Any) -> None:
    fs.pipe({"/a/1": b"1", "/a/b/2": b"22", "/c": b"333"})
    assert fs.ls("/", detail=False) == ["/a", "/c"]
    assert [(e["name"], e["type"], e["size"]) for e in fs.ls("/a")] == [
        ("/a/1", "file", 1),
        ("/a/b", "directory", 0),
    ]
    assert fs.ls("/c", detail=False) == ["/c"]
    assert fs.ls("fspf:///c", detail=False) == ["/c"]
    with pytest.raises(FileNotFoundError):
        fs.ls("/nothing")
    assert fs.find("/") == ["/a/1", "/a/b/2", "/c"]
    assert fs.find("/a", maxdepth=1, withdirs=True) == ["/a", "/a/1", "/a/b"]
    assert fs.glob("/**/2") == ["/a/b/2"]
    assert fs.glob("/a/*") == ["/a/1", "/a/b"]
    assert fs.du("/") == 6
    assert [each[0] for each in fs.walk("/")] == ["/", "/a", "/a/b"]
    assert fs.isdir("/a")
    assert fs.isfile("/c")
    assert not fs.isfile("/a")
    assert not fs.exists("/a/1/x")


def test_links(fs: Any) -> None:
    fs.pipe_file("/d/f", b"1")
    volume = fs.open_volume()
    volume.symlink("d", "/l")
    volume.symlink("no", "/broken")
    kinds = {each["name"]: (each["type"], each["islink"]) for each in fs.ls("/")}
    assert kinds == {"/d": ("directory", False), "/l": ("directory", True), "/broken": ("other", True)}
    assert fs.cat("/l/f") == b"1"
    assert fs.lexists("/broken")
    assert not fs.exists("/broken")
    fs.rm("/l", recursive=True)
    assert fs.exists("/d/f")


def test_no_stale_answers(fs: Any, path: str, url: str) -> None:
    assert fs.ls("/") == []
    other = FspfFileSystem(volume=path, cas=url, skip_instance_cache=True)
    other.pipe_file("/f", b"1")
    assert fs.ls("/", detail=False) == ["/f"]
    assert fs.info("/f")["size"] == 1
    other.close()
    assert fs.cat("/f") == b"1"  # still open: there were two users


def test_directories_and_names(fs: Any) -> None:
    fs.mkdir("/a/b/c")
    with pytest.raises(FileExistsError):
        fs.mkdir("/a/b/c")
    with pytest.raises(FileNotFoundError):
        fs.mkdir("/x/y", create_parents=False)
    fs.makedirs("/a/b", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.makedirs("/a/b")
    fs.touch("/a/f")
    fs.mv("/a/f", "/new/g")
    assert fs.find("/") == ["/new/g"]
    fs.mv("/new/g", "/a")
    assert fs.find("/") == ["/a/g"]
    fs.mv("/a", "/moved")
    fs.cp_file("/moved/g", "/copy")
    fs.copy("/moved", "/all", recursive=True)
    assert fs.find("/") == ["/all/g", "/copy", "/moved/g"]
    with pytest.raises(OSError, match=r"[Dd]irectory"):
        fs.rm("/all")
    fs.rm("/all", recursive=True)
    fs.rm(["/copy", "/moved/g*"])
    assert fs.find("/") == []
    fs.rmdir("/moved/b/c")
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir("/moved")
    fs.rm("/", recursive=True)
    assert fs.ls("/") == []


def test_times(fs: Any) -> None:
    before = datetime.now(tz=UTC)
    fs.touch("/f")
    fs.open_volume().utime("/f", ns=(0, 5 * 10**9))
    assert fs.modified("/f") == datetime.fromtimestamp(5, tz=UTC)
    assert abs((fs.created("/f") - before).total_seconds()) < 60
    fs.pipe_file("/f", b"123")
    fs.touch("/f", truncate=False)
    assert fs.size("/f") == 3
    fs.touch("/f")
    assert fs.size("/f") == 0


def test_put_and_get(fs: Any, scratch: Path) -> None:
    (scratch / "in" / "d").mkdir(parents=True)
    (scratch / "in" / "d" / "f").write_bytes(b"1")
    fs.put(str(scratch / "in"), "/tree", recursive=True)
    assert fs.find("/") == ["/tree/d/f"]
    fs.get("/tree", str(scratch / "out"), recursive=True)
    assert (scratch / "out" / "d" / "f").read_bytes() == b"1"


def test_between_two_volumes(url: str, path: str, scratch: Path) -> None:
    cas = open_cas(url)
    Volume.create(scratch / "second", cas, **SMALL).close()
    cas.close()
    fs: Any = FspfFileSystem(cas=url, skip_instance_cache=True)
    fs.pipe_file(f"{path}/d/f", b"1")
    fs.mv(f"{path}/d", f"{scratch}/second/d")
    assert fs.find(f"{scratch}/second") == [f"{scratch}/second/d/f"]
    assert fs.find(path) == []
    fs.close()


# -- commits


def test_closing_a_file_commits(fs: Any, path: str, url: str) -> None:
    with fs.open("/f", "wb") as file:
        file.write(b"1")
        file.flush()
        assert committed(path, url, "/f") is None
    assert committed(path, url, "/f") == b"1"
    fs.mv("/f", "/g")
    assert committed(path, url, "/g") == b"1"


def test_without_autocommit_somebody_else_decides(path: str, url: str) -> None:
    fs: Any = FspfFileSystem(volume=path, cas=url, autocommit=False, skip_instance_cache=True)
    fs.pipe_file("/f", b"1")
    assert committed(path, url, "/f") is None
    fs.commit()
    assert committed(path, url, "/f") == b"1"
    fs.pipe_file("/f", b"2")
    fs.close()
    assert committed(path, url, "/f") == b"2"


def test_many_files_of_one_call_are_one_commit(fs: Any) -> None:
    fs.ls("/")
    before = fs.open_volume().status()["generation"]
    fs.pipe({f"/{number}": b"1" for number in range(20)})
    assert fs.open_volume().status()["generation"] == before + 1


def test_a_transaction_is_one_commit(fs: Any, path: str, url: str) -> None:
    fs.pipe_file("/a", b"old")
    before = fs.open_volume().status()["generation"]
    with fs.transaction:
        for name in ("/a", "/b"):
            with fs.open(name, "wb") as file:
                file.write(b"new")
        assert fs.cat("/a") == b"old"
        assert not fs.exists("/b")
    assert fs.cat("/a") == fs.cat("/b") == b"new"
    assert fs.open_volume().status()["generation"] == before + 1
    assert committed(path, url, "/b") == b"new"
    assert fs.ls("/", detail=False) == ["/a", "/b"]


def test_a_transaction_that_fails_leaves_nothing(fs: Any) -> None:
    fs.pipe_file("/a", b"old")

    def fail() -> None:
        with fs.transaction:
            fs.pipe_file("/a", b"new")
            fs.pipe_file("/b", b"new")
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="mind"):
        fail()
    assert fs.cat("/a") == b"old"
    assert fs.ls("/", detail=False) == ["/a"]
    fs.pipe_file("/b", b"afterwards")
    assert fs.cat("/b") == b"afterwards"


# -- how long a volume is held


def test_the_lease_is_held_until_close(path: str, url: str) -> None:
    fs: Any = FspfFileSystem(volume=path, cas=url, skip_instance_cache=True)
    fs.ls("/")
    cas = open_cas(url)
    with pytest.raises((LeaseHeldError, BlockingIOError)):
        Volume.open(path, cas)
    fs.close()
    Volume.open(path, cas).close()
    cas.close()
    fs.pipe_file("/f", b"1")  # opens it again
    fs.close()


def test_a_forgotten_object_gives_the_volume_back(path: str, url: str) -> None:
    fs: Any = FspfFileSystem(volume=path, cas=url, skip_instance_cache=True)
    fs.ls("/")
    del fs
    gc.collect()
    cas = open_cas(url)
    Volume.open(path, cas).close()
    cas.close()


def test_read_only_takes_no_lease_and_changes_nothing(path: str, url: str) -> None:
    writer: Any = FspfFileSystem(volume=path, cas=url, skip_instance_cache=True)
    writer.pipe_file("/f", b"1")
    with FspfFileSystem(volume=path, cas=url, read_only=True, skip_instance_cache=True) as fs:
        assert fs.cat("/f") == b"1"
        with pytest.raises(OSError, match="reading"):
            fs.pipe_file("/f", b"2")
    writer.close()


SCRIPT = """
import sys, fsspec
fs = fsspec.filesystem("fspf", volume=sys.argv[1], cas=sys.argv[2], autocommit=False)
fs.pipe_file("/f", b"at exit")
"""


def test_the_end_of_the_process_closes_cleanly(path: str, url: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, path, url], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert committed(path, url, "/f") == b"at exit"
    cas = open_cas(url)
    Volume.open(path, cas).close()
    cas.close()


def test_it_can_be_pickled(fs: Any, path: str, url: str) -> None:
    fs.pipe_file("/f", b"1")
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat("/f") == b"1"
    again.close()
