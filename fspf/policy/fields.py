"""Readers of single values in a policy: names, paths, numbers, durations, digits; each refuses with line and column.

Which keys there are, and which value they have, is said in `sections`, `boards` and `document`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import Final, TypeVar

from fspf.policy.tree import Items, Node, Pairs, Text, nearest, refuse, shown

MAX_NAME: Final = 100  # characters of one name, or of one part of a policy's
MAX_POLICY_NAME: Final = 200
MAX_PARTS: Final = 8  # of a policy's name, between slashes
MAX_PATH: Final = 4095
MAX_SECONDS: Final = 100 * 365 * 86400

_NAME: Final = re.compile(r"[A-Za-z0-9_\-.~]+", re.ASCII)
_DIGITS: Final = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_OCTAL: Final = re.compile(r"(?:0o?)?([0-7]{3})", re.ASCII)
_DURATION: Final = re.compile(r"([1-9][0-9]{0,9})\s*(second|minute|hour|day|week|year)s?", re.ASCII)
_UNITS: Final = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 7 * 86400, "year": 365 * 86400}
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


# -- what holds values


def pairs(node: Node, what: str, known: Collection[str], required: Collection[str] = ()) -> Pairs:
    """Return *node* as a mapping that has no unknown key and every required one."""
    found = mapping(node, what)
    for key, (where, _) in found.pairs.items():
        if key not in known:
            refuse(where.place, f"{what} has no key {shown(key)}{nearest(key, sorted(known))}")
    for key in sorted(required):
        if key not in found:
            refuse(found.place, f"{what} needs the key {key}")
    return found


def mapping(node: Node, what: str) -> Pairs:
    """Return *node* as a mapping."""
    if not isinstance(node, Pairs):
        refuse(node.place, f"{what} is a mapping (key: value), not {_kind(node)}")
    return node


def items(node: Node, what: str, at_least: int = 0) -> tuple[Node, ...]:
    """Return the items of *node*, a list."""
    if not isinstance(node, Items):
        refuse(node.place, f"{what} is a list, not {_kind(node)}")
    if len(node.items) < at_least:
        refuse(node.place, f"{what} needs at least {at_least} {'item' if at_least == 1 else 'items'}")
    return node.items


def each(node: Node | None, what: str, read: Callable[[Node], T], at_least: int = 0) -> tuple[T, ...]:
    """Read every item of a list; nothing if there is no list."""
    return () if node is None else tuple(read(item) for item in items(node, what, at_least))


def optional(node: Node | None, read: Callable[[Node], T]) -> T | None:
    """Read a value that need not be there."""
    return None if node is None else read(node)


# -- scalars


def scalar(node: Node, what: str) -> Text:
    """Return *node* as a scalar that is there."""
    if not isinstance(node, Text):
        refuse(node.place, f"{what} is a text, not {_kind(node)}")
    if node.plain and node.text in _NULLS:
        refuse(node.place, f'{what} is missing; an empty text is ""')
    return node


def text(node: Node, what: str, *, empty: bool = True) -> str:
    """Return a text."""
    found = scalar(node, what).text
    if not empty and not found:
        refuse(node.place, f"{what} is empty")
    return found


def line_of_text(node: Node, what: str, longest: int = 1000) -> str:
    """Return a text that is not empty, has one line and is fit to be shown."""
    found = text(node, what, empty=False)
    if len(found) > longest:
        refuse(node.place, f"{what} has at most {longest} characters")
    if not found.isprintable():
        refuse(node.place, f"{what} is one line of printable characters")
    return found


def name(node: Node, what: str) -> str:
    """Return a name without slashes."""
    found = text(node, what)
    if len(found) > MAX_NAME or not _NAME.fullmatch(found) or found in {".", ".."}:
        refuse(node.place, f"{what} has 1 to {MAX_NAME} of A-Z a-z 0-9 _ - . ~, {shown(found)} is none")
    return found


def policy_name(node: Node, what: str) -> str:
    """Return the name of a policy."""
    found = text(node, what)
    problem = policy_name_problem(found)
    if problem:
        refuse(node.place, f"{what} {problem}, {shown(found)} is none")
    return found


def policy_name_problem(found: str) -> str | None:
    """Say what is wrong with the name of a policy, if anything is."""
    parts = found.split("/")
    if len(found) > MAX_POLICY_NAME or len(parts) > MAX_PARTS:
        return f"has at most {MAX_POLICY_NAME} characters and {MAX_PARTS} parts"
    if any(len(part) > MAX_NAME or not _NAME.fullmatch(part) or part in {".", ".."} for part in parts):
        return "is made of A-Z a-z 0-9 _ - . ~ and of / between parts that are not empty"
    return None


def absolute_path(node: Node, what: str) -> str:
    """Return a path from the root that leads nowhere else than it seems to."""
    found = text(node, what)
    parts = found.split("/")
    if not found.startswith("/"):
        refuse(node.place, f"{what} begins with /")
    if len(found.encode("utf-8", "surrogatepass")) > MAX_PATH or any(len(part.encode()) > 255 for part in parts):
        refuse(node.place, f"{what} is too long")
    if ".." in parts or "." in parts or "" in parts[1:-1]:
        refuse(node.place, f"{what} has no . and .. and no // in it, {shown(found)} has")
    if not found.isprintable():
        refuse(node.place, f"{what} has only printable characters")
    return found.rstrip("/") or "/"


def hex_digits(node: Node, what: str, length: int) -> str:
    """Return *length* bytes in hex, in lower case."""
    found = text(node, what)
    if len(found) != 2 * length or not re.fullmatch(r"[0-9A-Fa-f]+", found, re.ASCII):
        refuse(node.place, f"{what} has {2 * length} hex digits, {shown(found)} has not")
    return found.lower()


def integer(node: Node, what: str, least: int, most: int) -> int:
    """Return a whole number in decimal digits."""
    found = text(node, what)
    if not _DIGITS.fullmatch(found) or not least <= int(found) <= most:
        refuse(node.place, f"{what} is a number from {least} to {most}, {shown(found)} is none")
    return int(found)


def boolean(node: Node, what: str) -> bool:
    """Return true or false; yes, on and 1 are not among them."""
    found = text(node, what)
    if found not in _TRUE | _FALSE:
        refuse(node.place, f"{what} is true or false, not {shown(found)}")
    return found in _TRUE


def permission(node: Node, what: str) -> int:
    """Return permission bits. Digits are octal with or without 0o before them: 0o400, 0400 and 400 are the same."""
    found = text(node, what)
    match = _OCTAL.fullmatch(found)
    if match is None:
        refuse(node.place, f"{what} has three octal digits, as 0o400 or 400; {shown(found)} has not")
    return int(match[1], 8)


def duration(node: Node, what: str) -> int:
    """Return a duration in seconds."""
    found = text(node, what)
    match = _DURATION.fullmatch(found)
    seconds = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= MAX_SECONDS:
        refuse(node.place, f"{what} is a duration such as 90 days, 12 hours or 1 year, {shown(found)} is none")
    return seconds


def choice(node: Node, what: str, of: type[E], *, but: Mapping[E, str] | None = None) -> E:
    """Return a word of an enumeration, except those that are excluded here for a reason."""
    found = text(node, what)
    try:
        value = of(found)
    except ValueError:
        refuse(node.place, f"{what} {shown(found)} is unknown{nearest(found, list(of))}")
    if but and value in but:
        refuse(node.place, f"{what} is not {value} here: {but[value]}")
    return value


def _kind(node: Node) -> str:
    return "a text" if isinstance(node, Text) else "a list" if isinstance(node, Items) else "a mapping"
