from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.stores import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    directory = tmp_path / "segments"
    directory.mkdir()
    return Disk(directory)


@pytest.fixture
def make_disk(tmp_path: Path) -> Callable[..., Disk]:
    def make(name: str = "segments", **options: int) -> Disk:
        directory = tmp_path / name
        directory.mkdir()
        return Disk(directory, **options)  # type: ignore[arg-type]

    return make
