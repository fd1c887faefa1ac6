"""`fspf encrypt` and `fspf decrypt` of whole trees give back every attribute: of real ones, and of odd ones."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Final

import pytest

from tests.support import torture
from tests.support.compare import assert_same, read_tree
from tests.support.mounted import Site

STDLIB: Final = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A CAS and a volume's place, on disk; nothing is mounted, so no FUSE is needed."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # into the tree that is being read
    return Site(tmp_path)


def round_trip(site: Site, source: Path) -> Path:
    """Encrypt *source* and decrypt it; both commands succeed and have nothing to complain of."""
    if os.geteuid() != 0:
        pytest.skip("no-root: restoring owners needs root")
    for words in (("encrypt", source, site.volume), ("decrypt", site.volume, site.root / "out")):
        assert site.run(*words, "--quiet").stderr == ""
    return site.root / "out"


def test_the_standard_library(bare: Site) -> None:
    before = read_tree(STDLIB)
    assert len(before) > 1000
    assert_same(before, round_trip(bare, STDLIB))


def test_everything_odd_but_legal(bare: Site) -> None:
    source = bare.root / "tree"
    left_out = torture.make(source)
    assert all(what.startswith("device nodes") for what in left_out), left_out
    for late in (source / "times").glob("2400*"):  # beyond what a volume keeps; the clamping is tested elsewhere
        os.utime(late, ns=(0, 2**63 - 1), follow_symlinks=False)
    assert_same(source, round_trip(bare, source))
