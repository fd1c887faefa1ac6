"""What `-o` may say about a mount, read once and checked.

Carrying the options out is left to `session` and `daemon`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_FLAGS: Final = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "atime": ("atime", True),
    "relatime": ("atime", True),
    "noatime": ("atime", False),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "exec": ("exec", True),
    "noexec": ("exec", False),
    "nonempty": ("nonempty", True),
}
_IGNORED: Final = frozenset({"defaults", "auto", "noauto", "nofail", "_netdev"})  # for fstab's readers, not for us
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MIN_CACHE_BYTES: Final = 1 << 20
VALUES: Final = ("commit", "cache", "fsname")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a volume is mounted.

    Attributes:
        atime: Keep access times as relatime does.
        suid, dev: Honour set-user-id bits and device nodes; for root only.
        nonempty: The mountpoint may hold something, which the mount then hides.
        commit_interval_s: Seconds between commits by the clock.
        cache_bytes: Memory for nodes of content trees.
        fsname: What mount(8) shows as the source; empty: fspf#VOLUME.
    """

    read_only: bool = False
    allow_other: bool = False
    atime: bool = True
    suid: bool = False
    dev: bool = False
    exec: bool = True
    nonempty: bool = False
    commit_interval_s: float = 5.0
    cache_bytes: int = 32 << 20
    fsname: str = ""
    words: tuple[str, ...] = field(default=(), compare=False)  # as given, for `fspf status`


def parse_options(texts: Iterable[str], *, is_root: bool) -> MountOptions:
    """Read the values of all `-o`; the last of two that contradict each other counts.

    Raises:
        UsageError: An option is unknown, lacks its value, or is not for this user.
    """
    settings: dict[str, bool | float | int | str] = {}
    words = [word for text in texts for word in text.split(",") if word]
    for word in words:
        name, separator, value = word.partition("=")
        if name in _FLAGS and not separator:
            attribute, setting = _FLAGS[name]
            settings[attribute] = setting
        elif name == "commit" and separator:
            settings["commit_interval_s"] = _seconds(value)
        elif name == "cache" and separator:
            settings["cache_bytes"] = _bytes(value)
        elif name == "fsname" and separator and value.isprintable():
            settings["fsname"] = value
        elif word in _IGNORED or name.startswith("x-"):
            continue
        else:
            known = ", ".join([*_FLAGS, *(f"{each}=" for each in VALUES)])
            raise UsageError(f"unknown mount option {word!r}: there are {known}")
    if not is_root and (settings.get("suid") or settings.get("dev")):
        raise UsageError("the mount options suid and dev are for root")
    return MountOptions(**settings, words=tuple(words))  # type: ignore[arg-type]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 86400:  # also refuses nan
        raise UsageError(f"commit={text}: seconds from 0.01 to 86400 are expected")
    return seconds


def _bytes(text: str) -> int:
    digits = text.rstrip("kKmMgG")
    unit = text[len(digits) :].lower()
    if not (digits.isascii() and digits.isdecimal() and unit in _UNITS):
        raise UsageError(f"cache={text}: a size such as 64M is expected")
    size = int(digits) * _UNITS[unit]
    if not MIN_CACHE_BYTES <= size <= 1 << 40:
        raise UsageError(f"cache={text}: at least 1M is expected")
    return size
