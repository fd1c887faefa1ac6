"""Which state `find_state` chooses, for root records, keyrings and CAS records made by hand; no segment is needed.

The decision on values alone is tested with `fspf.core.freshness`; damaged segments in tests/tamper.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fspf.core.anchor import Anchor, CasRecord, Holder, Lease
from fspf.core.errors import (
    AnchorMovedError,
    FormatError,
    FreshnessError,
    FspfError,
    IntegrityError,
    LeaseHeldError,
    NotAVolumeError,
    TornError,
    UnknownVolumeError,
    UnsupportedFormatError,
    WrongKeyError,
)
from fspf.core.format import ROOT_NAMES, Header, KeyringRecord, RootFrame, RootRecord
from fspf.core.freshness import Freshness
from fspf.core.types import HOLE, ContentRoot
from fspf.volume.layout import Layout
from fspf.volume.opening import acquire_state, find_state
from fspf_native import SecretKey
from tools.lib.tampering.memory_cas import MemoryCas
from tools.lib.tampering.patient import checksum

VOLUME_ID = bytes(range(16))


@dataclass
class Made:
    """A volume directory without segments, and its CAS."""

    path: Path
    key: SecretKey = field(default_factory=lambda: SecretKey.from_bytes(b"\x11" * 32))
    header: bytes = field(default_factory=lambda: Header(VOLUME_ID).pack())
    epochs: dict[int, SecretKey] = field(default_factory=dict)
    tags: dict[int, bytes] = field(default_factory=dict)
    cas: MemoryCas = field(default_factory=MemoryCas)

    def __post_init__(self) -> None:
        (self.path / "segments").mkdir(parents=True)
        (self.path / "header").write_bytes(self.header)

    @property
    def layout(self) -> Layout:
        return Layout(self.path)

    def keyring(self, *epochs: int, version: int = 1) -> None:
        """Write both copies with a key for each epoch."""
        records = b""
        for epoch in epochs:
            key = self.epochs.setdefault(epoch, SecretKey.from_bytes(bytes([epoch]) * 32))
            records += KeyringRecord.wrap(self.key, version, VOLUME_ID, epoch, key).pack()
        for name in ("keyring", "keyring.bak"):
            (self.path / name).write_bytes(records)

    def frame(
        self, generation: int, epoch: int = 1, *, epochs: int | None = None, version: int = 1, salt: int = 0
    ) -> bytes:
        record = RootRecord(
            volume_id=VOLUME_ID,
            generation=generation,
            epoch=epoch,
            previous_tag=bytes(16) if generation == 1 else b"\x01" * 16,
            anchor_generation=0,
            anchor_tag=bytes(16),
            namespace=ContentRoot(0, 0, HOLE),
            space_map=None,
            end_of_slots=0,
            files=1,
            total_bytes=0,
            keyring_epochs=epoch if epochs is None else epochs,
            created_ns=salt,
        )
        return record.seal(self.key, version, self.header, bytes([generation, epoch, salt]) + bytes(9))

    def root(
        self, generation: int, epoch: int = 1, *, epochs: int | None = None, version: int = 1, salt: int = 0
    ) -> Anchor:
        raw = self.frame(generation, epoch, epochs=epochs, version=version, salt=salt)
        (self.path / ROOT_NAMES[generation % 2]).write_bytes(raw)
        return Anchor(generation, RootFrame.parse(raw).tag)

    def anchored(
        self, anchor: Anchor, epoch: int = 1, *, freshness: Freshness | None = None, version: int = 1
    ) -> MemoryCas:
        self.cas.records[VOLUME_ID] = CasRecord(
            VOLUME_ID, "made", self.key, version, anchor, epoch, None, freshness or Freshness.strict()
        )
        return self.cas

    def edit(self, name: str, edit: Callable[[bytes], bytes]) -> None:
        (self.path / name).write_bytes(edit((self.path / name).read_bytes()))


@pytest.fixture
def made(scratch: Path) -> Made:
    return Made(scratch / "volume")


def fixed(raw: bytes) -> bytes:
    return raw[:-8] + checksum(raw[:-8])


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda raw: fixed(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])


# -- the right state


def test_the_anchored_state_opens(made: Made) -> None:
    made.keyring(1)
    made.root(4)
    opening = find_state(made.layout, made.anchored(made.root(5)))
    assert opening.state.generation == 5
    assert opening.problems == ()
    assert set(opening.epoch_keys) == {1}
    assert opening.header.volume_id == VOLUME_ID


def test_one_commit_has_one_root(made: Made) -> None:
    made.keyring(1)
    anchor = made.root(1)
    assert find_state(made.layout, made.anchored(anchor)).state.generation == 1
    (made.path / "root.a").write_bytes(bytes(4096))
    assert find_state(made.layout, made.cas).problems == ()


def test_a_later_commit_of_the_last_epoch_opens(made: Made) -> None:
    made.keyring(1)
    anchor = made.root(4)
    made.root(5)
    assert find_state(made.layout, made.anchored(anchor)).state.generation == 5


def test_a_later_commit_that_tore_leaves_the_anchored_one(made: Made) -> None:
    made.keyring(1)
    anchor = made.root(4)
    made.root(5)
    made.edit("root.b", lambda raw: raw[:512] + bytes(3584))
    opening = find_state(made.layout, made.anchored(anchor))
    assert opening.state.generation == 4
    assert "torn" in opening.problems[0]


def test_keys_of_epochs_that_no_state_needs_do_not_matter(made: Made) -> None:
    """A writer that died between writing its key and its first commit."""
    made.keyring(1, 2, 3)
    opening = find_state(made.layout, made.anchored(made.root(5, 1), 3))
    assert opening.state.epoch == 1
    assert len(opening.epoch_keys) == 3


# -- old and forked states


@pytest.mark.parametrize(
    ("roots", "anchor", "last_epoch", "found"),
    [
        pytest.param([(2, 1), (3, 1)], 5, 1, 3, id="both older"),
        pytest.param([(4, 1)], 5, 1, 4, id="only the one before"),
        pytest.param([(2, 1), (5, 1, 9)], 5, 1, 5, id="same generation, other tag"),
        pytest.param([(4, 1), (7, 1)], 5, 2, 7, id="later generation of an ended epoch"),
        pytest.param([(4, 1), (7, 3)], 5, 2, 7, id="epoch that the CAS never granted"),
        pytest.param([(2, 2), (3, 2)], 5, 2, 3, id="older generations of the last epoch"),
    ],
)
def test_what_is_not_anchored_is_refused(
    made: Made, roots: list[tuple[int, ...]], anchor: int, last_epoch: int, found: int
) -> None:
    made.keyring(1, 2, 3)
    for generation, epoch, *salt in roots:
        made.root(generation, epoch, salt=salt[0] if salt else 0)
    made.anchored(Anchor(anchor, b"\xaa" * 16), last_epoch)
    if anchor not in [root[0] for root in roots]:
        (made.path / ROOT_NAMES[anchor % 2]).touch()
        if not any(root[0] % 2 == anchor % 2 for root in roots):
            made.root(anchor - 2)
    with pytest.raises(FreshnessError) as caught:
        find_state(made.layout, made.cas)
    assert (caught.value.expected_generation, caught.value.found_generation) == (anchor, found)
    assert str(anchor) in str(caught.value)
    assert str(found) in str(caught.value)


def test_mode_none_takes_the_newest_authentic_state(made: Made) -> None:
    made.keyring(1, 2)
    made.root(2)
    made.root(3)
    made.anchored(Anchor(9, b"\xaa" * 16), 2, freshness=Freshness.none())
    assert find_state(made.layout, made.cas).state.generation == 3


def test_mode_none_does_not_take_an_epoch_that_was_never_granted(made: Made) -> None:
    made.keyring(1, 2, 3)
    made.root(3, 3)
    made.root(2, 3)
    made.anchored(Anchor(1, b"\xaa" * 16), 2, freshness=Freshness.none())
    with pytest.raises(FreshnessError):
        find_state(made.layout, made.cas)


def test_salvage_takes_an_old_state_and_says_so(made: Made) -> None:
    made.keyring(1)
    made.root(2)
    made.root(3)
    made.anchored(Anchor(9, b"\xaa" * 16))
    opening = find_state(made.layout, made.cas, accept_stale=True)
    assert opening.state.generation == 3
    assert isinstance(opening.stale, FreshnessError)


def test_an_old_state_under_an_old_key_is_old_not_tampered(made: Made) -> None:
    made.keyring(1)
    made.root(2)
    made.root(3)
    made.anchored(Anchor(9, b"\xaa" * 16), 2, version=2)
    with pytest.raises(FreshnessError, match="version 1 of the volume key") as caught:
        find_state(made.layout, made.cas)
    assert caught.value.expected_generation == 9


# -- damaged roots


@pytest.mark.parametrize(
    ("how", "word"),
    [
        pytest.param(lambda raw: raw[:-1] + b"\0", "torn", id="torn"),
        pytest.param(lambda raw: raw[:100], "torn", id="cut"),
        pytest.param(lambda raw: raw[:0], "torn", id="empty"),
        pytest.param(flipped(0), "tampered", id="magic"),
        pytest.param(flipped(35), "tampered", id="tag"),
        pytest.param(flipped(60), "tampered", id="sealed"),
        pytest.param(flipped(4000), "tampered", id="padding"),
        pytest.param(flipped(12), "tampered", id="epoch"),
    ],
)
def test_a_damaged_anchored_root_is_damage_not_a_rollback(made: Made, how: Callable[[bytes], bytes], word: str) -> None:
    """The one before it is authentic and old; but nobody who rolls back damages the newest."""
    made.keyring(1)
    made.root(4)
    made.anchored(made.root(5))
    made.edit("root.b", how)
    with pytest.raises(IntegrityError, match=word) as caught:
        find_state(made.layout, made.cas)
    assert caught.value.exit_code == 20
    assert "5" in str(caught.value)


def test_a_missing_anchored_root_is_damage_not_a_rollback(made: Made) -> None:
    made.keyring(1)
    made.root(4)
    made.anchored(made.root(5))
    (made.path / "root.b").unlink()
    with pytest.raises(IntegrityError, match="missing") as caught:
        find_state(made.layout, made.cas)
    assert caught.value.exit_code == 20


def test_a_damaged_older_root_is_a_problem_only(made: Made) -> None:
    made.keyring(1)
    made.root(4)
    made.anchored(made.root(5))
    made.edit("root.a", flipped(60))
    opening = find_state(made.layout, made.cas)
    assert opening.state.generation == 5
    assert "root.a" in opening.problems[0]


def test_a_root_in_the_wrong_file_is_refused(made: Made) -> None:
    """The next commit would be written over the anchored state."""
    made.keyring(1)
    made.root(4)
    made.anchored(made.root(5))
    a, b = ((made.path / name).read_bytes() for name in ROOT_NAMES)
    (made.path / "root.a").write_bytes(b)
    (made.path / "root.b").write_bytes(a)
    with pytest.raises(IntegrityError, match=r"root\.[ab]") as caught:
        find_state(made.layout, made.cas)
    assert caught.value.exit_code == 20


def test_no_root_at_all(made: Made) -> None:
    made.keyring(1)
    made.anchored(Anchor(5, b"\xaa" * 16))
    with pytest.raises(IntegrityError, match="no root record can be read") as caught:
        find_state(made.layout, made.cas)
    assert type(caught.value) is IntegrityError


# -- keys


def test_a_root_whose_epoch_key_is_missing_is_refused(made: Made) -> None:
    made.keyring(1)
    made.anchored(made.root(5, 2), 2)
    with pytest.raises(IntegrityError, match="2 epochs up to 2 expected, 1 can be read"):
        find_state(made.layout, made.cas)


def test_an_epoch_too_many_is_refused(made: Made) -> None:
    """A key that was slipped in below the state's epoch: the record counts them."""
    made.keyring(1, 2, 3)
    made.anchored(made.root(5, 3, epochs=2), 3)
    with pytest.raises(IntegrityError, match="2 epochs up to 3 expected, 3 can be read"):
        find_state(made.layout, made.cas)


