"""What the protocol's model is made of: records, a volume's disk, messages. Values without keys or ciphers.

A record is authentic by being there: the model's adversary copies and mixes files, but seals nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from fspf.core.anchor import Anchor, Holder

VOLUME_ID: Final = bytes(range(16))
LOG_SLOTS: Final = 3  # records that the model's log holds: small, so that it is soon full

Outcome = tuple[Any, ...]  # ("ok", value) or ("no", name of the error's class, its arguments)
OK: Final[Outcome] = ("ok", None)


@dataclass(frozen=True, slots=True)
class Record:
    """A root record, or a record of the intent log, as far as freshness goes."""

    generation: int
    epoch: int
    previous_tag: bytes
    tag: bytes
    log_follows: bool
    is_root: bool
    key_version: int = 1
    volume_id: bytes = VOLUME_ID


@dataclass(frozen=True, slots=True)
class Disk:
    """A volume's directory; None is a torn or missing record."""

    roots: tuple[Record | None, Record | None]  # root.a, root.b
    log: tuple[Record | None, ...] = (None,) * LOG_SLOTS

    def with_root(self, parity: int, record: Record | None) -> Disk:
        roots = (record, self.roots[1]) if parity == 0 else (self.roots[0], record)
        return Disk(roots, self.log)

    def with_log(self, offset: int, record: Record | None) -> Disk:
        return Disk(self.roots, (*self.log[:offset], record, *self.log[offset + 1 :]))


class Found(NamedTuple):
    """What `fspf.core.log.follow` returns, in the model."""

    records: tuple[Record, ...]
    problem: str
    missing: tuple[Any, ...] = ()


def follow(disk: Disk, *, epoch: int, generation: int, tag: bytes) -> Found:
    """Return the records that continue a root, as FORMAT.md says it of the log."""
    records: list[Record] = []
    for record in disk.log:
        if record is None or record.epoch != epoch or record.previous_tag != tag or record.generation != generation + 1:
            break
        records.append(record)
        generation, tag = record.generation, record.tag
    return Found(tuple(records), "")


class Call(NamedTuple):
    """One call of the CAS by one client; names the messages that belong to it."""

    client: int
    incarnation: int
    number: int


class Request(NamedTuple):
    call: Call
    method: str
    arguments: tuple[Any, ...]


class Reply(NamedTuple):
    call: Call
    outcome: Outcome


def holder_of(process: int, incarnation: int) -> Holder:
    """Name a process: `pid_start` tells its lives apart."""
    return Holder(f"host{process}", "boot", 100 + process, incarnation, 1, "")


def opening_of(holder: Holder, writer: tuple[int, int, int], number: int) -> Holder:
    """Name one try of one opening in a process. Really it is a random number; here it is one that is nobody else's."""
    client, _, openings = writer
    return replace(holder, opening=(client << 32) + (openings << 16) + number)


def new_tag(previous: bytes, *, epoch: int, generation: int, is_root: bool, writer: tuple[int, int, int]) -> bytes:
    """Return the tag that this writer's next record gets. Nonces make the tags of two writers differ; here their names do.

    A function of what is known, so that states reached by different ways are seen to be the same.
    """
    text = repr((previous, epoch, generation, is_root, writer)).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


class Lineage:
    """Which state was made out of which; the truth that no adversary sees or changes."""

    def __init__(self) -> None:
        self._of: dict[bytes, tuple[bytes, int]] = {}  # tag -> tag before, generation
        self._epochs: dict[bytes, int] = {}

    def add(self, record: Record) -> None:
        self._of[record.tag] = (record.previous_tag, record.generation)
        self._epochs[record.tag] = record.epoch

    def epoch_of(self, tag: bytes) -> int:
        """Return the epoch in which a state was written."""
        return self._epochs[tag]

    def holds(self, older: bytes, newer: bytes) -> bool:
        """Tell whether the state *newer* has all that *older* has."""
        if older not in self._of or newer not in self._of:
            return False
        generation = self._of[older][1]
        while newer != older:
            if newer not in self._of or self._of[newer][1] <= generation:
                return False
            newer = self._of[newer][0]
        return True


def anchor_of(record: Record) -> Anchor:
    return Anchor(record.generation, record.tag)
