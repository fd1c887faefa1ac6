"""Compare a volume's bytes with their checksums: no key, no CAS, no plaintext.

It finds what a bad disk or a crash did. What an attacker did, and what is old, only `fspf.volume.check` can tell.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from array import array
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Final

import xxhash

from fspf.core.errors import FormatError, IntegrityError, TornError
from fspf.core.format import (
    CHECKSUM_ENTRY_LEN,
    KEYRING_RECORD_LEN,
    ROOT_LEN,
    ROOT_NAMES,
    KeyringRecord,
    RootFrame,
)
from fspf.volume.finding import Finding, Progress, Totals, joined
from fspf.volume.layout import HEADER, KEYRING, KEYRING_BACKUP, LOCK, SEGMENTS, Layout, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEGMENT_NAME: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)
_RUN: Final = 4 << 20  # bytes in one read
_MAX_SMALL_FILE: Final = 64 << 20  # bytes; a keyring of a million sessions
_STRAY_GAP: Final = 1024  # segments, as in fspf_native/segments.c
_SECOND_LOOKS: Final = 5
_PAUSE: Final = 0.05  # seconds between looks at a slot that a writer is just writing
_EPOCH_MASK: Final = (1 << 24) - 1  # FORMAT.md 5: epoch in the low three bytes of the second word


def scrub(
    path: str | bytes | os.PathLike[str], progress: Progress | None = None, totals: Totals | None = None
) -> Iterator[Finding]:
    """Check header, keyring, root records and every slot that was ever written and not freed.

    Works beside a live writer: a slot that looks torn is looked at again until it holds still.

    Args:
        path: The volume's directory.
        progress: Told how many stored bytes are done.
        totals: Filled in while findings are taken; its notes tell what the findings cannot.

    Raises:
        NotAVolumeError: There is nothing of a volume.
        UnsupportedFormatError: It is of a newer format.
    """
    return _Scrub(Path(os.fsdecode(path)), progress or _no_progress, totals if totals is not None else Totals()).run()


def scrub_directory(path: str | bytes | os.PathLike[str], totals: Totals | None = None) -> Iterator[Finding]:
    """Check header, keyring and root records only."""
    return _Scrub(Path(os.fsdecode(path)), _no_progress, totals if totals is not None else Totals()).small_files()


def _no_progress(done: int, total: int | None) -> None:
    """Show nothing."""


def writer_is_live(volume: Path) -> bool:
    """Tell whether a writer on this machine has the volume open."""
    try:
        fd = os.open(volume / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)


class _Scrub:
    """One pass over one volume."""

    def __init__(self, volume: Path, progress: Progress, totals: Totals) -> None:
        self._volume = volume
        self._progress = progress
        self._totals = totals
        self._expected = 0
        self._newest_epoch = 0
        self._leftovers = 0
        self._chunk_size = 0
        self._segment_slots = 0

    def run(self) -> Iterator[Finding]:
        yield from self.small_files()
        yield from self._segments()
        if self._leftovers:
            self._totals.notes.append(
                f"{self._leftovers} torn slots belong to the newest epoch ({self._newest_epoch}): if its writer crashed, they may be "
                "what it had not committed, which nothing refers to and the next opening for writing cleans up; "
                "fspf verify tells whether anything is lost"
            )
        if writer_is_live(self._volume):
            self._totals.notes.append(
                "the volume is open for writing on this machine; what it wrote meanwhile was not looked at"
            )

    # -- the small files

    def small_files(self) -> Iterator[Finding]:
        yield from self._header()
        yield from self._keyring()
        yield from self._roots()

    def _header(self) -> Iterator[Finding]:
        try:
            header, _ = Layout(self._volume).read_header()
        except TornError as exc:
            yield Finding(HEADER.encode(), 0, 0, "torn", str(exc))
        except FormatError as exc:
            yield Finding(HEADER.encode(), 0, 0, "tampered", str(exc))
        except IntegrityError as exc:
            yield Finding(HEADER.encode(), 0, 0, "missing", str(exc))
        else:
            self._chunk_size, self._segment_slots = header.chunk_size, header.segment_slots
            self._totals.files += 1

    def _keyring(self) -> Iterator[Finding]:
        copies = [self._small_file(name) for name in (KEYRING, KEYRING_BACKUP)]
        longest = max((len(copy) for copy in copies if copy is not None), default=0)
        for name, copy in zip((KEYRING, KEYRING_BACKUP), copies, strict=True):
            if copy is None:
                yield Finding(name.encode(), 0, 0, "missing", "this copy of the keyring is not there")
                continue
            self._totals.files += 1
            self._totals.bytes += len(copy)
            for offset in range(0, len(copy), KEYRING_RECORD_LEN):
                try:
                    record = KeyringRecord.parse(copy[offset : offset + KEYRING_RECORD_LEN])
                except TornError as exc:
                    yield Finding(name.encode(), offset, KEYRING_RECORD_LEN, "torn", str(exc))
                except FormatError as exc:
                    yield Finding(name.encode(), offset, KEYRING_RECORD_LEN, "tampered", str(exc))
                else:
                    self._newest_epoch = max(self._newest_epoch, record.epoch)
            whole = len(copy) - len(copy) % KEYRING_RECORD_LEN
            if whole + KEYRING_RECORD_LEN <= longest or not longest:
                text = f"{longest or KEYRING_RECORD_LEN} bytes expected, {len(copy)} found"
                yield Finding(name.encode(), len(copy), max(longest - len(copy), 0), "missing", text)

    def _roots(self) -> Iterator[Finding]:
        absent: list[str] = []
        epochs: list[int] = []
        for name in ROOT_NAMES:
            raw = self._small_file(name)
            if raw is None or (name == ROOT_NAMES[0] and self._newest_epoch <= 1 and not any(raw)):
                absent.append(name)
                continue
            self._totals.files += 1
            self._totals.bytes += len(raw)
            try:
                epochs.append(RootFrame.parse(raw).epoch)
            except TornError as exc:
                text = f"{exc}; a commit that a crash cut off looks the same"
                yield Finding(name.encode(), 0, ROOT_LEN, "torn", text)
            except FormatError as exc:
                yield Finding(name.encode(), 0, ROOT_LEN, "tampered", str(exc))
        self._newest_epoch = max(self._newest_epoch, *epochs, 0)
        for name in absent:
            if name == ROOT_NAMES[0] and self._newest_epoch <= 1:
                self._totals.notes.append(f"{name} is not there, as it must be while a new volume has one commit only")
            else:
                yield Finding(name.encode(), 0, ROOT_LEN, "missing", "this root record is not there")

    def _small_file(self, name: str) -> bytes | None:
        try:
            with BufferedReader(open_regular(self._volume / name)) as file:
                return file.read(_MAX_SMALL_FILE)
        except FileNotFoundError:
            return None

    # -- segments

    def _segments(self) -> Iterator[Finding]:
        directory = self._volume / SEGMENTS
        try:
            Layout(self._volume).check_segments()
            sizes = {
                int(e.name, 16): e.stat(follow_symlinks=False).st_size
                for e in os.scandir(directory)
                if _SEGMENT_NAME.fullmatch(e.name)
            }
        except IntegrityError:
            yield Finding(SEGMENTS.encode(), 0, 0, "missing", "the directory of the segments is not there")
            return
        self._drop_strays(sizes)
        if not self._chunk_size:
            self._guess_geometry(sizes)
        if not self._chunk_size:
            if sizes:
                self._totals.notes.append(
                    "without a header and a whole segment the size of a slot is unknown: no segment was read"
                )
            return
        length = self._segment_slots * (self._chunk_size + CHECKSUM_ENTRY_LEN)
        self._expected = sum(min(os.lstat(directory / f"{n:08x}").st_blocks * 512, size) for n, size in sizes.items())
        for number in range(max(sizes, default=-1) + 1):
            name = f"{SEGMENTS}/{number:08x}".encode()
            first = number * self._segment_slots
            if number not in sizes:
                yield Finding(name, 0, length, "missing", "the segment is not there", first)
                continue
            self._totals.files += 1
            if sizes[number] > length:
                text = f"{length} bytes expected, {sizes[number]} found"
                yield Finding(name, length, sizes[number] - length, "torn", text)
            if sizes[number] < length:
                text = (
                    f"{length} bytes expected, {sizes[number]} found: cut off, and with it the checksums of its slots"
                )
                yield Finding(name, sizes[number], length - sizes[number], "missing", text, first)
            yield from self._segment(name, number)
        self._progress(self._expected, self._expected)

    def _drop_strays(self, sizes: dict[int, int]) -> None:
        """Leave out files far above the others: segments are made one after another, so these are not the volume's."""
        end = 0
        for number in sorted(sizes):
            if number >= end + _STRAY_GAP:
                del sizes[number]
                self._totals.notes.append(f"{SEGMENTS}/{number:08x} does not belong to the volume, it was not read")
            else:
                end = number + 1

    def _guess_geometry(self, sizes: dict[int, int]) -> None:
        """Find out chunk size and slots from the length of a whole segment: no two pairs give the same."""
        for size in sizes.values():
            for chunk_size in (4096, 8192, 16384, 32768, 65536):
                slots, rest = divmod(size, chunk_size + CHECKSUM_ENTRY_LEN)
                if not rest and slots >= 64 and slots & (slots - 1) == 0:
                    self._chunk_size, self._segment_slots = chunk_size, slots
                    self._totals.notes.append(
                        f"the header is damaged; {chunk_size}-byte slots, {slots} a segment, were concluded from the segments"
                    )
                    return

    def _segment(self, name: bytes, number: int) -> Iterator[Finding]:
        path = self._volume / os.fsdecode(name)
        try:
            file = open_regular(path)
        except OSError as exc:
            yield Finding(name, 0, 0, "missing", f"cannot be opened: {exc.strerror}", number * self._segment_slots)
            return
        with file:
            fd = file.fileno()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            unreadable: list[int] = []
            entries = self._table(fd)
            if entries is None:
                text = "its table of checksums cannot be read"
                yield Finding(name, self._segment_slots * self._chunk_size, 0, "missing", text)
                return
            torn = [slot for slot in self._differing(fd, entries, unreadable) if not self._settles(fd, slot)]
        for kind, slots, why in (
            ("missing", unreadable, "cannot be read from the disk"),
            ("torn", torn, "checksum is wrong"),
        ):
            for first, count in joined(slots):
                newest = sum(
                    entries[2 * s + 1] & _EPOCH_MASK == self._newest_epoch for s in range(first, first + count)
                )
                self._leftovers += newest if kind == "torn" else 0
                slot = number * self._segment_slots + first
                text = f"slot {slot}" if count == 1 else f"slots {slot} to {slot + count - 1}"
                yield Finding(name, first * self._chunk_size, count * self._chunk_size, kind, f"{text}: {why}", slot)

    def _table(self, fd: int) -> array[int] | None:
        """Return the table as words: checksum and hint of each slot in turn; what is cut off reads as never written."""
        length = self._segment_slots * CHECKSUM_ENTRY_LEN
        try:
            raw = os.pread(fd, length, self._segment_slots * self._chunk_size)
        except OSError:
            return None
        words = array("Q")
        words.frombytes(raw + bytes(length - len(raw)))
        if sys.byteorder == "big":
            words.byteswap()
        return words

    def _differing(self, fd: int, entries: array[int], unreadable: list[int]) -> Iterator[int]:
        """Read all written slots in big runs; return those whose checksum differs."""
        used = [slot for slot in range(self._segment_slots) if entries[2 * slot] or entries[2 * slot + 1]]
        most = max(_RUN // self._chunk_size, 1)
        buffer = memoryview(bytearray(most * self._chunk_size))
        size, digest = self._chunk_size, xxhash.xxh3_64_intdigest
        for start, count in joined(used):
            for first in range(start, start + count, most):
                here = min(most, start + count - first)
                try:
                    got = os.preadv(fd, [buffer[: here * size]], first * size)
                except OSError:
                    yield from self._one_by_one(fd, range(first, first + here), entries, unreadable)
                    continue
                for index in range(here):
                    if (index + 1) * size > got:
                        unreadable.append(first + index)
                    elif digest(buffer[index * size : (index + 1) * size]) != entries[2 * (first + index)]:
                        yield first + index
                self._totals.slots += here
                self._totals.bytes += got
                self._progress(min(self._totals.bytes, self._expected), self._expected)

    def _one_by_one(self, fd: int, slots: range, entries: array[int], unreadable: list[int]) -> Iterator[int]:
        for slot in slots:
            try:
                data = os.pread(fd, self._chunk_size, slot * self._chunk_size)
            except OSError:
                data = b""
            self._totals.slots += 1
            self._totals.bytes += len(data)
            if len(data) < self._chunk_size:
                unreadable.append(slot)
            elif xxhash.xxh3_64_intdigest(data) != entries[2 * slot]:
                yield slot

    def _settles(self, fd: int, slot: int) -> bool:
        """Look again at a slot that a live writer may have been writing; False: it is torn."""
        if not writer_is_live(self._volume):
            return False
        place = self._segment_slots * self._chunk_size + slot * CHECKSUM_ENTRY_LEN
        for _ in range(_SECOND_LOOKS):
            entry = os.pread(fd, CHECKSUM_ENTRY_LEN, place)
            data = os.pread(fd, self._chunk_size, slot * self._chunk_size)
            if not any(entry) or xxhash.xxh3_64_intdigest(data) == int.from_bytes(entry[:8], "little"):
                return True
            time.sleep(_PAUSE)
        return False