def test_keyring_copies_complete_each_other(made: Made) -> None:
    made.keyring(1, 2)
    made.anchored(made.root(5, 2), 2)
    made.edit("keyring", lambda raw: bytes(64) + raw[64:])
    made.edit("keyring.bak", lambda raw: raw[:64])
    assert find_state(made.layout, made.cas).keyring.repair


def test_another_key_opens_nothing(made: Made) -> None:
    made.keyring(1)
    anchor = made.root(5)
    made.anchored(anchor)
    made.cas.records[VOLUME_ID] = replace(made.cas.records[VOLUME_ID], key=SecretKey.from_bytes(b"\x22" * 32))
    with pytest.raises(WrongKeyError, match="is this the right CAS") as caught:
        find_state(made.layout, made.cas)
    assert caught.value.exit_code == 24


def test_an_unknown_volume(made: Made) -> None:
    made.keyring(1)
    made.root(5)
    with pytest.raises(UnknownVolumeError):
        find_state(made.layout, made.cas)


# -- directories


@pytest.mark.parametrize(
    ("what", "error"),
    [
        pytest.param(lambda path: path.exists(), NotAVolumeError, id="no such directory"),
        pytest.param(lambda path: path.mkdir(), NotAVolumeError, id="empty directory"),
        pytest.param(lambda path: path.write_bytes(b"x"), NotAVolumeError, id="a file"),
        pytest.param(lambda path: (path.mkdir(), (path / "keyring").touch()), IntegrityError, id="header is gone"),
        pytest.param(
            lambda path: (path.mkdir(), (path / "header").write_bytes(b"some other program's")),
            NotAVolumeError,
            id="somebody else's header",
        ),
        pytest.param(
            lambda path: (path.mkdir(), (path / "root.a").touch(), (path / "header").touch()),
            TornError,
            id="empty header",
        ),
    ],
)
def test_what_is_no_volume(scratch: Path, what: Callable[[Path], object], error: type[FspfError]) -> None:
    path = scratch / "thing"
    what(path)
    with pytest.raises(error) as caught:
        find_state(Layout(path), MemoryCas())
    assert type(caught.value) is error


