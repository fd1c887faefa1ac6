"""What a case is: a named alteration of a volume, and what opening must then do.

The cases themselves are in `small` (header, keyring, roots), `large` (segments) and `blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tools.lib.tampering.anatomy import Anatomy
from tools.lib.tampering.patient import Patient

Snapshot = dict[str, bytes]  # content of every file of a volume at one time, by name
# tree, level, offset of a block -> all that it ever was -> number of the commit, entry of the checksum table
Versions = dict[tuple[str, int, int], dict[bytes, tuple[int, bytes]]]


@dataclass(frozen=True, slots=True)
class Refused:
    """Opening must be refused with this class (or one derived from it) and exit code."""

    error: str
    exit_code: int
    text: str = ""  # must be in the message


TORN: Final = Refused("TornError", 20)
FORMAT: Final = Refused("FormatError", 20, "checksum is right")
INTEGRITY: Final = Refused("IntegrityError", 20)
STALE: Final = Refused("FreshnessError", 21)
NEWER: Final = Refused("UnsupportedFormatError", 1, "newer fspf")
UNKNOWN: Final = Refused("UnknownVolumeError", 23)
WRONG_KEY: Final = Refused("WrongKeyError", 24)


@dataclass(frozen=True, slots=True)
class Case:
    """One alteration.

    Attributes:
        name: Unique; says what is done to what.
        group: For counting.
        apply: Does it.
        expected: Refused, or None: the volume opens, and exactly what hangs on altered blocks cannot be read.
        previous: The state before the newest one is what opens (the newest was not anchored).
    """

    name: str
    group: str
    apply: Callable[[Patient], object]
    expected: Refused | None = None
    previous: bool = False


@dataclass(slots=True)
class Material:
    """What alterations are made from besides the volume itself.

    Attributes:
        older: The volume's files after each earlier commit, oldest first.
        other: Another volume of the same shape, taken apart; the CAS knows it.
        stranger: A header of a volume that the CAS does not know.
        ahead: The newest state is one commit ahead of its anchor.
        versions: What each block was after earlier commits, wherever it lay then.
    """

    older: list[Snapshot] = field(default_factory=list)
    other: Anatomy | None = None
    stranger: bytes = b""
    ahead: bool = False
    versions: Versions = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """A way to change the bytes of one field."""

    name: str
    make: Callable[[bytes], bytes]


def _flip(place: int, bit: int) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[place] ^= bit
        return bytes(changed)

    return make


FIELD_CHANGES: Final = (
    Change("first bit flipped", _flip(0, 0x01)),
    Change("first byte's high bit flipped", _flip(0, 0x80)),
    Change("last bit flipped", _flip(-1, 0x80)),
    Change("last byte's low bit flipped", _flip(-1, 0x01)),
    Change("zeroed", lambda data: bytes(len(data))),
    Change("all ones", lambda data: b"\xff" * len(data)),
)
