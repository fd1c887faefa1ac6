"""Cases for header, keyring and root records: every field, every whole file, and what must come of it.

What is expected is written from docs/FORMAT.md and docs/COMMIT.md, not asked of the code under test.
"""

from __future__ import annotations

import os
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from tools.lib.tampering import fields
from tools.lib.tampering.cases import (
    FIELD_CHANGES,
    FORMAT,
    INTEGRITY,
    NEWER,
    STALE,
    TORN,
    UNKNOWN,
    WRONG_KEY,
    Case,
    Material,
    Refused,
)
from tools.lib.tampering.patient import Patient, checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tools.lib.tampering.anatomy import Anatomy

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_RECORD: Final = fields.KEYRING_RECORD_LEN
_MAX_EPOCH: Final = 2**24 - 1
KEYRINGS: Final = ("keyring", "keyring.bak")


def small_cases(anatomy: Anatomy, material: Material) -> Iterator[Case]:
    """Return all cases of this module for one volume."""
    yield from _header_fields(anatomy)
    yield from _header_values(anatomy)
    yield from _header_file(anatomy, material)
    yield from _keyring_fields(anatomy)
    yield from _keyring_files(anatomy, material)
    yield from _root_fields(anatomy, material)
    yield from _root_files(anatomy, material)


def with_checksum(data: bytes) -> bytes:
    """Make the XXH3 at the end right."""
    return data[:-8] + checksum(data[:-8])


def altered(data: bytes, low: int, high: int, value: bytes, *, fix: bool) -> bytes:
    assert len(value) == high - low
    changed = data[:low] + value + data[high:]
    return with_checksum(changed) if fix else changed


