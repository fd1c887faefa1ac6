"""What a CAS server keeps its values in: the Protocol of a store, and the values that go over it.

The stores themselves are modules of their own (`store_sqlite`, `store_etcd`, `store_postgresql`); sealing of values is
`fspf.cas.sealed_store`'s business, what they mean that of whoever puts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from fspf.core.errors import CasError

if TYPE_CHECKING:
    import builtins
    from collections.abc import Sequence

ABSENT: Final = 0  # the revision of a key that has no value
MAX_KEY_LEN: Final = 512  # bytes of UTF-8
MAX_VALUE_LEN: Final = 1 << 20  # bytes; etcd refuses requests above 1.5 MiB
SEALING_ROOM: Final = 64  # bytes that a sealed value may be longer
MAX_TRANSACTION: Final = 64  # compares and puts together; etcd refuses more than 128


class Entry(NamedTuple):
    """A value and when it was put."""

    value: bytes
    revision: int  # > 0; another one after each put of this key, also after a deletion and a new put


class Compare(NamedTuple):
    """Holds if the key's revision is still this one."""

    key: str
    revision: int  # ABSENT: there must be no value


class Put(NamedTuple):
    """A value to be stored, or with None to be deleted."""

    key: str
    value: bytes | None


class Store(Protocol):
    """Keys to values, with transactions. Serves one asyncio event loop.

    Every method may raise `CasUnreachableError`; after one from `transact` the outcome is unknown, and the caller finds
    out by reading. Reads are linearizable: they see every transaction that was answered before they began, by whatever process.
    """

    @property
    def url(self) -> str:
        """Where it is, without passwords: for messages."""

    async def get(self, key: str) -> Entry | None:
        """Return the newest value, None if there is none."""

    async def list(self, prefix: str) -> builtins.list[tuple[str, Entry]]:
        """Return all keys that begin with *prefix*, in order, as of one instant."""

    async def transact(self, compare: Sequence[Compare], put: Sequence[Put]) -> int | None:
        """Do all of *put* if all of *compare* hold, durably; return the new revision of what was put, None if one does not hold."""

    async def close(self) -> None:
        """Let go of files and connections. Idempotent."""


def check_transaction(compare: Sequence[Compare], put: Sequence[Put]) -> None:
    """Refuse what some store would refuse, so that all do.

    Raises:
        CasError: A key or value is too long, or there are too many.
    """
    if len(compare) + len(put) > MAX_TRANSACTION:
        raise CasError(f"a transaction has at most {MAX_TRANSACTION} compares and puts, not {len(compare) + len(put)}")
    keys = [one.key for one in put]
    if len(set(keys)) != len(keys):
        raise CasError("a transaction puts each key once")
    for key in (*keys, *(one.key for one in compare)):
        check_key(key)
    for one in put:
        if one.value is not None and len(one.value) > MAX_VALUE_LEN + SEALING_ROOM:
            raise CasError(f"a value has at most {MAX_VALUE_LEN} bytes, not {len(one.value)}: {one.key[:80]!r}")


def check_key(key: str) -> None:
    """Refuse a key that some store cannot keep. Raises `CasError`."""
    if not key or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_LEN:
        raise CasError(f"a key has 1 to {MAX_KEY_LEN} bytes: {key[:80]!r}")
    if not key.isprintable():  # PostgreSQL knows no NUL, nobody needs the others
        raise CasError(f"a key is printable text: {key[:80]!r}")
