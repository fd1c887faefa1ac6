"""The explorer can fail: each weakening of the engine below is noticed, and by the right complaint.

The explorer itself is test_explorer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import apsw
import pytest

from fspf.core.anchor import Anchor
from fspf.core.errors import DamagedFileError, FormatError, IntegrityError
from fspf.core.format import KeyringRecord, RootFrame, RootRecord
from fspf.volume import opening
from fspf.volume.contents import OpenFile
from fspf.volume.inodes import InodeVolume
from fspf.volume.layout import Layout
from fspf.volume.vfs import TreeFile
from fspf.volume.volume import Volume
from fspf_native import ChunkError
from tests.tamper.explorer import Tally, explore, live_on
from tests.tamper.specimens import Specimen
from tools.lib.tampering.blocks import block_cases
from tools.lib.tampering.cases import Case
from tools.lib.tampering.oracle import kind_of
from tools.lib.tampering.patient import checksum
from tools.lib.tampering.small import small_cases


def choose(specimen: Specimen, group: str, word: str = "", most: int = 12) -> list[Case]:
    cases = [*small_cases(specimen.anatomy, specimen.material), *block_cases(specimen.anatomy, specimen.material)]
    chosen = [case for case in cases if case.group.startswith(group) and word in case.name][:most]
    assert chosen
    return chosen


@pytest.fixture
def run(specimens: dict[str, Specimen]) -> Callable[..., str]:
    """Run some cases; what was complained of, as one text."""

    def explored(group: str, word: str = "", most: int = 12) -> str:
        specimen = specimens["closed"]
        return "\n".join(explore(specimen, choose(specimen, group, word, most), Tally(), verify_every=1).faults)

    return explored


def test_without_a_weakness_there_is_no_complaint(run: Callable[..., str]) -> None:
    for group in ("block file chunk", "block namespace chunk", "root file", "keyring wrapped", "header version"):
        assert run(group) == ""


def test_zeros_instead_of_a_refusal_are_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    read = OpenFile.read

    def lenient(self: OpenFile, offset: int, length: int) -> bytes:
        try:
            return read(self, offset, length)
        except DamagedFileError:
            return bytes(min(length, self.size - offset))

    monkeypatch.setattr(OpenFile, "read", lenient)
    assert "read with wrong bytes though" in run("block file chunk", "bit flipped")
    assert "read with wrong bytes though" in run("block authenticated leaf node", "zeroed")


def test_one_wrong_byte_in_a_good_file_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    read = OpenFile.read

    def careless(self: OpenFile, offset: int, length: int) -> bytes:
        got = read(self, offset, length)
        return got[:-1] + bytes([got[-1] ^ 1]) if len(got) > 30_000 else got

    monkeypatch.setattr(OpenFile, "read", careless)
    assert "WRONG BYTES" in run("block space map chunk", "zeroed")


def test_a_refusal_of_more_than_what_is_damaged_is_noticed(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = OpenFile.read

    def anxious(self: OpenFile, offset: int, length: int) -> bytes:
        try:
            read(self, 0, self.size if self.size < 1 << 24 else 0)
        except DamagedFileError as exc:
            raise DamagedFileError(exc.path, offset, length, exc.kind) from None
        return read(self, offset, length)

    monkeypatch.setattr(OpenFile, "read", anxious)
    assert "refused though intact" in run("block authenticated chunk", "zeroed")


@pytest.mark.parametrize("kind", ["missing", "torn", "tampered", "stale"])
def test_a_wrong_kind_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def one_for_all(self: InodeVolume, ino: int, exc: ChunkError) -> DamagedFileError:
        return DamagedFileError(b"", exc.offset, exc.length, kind)

    monkeypatch.setattr(InodeVolume, "damaged", one_for_all)
    other = {"torn": "checksum made right"}.get(kind, "middle bit flipped")
    assert "expected, " in run("block file chunk", other)


def test_a_wrong_range_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: InodeVolume, ino: int, exc: ChunkError) -> DamagedFileError:
        return DamagedFileError(b"", exc.offset + 1, exc.length, exc.kind)

    monkeypatch.setattr(InodeVolume, "damaged", shifted)
    assert "reported" in run("block file chunk", "zeroed")


def test_a_wrong_path_in_the_message_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def misnamed(self: InodeVolume, ino: int, exc: ChunkError) -> DamagedFileError:
        return DamagedFileError(b"/elsewhere", exc.offset, exc.length, exc.kind)

    monkeypatch.setattr(InodeVolume, "damaged", misnamed)
    assert "the message names" in run("block file chunk", "zeroed")


def test_an_exception_of_no_type_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def rude(self: InodeVolume, ino: int, exc: ChunkError) -> Any:
        raise KeyError(ino)

    monkeypatch.setattr(InodeVolume, "damaged", rude)
    assert "KeyError" in run("block file chunk", "zeroed")


def test_names_from_unverified_pages_are_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    read = TreeFile.xRead

    def lenient(self: TreeFile, amount: int, offset: int) -> bytes:
        try:
            return read(self, amount, offset)
        except apsw.SQLError:
            return bytes(amount)

    monkeypatch.setattr(TreeFile, "xRead", lenient)
    assert "wrong kind" in run("block namespace chunk", "zeroed", 60)


def test_names_that_are_lost_without_need_are_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = InodeVolume.lookup

    def forgetful(self: InodeVolume, parent: Any, name: bytes) -> Any:
        if name == b"hard link":
            raise IntegrityError("the namespace is tampered with")
        return lookup(self, parent, name)

    monkeypatch.setattr(InodeVolume, "lookup", forgetful)
    assert "failed though its pages are intact" in run("block file chunk", "zeroed")


def test_an_old_state_that_is_accepted_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def gullible(claimed: Sequence[RootRecord], anchor: Anchor, *_: object) -> RootRecord:
        return max(claimed, key=lambda record: record.generation)

    monkeypatch.setattr(opening, "choose_root", gullible)
    assert "FreshnessError (21" in run("root file", "root pair as after commit")


def test_damage_taken_for_a_rollback_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    read_roots = Layout.read_roots

    def dropping(self: Layout) -> Any:
        """Leave out what is torn, without a word."""
        found = read_roots(self)
        return {name: raw for name, raw in found.items() if isinstance(raw, bytes) and len(raw) == 4096}

    monkeypatch.setattr(Layout, "read_roots", dropping)
    assert "IntegrityError (20, '') expected, FreshnessError" in run("root file", "newest root, cut to")


def test_a_checksum_that_is_not_compared_is_noticed(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a torn record counts as tampered with: two copies that differ are refused, though one is whole."""

    def trusting(claimed: bytes) -> KeyringRecord:
        if len(claimed) != 64:
            raise FormatError("length")
        return KeyringRecord(
            int.from_bytes(claimed[:4], "little"), int.from_bytes(claimed[4:8], "little"), claimed[8:56]
        )

    monkeypatch.setattr(KeyringRecord, "parse", trusting)
    assert "opening for reading was refused" in run("keyring wrapped", "keyring, record 0")


