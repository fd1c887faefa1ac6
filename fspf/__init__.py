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
from fspf.volume import Volume

if TYPE_CHECKING:
    import os

    from fspf.core.anchor import Cas

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


def _cas(cas: str | Cas | None) -> Cas:
    if cas is not None and not isinstance(cas, str):
        return cas
    from fspf.cas import open_cas  # only who names no CAS of his own needs it

    return open_cas(cas)


def create(path: str | bytes | os.PathLike[str], cas: str | Cas | None = None, **options: Any) -> Volume:
    """Make an empty volume at *path* and return it open for writing.

    Args:
        path: A name that does not exist yet, or an empty directory.
        cas: URL or object; None means ``$FSPF_CAS``, or the embedded CAS in the user's data directory.
        options: As `Volume.create` takes them.
    """
    return Volume.create(path, _cas(cas), **options)


def open(  # noqa: A001  # the name a Python user expects
    path: str | bytes | os.PathLike[str],
    cas: str | Cas | None = None,
    *,
    read_only: bool = False,
    **options: Any,
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
    return Volume.open(path, _cas(cas), read_only=read_only, **options)
