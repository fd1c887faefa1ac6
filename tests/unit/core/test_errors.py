"""Each error has the exit code and errno that docs/CLI.md promises."""

from __future__ import annotations

import errno
import inspect

import pytest

from fspf.core import errors
from fspf.core.anchor import NEVER_WRITTEN, Anchor, Holder
from fspf.core.errors import FspfError

HOLDER = Holder("host", "boot", 7, 1, 1, "mount")
TABLE = {
    # class: parent, exit code, errno, retryable
    "FspfError": ("Exception", 1, errno.EIO, False),
    "UsageError": ("FspfError", 2, errno.EINVAL, False),
    "NotAVolumeError": ("FspfError", 1, errno.EIO, False),
    "UnsupportedFormatError": ("FspfError", 1, errno.EIO, False),
    "VolumeExistsError": ("FspfError", 1, errno.EEXIST, False),
    "ReadOnlyError": ("FspfError", 1, errno.EROFS, False),
    "IntegrityError": ("FspfError", 20, errno.EIO, False),
    "FormatError": ("IntegrityError", 20, errno.EIO, False),
    "TornError": ("FormatError", 20, errno.EIO, False),
    "DamagedFileError": ("IntegrityError", 20, errno.EIO, False),
    "FreshnessError": ("IntegrityError", 21, errno.EIO, False),
    "LeaseError": ("FspfError", 22, errno.EBUSY, False),
    "LeaseHeldError": ("LeaseError", 22, errno.EBUSY, True),
    "LeaseLostError": ("LeaseError", 22, errno.EBUSY, False),
    "CasError": ("FspfError", 23, errno.EIO, False),
    "CasUnreachableError": ("CasError", 23, errno.EIO, True),
    "UnknownVolumeError": ("CasError", 23, errno.EIO, False),
    "AnchorMovedError": ("CasError", 23, errno.EIO, False),
    "PolicyError": ("FspfError", 2, errno.EINVAL, False),
    "AccessDeniedError": ("CasError", 23, errno.EACCES, False),
    "AttestationError": ("AccessDeniedError", 23, errno.EACCES, False),
    "ConflictError": ("CasError", 23, errno.EIO, True),
    "RolledBackError": ("CasError", 21, errno.EIO, False),
    "WrongKeyError": ("FspfError", 24, errno.EACCES, False),
}


def test_every_error_is_in_the_table() -> None:
    found = {
        name: (cls.__base__.__name__, cls.exit_code, cls.errno, cls.retryable)
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, FspfError) and cls.__base__ is not None
    }
    assert found == TABLE


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            errors.DamagedFileError(b"/a/\xff", 4096, 8192, "torn"),
            r"'/a/\xff': bytes 4096 to 12287 are torn; the rest of the volume is readable",
        ),
        (
            errors.DamagedFileError(b"", 0, 1, "stale", ino=9),
            "inode 9: bytes 0 to 0 are stale; the rest of the volume is readable",
        ),
        (errors.LeaseHeldError(HOLDER), "the volume is open for writing by host/7 (mount)"),
        (
            errors.AnchorMovedError(NEVER_WRITTEN, Anchor(7, b"\xab" * 16)),
            "the CAS has generation 7 (abababab), no commit was expected: another writer was here; open the volume again",
        ),
    ],
)
def test_message(error: FspfError, text: str) -> None:
    assert str(error) == text


def test_holder_without_a_label() -> None:
    assert str(Holder("host", "boot", 7, 1, 1, "")) == "host/7"
