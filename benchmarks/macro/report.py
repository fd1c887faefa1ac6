"""What the figures mean: medians, spreads, shares, targets, and the section of results.md that says so.

Pure: values in, text out. Where figures are kept between runs is in store.py; the picture is drawn by chart.py.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from benchmarks.macro.catalog import APP_GROUPS, BY_KEY, LINES, PEERS, SYSTEM_NAMES, Line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BEGIN: Final = "<!-- tools/bench writes from here … -->"
END: Final = "<!-- … to here -->"
OURS: Final = "fspf"
METHOD: Final = (
    "Medians of {rounds} rounds, interleaved; ± is half the distance between the best and the worst round. "
    "Each visit has a new, empty file system; *cold* means: daemon restarted, caches of the machine dropped; one daemon "
    "runs at a time. fspf is `fspf mount` with its defaults: strict freshness, the CAS a file on the same disk; "
    "fspf-bounded: `bounded:500ms`. null keeps nothing (`benchmarks/macro/nullfs.c`): the limit of what a FUSE daemon "
    "can reach. Shares are of speed, so 50 % of ext4 is half as fast, or takes twice the time."
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known about one line: from one run, at one commit."""

    figures: Mapping[str, Sequence[float]]  # file system -> one figure per round
    failures: Mapping[str, str] = field(default_factory=dict)  # file system -> why it has none, or too few
    commit: str = ""
    date: str = ""

    def median(self, system: str) -> float | None:
        figures = self.figures.get(system)
        return statistics.median(figures) if figures else None

    def spread(self, system: str) -> float | None:
        """How far the rounds lie apart: (largest - smallest) / median; None with fewer than two."""
        figures = self.figures.get(system, ())
        middle = self.median(system)
        return (max(figures) - min(figures)) / middle if middle and len(figures) > 1 else None


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that the report is made of."""

    machine: Mapping[str, str]
    versions: Mapping[str, str]
    lines: Mapping[str, Measured]
    quick: bool = False

    @property
    def systems(self) -> list[str]:
        """Those with figures, in the order of the tables."""
        return [name for name in SYSTEM_NAMES if any(measured.figures.get(name) for measured in self.lines.values())]


@dataclass(frozen=True, slots=True)
class Check:
    """One target: what it is measured against, what was reached, and what was to be reached."""

    line: Line
    against: str
    reached: float
    target: float

    @property
    def met(self) -> bool:
        return self.reached >= self.target


@dataclass(frozen=True, slots=True)
class Behind:
    """A line on which a peer is faster, or smaller."""

    line: Line
    peer: str
    ratio: float
    clear: bool  # no round of ours was as good as the peer's worst


def speed_ratio(line: Line, ours: float, theirs: float) -> float:
    """How many times as fast (or as small) the first is: above 1 is better, whatever the unit."""
    better, worse = (ours, theirs) if line.higher_is_better else (theirs, ours)
    return better / worse if worse else float("inf")


def ratio(line: Line, measured: Measured, system: str, against: str) -> float | None:
    """As `speed_ratio`, of medians; None if one of the two was not measured."""
    ours, theirs = measured.median(system), measured.median(against)
    return None if ours is None or theirs is None else speed_ratio(line, ours, theirs)


def checks(line: Line, measured: Measured) -> list[Check]:
    """Compare with each target of the line that can be judged."""
    wanted = (
        ("ext4", OURS, "ext4", line.target),
        ("ext4, bounded", "fspf-bounded", "ext4", line.bounded_target),
        ("gocryptfs", OURS, "gocryptfs", line.gocryptfs_target),
        ("null", OURS, "null", line.null_target),
    )
    found = []
    for name, system, against, target in wanted:
        reached = ratio(line, measured, system, against)
        if target is not None and reached is not None:
            found.append(Check(line, name, reached, target))
    return found


def behind(line: Line, measured: Measured) -> list[Behind]:
    """Name the peers that are ahead of us, those that are furthest first."""
    found = []
    for peer in PEERS:
        reached = ratio(line, measured, OURS, peer)
        if reached is not None and reached < 1:
            ours, theirs = measured.figures[OURS], measured.figures[peer]
            apart = max(ours) < min(theirs) if line.higher_is_better else min(ours) > max(theirs)
            found.append(Behind(line, peer, reached, apart))
    return sorted(found, key=lambda entry: entry.ratio)


# --------------------------------------------------------------------------------------------------------- words


def number(value: float | None) -> str:
    """Three digits or more, never an exponent."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.0f} %"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g} x" if value < 10 else f"{value:.0f} x"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * 2}{'---:|' * (len(head) - 2)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def medians_table(results: Results, lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        measured = results.lines[line.key]
        cells = []
        for system in results.systems:
            if system not in line.systems:
                cells.append("")
            elif measured.median(system) is None:
                cells.append("failed" if system in measured.failures else "-")
            else:
                spread = measured.spread(system)
                cells.append(number(measured.median(system)) + ("" if spread is None else f" ±{spread * 50:.0f}%"))
        rows.append([line.title, line.unit, *cells])
    return table(["line", "unit", *results.systems], rows)


