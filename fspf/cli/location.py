"""Split VOLUME:PATH, as the user typed it, into the two.

Opening the volume and finding the path in it is left to the commands.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from fspf.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a volume."""

    volume: str  # directory on the host
    path: bytes | None  # absolute path in the volume; None = the argument had no `:PATH`

    @property
    def inside(self) -> bytes:
        """The path in the volume, `/` if none was given."""
        return b"/" if self.path is None else self.path

    def required(self) -> bytes:
        """Return the path in the volume, or refuse.

        Raises:
            UsageError: None was given.
        """
        if self.path is None:
            message = f"a path inside the volume is needed: {self.volume}:PATH"
            raise UsageError(message)
        return self.path


def parse_location(argument: str) -> Location:
    """Take *argument* apart; the longest prefix that is a directory and ends before a colon (or at the end) is the volume.

    Raises:
        UsageError: It is empty, or contains NUL.
    """
    if not argument or "\0" in argument:
        message = "a volume is needed: VOLUME or VOLUME:PATH"
        raise UsageError(message)
    if os.path.isdir(argument):
        return Location(argument, None)
    colon = argument.rfind(":")
    while colon > 0:
        if os.path.isdir(argument[:colon]):
            return Location(argument[:colon], _absolute(argument[colon + 1 :]))
        colon = argument.rfind(":", 0, colon)
    volume, separator, path = argument.partition(":")
    if not volume or not separator:
        return Location(argument, None)
    return Location(volume, _absolute(path))


def _absolute(path: str) -> bytes:
    """Write a path from the root with single slashes. `..` stays: what it means depends on symbolic links."""
    parts = [part for part in os.fsencode(path).split(b"/") if part not in {b"", b"."}]
    return b"/" + b"/".join(parts)
