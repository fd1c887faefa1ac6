"""Errors as they go over the wire: problem+json (RFC 9457), from `fspf.core.errors` and back to the same classes.

Logging and counting them is left to server and client.
"""

from __future__ import annotations

from typing import Any, Final

from fspf.cas.tokens import UnauthenticatedError
from fspf.cas.wire import anchor_members, holder_members, to_anchor, to_holder
from fspf.core import errors
from fspf.core.errors import FspfError

MEDIA_TYPE: Final = "application/problem+json"
_PREFIX: Final = "urn:fspf:error:"

# The first class that an error is an instance of decides.
STATUS: Final[tuple[tuple[type[FspfError], int], ...]] = (
    (UnauthenticatedError, 401),
    (errors.AccessDeniedError, 403),
    (errors.UnknownVolumeError, 404),
    (errors.AnchorMovedError, 409),
    (errors.ConflictError, 409),
    (errors.VolumeExistsError, 409),
    (errors.LeaseError, 409),
    (errors.FreshnessError, 409),
    (errors.CasUnreachableError, 503),
    (errors.RolledBackError, 503),
    (errors.CasError, 422),
    (errors.UsageError, 400),
    (errors.PolicyError, 400),
    (errors.IntegrityError, 400),
    (errors.UnsupportedFormatError, 400),
)


class NotHereError(FspfError):
    """The request itself cannot be served: no such path, method, media type, or it is too large."""

    def __init__(self, status: int, message: str, *, allow: str = "") -> None:
        self.status = status
        self.allow = allow  # the methods that there are, with 405
        super().__init__(message)


def status_of(exc: FspfError) -> int:
    """Return the HTTP status of *exc*; 500 means that it is a bug to let it out."""
    if isinstance(exc, NotHereError):
        return exc.status
    return next((status for kind, status in STATUS if isinstance(exc, kind)), 500)


def problem(exc: FspfError) -> dict[str, Any]:
    """Return the members of the problem document."""
    name = "AccessDeniedError" if isinstance(exc, UnauthenticatedError) else type(exc).__name__
    members: dict[str, Any] = {
        "type": _PREFIX + name,
        "title": " ".join((type(exc).__doc__ or "").partition("\n")[0].split()),
        "status": status_of(exc),
        "detail": str(exc),
    }
    if isinstance(exc, UnauthenticatedError):
        members["error"] = exc.code
    if isinstance(exc, errors.LeaseHeldError):
        members["holder"] = holder_members(exc.holder)
    if isinstance(exc, errors.AnchorMovedError):
        members |= {"expected": anchor_members(exc.expected), "found": anchor_members(exc.found)}
    if isinstance(exc, errors.FreshnessError):
        members |= {"expected_generation": exc.expected_generation, "found_generation": exc.found_generation}
    if isinstance(exc, errors.AttestationError):
        members["factor"] = exc.factor
    if isinstance(exc, errors.PolicyError):
        members |= {"line": exc.line, "column": exc.column}
    return members


def to_error(status: int, members: Any) -> FspfError:
    """Return the error that a problem document tells of; a `CasError` if it is of no known kind."""
    if not isinstance(members, dict):
        members = {}
    kind = str(members.get("type", "")).removeprefix(_PREFIX)
    detail = str(members.get("detail", "")) or f"the CAS answered with status {status}"
    try:
        return _same(kind, detail, members, status)
    except (KeyError, TypeError, ValueError, AttributeError):
        return errors.CasError(detail)


def _same(kind: str, detail: str, members: dict[str, Any], status: int) -> FspfError:
    match kind:
        case "LeaseHeldError":
            return errors.LeaseHeldError(to_holder(members["holder"]), detail)
        case "AnchorMovedError":
            return errors.AnchorMovedError(to_anchor(members["expected"]), to_anchor(members["found"]), detail)
        case "FreshnessError":
            expected, found = members["expected_generation"], members["found_generation"]
            return errors.FreshnessError(detail, expected_generation=expected, found_generation=found)
        case "AttestationError":
            factor = members["factor"]
            return errors.AttestationError(factor, detail.removeprefix(f"{factor}: "))
        case "PolicyError":
            line, column = members["line"], members["column"]
            return errors.PolicyError(detail.removeprefix(f"line {line}, column {column}: "), line=line, column=column)
    if status == 401 and "error" in members:
        return UnauthenticatedError(str(members["error"]), detail)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, FspfError):
        return known(detail)
    return errors.CasUnreachableError(detail) if status >= 500 else errors.CasError(detail)
