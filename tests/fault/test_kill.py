"""A real process with the embedded CAS, killed at random instants: the volume opens at once, nothing promised is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fspf.cas import EmbeddedCas
from fspf.core.types import ROOT_INO
from fspf.volume.check import verify_volume
from fspf.volume.volume import Volume
from tests.fault.slots_truth import slot_problems
from tests.fault.victim import FILES, content
from tests.support.iotrace import REPO
from tests.support.logs import Quiet
from tests.support.plugin import NIGHTLY

KILLS = 300 if NIGHTLY else 25
SEED = int(os.environ.get("FSPF_SEED", "1"))


def numbers_in(volume: Volume) -> dict[bytes, int]:
    """Return which round each file is of; a file is of one round as a whole."""
    found = {}
    for entry in volume.readdir(ROOT_INO):
        with volume.open_file(entry.attr.ino) as file:
            data = file.read(0, entry.attr.size)
        number = int(data[:8]) if data else -1
        found[entry.name] = number
        if entry.name != b"new" and number >= 0:  # behind it there may be the rest of a longer round before
            assert data.startswith(content(number)), entry.name
    return found


@pytest.mark.timeout(1200)
def test_killed_at_any_instant(scratch: Path, quiet: Quiet) -> None:
    quiet.allow("root.[ab]: |keyring: |space map")  # torn by the crash; mended
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    path, cas_path = scratch / "v", scratch / "cas.sqlite"
    with EmbeddedCasCloser(cas_path) as cas:
        Volume.create(path, cas, segment_slots=64, commit_interval=None).close()
    first = 0
    promised: tuple[int, int] | None = None
    promises = 0
    for _ in range(KILLS):
        victim = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.victim", str(path), str(cas_path), str(first)],
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert victim.stdout is not None
        if chance.random() < 0.8:  # else it may be killed while it opens the volume
            promised = parse(victim.stdout.readline()) or promised
        time.sleep(chance.random() * 0.15)
        victim.send_signal(signal.SIGKILL)
        for line in victim.stdout.read().splitlines():
            promised = parse(line) or promised
            promises += 1
        victim.stdout.close()
        victim.wait()
        with EmbeddedCasCloser(cas_path) as cas:
            began = time.monotonic()
            volume = Volume.open(path, cas, commit_interval=None)  # at once: the holder of the lease is dead
            assert time.monotonic() - began < 5
            found = numbers_in(volume)
            if promised is not None:
                number, step = promised
                for file_number in range(FILES):
                    least = number if file_number <= step else number - 1
                    assert found.get(b"%d" % file_number, -1) >= least or least < first, (promised, found)
                if step == FILES:
                    assert found[b"renamed"] >= number
                first = number + 1
            volume.close()
            with Volume.open(path, cas, read_only=True) as again:
                assert list(verify_volume(again, threads=1)) == []
                assert slot_problems(again) == []
        promised = None
    assert promises > KILLS


def parse(line: str) -> tuple[int, int] | None:
    parts = line.split()
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 else None


class EmbeddedCasCloser:
    def __init__(self, path: Path) -> None:
        self._cas = EmbeddedCas(str(path))

    def __enter__(self) -> EmbeddedCas:
        return self._cas

    def __exit__(self, *_: object) -> None:
        self._cas.close()
