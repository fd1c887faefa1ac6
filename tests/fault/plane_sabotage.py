"""Break the data plane's part of a commit on purpose, each time in one way, to see that the crash explorer notices.

What is native cannot be patched: its faults are made where its rows reach the namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from fspf.cas.embedded import EmbeddedCas
from fspf.cas.hot import Ring
from fspf.core.log import Batch
from fspf.volume.commit import Commits
from fspf.volume.inodes import InodeVolume
from fspf.volume.layout import Layout
from fspf.volume.namespace import Namespace
from fspf.volume.volume import Volume
from tests.fault.sabotage import Instead

if TYPE_CHECKING:
    from tests.fault.plane_workload import PlaneSession

_SIZE, _DEPTH, _POINTER, _CHUNKS = 11, 12, 13, 14  # columns of a row


def nothing(_: PlaneSession) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def frees_not_marked(_: PlaneSession) -> Iterator[None]:
    """Let a commit free all that was handed over, also what its state does not know of."""
    attach = Volume.attach_mirror

    def without_marks(self: Volume, mirror: Any) -> None:
        attach(self, mirror)
        mirror.end_marks()

    with mock.patch.object(Volume, "attach_mirror", without_marks):
        yield


def _applied(edit: Callable[[Namespace, list[Any]], None]) -> AbstractContextManager[Any]:
    apply = Namespace.apply

    def edited(self: Namespace, drained: Any) -> None:
        parts = list(drained)
        edit(self, parts)
        apply(self, Batch(*parts))

    patch: AbstractContextManager[Any] = mock.patch.object(Namespace, "apply", edited)
    return patch


def root_noted_before_the_flush(_: PlaneSession) -> AbstractContextManager[Any]:
    """Store the content root as it was before the flush whose frees belong to the state."""
    roots: dict[int, tuple[Any, ...]] = {}

    def edit(_: Namespace, parts: list[Any]) -> None:
        rows = []
        for row in parts[0]:
            old = roots.get(row[0])
            roots[row[0]] = row[_SIZE : _CHUNKS + 1]
            rows.append(row if old is None else (*row[:_SIZE], *old, *row[_CHUNKS + 1 :]))
        parts[0] = rows

    return _applied(edit)


def rename_does_not_flush(session: PlaneSession) -> AbstractContextManager[Any]:
    """Store a new file's first content only with the next commit after its name."""
    seen: set[int] = set()

    def edit(_: Namespace, parts: list[Any]) -> None:
        replaced = {ino for _, ino in session.history.replacing}
        rows = []
        for row in parts[0]:
            late = row[0] in replaced and row[0] not in seen and row[_POINTER] is not None
            seen.add(row[0])
            rows.append((*row[:_SIZE], 0, 0, None, 0, *row[_CHUNKS + 1 :]) if late else row)
        parts[0] = rows

    return _applied(edit)


def deleted_rows_stay(_: PlaneSession) -> AbstractContextManager[Any]:
    """Free the slots of a deleted file, but keep its row."""

    def edit(_: Namespace, parts: list[Any]) -> None:
        parts[3] = []

    return _applied(edit)


def names_are_late(_: PlaneSession) -> AbstractContextManager[Any]:
    """Store new names one drain after their inodes."""
    waiting: list[Any] = []

    def edit(_: Namespace, parts: list[Any]) -> None:
        now, waiting[:] = list(waiting), parts[1]
        parts[1] = now

    return _applied(edit)


@contextmanager
def fsync_without_content(session: PlaneSession) -> Iterator[None]:
    """Commit for an fsync, but do not flush its file."""
    session.fsync_is_fsync = False
    yield