def test_a_newer_header_is_refused_before_the_cas_is_asked(made: Made) -> None:
    made.edit("header", lambda raw: fixed(raw[:8] + b"\x02\x00" + raw[10:]))
    with pytest.raises(UnsupportedFormatError) as caught:
        find_state(made.layout, made.cas)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", ["header", "keyring", "root.b"])
def test_a_fifo_does_not_hang(made: Made, name: str) -> None:
    made.keyring(1)
    made.anchored(made.root(5))
    (made.path / name).unlink()
    os.mkfifo(made.path / name)
    outcome: list[BaseException | None] = []

    def attempt() -> None:
        try:
            find_state(made.layout, made.cas)
        except BaseException as exc:  # noqa: BLE001  # handed over
            outcome.append(exc)
        else:
            outcome.append(None)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    if thread.is_alive():
        with open(made.path / name, "wb"):  # let it go
            pass
        thread.join()
        pytest.fail(f"a fifo in the place of {name} hangs the opening")
    if name == "keyring":
        assert outcome == [None], "the other copy is whole"
    else:
        assert isinstance(outcome[0], IntegrityError)


def test_a_format_error_in_one_keyring_is_tampering(made: Made) -> None:
    made.keyring(1)
    made.anchored(made.root(5))
    made.edit(
        "keyring",
        lambda raw: raw[:8] + bytes([raw[8] ^ 1]) + raw[9:56] + checksum(raw[:8] + bytes([raw[8] ^ 1]) + raw[9:56]),
    )
    with pytest.raises(FormatError, match="two different keys"):
        find_state(made.layout, made.cas)


