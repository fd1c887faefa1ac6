"""Create, open and close a volume: the one engine behind mount, command line and library.

Inode operations are in `inodes`, paths in `files`, the commit in `commit`, choosing a state in `opening`.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from fspf.core.errors import FspfError, IntegrityError
from fspf.core.format import DEFAULT_CHUNK_SIZE, DEFAULT_SEGMENT_SLOTS, Header, Keyring, KeyringRecord
from fspf.core.freshness import Freshness
from fspf.core.log import Piece
from fspf.core.types import VOLUME_ID_LEN, ContentRoot, Ino
from fspf.volume.commit import CAS_TIMEOUT_S, Commits, Prepared
from fspf.volume.contents import Contents
from fspf.volume.files import Files
from fspf.volume.holder import this_process
from fspf.volume.inodes import NAME_MAX, StatFs, error
from fspf.volume.intent import Intended, replay
from fspf.volume.layout import Layout
from fspf.volume.namespace import Namespace
from fspf.volume.opening import Opening, acquire_state, complete_log, find_state, lock_for_writing
from fspf.volume.rebuild import Rebuild
from fspf_native import ChunkError, SecretKey, Store, Tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from fspf.core.anchor import Cas, CasRecord, Lease, LentRing
    from fspf.core.format import RootRecord
    from fspf.volume.mirror import LentLog, Mirror

log = logging.getLogger(__name__)

DEFAULT_CACHE_BYTES: Final = 32 << 20  # of content-tree nodes; the namespace's pages get a quarter more
DEFAULT_COMMIT_INTERVAL_S: Final = 5.0
_LOW_SPACE_BYTES: Final = 64 << 20  # on the host
_FREE_PAGES_TO_GROW: Final = 64  # of the namespace: so many let it take names without growing
_RENEW_INTERVAL_S: Final = 15.0  # a quarter of the embedded CAS's lease
_FILES_LIMIT: Final = 2**48  # what statfs shows as the number of possible inodes


class Volume(Files):
    """One open volume. Thread-safe. Use `Volume.create` and `Volume.open`, and `close` at the end.

    Attributes:
        path: The volume directory.
        header: Its public header.
        record: What the CAS said at opening.
        root_record: The state that was opened, None for a volume just created.
        problems: Damage that did not hinder opening.
        stale: With `accept_stale`, why the state would have been refused.
        has_replayed_contents: Opened for reading after a crash: some contents are in memory, ahead of their rows.
    """

    def __init__(
        self,
        layout: Layout,
        header: Header,
        header_bytes: bytes,
        cas: Cas,
        record: CasRecord,
        *,
        read_only: bool,
        cache_bytes: int,
        max_bytes: int,
    ) -> None:
        super().__init__()
        self.path: Path = layout.path
        self.header = header
        self.record = record
        self.read_only = read_only
        self.root_record: RootRecord | None = None
        self.problems: tuple[str, ...] = ()
        self.stale: FspfError | None = None
        self.has_replayed_contents = False
        self.epoch = 0
        self.replayed = False  # contents in memory are ahead of their rows: it is open for reading, and had a log
        self.base_generation = 0  # of the root record that was opened; its log may go on
        self._layout = layout
        self._header_bytes = header_bytes
        self._cas = cas
        self._cache_bytes = cache_bytes
        self._commits: Commits | None = None
        self._rebuild: Rebuild | None = None
        self._maintenance: threading.Thread | None = None
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._closed = False
        self._force_commit = False
        self._reserve = 0  # most slots that the reserve has had
        self._map_is_saved = False  # the newest root record names a space map
        self._owned: Cas | None = None
        self._errors: deque[str] = deque(maxlen=20)
        self._max_slots = max_bytes // header.chunk_size  # quota, 0 = none
        self.store = Store(
            str(layout.segments),
            chunk_size=header.chunk_size,
            segment_slots=header.segment_slots,
            writable=not read_only,
            cache_bytes=cache_bytes,
            max_slots=self._max_slots,
        )

    # -- creating

    @classmethod
    def create(
        cls,
        path: str | bytes | os.PathLike[str],
        cas: Cas,
        *,
        name: str | None = None,
        freshness: Freshness | None = None,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        segment_slots: int = DEFAULT_SEGMENT_SLOTS,
        label: str = "",
        commit_interval: float | None = DEFAULT_COMMIT_INTERVAL_S,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        max_bytes: int = 0,
        cas_timeout_s: float = CAS_TIMEOUT_S,
        volume_id: bytes | None = None,
    ) -> Self:
        """Make an empty volume and return it open for writing.

        Args:
            path: A name that does not exist yet, or an empty directory.
            name: For people, in the CAS; default is the directory's name.
            chunk_size: Bytes, a power of two from 4096 to 65536.
            segment_slots: Chunks per segment file, a power of two from 64 to 2**20.
            label: Says in the lease who writes.
            volume_id: 16 bytes, where a policy gave the volume its id; otherwise one is made.
            commit_interval: Seconds between automatic commits; None for none.
            max_bytes: Quota, 0 = none.

        Raises:
            VolumeExistsError: There is something at *path*.
            CasError: The CAS is away or refuses.
            OSError: The host cannot make the files.
        """
        layout = Layout(path)
        header = Header(volume_id or os.urandom(VOLUME_ID_LEN), chunk_size, segment_slots)
        header_bytes = header.pack()
        made_directory = not layout.path.exists()
        try:
            layout.prepare()
        except BaseException as exc:
            if made_directory and isinstance(exc, OSError):
                with suppress(OSError):
                    layout.discard(made_directory=True)
            layout.close()
            raise
        record: CasRecord | None = None
        volume: Self | None = None
        try:
            record = cas.create(header.volume_id, name or layout.path.name, freshness or Freshness.strict())
            lease = cas.acquire(
                header.volume_id,
                expected=record.anchor,
                expected_epoch=record.epoch,
                adopt=record.anchor,
                holder=this_process(label),
            )
            volume = cls(
                layout, header, header_bytes, cas, record, read_only=False, cache_bytes=cache_bytes, max_bytes=max_bytes
            )
            volume._start_writing(lease, Keyring((), (), repair=True), {}, None, cas_timeout_s)
            volume.store.start_empty()
            volume._namespace_tree = Tree(volume.store, metadata=True)
            umask = os.umask(0)
            os.umask(umask)
            root = volume.new_root_row(0o777 & ~umask, os.geteuid(), os.getegid())
            volume.namespace = Namespace.create(
                volume._namespace_tree,
                chunk_size=chunk_size,
                cache_bytes=cache_bytes // 4,
                root=root,
            )
            volume.contents = Contents(volume.store, volume.namespace, volume.fail)
            volume.namespace.on_broken = volume.fail
            volume.commit()
            layout.write_header(header_bytes)
        except BaseException:
            if volume is not None:
                volume.abandon()
            layout.close()
            if record is not None:
                with suppress(FspfError):
                    cas.remove(header.volume_id)
            layout.discard(made_directory=made_directory)
            raise
        volume._start_maintenance(commit_interval)
        return volume

    # -- opening

    @classmethod
    def open(
        cls,
        path: str | bytes | os.PathLike[str],
        cas: Cas,
        *,
        read_only: bool = False,
        label: str = "",
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        commit_interval: float | None = DEFAULT_COMMIT_INTERVAL_S,
        max_bytes: int = 0,
        accept_stale: bool = False,
        cas_timeout_s: float = CAS_TIMEOUT_S,
    ) -> Self:
        """Open the newest state of a volume.

        Args:
            read_only: Take no lease and change nothing; a writer elsewhere may go on, see docs/CONCURRENCY.md.
            accept_stale: Open an older state, read-only; for salvage.

        Raises:
            NotAVolumeError, UnsupportedFormatError, IntegrityError, FreshnessError, WrongKeyError: Nothing was changed.
            LeaseHeldError: Somebody has it open for writing.
            CasError: The CAS is away, or does not know the volume.
        """
        if accept_stale and not read_only:
            message = "an older state can be opened for reading only"
            raise ValueError(message)
        layout = Layout(path)
        volume: Self | None = None
        lease: Lease | None = None
        opening: Opening | None = None
        try:
            if read_only:
                opening = find_state(layout, cas, accept_stale=accept_stale)
            else:
                lock_for_writing(layout, cas)
                opening, lease = acquire_state(layout, cas, label, _check_namespace(layout))
                complete_log(layout, cas, opening)
            volume = cls(
                layout,
                opening.header,
                opening.header_bytes,
                cas,
                opening.record,
                read_only=read_only,
                cache_bytes=cache_bytes,
                max_bytes=max_bytes,
            )
            volume._open_state(opening, lease, cas_timeout_s)
        except BaseException:
            if volume is not None:
                volume.abandon()
            if opening is not None and lease is not None:
                with suppress(FspfError):  # it then ends by itself
                    cas.release(opening.header.volume_id, lease)
            layout.close()
            raise
        if not read_only:
            volume._start_maintenance(commit_interval)
        return volume

    def _open_state(self, opening: Opening, lease: Lease | None, cas_timeout_s: float) -> None:
        state, head = opening.state, opening.head
        batches = [batch for record in opening.log for batch in record.batches]
        end_of_slots = opening.log[-1].end_of_slots if opening.log else state.end_of_slots
        self.root_record = replace(
            state,
            generation=head.generation,
            tag=head.root_tag,
            end_of_slots=end_of_slots,
            files=state.files + sum(batch.files for batch in batches),
            total_bytes=state.total_bytes + sum(batch.size for batch in batches),
        )
        self.base_generation = state.generation
        self.problems = opening.problems
        self.stale = opening.stale
        self.epoch = state.epoch
        for problem in opening.problems:
            log.warning("%s: %s", self.path, problem)
        if lease is not None:
            self._start_writing(lease, opening.keyring, opening.epoch_keys, opening, cas_timeout_s)
        for epoch, key in opening.epoch_keys.items():
            self.store.add_epoch(epoch, key)
        if lease is not None and not opening.log:
            self._open_space(state)
        elif lease is not None:
            self.store.start_unknown(end_of_slots)
        overlay = self.read_only and bool(opening.log)  # the log is replayed in memory
        self._namespace_tree = Tree(self.store, state.namespace, metadata=True, overlay=overlay)
        try:
            self.namespace = Namespace.open(
                self._namespace_tree,
                chunk_size=self.header.chunk_size,
                read_only=self.read_only and not overlay,
                cache_bytes=self._cache_bytes // 4,
            )
        except ChunkError as exc:
            message = f"namespace: bytes {exc.offset} to {exc.offset + exc.length - 1} are {exc.kind}: run fspf verify"
            raise IntegrityError(message) from exc
        self.contents = Contents(self.store, self.namespace, self.fail, overlay=overlay)
        self.namespace.on_broken = self.fail
        if opening.log:
            self._replay(opening)
        if not self.read_only and (purged := self.purge_unlinked()):
            log.info("%d files that were unlinked but open at the last crash are gone", purged)

    def _replay(self, opening: Opening) -> None:
        """Do again what the intent log says; a writer commits it, and only then learns which slots are free."""
        with self.lock:
            try:
                ahead = replay(opening.log, self.namespace, self.contents, self.chunk_size)
            except ChunkError as exc:
                message = f"the intent log cannot be replayed, a content that it changes is {exc.kind}: run fspf verify"
                raise IntegrityError(message) from exc
        log.info("%d records of the intent log replayed", len(opening.log))
        if self.read_only:
            assert self.root_record is not None
            self.replayed = True
            self.namespace.bytes += sum(content.tree.size - content.stored_size for content in ahead)
            self.root_record = replace(self.root_record, total_bytes=self.namespace.bytes)
            if self.namespace.dirty:
                self.namespace.write_counters()
            self.has_replayed_contents = bool(ahead)
            return  # the handles stay: what is in memory is the content
        for content in ahead:
            self.contents.note_change(content, times=False)
        with self.lock:
            for content in ahead:  # all of them, or no root may follow: the log alone has what is not sealed
                self.contents.flush(content)
        self.commit()
        with self.lock:
            for content in ahead:
                self.contents.close(content)
            root = ContentRoot(*self._namespace_tree.flush())  # nothing changed since: where it is
        self._rebuild = Rebuild(self.store, root, chunk_size=self.header.chunk_size)

    def _start_writing(
        self,
        lease: Lease,
        keyring: Keyring,
        epoch_keys: dict[int, SecretKey],
        opening: Opening | None,
        cas_timeout_s: float,
    ) -> None:
        """Make this session's epoch durable before anything is sealed under it."""
        self.epoch = lease.epoch
        epochs = len({epoch for epoch in epoch_keys if epoch <= lease.epoch} | {lease.epoch})
        self._commits = Commits(
            layout=self._layout,
            header_bytes=self._header_bytes,
            cas=self._cas,
            record=self.record,
            lease=lease,
            base=opening.state if opening is not None else None,
            head=opening.head if opening is not None else None,
            keyring_epochs=epochs,
            store=self.store,
            prepare=self._prepare,
            intend=self._intend,
            lend=self._lend,
            note_logged=self._note_logged,
            fail=self.fail,
            cas_timeout_s=cas_timeout_s,
        )
        key = SecretKey.generate()
        entry = KeyringRecord.wrap(self.record.key, self.record.key_version, self.header.volume_id, lease.epoch, key)
        self._layout.append_keyring([entry], keyring)
        self.store.begin_epoch(lease.epoch, key)

    def _open_space(self, state: RootRecord) -> None:
        """Learn which slots are free: from the map of a clean close, or by a walk in the background."""
        if state.space_map is not None:
            try:
                self.store.start_map(state.space_map, state.end_of_slots)
            except ChunkError as exc:
                log.warning("the space map is %s and is rebuilt", exc.kind)
            except OSError as exc:
                log.warning("the space map cannot be read and is rebuilt: %s", exc)
            else:
                self._map_is_saved = True
                return
        self.store.start_unknown(state.end_of_slots)
        self._rebuild = Rebuild(self.store, state.namespace, chunk_size=self.header.chunk_size)

    # -- what stands behind it

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk."""
        return self.header.chunk_size

    @property
    def namespace_tree(self) -> Tree:
        """The content tree that holds the namespace database; for `fspf verify`."""
        return self._namespace_tree

    @property
    def namespace_connection(self) -> Any:  # apsw.Connection; kept out of the public types
        """The SQLite connection of the namespace; for `fspf verify`. Hold `lock`."""
        return self.namespace.connection

    @property
    def cas(self) -> Cas:
        """The CAS it was opened with."""
        return self._cas

    def own_cas(self) -> None:
        """Close the CAS with the volume: nobody else uses it."""
        self._owned = self._cas

    # -- committing

    def commit(self) -> None:
        """Commit everything; returns when it is anchored (strict) or durable (bounded, none).

        Raises:
            OSError: ENOSPC or an I/O error; what could not be written stays in memory and is tried again.
            FspfError: The volume turned read-only.
        """
        self.check_writable()
        assert self._commits is not None
        self._commits.commit(everything=True)
        if self._failures():
            # No room for some data; what this commit has freed may be room enough.
            self.store.trim()
            self._commits.commit(everything=True)
        if failures := self._failures():
            raise failures[0]

    def detach_mirror(self) -> None:
        """Take over what the data plane still has; it answers nothing any more. `close` tells what found no room."""
        if self.mirror is not None and not self.read_only and self.failed is None and self.mirror.flush_all():
            with suppress(OSError, FspfError):  # everything else is safe then, and what it frees may be room enough
                self.commit()
            self.store.drop_reserve()
            self.store.trim()
        super().detach_mirror()

    def _failures(self) -> list[OSError | FspfError]:
        """Return why contents could not be flushed by the last commit."""
        with self.lock:
            failures = self.contents.failures()
            if self.mirror_errno:
                failures.append(error(self.mirror_errno))
            return failures

    def fsync(self, ino: Ino | None = None) -> None:
        """Commit the data of *ino* and all metadata; other files' data may stay in memory."""
        self.check_writable()
        assert self._commits is not None
        if self.mirror is None:
            with self.lock:
                content = self.contents.get(ino) if ino is not None else None
                if content is not None:
                    self.flush_content(content)
        self._commits.commit(everything=False, ino=ino)

    def fsync_or_return(self, ino: Ino | None, *, may_return: bool) -> bool:
        """Do the same for the data plane; False: it can do it itself, nothing was done."""
        self.check_writable()
        assert self._commits is not None
        return self._commits.commit(everything=False, ino=ino, may_return=may_return)

    def _intend(self, inos: set[int]) -> Intended | None:
        """Take what a record of the intent log is to hold for an fsync of *inos*; None: a commit is due instead.

        COMMIT.md 9. The namespace is left alone: its database gets the same rows when somebody asks it.
        """
        mirror, intent = self.mirror, self.intent
        if mirror is None or self.low_on_space or self._force_commit:
            return None
        with self.lock.quietly:
            self.check_writable()
            if self.namespace.unlogged or self.namespace.broken or intent.overflowed:
                return None
            recorded, drained, captured, complete = mirror.take_log(list(inos))
            intent.backlog += [intent.note_recorded(each) for each in recorded]
            intent.backlog.append(intent.note(drained))
            intent.logged.update(ino for ino, _ in captured)
            if not complete or intent.overflowed:
                return None
            batches = tuple(intent.unrecorded)
            intent.recorded()
            return Intended(batches, tuple(Piece(ino, *what) for ino, what in captured))

    def _lend(self, log: LentLog, ring: LentRing) -> Mirror | None:
        """Let the data plane write records by itself, if nothing is there that it does not know of."""
        mirror, intent = self.mirror, self.intent
        if mirror is None:
            return None
        with self.lock.quietly:  # whoever takes it later ends this
            if (
                self.low_on_space
                or self._force_commit
                or self.failed is not None
                or self.namespace.unlogged
                or self.namespace.broken
                or intent.overflowed
                or intent.unrecorded
            ):
                return None
            return mirror if mirror.lane_lend(log, ring) else None

    def _note_logged(self, inos: list[int]) -> None:
        """Remember whose contents the data plane has put into records."""
        with self.lock.quietly:
            self.intent.logged.update(inos)

    def _flush_mirrored(self, mirror: Mirror, inos: set[int], *, everything: bool) -> None:
        """Seal what the next root must have: without the lock, requests go on.

        Raises:
            OSError: What only the intent log has could not be sealed: the root that it continues has to stay.
        """
        if everything:
            self.mirror_errno = mirror.flush_all()
        with self.lock.quietly:
            due = self.intent.logged | inos
        number = mirror.flush_these(sorted(due)) if due else 0
        if number:
            raise error(number)

    def _prepare(
        self,
        everything: bool,  # noqa: FBT001  # called by Commits only
        closing: bool,  # noqa: FBT001  # the same
        inos: set[int],
    ) -> Prepared | None:
        """Flush what a commit takes along. COMMIT.md, steps 1 and 2."""
        mirror = self.mirror
        if mirror is not None:
            self._flush_mirrored(mirror, inos, everything=everything or closing)
        with self.lock:
            self.check_writable()
            if everything or closing:
                self.contents.flush_all()
            changed = self.namespace.dirty or self._namespace_tree.dirty or self._force_commit
            if not changed and (not closing or self._map_is_saved or not self._can_save_map):
                return None
            self.namespace.commit()
            self._force_commit = True  # SQLite has committed: a state is due until one is prepared
            try:
                namespace_root = ContentRoot(*self._namespace_tree.flush())
                space_map = self._save_map() if closing else None
            except ChunkError as exc:
                message = (
                    f"namespace: bytes {exc.offset} to {exc.offset + exc.length - 1} are {exc.kind}: run fspf verify"
                )
                raise IntegrityError(message) from exc
            except OSError as exc:
                self.no_space = self.low_on_space = exc.errno in {errno.ENOSPC, errno.EDQUOT}
                raise
            self.low_on_space = self._is_low_on_space()
            self.no_space = self.low_on_space and self._only_reserve_is_left()
            if mirror is not None:
                mirror.set_no_space(self.no_space)
            self._map_is_saved = space_map is not None
            prepared = Prepared(
                namespace=namespace_root,
                space_map=space_map,
                files=self.namespace.files,
                total_bytes=max(self.namespace.bytes, 0),
                number=self.store.commit_begin(),
            )
            self._force_commit = False
            self.intent.committed()
            return prepared

    def _is_low_on_space(self) -> bool:
        """Tell whether commits should be small, so that the reserve is enough for the next one."""
        if self._max_slots and self.store.stats()["slots_used"] > self._max_slots * 3 // 4:
            return True
        host = os.statvfs(self.path)
        return host.f_bavail * host.f_frsize < _LOW_SPACE_BYTES

    def _only_reserve_is_left(self) -> bool:
        """Tell whether there is no full reserve with as much room beside it: the rest is for taking away."""
        stats = self.store.stats()
        reserved = stats["slots_reserved"]
        self._reserve = max(self._reserve, reserved)
        host = os.statvfs(self.path)
        room = host.f_bavail * host.f_frsize // self.header.chunk_size
        if self._max_slots:
            room = min(room, self._max_slots - stats["slots_used"] - stats["slots_pending"] - reserved)
        return reserved < self._reserve or room < self._reserve

    def check_growth(self) -> None:
        """Refuse what makes the namespace larger while only the reserve is left: removing must stay possible."""
        if self.no_space:
            self.store.refill_reserve()
            if (
                self._is_low_on_space()
                and self._only_reserve_is_left()
                and self.namespace.free_pages() < _FREE_PAGES_TO_GROW
            ):
                raise error(errno.ENOSPC)
            self.no_space = False  # there is room again, inside the volume or outside

    @property
    def _can_save_map(self) -> bool:
        """Tell whether the store knows all free slots."""
        return self._rebuild is None or (not self._rebuild.running and self._rebuild.failure is None)

    def _save_map(self) -> ContentRoot | None:
        """Write the space map, if it is known and there is room for it."""
        if not self._can_save_map:
            return None
        try:
            return ContentRoot(*self.store.save_map())
        except (OSError, ChunkError, RuntimeError) as exc:
            log.warning("the space map could not be saved and will be rebuilt: %s", exc)
            return None

    def fail(self, reason: str | FspfError) -> None:
        """Turn the volume read-only for good, once; what is in memory stays readable."""
        if self.failed is None:
            self.failure = reason if isinstance(reason, FspfError) else None
            reason = str(reason)
            self.failed = reason
            self._errors.append(reason)
            if self.mirror is not None:
                self.mirror.set_blocked(errno.EROFS)
            log.error("%s turned read-only: %s", self.path, reason)

    def _start_maintenance(self, commit_interval: float | None) -> None:
        self._maintenance = threading.Thread(
            target=self._maintain, args=(commit_interval,), name="fspf-maintenance", daemon=True
        )
        self._maintenance.start()

    def _maintain(self, commit_interval: float | None) -> None:
        """Commit by the clock, renew the lease, give freed space back."""
        assert self._commits is not None
        now = time.monotonic()
        next_renewal = now + _RENEW_INTERVAL_S
        next_commit = now + commit_interval if commit_interval is not None else float("inf")
        while True:
            self._wake.wait(min(max(0.0, min(next_renewal, next_commit) - time.monotonic()), threading.TIMEOUT_MAX))
            if self._stop.is_set() or self.failed is not None:
                return
            now = time.monotonic()
            if now >= next_commit or self._wake.is_set():
                self._wake.clear()
                self._commit_by_clock()
                next_commit = time.monotonic() + (commit_interval or float("inf"))
            if now >= next_renewal:
                with suppress(FspfError):  # `fail` has logged it
                    self._commits.renew()
                next_renewal = time.monotonic() + _RENEW_INTERVAL_S

    def commit_soon(self) -> None:
        """Let the maintenance thread commit now, without waiting for it."""
        self._wake.set()

    def note_error(self, text: str) -> None:
        """Let `status` show an error that was found outside, as the mount finds damage."""
        self._errors.append(text)

    def _commit_by_clock(self) -> None:
        assert self._commits is not None
        try:
            self._commits.commit(everything=True)
            self.store.trim()
        except (OSError, FspfError) as exc:
            if self.failed is None:
                self._errors.append(str(exc))
                log.error("the commit by the clock failed and is tried again: %s", exc)  # noqa: TRY400

    # -- closing

    def close(self) -> None:
        """Commit, save the space map, release the lease. Idempotent.

        Raises:
            OSError, FspfError: The last commit failed; everything committed before is safe. The files are closed all the same.
        """
        if self._closed:
            return
        if self.opened_by != os.getpid():
            self._closed = True  # the parent's threads, locks and lease are not ours to end
            return
        problem = self._close_streams()
        self._end_threads()
        if self.read_only:
            self._release_files()
            return
        assert self._commits is not None
        try:
            if self.failed is None:
                problem = self._last_commit() or problem
            else:
                problem = self.failure or FspfError(f"the volume had turned read-only: {self.failed}")
            with self.lock:
                self.ended = True
            self._commits.wait_idle()
            self._commits.stop()
            with suppress(OSError, FspfError):  # the lease then ends by itself
                self._commits.release()
        finally:
            self._release_files()
        if problem is not None:
            raise problem

    def _close_streams(self) -> BaseException | None:
        """Close what the caller left open for writing: what is in its buffers is data of this volume."""
        problem: BaseException | None = None
        for stream in list(self.streams):
            try:
                stream.close()
            except (OSError, FspfError) as exc:
                problem = problem or exc
        return problem

    def _last_commit(self) -> BaseException | None:
        assert self._commits is not None
        if self._rebuild is not None:
            self._rebuild.wait()
        try:
            self._commits.commit(everything=True, closing=True)
            self.store.drop_reserve()
            if self._failures():  # no room for some data: perhaps there is now
                self.store.trim()
                self._commits.commit(everything=True, closing=True)
            self.store.trim()
        except (OSError, FspfError) as exc:
            return exc
        failures = self._failures()
        return failures[0] if failures else None

    def abandon(self) -> None:
        """Let go as if killed: nothing is committed; only files and the lease are released."""
        if self._closed:
            return
        if self.opened_by != os.getpid():
            self._closed = True
            return
        self.failed = self.failed or "the volume was abandoned"
        self._end_threads()
        if self._rebuild is not None:
            self._rebuild.stop()
        if self._commits is not None:
            self._commits.wait_idle()
            self._commits.stop()
            with suppress(OSError, FspfError):
                self._commits.release()
        self._release_files()

    def _end_threads(self) -> None:
        self._closed = True
        self._stop.set()
        self._wake.set()
        if self._maintenance is not None and self._maintenance is not threading.current_thread():
            self._maintenance.join()

    def _release_files(self) -> None:
        with self.lock:
            if hasattr(self, "namespace"):
                self.namespace.close()
            self.store.close()
            self._layout.close()
        if self._owned is not None:
            self._owned.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- looking

    def check_space(self, length: int) -> None:
        """Raise ENOSPC when *length* more bytes cannot fit."""
        space = self.statfs()
        if length > space.available * space.block_size:
            raise error(errno.ENOSPC)

    def statfs(self) -> StatFs:
        """Return the space of the volume: the host's, with what is free inside the segments."""
        host = os.statvfs(self.path)
        stats = self.store.stats()
        unit = self.header.chunk_size
        used = stats["slots_used"]
        free = host.f_bfree * host.f_frsize // unit
        available = host.f_bavail * host.f_frsize // unit
        with self.lock:
            files = self.namespace.files
        return StatFs(used + free, free, available, _FILES_LIMIT, _FILES_LIMIT - files, unit, NAME_MAX)

    def status(self) -> dict[str, Any]:
        """Return what `fspf status` shows; JSON-able."""
        if self.ended:
            message = "the volume is closed"
            raise ValueError(message)
        stats = self.store.stats()
        commits = self._commits
        if commits is not None:
            commits.catch_up()
        state = self.root_record
        with self.lock:
            files, total = self.namespace.files, self.namespace.bytes
            rows = self.namespace.dirty
            if self.mirror is not None:  # what only the log has is committed, though the database is ahead of its root
                rows = self.namespace.unlogged or self.intent.overflowed or bool(self.intent.unrecorded)
            dirty = rows or self.contents.any_changed
        generation = commits.generation if commits else state.generation if state else 0
        return {
            "name": self.record.name,
            "volume_id": self.header.volume_id.hex(),
            "path": str(self.path),
            "cas": self._cas.url,
            "read_only": self.read_only or self.failed is not None,
            "failed": self.failed,
            "generation": generation,
            "anchored_generation": commits.anchor.generation if commits else self.record.anchor.generation,
            "epoch": self.epoch,
            "freshness": str(self.record.freshness),
            "dirty": dirty,
            "dirty_bytes": stats["dirty_bytes"],
            "files": files,
            "bytes": total,
            "chunk_size": self.header.chunk_size,
            "slots_used": stats["slots_used"],
            "slots_free": stats["slots_free"],
            "segments": stats["segments"],
            "rebuilding": self._rebuild is not None and self._rebuild.running,
            "commits": commits.count if commits else 0,
            "errors": list(self._errors),
            "problems": list(self.problems),
        }


def _check_namespace(layout: Layout) -> Callable[[Opening], None]:
    """Return a check that the namespace of a chosen state opens, before a lease is taken and a key is written for it."""

    def check(opening: Opening) -> None:
        header, state = opening.header, opening.state
        store = Store(
            str(layout.segments), chunk_size=header.chunk_size, segment_slots=header.segment_slots, cache_bytes=1 << 20
        )
        try:
            for epoch, key in opening.epoch_keys.items():
                store.add_epoch(epoch, key)
            tree = Tree(store, state.namespace, metadata=True)
            try:
                Namespace.open(tree, chunk_size=header.chunk_size, read_only=True, cache_bytes=1 << 20).close()
            except ChunkError as exc:
                message = (
                    f"namespace: bytes {exc.offset} to {exc.offset + exc.length - 1} are {exc.kind}: run fspf verify"
                )
                raise IntegrityError(message) from exc
        finally:
            store.close()

    return check
