"""The picture beside results.md: one row a line, one mark a file system, a bar for FSPF, a tick for the target.

What the numbers are is in report.py. Needs matplotlib, which is in the optional dependencies `bench`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from benchmarks.macro.catalog import LINES, PEERS, Line
from benchmarks.macro.report import OURS, Results, ratio

if TYPE_CHECKING:
    from pathlib import Path

MARKS: Final = {
    "fspf-bounded": ("D", "#7fb2e5"),
    "gocryptfs": ("o", "#d95f02"),
    "securefs": ("s", "#7570b3"),
    "cryfs": ("^", "#66a61e"),
    "encfs": ("v", "#a6761d"),
}
BLUE: Final = "#1f5fa8"
ROW_INCHES: Final = 0.27
TICKS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def draw(results: Results, path: Path) -> bool:
    """Draw the chart; return False if matplotlib is not installed, or there is nothing to draw."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        (title, against, rows)
        for title, against in (
            ("speed as a share of plain ext4", "ext4"),
            ("speed as a share of the null FUSE file system", "null"),
            ("x gocryptfs (mount time, memory: to the right is less)", "gocryptfs"),
        )
        if (rows := rows_against(results, against))
    ]
    if not panels:
        return False
    heights = [len(rows) + 2.5 for _, _, rows in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(11, ROW_INCHES * sum(heights) + 0.8),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis, (title, against, rows) in zip(axes[:, 0], panels, strict=True):
        panel(axis, results, rows, against)
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
    handles = dict(pair[::-1] for axis in axes[:, 0] for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), fontsize=9, frameon=False
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def rows_against(results: Results, against: str) -> list[Line]:
    """The lines for one panel: all beside ext4; beside null those with a target; beside gocryptfs what ext4 has not."""
    found = []
    for line in LINES:
        measured = results.lines.get(line.key)
        if measured is None or ratio(line, measured, OURS, against) is None:
            continue
        fits = {
            "ext4": True,
            "null": line.null_target is not None,
            "gocryptfs": "ext4" not in line.systems and "null" not in line.systems,
        }
        if fits[against]:
            found.append(line)
    return found


def panel(axis: Any, results: Results, lines: list[Line], against: str) -> None:
    low = 1.0
    high = 1.0
    for row, line in enumerate(lines):
        measured = results.lines[line.key]
        ours = ratio(line, measured, OURS, against)
        assert ours is not None
        axis.barh(row, ours, height=0.62, color=BLUE, alpha=0.85, label="fspf", zorder=2)
        axis.text(1.01, row, f"{ours * 100:.0f} %", transform=axis.get_yaxis_transform(), va="center", fontsize=8,
                  color=BLUE, fontweight="bold")  # fmt: skip
        low, high = min(low, ours), max(high, ours)
        for system, (mark, colour) in MARKS.items():
            theirs = ratio(line, measured, system, against) if system != against else None
            if theirs is not None and (system in PEERS or against == "ext4"):
                axis.plot(theirs, row, mark, color=colour, markersize=6, markeredgecolor="white",
                          markeredgewidth=0.6, label=system, zorder=4)  # fmt: skip
                low, high = min(low, theirs), max(high, theirs)
        targets = {
            "ext4": (
                (line.target, "#c00000", "target"),
                (line.bounded_target, MARKS["fspf-bounded"][1], "target, bounded"),
            ),
            "null": ((line.null_target, "#c00000", "target"),),
        }
        for target, colour, label in targets.get(against, ()):
            if target is not None:
                axis.plot([target] * 2, [row - 0.45, row + 0.45], color=colour, linewidth=2.5, label=label, zorder=3)
                low, high = min(low, target), max(high, target)
    axis.axvline(1.0, color="black", linewidth=0.8, zorder=1)
    axis.set_yticks(range(len(lines)), [line.title for line in lines], fontsize=7.5)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_xscale("log")
    axis.set_xlim(max(low * 0.8, TICKS[0]), min(high * 1.25, TICKS[-1]))
    shown = [tick for tick in TICKS if low * 0.8 <= tick <= high * 1.25]
    axis.set_xticks(shown, [f"{tick * 100:.3g} %" if tick < 10 else f"{tick:.0f} x" for tick in shown])
    axis.minorticks_off()
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
