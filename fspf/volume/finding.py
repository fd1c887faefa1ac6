"""What `check` and `scrub` report: one damaged place, and how much was read.

How it is shown is left to the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[int, int | None], None]  # bytes done, bytes expected (None: not known)

KINDS = ("missing", "torn", "tampered", "stale", "inconsistent")


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged byte range.

    Attributes:
        path: Which file, as `scope` says; empty for the namespace and for a file whose name is lost.
        offset: First damaged byte of that file.
        length: Damaged bytes; 0 when the whole file or an attribute of it is meant.
        kind: One of `KINDS`: "missing" (not there), "torn" (checksum wrong: crash or bad disk), "tampered" (checksum
            right, tag wrong), "stale" (authentic but old), "inconsistent" (every tag is right and yet two facts
            contradict each other: a fault of fspf).
        detail: More for people; no plaintext beyond names.
        slot: First slot concerned, if one is.
        scope: What `path` names: "file" in the volume, the "namespace" as a whole, or a file of the volume's
            "directory" on the host.
    """

    path: bytes
    offset: int
    length: int
    kind: str
    detail: str
    slot: int | None = None
    scope: str = "directory"


@dataclass(slots=True)
class Totals:
    """How much a check has read so far; filled while its findings are taken."""

    files: int = 0
    bytes: int = 0  # plain bytes for `verify_volume`, stored bytes for `scrub`
    slots: int = 0
    damaged_files: int = 0
    damaged_bytes: int = 0
    notes: list[str] = field(default_factory=list)


def joined(slots: list[int]) -> list[tuple[int, int]]:
    """Join ascending numbers into (first, count) runs."""
    runs: list[tuple[int, int]] = []
    for slot in slots:
        if runs and runs[-1][0] + runs[-1][1] == slot:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((slot, 1))
    return runs
