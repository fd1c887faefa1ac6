"""`fspf scrub`: check a volume's checksums without any key.

The reading is `fspf.volume.scrub`'s.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from fspf.cli.boundary import EXIT_INTEGRITY
from fspf.cli.console import human_size, json_name, printable
from fspf.cli.options import existing_volume, nonempty

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console
    from fspf.volume.finding import Finding


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "scrub",
        description="Compare header, keyring, root records and all slots with their checksums. Needs no key and no CAS, and "
        "works while the volume is mounted. Finds bad disks and cut-off writes; an attacker's changes are found by "
        "fspf verify only.",
    )
    parser.add_argument("volume", metavar="VOLUME", type=nonempty, help="the volume's directory")


def finding_document(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON members; also for `verify`."""
    return {
        "kind": finding.kind,
        "scope": finding.scope,
        **json_name("path", finding.path),
        "offset": finding.offset,
        "length": finding.length,
        "slot": finding.slot,
        "detail": finding.detail,
    }


def finding_line(finding: Finding) -> str:
    """Return a finding as one line; also for `verify`."""
    where = printable(finding.path) if finding.path else "(namespace)" if finding.scope == "namespace" else "(volume)"
    extent = f" bytes {finding.offset} to {finding.offset + finding.length - 1}" if finding.length else ""
    return f"{finding.kind}: {where}{extent}: {printable(finding.detail)}"


def run(args: Namespace, console: Console) -> int:
    """Check."""
    from fspf.volume.finding import Totals
    from fspf.volume.scrub import scrub

    existing_volume(args.volume)
    totals = Totals()
    count = 0
    started = time.monotonic()
    head = {"volume": os.path.abspath(args.volume)}
    with console.listing(head, "findings") as listing:
        with console.progress("scrub") as progress:
            for finding in scrub(args.volume, progress, totals):
                count += 1
                listing.add(finding_document(finding))
                console.line(finding_line(finding))
        seconds = time.monotonic() - started
        listing.close_with(slots=totals.slots, bytes=totals.bytes, ok=not count, notes=totals.notes)
    for note in [] if console.as_json else totals.notes:
        console.note(note)
    rate = f", {human_size(round(totals.bytes / seconds))}/s" if seconds > 1 else ""
    result = f"{totals.slots} slots, {human_size(totals.bytes)} checked{rate}"
    console.line(f"{result}: {count} findings" if count else f"{result}: no damage found")
    return EXIT_INTEGRITY if count else 0
