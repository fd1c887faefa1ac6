"""docs/FORMAT.md against the code and the vectors: every number in its tables is held to something."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
import xxhash

from fspf.core import format as fmt
from fspf.core import keys
from fspf.core import log as logs
from fspf.core.types import MAX_EPOCH, POINTER_LEN, TAG_LEN, VOLUME_ID_LEN
from fspf.volume.namespace import Row

ROOT: Final = Path(__file__).resolve().parents[3]
DOCUMENT: Final = (ROOT / "docs/FORMAT.md").read_text(encoding="utf-8")
VECTORS: Final[dict[str, Any]] = json.loads((ROOT / "tests/vectors/format1.json").read_text(encoding="ascii"))
HEADER: Final = VECTORS["headers"][0]
KEYRING: Final = VECTORS["keyring"][1]
FRAME: Final = VECTORS["roots"][1]
LOG: Final = VECTORS["logs"][0]
BLOCK: Final = VECTORS["blocks"][0]
Rows = list[list[str]]


def page(entry: dict[str, Any]) -> bytes:
    raw = bytearray(entry["length"])
    for offset, run in entry["runs"].items():
        raw[int(offset) : int(offset) + len(run) // 2] = bytes.fromhex(run)
    return bytes(raw)


def section(text: str, number: int) -> str:
    return text.split(f"\n## {number} ")[1].split("\n## ", maxsplit=1)[0]


def tables(text: str) -> list[Rows]:
    """All tables, without their head lines."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in block.splitlines()]
        found.append([[cell.strip("| ") for cell in line] for line in lines[2:]])
    return found


def sizes(layout: struct.Struct) -> list[int]:
    return [
        int(count or 1) if code in "sx" else struct.calcsize("<" + code)
        for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format)
    ]


def check_layout(rows: Rows, layout: struct.Struct, names: str, values: list[str]) -> None:
    """Offsets and sizes are those of *layout*, with no gap; names and values are as said."""
    widths = sizes(layout)
    starts = [sum(widths[:number]) for number in range(len(widths))]
    assert sum(widths) == layout.size
    assert [row[0] for row in rows] == [str(start) for start in starts]
    assert [row[1] for row in rows] == [str(width) for width in widths]
    assert [row[2] for row in rows] == names.split()
    assert [row[3] for row in rows] == values


def check_lengths(text: str) -> None:
    listing = text.split("```")[1]
    assert f"header          {fmt.HEADER_LEN} bytes" in listing
    assert f"keyring         {fmt.KEYRING_RECORD_LEN}-byte records" in listing
    assert f"root.a root.b   {fmt.ROOT_LEN} bytes each" in listing
    assert f"\n## 2 header ({fmt.HEADER_LEN} bytes)\n" in text
    assert f"\n## 3 keyring ({fmt.KEYRING_RECORD_LEN}-byte records)\n" in text
    assert f"\n## 4 {', '.join(fmt.ROOT_NAMES)} ({fmt.ROOT_LEN} bytes)\n" in text
    assert text.startswith(f"# Format {fmt.FORMAT_VERSION}\n")


def parts_of_roots(text: str) -> tuple[str, str]:
    """Return section 4 without 4.1, and 4.1."""
    root, log = section(text, 4).split("\n### 4.1 ")
    return root, log


def check_keys(text: str) -> None:
    derived = "HKDF-SHA256(volume key, salt = volume id, info = `{}`{}), 32 bytes"
    assert tables(section(text, 1)) == [
        [
            ["volume key", "32 random bytes, made and kept by the CAS, with a key version (1, 2, …)"],
            ["key-wrapping key", derived.format(keys.KEYRING_LABEL.decode(), "")],
            ["root key of epoch *e*", derived.format(keys.ROOT_LABEL.decode(), " + u32 *e*")],
            ["log key of epoch *e*", derived.format(keys.LOG_LABEL.decode(), " + u32 *e*")],
            ["epoch key", "32 random bytes, wrapped in the keyring"],
        ]
    ]
    # `fspf 1 siv` itself is in the native code; tests/unit/core/test_vectors.py compares what it makes.
    assert "salt = empty, info = `fspf 1 siv`); output is the 16-byte synthetic IV" in section(text, 1)