@contextmanager
def commit_without_drain(_: PlaneSession) -> Iterator[None]:
    """Commit what the namespace has, without what the data plane has answered since it was last asked."""
    prepare = Volume._prepare

    def without(self: Volume, everything: bool, closing: bool, inos: set[int]) -> Any:
        drain = self.lock.on_enter
        self.lock.on_enter = None
        try:
            return prepare(self, everything, closing, inos)
        finally:
            self.lock.on_enter = drain

    fsync = Volume.fsync_or_return

    def fsync_without(self: Volume, ino: Any, *, may_return: bool) -> bool:
        drain = self.lock.on_enter
        self.lock.on_enter = None
        try:
            return fsync(self, ino, may_return=may_return)
        finally:
            self.lock.on_enter = drain

    with mock.patch.object(Volume, "_prepare", without), mock.patch.object(Volume, "fsync_or_return", fsync_without):
        yield


# -- one sync for record and anchor: COMMIT.md 9


@contextmanager
def ring_overwrites_unsynced_record(_: PlaneSession) -> Iterator[None]:
    """Forget in the CAS's ring that the volume does not have a record yet."""
    with (
        mock.patch.object(Ring, "settle", lambda self, _generation: self.settle_all()),
        mock.patch.object(EmbeddedCas, "lend_ring", return_value=None),
    ):
        yield


@contextmanager
def lane_overwrites_unsynced_record(_: PlaneSession) -> Iterator[None]:
    """Do not tell the lane which records are needed."""
    lend = Ring.lend

    def without(self: Ring) -> Any:
        length, end, newest, _kept = lend(self)
        return length, end, newest, []

    with mock.patch.object(Ring, "lend", without):
        yield


@contextmanager
def lane_goes_on_beside_others(_: PlaneSession) -> Iterator[None]:
    """Let the lane write records though the control plane has changed what it does not know of."""
    drain = InodeVolume._drain

    def without(self: InodeVolume) -> None:
        mirror = self.mirror
        if mirror is not None:
            self.mirror = Instead(mirror, lane_pause=lambda: None)
        try:
            drain(self)
        finally:
            self.mirror = mirror

    with mock.patch.object(InodeVolume, "_drain", without):
        yield


@contextmanager
def log_never_synced(_: PlaneSession) -> Iterator[None]:
    """Tell the CAS that the log is synced though it is not."""
    with mock.patch.object(Layout, "sync_log"):
        yield


@contextmanager
def records_not_kept(session: PlaneSession) -> Iterator[None]:
    """Leave the record out of what the CAS writes."""
    advance_with = type(session.cas).advance_with  # type: ignore[union-attr]

    def without(self: Any, *arguments: Any, record: bytes, synced: int) -> bool:
        return bool(advance_with(self, *arguments, record=record[:0], synced=synced))

    with mock.patch.object(type(session.cas), "advance_with", without):
        yield


@contextmanager
def lease_ends_before_the_log_is_synced(_: PlaneSession) -> Iterator[None]:
    """Give the lease back, and the CAS's records with it, though the volume lacks some."""

    def release(self: Any) -> None:
        if self._keeper is not None:
            self._keeper.settle(self._volume_id)
        self._cas.release(self._volume_id, self._lease)

    with mock.patch.object(Commits, "release", release):
        yield


KEPT_SABOTAGES: Final[dict[str, tuple[str, str]]] = {  # what to see them with: a workload and a CAS
    "ring_overwrites_unsynced_record": ("plane_fsyncs", "embedded"),
    "lane_overwrites_unsynced_record": ("plane_fsyncs", "embedded"),
    "lane_goes_on_beside_others": ("plane_mixed", "embedded"),
    "log_never_synced": ("plane_fsyncs", "keeping"),
    "records_not_kept": ("plane_fsyncs", "embedded"),
    "lease_ends_before_the_log_is_synced": ("plane_fsyncs", "embedded"),
}

PLANE_SABOTAGES: Final[dict[str, Callable[[PlaneSession], AbstractContextManager[Any]]]] = {
    each.__name__: each
    for each in (
        frees_not_marked,
        root_noted_before_the_flush,
        rename_does_not_flush,
        deleted_rows_stay,
        names_are_late,
        fsync_without_content,
        commit_without_drain,
        ring_overwrites_unsynced_record,
        lane_overwrites_unsynced_record,
        lane_goes_on_beside_others,
        log_never_synced,
        records_not_kept,
        lease_ends_before_the_log_is_synced,
    )
}
