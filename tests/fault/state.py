"""Is this directory, with this CAS, what a crash may leave? One call answers for one state.

It opens the volume for writing, compares all that can be seen with the model, verifies everything, goes on working
with it, and looks whether any slot was lost or given out twice.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fspf.core.anchor import Cas
from fspf.core.errors import FspfError, IntegrityError, NotAVolumeError
from fspf.core.types import ROOT_INO
from fspf.volume.check import verify_volume
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.fault.slots_truth import slot_problems
from tests.property.model import Seens, differences, tree_in

AFTER = b"written after the crash"
_DATA = bytes(range(256)) * 40  # two chunks and a half


@dataclass(frozen=True, slots=True)
class Expected:
    """What the workload did, as far as it had come.

    Attributes:
        trees: What is seen at each generation.
        acknowledged: Newest generation that an operation promised; 0: `Volume.create` had not returned.
        newest: Newest generation that can be there at all.
    """

    trees: dict[int, Seens]
    acknowledged: int
    newest: int


class ViolationError(AssertionError):
    """A crash would have left this; no crash may."""


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ViolationError(message)


def check_state(path: Path, cas: Cas, expected: Expected, *, thorough: bool = True) -> int:
    """Open the volume after a crash and use it; returns the generation found, 0 if there was none yet.

    Args:
        path: The volume directory; it is changed.
        cas: As of the crash.
        expected: From the model.
        thorough: Also close, compare the space map, reopen and crash once more.

    Raises:
        ViolationError: With what is wrong.
    """
    try:
        volume = Volume.open(path, cas, commit_interval=None)
    except FspfError as exc:
        if expected.acknowledged:
            raise ViolationError(f"does not open: {type(exc).__name__}: {exc}") from exc
        _check_interrupted_creation(path, exc)
        return 0
    try:
        generation = _check_opened(volume, expected)
        _write(volume, 1)
        _check_tree(volume, expected.trees[generation], "after a write and a commit")
        if not thorough:
            volume.abandon()
            return generation
        volume.close()
    except BaseException:
        volume.abandon()
        raise
    _check_closed(path, cas, expected.trees[generation])
    return generation


def _check_interrupted_creation(path: Path, exc: FspfError) -> None:
    """Before `create` has returned there may be nothing, and then it can be made again."""
    interrupted = isinstance(exc, NotAVolumeError) or (
        isinstance(exc, IntegrityError) and "interrupted creation" in str(exc)
    )
    _require(interrupted, f"an interrupted creation gives {type(exc).__name__}: {exc}")
    cas = MemoryCas()
    with Volume.create(path, cas, commit_interval=None, segment_slots=64) as volume:
        _write(volume, 1)
    with Volume.open(path, cas, commit_interval=None) as volume:
        _check_written(volume, 1)
    shutil.rmtree(path)


def _check_opened(volume: Volume, expected: Expected) -> int:
    state = volume.root_record
    assert state is not None
    generation = state.generation
    _require(generation >= expected.acknowledged, f"generation {expected.acknowledged} was promised, {generation} came")
    _require(generation <= expected.newest, f"generation {generation} was never begun, {expected.newest} was the last")
    problems = differences(expected.trees[generation], tree_in(volume))
    _require(not problems, f"generation {generation}: {'; '.join(problems)}")
    rebuild = volume._rebuild
    _require(rebuild is None or rebuild.wait(), f"the space map cannot be rebuilt: {rebuild and rebuild.failure}")
    return generation


def _write(volume: Volume, times: int) -> None:
    """Make a file, or overwrite it, and commit."""
    try:
        ino = volume.lookup(ROOT_INO, AFTER).ino
    except FileNotFoundError:
        ino = volume.mknod(ROOT_INO, AFTER, 0o100600).ino
    with volume.open_file(ino, write=True) as file:
        file.write(0, _DATA * times)
        file.fsync()


def _check_written(volume: Volume, times: int) -> None:
    with volume.open_file(volume.lookup(ROOT_INO, AFTER).ino) as file:
        _require(file.read(0, 1 << 20) == _DATA * times, "what was written after the crash is not there")


def _check_tree(volume: Volume, before: Seens, when: str) -> None:
    actual = tree_in(volume)
    actual.pop(b"/" + AFTER, None)
    root = actual[b""]._replace(mtime_ns=before[b""].mtime_ns, ctime_ns=before[b""].ctime_ns)
    problems = differences(before, {**actual, b"": root})
    _require(not problems, f"{when}: {'; '.join(problems)}")


def _check_closed(path: Path, cas: Cas, before: Seens) -> None:
    with Volume.open(path, cas, read_only=True) as volume:
        _require(not volume.problems, f"after a clean close: {volume.problems}")
        findings = [f"{f.path!r} {f.offset}+{f.length} {f.kind} {f.detail}" for f in verify_volume(volume, threads=1)]
        _require(not findings, f"verify: {findings[:5]}")
        problems = slot_problems(volume)
        _require(not problems, f"slots: {'; '.join(problems)}")
    volume = Volume.open(path, cas, commit_interval=None)
    try:
        _check_written(volume, 1)
        for times in (2, 3, 1):  # the last two thirds stay
            _write(volume, times)
        _check_tree(volume, before, "after reopening and overwriting")
    finally:
        volume.abandon()
    with Volume.open(path, cas, read_only=True) as volume:
        _check_tree(volume, before, "after a second crash")
        _check_written(volume, 3)