def check_header(text: str) -> None:
    (rows,) = tables(section(text, 2))
    values = [
        "`89 46 53 50 46 0D 0A 1A`",
        str(fmt.FORMAT_VERSION),
        "0; unknown flag: refuse",
        f"power of two, {fmt.MIN_CHUNK_SIZE} … {fmt.MAX_CHUNK_SIZE}; default {fmt.DEFAULT_CHUNK_SIZE}",
        f"power of two, {fmt.MIN_SEGMENT_SLOTS} … {fmt.MAX_SEGMENT_SLOTS}; default {fmt.DEFAULT_SEGMENT_SLOTS} (64 MiB segments)",
        "0",
        "random",
        "0",
        f"XXH3 of bytes 0 … {fmt.HEADER_LEN - 9}",
    ]
    names = "magic version flags chunk_size segment_slots reserved volume_id reserved checksum"
    check_layout(rows, fmt._HEADER, names, values)
    assert bytes.fromhex(rows[0][3].strip("`")) == fmt.HEADER_MAGIC
    assert fmt.DEFAULT_SEGMENT_SLOTS * fmt.DEFAULT_CHUNK_SIZE == 64 << 20
    assert sizes(fmt._HEADER)[6] == VOLUME_ID_LEN


def check_keyring(text: str) -> None:
    (rows,) = tables(section(text, 3))
    assert MAX_EPOCH == 2**24 - 1
    values = [
        "1 … 2^24-1",
        "version of the volume key that it is wrapped under",
        f"SIV(key-wrapping key, aad, epoch key); aad = `{keys.KEYRING_LABEL.decode()}` + volume_id + u32 epoch + u32 key_version",
        f"XXH3 of bytes 0 … {fmt.KEYRING_RECORD_LEN - 9}",
    ]
    check_layout(rows, fmt._KEYRING, "epoch key_version wrapped checksum", values)
    assert sizes(fmt._KEYRING)[2] == keys.WRAPPED_LEN


def check_root(text: str) -> None:
    part, _ = parts_of_roots(text)
    frame, record = tables(part)
    sealed_at, end = fmt._ROOT_SEALED_OFFSET, fmt.ROOT_LEN - 8
    assert frame[6][:3] == [str(sealed_at), "sealed_len", "sealed"]
    assert frame[7] == ["…", "…", "padding", f"0 up to {end}"]
    # Both together are one field of the code.
    frame[6:8] = [[str(sealed_at), str(fmt.MAX_SEALED_LEN), "sealed", frame[6][3]]]
    values = [
        f"`{fmt.ROOT_MAGIC.decode()}`",
        "version of the volume key",
        "epoch of the writer",
        f"1 … {fmt.MAX_SEALED_LEN}",
        "random",
        "AES-256-GCM tag: **the root tag**",
        f"AES-256-GCM(root key of epoch, nonce, aad, record); aad = the header's {fmt.HEADER_LEN} bytes + bytes 0 … {fmt._ROOT_PREFIX.size - 1} of this frame",
        f"XXH3 of bytes 0 … {fmt.ROOT_LEN - 9}",
    ]
    check_layout(frame, fmt._ROOT, "magic key_version epoch sealed_len nonce tag sealed checksum", values)
    assert sizes(fmt._ROOT)[4:6] == [fmt.NONCE_LEN, TAG_LEN]
    # The record: number, order, names and types of its elements, as the vector has them.
    assert f"a msgpack array of {fmt._RECORD_ELEMENTS} elements" in part
    assert len(record) == fmt._RECORD_ELEMENTS == len(FRAME["record"])
    assert [row[0] for row in record] == [str(number) for number in range(fmt._RECORD_ELEMENTS)]
    assert [row[1].replace(" ", "_") for row in record] == list(FRAME["record"])
    elements = msgpack.unpackb(bytes.fromhex(FRAME["plain"]))
    for row, element in zip(record, elements, strict=True):
        if isinstance(element, bytes):
            assert row[2].split(",")[0] == f"bin {len(element)}", row
        elif isinstance(element, int):
            assert re.match(r"int\b", row[2]) or row[2] == str(fmt.RECORD_VERSION), row
        else:
            assert row[2].startswith("nil"), row
    assert len(elements[9]) == POINTER_LEN
    assert record[0][2] == str(fmt.RECORD_VERSION)
    assert record[2][2] == "int ≥ 1; the first commit is 1"
    assert record[4][2] == "bin 16, root tag of the state before; zeros for generation 1"
    assert record[15][2].startswith("int, UTC ns since 1970 ")
    assert record[16][2] == "nil, or 1: records of the log may continue this state. Anything else: refuse"


