"""The same system calls on ext4, on a mount whose requests C answers, and on one where Python answers all of them.

Every answer and the tree that is left must be the same; ext4 says which side is right (tests/support/sequence.py).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounted import Site, make_site
from tests.support.plugin import NIGHTLY
from tests.support.posix import umask
from tests.support.programs import on_ext4
from tests.support.sequence import NOT_IN_PYFUSE3, Answer, Sequence
from tests.support.snapshot import Seen, differences, snapshot

pytestmark = pytest.mark.timeout(3600 if NIGHTLY else 300)

STEPS: Final = 300
SEEDS: Final = 300 if NIGHTLY else 4
AS_EXT4: Final = ("allow_other", "suid", "dev")
# Times and numbers are each run's own, and space is counted in each file system's way.
OWN: Final = ("ino", "mtime_ns", "ctime_ns", "blocks")


@pytest.fixture
def ext4() -> Iterator[Path]:
    if not on_ext4():
        pytest.skip("filesystem: /var/tmp is not ext4")
    root = Path(tempfile.mkdtemp(prefix="fspf-equal-", dir="/var/tmp"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def sites(scratch: Path) -> Iterator[tuple[Site, Site]]:
    (scratch / "fast").mkdir()
    (scratch / "slow").mkdir()
    for fast in make_site(scratch / "fast"):
        for slow in make_site(scratch / "slow"):
            scratch.parent.chmod(0o711)
            fast.open_to_others()
            slow.open_to_others()
            yield fast, slow


def run(root: Path, seed: int, without: frozenset[str]) -> tuple[list[Answer], dict[bytes, Seen]]:
    root.mkdir()
    with umask(0o022):
        answers = Sequence(root, seed, without=without).run(STEPS)
    return answers, tidy(snapshot(root))


def tidy(tree: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """Leave out what directories say of their size."""
    return {
        name: Seen(seen.ino, seen.mode, seen.nlink, seen.uid, seen.gid, seen.rdev, 0 if seen.mode & 0o40000 and not seen.mode & 0o100000 else seen.size,
                   seen.blocks, seen.mtime_ns, seen.ctime_ns, seen.xattrs, seen.content)
        for name, seen in tree.items()
    }  # fmt: skip


def without_order(answers: list[Answer]) -> list[Answer]:
    """Sort what readdir(3) gave: a file system has an order of its own."""
    return [
        (text, (sorted(answer[0]), answer[1]))
        if text.startswith("list ") and isinstance(answer, tuple) and isinstance(answer[0], list)
        else (text, answer)
        for text, answer in answers
    ]


def compare(kind: str, one: list[Answer], other: list[Answer]) -> list[str]:
    """List the first differences, with the calls that led there."""
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        if left != right:
            before = [f"    {text}: {answer!s:.150}" for text, answer in one[max(0, number - 12) : number]]
            return [f"{kind}, call {number}, {left[0]}:\n  {left[1]!r:.300}\n  {right[1]!r:.300}\n", *before]
    return []


@pytest.mark.parametrize("seed", range(SEEDS))
def test_three_times_the_same(sites: tuple[Site, Site], ext4: Path, seed: int) -> None:
    fast, slow = sites
    fast.mount(*AS_EXT4)
    slow.mount(*AS_EXT4, "nonative")
    problems = []
    for name, without in (("common", NOT_IN_PYFUSE3), ("all", frozenset[str]())):
        right, right_tree = run(ext4 / name, seed, without)
        native, native_tree = run(fast.mountpoint / name, seed, without)
        problems += compare(f"{name}: ext4, native", without_order(right), without_order(native))
        problems += differences(right_tree, native_tree, *OWN)
        if without:
            python, python_tree = run(slow.mountpoint / name, seed, without)
            problems += compare(f"{name}: native, nonative", native, python)
            problems += differences(native_tree, python_tree, *OWN)
    before = snapshot(fast.mountpoint / "all")
    fast.umount()
    fast.run("verify", fast.volume)
    fast.mount(*AS_EXT4)
    problems += differences(before, snapshot(fast.mountpoint / "all"), "blocks", "mtime_ns", "ctime_ns")
    assert not problems, "\n".join(f"{problem:.600}" for problem in problems[:30])
