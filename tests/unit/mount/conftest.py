"""Volumes for the data plane's tests: in memory, with a CAS in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fspf.volume.check import verify_volume
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas


@pytest.fixture
def cas() -> MemoryCas:
    return MemoryCas()


@pytest.fixture
def volume(scratch: Path, cas: MemoryCas) -> Iterator[Volume]:
    with Volume.create(scratch / "volume", cas, commit_interval=None) as made:
        yield made


@pytest.fixture
def assert_sound(volume: Volume, cas: MemoryCas) -> Callable[[], None]:
    """Close the volume and let everything in it be verified."""

    def check() -> None:
        path = volume.path
        volume.close()
        with Volume.open(path, cas, read_only=True) as again:
            assert list(verify_volume(again)) == []

    return check
