"""FSPF: a transparent file-system shield. Ordinary files, sealed storage, no altered or older state is ever accepted.

This is the library's front; mounting (`fspf.mount`) and the command line (`fspf.cli`) are not loaded by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fspf.core.errors import (
    CasError,
    DamagedFileError,
    FreshnessError,
    FspfError,
    IntegrityError,
    LeaseError,
    WrongKeyError,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from fspf.core.anchor import Cas
    from fspf.volume.volume import Volume

from fspf._version import __version__

__all__ = [
    "CasError",
    "DamagedFileError",
    "FreshnessError",
    "FspfError",
    "IntegrityError",
    "LeaseError",
    "Volume",
    "WrongKeyError",
    "__version__",
    "create",
    "open",
]


def __getattr__(name: str) -> object:
    """Load the engine when it is first asked for: `fspf --version` and `fspf.core` do without."""
    if name == "Volume":
        from fspf.volume.volume import Volume

        return Volume
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def _with_cas(cas: str | Cas | None, action: Callable[[Cas], Volume]) -> Volume:
    """Do *action* with the caller's CAS, or with one that is opened here and closed with the volume."""
    if cas is not None and not isinstance(cas, str):
        return action(cas)
    from fspf.cas import open_cas

    opened = open_cas(cas)
    try:
        volume = action(opened)
    except BaseException:
        opened.close()
        raise
    volume.own_cas()
    return volume


def create(path: str | bytes | os.PathLike[str], cas: str | Cas | None = None, **options: Any) -> Volume:
    """Make an empty volume at *path* and return it open for writing.

    Args:
        path: A name that does not exist yet, or an empty directory.
        cas: URL or object; None means ``$FSPF_CAS``, or the embedded CAS in the user's data directory.
        options: As `Volume.create` takes them.
    """
    from fspf.volume.volume import Volume

    return _with_cas(cas, lambda opened: Volume.create(path, opened, **options))


def open(  # noqa: A001  # the name a Python user expects
    path: str | bytes | os.PathLike[str], cas: str | Cas | None = None, *, read_only: bool = False, **options: Any
) -> Volume:
    """Open the newest state of the volume at *path*.

    Args:
        path: The volume directory.
        cas: URL or object; None means ``$FSPF_CAS``, or the embedded CAS in the user's data directory.
        read_only: Take no lease and change nothing.
        options: As `Volume.open` takes them.

    Raises:
        FspfError: Nothing was changed; the class says whether bytes, freshness, lease, CAS or key are wrong.
    """
    from fspf.volume.volume import Volume

    return _with_cas(cas, lambda opened: Volume.open(path, opened, read_only=read_only, **options))
