"""Break the commit on purpose, each time in one way, to see that the crash explorer notices.

Each is a context manager that patches the engine of this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final
from unittest import mock

from fspf.core.anchor import Anchor
from fspf.volume import layout as layout_module
from fspf.volume.commit import Commits, Prepared
from fspf.volume.layout import Layout


class Instead:
    """An object (or a module) some of whose attributes are others."""

    def __init__(self, original: Any, **replaced: Callable[..., Any]) -> None:
        self._original = original
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(self._original, name)


@contextmanager
def commits_with(make: Callable[[Any], Any]) -> Iterator[None]:
    """Give every writer's commits another store."""
    original = Commits.__init__

    def init(self: Commits, **arguments: Any) -> None:
        original(self, **{**arguments, "store": make(arguments["store"])})

    with mock.patch.object(Commits, "__init__", init):
        yield


def segments_not_synced() -> AbstractContextManager[None]:
    """Write the root record though the blocks were never synced."""
    return commits_with(lambda store: Instead(store, sync=lambda: 0))


@contextmanager
def root_before_sync() -> Iterator[None]:
    """Sync the blocks only after the root record was written."""
    late: list[Callable[[], int]] = []

    def make(store: Any) -> Any:
        late[:] = [store.sync]
        return Instead(store, sync=lambda: 0)

    write_root = Commits._write_root

    def write_then_sync(self: Commits, prepared: Prepared, *, log_follows: bool) -> Anchor:
        anchor = write_root(self, prepared, log_follows=log_follows)
        late[0]()
        return anchor

    with commits_with(make), mock.patch.object(Commits, "_write_root", write_then_sync):
        yield


def freed_too_early() -> AbstractContextManager[None]:
    """Give freed slots out again before the commit that freed them is anchored."""

    def make(store: Any) -> Any:
        def begin() -> int:
            number = int(store.commit_begin())
            store.commit_anchored(number)
            return number

        return Instead(store, commit_begin=begin)

    # `commit_begin` is called by the volume on its own store, so it is the volume's that is replaced.
    return _volume_store(make)


@contextmanager
def _volume_store(make: Callable[[Any], Any]) -> Iterator[None]:
    from fspf.volume.volume import Volume

    prepare = Volume._prepare

    def with_other(self: Volume, everything: bool, closing: bool, inos: set[int]) -> Prepared | None:
        store = self.store
        self.store = make(store)
        try:
            return prepare(self, everything, closing, inos)
        finally:
            self.store = store

    with mock.patch.object(Volume, "_prepare", with_other):
        yield


@contextmanager
def root_not_synced() -> Iterator[None]:
    """Tell the CAS of a root record that was never synced."""
    with mock.patch.object(layout_module, "os", Instead(os, fdatasync=lambda _: None)):
        yield


@contextmanager
def keyring_not_synced() -> Iterator[None]:
    """Seal under an epoch key that is not durable."""
    append = Layout.append_keyring

    def unsynced(self: Layout, *arguments: Any) -> None:
        with mock.patch.object(layout_module, "os", Instead(os, fsync=lambda _: None)):
            append(self, *arguments)

    with mock.patch.object(Layout, "append_keyring", unsynced):
        yield


def one_root_file() -> AbstractContextManager[None]:
    """Overwrite the newest root record instead of the one before."""
    patch: AbstractContextManager[Any] = mock.patch.object(layout_module, "ROOT_NAMES", ("root.a", "root.a"))
    return patch


SABOTAGES: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    each.__name__: each
    for each in (
        segments_not_synced,
        root_before_sync,
        freed_too_early,
        root_not_synced,
        keyring_not_synced,
        one_root_file,
    )
}


def by_name(name: str) -> AbstractContextManager[Any]:
    """Return the sabotage of that name; none for an empty name."""
    return SABOTAGES[name]() if name else nullcontext()
