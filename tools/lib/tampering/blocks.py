"""Cases for segments: every kind of block altered in every way, and whole segment files.

What must come of it is not said here: the oracle finds it from the bytes that are there afterwards.
"""

from __future__ import annotations

import itertools
import os
from functools import partial
from typing import TYPE_CHECKING, Final

from tools.lib.tampering.cases import Case, Material, Refused
from tools.lib.tampering.fields import ENTRY, ENTRY_LEN
from tools.lib.tampering.patient import Patient, checksum
from tools.lib.tampering.small import special_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tools.lib.tampering.anatomy import Anatomy, Block

_FIXES: Final = (("", False), (", checksum made right", True))


def block_cases(anatomy: Anatomy, material: Material) -> Iterator[Case]:
    """Return the cases of every single block, kinds taking turns, so that any first N of them are spread."""
    others = material.other.kinds() if material.other is not None else {}
    kinds = anatomy.kinds()
    per_kind = [
        itertools.chain.from_iterable(
            _one_block(anatomy, material, kinds, others, block, place) for place, block in enumerate(_spread(blocks))
        )
        for blocks in kinds.values()
    ]
    for turn in itertools.zip_longest(*per_kind):
        yield from (case for case in turn if case is not None)


def _spread(blocks: list[Block]) -> list[Block]:
    """First, last, middle, quarters, …: the ends are where mistakes are."""
    order: list[int] = [0, len(blocks) - 1]
    step = len(blocks)
    while step > 1:
        step = -(-step // 2)
        order += range(0, len(blocks), step)
        if step == 1:
            break
    return [blocks[index] for index in dict.fromkeys(order)]


def _one_block(
    anatomy: Anatomy,
    material: Material,
    kinds: dict[str, list[Block]],
    others: dict[str, list[Block]],
    block: Block,
    place: int,
) -> Iterator[Case]:
    size = anatomy.header.chunk_size
    name, group = f"{block.kind} at slot {block.slot}", f"block {block.kind}"

    def case(what: str, apply: Callable[[Patient], object]) -> Case:
        return Case(f"{name}, {what}", group, apply)

    for what, byte, bit in (
        ("first bit", 0, 1),
        ("a middle bit", size // 2 + place % 97, 4),
        ("last bit", size - 1, 0x80),
    ):
        flipped = block.sealed[:byte] + bytes([block.sealed[byte] ^ bit]) + block.sealed[byte + 1 :]
        for text, fix in _FIXES:
            yield case(f"{what} flipped{text}", partial(_put, slot=block.slot, data=flipped, fix=fix))
    for what, data in (
        ("zeroed", bytes(size)),
        ("all ones", b"\xff" * size),
        ("second half zeroed", block.sealed[: size // 2] + bytes(size // 2)),
        ("one sector of it rotated", block.sealed[512:1024] + block.sealed[:512] + block.sealed[1024:]),
        ("shifted by a byte", block.sealed[1:] + block.sealed[:1]),
    ):
        for text, fix in _FIXES:
            yield case(f"{what}{text}", partial(_put, slot=block.slot, data=data, fix=fix))
    yield case("zeroed with its entry", partial(_put, slot=block.slot, data=bytes(size), entry=bytes(ENTRY_LEN)))
    # Other blocks of this volume
    own = kinds[block.kind]
    for what, partner in (
        ("of its kind", _other_than(own, block, place)),
        ("of another kind", _other_kind(kinds, block, place)),
    ):
        if partner is None:
            continue
        yield case(f"exchanged with one {what} (slot {partner.slot})", partial(_swap, one=block, two=partner))
        yield case(
            f"exchanged with one {what} (slot {partner.slot}), entries too",
            partial(_swap, one=block, two=partner, entries=True),
        )
        yield case(f"replaced by one {what} (slot {partner.slot})", partial(_put, slot=block.slot, data=partner.sealed))
        yield case(
            f"replaced by one {what} (slot {partner.slot}), entry too",
            partial(_put, slot=block.slot, data=partner.sealed, entry=partner.entry),
        )
        yield case(
            f"replaced by one {what} (slot {partner.slot}), checksum made right",
            partial(_put, slot=block.slot, data=partner.sealed, fix=True),
        )
    # What the slot held, and what the block was
    for number, old, entry in _older(anatomy, material, block):
        yield case(f"as after commit {number}", partial(_put, slot=block.slot, data=old))
        yield case(f"as after commit {number}, checksum made right", partial(_put, slot=block.slot, data=old, fix=True))
        yield case(f"as after commit {number}, entry too", partial(_put, slot=block.slot, data=old, entry=entry))
    was = material.versions.get((block.tree, block.level, block.offset), {})
    for old, (number, entry) in [each for each in was.items() if each[0] != block.sealed][-2:]:
        yield case(f"its own version of commit {number}", partial(_put, slot=block.slot, data=old))
        yield case(
            f"its own version of commit {number}, checksum made right",
            partial(_put, slot=block.slot, data=old, fix=True),
        )
        yield case(
            f"its own version of commit {number}, entry too",
            partial(_put, slot=block.slot, data=old, entry=entry),
        )
    # Another volume
    if block.kind in others:
        foreign = others[block.kind][place % len(others[block.kind])]
        yield case("replaced by one of another volume", partial(_put, slot=block.slot, data=foreign.sealed))
        yield case(
            "replaced by one of another volume, entry too",
            partial(_put, slot=block.slot, data=foreign.sealed, entry=foreign.entry),
        )
        yield case(
            "replaced by one of another volume, checksum made right",
            partial(_put, slot=block.slot, data=foreign.sealed, fix=True),
        )
    # Its segment
    segment, offset = anatomy.segment_of(block.slot), anatomy.slot_offset(block.slot)
    yield case("segment cut before it", partial(_truncate, name=segment, length=offset))
    yield case("segment cut inside it", partial(_truncate, name=segment, length=offset + 1 + place % (size - 1)))
    # Its entry in the checksum table: a hint that no byte is refused or accepted for
    for field, (low, high) in ENTRY.items():
        for what, value in (
            ("flipped", bytes([block.entry[low] ^ 1]) + block.entry[low + 1 : high]),
            ("zeroed", bytes(high - low)),
            ("all ones", b"\xff" * (high - low)),
        ):
            entry = block.entry[:low] + value + block.entry[high:]
            if entry != block.entry:
                yield case(f"entry's {field} {what}", partial(_put_entry, slot=block.slot, entry=entry))
    yield case("entry zeroed", partial(_put_entry, slot=block.slot, entry=bytes(ENTRY_LEN)))


def _other_than(blocks: list[Block], block: Block, place: int) -> Block | None:
    choice = [each for each in blocks if each.slot != block.slot]
    return choice[(place * 7) % len(choice)] if choice else None


def _other_kind(kinds: dict[str, list[Block]], block: Block, place: int) -> Block | None:
    choice = [blocks for kind, blocks in kinds.items() if kind != block.kind]
    if not choice:
        return None
    blocks = choice[place % len(choice)]
    return blocks[(place * 5) % len(blocks)]


def _older(anatomy: Anatomy, material: Material, block: Block) -> list[tuple[int, bytes, bytes]]:
    """Return up to two other blocks that the slot held after earlier commits."""
    found: dict[bytes, tuple[int, bytes, bytes]] = {}
    size = anatomy.header.chunk_size
    for number, snapshot in enumerate(material.older, 1):
        segment = snapshot.get(anatomy.segment_of(block.slot), b"")
        offset, table = anatomy.slot_offset(block.slot), anatomy.entry_offset(block.slot)
        data, entry = segment[offset : offset + size], segment[table : table + ENTRY_LEN]
        if len(data) == size and data != block.sealed and any(data) and len(entry) == ENTRY_LEN:
            found.setdefault(data, (number, data, entry))
    return list(found.values())[-2:]


def _put(patient: Patient, *, slot: int, data: bytes, entry: bytes | None = None, fix: bool = False) -> None:
    patient.write_slot(slot, data, entry=entry, fix=fix)


def _put_entry(patient: Patient, *, slot: int, entry: bytes) -> None:
    patient.write_entry(slot, entry)


def _swap(patient: Patient, *, one: Block, two: Block, entries: bool = False) -> None:
    patient.write_slot(one.slot, two.sealed, entry=two.entry if entries else None)
    patient.write_slot(two.slot, one.sealed, entry=one.entry if entries else None)


def _truncate(patient: Patient, *, name: str, length: int) -> None:
    patient.truncate(name, length)


# -- whole segment files


def segment_cases(anatomy: Anatomy, material: Material) -> Iterator[Case]:
    """Return the cases of whole segment files and of their directory."""
    names = sorted(f"segments/{name}" for name in os.listdir(anatomy.path / "segments"))
    slots_end = anatomy.header.segment_slots * anatomy.header.chunk_size
    for place, name in enumerate(names):
        raw = (anatomy.path / name).read_bytes()
        partner = names[(place + 1) % len(names)]

        def case(what: str, apply: Callable[[Patient], object], name: str = name) -> Case:
            return Case(f"{name}, {what}", "segment file", apply)

        yield case("missing", partial(_remove, name=name))
        for length in (0, 1, 4095, 4096, slots_end // 2, slots_end, slots_end + 8, len(raw) - 1):
            yield case(f"cut to {length} bytes", partial(_truncate, name=name, length=length))
        yield case("longer by a byte", partial(_replace, name=name, data=raw + b"\0"))
        yield case("longer by a segment", partial(_replace, name=name, data=raw + raw))
        yield case("zeroed", partial(_replace, name=name, data=bytes(len(raw))))
        yield case("slots zeroed, table kept", partial(_replace, name=name, data=bytes(slots_end) + raw[slots_end:]))
        yield case("table zeroed", partial(_replace, name=name, data=raw[:slots_end] + bytes(len(raw) - slots_end)))
        yield case(
            "table random", partial(_replace, name=name, data=raw[:slots_end] + b"\x5a" * (len(raw) - slots_end))
        )
        yield case("shifted by a slot", partial(_replace, name=name, data=raw[4096:] + raw[:4096]))
        yield case("shifted by a byte", partial(_replace, name=name, data=raw[1:] + raw[:1]))
        for what, maker in special_files():
            yield case(f"is {what}", partial(_make, name=name, maker=maker))
        if partner != name:
            yield case(f"exchanged with {partner}", partial(_swap_files, name=name, other=partner))
            other = (anatomy.path / partner).read_bytes()
            yield case(f"replaced by {partner}", partial(_replace, name=name, data=other))
        for number, snapshot in enumerate(material.older, 1):
            if snapshot.get(name, raw) != raw:
                yield case(f"as after commit {number}", partial(_replace, name=name, data=snapshot[name]))
        if material.other is not None and (material.other.path / name).exists():
            foreign = (material.other.path / name).read_bytes()
            yield case("of another volume", partial(_replace, name=name, data=foreign))
    yield Case("all segments missing", "segment file", partial(_remove_all, names=names))
    yield Case("all segments emptied", "segment file", partial(_empty_all, names=names))
    for number, snapshot in enumerate(material.older, 1):
        old = {name: snapshot.get(name) for name in names}
        yield Case(f"all segments as after commit {number}", "segment file", partial(_old_all, old=old))
    gone = Refused("IntegrityError", 20, "segments")
    yield Case("directory of segments missing", "segment file", partial(_remove, name="segments"), gone)
    for what, maker in special_files():
        if what != "a directory":
            apply = partial(_make, name="segments", maker=maker)
            yield Case(f"directory of segments is {what}", "segment file", apply, gone)
    # What is not the volume's is not looked at.
    junk = b"\x5a" * 5000
    for stray in (
        "segments/ffffffff",
        "segments/0000abcd",
        "segments/x",
        "segments/00000000.old",
        "header.new",
        "keyring.new",
        "junk",
    ):
        if not (anatomy.path / stray).exists():
            yield Case(f"a stray file {stray}", "segment file", partial(_create, name=stray, data=junk))


def _remove(patient: Patient, *, name: str) -> None:
    patient.remove(name)


def _replace(patient: Patient, *, name: str, data: bytes) -> None:
    patient.replace(name, data)


def _make(patient: Patient, *, name: str, maker: Callable[[Path], object]) -> None:
    patient.make(name, maker)


def _swap_files(patient: Patient, *, name: str, other: str) -> None:
    patient.swap(name, other)


def _remove_all(patient: Patient, *, names: list[str]) -> None:
    for name in names:
        patient.remove(name)


def _empty_all(patient: Patient, *, names: list[str]) -> None:
    for name in names:
        patient.truncate(name, 0)


def _old_all(patient: Patient, *, old: dict[str, bytes | None]) -> None:
    for name, data in old.items():
        if data is None:
            patient.remove(name)
        else:
            patient.replace(name, data)


def _create(patient: Patient, *, name: str, data: bytes) -> None:
    patient.create(name, data)


__all__ = ["block_cases", "checksum", "segment_cases"]
