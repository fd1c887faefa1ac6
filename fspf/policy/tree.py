"""YAML text to a tree of texts, lists and mappings that know their line and column, in bounded time and memory.

A scalar is the text that is written: what it means is decided by whoever reads it (`sections`), never by how it looks.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import yaml

from fspf.core.errors import PolicyError
from fspf.policy.model import NOWHERE, Place

MAX_LEN: Final = 512 << 10  # bytes of a document
MAX_NODES: Final = 20_000  # scalars, lists and mappings
MAX_DEPTH: Final = 24
MAX_SHOWN: Final = 40  # characters of the document in a message
_HASH_LABEL: Final = b"fspf policy 1\0"


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar."""

    text: str
    place: Place
    plain: bool = True  # without quotes


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    items: tuple[Node, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping, in the order of the document."""

    pairs: Mapping[str, tuple[Text, Node]]  # key -> where it stands, its value
    place: Place

    def __contains__(self, key: str) -> bool:
        return key in self.pairs

    def get(self, key: str) -> Node | None:
        """Return the value of *key*."""
        pair = self.pairs.get(key)
        return None if pair is None else pair[1]

    def place_of(self, key: str) -> Place:
        """Return where *key* stands, or the mapping if it has none."""
        pair = self.pairs.get(key)
        return self.place if pair is None else pair[0].place


Node: TypeAlias = Text | Items | Pairs


def refuse(place: Place, message: str) -> NoReturn:
    """Raise `PolicyError` about *place*."""
    raise trouble(place, message)


def trouble(place: Place, message: str) -> PolicyError:
    """Return a `PolicyError` about *place*."""
    return PolicyError(message, line=place.line, column=place.column)


def shown(text: str) -> str:
    """Quote what the document says, shortened: it may be hostile."""
    return repr(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean …?` if a known word is close, else what is known."""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word[:MAX_SHOWN].lower(), lower, n=1)
    if close:
        return f"; did you mean {lower[close[0]]}?"
    return f"; known are {', '.join(sorted(known))}" if known else ""


# -- from text


def read_tree(text: bytes) -> Node:
    """Parse *text*, which must hold one document without anchors, aliases, tags and directives.

    Raises:
        PolicyError: It is too large, no UTF-8, no YAML, or more than the subset of it that policies use.
    """
    if len(text) > MAX_LEN:
        raise PolicyError(f"a policy has at most {MAX_LEN} bytes, this one has {len(text)}")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = text.count(b"\n", 0, exc.start) + 1
        column = exc.start - (text.rfind(b"\n", 0, exc.start) + 1) + 1
        raise PolicyError("a policy is UTF-8 text, this is none", line=line, column=column) from None
    if "\0" in decoded:
        at = decoded.index("\0")
        line = decoded.count("\n", 0, at) + 1
        raise PolicyError("a zero byte is no part of a text", line=line, column=at - decoded.rfind("\n", 0, at))
    return _Builder(decoded).document()


class _Builder:
    """Makes the tree of one document from libyaml's events, and stops at the first thing that must not be."""

    def __init__(self, text: str) -> None:
        self._events = _events(text)
        self._nodes = 0

    def document(self) -> Node:
        event = next(self._events, None)
        if event is None:
            raise PolicyError("the policy is empty")
        root = self._node(event, 1)
        for more in self._events:
            refuse(_at(more), "one document is expected, here begins another")
        return root

    def _node(self, event: yaml.Event, depth: int) -> Node:
        place = _at(event)
        self._nodes += 1
        if self._nodes > MAX_NODES:
            refuse(place, f"a policy has at most {MAX_NODES} values")
        if depth > MAX_DEPTH:
            refuse(place, f"lists and mappings are nested at most {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            refuse(place, "aliases (*name) are not allowed: write the value out")
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            refuse(place, "anchors (&name) are not allowed: write the value out")
        if getattr(event, "tag", None) is not None:
            refuse(place, "tags (!name) are not allowed: what a value is depends on its key")
        if isinstance(event, yaml.ScalarEvent):
            if "\0" in event.value:
                refuse(place, "a zero byte is no part of a text")
            return Text(event.value, place, plain=event.style is None or event.style == "")
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(tuple(self._items(depth)), place)
        assert isinstance(event, yaml.MappingStartEvent)
        return Pairs(self._pairs(depth), place)

    def _items(self, depth: int) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                return
            yield self._node(event, depth + 1)

    def _pairs(self, depth: int) -> dict[str, tuple[Text, Node]]:
        pairs: dict[str, tuple[Text, Node]] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._node(event, depth + 1)
            if not isinstance(key, Text):
                refuse(key.place, "a key is a text")
            if key.text in pairs:
                refuse(key.place, f"{shown(key.text)} stands here twice, first in line {pairs[key.text][0].place.line}")
            pairs[key.text] = (key, self._node(next(self._events), depth + 1))
        return pairs


def _events(text: str) -> Iterator[yaml.Event]:
    """Yield the events of nodes; everything that libyaml refuses becomes a `PolicyError`."""
    parser = yaml.CSafeLoader(text)  # only its events are used: it constructs nothing
    try:
        while True:
            event = parser.get_event()
            if event is None or isinstance(event, yaml.StreamEndEvent):
                return
            if isinstance(event, yaml.DocumentStartEvent) and (event.version or event.tags):
                refuse(_at(event), "directives (%YAML, %TAG) are not allowed")
            if not isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent | yaml.DocumentEndEvent):
                yield event
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        what = " ".join(str(part) for part in (exc.context, exc.problem) if part)
        place = NOWHERE if mark is None else Place(mark.line + 1, mark.column + 1)
        raise PolicyError(f"no YAML: {what}", line=place.line, column=place.column) from None
    except yaml.reader.ReaderError as exc:
        line, column = _position(text, exc.position)
        raise PolicyError(f"no YAML: {exc.reason}", line=line, column=column) from None
    finally:
        parser.dispose()


def _position(text: str, offset: int) -> tuple[int, int]:
    """Return line and column of a byte offset, as libyaml's reader tells it."""
    before = text.encode("utf-8")[: max(offset, 0)].decode("utf-8", "ignore")
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _at(event: yaml.Event) -> Place:
    mark = event.start_mark
    assert mark is not None
    return Place(mark.line + 1, mark.column + 1)


# -- to one canonical form


def to_plain(node: Node) -> Any:
    """Return the tree as texts, lists and dictionaries."""
    if isinstance(node, Text):
        return node.text
    if isinstance(node, Items):
        return [to_plain(item) for item in node.items]
    return {key: to_plain(value) for key, (_, value) in node.pairs.items()}


def canonical(node: Node) -> bytes:
    """Encode what the document says, whatever its layout, comments, quotes and order of keys: docs/POLICY.md, hash."""
    return json.dumps(to_plain(node), ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode("ascii")


def tree_hash(node: Node) -> str:
    """Return the hash that names this version of a policy."""
    return hashlib.sha256(_HASH_LABEL + canonical(node)).hexdigest()
