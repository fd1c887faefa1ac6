"""Really full disks: a small tmpfs, and a small ext4 in a file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fspf.core.types import ROOT_INO
from fspf.volume.check import verify_volume
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.fault.slots_truth import slot_problems
from tests.support import leftovers
from tests.support.iotrace import REPO
from tests.support.logs import Quiet

MIB = 1 << 20


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of 16 MiB."""
    if os.geteuid():
        pytest.skip("no-root: mounting a small disk")
    point = tmp_path / "disk"
    point.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(point)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(16 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
        command = ["mount", "-o", "loop", str(image), str(point)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"kernel: {request.param} cannot be mounted here: {done.stderr.strip()}")
    try:
        yield point
    finally:
        for mounted in leftovers.mounts_below(str(point)):
            leftovers.unmount(mounted)


def fill(volume: Volume) -> tuple[dict[bytes, bytes], OSError]:
    """Write files until there is no room; what was promised, and the error."""
    promised: dict[bytes, bytes] = {}
    try:
        for number in range(10_000):
            name, data = b"%d" % number, b"%08d" % number * 20_000
            ino = volume.mknod(ROOT_INO, name, 0o100600).ino
            with volume.open_file(ino, write=True) as file:
                file.write(0, data)
                file.fsync()
            promised[name] = data
    except OSError as exc:
        return promised, exc
    pytest.fail("the disk never became full")


def check(volume: Volume, promised: dict[bytes, bytes]) -> None:
    for name, data in promised.items():
        with volume.open_file(volume.lookup(ROOT_INO, name).ino) as file:
            assert file.read(0, len(data) + 1) == data


def test_a_full_disk_is_an_error_and_room_helps(small_disk: Path, quiet: Quiet) -> None:
    quiet.allow("data could not be written|space map could not be saved")
    cas = MemoryCas()
    volume = Volume.create(small_disk / "v", cas, commit_interval=None, segment_slots=256)
    promised, exc = fill(volume)
    assert exc.errno == errno.ENOSPC
    assert len(promised) > 30
    assert volume.failed is None
    check(volume, promised)
    # Names and attributes still change: that is what the reserve is for.
    volume.rename(ROOT_INO, b"1", ROOT_INO, b"renamed")
    promised[b"renamed"] = promised.pop(b"1")
    for name in (b"2", b"3", b"4", b"5", b"6"):
        volume.unlink(ROOT_INO, name)
        del promised[name]
    volume.fsync()
    volume.store.trim()
    # What was deleted makes room.
    ino = volume.mknod(ROOT_INO, b"again", 0o100600).ino
    with volume.open_file(ino, write=True) as file:
        file.write(0, b"again" * 30_000)
        file.fsync()
    promised[b"again"] = b"again" * 30_000
    check(volume, promised)
    volume.abandon()
    volume = Volume.open(small_disk / "v", cas, commit_interval=None)
    check(volume, promised)
    volume.close()
    with Volume.open(small_disk / "v", cas, read_only=True) as again:
        assert list(verify_volume(again, threads=1)) == []
        if again.root_record is not None and again.root_record.space_map is not None:
            assert slot_problems(again) == []


def test_a_full_disk_can_be_emptied_completely(small_disk: Path, quiet: Quiet) -> None:
    quiet.allow("data could not be written|space map could not be saved")
    cas = MemoryCas()
    volume = Volume.create(small_disk / "v", cas, commit_interval=None, segment_slots=256)
    promised, _ = fill(volume)
    for name in promised:
        volume.unlink(ROOT_INO, name)
        volume.fsync()
    volume.store.trim()
    again, exc = fill(volume) if (small := volume.readdir(ROOT_INO)) == [] else (None, small)
    if again is None:  # the file at which the disk became full still has its name
        for entry in volume.readdir(ROOT_INO):
            volume.unlink(ROOT_INO, entry.name)
        volume.commit()
        again, exc = fill(volume)
    assert isinstance(exc, OSError)
    assert len(again) >= len(promised) * 0.8
    for name in again:
        volume.unlink(ROOT_INO, name)
    volume.commit()
    volume.close()


def test_a_volume_that_is_full_opens_after_a_crash(small_disk: Path, quiet: Quiet) -> None:
    quiet.allow("data could not be written|space map could not be saved")
    cas = MemoryCas()
    volume = Volume.create(small_disk / "v", cas, commit_interval=None, segment_slots=256)
    promised, _ = fill(volume)
    volume.abandon()
    with (small_disk / "filler").open("wb", buffering=0) as filler:  # not one byte is left
        with suppress(OSError):
            while filler.write(bytes(4096)):
                pass
    with Volume.open(small_disk / "v", cas, read_only=True) as reader:
        check(reader, promised)
    (small_disk / "filler").unlink()
    volume = Volume.open(small_disk / "v", cas, commit_interval=None)
    check(volume, promised)
    for name in promised:
        volume.unlink(ROOT_INO, name)
    volume.commit()
    volume.close()


def test_encrypt_onto_a_full_disk_says_so(small_disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        (source / str(number)).write_bytes(os.urandom(MIB))
    cas = f"sqlite://{tmp_path}/cas.sqlite"
    command = [sys.executable, "-m", "fspf", "encrypt", str(source), str(small_disk / "v"), "--cas", cas]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "space" in done.stderr.lower()
