"""What `fspf_native` offers to Python. The GIL is released around every block of work."""

from os import PathLike
from typing import Final, final

from typing_extensions import Buffer  # collections.abc has it from 3.12 on; only type checkers read this

ContentRoot = tuple[int, int, bytes]  # (size in bytes, depth, 32-byte pointer)

ENCRYPTED: Final = 0
AUTHENTICATED: Final = 1
HOLE: Final[bytes]  # 32 zero bytes

class AuthenticationError(Exception):
    """A tag did not fit; nothing was released."""

class ChunkError(Exception):
    """A chunk or node could not be read as it was written.

    Attributes:
        kind: "missing" (file or slot is not there), "torn" (checksum wrong), "stale" (checksum right, sealed
            under an older nonce), "tampered" (checksum right, tag wrong).
        offset, length: plain byte range of the file that is affected; for a node all that it covers, cut at the size.
        slot: where it was looked for.  level: 0 for a chunk, 1.. for nodes.
        epoch, counter: the nonce that the pointer names.
    """

    kind: str
    offset: int
    length: int
    slot: int
    level: int
    epoch: int
    counter: int

@final
class SecretKey:
    """32 secret bytes: locked in memory, out of core dumps, wiped; no way to get them out except wrapped."""

    @staticmethod
    def generate() -> SecretKey: ...
    @staticmethod
    def from_bytes(data: Buffer, /) -> SecretKey: ...
    def derive(self, info: Buffer, salt: Buffer = b"", /) -> SecretKey:
        """HKDF-SHA256, 32 bytes."""
    def wrap(self, key: SecretKey, aad: Buffer, /) -> bytes:
        """48 bytes, FORMAT.md 1 `SIV`."""
    def unwrap(self, wrapped: Buffer, aad: Buffer, /) -> SecretKey:
        """Raises AuthenticationError; ValueError if not 48 bytes."""
    def siv_seal(self, plain: Buffer, aad: Buffer, /) -> bytes:
        """16 bytes longer than `plain`, which is not empty (ValueError: OpenSSL has no SIV of nothing)."""
    def siv_open(self, sealed: Buffer, aad: Buffer, /) -> bytes: ...
    def gcm_seal(self, nonce: Buffer, plain: Buffer, aad: Buffer, /) -> tuple[bytes, bytes]:
        """(ciphertext, 16-byte tag); nonce 12 bytes."""
    def gcm_open(self, nonce: Buffer, sealed: Buffer, tag: Buffer, aad: Buffer, /) -> bytes: ...
    @property
    def fingerprint(self) -> str:
        """16 hex digits of a one-way derivation; what repr shows. Safe to print."""
    def __eq__(self, other: object, /) -> bool:
        """Constant time."""
    def __hash__(self) -> int: ...

def seal_chunks(
    key: SecretKey,
    first_counter: int,
    plain: Buffer,
    sealed: Buffer,
    tags: Buffer,
    chunk_size: int,
    protection: int = 0,
    /,
) -> None:
    """Seal a batch; `sealed` (len(plain)) and `tags` (16 each) are filled."""

def open_chunks(
    key: SecretKey,
    first_counter: int,
    sealed: Buffer,
    tags: Buffer,
    plain: Buffer,
    chunk_size: int,
    protection: int = 0,
    /,
) -> None:
    """Open a batch. Raises AuthenticationError and leaves `plain` all zeros if any tag is wrong."""

def xxh3(data: Buffer, /) -> int:
    """XXH3-64, seed 0."""

