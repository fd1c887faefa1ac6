"""What xfstests, fsx and LTP check of data: mappings, direct I/O, many writers, holes, limits (generic/ 013, 069, 075,
091, 112, 130, 198, 208, 209, 213, 214, 228, 238, 240, 241, 263, 285, 286, 309, 338, 394, 422, 432, 438, 445, 490, 551).

Random sequences are in tests/real: test_fsx.py, test_stress.py, test_equality.py.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.posix.conftest import Place
from tests.support.posix import ALICE, KEEP_SIZE, PUNCH_HOLE, fallocate, make, mode_of, opened, tick, times


def test_times_of_change_survive(d: Path, fs: Place) -> None:
    """Kernel and mount both take the time of a fallocate(2); once in a hundred times the clock ticks between."""
    files = [d / str(number) for number in range(600)]
    for file in files:
        file.touch()
    tick()
    for file in files:
        with opened(file) as descriptor:
            fallocate(descriptor, KEEP_SIZE | PUNCH_HOLE, 0, 5000)
    before = [times(file) for file in files]
    fs.remount()
    after = [times(file) for file in files]
    assert [old[1:] for old in before] == [new[1:] for new in after]


def test_chown_to_nobody_clears_set_id(d: Path) -> None:
    """It changes no owner, so that the request says nothing of one; only the file's owner may."""
    path = make("file", d / "x", 0o6755)
    ALICE.gets(errno.EPERM, os.chown, path, -1, -1)
    assert mode_of(path) == 0o6755
    os.chown(path, -1, -1)
    assert mode_of(path) == 0o755