def special_files() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Return what may lie in the place of a file."""
    yield "a directory", lambda path: path.mkdir()
    yield "a fifo", os.mkfifo
    yield "a dangling symlink", lambda path: path.symlink_to("nowhere")
    yield "a symlink to itself", lambda path: path.symlink_to(path.name)
    yield "a symlink to /dev/null", lambda path: path.symlink_to("/dev/null")
    yield "a symlink to /dev/zero", lambda path: path.symlink_to("/dev/zero")


def _replace(name: str, data: bytes) -> Callable[[Patient], object]:
    return lambda patient: patient.replace(name, data)


# -- header


def _header_fields(anatomy: Anatomy) -> Iterator[Case]:
    raw = (anatomy.path / "header").read_bytes()
    for field, (low, high) in fields.HEADER.items():
        for change in FIELD_CHANGES:
            value = change.make(raw[low:high])
            if value == raw[low:high]:
                continue
            name = f"header, {field} {change.name}"
            yield Case(name, f"header {field}", _replace("header", altered(raw, low, high, value, fix=False)), TORN)
            if field != "checksum":
                new = altered(raw, low, high, value, fix=True)
                yield Case(
                    f"{name}, checksum made right",
                    f"header {field}",
                    _replace("header", new),
                    _header_outcome(new, raw),
                )


def _header_values(anatomy: Anatomy) -> Iterator[Case]:
    raw = (anatomy.path / "header").read_bytes()
    values = [("version", _U16, v) for v in (0, 2, 3, 0x7FFF, 0xFFFF)]
    values += [("flags", _U16, v) for v in (1, 2, 0x8000)]
    values += [("chunk_size", _U32, v) for v in (0, 1, 512, 2048, 4095, 4097, 8192, 16384, 65536, 131072, 2**31)]
    values += [("segment_slots", _U32, v) for v in (0, 1, 32, 63, 128, 16384, 2**20, 2**21, 2**31)]
    for field, form, value in values:
        low, high = fields.HEADER[field]
        new = altered(raw, low, high, form.pack(value), fix=True)
        if new != raw:
            name = f"header, {field} is {value}, checksum made right"
            yield Case(name, f"header {field}", _replace("header", new), _header_outcome(new, raw))
    for place in (20, 23, 40, 41, 100, 2048, 4087):
        new = altered(raw, place, place + 1, b"\x01", fix=True)
        yield Case(f"header, reserved byte {place} is 1", "header reserved", _replace("header", new), FORMAT)


def _header_outcome(new: bytes, raw: bytes) -> Refused:
    """What FORMAT.md 2 says of a header whose checksum is right. The order of the checks is that of the table."""
    magic, version, flags, chunk_size, segment_slots, reserved = struct.unpack_from("<8sHHIII", new)
    if magic != raw[:8] or version == 0:
        return FORMAT
    if version > 1 or flags:
        return NEWER
    if chunk_size not in {4096 << n for n in range(5)} or segment_slots not in {64 << n for n in range(15)}:
        return FORMAT
    if reserved or any(new[40:4088]):
        return FORMAT
    if new[24:40] != raw[24:40]:
        return UNKNOWN
    return Refused("IntegrityError", 20, "header were tampered with")  # the roots do not open with it


def _header_file(anatomy: Anatomy, material: Material) -> Iterator[Case]:
    raw = (anatomy.path / "header").read_bytes()
    for length in (0, 1, 7, 8, 64, 2048, 4088, 4095):
        yield Case(f"header, cut to {length} bytes", "header file", _replace("header", raw[:length]), TORN)
    for tail in (b"\0", b"\xff", raw):
        yield Case(
            f"header, {len(tail)} bytes {tail[:1].hex()} more", "header file", _replace("header", raw + tail), TORN
        )
    yield Case("header missing", "header file", lambda patient: patient.remove("header"), INTEGRITY)
    for what, maker in special_files():
        yield Case(f"header is {what}", "header file", partial(_make, name="header", maker=maker), INTEGRITY)
    yield Case("header is root.a", "header file", _replace("header", (anatomy.path / "root.a").read_bytes()), FORMAT)
    if material.other is not None:
        other = (material.other.path / "header").read_bytes()
        yield Case("header of another volume", "header file", _replace("header", other), WRONG_KEY)
        yield Case(
            "header, volume_id of another volume, checksum made right",
            "header volume_id",
            _replace("header", altered(raw, 24, 40, other[24:40], fix=True)),
            WRONG_KEY,
        )
    if material.stranger:
        yield Case("header of an unknown volume", "header file", _replace("header", material.stranger), UNKNOWN)


def _make(patient: Patient, *, name: str, maker: Callable[[Path], object]) -> None:
    patient.make(name, maker)


# -- keyring


def _keyring_fields(anatomy: Anatomy) -> Iterator[Case]:
    raw = (anatomy.path / "keyring").read_bytes()
    assert raw == (anatomy.path / "keyring.bak").read_bytes()
    assert len(raw) % _RECORD == 0
    places = range(len(raw) // _RECORD)
    for place in sorted({places[0], places[-1], places[len(places) // 2]}):
        record = raw[place * _RECORD : (place + 1) * _RECORD]
        for field, (low, high) in fields.KEYRING.items():
            for change in FIELD_CHANGES:
                value = change.make(record[low:high])
                if value == record[low:high]:
                    continue
                for fix in (False, True):
                    if fix and field == "checksum":
                        continue
                    new = altered(record, low, high, value, fix=fix)
                    yield from _keyring_record(
                        anatomy, raw, place, new, f"{field} {change.name}", f"keyring {field}", fix=fix
                    )


def _keyring_record(
    anatomy: Anatomy, raw: bytes, place: int, record: bytes, what: str, group: str, *, fix: bool
) -> Iterator[Case]:
    new = raw[: place * _RECORD] + record + raw[(place + 1) * _RECORD :]
    for copies in ((KEYRINGS[0],), (KEYRINGS[1],), KEYRINGS):
        contents = [new if name in copies else raw for name in KEYRINGS]
        name = f"{' and '.join(copies)}, record {place}, {what}{', checksum made right' if fix else ''}"
        yield Case(name, group, partial(_write_both, contents=contents), keyring_outcome(anatomy, raw, *contents))


def _write_both(patient: Patient, *, contents: list[bytes]) -> None:
    for name, data in zip(KEYRINGS, contents, strict=True):
        if patient.read(name) != data:
            patient.replace(name, data)


def keyring_outcome(anatomy: Anatomy, raw: bytes, claimed: bytes, backup: bytes) -> Refused | None:
    """What FORMAT.md 3 says: which epochs can still be had from two copies. `raw` is what was written."""
    true = {raw[at : at + _RECORD] for at in range(0, len(raw), _RECORD)}
    whole: dict[tuple[int, int], bytes] = {}
    conflict = False
    for data in (claimed, backup):
        for at in range(0, len(data), _RECORD):
            record = data[at : at + _RECORD]
            if len(record) < _RECORD or checksum(record[:56]) != record[56:]:
                continue
            epoch, version = struct.unpack_from("<II", record)
            if not 1 <= epoch <= _MAX_EPOCH or version == 0:
                return FORMAT
            conflict |= whole.setdefault((epoch, version), record) != record
    if conflict:
        return FORMAT
    needed = {record for record in true if struct.unpack_from("<I", record)[0] <= anatomy.state.epoch}
    return None if needed <= set(whole.values()) else Refused("IntegrityError", 20, "keyring")


def _keyring_files(anatomy: Anatomy, material: Material) -> Iterator[Case]:
    raw = (anatomy.path / "keyring").read_bytes()
    records = [raw[at : at + _RECORD] for at in range(0, len(raw), _RECORD)]
    variants: list[tuple[str, bytes]] = [
        *((f"cut to {n} bytes", raw[:n]) for n in (0, 1, 63, 64, 65, len(raw) - 64, len(raw) - 1) if n < len(raw)),
        ("zeroed", bytes(len(raw))),
        ("all ones", b"\xff" * len(raw)),
        ("one zero byte more", raw + b"\0"),
        ("a zeroed record more", raw + bytes(_RECORD)),
        ("random bytes more", raw + b"\x5a" * 100),
        ("records in reverse", b"".join(reversed(records))),
        ("last record twice", raw + records[-1]),
        ("only its last record", records[-1]),
        ("shifted by a byte", b"\0" + raw),
        ("a record of a far epoch more", raw + with_checksum(_U32.pack(77) + records[0][4:])),
        ("a record of another key version more", raw + with_checksum(records[0][:4] + _U32.pack(9) + records[0][8:])),
        ("a record of epoch 0 more", raw + with_checksum(bytes(4) + records[0][4:])),
        ("a second key of epoch 1", raw + with_checksum(records[0][:8] + records[-1][8:])),
        ("wrapped keys of two epochs exchanged", _exchanged(records)),
    ]
    if material.other is not None:
        foreign = (material.other.path / "keyring").read_bytes()
        variants += [("that of another volume", foreign), ("with records of another volume more", raw + foreign)]
    variants += [
        (f"as after commit {number}", snapshot["keyring"])
        for number, snapshot in enumerate(material.older, 1)
        if snapshot["keyring"] != raw
    ]
    for what, data in variants:
        if data == raw:
            continue
        for copies in ((KEYRINGS[0],), (KEYRINGS[1],), KEYRINGS):
            contents = [data if name in copies else raw for name in KEYRINGS]
            outcome = keyring_outcome(anatomy, raw, *contents)
            yield Case(
                f"{' and '.join(copies)}, {what}", "keyring file", partial(_write_both, contents=contents), outcome
            )
    lost = Refused("IntegrityError", 20, "keyring")
    for name in KEYRINGS:
        yield Case(f"{name} missing", "keyring file", partial(_remove, names=(name,)), None)
        for what, maker in special_files():
            yield Case(f"{name} is {what}", "keyring file", partial(_make, name=name, maker=maker), None)
    yield Case("keyring and keyring.bak missing", "keyring file", partial(_remove, names=KEYRINGS), lost)
    if len(records) > 1:
        torn = [records[0][:-1] + b"\0" + raw[_RECORD:], raw[:_RECORD] + records[1][:-1] + b"\0" + raw[2 * _RECORD :]]
        yield Case(
            "keyring and keyring.bak, torn at different records",
            "keyring file",
            partial(_write_both, contents=torn),
            keyring_outcome(anatomy, raw, *torn),
        )


def _exchanged(records: list[bytes]) -> bytes:
    if len(records) < 2:
        return b"".join(records)
    first, last = records[0], records[-1]
    return b"".join(
        [with_checksum(first[:8] + last[8:]), *records[1:-1], with_checksum(last[:8] + first[8:])],
    )


def _remove(patient: Patient, *, names: tuple[str, ...]) -> None:
    for name in names:
        patient.remove(name)


# -- roots


def _newest_lost(material: Material, text: str = "") -> tuple[Refused | None, bool]:
    """Return what follows when the newest root cannot be used: damage, unless the CAS did not have it yet."""
    return (None, True) if material.ahead else (Refused("IntegrityError", 20, text), False)


def _root_fields(anatomy: Anatomy, material: Material) -> Iterator[Case]:
    for which, name in (("newest", anatomy.newest_root), ("older", anatomy.older_root)):
        raw = (anatomy.path / name).read_bytes()
        for field, (low, high) in fields.root_fields(raw).items():
            for change in FIELD_CHANGES:
                value = change.make(raw[low:high])
                if value == raw[low:high]:
                    continue
                for fix in (False, True):
                    if fix and field == "checksum":
                        continue
                    new = altered(raw, low, high, value, fix=fix)
                    title = f"{which} root, {field} {change.name}{', checksum made right' if fix else ''}"
                    yield _root_case(title, f"root {field}", which, name, new, material, "" if fix else "torn")
        for place in range(48, 48 + int.from_bytes(raw[16:20], "little"), 7):
            new = altered(raw, place, place + 1, bytes([raw[place] ^ 0x10]), fix=True)
            title = f"{which} root, sealed byte {place - 48} altered, checksum made right"
            yield _root_case(title, "root sealed", which, name, new, material)
        for field, form, values in (
            ("key_version", _U32, (0, 2, 3, 2**32 - 1)),
            ("epoch", _U32, (0, 1, 2, 3, 4, 5, 2**24 - 1, 2**24, 2**32 - 1)),
            ("sealed_len", _U32, (0, 1, 16, 4039, 4040, 4041, 2**32 - 1)),
        ):
            low, high = fields.root_fields(raw)[field]
            for number in values:
                new = altered(raw, low, high, form.pack(number), fix=True)
                if new != raw:
                    title = f"{which} root, {field} is {number}, checksum made right"
                    yield _root_case(title, f"root {field}", which, name, new, material)


def _root_case(title: str, group: str, which: str, name: str, data: bytes, material: Material, text: str = "") -> Case:
    expected, previous = _newest_lost(material, text) if which == "newest" else (None, False)
    return Case(title, group, _replace(name, data), expected, previous)


def _root_files(anatomy: Anatomy, material: Material) -> Iterator[Case]:
    newest, older = anatomy.newest_root, anatomy.older_root
    new_raw, old_raw = ((anatomy.path / name).read_bytes() for name in (newest, older))
    for which, name, raw in (("newest", newest, new_raw), ("older", older, old_raw)):
        variants = [
            *((f"cut to {n} bytes", raw[:n]) for n in (0, 1, 8, 47, 48, 512, 2048, 4088, 4095)),
            ("a zero byte more", raw + b"\0"),
            ("twice as long", raw + raw),
            ("zeroed", bytes(4096)),
            ("zeroed, checksum made right", with_checksum(bytes(4096))),
            ("all ones", b"\xff" * 4096),
            ("the header", (anatomy.path / "header").read_bytes()),
            ("first sector torn", b"\x5a" * 512 + raw[512:]),
            ("second half torn", raw[:2048] + b"\x5a" * 2048),
            ("first half of the other root", (old_raw if which == "newest" else new_raw)[:2048] + raw[2048:]),
        ]
        if material.other is not None:
            variants += [
                (f"{each} of another volume", (material.other.path / each).read_bytes()) for each in (newest, older)
            ]
        for what, data in variants:
            if data != raw:
                yield _root_case(f"{which} root, {what}", "root file", which, name, data, material)
        outcome, previous = _newest_lost(material) if which == "newest" else (None, False)
        yield Case(f"{which} root missing", "root file", partial(_remove, names=(name,)), outcome, previous)
        for what, maker in special_files():
            yield Case(
                f"{which} root is {what}", "root file", partial(_make, name=name, maker=maker), outcome, previous
            )
    both = Refused("IntegrityError", 20)
    for what, data in (("zeroed", bytes(4096)), ("empty", b""), ("all ones", b"\xff" * 4096)):
        yield Case(f"both roots {what}", "root file", partial(_write, contents={newest: data, older: data}), both)
    yield Case("both roots missing", "root file", partial(_remove, names=(newest, older)), both)
    yield Case(
        "both roots torn",
        "root file",
        partial(_write, contents={newest: new_raw[:-1] + b"\0", older: old_raw[:-1] + b"\0"}),
        both,
    )
    # A record in the wrong file: the next commit would write over the anchored state.
    yield Case("roots exchanged", "root file", partial(_write, contents={newest: old_raw, older: new_raw}), both)
    if not material.ahead:
        yield Case("older root in both files", "root file", _replace(newest, old_raw), both)
        yield Case("newest root in both files", "root file", _replace(older, new_raw), None)
        yield Case(
            "roots exchanged, older one gone",
            "root file",
            partial(_write, contents={newest: b"", older: new_raw}),
            both,
        )
    for number, snapshot in enumerate(material.older, 1):
        old_pair = {name: snapshot.get(name, b"") for name in (newest, older)}
        if old_pair[newest] != new_raw and old_pair[newest] and not material.ahead:
            yield Case(f"root pair as after commit {number}", "root file", partial(_write, contents=old_pair), STALE)
            yield Case(f"newest root as after commit {number}", "root file", _replace(newest, old_pair[newest]), STALE)
        if old_pair[older] != old_raw and old_pair[older]:
            yield Case(f"older root as after commit {number}", "root file", _replace(older, old_pair[older]), None)


def _write(patient: Patient, *, contents: dict[str, bytes]) -> None:
    for name, data in contents.items():
        patient.replace(name, data)