@final
class Store:
    """The slots of one volume: allocation, sealed I/O, the node cache. Thread-safe.

    OSError: an I/O error of the host, with errno. RuntimeError: misuse.
    """

    def __init__(
        self,
        directory: str | bytes | PathLike[str],
        /,
        *,
        chunk_size: int = 4096,
        segment_slots: int = 16384,
        writable: bool = False,
        cache_bytes: int = 33554432,
        reserve_slots: int = 512,
        max_slots: int = 0,
    ) -> None:
        """Open `directory` (the segments directory; exists). max_slots: quota, 0 = none."""
    def add_epoch(self, epoch: int, key: SecretKey, /) -> None:
        """Make an epoch readable."""
    def begin_epoch(self, epoch: int, key: SecretKey, /) -> None:
        """Make `epoch` the one that seals, its counter at 0. Once per Store."""
    # -- which slots are in use. Exactly one of these comes before the first write:
    def start_empty(self) -> None: ...
    def start_map(self, space_map: ContentRoot, end_of_slots: int, /) -> None:
        """Load the bitmap of a clean close; its own slots are freed with the next commit. Raises ChunkError, OSError."""
    def start_unknown(self, end_of_slots: int, /) -> None:
        """After a crash: nothing below the end of the existing segment files is handed out until `rebuild_finish`."""
    def rebuild_mark(self, root: ContentRoot, protection: int = 0, /) -> int:
        """Walk a tree's nodes (of the state that was opened), mark all that it reaches; chunks marked. Raises ChunkError."""
    def rebuild_finish(self) -> int:
        """Make everything unmarked (and all freed since and anchored) available; clear their checksum entries. Slots gained."""
    def save_map(self) -> ContentRoot:
        """Write the bitmap as a content tree (what is in use after the pending frees take effect, without the map's own slots)."""
    # -- commit
    def sync(self) -> int:
        """fdatasync every segment written since the last sync (and fsync the directory if a segment is new); how many."""
    def commit_begin(self) -> int:
        """Take all frees handed over by `Tree.flush`/`Tree.destroy` so far as those of one commit; its number."""
    def commit_anchored(self, number: int, /) -> None:
        """That commit and all before it are anchored: their freed slots may be used again."""
    def trim(self) -> int:
        """Punch out slots freed since the last trim and clear their checksum entries; bytes given back."""
    def drop_reserve(self) -> int:
        """Give the reserve up for good, before the last trim of a clean close; slots freed by it."""
    def refill_reserve(self) -> int:
        """Fill the reserve as far as there is room; slots in it."""
    def end_of_slots(self) -> int:
        """One above the highest slot in use."""
    def stats(self) -> dict[str, int]:
        """slots_used, slots_free, slots_pending, slots_reserved, segments, end_of_slots, counter, epoch, dirty_bytes (all trees of this store), cache_bytes,
        cache_hits, cache_misses, syncs, writes, reads, bytes_sealed, bytes_opened, rebuilding (0/1), stray_frees (always 0 unless there is a bug)."""
    def close(self) -> None: ...

@final
class Tree:
    """The content of one file. Thread-safe: readers share, writers exclude."""

    def __init__(
        self,
        store: Store,
        root: ContentRoot = ...,
        /,
        *,
        protection: int = 0,
        allocated: int = 0,
        metadata: bool = False,
        overlay: bool = False,
    ) -> None:
        """allocated: chunks that are not holes (kept up to date, for st_blocks). metadata: may use the reserve.
        overlay: changes stay in memory, also above a store that is open for reading; no flush. Does no I/O."""
    @property
    def size(self) -> int: ...
    @property
    def allocated(self) -> int: ...
    @property
    def dirty(self) -> bool:
        """Something is not in the root that the last `flush` returned."""
    @property
    def dirty_bytes(self) -> int: ...
    def read(self, offset: int, length: int, /) -> bytes:
        """Short at the end. Raises ChunkError for the first chunk that is damaged (nothing is returned then)."""
    def readinto(self, buffer: Buffer, offset: int, /) -> int: ...
    def write(self, data: Buffer, offset: int, /) -> int:
        """All of it or an exception (OSError ENOSPC/EIO/EFBIG, ChunkError when a partly overwritten chunk is damaged). Beyond the end: a hole between."""
    def truncate(self, size: int, /) -> None: ...
    def punch(self, offset: int, length: int, /) -> None:
        """Make a hole; the size stays. Whole chunks lose their slots, partial ones are zeroed."""
    def seek_data(self, offset: int, /) -> int:
        """OSError ENXIO past the end or the last data."""
    def seek_hole(self, offset: int, /) -> int: ...
    def flush(self) -> ContentRoot:
        """Seal all that is dirty (not yet synced); hand the tree's frees to the store's next commit."""
    def capture(self) -> tuple[int, int | None, tuple[int | bytes, ...]] | None:
        """Take what was written since the last capture or flush: (size, least size it was cut to or None, (offset, data, ...)).

        Whole chunks, at most 16, cut at the size; to be replayed as: truncate to the cut, then to the size, write the pieces.
        None if it cannot be told so; then the tree must be flushed.
        """
    def destroy(self) -> int:
        """Free every slot; the tree is empty afterwards (size 0, flushed). What a damaged node hides is left allocated; number of chunks lost so."""
    def verify(self, limit: int = 1000, /) -> list[tuple[int, int, str, int, int]]:
        """Read everything: (offset, length, kind, slot, level) per damaged range, neighbouring ones of one kind joined."""