def check_log(text: str) -> None:
    _, part = parts_of_roots(text)
    assert part.startswith(f"log ({logs.LOG_LEN} bytes)\n")
    assert f"log             {logs.LOG_LEN} bytes; " in text.split("```")[1]
    frame, record, batch, piece = tables(part)
    assert f"each begins at a multiple of {logs.LOG_PAGE}." in part
    assert frame[-1] == ["…", "…", "padding", f"0 up to a multiple of {logs.LOG_PAGE}"]
    aad = f"aad = the header's {fmt.HEADER_LEN} bytes + bytes 0 … {logs._PREFIX.size - 1} of this frame"
    sealed = f"AES-256-GCM(log key of epoch, nonce, aad, record); {aad}"
    assert frame[-2] == [str(logs.LOG_HEADER_LEN), "sealed_len", "sealed", sealed]
    values = [
        f"`{logs.LOG_MAGIC.decode()}`",
        "version of the volume key",
        "epoch of the writer",
        "1 or more",
        "random",
        "AES-256-GCM tag: **the root tag** of the state with this record",
        "0",
        f"XXH3 of bytes 0 … {logs.LOG_HEADER_LEN - 9} and the sealed bytes",
    ]
    names = "magic key_version epoch sealed_len nonce tag reserved checksum"
    check_layout(frame[:-2], logs._HEADER, names, values)
    assert sizes(logs._HEADER)[4:6] == [logs.NONCE_LEN, TAG_LEN]
    plain = bytes.fromhex(LOG["plain"])
    elements = msgpack.unpackb(plain, use_list=False)
    for rows, number, what in (
        (record, logs._RECORD_ELEMENTS, elements),
        (batch, logs._BATCH_ELEMENTS, elements[8][0]),
        (piece, 4, elements[9][0]),
    ):
        assert len(rows) == number == len(what)
        assert f"rray of {number} elements" in part
        assert [row[0] for row in rows] == [str(place) for place in range(number)]
        for row, value in zip(rows, what, strict=True):
            if isinstance(value, bytes):
                assert row[2].split(",")[0] == f"bin {len(value)}", row
            elif isinstance(value, tuple):
                assert row[2].startswith("array of "), row
            else:
                assert re.search(r"\bint\b", row[2]) or row[2] == str(logs.RECORD_VERSION), row
    assert [row[1].replace(" ", "_") for row in record] == list(LOG["record"])
    assert [row[1] for row in batch] == list(logs.Batch._fields)
    assert [row[1] for row in piece] == list(logs.Piece._fields)
    assert record[2][2] == "int ≥ 2; that of the state before + 1"
    assert record[10][2].startswith("int, UTC ns since 1970 ")
    assert batch[0][2].startswith(f"array of rows, each an array of {logs._ROW_ELEMENTS}: ")
    assert len(Row._fields) == logs._ROW_ELEMENTS
    assert [row[2] for row in (*batch[6:8], piece[0])] == ["int ≥ 1"] * 3
    assert record[0][2] == str(logs.RECORD_VERSION)


def check_slots(text: str) -> None:
    (rows,) = tables(section(text, 5))
    entry = bytes.fromhex(BLOCK["checksum_entry"])
    expected = (xxhash.xxh3_64_intdigest(bytes.fromhex(BLOCK["stored"])), BLOCK["epoch"], BLOCK["counter"])
    check_fields([row[:3] for row in rows], entry, dict(zip(("checksum", "epoch", "counter"), expected, strict=True)))
    assert rows[0][3] == "XXH3 of the slot's bytes"
    assert f"entries of {fmt.CHECKSUM_ENTRY_LEN} bytes" in section(text, 5)
    assert len(entry) == fmt.CHECKSUM_ENTRY_LEN
    said = re.search(r"^Pointer, (\d+) bytes: (.*?)\. ", section(text, 6), re.MULTILINE)
    assert said
    assert int(said[1]) == POINTER_LEN
    fields = re.findall(r"(\w+) \((\d+)\)", said[2])
    assert [(name, int(size)) for name, size in fields] == [
        (row[2], int(row[1])) for row in tables(section(text, 8))[-1]
    ]


def check_fields(rows: Rows, raw: bytes, values: dict[str, int]) -> None:
    """Rows of (offset, size, field) cover *raw* without a gap, and the integers in it are *values*."""
    at = 0
    for offset, size, name in rows:
        assert int(offset) == at, name
        at += int(size)
        if name in values:
            assert int.from_bytes(raw[int(offset) : at], "little") == values[name], name
    assert at == len(raw)
    assert values.keys() <= {row[2] for row in rows}


def shows(shown: str, raw: bytes) -> bool:
    """Tell whether *shown* is the hex of *raw*, or its beginning and end."""
    assert shown[0] == shown[-1] == "`", shown
    first, left_out, last = shown[1:-1].partition("…")
    if not left_out:
        return first == raw.hex()
    return len(first) == len(last) == 16 and len(raw) > 16 and raw.hex().startswith(first) and raw.hex().endswith(last)


def check_example_fields(rows: Rows, raw: bytes, values: dict[str, int]) -> None:
    check_fields([row[:3] for row in rows], raw, values)
    for offset, size, name, shown, meaning in rows:
        assert shows(shown, raw[int(offset) : int(offset) + int(size)]), name
        if name in values:
            assert meaning == str(values[name]), name
        elif name in {"reserved", "padding"}:
            assert meaning in {"0", "zeros"}
            assert not any(raw[int(offset) : int(offset) + int(size)])
        else:
            assert not re.search(r"\d", meaning.replace("XXH3", "").replace("AES-256-GCM", "")), name
        assert ("XXH3" in meaning) == (name == "checksum")
        assert ("AES-256-GCM" in meaning) == (name == "tag" and len(raw) == POINTER_LEN)


