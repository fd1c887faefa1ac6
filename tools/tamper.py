#!/usr/bin/env python3
"""Alter a copy of a volume as an attacker would, and see what the library makes of it.

    tools/tamper.py list VOLUME [WORD…]             name the cases (with all of WORD in them)
    tools/tamper.py apply VOLUME CASE               alter VOLUME itself by one case, to look at with fspf
    tools/tamper.py run VOLUME [WORD…] [--most N]   work on a copy: apply each case, judge, undo

The CAS is the one of fspf: --cas URL or $FSPF_CAS. Nothing in it is changed. `apply` changes the volume for good: use it on
a copy. The cases and the judge are in tools/lib/tampering, the same that tests/tamper runs.
"""

# ruff: noqa: E402  # the environment and the repository are found before anything is imported from them
from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
VENV = REPO / ".venv"  # made by tools/setup
if VENV.is_dir() and Path(sys.prefix).resolve() != VENV.resolve():
    os.execv(VENV / "bin" / "python", [str(VENV / "bin" / "python"), *sys.argv])  # has what fspf needs
sys.path.insert(0, str(REPO))

from fspf.cas import open_cas
from fspf.core.errors import FspfError
from fspf.core.format import Header
from fspf.volume.volume import Volume
from tools.lib.tampering.anatomy import dissect
from tools.lib.tampering.blocks import block_cases, segment_cases
from tools.lib.tampering.cases import Case, Material
from tools.lib.tampering.log import idle_cases
from tools.lib.tampering.memory_cas import MemoryCas
from tools.lib.tampering.oracle import Examination, Truth, take_truth
from tools.lib.tampering.patient import Patient
from tools.lib.tampering.small import small_cases


class Bench:
    """A volume, taken apart, and its cases."""

    def __init__(self, path: Path, url: str | None, *, truth: bool) -> None:
        cas = open_cas(url, create=False)
        try:
            header = Header.parse((path / "header").read_bytes())
            record = cas.fetch(header.volume_id)
            with Volume.open(path, cas, read_only=True) as volume:
                assert volume.root_record is not None
                generation = volume.root_record.generation
        finally:
            cas.close()
        self.cas = MemoryCas([record])
        self.anatomy = dissect(path, record, generation=generation)
        self.material = Material(ahead=generation != record.anchor.generation)
        self.truth = take_truth(self.anatomy, self.cas) if truth else Truth()

    def cases(self, words: list[str]) -> list[Case]:
        """Return the cases with all of *words* in their names."""
        made = [
            *small_cases(self.anatomy, self.material),
            *segment_cases(self.anatomy, self.material),
            *block_cases(self.anatomy, self.material),
            *(() if self.anatomy.state.log_follows else idle_cases(self.anatomy)),
        ]
        return [case for case in made if all(word in case.name for word in words)]


def list_cases(args: argparse.Namespace) -> int:
    cases = Bench(args.volume, args.cas, truth=False).cases(args.words)
    for case in cases:
        expected = f"refused: {case.expected.error} ({case.expected.exit_code})" if case.expected else "opens"
        print(f"{case.name}\t{expected}")
    print(f"{len(cases)} cases", file=sys.stderr)
    return 0


def apply_case(args: argparse.Namespace) -> int:
    bench = Bench(args.volume, args.cas, truth=False)
    for case in bench.cases([]):
        if case.name == args.case:
            patient = Patient(bench.anatomy)
            case.apply(patient)
            print(f"altered: {', '.join(sorted(patient.touched))}")
            return 0
    print(f"there is no case {args.case!r}; `tools/tamper.py list {args.volume}` names them", file=sys.stderr)
    return 2


def run_cases(args: argparse.Namespace) -> int:
    parent = Path(tempfile.mkdtemp(prefix="fspf-tamper-", dir=args.scratch))
    try:
        copy = parent / "volume"
        shutil.copytree(args.volume, copy)
        bench = Bench(copy, args.cas, truth=True)
        cases = bench.cases(args.words)[: args.most]
        patient = Patient(bench.anatomy)
        faults: list[str] = []
        skipped = 0
        started = time.monotonic()
        for number, case in enumerate(cases, 1):
            if case.previous:  # what the state before the newest holds is not known here
                skipped += 1
                continue
            try:
                case.apply(patient)
                examination = Examination(patient, bench.truth, bench.cas, case)
                examination.reading()
            finally:
                patient.restore()
            faults += examination.faults
            if examination.faults or args.verbose:
                print(f"{'FAULT' if examination.faults else 'right'}  {case.name}")
            for fault in examination.faults:
                print(f"       {fault}")
            if sys.stderr.isatty() and number % 50 == 0:
                print(f"\r{number} of {len(cases)}", end="\r", file=sys.stderr)
        seconds = time.monotonic() - started
        left_out = f", {skipped} left out" if skipped else ""
        print(f"{len(cases) - skipped} cases in {seconds:.1f} s, {len(faults)} faults{left_out}")
        return 1 if faults else 0
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cas", metavar="URL", help="the CAS of the volume (default: as fspf)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("list", help="name the cases")
    one.add_argument("volume", type=Path)
    one.add_argument("words", nargs="*")
    one.set_defaults(run=list_cases)
    one = commands.add_parser("apply", help="alter VOLUME itself by one case")
    one.add_argument("volume", type=Path)
    one.add_argument("case")
    one.set_defaults(run=apply_case)
    one = commands.add_parser("run", help="apply, judge and undo each case on a copy")
    one.add_argument("volume", type=Path)
    one.add_argument("words", nargs="*")
    one.add_argument("--most", type=int, metavar="N", help="stop after N cases")
    one.add_argument("--scratch", metavar="DIR", help="where the copy is made (default: the system's)")
    one.add_argument("-v", "--verbose", action="store_true", help="name every case")
    one.set_defaults(run=run_cases)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return int(args.run(args))
    except (FspfError, OSError) as exc:
        print(f"tamper: error: {exc}", file=sys.stderr)
        return exc.exit_code if isinstance(exc, FspfError) else 1


if __name__ == "__main__":
    sys.exit(main())