# -- races with a writer


class _MovingCas(MemoryCas):
    """The writer commits between our asking and our reading."""

    def __init__(self, made: Made, moves: int) -> None:
        super().__init__()
        self._made, self.left, self.fetched = made, moves, 0

    def fetch(self, volume_id: bytes) -> CasRecord:
        record = super().fetch(volume_id)
        self.fetched += 1
        if self.left:
            self.left -= 1
            for _ in range(2):  # both root files are newer than what was just told
                anchor = self._made.root(self.records[volume_id].anchor.generation + 1, 2)
                self.records[volume_id] = replace(self.records[volume_id], anchor=anchor, epoch=3)
        return record


@pytest.mark.parametrize("moves", [1, 2])
def test_a_writer_that_commits_meanwhile_is_no_rollback(made: Made, moves: int) -> None:
    made.keyring(1, 2, 3)
    made.cas = cas = _MovingCas(made, 0)
    made.root(4, 2)
    made.anchored(made.root(5, 2), 3)
    cas.left = moves
    assert find_state(made.layout, made.cas).state.generation >= 5


def test_a_volume_that_is_wrong_is_not_asked_about_for_ever(made: Made) -> None:
    made.keyring(1)
    made.root(2)
    cas = _MovingCas(made, 0)
    made.cas = cas
    made.anchored(Anchor(9, b"\xaa" * 16))
    with pytest.raises(IntegrityError):
        find_state(made.layout, cas)
    assert cas.fetched == 2


