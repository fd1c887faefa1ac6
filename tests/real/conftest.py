"""Fixtures for tests on a real mount.

How it is made and ended is in tests/support/mounted.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import Site, make_site


@pytest.fixture
def site(scratch: Path) -> Iterator[Site]:
    """A volume that is not mounted yet."""
    yield from make_site(scratch)


@pytest.fixture
def mnt(site: Site) -> Path:
    """A mounted empty volume."""
    site.mount("allow_other")
    return site.mountpoint
