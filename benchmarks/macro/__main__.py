"""The command line of the benchmark: `tools/bench`, which installs what is missing and calls this.

Measures FSPF beside plain ext4, a null FUSE file system and every peer that Debian has, on one disk, in turn;
writes a section of benchmarks/results.md, the figures as results.json and a chart as results.png. What is measured
is in catalog.py, how in engine.py and lines_*.py, what it means in report.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from benchmarks.macro import assets, chart, report, store
from benchmarks.macro.catalog import DEFAULT, LINES, QUICK, SYSTEM_NAMES, select
from benchmarks.macro.engine import Run
from benchmarks.macro.measure import BenchError

RESULTS: Final = Path(__file__).resolve().parents[1] / "results.md"
ROUNDS: Final = 3


def words(text: str) -> list[str]:
    return [word for word in text.replace(" ", ",").split(",") if word]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tools/bench",
        description=__doc__,
        epilog="Run it on a machine that does nothing else. Nothing stays mounted, running or stored, also after Ctrl-C.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="small sizes, one round: shows that everything works")
    made.add_argument(
        "--lines", type=words, default=[], metavar="A,B", help="lines or groups (--list), or `apps`; default all"
    )
    made.add_argument(
        "--systems",
        type=words,
        default=list(SYSTEM_NAMES),
        metavar="A,B",
        help=f"of {', '.join(SYSTEM_NAMES)}; default all",
    )
    made.add_argument("--rounds", type=int, metavar="N", help=f"default {ROUNDS}, with --quick 1")
    made.add_argument(
        "--work", type=Path, default=Path("/var/tmp"), metavar="DIR", help="on the disk to measure; default /var/tmp"
    )
    made.add_argument("--full", action="store_true", help="also a million files through the mount of every peer: hours")
    made.add_argument(
        "--no-install", action="store_true", help="install nothing; what is missing is skipped, and named"
    )
    made.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="default benchmarks/results.md")
    made.add_argument(
        "--merge", action="store_true", help="keep the lines of the last run that this one does not measure"
    )
    made.add_argument(
        "--render", action="store_true", help="measure nothing: write the report anew from the figures stored"
    )
    made.add_argument("--list", action="store_true", help="name the lines and their groups")
    return made


def write(results: report.Results, path: Path) -> None:
    """Write figures, chart and section; a document is never left half written."""
    store.save(results, path.with_suffix(".json"))
    picture = path.with_suffix(".png")
    drawn = chart.draw(results, picture)
    document = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    temporary = path.with_suffix(".md.new")
    new = report.section(results, picture.name if drawn else "")
    temporary.write_text(report.replace_section(document, new), encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    made = parser()
    args = made.parse_args()
    if args.list:
        for line in LINES:
            print(f"{line.group:10} {line.key:22} {line.title}")
        return 0
    old = store.load(args.results.with_suffix(".json"))
    if args.render:
        if old is None:
            made.error(f"there are no figures in {args.results.with_suffix('.json')}")
        write(old, args.results)
        return 0
    try:
        keys = select(args.lines)
    except ValueError as exc:
        made.error(str(exc))
    unknown = [name for name in args.systems if name not in SYSTEM_NAMES]
    if unknown:
        made.error(f"no file system is called {unknown[0]!r}")
    if os.geteuid() != 0:
        made.error("root is needed: caches are dropped, file systems are mounted")
    sizes = QUICK if args.quick else DEFAULT
    run = Run(keys, args.systems, sizes, args.rounds or (1 if args.quick else ROUNDS), args.work, full=args.full)
    if "pip" in run.groups:
        run.wheels = assets.wheels(sizes.wheels, fetch=not args.no_install)

    def note() -> None:
        new = store.results_of(run, quick=args.quick)
        write(store.merged(old if args.merge else None, new), args.results)

    try:
        run.go(note)
    except BenchError as exc:
        print(f"tools/bench: error: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tools/bench: broken off; the groups that were complete are in the report", file=sys.stderr)
        return 130
    note()
    print(report.verdicts(store.results_of(run, quick=args.quick)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
