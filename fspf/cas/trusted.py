"""Reads the directory in which a CAS's operator collects whom to trust.

What its files are and which are refused is `fspf.attestation.trust`'s business.
"""

from __future__ import annotations

import os
from typing import Final

from fspf.attestation import Trust
from fspf.attestation.trust import FOLDERS, trust_from
from fspf.core.errors import UsageError

_MAX_FILES: Final = 10_000
_MAX_FILE: Final = 4 << 20  # bytes; the longest real one is a revocation list of some 100 KiB


def read_trust(directory: str, *, stale_ns: int = 0) -> Trust:
    """Return whom the files of *directory* say to trust; without the directory, the makers' roots only.

    Files whose names begin with a dot are passed over.

    Raises:
        UsageError: A file cannot be read, or is not what its folder is for.
    """
    files: dict[str, bytes] = {}
    try:
        for folder in sorted(os.listdir(directory)):
            if folder.startswith("."):
                continue
            if folder not in FOLDERS:
                raise UsageError(
                    f"{os.path.join(directory, folder)}: a folder of these is expected: {', '.join(FOLDERS)}"
                )
            for name in sorted(os.listdir(os.path.join(directory, folder))):
                if not name.startswith("."):
                    files[f"{folder}/{name}"] = _read(os.path.join(directory, folder, name))
                if len(files) > _MAX_FILES:
                    raise UsageError(f"{directory}: at most {_MAX_FILES} files are expected")
    except FileNotFoundError as exc:
        if exc.filename != directory:
            raise UsageError(f"{exc.filename}: {exc.strerror}") from None
    except OSError as exc:
        raise UsageError(f"{exc.filename}: {exc.strerror}") from None
    return trust_from(files, stale_ns=stale_ns)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise UsageError(f"{path}: at most {_MAX_FILE} bytes are expected")
    return content
