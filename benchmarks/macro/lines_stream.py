"""Lines on streams: sequential reads and writes, buffered and with O_DIRECT, one and four at a time, and tiny writes.

The moving is done by stream.c. Every write is timed twice: until write(2) returned, and until fsync(2) did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.macro.measure import cold, over_warm_backing, run

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.macro.measure import Take

BLOCK: Final = 1 << 20
SMALL_LIMIT_S: Final = 10.0  # some peers take minutes for what ext4 does in a moment


def move(
    take: Take,
    what: str,
    files: list[Path],
    size: int,
    *,
    block: int = BLOCK,
    how: str = "buffered",
    limit_s: float = 0,
) -> tuple[float, float]:
    """Return MB/s without and with fsync; end early after *limit_s*, if that is not 0."""
    out = run([take.tools / "stream", what, str(block), str(size), str(limit_s), how, *files])
    total, plain, synced = map(float, out.split())
    return total / 1e6 / plain, total / 1e6 / synced


def stream(take: Take) -> None:
    one(take)  # does nothing if none of its lines is wanted
    if take.wants("seq4-write-fsync", "seq4-read-cold", "seq4-read-warm"):
        four(take)
    if take.wants("write-512", "write-512-fsync"):
        path = take.place / "small"
        plain, synced = move(take, "write", [path], take.sizes.small_bytes, block=512, limit_s=SMALL_LIMIT_S)
        take.record("write-512", plain)
        take.record("write-512-fsync", synced)
        path.unlink()


def one(take: Take) -> None:
    path = take.place / "stream"
    size = take.sizes.stream_bytes
    if take.wants("seq-write", "seq-write-fsync", "seq-read-cold", "seq-read-warm", "seq-read-backing", "direct-read"):
        plain, synced = move(take, "write", [path], size)
        take.record("seq-write", plain)
        take.record("seq-write-fsync", synced)
    if take.wants("seq-read-cold", "seq-read-warm"):
        cold(take)
        restore(take, path, size)
        take.record("seq-read-cold", move(take, "read", [path], size)[0])
        take.record("seq-read-warm", move(take, "read", [path], size)[0])
    if take.wants("seq-read-backing"):
        over_warm_backing(take)
        restore(take, path, size)
        take.record("seq-read-backing", move(take, "read", [path], size)[0])
    if take.wants("direct-read"):
        cold(take)
        restore(take, path, size)
        with take.attempt("direct-read"):  # not every peer has O_DIRECT
            take.record("direct-read", move(take, "read", [path], size, how="direct")[0])
    if take.wants("direct-write"):
        path.unlink(missing_ok=True)
        with take.attempt("direct-write"):
            take.record("direct-write", move(take, "write", [path], size, how="direct")[1])
    path.unlink(missing_ok=True)


def four(take: Take) -> None:
    files = [take.place / f"stream{number}" for number in range(4)]
    size = take.sizes.stream4_bytes
    take.record("seq4-write-fsync", move(take, "write", files, size)[1])
    if take.wants("seq4-read-cold", "seq4-read-warm"):
        cold(take)
        for path in files:
            restore(take, path, size)
        take.record("seq4-read-cold", move(take, "read", files, size)[0])
        take.record("seq4-read-warm", move(take, "read", files, size)[0])
    for path in files:
        path.unlink()


def restore(take: Take, path: Path, size: int) -> None:
    """The null file system forgets its names when it is unmounted: give them back."""
    if take.system.name == "null":
        with open(path, "wb") as file:
            file.truncate(size)