def judged_table(results: Results, lines: Sequence[Line]) -> str:
    head = [
        "line",
        "key",
        "of ext4",
        "target",
        "gocryptfs of ext4",
        "in issue 3",
        "x gocryptfs",
        "x best peer",
        "of null",
        "met",
    ]
    rows = []
    for line in lines:
        measured = results.lines[line.key]
        if measured.median(OURS) is None and measured.median("fspf-bounded") is None:
            continue
        done = checks(line, measured)
        of_ext4 = percent(ratio(line, measured, OURS, "ext4"))
        if measured.median("fspf-bounded") is not None:
            of_ext4 += f" (bounded {percent(ratio(line, measured, 'fspf-bounded', 'ext4'))})"
        best = min((r for peer in PEERS if (r := ratio(line, measured, OURS, peer)) is not None), default=None)
        targets = [percent(line.target)] if line.target is not None else []
        targets += [f"bounded {percent(line.bounded_target)}"] if line.bounded_target is not None else []
        targets += [f"{line.gocryptfs_target:g} x gocryptfs"] if line.gocryptfs_target is not None else []
        targets += [f"{percent(line.null_target)} of null"] if line.null_target is not None else []
        rows.append(
            [
                line.title,
                line.key,
                of_ext4,
                ", ".join(targets),
                percent(ratio(line, measured, "gocryptfs", "ext4")),
                f"{line.issue} %" if line.issue is not None else "",
                times(ratio(line, measured, OURS, "gocryptfs")),
                times(best),
                percent(ratio(line, measured, OURS, "null")),
                "" if not done else "yes" if all(check.met for check in done) else "**no**",
            ]
        )
    return table(head, rows)


def verdicts(results: Results) -> str:
    """The lists that one reads first: targets missed, peers ahead, what could not be measured."""
    measured = [(BY_KEY[key], entry) for key, entry in results.lines.items()]
    done = [check for line, entry in measured for check in checks(line, entry)]
    missed = [check for check in done if not check.met]
    out = [f"**Targets**: {len(done) - len(missed)} of {len(done)} are met."]
    for check in missed:
        reached, target = (
            (times(check.reached), times(check.target))
            if check.against == "gocryptfs"
            else (percent(check.reached), percent(check.target))
        )
        out.append(f"* missed: {check.line.key}: {reached} of {check.against}, target {target}")
    ahead = [entry for line, found in measured for entry in behind(line, found)]
    out += ["", f"**Behind a peer**: {'on no line that was measured.' if not ahead else ''}".rstrip()]
    out += [
        f"* behind a peer: {entry.line.key}: {entry.ratio:.2f} x {entry.peer}"
        + ("" if entry.clear else " (within the spread of the rounds)")
        for entry in ahead
    ]
    failed: dict[tuple[str, str], list[str]] = {}  # (file system, why) -> lines
    for line, entry in measured:
        for system, why in entry.failures.items():
            failed.setdefault((system, why), []).append(line.key)
    out += ["", f"**Failed or skipped**: {'nothing.' if not failed else ''}".rstrip()]
    out += [f"* {system}: {', '.join(keys)}: {' '.join(why.split())[:300]}" for (system, why), keys in failed.items()]
    known = {name for _, entry in measured for name in (*entry.figures, *entry.failures)}
    strangers = [name for name in SYSTEM_NAMES if name not in known]
    out += [f"* file systems not asked for: {', '.join(strangers)}"] if strangers else []
    unmeasured: dict[str, list[str]] = {}  # file system -> lines
    for line, entry in measured:
        for name in line.systems:
            if name in known and name not in entry.figures and name not in entry.failures:
                unmeasured.setdefault(name, []).append(line.key)
    out += [f"* {name}: not asked for: {', '.join(keys)}" for name, keys in unmeasured.items()]
    absent = [line.key for line in LINES if line.key not in results.lines]
    out += [f"* lines not asked for: {', '.join(absent)}"] if absent else []
    return "\n".join(out)


def section(results: Results, chart: str) -> str:
    """The whole section, between its two markers.

    Args:
        chart: Name of the picture beside results.md; empty if there is none.
    """
    origins = sorted({(entry.date, entry.commit) for entry in results.lines.values()})
    rounds = {len(figures) for entry in results.lines.values() for figures in entry.figures.values()}
    low, high = min(rounds, default=0), max(rounds, default=0)
    parts = [
        BEGIN,
        "## tools/bench: plain ext4, FSPF and its peers on one disk",
        "**A quick run: small sizes, few rounds. It shows that the benchmark works, and says little about speed.**"
        if results.quick
        else "",
        "; ".join(f"{name}: {value}" for name, value in results.machine.items()) + ".",
        "Versions: " + "; ".join(f"{name} {value}" for name, value in results.versions.items()) + ".",
        "Measured: " + "; ".join(f"{date} at {commit}" for date, commit in origins) + ".",
        METHOD.format(rounds=low if low == high else f"{low} to {high}"),
        f"![Shares of plain ext4]({chart})" if chart else "",
        verdicts(results),
    ]
    kinds = (
        ("Lines against peers", [line for line in LINES if line.group not in APP_GROUPS]),
        ("Real applications", [line for line in LINES if line.group in APP_GROUPS]),
    )
    for title, lines in kinds:
        known = [line for line in lines if line.key in results.lines and results.lines[line.key].figures]
        if known:
            parts += [f"### {title}: medians", medians_table(results, known)]
            if OURS in results.systems:
                parts += [f"### {title}: FSPF judged", judged_table(results, known)]
    return "\n\n".join(part for part in [*parts, END] if part)


def replace_section(document: str, new: str) -> str:
    """Put *new* where the old section was, or at the end; everything else stays as it is.

    Raises:
        ValueError: One of the two markers is missing, or they are in the wrong order.
    """
    if BEGIN not in document and END not in document:
        return f"{document.rstrip()}\n\n{new}\n".lstrip()
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the markers of tools/bench are damaged: expected one to begin and one to end its section")
    return f"{before}{new}{after}"
