"""`fspf decrypt`: write a volume's files to a directory.

Each file gets its name when it is complete and verified; that is `fspf.volume.exporter`'s doing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fspf.cli.console import human_size, json_name, printable, quoted
from fspf.cli.encrypt import follow, show_problems, summary_document
from fspf.cli.location import parse_location
from fspf.cli.options import add_threads, moved, nonempty, opened, refuse_existing
from fspf.core.errors import LeaseError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "decrypt",
        description="Write the files of a volume, or of a part of it, to DEST. Nothing that does not verify is ever written "
        "under a file's name: damaged files are listed and left out, the others are written, and the exit code is 20.",
    )
    parser.add_argument("location", metavar="VOLUME[:PATH]", type=parse_location, help="what to write (default: all)")
    parser.add_argument("dest", metavar="DEST", type=nonempty, help="directory (or, for a file, the name) to make")
    add_threads(parser)


def run(args: Namespace, console: Console) -> int:
    """Write the files."""
    from fspf.volume.exporter import decrypt_tree

    location = args.location
    inner, outer = os.path.realpath(args.dest), os.path.realpath(location.volume)
    if inner == outer or inner.startswith(outer.rstrip("/") + "/"):
        message = f"DEST {quoted(args.dest)} lies within the volume: choose another destination"
        raise UsageError(message)
    if not (os.path.isdir(args.dest) and not os.listdir(args.dest)):
        refuse_existing(args.dest, "choose another name, or an empty directory")
    with opened(args, location.volume, "fspf decrypt") as volume, console.progress("decrypt") as bar:
        summary = decrypt_tree(volume, args.dest, path=location.inside, threads=args.threads, progress=follow(bar))
        head = {"volume": str(volume.path), **json_name("path", location.inside), "dest": os.path.abspath(args.dest)}
        if summary.damaged and moved(volume):
            message = (
                f"the volume was written to while it was read, and {len(summary.damaged)} files were replaced meanwhile: "
                f"delete {quoted(args.dest)}, and decrypt again when nobody writes"
            )
            raise LeaseError(message)
    console.document({**head, **summary_document(summary)})
    show_problems(console, summary)
    console.line(f"{printable(args.dest)}: {summary.entries} files, {human_size(summary.bytes)}")
    if summary.errors:
        more = "more than " if summary.not_kept else ""
        text = f"{more}{len(summary.errors)} files could not be written as they were stored"
        console.give_up("IntegrityError" if summary.damaged else "IncompleteError", text, summary.exit_code)
    return summary.exit_code
