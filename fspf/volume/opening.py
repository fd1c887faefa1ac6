"""Find out which state of a volume is the one to open, with which keys.

It reads claims through `Layout` and asks the CAS; the decision is `fspf.core.freshness.choose_root`'s. It changes nothing.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fspf.core.anchor import Anchor, RecordKeeper
from fspf.core.errors import (
    AnchorMovedError,
    CasUnreachableError,
    FormatError,
    FreshnessError,
    FspfError,
    IntegrityError,
    LeaseHeldError,
    UnsupportedFormatError,
    WrongKeyError,
)
from fspf.core.format import ROOT_NAMES, RootFrame, RootRecord
from fspf.core.freshness import choose_root
from fspf.core.keys import log_key
from fspf.core.log import Chain, LogRecord, follow
from fspf.volume.holder import this_process
from fspf.volume.layout import sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.core.anchor import Cas, CasRecord, Lease
    from fspf.core.format import Header, Keyring
    from fspf.volume.layout import Layout
    from fspf_native import SecretKey

log = logging.getLogger(__name__)

_TRIES: Final = 5  # a writer may commit between asking the CAS and reading the roots


@dataclass(frozen=True, slots=True)
class Opening:
    """A verified state and what is needed to read it."""

    header: Header
    header_bytes: bytes
    record: CasRecord
    keyring: Keyring
    epoch_keys: dict[int, SecretKey]
    state: RootRecord
    problems: tuple[str, ...]  # damage that did not hinder opening: a torn root, a keyring copy
    stale: FreshnessError | None = None  # only with accept_stale: what would have refused it
    log: tuple[LogRecord, ...] = ()  # records of the intent log that continue *state*
    missing: tuple[tuple[int, bytes], ...] = ()  # offset and frame of those that only the CAS has kept

    @property
    def head(self) -> Anchor:
        """Generation and root tag of the state with its log: what the CAS has or gets."""
        last = self.log[-1] if self.log else self.state
        return Anchor(last.generation, last.tag)


def find_state(layout: Layout, cas: Cas, *, accept_stale: bool = False) -> Opening:
    """Read header, keyring and roots, ask the CAS, and choose.

    Args:
        accept_stale: Take the newest authentic state even if it is not fresh; for salvage only.

    Raises:
        NotAVolumeError, UnsupportedFormatError, FormatError, IntegrityError, FreshnessError, WrongKeyError: see there.
        UnknownVolumeError, CasUnreachableError: from the CAS.
    """
    header, header_bytes = layout.read_header()
    layout.check_segments()
    tries = 0
    while True:
        tries += 1
        record = cas.fetch(header.volume_id)
        roots = layout.read_roots()
        try:
            return _choose(layout, cas, header, header_bytes, record, roots, accept_stale=accept_stale)
        except (IntegrityError, WrongKeyError):
            # A writer may be ahead of the CAS: then a root record tells that the log was begun anew meanwhile.
            again = cas.fetch(header.volume_id)
            same_anchor = (again.anchor, again.epoch, again.key_version) == (
                record.anchor,
                record.epoch,
                record.key_version,
            )
            if tries >= _TRIES or (same_anchor and _shown(layout.read_roots()) == _shown(roots)):
                raise


def _shown(roots: dict[str, bytes | IntegrityError]) -> dict[str, bytes | str]:
    return {name: raw if isinstance(raw, bytes) else str(raw) for name, raw in roots.items()}


def lock_for_writing(layout: Layout, cas: Cas) -> None:
    """Take the lock on this machine; who has it is named as the CAS knows him.

    Raises:
        LeaseHeldError: Another process, or another `Volume` of this one, has the volume open for writing.
        FspfError: As `Layout.read_header`: a wrong path is told before a lock is made.
    """
    header, _ = layout.read_header()
    try:
        layout.lock()
    except LeaseHeldError:
        try:
            lease = cas.fetch(header.volume_id).lease
        except FspfError:
            lease = None
        if lease is None:
            raise
        message = f"{layout.path} is open for writing by {lease.holder}: close or unmount it there"
        raise LeaseHeldError(lease.holder, message) from None


def acquire_state(
    layout: Layout, cas: Cas, label: str, check: Callable[[Opening], None] | None = None
) -> tuple[Opening, Lease]:
    """Choose the state and take the lease on exactly that choice.

    Args:
        check: Looks at the choice before anything is changed, here or in the CAS; what it raises refuses the opening.

    Raises:
        LeaseHeldError: Somebody writes.
        FspfError: As `find_state`.
    """
    tries = 0
    while True:
        tries += 1
        opening = find_state(layout, cas)
        record = opening.record
        if check is not None:
            check(opening)
        _settle(layout, opening)
        adopt, holder = opening.head, this_process(label)
        try:
            lease = cas.acquire(
                record.volume_id, expected=record.anchor, expected_epoch=record.epoch, adopt=adopt, holder=holder
            )
        except AnchorMovedError:
            if tries >= _TRIES:
                raise
        except CasUnreachableError:
            # Granted or not? A lease that nobody knows of would keep everybody out until it ends.
            now = cas.fetch(record.volume_id)
            if now.lease is None or now.lease.holder != holder or now.epoch != record.epoch + 1 or now.anchor != adopt:
                raise
            return opening, now.lease
        else:
            return opening, lease


def _settle(layout: Layout, opening: Opening) -> None:
    """Make durable what is about to be built on, before the CAS is told of it. COMMIT.md, opening.

    The last writer may have been killed between a step and its sync. Then we see what it did through the host's memory
    only, and a power cut would take it away: the root record that we adopt, the name of a segment file that we go on
    to fill, the names of a volume just made.
    """
    state = opening.state
    if len(opening.log) > len(opening.missing):
        layout.sync_log()  # also of what is anchored: the CAS may have kept it, and its own unsynced writes are not ours to see
    if opening.head.root_tag != opening.record.anchor.root_tag:  # all that it reaches was synced before it was written
        fd = os.open(layout.path / ROOT_NAMES[state.generation % 2], os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_directory(layout.segments)
    sync_directory(layout.path)
    if state.generation == 1:
        with suppress(OSError):  # a parent that may not be read is somebody else's
            sync_directory(layout.path.parent)


def complete_log(layout: Layout, cas: Cas, opening: Opening) -> None:
    """Write the records that only the CAS has kept into the volume's own log, under the lease; from then on it needs none of the CAS's.

    Raises:
        OSError: There is no room. Nothing is lost: the CAS has them still.
    """
    if not opening.missing:
        return
    log.info("%d records of the intent log come from the CAS", len(opening.missing))
    layout.prepare_log()
    for offset, frame in opening.missing:
        layout.write_log(offset, frame)
    layout.sync_log()
    if isinstance(cas, RecordKeeper):
        cas.settle(opening.header.volume_id)


def _choose(
    layout: Layout,
    cas: Cas,
    header: Header,
    header_bytes: bytes,
    record: CasRecord,
    roots: dict[str, bytes | IntegrityError],
    *,
    accept_stale: bool,
) -> Opening:
    problems: list[str] = []
    claimed: list[RootRecord] = []
    damaged: dict[str, str] = {}  # root files that hold no root, and why
    refused = False
    absent = False  # root.a is missing or empty
    newer: UnsupportedFormatError | None = None
    other_versions: dict[int, str] = {}
    for name, raw in roots.items():
        if isinstance(raw, IntegrityError):
            if record.anchor.generation > 1 or name != ROOT_NAMES[0]:  # generation 2 comes with the second commit
                damaged[name] = str(raw)
                absent = absent or name == ROOT_NAMES[0]
            continue
        if record.anchor.generation <= 1 and not any(raw):
            continue  # the second root of a volume with one commit
        absent = absent or (name == ROOT_NAMES[0] and not any(raw))
        try:
            frame = RootFrame.parse(raw)
            if frame.key_version != record.key_version:
                other_versions[frame.key_version] = (
                    f"{name}: sealed under version {frame.key_version} of the volume key, the CAS has {record.key_version}"
                )
                continue  # beside a good one no problem: a rekey, finished or interrupted, leaves it so
            root = frame.open(record.key, header_bytes)
        except FormatError as exc:  # torn, or no frame at all
            damaged[name] = str(exc)
        except IntegrityError as exc:
            damaged[name] = str(exc)
            refused = True
        except UnsupportedFormatError as exc:
            damaged[name] = str(exc)
            newer = exc
        else:
            if ROOT_NAMES[root.generation % 2] == name:
                claimed.append(root)
            else:  # FORMAT.md 4; the next commit would be written over the state that is anchored
                damaged[name] = (
                    f"generation {root.generation} belongs into the other root file: files were tampered with"
                )
                refused = True
    if absent and [root.generation for root in claimed] == [1] and claimed[0].log_follows:
        damaged.pop(ROOT_NAMES[0])  # it comes with the second root record; the log has gone on meanwhile
    problems += [f"{name}: {why}" for name, why in damaged.items()]
    keyring = layout.read_keyring(record.epoch)
    epoch_keys, keyring_problems = _open_keyring(header, record, keyring)
    problems += keyring_problems
    if not claimed:
        problems += other_versions.values()
        if newer is not None:
            raise newer
        if refused and not epoch_keys:
            message = (
                f"the key that the CAS holds for volume {header.volume_id.hex()} opens neither its root records nor its "
                "keyring: is this the right CAS?"
            )
            raise WrongKeyError(message)
        message = (
            f"no root record can be read, generation {record.anchor.generation} is anchored: {'; '.join(problems) or 'both are empty'}: "
            "restore root.a and root.b from the newest copy of the volume"
        )
        if other_versions and not refused and max(other_versions) < record.key_version:
            raise FreshnessError(message, expected_generation=record.anchor.generation, found_generation=0)
        raise IntegrityError(message)
    stale: FreshnessError | None = None
    chains = _Chains(layout, cas, header, header_bytes, record, claimed)
    try:
        state, log_records = chains.choose()
    except FreshnessError as exc:
        # The anchored record damaged beside an intact older one is damage: a rollback leaves authentic files.
        anchored = ROOT_NAMES[record.anchor.generation % 2]
        if not accept_stale:
            if newer is not None:
                raise newer from None
            if anchored not in damaged and any(root.log_follows for root in claimed):
                anchored = next(iter(damaged), anchored)  # the one that the anchored record of the log continues
            if anchored in damaged:
                message = (
                    f"generation {exc.expected_generation} is anchored, its root record cannot be read ({anchored}: "
                    f"{damaged[anchored]}), the other is of generation {exc.found_generation}: restore {anchored} from the newest copy"
                )
                raise IntegrityError(message) from None
            if other_versions and max(other_versions) > record.key_version:
                message = f"{exc}; {'; '.join(other_versions.values())}"
                raise IntegrityError(message) from None
            if chains.problem:
                message = (
                    f"generation {exc.expected_generation} is anchored, the newest found is {exc.found_generation}: "
                    f"{chains.problem}: restore the file log from the newest copy"
                )
                raise IntegrityError(message) from None
            raise
        stale = exc
        state, log_records = chains.newest()
    needed = [epoch for epoch in epoch_keys if epoch <= state.epoch]
    if len(needed) != state.keyring_epochs or state.epoch not in epoch_keys:
        message = (
            f"keyring: {state.keyring_epochs} epochs up to {state.epoch} expected, {len(needed)} can be read"
            f"{': ' + '; '.join(keyring_problems) if keyring_problems else ''}: restore keyring from keyring.bak or a copy"
        )
        if not accept_stale:
            raise IntegrityError(message)
        problems.append(message)
    missing = chains.missing(state, len(log_records))
    return Opening(
        header, header_bytes, record, keyring, epoch_keys, state, tuple(problems), stale, log_records, missing
    )


class _Chains:
    """Root records with the records of the intent log that continue them.

    Attributes:
        problem: Why a chain ends where something like a record follows.
    """

    def __init__(
        self,
        layout: Layout,
        cas: Cas,
        header: Header,
        header_bytes: bytes,
        record: CasRecord,
        claimed: list[RootRecord],
    ) -> None:
        self._layout = layout
        self._cas = cas
        self._header = header
        self._header_bytes = header_bytes
        self._record = record
        self._roots = sorted(claimed, key=lambda root: root.generation, reverse=True)
        self._found: dict[bytes, Chain] = {}  # by tag of the root record
        self.problem = ""

    def _follow(self, root: RootRecord) -> tuple[LogRecord, ...]:
        if root.tag not in self._found:
            chain = Chain((), "")
            if root.log_follows:
                kept = self._cas.kept_records(root.volume_id) if isinstance(self._cas, RecordKeeper) else ()
                chain = follow(
                    self._layout.read_log(),
                    log_key(self._record.key, self._header.volume_id, root.epoch),
                    key_version=root.key_version,
                    header_bytes=self._header_bytes,
                    volume_id=self._header.volume_id,
                    epoch=root.epoch,
                    generation=root.generation,
                    tag=root.tag,
                    kept=kept,
                )
                self.problem = self.problem or chain.problem
            self._found[root.tag] = chain
        return self._found[root.tag].records

    def missing(self, root: RootRecord, count: int) -> tuple[tuple[int, bytes], ...]:
        """Return those of the first *count* records after *root* that the log file does not have."""
        chain = self._found.get(root.tag, Chain((), ""))
        return tuple((offset, frame) for number, offset, frame in chain.missing if number < count)

    def _with_log(self, roots: list[RootRecord]) -> dict[bytes, tuple[RootRecord, tuple[LogRecord, ...]]]:
        """Return every state that is there, by its tag."""
        states = {root.tag: (root, ()) for root in self._roots} | {
            records[end - 1].tag: (root, records[:end])
            for root in roots
            for records in [self._follow(root)]
            for end in range(1, len(records) + 1)
        }
        return dict(states)

    def choose(self) -> tuple[RootRecord, tuple[LogRecord, ...]]:
        """Choose the state to open; the log of the older root is looked at only if nothing else will do.

        Raises:
            FreshnessError: As `choose_root`.
        """
        for roots in (self._roots[:1], self._roots):
            states = self._with_log(roots)
            heads = [records[-1] if records else root for root, records in states.values()]
            try:
                chosen = choose_root(heads, self._record.anchor, self._record.epoch, self._record.freshness)
            except FreshnessError:
                if roots is not self._roots and len(self._roots) > 1:
                    continue
                raise
            return states[chosen.tag]
        raise AssertionError

    def newest(self) -> tuple[RootRecord, tuple[LogRecord, ...]]:
        """Return the newest state, fresh or not."""
        return self._roots[0], self._follow(self._roots[0])


def _open_keyring(header: Header, record: CasRecord, keyring: Keyring) -> tuple[dict[int, SecretKey], list[str]]:
    """Unwrap every epoch key; a record that does not open is a problem only if the state needs it."""
    found: dict[int, SecretKey] = {}
    problems = [f"keyring: record {place} is torn in both copies" for place in keyring.torn]
    for epoch, entry in keyring.of_version(record.key_version).items():
        try:
            found[epoch] = entry.unwrap(record.key, header.volume_id)
        except WrongKeyError as exc:
            problems.append(str(exc))
    return found, problems
