"""Read everything of an open volume and report what is damaged, file by file and range by range.

Damaged namespaces are read by `fspf.volume.walk`, what verifies is written out by `fspf.volume.salvage`; without a
key there is `fspf.volume.scrub`.
"""

from __future__ import annotations

import stat
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

import apsw

from fspf.core.errors import IntegrityError, TornError
from fspf.core.format import KEYRING_RECORD_LEN, ROOT_NAMES
from fspf.core.types import ROOT_INO, ContentRoot, Ino
from fspf.volume.finding import Finding, Progress, Totals
from fspf.volume.layout import KEYRING, KEYRING_BACKUP
from fspf.volume.scrub import scrub_directory
from fspf.volume.slots import SlotMap
from fspf.volume.walk import Inode, Listed, Place, Reader, walk
from fspf_native import ChunkError, Tree

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fspf.volume.salvage import Salvage
    from fspf.volume.volume import Volume

_MAX_RANGES: Final = 1000  # per file, see Tree.verify
_MAX_SQLITE_MESSAGES: Final = 100
_BATCHES_PER_THREAD: Final = 4  # bounds the memory of what waits
_BATCH_FILES: Final = 64
_BATCH_BYTES: Final = 4 << 20
_TICK: Final = 0.2  # seconds between signs of progress within one file

Damage = list[tuple[int, int, str, int, int]]  # offset, length, kind, slot, level


def verify_volume(
    volume: Volume,
    *,
    progress: Progress | None = None,
    salvage: Path | None = None,
    threads: int = 2,
    totals: Totals | None = None,
) -> Iterator[Finding]:
    """Read and verify everything that the opened state consists of.

    Reads the state that is committed: commit before, if the volume is open for writing, and let nobody write
    until the last finding was taken.

    Args:
        volume: An open volume.
        progress: Told how many plain bytes are done.
        salvage: Directory (new, or empty) to write all that verifies to.
        threads: How many files are read at once.
        totals: Filled in while findings are taken.
    """
    totals = totals if totals is not None else Totals()
    if salvage is None:
        yield from _Check(volume, progress, None, threads, totals).run()
        return
    from fspf.volume.salvage import Salvage

    with Salvage(salvage, volume) as rescue:
        yield from _Check(volume, progress, rescue, threads, totals).run()


def verify_closed(path: str | os.PathLike[str], failure: IntegrityError) -> Iterator[Finding]:
    """Report what is known of a volume that cannot be opened because of *failure*."""
    found = list(scrub_directory(path))
    yield from found
    text = str(failure)
    if any(finding.detail == text for finding in found) or (found and isinstance(failure, TornError)):
        return
    damage = _chunk_error(failure)
    if damage is not None:  # only the namespace is read while opening
        yield Finding(b"", damage.offset, damage.length, damage.kind, text, damage.slot, "namespace")
    else:
        yield Finding(b"", 0, 0, "torn" if isinstance(failure, TornError) else "tampered", text)


def _chunk_error(failure: BaseException) -> ChunkError | None:
    """Return the damaged chunk that *failure* came from, if one."""
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, ChunkError):
        cause = cause.__cause__ or cause.__context__
    return cause


