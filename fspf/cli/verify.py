"""`fspf verify`: read everything, report what is damaged, and rescue what is not.

The reading is `fspf.volume.check`'s, the rescuing `fspf.volume.salvage`'s.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fspf.cli.boundary import EXIT_INTEGRITY
from fspf.cli.console import human_size, quoted
from fspf.cli.options import add_threads, connected, existing_volume, moved, nonempty
from fspf.cli.scrub import finding_document, finding_line
from fspf.core.errors import FreshnessError, IntegrityError, LeaseError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from fspf.cli.console import Console, Listing, ProgressBar
    from fspf.core.anchor import Cas
    from fspf.volume.finding import Finding, Totals
    from fspf.volume.volume import Volume


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "verify",
        description="Read and verify all of a volume: one finding per damaged file and byte range, of kind missing, torn, "
        "tampered, stale or inconsistent. Nothing is changed.",
    )
    parser.add_argument("volume", metavar="VOLUME", type=nonempty, help="the volume's directory")
    parser.add_argument(
        "--salvage",
        metavar="DEST",
        type=nonempty,
        help="write what verifies to the new directory DEST: whole files under their names, others with the suffix "
        ".fspf-damaged and zeros for what is lost; DEST.fspf-damage.json lists the losses",
    )
    parser.add_argument(
        "--accept-stale",
        action="store_true",
        help="with --salvage: also take a volume that is older than the CAS knows; the files are authentic, but old",
    )
    add_threads(parser)


def run(args: Namespace, console: Console) -> int:
    """Verify."""
    from fspf.volume.finding import Totals

    existing_volume(args.volume)
    if args.accept_stale and not args.salvage:
        message = "--accept-stale is for --salvage only: an older state never verifies"
        raise UsageError(message)
    if args.salvage and _inside(args.salvage, args.volume):
        message = f"{quoted(args.salvage)} lies inside the volume: choose another destination"
        raise UsageError(message)
    totals = Totals()
    with connected(args) as cas, console.listing({"volume": os.path.abspath(args.volume)}, "findings") as listing:
        with console.progress("verify") as progress:
            report = _Report(console, listing)
            try:
                volume = _open(args, cas)
            except FreshnessError as exc:
                report.stale(exc)
                volume = None
            except IntegrityError as exc:
                _closed(args.volume, exc, report)
                volume = None
            if volume is not None:
                try:
                    _read(args, console, volume, report, progress, totals)
                finally:
                    with suppress(Exception):
                        volume.abandon()
        listing.close_with(
            files=totals.files,
            bytes=totals.bytes,
            damaged_files=totals.damaged_files,
            damaged_bytes=totals.damaged_bytes,
            ok=not report.count,
            notes=totals.notes,
        )
    for note in [] if console.as_json else totals.notes:
        console.note(note)
    result = f"{totals.files} files, {totals.bytes} bytes verified ({human_size(totals.bytes)})"
    if report.count:
        lost = (
            f", {totals.damaged_files} files with {totals.damaged_bytes} bytes damaged" if totals.damaged_files else ""
        )
        console.line(f"{result}{lost}, {report.count} findings")
    else:
        console.line(result)
    if args.salvage and volume is not None:
        console.note(f"what verified is in {args.salvage}, what is lost is listed in {args.salvage}.fspf-damage.json")
    return report.exit_code


class _Report:
    """Findings as they come, and the exit code that they mean."""

    def __init__(self, console: Console, listing: Listing) -> None:
        self._console = console
        self._listing = listing
        self.count = 0
        self.exit_code = 0

    def add(self, finding: Finding) -> None:
        self.count += 1
        self.exit_code = self.exit_code or EXIT_INTEGRITY
        self._listing.add(finding_document(finding))
        self._console.line(finding_line(finding))

    def stale(self, exc: FreshnessError) -> None:
        from fspf.volume.finding import Finding

        self.add(Finding(b"", 0, 0, "stale", str(exc)))
        self.exit_code = exc.exit_code


def _open(args: Namespace, cas: Cas) -> Volume:
    from fspf.volume.volume import Volume

    return Volume.open(
        args.volume, cas, read_only=True, label="fspf verify", commit_interval=None, accept_stale=args.accept_stale
    )


def _closed(path: str, exc: IntegrityError, report: _Report) -> None:
    from fspf.volume.check import verify_closed

    for finding in verify_closed(path, exc):
        report.add(finding)


def _read(
    args: Namespace, console: Console, volume: Volume, report: _Report, progress: ProgressBar, totals: Totals
) -> None:
    from fspf.volume.check import verify_volume

    if isinstance(volume.stale, FreshnessError):
        report.stale(volume.stale)
        console.warn(f"--accept-stale: what is salvaged is authentic but OLD: {volume.stale}")
    lease = volume.record.lease
    if lease is not None:
        console.note(f"{lease.holder} has it open for writing; its last commit is verified")
    salvage = Path(args.salvage) if args.salvage else None
    findings = verify_volume(volume, progress=progress, salvage=salvage, threads=args.threads, totals=totals)
    for finding in _checked(findings):
        report.add(finding)
    if report.count and volume.stale is None and moved(volume):
        message = (
            "the volume was written to while it was verified, so that findings may be about replaced data: "
            "verify again when nobody writes"
        )
        raise LeaseError(message)


def _checked(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Let an error of the reading itself stand for a finding."""
    try:
        yield from findings
    except IntegrityError as exc:
        from fspf.volume.finding import Finding

        yield Finding(b"", 0, 0, "inconsistent", str(exc), None, "namespace")


def _inside(path: str, volume: str) -> bool:
    inner, outer = os.path.realpath(path), os.path.realpath(volume)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
