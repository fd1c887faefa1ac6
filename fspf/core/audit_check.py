"""Check audit logs: what is authentic, and whether the rest was cut off, forged, put in another order or left out.

The form of a line is left to `fspf.core.audit`, reading files to the command line. Nothing here trusts a file: only the
CAS's public key, and the heads that the CAS itself keeps.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidSignature

from fspf.core.audit import HASH_LEN, Head, genesis, parse_line, signed_bytes
from fspf.core.errors import FormatError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from fspf.core.audit import Line

_DIGEST_LEN: Final = HASH_LEN // 2
_CHAIN_AT: Final = slice(len('{"chain":"'), len('{"chain":"') + 32)  # where a line names its chain
# A problem makes the log untrustworthy where it says; a note is what an honest log may hold, too.
PROBLEMS: Final = ("damaged", "forged", "reordered", "gap", "truncated", "torn")
NOTES: Final = ("repeated", "torn", "open", "partial")


class AuditError(IntegrityError):
    """An audit log is not the one that the CAS wrote."""


class Finding(NamedTuple):
    """One thing to say about the logs."""

    kind: str  # of PROBLEMS or NOTES
    file: str
    line: int  # 1-based; 0: not about one line
    chain: str  # "" if unknown
    number: int  # of the line in its chain, 0 if unknown
    message: str

    def __str__(self) -> str:
        """Name the place, then what is wrong."""
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.kind}: {self.message}"


class ChainReport(NamedTuple):
    """What is known of one chain."""

    chain: str
    first: int
    last: int
    authentic: int  # lines up to this number are vouched for by a signature, in one unbroken sequence from the first
    head: str
    ended: bool  # its last line is an orderly stop


@dataclass(slots=True)
class Report:
    """What a check found.

    Attributes:
        lines: How many lines were read, damaged ones included.
    """

    lines: int = 0
    chains: list[ChainReport] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def require_good(self) -> None:
        """Raise the first problem.

        Raises:
            AuditError: There is one.
        """
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise AuditError(f"the audit log is not what the CAS wrote: {self.problems[0]}{more}")


@dataclass(slots=True)
class _Run:
    """Lines of one chain that follow each other in one file, each naming the one before."""

    file: str
    first_line: int
    first: int
    previous: str
    last_line: int = 0
    last: int = 0
    head: str = ""
    ended: bool = False
    hashes: bytearray = field(default_factory=bytearray)
    signed: int = 0  # number of its last line whose signature fits
    bad_signatures: list[tuple[int, int]] = field(default_factory=list)  # (line, number)
    heads: list[tuple[int, dict[str, Head]]] = field(default_factory=list)  # (number, what a start line says of others)

    def add(self, line: Line, position: int) -> None:
        self.last_line, self.last, self.head = position, line.number, line.hash
        self.ended = line.kind == "stop"
        self.hashes += bytes.fromhex(line.hash)

    def digest(self, number: int) -> bytes:
        at = (number - self.first) * _DIGEST_LEN
        return bytes(self.hashes[at : at + _DIGEST_LEN])


class _Check:
    """One check, as it reads."""

    def __init__(self, keys: Sequence[Ed25519PublicKey], heads: Mapping[str, Head], *, partial: bool) -> None:
        self.report = Report()
        self._keys = keys
        self._heads = dict(heads)
        self._partial = partial
        self._runs: dict[str, list[_Run]] = defaultdict(list)
        self._spoiled: dict[str, set[int]] = defaultdict(set)  # numbers whose lines do not fit their own hash
        self._fragments: list[tuple[str, int, bytes]] = []
        self._completed: set[tuple[str, int]] = set()  # fragments that a whole line begins with

    def _problem(self, kind: str, run: _Run | None, line: int, chain: str, number: int, message: str) -> None:
        self.report.problems.append(Finding(kind, run.file if run else "", line, chain, number, message))

    # -- reading

    def read(self, file: str, lines: Iterable[bytes]) -> None:
        """Take in one file, line by line. Each ends in a line feed, but for one that was torn."""
        current: dict[str, _Run] = {}
        for position, raw in enumerate(lines, 1):
            self.report.lines += 1
            claimed = raw.removesuffix(b"\n")
            try:
                line = parse_line(claimed)
            except FormatError as exc:
                self._unreadable(file, position, claimed, str(exc))
                continue
            if not line.fits:
                message = f"line {line.number} of its chain does not fit its own hash: it was altered"
                self.report.problems.append(Finding("forged", file, position, line.chain, line.number, message))
                self._spoiled[line.chain].add(line.number)
                continue
            for other, at, fragment in self._fragments:
                if other == file and claimed.startswith(fragment):
                    self._completed.add((other, at))
            run = current.get(line.chain)
            if run is None or line.number != run.last + 1 or line.previous != run.head:
                run = current[line.chain] = _Run(file, position, line.number, line.previous)
                self._runs[line.chain].append(run)
            run.add(line, position)
            self._look_at(run, line, position)

    def _unreadable(self, file: str, position: int, claimed: bytes, reason: str) -> None:
        if claimed.startswith(b'{"chain":"') and len(claimed) >= _CHAIN_AT.stop and not claimed.endswith(b"}"):
            self._fragments.append((file, position, claimed))  # judged at the end, when the whole is known
        elif claimed and b'{"chain":"'.startswith(claimed[:10]) and len(claimed) < _CHAIN_AT.stop:
            self._fragments.append((file, position, claimed))
        else:
            self.report.problems.append(Finding("damaged", file, position, "", 0, reason))

    def _look_at(self, run: _Run, line: Line, position: int) -> None:
        if line.signature is not None:
            if self._is_signed(line):
                run.signed = line.number
            else:
                run.bad_signatures.append((position, line.number))
        if line.kind == "start" and isinstance(line.fields.get("heads"), dict):
            named = {
                chain: Head(value[0], value[1])
                for chain, value in line.fields["heads"].items()
                if isinstance(value, list) and len(value) == 2 and type(value[0]) is int and isinstance(value[1], str)
            }
            run.heads.append((line.number, named))

    def _is_signed(self, line: Line) -> bool:
        signature = bytes.fromhex(line.signature or "")
        for key in self._keys:
            try:
                key.verify(signature, signed_bytes(line.hash))
            except InvalidSignature:
                continue
            return True
        return False

    # -- judging

    def finish(self) -> Report:
        """Judge what was read."""
        for runs in self._runs.values():
            for run in runs:
                for number, named in run.heads:
                    if number <= run.signed:  # only what is signed is believed
                        for chain, head in named.items():
                            if head.number > self._heads.get(chain, Head(0, "")).number:
                                self._heads[chain] = head
        for chain, runs in self._runs.items():
            self._judge(chain, runs)
        for chain, head in self._heads.items():
            if chain not in self._runs and head.number > 0 and not self._partial:
                message = (
                    f"no line of chain {chain} is here, the CAS wrote {head.number}: a file is missing or was removed"
                )
                self._problem("truncated", None, 0, chain, 0, message)
        self._judge_fragments()
        self.report.problems.sort(key=lambda finding: (finding.file, finding.line))
        return self.report

    def _judge(self, chain: str, runs: list[_Run]) -> None:
        ordered = sorted(runs, key=lambda run: (run.first, -run.last))
        kept: list[_Run] = []
        for run in ordered:
            if kept and run.first <= kept[-1].last:
                self._judge_overlap(chain, kept[-1], run)
                if run.last <= kept[-1].last:
                    continue
            kept.append(run)
        self._judge_beginning(chain, kept[0])
        authentic, unbroken = 0, True
        for index, run in enumerate(kept):
            if index and not self._joined(chain, kept[index - 1], run):
                unbroken = False
            if run.bad_signatures:
                self._bad_signature(chain, run)
            if unbroken and run.signed:
                authentic = run.signed
        self._judge_order(chain, kept)
        last = kept[-1]
        self._judge_end(chain, kept, last)
        self.report.chains.append(
            ChainReport(chain, kept[0].first, last.last, authentic, last.head, last.ended and last.signed == last.last)
        )

    def _judge_overlap(self, chain: str, run: _Run, again: _Run) -> None:
        for number in range(again.first, min(run.last, again.last) + 1):
            if run.digest(number) != again.digest(number):
                at = again.first_line if number == again.first else 0
                message = f"two different lines have number {number} of chain {chain}: one of them is forged"
                self._problem("forged", again, at, chain, number, message)
                return
        message = f"lines {again.first} to {min(run.last, again.last)} of chain {chain} are here twice, word for word"
        self.report.notes.append(Finding("repeated", again.file, again.first_line, chain, again.first, message))

    def _judge_beginning(self, chain: str, run: _Run) -> None:
        if run.first == 1:
            if run.previous != genesis(chain):
                message = f"line 1 does not begin chain {chain}"
                self._problem("forged", run, run.first_line, chain, 1, message)
        elif self._partial:
            message = f"chain {chain} begins here with line {run.first}: what was before was not looked at"
            self.report.notes.append(Finding("partial", run.file, run.first_line, chain, run.first, message))
        elif not self._spoiled[chain].issuperset(range(1, run.first)):
            message = f"lines 1 to {run.first - 1} of chain {chain} are missing before this one"
            self._problem("gap", run, run.first_line, chain, run.first, message)

    def _joined(self, chain: str, before: _Run, run: _Run) -> bool:
        """Say what is wrong between two runs; True if nothing is."""
        if run.first > before.last + 1:
            missing = range(before.last + 1, run.first)
            if len(missing) > len(self._spoiled[chain]) or not self._spoiled[chain].issuperset(missing):
                message = f"lines {missing.start} to {missing.stop - 1} of chain {chain} are missing before this one"
                self._problem("gap", run, run.first_line, chain, run.first, message)
            return False
        if run.first == before.last + 1 and run.previous != before.head:
            if run.signed:
                message = f"line {before.last} of chain {chain} is not the one that line {run.first}, which is signed, follows"
                self._problem("forged", before, before.last_line, chain, before.last, message)
            else:
                message = f"line {run.first} of chain {chain} does not follow line {before.last}, and is not signed"
                self._problem("forged", run, run.first_line, chain, run.first, message)
            return False
        if run.first <= before.last:  # overlapping: compared already, and the rest must follow
            return run.digest(before.last) == before.digest(before.last)
        return True

    def _bad_signature(self, chain: str, run: _Run) -> None:
        line, number = run.bad_signatures[0]
        begin = max((n for n in (run.signed, run.first - 1) if n < number), default=0) + 1
        message = (
            f"the signature of line {number} of chain {chain} does not fit: "
            f"{'it' if begin == number else f'something in lines {begin} to {number}'} was altered, or another key signed"
        )
        if len(run.bad_signatures) > 1:
            message += f" ({len(run.bad_signatures)} signatures in a row of lines do not fit)"
        self._problem("forged", run, line, chain, number, message)

    def _judge_order(self, chain: str, kept: list[_Run]) -> None:
        furthest: dict[str, _Run] = {}
        for run in kept:
            seen = furthest.get(run.file)
            if seen is not None and run.first_line < seen.first_line:
                message = f"line {seen.first} of chain {chain} stands after line {run.first}, which was written later"
                self._problem("reordered", seen, seen.first_line, chain, seen.first, message)
            else:
                furthest[run.file] = run

    def _judge_end(self, chain: str, kept: list[_Run], last: _Run) -> None:
        head = self._heads.get(chain)
        unsigned = last.last - max(last.signed, last.first - 1)
        if head is not None and head.number > last.last:
            message = f"chain {chain} ends here with line {last.last}, the CAS wrote {head.number}: the end was cut off"
            self._problem("truncated", last, last.last_line, chain, last.last, message)
        elif unsigned and not last.bad_signatures:
            what = f"the last {unsigned} lines of chain {chain} are not signed: anybody may have written them"
            if head is not None and head.number <= last.signed:
                message = f"{what}, or a crash interrupted a write; all that the CAS counts is here"
                self.report.notes.append(Finding("torn", last.file, last.last_line, chain, last.last, message))
            else:
                message = f"{what}; a write was interrupted or the end was cut off"
                self._problem("truncated", last, last.last_line, chain, last.last, message)
        elif head is None and not last.ended:
            message = (
                f"chain {chain} is open after line {last.last}: only the CAS's own heads tell whether more was written"
            )
            self.report.notes.append(Finding("open", last.file, last.last_line, chain, last.last, message))
        if head is not None and head.number <= last.last:
            for run in kept:
                if run.first <= head.number <= run.last and run.digest(head.number).hex() != head.hash:
                    message = f"line {head.number} of chain {chain} is not the one that the CAS wrote"
                    self._problem("forged", run, 0, chain, head.number, message)

    def _judge_fragments(self) -> None:
        last = {report.chain: report.last for report in self.report.chains}
        for file, position, fragment in self._fragments:
            chain = fragment[_CHAIN_AT].decode("ascii", "replace") if len(fragment) >= _CHAIN_AT.stop else ""
            head = self._heads.get(chain)
            complete = head is not None and head.number <= last.get(chain, 0)
            if (file, position) in self._completed or complete:
                message = "the beginning of a line: a write was interrupted, nothing that counts is missing"
                self.report.notes.append(Finding("torn", file, position, chain, 0, message))
            else:
                message = "the beginning of a line: a write was interrupted, or the end was cut off"
                self.report.problems.append(Finding("torn", file, position, chain, 0, message))


def verify(
    files: Iterable[tuple[str, Iterable[bytes]]],
    keys: Sequence[Ed25519PublicKey],
    heads: Mapping[str, Head] | None = None,
    *,
    partial: bool = False,
) -> Report:
    """Check the lines of all *files* together.

    Args:
        files: A name for messages and the lines, each with its line feed, as the file has them.
        keys: Those of the CAS, pinned by the caller.
        heads: What the CAS itself says of its chains: without them a cut at the very end of a chain that did not
            stop in order, and that no later start names, cannot be seen.
        partial: Earlier lines and other chains may be absent: older files were put away on purpose.
    """
    check = _Check(keys, heads or {}, partial=partial)
    for name, lines in files:
        check.read(name, lines)
    return check.finish()