class _Check:
    """One verification."""

    def __init__(
        self, volume: Volume, progress: Progress | None, salvage: Salvage | None, threads: int, totals: Totals
    ) -> None:
        if volume.root_record is None:
            message = "there is no commit that was opened: close the volume and open it again"
            raise ValueError(message)
        self._record = volume.root_record
        self._volume = volume
        self._store = volume.store
        self._progress = progress
        self._salvage = salvage
        self._threads = threads
        self._totals = totals
        self._expected = self._record.total_bytes
        self._opened_before = volume.store.stats()["bytes_opened"]
        self._bytes = 0  # of regular files, by their rows
        self._inodes = 0
        self._names: dict[int, int] = {}  # names found, of inodes that should have several
        self._slots = SlotMap(self._record.end_of_slots)
        self._damaged_namespace = False

    def run(self) -> Iterator[Finding]:
        try:
            yield from self._run()
        finally:
            self._slots.close()

    def _run(self) -> Iterator[Finding]:
        yield from self._directory()
        yield from self._namespace()
        yield from self._files()
        yield from self._map()
        if not self._damaged_namespace:
            yield from self._sums()
        yield from self._slot_findings()

    # -- around the files

    def _directory(self) -> Iterator[Finding]:
        """Header, keyring and roots as they lie there. What a crash may leave, and nobody needs, is a note only."""
        record = self._record
        needed = record.keyring_epochs * KEYRING_RECORD_LEN
        own_root = ROOT_NAMES[self._volume.base_generation % 2].encode()
        closed_cleanly = record.space_map is not None
        for finding in scrub_directory(self._volume.path):
            in_keyring = finding.path in {KEYRING.encode(), KEYRING_BACKUP.encode()}
            spare_record = in_keyring and finding.offset >= needed
            spare_root = finding.path in {n.encode() for n in ROOT_NAMES} - {own_root} and not closed_cleanly
            if finding.kind in {"torn", "missing"} and (spare_record or spare_root):
                text = f"{finding.path.decode()}: {finding.detail}; it is not needed, the next opening for writing mends it"
                self._totals.notes.append(text)
            else:
                yield finding

    def _namespace(self) -> Iterator[Finding]:
        tree = self._volume.namespace_tree
        self._slots.add(self._volume, ContentRoot(*self._record.namespace), "the namespace")
        for offset, length, kind, slot, level in tree.verify(_MAX_RANGES):
            self._damaged_namespace = True
            text = f"namespace: names, attributes and places of files kept there are lost (slot {slot}, level {level})"
            yield Finding(b"", offset, length, kind, text, slot, "namespace")
        if self._damaged_namespace:
            self._totals.notes.append("the namespace is damaged: files whose names or places are lost are not counted")
            return
        try:
            for (message,) in self._volume.namespace_connection.execute(
                f"PRAGMA integrity_check({_MAX_SQLITE_MESSAGES})"
            ):
                if message != "ok":
                    yield Finding(b"", 0, 0, "inconsistent", f"namespace: {message}", None, "namespace")
        except apsw.Error as exc:
            yield Finding(b"", 0, 0, "inconsistent", f"namespace: {exc}", None, "namespace")

    def _map(self) -> Iterator[Finding]:
        """Verify the saved bitmap of free slots: damage there costs a rebuild, no data."""
        space_map = self._record.space_map
        if space_map is None:
            return
        self._slots.add(self._volume, space_map, "the space map")
        for offset, length, kind, slot, _ in Tree(self._store, space_map).verify(_MAX_RANGES):
            text = f"space map: no data is lost, it will be made anew (slot {slot})"
            yield Finding(b"", offset, length, kind, text, slot, "namespace")

    def _sums(self) -> Iterator[Finding]:
        record = self._record
        for what, expected, actual in (
            ("inodes", record.files, self._inodes),
            ("bytes", record.total_bytes, self._bytes),
        ):
            if expected != actual:
                text = f"{expected} {what} expected by the root record, {actual} found"
                yield Finding(b"", 0, 0, "inconsistent", text, None, "namespace")

    def _slot_findings(self) -> Iterator[Finding]:
        for slot, text in self._slots.conflicts:
            yield Finding(b"", 0, 0, "inconsistent", text, slot, "namespace")

    # -- files

    def _files(self) -> Iterator[Finding]:
        reader = Reader(self._volume.namespace_connection)
        seen = bytearray((max(reader.next_ino, ROOT_INO) >> 3) + 1)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="fspf-verify") as pool:
            jobs = _Jobs(pool, self._threads * _BATCHES_PER_THREAD, self._tick)
            try:
                for step in walk(reader):
                    if isinstance(step, Listed):
                        yield from self._listed(step)
                        continue
                    yield from self._place(step, reader, seen, jobs)
                    yield from jobs.finished()
                yield from jobs.finished(everything=True)
                yield from self._unnamed(reader, seen, jobs)
                yield from jobs.finished(everything=True)
            finally:
                jobs.cancel()
        if reader.losses:
            self._damaged_namespace = True
        if self._salvage is not None:
            self._salvage.finish_directories()

    def _listed(self, listed: Listed) -> Iterator[Finding]:
        if listed.path == b"":
            self._inodes += 1
        expected = 2 + listed.subdirectories
        if listed.inode.nlink != expected and not self._damaged_namespace:
            text = f"link count {listed.inode.nlink}, {expected} expected from its subdirectories"
            yield _inconsistent(listed.path or b"/", text)

    def _place(self, place: Place, reader: Reader, seen: bytearray, jobs: _Jobs) -> Iterator[Finding]:
        inode, path = place.inode, place.path
        if place.entry.name in {b"", b".", b".."} or b"/" in place.entry.name or b"\0" in place.entry.name:
            yield _inconsistent(path, "this is no name")
            return
        if inode is None:
            kind = "missing" if self._damaged_namespace else "inconsistent"
            text = f"its attributes and its place (inode {place.entry.ino}) cannot be read"
            yield Finding(path, 0, 0, kind, text, None, "file")
            return
        again = _test_and_set(seen, inode.ino)
        if again:
            if inode.is_dir or inode.nlink < 2:
                yield _inconsistent(path, f"inode {inode.ino} has more names than its link count of {inode.nlink}")
            else:
                self._names[inode.ino] -= 1
                if not self._names[inode.ino]:
                    del self._names[inode.ino]
                if self._salvage is not None:
                    yield from jobs.finished(everything=True)  # its first name must be written by now
                    self._salvage.link(inode, path)
            return
        self._inodes += 1
        if not inode.is_dir and inode.nlink > 1:
            self._names[inode.ino] = inode.nlink - 1
        if inode.is_dir and inode.parent != place.directory.ino:
            yield _inconsistent(path, f"its parent is inode {inode.parent}, it is in {place.directory.ino}")
        if inode.nlink == 0:
            yield _inconsistent(path, "it has a name and a link count of 0")
        yield from self._content(path, inode, reader, jobs)

    def _content(self, path: bytes, inode: Inode, reader: Reader, jobs: _Jobs) -> Iterator[Finding]:
        """Start reading one inode's content, and writing it out if something is to be salvaged."""
        rescue = self._salvage
        inode = self._with_log(inode)
        xattrs = reader.xattrs(inode.ino) if rescue is not None else []
        if not inode.is_file:
            self._totals.files += not inode.is_dir
            if inode.pointer is not None:
                yield _inconsistent(path, f"a {stat.filemode(inode.mode)[0]} with content")
            if rescue is not None:
                rescue.other(path, inode, xattrs)
            return
        self._totals.files += 1
        self._bytes += inode.size
        if inode.pointer is None and rescue is None:
            self._totals.bytes += inode.size
            return
        jobs.start(lambda: self._read(path, inode, xattrs), inode.size)

    def _read(self, path: bytes, inode: Inode, xattrs: list[tuple[bytes, bytes]]) -> list[Finding]:
        """Verify one file; runs in a thread of the pool."""
        replayed = self._replayed(inode.ino)
        tree = replayed or Tree(self._store, inode.root, protection=inode.protection, allocated=inode.chunks)
        try:
            damage: Damage = tree.verify(_MAX_RANGES) if inode.pointer is not None else []
        except OSError as exc:
            return [Finding(path, 0, inode.size, "missing", f"the disk does not give it: {exc.strerror}", None, "file")]
        if not damage and inode.pointer is not None and replayed is None:
            self._slots.add(self._volume, inode.root, path.decode("utf-8", "backslashreplace"), inode.protection)
        lost = sum(length for _, length, _, _, _ in damage)
        if self._salvage is not None:
            self._salvage.file(
                path, inode, xattrs, tree, [(offset, length, kind) for offset, length, kind, _, _ in damage]
            )
        with self._slots.lock:
            self._totals.bytes += inode.size - lost
            self._totals.damaged_bytes += lost
            self._totals.damaged_files += bool(damage)
        found = [
            Finding(path, offset, length, kind, _where(slot, level), slot, "file")
            for offset, length, kind, slot, level in damage
        ]
        if len(damage) >= _MAX_RANGES:
            found.append(
                Finding(path, 0, 0, damage[-1][2], f"only the first {_MAX_RANGES} ranges are listed", None, "file")
            )
        return found

    def _replayed(self, ino: int) -> Tree | None:
        """Return the content of *ino* if the intent log was replayed over it: its row is older."""
        content = self._volume.contents.get(Ino(ino)) if self._volume.replayed else None
        return content.tree if content is not None else None

    def _with_log(self, inode: Inode) -> Inode:
        tree = self._replayed(inode.ino)
        return inode if tree is None else inode._replace(size=tree.size)

    def _unnamed(self, reader: Reader, seen: bytearray, jobs: _Jobs) -> Iterator[Finding]:
        """Read what no name leads to: unlinked while open, or with its name on a damaged page."""
        unlinked = 0
        for inode in reader.inodes():
            if inode.ino == ROOT_INO or _test_and_set(seen, inode.ino):
                continue
            self._inodes += 1
            lost = f"/lost+found/{inode.ino}".encode()
            if inode.nlink == 0:
                unlinked += 1
                if inode.is_file:
                    self._bytes += self._with_log(inode).size
                    if inode.pointer is not None:
                        self._slots.add(self._volume, inode.root, f"inode {inode.ino}", inode.protection)
                continue
            if not self._damaged_namespace and not reader.losses:
                yield Finding(b"", 0, 0, "inconsistent", f"no name leads to inode {inode.ino}", None, "namespace")
            elif inode.is_file or inode.target is not None:
                yield Finding(lost, 0, 0, "missing", f"the name of inode {inode.ino} is lost", None, "file")
            if self._salvage is not None and not inode.is_dir:
                self._salvage.prepare_lost()
                yield from self._content(lost, inode, reader, jobs)
        if unlinked:
            self._totals.notes.append(
                f"{unlinked} unlinked files are still open or wait for the next opening for writing"
            )
        if not self._damaged_namespace and not reader.losses:
            for ino, missing in self._names.items():
                yield _inconsistent(self._volume.path_of(Ino(ino)), f"{missing} of its names are not there")

    def _tick(self) -> None:
        if self._progress is not None:
            finished = self._totals.bytes + self._totals.damaged_bytes
            opened = self._store.stats()["bytes_opened"] - self._opened_before  # moves within large files, too
            self._progress(min(max(finished, opened), self._expected), self._expected)