def check_example(text: str) -> None:
    part = section(text, 8)
    for name in ("volume_key", "volume_id", "epoch_key"):
        assert f"`{VECTORS[name]}`" in part
    header, keyring, frame, record, chunk, pointer = tables(part)
    values = {"version": 1, "flags": 0, "chunk_size": HEADER["chunk_size"], "segment_slots": HEADER["segment_slots"]}
    check_example_fields(header, page(HEADER["bytes"]), values)
    values = {"epoch": KEYRING["epoch"], "key_version": KEYRING["key_version"]}
    check_example_fields(keyring, bytes.fromhex(KEYRING["bytes"]), values)
    assert f"of epoch {KEYRING['epoch']}, wrapped under version {KEYRING['key_version']} of" in part
    assert f"aad = `{KEYRING['aad']}`" in part
    plain, fields = bytes.fromhex(FRAME["plain"]), FRAME["record"]
    values = {"key_version": FRAME["key_version"], "epoch": fields["epoch"], "sealed_len": len(plain)}
    check_example_fields(frame, page(FRAME["bytes"]), values)
    name = fmt.ROOT_NAMES[fields["generation"] % 2]
    assert (
        f"Generation {fields['generation']} is even: `{name}`. aad = the header above + bytes 0 … {fmt._ROOT_PREFIX.size - 1}."
        in part
    )
    # The layouts of the example are those of the sections before.
    tables_before = [tables(part)[0] for part in (section(text, 2), section(text, 3), parts_of_roots(text)[0])]
    for example, before in zip((header, keyring, frame), tables_before, strict=True):
        assert [row[2] for row in example] == [row[2] for row in before]
        assert all(
            row[:2] == other[:2]
            for row, other in zip(example, before, strict=True)
            if row[2] not in {"sealed", "padding"}
        )
    # The array: each element's own encoding, and together they are the plaintext.
    elements = msgpack.unpackb(plain, use_list=False)
    packed = [msgpack.packb(element) for element in elements]
    assert plain[3:] == b"".join(packed)
    assert f"it is {len(plain)} bytes: `{plain[:3].hex()}` (an array of {len(elements)} elements)" in part
    assert [row[:2] for row in record] == [row[:2] for row in tables(parts_of_roots(text)[0])[1]]
    for row, element, raw in zip(record, elements, packed, strict=True):
        assert shows(row[2], raw), row
        assert row[3] == said(element), row
    # The chunk.
    expected = {"plaintext": "plain", "slot": "stored", "checksum table entry": "checksum_entry"}
    assert [row[0] for row in chunk] == list(expected)
    for what, size, shown in chunk:
        raw = bytes.fromhex(BLOCK[expected[what]])
        assert int(size) == len(raw)
        assert shows(shown, raw), what
    assert f"Slot {BLOCK['slot']}, the first chunk sealed in epoch {BLOCK['epoch']}: nonce `{BLOCK['nonce']}`." in part
    values = {"slot": BLOCK["slot"], "epoch": BLOCK["epoch"], "counter": BLOCK["counter"]}
    check_example_fields(pointer, bytes.fromhex(BLOCK["pointer"]), values)


def said(element: object) -> str:
    match element:
        case None:
            return "nil"
        case tuple():
            return f"({', '.join(map(said, element))})"
        case bytes():
            return f"bin {len(element)}"
        case _:
            return str(element)


CHECKS: Final = (
    check_lengths,
    check_keys,
    check_header,
    check_keyring,
    check_root,
    check_log,
    check_slots,
    check_example,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_document_says_what_the_code_does(check: Any) -> None:
    check(DOCUMENT)


def test_no_number_of_a_table_can_be_changed_unnoticed() -> None:
    unnoticed = []
    for line in re.finditer(r"^\|.*$", DOCUMENT, re.MULTILINE):
        for number in re.finditer(r"\d+", line[0]):
            at, end = line.start() + number.start(), line.start() + number.end()
            changed = DOCUMENT[:at] + str(int(number[0]) + 1).zfill(len(number[0])) + DOCUMENT[end:]
            if not any(refuses(check, changed) for check in CHECKS):
                unnoticed.append(f"{line[0]}: {number[0]}")
    assert not unnoticed, "\n".join(unnoticed)


def refuses(check: Any, text: str) -> bool:
    try:
        check(text)
    except (AssertionError, ValueError):
        return True
    return False
