"""What the data plane has answered, and what of it is in the volume after a commit, a failure or an unmount."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fspf.core.types import ROOT_INO
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.support.fakekernel import ROOT
from tests.support.fakemount import FakeMount

SMALL: dict[str, Any] = {"commit_interval": None}


@pytest.fixture
def cas() -> MemoryCas:
    return MemoryCas()


def test_numbers_that_the_control_plane_takes_are_never_given_again(scratch: Path, cas: MemoryCas) -> None:
    with Volume.create(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        mounted.kernel.symlink(ROOT, b"s", b"target")  # nothing else waits: no drain tells the volume of numbers
    with Volume.open(scratch / "volume", cas, **SMALL) as volume, FakeMount(volume) as mounted:
        made = mounted.kernel.create(ROOT, b"f")
        assert mounted.kernel.lookup(ROOT, b"s").ino != made.ino
    with Volume.open(scratch / "volume", cas, read_only=True) as volume:
        assert volume.readlink(volume.lookup(ROOT_INO, b"s").ino) == b"target"
        assert [entry.name for entry in volume.readdir(ROOT_INO)] == [b"s", b"f"]