# -- taking the lease


def test_the_lease_adopts_the_state_that_was_chosen(made: Made) -> None:
    made.keyring(1)
    anchor = made.root(4)
    later = made.root(5)
    opening, lease = acquire_state(made.layout, made.anchored(anchor), "test")
    assert opening.state.generation == 5
    assert lease.epoch == 2
    assert made.cas.fetch(VOLUME_ID).anchor == later


def test_a_held_lease_names_its_holder(made: Made) -> None:
    made.keyring(1)
    made.anchored(made.root(5))
    holder = Holder("elsewhere", "boot", 77, 1, 1, "mount")
    made.cas.acquire(
        VOLUME_ID,
        expected=made.cas.fetch(VOLUME_ID).anchor,
        expected_epoch=1,
        adopt=made.cas.fetch(VOLUME_ID).anchor,
        holder=holder,
    )
    with pytest.raises(LeaseHeldError, match=r"elsewhere/77 \(mount\)"):
        acquire_state(made.layout, made.cas, "test")


class _RacingCas(MemoryCas):
    """Somebody else takes and releases the lease between our fetch and our acquire."""

    races = 1
    tried = 0

    def acquire(
        self, volume_id: bytes, *, expected: Anchor, expected_epoch: int, adopt: Anchor, holder: Holder
    ) -> Lease:
        self.tried += 1
        if self.races:
            self.races -= 1
            self.records[volume_id] = replace(self.records[volume_id], epoch=self.records[volume_id].epoch + 1)
        return super().acquire(volume_id, expected=expected, expected_epoch=expected_epoch, adopt=adopt, holder=holder)


def test_a_lost_race_for_the_lease_is_tried_again(made: Made) -> None:
    made.keyring(1)
    made.cas = cas = _RacingCas()
    made.anchored(made.root(5))
    _, lease = acquire_state(made.layout, cas, "test")
    assert lease.epoch == 3
    assert cas.tried == 2


def test_a_race_that_is_always_lost_ends(made: Made) -> None:
    made.keyring(1)
    made.cas = cas = _RacingCas()
    cas.races = 100
    made.anchored(made.root(5))
    with pytest.raises(AnchorMovedError):
        acquire_state(made.layout, cas, "test")
    assert cas.tried < 10
