"""Every named field, every kind of block, altered in every way: no wrong byte, no crash, the right refusal (issue 2, 4).

That the oracle can fail is shown in test_oracle.py, exit codes of the command line are in test_exit_codes.py.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from fspf.volume.volume import Volume
from tests.support.plugin import NIGHTLY
from tests.tamper.explorer import Tally, explore, live_on
from tests.tamper.specimens import Specimen
from tools.lib.tampering import fields
from tools.lib.tampering.anatomy import SPACE_MAP, dissect
from tools.lib.tampering.blocks import block_cases, segment_cases
from tools.lib.tampering.cases import Case
from tools.lib.tampering.patient import Patient
from tools.lib.tampering.small import small_cases

REQUIRED: Final = 2000  # cases in a CI run
KINDS: Final = {
    "file chunk",
    "file leaf node",
    "file inner node",
    "authenticated chunk",
    "authenticated leaf node",
    "authenticated inner node",
    "namespace chunk",
    "namespace leaf node",
    "namespace inner node",
    "space map chunk",
    "space map leaf node",
}
PARTS: Final = 16  # of the nightly cases, so that each ends within a minute
NAMES: Final = ("closed", "crashed", "ahead")


def _small(specimen: Specimen) -> list[Case]:
    return list(small_cases(specimen.anatomy, specimen.material))


def _segments(specimen: Specimen) -> list[Case]:
    return list(segment_cases(specimen.anatomy, specimen.material))


def _blocks(specimen: Specimen, most: int | None) -> list[Case]:
    return list(itertools.islice(block_cases(specimen.anatomy, specimen.material), most))


def _assert_right(tally: Tally, grand_total: Tally, capsys: pytest.CaptureFixture[str], what: str) -> None:
    grand_total.cases += tally.cases
    grand_total.seconds += tally.seconds
    with capsys.disabled():
        print(f"\n  tamper explorer, {what}: {tally.total} cases in {tally.seconds:.1f} s")
    assert not tally.faults, "\n".join(tally.faults[:40])
    assert tally.total


# -- nothing is forgotten


@pytest.mark.parametrize(
    ("table", "length"),
    [
        pytest.param(fields.HEADER, fields.HEADER_LEN, id="header"),
        pytest.param(fields.KEYRING, fields.KEYRING_RECORD_LEN, id="keyring"),
        pytest.param(fields.ENTRY, fields.ENTRY_LEN, id="entry of the checksum table"),
    ],
)
def test_every_byte_belongs_to_one_field(table: fields.Fields, length: int) -> None:
    covered = [byte for low, high in table.values() for byte in range(low, high)]
    assert sorted(covered) == list(range(length))


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_of_a_root_frame_belongs_to_one_field(specimens: dict[str, Specimen], name: str) -> None:
    anatomy = specimens[name].anatomy
    for root in (anatomy.newest_root, anatomy.older_root):
        table = fields.root_fields((anatomy.path / root).read_bytes())
        covered = [byte for low, high in table.values() for byte in range(low, high)]
        assert sorted(covered) == list(range(fields.ROOT_LEN))


def test_every_field_has_cases(specimens: dict[str, Specimen]) -> None:
    specimen = specimens["closed"]
    groups = Counter(case.group for case in _small(specimen))
    expected = {f"header {name}" for name in fields.HEADER}
    expected |= {f"keyring {name}" for name in fields.KEYRING}
    expected |= {f"root {name}" for name in fields.root_fields((specimen.anatomy.path / "root.a").read_bytes())}
    assert expected <= set(groups), expected - set(groups)
    assert min(groups[group] for group in expected) >= 4
    entries = {case.name for case in _blocks(specimen, 2000) if "entry's" in case.name}
    assert all(any(f"entry's {field} " in name for name in entries) for field in fields.ENTRY)


def test_every_kind_of_block_has_cases(specimens: dict[str, Specimen]) -> None:
    kinds = {block.kind for name in (*NAMES, "spread") for block in specimens[name].anatomy.blocks}
    assert kinds == KINDS
    groups = {case.group for name in ("closed", "spread") for case in _blocks(specimens[name], 600)}
    assert groups == {f"block {kind}" for kind in KINDS}


def test_every_alteration_is_made_to_every_kind(specimens: dict[str, Specimen]) -> None:
    """Of the kinds that have more than one block and a past."""
    words = (
        "bit flipped",
        "zeroed",
        "of its kind",
        "of another kind",
        "as after commit",
        "its own version of commit",
        "of another volume",
        "segment cut",
        "entry",
    )
    cases = _blocks(specimens["closed"], None)
    for kind in KINDS - {"space map leaf node"}:
        names = [case.name for case in cases if case.group == f"block {kind}"]
        for word in words:
            if word == "of its kind" and kind in {
                "namespace inner node",
                "space map chunk",
                "authenticated inner node",
            }:
                continue  # there is one only
            if word == "its own version of commit" and kind == "space map chunk":
                continue  # every map lies beside the one before it, and is a file of its own
            assert any(word in name for name in names), (kind, word)


def test_names_of_cases_are_unique(specimens: dict[str, Specimen]) -> None:
    for name in NAMES:
        specimen = specimens[name]
        counts = Counter(case.name for case in [*_small(specimen), *_segments(specimen), *_blocks(specimen, None)])
        assert not [each for each, count in counts.items() if count > 1]


def test_the_specimens_hold_what_was_written(specimens: dict[str, Specimen]) -> None:
    """The truth that the oracle compares with comes from the same library: it is compared with the source here."""
    for name in ("crashed", "closed"):
        specimen = specimens[name]
        for ino, names in specimen.truth.names.items():
            for _, _, path in names:
                if path not in specimen.known or ino not in specimen.truth.extents:
                    continue
                content = specimen.known[path]
                if name == "closed" and path == b"/odd":
                    content = b"last words" + content[10:]
                got = b"".join(data for _, data in specimen.truth.extents[ino])
                assert got == content, path
    ahead = specimens["ahead"]
    assert ahead.previous is not None
    assert ahead.truth.generation == ahead.previous.generation + 1
    assert ahead.truth.extents != ahead.previous.extents


# -- the cases


@pytest.mark.parametrize("name", NAMES)
def test_header_keyring_and_roots(
    specimens: dict[str, Specimen], grand_total: Tally, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    specimen = specimens[name]
    tally = explore(specimen, _small(specimen), Tally(), verify_every=11)
    _assert_right(tally, grand_total, capsys, f"{name}, small files")


@pytest.mark.parametrize("name", NAMES)
def test_segment_files(
    specimens: dict[str, Specimen], grand_total: Tally, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    specimen = specimens[name]
    cases: Iterable[Case] = _segments(specimen)
    if not NIGHTLY:
        cases = list(cases)[:: 2 if name == "closed" else 5]
    tally = explore(specimen, cases, Tally(), verify_every=5)
    _assert_right(tally, grand_total, capsys, f"{name}, segment files")


@pytest.mark.parametrize(("name", "most"), [("closed", 1100), ("crashed", 250), ("ahead", 250), ("spread", 200)])
def test_blocks(
    specimens: dict[str, Specimen], grand_total: Tally, capsys: pytest.CaptureFixture[str], name: str, most: int
) -> None:
    specimen = specimens[name]
    tally = explore(specimen, _blocks(specimen, most), Tally(), verify_every=9)
    _assert_right(tally, grand_total, capsys, f"{name}, blocks")


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", NAMES)
def test_all_blocks(specimens: dict[str, Specimen], capsys: pytest.CaptureFixture[str], name: str, part: int) -> None:
    specimen = specimens[name]
    tally = explore(specimen, _blocks(specimen, None)[part::PARTS], Tally(), verify_every=20)
    _assert_right(tally, Tally(), capsys, f"{name}, all blocks, part {part + 1} of {PARTS}")


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(4))
def test_every_byte_of_the_small_files(
    specimens: dict[str, Specimen], capsys: pytest.CaptureFixture[str], part: int
) -> None:
    """One bit of each byte of header, keyring and roots, with the checksum left wrong: nothing may open but what may."""
    specimen = specimens["closed"]
    anatomy = specimen.anatomy

    def cases() -> Iterator[Case]:
        samples = {case.group: case for case in _small(specimen)}
        for name in ("header", "keyring", anatomy.newest_root, anatomy.older_root):
            raw = (anatomy.path / name).read_bytes()
            torn = {
                "header": samples["header checksum"].expected,
                anatomy.newest_root: next(
                    case.expected for case in _small(specimen) if case.name == "newest root, second half torn"
                ),
            }.get(name)
            for place in range(len(raw)):
                data = raw[:place] + bytes([raw[place] ^ (1 << place % 8)]) + raw[place + 1 :]
                replace = partial(Patient.replace, name=name, data=data)
                yield Case(f"{name}, byte {place}", f"{name} bytes", replace, torn)

    tally = explore(specimen, itertools.islice(cases(), part, None, 4), Tally())
    _assert_right(tally, Tally(), capsys, f"every byte of the small files, part {part + 1} of 4")


# -- going on with a damaged volume


@pytest.mark.parametrize(("name", "most"), [("closed", 200), ("crashed", 100), ("ahead", 60)])
def test_damaged_files_can_be_deleted_and_the_volume_goes_on(
    specimens: dict[str, Specimen],
    grand_total: Tally,
    capsys: pytest.CaptureFixture[str],
    scratch: Path,
    name: str,
    most: int,
) -> None:
    specimen = specimens[name]
    blocks = [case for case in _blocks(specimen, 4 * most) if "namespace" not in case.group]
    segments = _segments(specimen)
    whole = [case for case in _small(specimen) if case.expected is None]
    chosen = [
        *blocks[:most],
        *segments[:: max(1, len(segments) // (most // 4))],
        *whole[:: max(1, len(whole) // (most // 4))],
        *(case for case in whole if " is a" in case.name or "missing" in case.name),
    ]
    tally = live_on(specimen, chosen, Tally(), scratch)
    _assert_right(tally, grand_total, capsys, f"{name}, going on")


def test_a_damaged_space_map_is_made_anew(
    specimens: dict[str, Specimen], grand_total: Tally, capsys: pytest.CaptureFixture[str], scratch: Path
) -> None:
    """Opening works, nothing in use is given away, and after closing there is a whole map again."""
    tally = Tally()
    for name in ("closed", "spread"):
        specimen = specimens[name]
        blocks = {block.slot for block in specimen.anatomy.blocks if block.tree == SPACE_MAP}
        assert blocks
        cases = [case for case in _blocks(specimen, None) if case.group.startswith("block space map")]
        random.Random(name).shuffle(cases)
        live_on(specimen, cases[: 100 if name == "closed" else 12], tally, scratch)
    _assert_right(tally, grand_total, capsys, "space maps")


def test_a_map_is_saved_again_after_a_rebuild(specimens: dict[str, Specimen], scratch: Path) -> None:
    specimen = specimens["closed"]
    copy = scratch / "copy"
    shutil.copytree(specimen.anatomy.path, copy)
    (slot,) = [block.slot for block in specimen.anatomy.blocks if block.tree == SPACE_MAP]
    segment = copy / specimen.anatomy.segment_of(slot)
    data = bytearray(segment.read_bytes())
    data[specimen.anatomy.slot_offset(slot)] ^= 1
    segment.write_bytes(data)
    cas = specimen.cas.copy()
    with Volume.open(copy, cas, commit_interval=None) as volume:
        volume.write_bytes("/more", b"x" * 50_000)
    record = cas.fetch(specimen.anatomy.header.volume_id)
    again = dissect(copy, record)
    assert again.state.space_map is not None
    slots = [block.slot for block in again.blocks]
    assert len(slots) == len(set(slots)), "two blocks in one slot"


# -- the sum; must stay the last test of this file


def test_the_required_number_of_cases_was_run(
    grand_total: Tally, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    with capsys.disabled():
        print(f"\n  tamper explorer, together: {grand_total}")
    selected = {item.name.partition("[")[0] for item in request.session.items if item.path == request.path}
    if {"test_header_keyring_and_roots", "test_segment_files", "test_blocks"} <= selected:
        assert grand_total.total >= REQUIRED
