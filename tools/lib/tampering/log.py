"""Cases for the intent log of a volume whose writer was killed, and for what lies in it when nothing of it counts.

What is expected is written from docs/FORMAT.md 4.1, not asked of the code under test.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from tools.lib.tampering import fields
from tools.lib.tampering.cases import FIELD_CHANGES, INTEGRITY, Case
from tools.lib.tampering.patient import Patient, checksum
from tools.lib.tampering.small import special_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.lib.tampering.anatomy import Anatomy
    from tools.lib.tampering.cases import Refused

LOG: Final = "log"
# Bytes of the log that may be altered without anybody noticing, and why that does no harm.
HARMLESS: Final = {
    "closed": "the root record says that no log follows it: nothing of the log is read",
    fields.LEFT_OVER: "no frame there continues the chain: records that earlier roots have taken in, or zeros",
}


def idle_cases(anatomy: Anatomy) -> Iterator[Case]:
    """Return cases for a volume that was closed: all of its log is harmless."""
    raw = (anatomy.path / LOG).read_bytes() if (anatomy.path / LOG).exists() else b""
    for what, data in (
        ("empty", b""),
        ("zeroed", bytes(fields.LOG_LEN)),
        ("all ones", b"\xff" * fields.LOG_LEN),
        ("cut to 100 bytes", raw[:100]),
        ("too long", raw + b"\xff" * 4096),
        ("only magic", fields.LOG_MAGIC * (fields.LOG_LEN // 8)),
    ):
        yield Case(f"log {what}", "log idle", partial(Patient.replace, name=LOG, data=data))
    if raw:
        yield Case("log missing", "log idle", partial(Patient.remove, name=LOG))
        for place in range(0, 512, 3):
            data = raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]
            yield Case(f"log, byte {place} altered", "log idle", partial(Patient.replace, name=LOG, data=data))
    for what, maker in special_files():
        yield Case(f"log is {what}", "log idle", partial(Patient.make, name=LOG, maker=maker))


def chain_cases(anatomy: Anatomy, records: int, anchored: int) -> Iterator[Case]:
    """Return cases for a log that is needed.

    Args:
        anatomy: The volume; only its path is looked at.
        records: How many records the chain has.
        anchored: How many of them the CAS knows of; without one of these the volume must be refused. What comes behind
            them was promised to nobody: without it the anchored state opens (`Case.previous`).
    """
    raw = (anatomy.path / LOG).read_bytes()
    table = fields.log_fields(raw, records)
    starts = [table[f"record {number} magic"][0] for number in range(records)]
    for field, (low, high) in table.items():
        if field == fields.LEFT_OVER:
            for place in sorted({low, low + 1, low + 64, low + 4096, (low + high) // 2, high - 1}):
                write = partial(Patient.write, name=LOG, offset=place, data=bytes([raw[place] ^ 0xFF]))
                yield Case(f"log, left over byte {place} altered", f"log {field}", write)
            continue
        number = int(field.split()[1])
        start, what = starts[number], field.split()[2]
        changes = [(change.name, low, change.make(raw[low:high])) for change in FIELD_CHANGES]
        if what == "sealed":
            changes += [
                (f"byte {place - low} altered", place, bytes([raw[place] ^ 0x10])) for place in range(low, high)
            ]
        for name, place, value in changes:
            if value == raw[place : place + len(value)]:
                continue
            for fix in (False, True):
                if fix and what == "checksum":
                    continue
                yield Case(
                    f"log, {field} {name}{', checksum made right' if fix else ''}",
                    f"log {what}",
                    partial(_alter, start=start, offset=place, data=value, fix=fix),
                    *_outcome(number, anchored),
                )
    yield from _file_cases(raw, starts, anchored)


def _outcome(number: int, anchored: int) -> tuple[Refused | None, bool]:
    """Return what follows when a record is not there any more; an older log and a damaged one end alike."""
    return (INTEGRITY, False) if number < anchored else (None, True)


def _file_cases(raw: bytes, starts: list[int], anchored: int) -> Iterator[Case]:
    for number, start in enumerate(starts):
        for end in (start, start + 63, start + 100):
            cut = partial(Patient.truncate, name=LOG, length=end)
            yield Case(f"log cut to {end} bytes", "log file", cut, *_outcome(number, anchored))
    second = starts[1]
    for what, data in (
        ("zeroed", bytes(len(raw))),
        ("all ones", b"\xff" * len(raw)),
        ("empty", b""),
        ("without its first record", raw[second:]),
        ("with its first record twice", raw[:second] + raw),
    ):
        yield Case(f"log {what}", "log file", partial(Patient.replace, name=LOG, data=data), INTEGRITY)
    yield Case("log missing", "log file", partial(Patient.remove, name=LOG), INTEGRITY)
    for what, maker in special_files():
        yield Case(f"log is {what}", "log file", partial(Patient.make, name=LOG, maker=maker), INTEGRITY)


def _alter(patient: Patient, *, start: int, offset: int, data: bytes, fix: bool) -> None:
    """Write into the frame at *start*, and make its checksum right."""
    patient.write(LOG, offset, data)
    if not fix:
        return
    raw = patient.read(LOG)
    end = start + 64 + int.from_bytes(raw[start + 16 : start + 20], "little")
    patient.write(LOG, start + 56, checksum(raw[start : start + 56] + raw[start + 64 : end]))