def test_an_opening_that_changes_what_it_refuses_is_noticed(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_keyring = Layout.read_keyring

    def mending(self: Layout, *args: int) -> Any:
        found = read_keyring(self, *args)
        if found.repair:
            self.replace_keyring(list(found.records))
        return found

    monkeypatch.setattr(Layout, "read_keyring", mending)
    assert "was refused and yet changed keyring" in run("keyring file", "keyring and keyring.bak, cut to")


def test_a_header_that_is_not_bound_to_the_roots_is_noticed(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, specimens: dict[str, Specimen]
) -> None:
    """As if the header were no associated data: the roots open with whatever header is there."""
    true_header = (specimens["closed"].anatomy.path / "header").read_bytes()
    open_frame = RootFrame.open
    monkeypatch.setattr(RootFrame, "open", lambda self, key, _: open_frame(self, key, true_header))
    assert "header were tampered with') expected" in run("header segment_slots", "128, checksum made right")


def test_a_deleted_file_that_stays_is_noticed(
    specimens: dict[str, Specimen], monkeypatch: pytest.MonkeyPatch, scratch: Any
) -> None:
    monkeypatch.setattr(Volume, "unlink", lambda *_: None)
    specimen = specimens["closed"]
    tally = live_on(specimen, choose(specimen, "block file chunk", "zeroed", 2), Tally(), scratch)
    assert any("are still there after they were deleted" in fault for fault in tally.faults)


def test_the_kind_follows_from_the_bytes(specimens: dict[str, Specimen]) -> None:
    """The oracle's own table, by hand."""
    block = next(block for block in specimens["closed"].anatomy.blocks if block.kind == "file chunk")
    other = bytes(4096)
    epoch, counter = block.nonce

    def entry(data: bytes, epoch: int, counter: int) -> bytes:
        return checksum(data) + epoch.to_bytes(3, "little") + counter.to_bytes(5, "little")

    assert kind_of(block, block.sealed, bytes(16)) is None
    assert kind_of(block, block.sealed, None) is None
    assert kind_of(block, None, block.entry) == "missing"
    assert kind_of(block, other, bytes(16)) == "missing"
    assert kind_of(block, other, block.entry) == "torn"
    assert kind_of(block, other, entry(other, epoch, counter)) == "tampered"
    assert kind_of(block, other, entry(other, epoch + 1, 0)) == "tampered"
    assert kind_of(block, other, entry(other, epoch - 1, counter + 9)) == "stale"
