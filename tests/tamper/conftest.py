"""The specimens, made once for all tests of this level.

What they hold is in `specimens`.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tamper.explorer import Tally
from tests.tamper.specimens import Specimen, build, build_spread


@pytest.fixture(scope="session")
def specimens(scratch_root: Path) -> Iterator[dict[str, Specimen]]:
    where = Path(tempfile.mkdtemp(dir=scratch_root, prefix="specimens-"))
    level = logging.getLogger("fspf").level
    logging.getLogger("fspf").setLevel(logging.CRITICAL)
    try:
        made = build(where)
        made["spread"] = build_spread(where)
    finally:
        logging.getLogger("fspf").setLevel(level)
    yield made
    shutil.rmtree(where, ignore_errors=True)


@pytest.fixture(scope="session")
def grand_total() -> Tally:
    """What all tests of this run did together."""
    return Tally()


@pytest.fixture(autouse=True)
def _damage_is_logged() -> Iterator[None]:
    """Thousands of damaged volumes log thousands of warnings; what is raised is what these tests look at."""
    logger = logging.getLogger("fspf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)