class _Jobs:
    """Work in threads whose findings are taken in the order in which it was started; bounded.

    Small files go to a thread many at a time.
    """

    def __init__(self, pool: ThreadPoolExecutor, most: int, tick: Callable[[], None]) -> None:
        self._pool = pool
        self._most = most
        self._tick = tick
        self._batch: list[Callable[[], list[Finding]]] = []
        self._batch_bytes = 0
        self._running: deque[Future[list[Finding]]] = deque()

    def start(self, work: Callable[[], list[Finding]], size: int) -> None:
        self._batch.append(work)
        self._batch_bytes += size
        if len(self._batch) >= _BATCH_FILES or self._batch_bytes >= _BATCH_BYTES:
            self._submit()

    def _submit(self) -> None:
        if self._batch:
            self._running.append(self._pool.submit(_run_all, self._batch))
            self._batch, self._batch_bytes = [], 0

    def finished(self, *, everything: bool = False) -> Iterator[Finding]:
        """Return findings of what is done; wait while too much is under way, or for all of it."""
        if everything:
            self._submit()
        while self._running and (everything or len(self._running) >= self._most or self._running[0].done()):
            wait([self._running[0]], _TICK)
            self._tick()
            if self._running[0].done():
                yield from self._running.popleft().result()

    def cancel(self) -> None:
        for job in self._running:
            job.cancel()


def _run_all(batch: list[Callable[[], list[Finding]]]) -> list[Finding]:
    return [finding for work in batch for finding in work()]


def _inconsistent(path: bytes, text: str) -> Finding:
    return Finding(path, 0, 0, "inconsistent", text, None, "file")


def _where(slot: int, level: int) -> str:
    return f"slot {slot}" if level == 0 else f"slot {slot}, a node that leads to all of it (level {level})"


def _test_and_set(bits: bytearray, number: int) -> bool:
    """Set a bit; tell whether it was set before."""
    index, mask = number >> 3, 1 << (number & 7)
    if index >= len(bits):
        bits.extend(bytes(index - len(bits) + 1))
    before = bool(bits[index] & mask)
    bits[index] |= mask
    return before
