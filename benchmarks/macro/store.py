"""Figures between runs: a JSON file beside results.md, so that a run of a few lines leaves the others in the report.

Also names the machine. What the figures mean is in report.py.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.macro.report import Measured, Results
from benchmarks.macro.systems import SYSTEMS, commit

if TYPE_CHECKING:
    from benchmarks.macro.engine import Run

VERSION: Final = 1


def machine(work: Path) -> dict[str, str]:
    """Name the machine: processor, cores, memory, kernel, disk."""
    model = "unknown processor"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    disk = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", "-T", work], capture_output=True, text=True, check=False
    ).stdout.split()
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GB",
        "kernel": platform.release(),
        "disk": ", ".join(disk),
        "Python": platform.python_version(),
    }


def results_of(run: Run, *, quick: bool) -> Results:
    """Take what a run has measured so far."""
    date, now = time.strftime("%Y-%m-%d"), commit()
    lines = {}
    for key in run.keys:
        figures = {name: list(rounds.values()) for name, rounds in run.figures.get(key, {}).items()}
        failures = {name: why for (line, name), why in run.failures.items() if line == key}
        if figures or failures:
            lines[key] = Measured(figures, failures, now, date)
    versions = {name: SYSTEMS[name].version() for name in run.systems}
    return Results(machine(run.work), versions, lines, quick=quick)


def merged(old: Results | None, new: Results) -> Results:
    """Keep the lines of *old* that *new* has not measured; a different machine or size keeps nothing.

    Within a line nothing is mixed: its figures are comparable only because they were taken in turn.
    """
    if old is None or (old.machine, old.quick) != (new.machine, new.quick):
        return new
    return Results(new.machine, {**old.versions, **new.versions}, {**old.lines, **new.lines}, quick=new.quick)


def save(results: Results, path: Path) -> None:
    document = {"version": VERSION, **asdict(results)}
    temporary = path.with_suffix(".json.new")
    temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def load(path: Path) -> Results | None:
    """Read what `save` wrote; None if there is nothing, or of another version."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if document.pop("version") != VERSION:
        return None
    lines = {key: Measured(**entry) for key, entry in document.pop("lines").items()}
    return Results(lines=lines, **document)
