"""Fixtures for every level: scratch directories, and the two checks that no test can forget.

Fixtures for one level (a mounted volume, a traced process) are in that level's own conftest.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import leftovers
from tests.support.logs import Quiet


@pytest.fixture(scope="session")
def scratch_root() -> Iterator[Path]:
    """One directory in memory for this run: fast, and without the disk's own write cache below the tests."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="fspf-test-", dir=base))
    yield root
    mounts = leftovers.mounts_below(str(root))
    for point in mounts:
        leftovers.unmount(point)
    shutil.rmtree(root, ignore_errors=True)
    assert not mounts, f"still mounted at the end of the run: {mounts}"


@pytest.fixture
def scratch(scratch_root: Path) -> Iterator[Path]:
    """An empty directory in memory, gone after the test. For a disk-backed one take `tmp_path`."""
    path = Path(tempfile.mkdtemp(dir=scratch_root))
    yield path
    if not leftovers.mounts_below(str(path)):  # else `_nothing_left_over` speaks first
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def _roots(scratch_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return (str(scratch_root), str(tmp_path_factory.getbasetemp()))


@pytest.fixture(autouse=True)
def _nothing_left_over(_roots: tuple[str, ...], request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a mount, a process or an open file behind has failed.

    What fixtures of a wider scope hold was there before, and stays.
    """
    before = leftovers.Snapshot.take()
    standing = set(leftovers.mounts_below(*_roots))
    yield
    problems = before.end(*_roots, keep=standing)
    if problems:
        pytest.fail("\n".join(["left behind by this test:", *problems]), pytrace=False)


@pytest.fixture(autouse=True)
def quiet(_nothing_left_over: None) -> Iterator[Quiet]:
    """Fail on log messages at WARNING or above that the test did not announce.

    ``quiet.allow(regex)``: may be logged; ``quiet.require(regex)``: must be.
    """
    handler = Quiet()
    logging.getLogger().addHandler(handler)
    try:
        yield handler
    finally:
        logging.getLogger().removeHandler(handler)
    problems = handler.problems()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
