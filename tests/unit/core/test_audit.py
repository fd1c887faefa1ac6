"""The audit log: one encoding per line, and a check that tells what was done to it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fspf.core import audit
from fspf.core.audit import Chain, Head, Line, Record, encode, parse_line, record_of
from fspf.core.audit_check import AuditError, Report, verify
from fspf.core.errors import FormatError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
ID = "0123456789abcdef" * 2
OTHER_ID = "fedcba9876543210" * 2
BATCHES = (1, 3, 1, 2, 4, 1)  # lines of each write; the last of each is signed


def made(chain: str = ID, key: Ed25519PrivateKey = KEY, *, stop: bool = True) -> list[bytes]:
    """A whole log: a start, events, a stop."""
    writer = Chain(chain, key.sign)
    lines: list[bytes] = []
    total = sum(BATCHES)
    for batch in BATCHES:
        records: list[Record] = []
        for _ in range(batch):
            number = len(lines) + len(records) + 1
            kind = "start" if number == 1 else "stop" if stop and number == total else "lease-granted"
            records.append(record_of(kind, 1_000 + number, {"volume": f"{number:032x}", "message": "a \u00e9 \n b"}))
        lines += writer.lines(records).splitlines(keepends=True)
    return lines


def check(lines: Sequence[bytes], **options: Any) -> Report:
    return verify([("log", lines)], [KEY.public_key()], **options)


def kinds(report: Report) -> list[tuple[str, int]]:
    return [(finding.kind, finding.line) for finding in report.problems]


def head_of(lines: Sequence[bytes]) -> Head:
    line = parse_line(lines[-1].rstrip(b"\n"))
    return Head(line.number, line.hash)


def edited(raw: bytes, change: Callable[[dict[str, Any]], None], *, rehash: bool = False) -> bytes:
    """One line with its content changed, and if wanted with a hash that fits again."""
    document = json.loads(raw)
    change(document)
    if rehash:
        hashed = {name: value for name, value in document.items() if name not in {"hash", "signature"}}
        document["hash"] = hashlib.sha256(b"fspf audit 1 line\0" + encode(hashed)).hexdigest()
    return encode(document) + b"\n"


def another_volume(document: dict[str, Any]) -> None:
    document["volume"] = "f" * 32


def rechained(lines: list[bytes], begin: int) -> list[bytes]:
    """Lines whose hashes were all made anew from *begin* on, as somebody without the key can."""
    out = lines[:begin]
    for raw in lines[begin:]:
        previous = json.loads(out[-1])["hash"]
        out.append(edited(raw, lambda document, previous=previous: document.update(previous=previous), rehash=True))  # type: ignore[misc]
    return out


def test_whole_log_is_good() -> None:
    lines = made()
    report = check(lines, heads={ID: head_of(lines)})
    assert (report.problems, report.notes) == ([], [])
    (chain,) = report.chains
    assert (chain.first, chain.last, chain.authentic, chain.ended) == (1, len(lines), len(lines), True)
    report.require_good()


def test_chain_without_an_end_is_open() -> None:
    report = check(made(stop=False))
    assert not report.problems
    assert [note.kind for note in report.notes] == ["open"]
    assert not report.chains[0].ended


def test_line_has_every_member_in_order() -> None:
    document = json.loads(made()[0])
    assert list(document) == [
        "chain", "number", "time_ns", "kind", "volume", "message", "previous", "hash", "signature"
    ]  # fmt: skip


@pytest.mark.parametrize("index", range(sum(BATCHES)))
def test_altered_line_is_forged_and_named(index: int) -> None:
    lines = made()
    lines[index] = edited(lines[index], another_volume)
    assert kinds(check(lines)) == [("forged", index + 1)]


@pytest.mark.parametrize("index", range(sum(BATCHES)))
def test_altered_line_with_a_new_hash_is_forged_and_named(index: int) -> None:
    lines = made()
    signed = "signature" in json.loads(lines[index])
    lines[index] = edited(lines[index], another_volume, rehash=True)
    found = kinds(check(lines))
    assert set(found) == {("forged", index + 1)}
    assert len(found) == (2 if signed and index < len(lines) - 1 else 1)  # its signature does not fit either


@pytest.mark.parametrize("index", range(sum(BATCHES) - 1))
def test_rewritten_rest_is_forged_at_the_first_signature(index: int) -> None:
    lines = made()
    lines[index] = edited(lines[index], another_volume, rehash=True)
    report = check(rechained(lines, index + 1))
    first_signed = next(i for i in range(index, len(lines)) if "signature" in json.loads(lines[i]))
    assert kinds(report) == [("forged", first_signed + 1)]
    assert report.chains[0].authentic <= index


def test_log_of_another_key_is_forged() -> None:
    report = check(made(key=OTHER_KEY))
    assert kinds(report) == [("forged", 1)]
    assert report.chains[0].authentic == 0


@pytest.mark.parametrize("kept", range(1, sum(BATCHES)))
def test_cut_end_is_truncated_where_it_was_cut(kept: int) -> None:
    lines = made()
    assert kinds(check(lines[:kept], heads={ID: head_of(lines)})) == [("truncated", kept)]


def test_removed_chain_is_truncated() -> None:
    report = check([], heads={ID: head_of(made())})
    assert kinds(report) == [("truncated", 0)]
    assert ID in report.problems[0].message


def test_unsigned_end_is_not_believed() -> None:
    lines = made()[:3]  # the second batch is cut in two
    assert kinds(check(lines)) == [("truncated", 3)]
    assert check(lines).chains[0].authentic == 1


def test_added_lines_are_not_believed() -> None:
    lines = made(stop=False)
    added = edited(lines[-1], lambda document: (document.update(number=len(lines) + 1), document.pop("signature"))[0])
    forged = [*lines, *rechained([lines[-1], added], 1)[1:]]
    assert kinds(check(forged)) == [("truncated", len(lines) + 1)]
    report = check(forged, heads={ID: head_of(lines)})  # the CAS counts no more than what is signed
    assert not report.problems
    assert [note.kind for note in report.notes] == ["torn"]
    assert report.chains[0].authentic == len(lines)


@pytest.mark.parametrize(("index", "count"), [(i, n) for n in (1, 3) for i in range(sum(BATCHES) - n)])
def test_missing_lines_are_a_gap(index: int, count: int) -> None:
    lines = made()
    del lines[index : index + count]
    assert kinds(check(lines)) == [("gap", index + 1)]


@pytest.mark.parametrize("index", range(sum(BATCHES) - 1))
def test_swapped_lines_are_reordered(index: int) -> None:
    lines = made()
    lines[index : index + 2] = [lines[index + 1], lines[index]]
    assert kinds(check(lines)) == [("reordered", index + 2)]


def test_moved_block_is_reordered() -> None:
    lines = made()
    moved = [*lines[:2], *lines[5:8], *lines[2:5], *lines[8:]]
    assert [kind for kind, _ in kinds(check(moved))] == ["reordered"]


def test_same_lines_twice_are_only_noted() -> None:
    lines = made()
    report = check([*lines[:6], *lines[2:6], *lines[6:]], heads={ID: head_of(lines)})
    assert not report.problems
    assert [note.kind for note in report.notes] == ["repeated"]


def test_two_lines_of_one_number_are_forged() -> None:
    lines = made()
    twin = rechained([lines[1], edited(lines[2], another_volume)], 1)[1]
    report = check([*lines[:4], twin, *lines[4:]])
    assert [kind for kind, _ in kinds(report)] == ["forged"]


def test_interrupted_write_that_was_repeated_is_only_noted() -> None:
    lines = made()
    torn = [*lines[:4], lines[4][:60] + b"\n", *lines[4:]]
    report = check(torn)
    assert not report.problems
    assert [(note.kind, note.line) for note in report.notes] == [("torn", 5)]


def test_interrupted_write_that_is_missing_is_torn() -> None:
    lines = made()
    torn = [*lines[:4], lines[4][:-1][:60]]
    assert kinds(check(torn)) == [("torn", 5)]
    assert not check(torn, heads={ID: head_of(lines[:4])}).problems


@pytest.mark.parametrize(
    "junk", [b"\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", b'{"chain":1}\n', b"[" * 5000 + b"\n", b"x" * 70000]
)
def test_junk_is_damaged(junk: bytes) -> None:
    lines = made()
    assert kinds(check([*lines[:2], junk, *lines[2:]])) == [("damaged", 3)]


def test_chains_of_several_processes_share_a_file() -> None:
    one, other = made(), made(OTHER_ID)
    mixed = [line for pair in zip(one, other, strict=True) for line in pair]
    report = check(mixed, heads={ID: head_of(one), OTHER_ID: head_of(other)})
    assert not report.problems
    assert {chain.chain for chain in report.chains} == {ID, OTHER_ID}
    del mixed[4]  # line 3 of the first chain
    assert kinds(check(mixed)) == [("gap", 6)]


def test_chain_goes_on_in_another_file() -> None:
    lines = made()
    keys = [KEY.public_key()]
    assert not verify([("old", lines[:5]), ("new", lines[5:])], keys).problems
    assert not verify([("new", lines[5:]), ("old", lines[:5])], keys).problems
    assert [problem.kind for problem in verify([("new", lines[5:])], keys).problems] == ["gap"]
    partial = verify([("new", lines[5:])], keys, partial=True)
    assert not partial.problems
    assert partial.chains[0].authentic == len(lines)


def test_later_start_shows_that_an_earlier_chain_was_cut() -> None:
    before = made(stop=False)
    writer = Chain(OTHER_ID, KEY.sign)
    start = writer.lines([record_of("start", 5, {"heads": {ID: list(head_of(before))}})])
    assert not check([*before, start]).problems
    assert kinds(check([*before[:8], start])) == [("truncated", 8)]
    assert kinds(check([start])) == [("truncated", 0)]


def test_start_that_is_not_signed_says_nothing_of_others() -> None:
    start = json.loads(Chain(OTHER_ID, KEY.sign).lines([record_of("start", 5, {"heads": {ID: [900, "0" * 64]}})]))
    del start["signature"]
    report = check([*made(), encode(start) + b"\n"])
    assert kinds(report) == [("truncated", sum(BATCHES) + 1)]  # the unsigned line itself


def test_head_that_the_cas_does_not_know_is_forged() -> None:
    lines = made()
    assert kinds(check(lines, heads={ID: Head(4, "0" * 64)})) == [("forged", 0)]


def test_require_good_names_the_first_problem() -> None:
    lines = made()
    del lines[3]
    with pytest.raises(AuditError, match=r"log:4: gap: lines 4 to 4 .* are missing"):
        check(lines).require_good()


@given(st.randoms(use_true_random=False), st.integers(0, 4))
def test_no_change_passes_as_the_whole(rng: random.Random, how: int) -> None:
    """Whatever is deleted, swapped, cut, repeated or flipped: with the head known, either nothing is missing or it is said."""
    lines = made()
    head = head_of(lines)
    changed = list(lines)
    match how:
        case 0:
            at = rng.randrange(len(changed))
            del changed[at : at + rng.randint(1, 4)]
        case 1:
            rng.shuffle(changed)
        case 2:
            changed.insert(rng.randrange(len(lines)), changed[rng.randrange(len(lines))])
        case 3:
            at = rng.randrange(len(changed))
            raw = bytearray(changed[at])
            raw[rng.randrange(len(raw) - 1)] ^= 1 << rng.randrange(7)
            changed[at] = bytes(raw)
        case _:
            at = rng.randrange(len(changed))
            changed[at] = changed[at][: rng.randrange(len(changed[at]))]
    report = check(changed, heads={ID: head})
    intact = [line for line in changed if line in lines]
    rest = iter(intact)
    if not all(line in rest for line in lines):  # the log is no longer there as a whole and in order
        assert report.problems
    assert all(problem.message for problem in report.problems)


@given(st.binary(max_size=200))
def test_parser_refuses_or_reads(raw: bytes) -> None:
    try:
        line = parse_line(raw)
    except FormatError:
        return
    assert isinstance(line, Line)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda raw: raw.replace(b",", b", ", 1), id="a blank"),
        pytest.param(lambda raw: raw.replace(b'"number":1,', b'"number":1.0,'), id="a float for a number"),
        pytest.param(lambda raw: raw.replace(b'"number":1,', b'"number":true,'), id="true for 1"),
        pytest.param(lambda raw: raw.replace(b'"number":1,', b'"number":0,'), id="number 0"),
        pytest.param(lambda raw: raw.replace(b'"kind"', b'"number":1,"kind"'), id="a member twice"),
        pytest.param(lambda raw: raw.replace(b'"signature":"', b'"signature":null,"x":"'), id="no signature but a member"),
        pytest.param(lambda raw: raw[:-1] + b',"more":1}', id="a member behind the signature"),
        pytest.param(lambda raw: raw.replace(b'"volume"', b'"hash"', 1), id="a reserved member among the fields"),
        pytest.param(lambda raw: raw.replace(ID.encode(), ID.upper().encode()), id="hexadecimal in capitals"),
        pytest.param(lambda raw: b"\xef\xbb\xbf" + raw, id="a byte order mark"),
    ],
)  # fmt: skip
def test_second_encoding_is_refused(change: Callable[[bytes], bytes]) -> None:
    raw = made()[0].rstrip(b"\n")
    assert parse_line(raw).fits
    changed = change(raw)
    assert changed != raw
    with pytest.raises(FormatError):
        parse_line(changed)


def test_what_strangers_send_is_cut() -> None:
    record = record_of("attestation-refused", 1, {"reason": "x" * 5000, "many": list(range(1000))})
    assert len(record.fields["reason"]) == audit.MAX_TEXT_LEN + 1
    assert len(record.fields["many"]) == audit.MAX_ITEMS + 1
    huge = {f"field_{index}": "\U0001f600" * 1000 for index in range(64)}
    (line,) = Chain(ID, KEY.sign).lines([record_of("start", 1, huge)]).splitlines()
    assert parse_line(line).fields == {"cut": True}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("Start", {}),
        ("", {}),
        ("start", {"hash": "x"}),
        ("start", {"Upper": 1}),
        ("start", {"key": b"bytes may be a key"}),
        ("start", {"ratio": 0.5}),
        ("start", {"deep": [[[[[1]]]]]}),
    ],
)
def test_what_no_line_can_hold_is_our_own_bug(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is no kind|is no name|does not go into"):
        record_of(kind, 1, fields)


def test_history_of_a_volume() -> None:
    volume = "a" * 32
    records = [
        record_of("lease-granted", 1, {"volume": volume}),
        record_of("anchors", 2, {"volumes": [{"volume": "b" * 32}, {"volume": volume}]}),
        record_of("anchors", 3, {"volumes": [{"volume": "b" * 32}]}),
        record_of("start", 4, {}),
    ]
    lines = [parse_line(line) for line in Chain(ID, KEY.sign).lines(records).splitlines()]
    assert [line.number for line in lines if audit.concerns(line, volume)] == [1, 2]
