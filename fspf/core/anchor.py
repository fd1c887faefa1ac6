"""What a volume asks of a CAS: the values and the Protocol.

`fspf.cas` implements it; the volume gets an implementation handed in and cannot tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, runtime_checkable

from fspf.core.types import NO_TAG

if TYPE_CHECKING:
    import builtins

    from fspf.core.freshness import Freshness
    from fspf.core.keys import SecretKey


@dataclass(frozen=True, slots=True)
class Anchor:
    """The newest committed state as the CAS knows it; the only witness of freshness."""

    generation: int  # 0 = never written
    root_tag: bytes  # 16 bytes; zeros = never written

    def __str__(self) -> str:
        """Name the state for messages; a root tag is not secret."""
        return f"generation {self.generation} ({self.root_tag.hex()[:8]})" if self.generation else "no commit"


NEVER_WRITTEN: Final = Anchor(0, NO_TAG)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes: enough to name the writer, to see on the same machine whether it is gone, and to know one's own lease again."""

    host: str  # nodename
    boot_id: str  # /proc/sys/kernel/random/boot_id
    pid: int
    pid_start: int  # /proc/PID/stat field 22, clock ticks since boot
    pid_namespace: int  # inode number of /proc/self/ns/pid
    label: str  # for people
    opening: int = (
        0  # random, of one try to get a lease: two volumes that one process opens are two writers; below 2^53
    )

    def __str__(self) -> str:
        """Name the writer for messages."""
        return f"{self.host}/{self.pid} ({self.label})" if self.label else f"{self.host}/{self.pid}"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write, until `expires_ns`."""

    epoch: int  # the fencing token; never repeats in a volume's life
    holder: Holder
    expires_ns: int  # UTC ns since 1970, by the CAS's clock


@dataclass(frozen=True, slots=True)
class CasRecord:
    """All that the CAS keeps of one volume."""

    volume_id: bytes  # 16 bytes
    name: str
    key: SecretKey
    key_version: int  # 1, 2, …
    anchor: Anchor
    epoch: int  # last granted, 0 = none
    lease: Lease | None
    freshness: Freshness


class Cas(Protocol):
    """The CAS as a volume sees it. Every method may raise `CasUnreachableError` and may be called from any thread.

    When an `advance`, `acquire` or `rekey` ends in `CasUnreachableError` its outcome is unknown: the caller asks
    with `fetch`.
    """

    @property
    def url(self) -> str:
        """Where this CAS is, for messages and for opening it again."""

    def create(self, volume_id: bytes, name: str, freshness: Freshness) -> CasRecord:
        """Make a key and a record for a new volume.

        Raises:
            VolumeExistsError: There is a record with this id.
        """

    def fetch(self, volume_id: bytes) -> CasRecord:
        """Return the record.

        Raises:
            UnknownVolumeError: There is none.
            WrongKeyError: The CAS cannot be unlocked.
        """

    def list(self) -> builtins.list[CasRecord]:
        """Return all records, by name."""

    def acquire(
        self, volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        """Grant the right to write and make *adopt* the anchor, in one transaction.

        Args:
            volume_id: Which volume.
            expected: Anchor that the caller fetched.
            expected_epoch: Last granted epoch that the caller fetched.
            adopt: State that the caller chose: *expected* itself, or a later commit that had not reached the CAS.
            holder: Who will write.

        Raises:
            LeaseHeldError: A live lease is somebody's (also this very process's).
            AnchorMovedError: Anchor or epoch are not as expected.
        """

    def renew(self, volume_id: bytes, lease: Lease) -> Lease:
        """Prolong *lease*.

        Raises:
            LeaseLostError: It was released or given to another.
        """

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        """Move the anchor from *expected* to *new*, whose generation is higher; also renews the lease.

        Raises:
            LeaseLostError: The lease was released or given to another.
            AnchorMovedError: The anchor is not *expected*.
        """

    def release(self, volume_id: bytes, lease: Lease) -> None:
        """End *lease*. Idempotent; the lease of another is left alone."""

    def rekey(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, key: SecretKey) -> None:
        """Replace the volume key, count its version up and move the anchor, in one transaction.

        Raises:
            LeaseLostError: The lease was released or given to another.
            AnchorMovedError: The anchor is not *expected*.
        """

    def set_freshness(self, volume_id: bytes, freshness: Freshness) -> None:
        """Change the freshness mode; it counts from the volume's next opening."""

    def remove(self, volume_id: bytes) -> None:
        """Forget the volume, and its key with it: nobody can read it any more."""

    def close(self) -> None:
        """Let go of files and keys. Idempotent."""


@runtime_checkable
class RecordKeeper(Protocol):
    """A CAS on storage as near as the volume's, which can make a record of the intent log durable together with its anchor.

    Optional beside `Cas`. What it keeps is sealed by the volume and trusted no more than the volume's own log.
    """

    def advance_with(
        self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor, *, record: bytes, synced: int
    ) -> bool:
        """Move the anchor as `Cas.advance` does, and keep *record*, as one step.

        Any other `advance` says that the volume itself has every record so far, durably.

        Args:
            record: The frame that makes the state *new* out of *expected*.
            synced: Generation up to which the volume itself has all records, durably: the others stay kept.

        Returns:
            False: nothing was done, since there is no room or another reason; the record is to be synced, and `advance`
            then says what else there is to say.
        """

    def kept_records(self, volume_id: bytes) -> builtins.list[bytes]:
        """Return the records that are kept, oldest first; some may be older than any state that counts."""

    def settle(self, volume_id: bytes) -> None:
        """The volume itself has all of its records, durably: none needs to be kept when the lease ends."""


class LentRing(NamedTuple):
    """What native code needs in order to do by itself what `RecordKeeper.advance_with` does. See fspf/cas/hot.py."""

    descriptor: int  # of the file; its lock is taken for each entry
    length: int
    end: int  # of the newest entry
    newest: int  # its place, -1: none
    kept: list[tuple[int, int, int]]  # generation, version and place of records that are needed, oldest first
    changes: int  # counted in the file: when others change the state, this is another number
    version: int  # newest of the state
    state_key: SecretKey  # AES-SIV of the state
    aad: bytes  # followed by the version
    before: bytes  # the state's encoding before generation and tag,
    between: bytes  # between them and the time when the lease ends,
    after: bytes  # and after it
    lease_ns: int  # how long the lease is prolonged each time
    expires_ns: int  # when it ends now
    database: bytes  # path of the file that has the row, which must still be
    device: int  # this one
    inode: int


class RingEnd(NamedTuple):
    """What has become of it."""

    version: int
    expires_ns: int
    end: int
    newest: int
    kept: list[tuple[int, int, int]]


@runtime_checkable
class RingLender(Protocol):
    """A `RecordKeeper` that lets native code write for a time in its stead."""

    def lend_ring(self, volume_id: bytes) -> LentRing | None:
        """Lend what `advance_with` uses; until it comes back, every other method goes without. None: it would say no."""

    def take_ring_back(self, volume_id: bytes, anchor: Anchor | None, end: RingEnd | None) -> None:
        """Go on from what native code has made of it; None: it did nothing."""
