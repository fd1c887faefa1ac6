"""Small volumes with everything in them that can be altered, and their past.

What is altered is in `tools.lib.tampering`.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fspf.core.anchor import Anchor, Lease
from fspf.core.errors import CasUnreachableError, FspfError
from fspf.core.types import ROOT_INO, Ino, Protection
from fspf.volume.volume import Volume
from tools.lib.tampering.anatomy import Anatomy, dissect
from tools.lib.tampering.cases import Material, Snapshot, Versions
from tools.lib.tampering.memory_cas import MemoryCas
from tools.lib.tampering.oracle import Truth, take_truth

CHUNK: Final = 4096
SEGMENT_SLOTS: Final = 64
OWNER: Final = {"uid": 1000, "gid": 100}
MODE: Final = stat.S_IFREG | 0o640


class LazyCas(MemoryCas):
    """A CAS that goes away on command: commits become durable but not anchored."""

    away = False

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        if self.away:
            raise CasUnreachableError("the CAS is away")
        super().advance(volume_id, lease, expected, new)


@dataclass(slots=True)
class Specimen:
    """A volume with its CAS, its past and the truth about it."""

    name: str
    anatomy: Anatomy
    cas: MemoryCas
    truth: Truth
    previous: Truth | None  # of the anchored state, where the newest is ahead of it
    material: Material
    known: dict[bytes, bytes] = field(default_factory=dict)  # path -> content as it was written


def snapshot(path: Path) -> Snapshot:
    """Return all files of a volume by name."""
    return {
        os.path.relpath(os.path.join(directory, name), path): Path(directory, name).read_bytes()
        for directory, _, names in os.walk(path)
        for name in names
        if name != "lock"
    }


def restore(path: Path, files: Snapshot) -> None:
    """Make the volume at *path* what it was."""
    for name in snapshot(path).keys() - files.keys():
        (path / name).unlink()
    for name, data in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)


class _Writer:
    """Fills a volume in several sessions; every commit is kept."""

    def __init__(self, path: Path, cas: LazyCas, seed: int) -> None:
        self.path, self.cas = path, cas
        self.random = random.Random(seed)
        self.past: list[Snapshot] = []
        self.versions: Versions = {}
        self.known: dict[bytes, bytes] = {}
        self.volume = Volume.create(
            path, cas, name=path.name, chunk_size=CHUNK, segment_slots=SEGMENT_SLOTS, commit_interval=None
        )
        self.keep()

    def keep(self) -> None:
        self.past.append(snapshot(self.path))
        for block in dissect(self.path, self.cas.fetch(self.volume.header.volume_id)).blocks:
            known = self.versions.setdefault((block.tree, block.level, block.offset), {})
            known.setdefault(block.sealed, (len(self.past), block.entry))

    def commit(self) -> None:
        self.volume.commit()
        self.keep()

    def noise(self, length: int) -> bytes:
        return self.random.randbytes(length)

    def reopen(self) -> None:
        self.volume.close()
        self.keep()
        self.volume = Volume.open(self.path, self.cas, commit_interval=None)
        self.keep()

    def file(self, path: bytes, content: bytes) -> Ino:
        """Write a file, which may be there already."""
        *directories, name = path.strip(b"/").split(b"/")
        parent = ROOT_INO
        for each in directories:
            parent = self.volume.lookup(parent, each).ino
        try:
            ino = self.volume.lookup(parent, name).ino
        except FileNotFoundError:
            ino = self.volume.mknod(parent, name, MODE, **OWNER).ino
        with self.volume.open_file(ino, write=True) as file:
            file.truncate(0)
            file.write(0, content)
        self.known[path] = content
        return ino

    def patch(self, path: bytes, offset: int, data: bytes) -> None:
        attr = self._find(path)
        with self.volume.open_file(attr, write=True) as file:
            file.write(offset, data)
        old = self.known[path]
        self.known[path] = old[:offset] + data + old[offset + len(data) :]

    def _find(self, path: bytes) -> Ino:
        ino = ROOT_INO
        for each in path.strip(b"/").split(b"/"):
            ino = self.volume.lookup(ino, each).ino
        return ino

    def fill(self) -> None:
        """Write, in six commits and three sessions, one of everything."""
        volume = self.volume
        # 1: small things
        self.file(b"/empty", b"")
        self.file(b"/small", b"a few bytes")
        self.file(b"/exact", self.noise(CHUNK))
        self.file(b"/odd", self.noise(2 * CHUNK + 1809))
        directory = volume.mkdir(ROOT_INO, b"directory", 0o750, **OWNER).ino
        inner = volume.mkdir(directory, b"inner", 0o700, **OWNER).ino
        self.file(b"/directory/inner/deep", self.noise(300))
        volume.symlink(ROOT_INO, b"link", b"directory/inner/deep", **OWNER)
        volume.symlink(inner, b"long link", b"x/" * 1000, **OWNER)
        volume.link(self._find(b"/small"), directory, b"hard link")
        volume.mknod(directory, b"fifo", stat.S_IFIFO | 0o600, **OWNER)
        volume.mknod(directory, b"device", stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3), **OWNER)
        volume.mknod(ROOT_INO, b"\xff not utf-8 " + b"n" * 200, MODE, **OWNER)
        protected = volume.mkdir(ROOT_INO, b"authenticated", 0o755, **OWNER).ino
        volume.set_protection(protected, Protection.AUTHENTICATED)
        self.file(b"/authenticated/text", b"everybody may read this, nobody may change it\n" * 20)
        self.commit()
        # 2: several levels
        self.file(b"/big", self.noise(133 * CHUNK + 100))
        self.file(b"/authenticated/big", self.noise(130 * CHUNK + 7))
        self.file(b"/victim", self.noise(20 * CHUNK))
        self.commit()
        # 3: attributes that make the namespace more than one node wide, a sparse file three levels high
        ino = self._find(b"/odd")
        for number in range(9):
            value = self.noise(60_000)
            volume.setxattr(ino, b"user.big%d" % number, value)
        volume.setxattr(directory, b"user.small", b"value")
        sparse = volume.mknod(ROOT_INO, b"sparse", MODE, **OWNER).ino
        with volume.open_file(sparse, write=True) as file:
            for offset in (0, 5 * CHUNK, (1 << 20) + 11, 70 << 20, (1 << 31) - 5):
                file.write(offset, self.noise(2 * CHUNK))
            file.truncate((1 << 31) + (1 << 20))
        self.commit()
        # 4: changes, so that slots are freed and used again
        for index in range(0, 133, 4):
            self.patch(b"/big", index * CHUNK, self.noise(CHUNK))
        volume.unlink(ROOT_INO, b"victim")
        del self.known[b"/victim"]
        self.commit()
        self.patch(b"/authenticated/big", 3 * CHUNK, self.noise(40 * CHUNK))
        self.patch(b"/exact", 0, self.noise(CHUNK))
        self.commit()
        for turn in range(4):  # every kind of block comes to lie where another was
            self.patch(b"/authenticated/big", (60 + 20 * (turn % 2)) * CHUNK, self.noise(30 * CHUNK))
            volume.setxattr(ino, b"user.big%d" % turn, self.noise(60_000))
            self.patch(b"/big", (90 - 20 * (turn % 2)) * CHUNK, self.noise(15 * CHUNK))
            self.commit()
        # 5: a second session
        self.reopen()
        self.patch(b"/big", 60 * CHUNK, self.noise(30 * CHUNK))
        self.file(b"/small", b"not the bytes of before")
        self.commit()
        self.file(b"/odd", self.noise(2 * CHUNK + 1809))
        self.volume.setattr(self._find(b"/empty"), mode=0o600, mtime_ns=1_234_567_890_123_456_789)
        self.commit()
        # 6: a third
        self.reopen()
        self.patch(b"/authenticated/text", 0, b"EVERYBODY")
        self.patch(b"/directory/inner/deep", 100, b"changed")
        self.patch(b"/big", 10 * CHUNK, self.noise(2 * CHUNK))
        self.commit()


def _copied(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def build(where: Path, *, seed: int = 1) -> dict[str, Specimen]:
    """Make the specimens below *where*: `closed`, `crashed` (no space map), `ahead` (newest commit not anchored)."""
    cas = LazyCas()
    writer = _Writer(where / "closed", cas, seed)
    writer.fill()
    path = writer.path
    volume_id = writer.volume.header.volume_id
    specimens: dict[str, Specimen] = {}
    other = _Writer(where / "other", cas, seed + 1000)
    other.fill()
    other.volume.close()
    other_anatomy = dissect(other.path, cas.fetch(other.volume.header.volume_id))
    stranger = _Writer(where / "stranger", LazyCas(), seed + 2000)
    stranger.volume.close()
    header = (stranger.path / "header").read_bytes()

    def add(name: str, at: Path, *, ahead: bool = False) -> None:
        record = cas.copy()
        anchored = record.fetch(volume_id).anchor.generation
        anatomy = dissect(at, record.fetch(volume_id), generation=anchored + ahead)
        previous = None
        if ahead:
            # What the anchored state holds is read where the newest root is gone.
            twin = _copied(at, where / f"{name} twin")
            (twin / anatomy.newest_root).unlink()
            previous = take_truth(dissect(twin, record.fetch(volume_id)), record)
            shutil.rmtree(twin)
        specimens[name] = Specimen(
            name,
            anatomy,
            record,
            take_truth(anatomy, record),
            previous,
            Material(list(writer.past), other_anatomy, header, ahead, writer.versions),
            dict(writer.known),
        )

    add("crashed", _copied(path, where / "crashed"))
    # Durable but not anchored: the writer dies before the CAS hears of the newest commit.
    cas.away = True
    saved = dict(writer.known)
    writer.patch(b"/odd", 10, b"not anchored")
    writer.patch(b"/big", 20 * CHUNK, writer.noise(CHUNK))
    ahead = where / "ahead"
    _commit_unanchored(writer, ahead)
    add("ahead", ahead, ahead=True)
    cas.away = False
    writer.known = saved
    # Back to the anchored state, and close.
    shutil.rmtree(path)
    shutil.copytree(where / "crashed", path)
    writer.volume = Volume.open(path, cas, commit_interval=None)
    writer.keep()
    writer.patch(b"/odd", 0, b"last words")
    writer.commit()
    writer.volume.close()
    add("closed", path)
    return specimens


def _commit_unanchored(writer: _Writer, to: Path) -> None:
    """Commit while the CAS is away, and die."""
    writer.volume._commits._cas_timeout_s = 0.0  # type: ignore[union-attr]
    try:
        writer.volume.commit()
    except FspfError:
        shutil.copytree(writer.path, to)
    else:
        raise AssertionError("the commit did not notice that the CAS is away")
    writer.volume.abandon()


def build_spread(where: Path) -> Specimen:
    """Make a volume whose space map has nodes: its newest blocks lie beyond slot 32768."""
    cas = MemoryCas()
    path = where / "spread"
    volume = Volume.create(path, cas, chunk_size=CHUNK, segment_slots=4096, commit_interval=None)
    root = ROOT_INO
    junk = volume.mknod(root, b"junk", MODE, **OWNER).ino
    piece = random.Random(5).randbytes(1 << 20)
    with volume.open_file(junk, write=True) as file:
        for offset in range(0, 132 << 20, 1 << 20):
            file.write(offset, piece)
    volume.commit()
    known = {}
    for name, length in ((b"after", 3 * CHUNK + 5), (b"last", 100)):
        content = random.Random(name).randbytes(length)
        with volume.open_file(volume.mknod(root, name, MODE, **OWNER).ino, write=True) as file:
            file.write(0, content)
        known[b"/" + name] = content
    volume.commit()
    volume.unlink(root, b"junk")
    volume.close()
    record = cas.copy()
    anatomy = dissect(path, record.fetch(volume.header.volume_id))
    return Specimen("spread", anatomy, record, take_truth(anatomy, record), None, Material(), known)
