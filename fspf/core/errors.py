"""Every error of FSPF: what its message says, its exit code, its errno, and whether to try again.

Raising them, and turning them into exit codes or FUSE replies, is left to the other packages.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from fspf.core.anchor import Anchor, Holder


class FspfError(Exception):
    """Base of all errors that FSPF raises on purpose.

    `str()` says what was expected, what was found and what to do, in one line without a full stop.
    """

    exit_code: ClassVar[int] = 1
    errno: ClassVar[int] = errno.EIO
    retryable: ClassVar[bool] = False  # nothing was changed and the same call may succeed later


class UsageError(FspfError):
    """The caller asked for something that makes no sense."""

    exit_code = 2
    errno = errno.EINVAL


class NotAVolumeError(FspfError):
    """The directory holds nothing of a volume."""


class UnsupportedFormatError(FspfError):
    """The bytes are whole but of a newer format than this program knows."""


class VolumeExistsError(FspfError):
    """There is a volume (or a record of one) where a new one was to be made."""

    errno = errno.EEXIST


class ReadOnlyError(FspfError):
    """A change was asked of something that was opened for reading, or turned read-only."""

    errno = errno.EROFS


class IntegrityError(FspfError):
    """The host's bytes are not those that were written."""

    exit_code = 20


class FormatError(IntegrityError):
    """The bytes are no encoding of any value: with a right checksum, somebody made them."""


class TornError(FormatError):
    """The checksum is wrong or the end is missing: a crash or a bad disk rather than an attacker."""


class DamagedFileError(IntegrityError):
    """A byte range of one file cannot be read as it was written; everything else stays readable.

    Attributes:
        path: Path in the volume, for people.
        ino: Inode, 0 if not known.
        offset: First damaged byte.
        length: Number of damaged bytes.
        kind: "missing", "torn", "stale" or "tampered", as `fspf_native.ChunkError` names it.
    """

    def __init__(self, path: bytes, offset: int, length: int, kind: str, *, ino: int = 0) -> None:
        self.path = path
        self.ino = ino
        self.offset = offset
        self.length = length
        self.kind = kind
        name = repr(path)[1:] if path else f"inode {ino}"
        super().__init__(
            f"{name}: bytes {offset} to {offset + length - 1} are {kind}; the rest of the volume is readable"
        )


class FreshnessError(IntegrityError):
    """The bytes are authentic but not the newest state, or not of the anchored history."""

    exit_code = 21

    def __init__(self, message: str, *, expected_generation: int, found_generation: int) -> None:
        self.expected_generation = expected_generation
        self.found_generation = found_generation
        super().__init__(message)


class LeaseError(FspfError):
    """The right to write is not ours."""

    exit_code = 22
    errno = errno.EBUSY


class LeaseHeldError(LeaseError):
    """Another writer has the volume; `holder` says who."""

    retryable = True

    def __init__(self, holder: Holder, message: str = "") -> None:
        self.holder = holder
        super().__init__(message or f"the volume is open for writing by {holder}")


class LeaseLostError(LeaseError):
    """The lease that this writer had was ended, or given to another."""


class CasError(FspfError):
    """The CAS answered, and the answer is no."""

    exit_code = 23


class CasUnreachableError(CasError):
    """The CAS gave no answer; a change that was under way may or may not have happened."""

    retryable = True


class UnknownVolumeError(CasError):
    """The CAS has no record of this volume."""


class AnchorMovedError(CasError):
    """The anchor (or the epoch) in the CAS is not what the caller last saw."""

    def __init__(self, expected: Anchor, found: Anchor, message: str = "") -> None:
        self.expected = expected
        self.found = found
        super().__init__(
            message or f"the CAS has {found}, {expected} was expected: another writer was here; open the volume again"
        )


class PolicyError(FspfError):
    """A policy (or what goes with one: a signature, a placeholder, a secret's value) is not valid.

    Attributes:
        line, column: 1-based place in the document, 0 if there is none.
    """

    exit_code = 2
    errno = errno.EINVAL

    def __init__(self, message: str, *, line: int = 0, column: int = 0) -> None:
        self.line = line
        self.column = column
        super().__init__(f"line {line}, column {column}: {message}" if line else message)


class AccessDeniedError(CasError):
    """Who asks may not: no token, an expired or stolen one, or an access policy that does not name him."""

    errno = errno.EACCES


class AttestationError(AccessDeniedError):
    """The evidence does not show what the policy asks for.

    Attributes:
        factor: Which part failed, as the policy names it (`mrenclave`, `tpm.pcrs.11`, `signature` …).
    """

    def __init__(self, factor: str, message: str) -> None:
        self.factor = factor
        super().__init__(f"{factor}: {message}")


class ConflictError(CasError):
    """Somebody was faster, or the thing exists already: read it again, then repeat."""

    retryable = True


class RolledBackError(CasError):
    """The CAS's own store is older than its counter says: it refuses to serve."""

    exit_code = 21


class WrongKeyError(FspfError):
    """The key, key file or passphrase does not open what it was used on."""

    exit_code = 24
    errno = errno.EACCES
