"""The names and words that a mount and its clients share.

Answering is left to `control`, asking to `client`.
"""

from __future__ import annotations

from typing import Any, Final

from fspf.core.errors import FspfError

STATUS: Final = b"user.fspf.status"  # read it: a JSON document
CONTROL: Final = b"user.fspf.control"  # write a command into it


def describe(exc: BaseException) -> dict[str, Any]:
    """Return an error as JSON members, for another process to raise again."""
    if isinstance(exc, FspfError):
        return {"message": str(exc), "exit_code": exc.exit_code, "retryable": exc.retryable}
    if isinstance(exc, OSError) and exc.strerror:
        name = f"{exc.filename}: " if isinstance(exc.filename, str) else ""
        return {"message": f"{name}{exc.strerror}", "exit_code": 1, "retryable": False}
    return {"message": f"internal error: {type(exc).__name__}: {exc}", "exit_code": 1, "retryable": False}


class ReportedError(FspfError):
    """What `describe` told in another process; exit code and words are that error's."""

    def __init__(self, message: str, *, exit_code: int = 1, retryable: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # each one has the code of the error it tells of
        self.retryable = retryable  # type: ignore[misc]
