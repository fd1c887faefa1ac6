#!/usr/bin/env python3
"""Explore by hand what a crash may leave of a volume, or replay one state that failed.

    tools/crash.py [WORKLOAD] [--seed N] [--freshness MODE] [--states N] [--recoveries N] [--broken HOW]
    tools/crash.py --replay FILE [--to DIRECTORY]

The workloads are in tests/fault/workload.py. A failing state is kept in a file that --replay checks again; with --to
the volume is left as the crash left it, to be looked at.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
PYTHON = REPO / ".venv" / "bin" / "python"


def explore(options: argparse.Namespace) -> int:
    from tests.fault.explorer import SCRATCH, explore_in_processes, record_workload

    with tempfile.TemporaryDirectory(prefix="fspf-crash-", dir=SCRATCH) as name:
        scratch = Path(name)
        recording = record_workload(
            options.workload,
            options.seed,
            scratch,
            freshness=options.freshness,
            broken=options.broken,
            cas=options.cas,
        )
        print(f"{options.workload}, seed {options.seed}: {len(recording.trace.events)} steps,", end=" ", flush=True)
        passed = ["--keep", str(options.keep), "--seed", str(options.seed), "--recoveries", str(options.recoveries)]
        if options.states:
            passed += ["--sample", str(options.states)]
        report = explore_in_processes(recording, scratch, passed, processes=options.processes)
    print(f"{report.states} states at {report.cuts} cuts in {report.seconds:.1f} s")
    for variant, count in sorted(report.variants.items()):
        print(f"  {count:6} {variant}")
    print(f"generations recovered to: {report.generations}")
    for violation in report.violations:
        print(f"VIOLATION: {violation}")
    for file in report.kept:
        print(f"replay: tools/crash.py --replay {file}")
    return 1 if report.violations else 0


def replay(file: Path, target: Path | None) -> int:
    from fspf.core.errors import FspfError
    from tests.fault.explorer import SCRATCH, Checker

    state: Any
    state, result = pickle.loads(file.read_bytes())
    print(state)
    with tempfile.TemporaryDirectory(prefix="fspf-crash-", dir=SCRATCH) as name:
        checker = Checker(Path(name), result)
        if target is not None:
            shutil.copytree(checker.place(state), target)
            print(f"the volume as the crash left it: {target}")
        try:
            generation = checker.check(state, thorough=True)
        except (AssertionError, FspfError, OSError) as exc:
            print(f"VIOLATION: {type(exc).__name__}: {exc}")
            return 1
    print(f"opened at generation {generation}; everything is as it must be")
    return 0


def main() -> int:
    from tests.fault.plane_sabotage import PLANE_SABOTAGES
    from tests.fault.plane_workload import PLANE_WORKLOADS
    from tests.fault.sabotage import SABOTAGES
    from tests.fault.workload import WORKLOADS

    parser = argparse.ArgumentParser(description="Explore what a crash may leave of a volume.")
    parser.add_argument("workload", nargs="?", default="mixed", choices=sorted([*WORKLOADS, *PLANE_WORKLOADS]))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--freshness", default="strict")
    parser.add_argument("--states", type=int, default=0, help="check so many, chosen by the seed; default: all")
    parser.add_argument(
        "--cas",
        default="memory",
        choices=["memory", "keeping", "embedded"],
        help="keeping: with records of the log, for plane_*; embedded: its files crash along",
    )
    parser.add_argument("--recoveries", type=int, default=0, help="crash that many recoveries again")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--broken", default="", choices=["", *SABOTAGES, *PLANE_SABOTAGES], help="break the commit in one way first"
    )
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fspf-crash")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    parser.add_argument("--to", type=Path, metavar="DIRECTORY")
    options = parser.parse_args()
    if options.replay:
        logging.basicConfig(level=logging.INFO)
        return replay(options.replay, options.to)
    return explore(options)


if __name__ == "__main__":
    if PYTHON.exists() and Path(sys.prefix) != REPO / ".venv":
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    sys.path.insert(0, str(REPO))
    sys.exit(main())
