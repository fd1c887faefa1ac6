"""What the intent log needs to know of a volume: which changes no record and no root has yet, and how a log is replayed.

Records are written by `fspf.volume.commit`, their form is `fspf.core.log`; docs/COMMIT.md 9 has the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fspf.core.log import Batch, Piece
from fspf.core.types import Ino

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fspf.core.log import LogRecord
    from fspf.volume.contents import Content, Contents
    from fspf.volume.namespace import Namespace
    from fspf_native import Drained

_MOST_ROWS: Final = 512  # waiting for a record; more are cheaper to commit


@dataclass(slots=True)
class Intent:
    """Changes since the last root record. Callers hold the volume's lock.

    Attributes:
        backlog: Batches that the namespace's database does not have yet, oldest first.
        unrecorded: Batches that no record of the log has yet, oldest first.
        logged: Inodes whose contents a record has, though their content roots do not have it.
        overflowed: More waits than a record should hold.
    """

    backlog: list[Batch] = field(default_factory=list)
    unrecorded: list[Batch] = field(default_factory=list)
    logged: set[int] = field(default_factory=set)
    overflowed: bool = False
    _rows: int = 0

    def note(self, drained: Drained) -> Batch:
        """Remember a batch for the next record."""
        batch = Batch(*drained)
        self.logged.difference_update(batch.reflushed, (ino for ino, _ in batch.deleted))
        rows = len(batch.inodes) + len(batch.names) + len(batch.removed) + len(batch.deleted)
        if rows or batch.files or batch.size:
            self._rows += rows
            if self._rows > _MOST_ROWS:
                self.overflowed = True
                self.unrecorded.clear()
            if not self.overflowed:
                self.unrecorded.append(batch)
        return batch

    def note_recorded(self, drained: Drained) -> Batch:
        """Remember a batch that a record has already."""
        batch = Batch(*drained)
        self.logged.difference_update(ino for ino, _ in batch.deleted)
        return batch

    def recorded(self) -> None:
        """A record has it all."""
        self.unrecorded = []
        self._rows = 0

    def committed(self) -> None:
        """A root record has it all."""
        self.recorded()
        self.overflowed = False


@dataclass(frozen=True, slots=True)
class Intended:
    """What a record is to hold."""

    batches: tuple[Batch, ...]
    pieces: tuple[Piece, ...]

    @property
    def needs_segments(self) -> bool:
        """Tell whether it names blocks in the segments, which must be durable before it."""
        return any(batch.reflushed for batch in self.batches)


def replay(
    records: Iterable[LogRecord], namespace: Namespace, contents: Contents, chunk_size: int
) -> Sequence[Content]:
    """Do again what the records say, in memory.

    Returns:
        The contents that are ahead of their rows, each with a handle that the caller gives back.
    """
    ahead: dict[Ino, Content] = {}
    for record in records:
        for batch in record.batches:
            namespace.apply(batch)
            for number in (*batch.reflushed, *(ino for ino, _ in batch.deleted)):
                ahead.pop(Ino(number), None)
                contents.forget(Ino(number))  # its root has it now, or nobody
        for piece in record.pieces:
            ino = Ino(piece.ino)
            content = ahead.get(ino)
            if content is None:
                row = namespace.inode(ino)
                if row is None:
                    continue  # deleted while its fsync was under way
                content = ahead[ino] = contents.open(row)
            _rewrite(content, piece, chunk_size)
    return list(ahead.values())


def _rewrite(content: Content, piece: Piece, chunk_size: int) -> None:
    """Write whole chunks, so that damage of what they replace is no hindrance."""
    tree = content.tree
    whole = dict(zip(piece.chunks[::2], piece.chunks[1::2], strict=True))
    if piece.cut is not None:
        rest = piece.cut % chunk_size
        # The chunk that was cut within is among those that follow, unless it was a hole.
        cut = piece.cut + chunk_size - rest if rest and piece.cut - rest in whole else piece.cut
        tree.truncate(min(cut, tree.size))
    for offset, data in whole.items():
        assert isinstance(offset, int)
        assert isinstance(data, bytes)
        tree.write(data.ljust(-(-len(data) // chunk_size) * chunk_size, b"\0"), offset)
    if tree.size != piece.size:
        tree.truncate(piece.size)