InodeRow = tuple[
    int, int, int, int, int, int, int, int, int, int, int, int, int, bytes | None, int, int | None, bytes | None
]
Drained = tuple[
    list[InodeRow],
    list[tuple[int, int, bytes, int]],
    list[tuple[int, int]],
    list[tuple[int, bool]],
    int,
    int,
    int,
    int,
    list[int],
]
LaneEnd = tuple[
    tuple[
        int, int, int, bytes, int, int, bytes, int, int, int
    ],  # outcome, errno, generation, tag, end of the log, anchor's
    # generation and tag, generation up to which the log was synced, records written, when the CAS was reached
    tuple[
        int, int, int, int, list[tuple[int, int, int]]
    ],  # of the ring: version, end of the lease, end, newest, records kept
    list[int],  # inodes whose contents are in records
]
Captured = tuple[int, int | None, tuple[int | bytes, ...]]

@final
class Relay:
    """The kernel's end of a mount: threads that answer requests, and what they know of inodes and names.

    `plane` is called back on those threads; its methods return an errno: load_inode(ino), load_directory(ino),
    make(parent, name, mode, rdev, umask, uid, gid, pid), inherit(parent, ino, mode), apply(), grow(), fsync(ino, data_only), drop_capability(ino),
    check_xattr(ino, name, flags), failed(handler, ino, exception).
    """

    def __init__(
        self,
        store: Store,
        device: int,
        control: int,
        plane: object,
        /,
        *,
        cache_bytes: int = 33554432,
        atime: bool = True,
        diratime: bool = True,
        read_only: bool = False,
        threads: int = 2,
        uring: bool = False,
        spin: bool = False,
        uid: int = -1,
        gid: int = -1,
        umask: int = -1,
    ) -> None:
        """Take both descriptors over: the kernel's, and the socket to the control plane. uid, gid, umask: what all files seem to have; -1: their own."""
    @property
    def pending(self) -> int:
        """Rows and names that the database does not have."""
    @property
    def changed_contents(self) -> int: ...
    @property
    def wake_fd(self) -> int:
        """Readable when the kernel's side has ended."""
    def start(self) -> None: ...
    def stop(self) -> None:
        """End the threads and close both descriptors; idempotent."""
    def fill_inode(self, row: tuple[object, ...], no_xattrs: bool, /) -> None: ...
    def fill_directory(self, ino: int, entries: list[tuple[object, ...]], no_xattrs: bool, last: bool, /) -> None:
        """entries: cookie, name, the 17 columns, None if it has no xattrs."""
    def changed(self, ino: int, columns: dict[str, int | bytes | None], /) -> None: ...
    def has_xattrs(self, ino: int, /) -> None: ...
    def put_name(self, parent: int, cookie: int, name: bytes, ino: int, mode: int, /) -> None: ...
    def end_marks(self) -> None:
        """Let commits free what was handed over before them; with the volume's lock held and everything drained."""
    def take_ino(self) -> int: ...
    def take_cookie(self) -> int: ...
    def set_numbers(self, next_ino: int, next_cookie: int, /) -> None: ...
    def in_use(self, ino: int, /) -> bool: ...
    def set_blocked(self, errno: int, /) -> None:
        """Answer every change with this errno; 0: none."""
    def set_no_space(self, flag: bool, /) -> None: ...
    def drain(self) -> tuple[list[Drained], Drained]:
        """Take all that the database does not have; first what a record of the intent log has already, oldest first."""
    def wait_dirty(self, count: int, seconds: float, /) -> bool: ...
    def flush_all(self) -> int:
        """Seal all contents; the errno of the first failure, or 0."""
    def flush_these(self, inos: list[int], /) -> int:
        """Seal these contents; the errno of the first failure, or 0."""
    @property
    def lane_contact_ns(self) -> int:
        """When the lane last reached the CAS, by CLOCK_BOOTTIME."""
    @property
    def lane_is_armed(self) -> bool:
        """Whether the lane may take something now."""
    @property
    def lane_anchored(self) -> int:
        """Generation that the CAS had then."""
    def lane_lend(self, log: tuple[object, ...], ring: tuple[object, ...], /) -> bool:
        """Let fsyncs write records by themselves. log: `fspf.volume.mirror.LentLog`; ring: `fspf.core.anchor.LentRing`. False: it cannot."""
    def lane_pause(self) -> None:
        """Let none of them take anything any more; what was taken is written."""
    def lane_take_back(self) -> LaneEnd | None:
        """Wait for what is under way; None: nothing was lent."""
    def take_log(self, inos: list[int], /) -> tuple[list[Drained], Drained, list[tuple[int, Captured]], bool]:
        """Take what a record of the intent log is to hold, as of one instant: what `drain` gives, and what was written to
        these contents since the last flush or call. False: one of them has changed too much and must be flushed."""
    def relieve(self, dirty_bytes: int, /) -> None:
        """Seal contents while more than so much is dirty."""
    def stats(self) -> dict[str, int]: ...
