"""Random operations on files of which every byte is compared with a copy in memory: tests/support/fsx.c.

It runs on ext4 too, which vouches for it. To do a failure again: the seed and the flags are in its first line, the
operations that led to it below.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from fspf.core.types import ROOT_INO
from tests.support.mounted import Site
from tests.support.plugin import NIGHTLY
from tests.support.programs import compiled, on_ext4

pytestmark = pytest.mark.timeout(3600 if NIGHTLY else 300)

STEPS: Final = 200_000 if NIGHTLY else 1500
ROUNDS: Final = 10 if NIGHTLY else 2
WINDOWS: Final = {  # name of the file → size and beginning of the part that is used
    "small": (64 << 10, 0),
    "odd": (300_000, 0),
    "large": (4 << 20, 0),
    "across 4 GiB": (1 << 20, (4 << 30) - (512 << 10)),
    "across 1 TiB": (256 << 10, (1 << 40) - (100 << 10)),
}
# What each option is for; what to leave out: pyfuse3 knows no fallocate and no copy_file_range.
OPTIONS: Final = {
    "native": ((), ""),
    "often committed": (("commit=20ms",), ""),
    "nonative": (("nonative",), "ap"),
    "nouring": (("nouring",), ""),
    "little memory": (("cache=16M",), ""),
    "nowhere to read": (("noatime", "nospin"), "rmk"),
}


@pytest.fixture
def fsx(scratch_root: Path) -> Path:
    return compiled("fsx", scratch_root)


def several_at_once(fsx: Path, root: Path, models: Path, seed: int, without: str = "") -> None:
    """Work on each window in a process of its own, going on from what *models* has of earlier rounds."""
    running = []
    for number, (name, (size, base)) in enumerate(WINDOWS.items()):
        model = models / f"{name}.model"
        command = [fsx, "-s", str(seed * 100 + number), "-n", str(STEPS), "-m", str(size), "-b", str(base), "-o", model]
        command += ["-x", without] if without else []
        command += ["-i", model] if model.exists() else []
        running.append(
            subprocess.Popen(
                [*map(str, command), str(root / name)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [each.communicate()[0] for each in running]
    failures = [output for each, output in zip(running, outputs, strict=True) if each.returncode != 0]
    print(*outputs)
    assert not failures, "\n".join(failures)


def test_on_ext4(fsx: Path, scratch: Path) -> None:
    if not on_ext4():
        pytest.skip("filesystem: /var/tmp is not ext4")
    with tempfile.TemporaryDirectory(prefix="fspf-fsx-", dir="/var/tmp") as root:
        for seed in range(ROUNDS):
            several_at_once(fsx, Path(root), scratch, seed)


@pytest.mark.parametrize("options", OPTIONS)
def test_on_a_mount(fsx: Path, site: Site, scratch: Path, options: str) -> None:
    words, without = OPTIONS[options]
    for seed in range(ROUNDS):
        site.mount(*words)
        several_at_once(fsx, site.mountpoint, scratch, seed + sum(map(ord, options)), without)
        site.umount()
    site.run("verify", site.volume)


def test_on_mounts_of_several_kinds(fsx: Path, site: Site, scratch: Path) -> None:
    """What one kind of mount wrote is the next one's to go on with."""
    for seed, options in enumerate(OPTIONS, 7000):
        words, without = OPTIONS[options]
        site.mount(*words)
        several_at_once(fsx, site.mountpoint, scratch, seed, without)
        site.umount()
    with site.library() as volume:
        for name, (_, base) in WINDOWS.items():
            size, model = read_model(scratch / f"{name}.model")
            with volume.open_file(volume.lookup(ROOT_INO, name.encode()).ino) as file:
                assert file.read(base, size) == model


def read_model(path: Path) -> tuple[int, bytes]:
    raw = path.read_bytes()
    return int.from_bytes(raw[:8], "little"), raw[8:]


def test_it_finds_a_wrong_byte(fsx: Path, scratch: Path) -> None:
    """A test that cannot fail says nothing."""
    model, file = scratch / "model", scratch / "file"
    command: list[str | Path] = [fsx, "-s", "1", "-n", "50", "-m", "65536", "-x", "p", "-o", model, file]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    size, content = read_model(model)
    assert content == file.read_bytes()
    with file.open("r+b") as changed:
        changed.seek(size // 2)
        changed.write(bytes([content[size // 2] ^ 1]))
    done = subprocess.run([*command[:-3], "-i", model, file], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"byte {size // 2} is" in done.stderr
