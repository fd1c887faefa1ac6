"""`fspf rekey`: give a volume a new key.

The steps, and what a crash between them leaves, are in `fspf.volume.rekey`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fspf.cli.console import printable
from fspf.cli.options import connected, existing_volume, nonempty

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "rekey",
        description="Make a new volume key in the CAS and wrap the volume's inner keys under it. No data is rewritten: whoever "
        "kept the old key and an old copy of the volume can still read that copy.",
    )
    parser.add_argument("volume", metavar="VOLUME", type=nonempty, help="the volume's directory")


def run(args: Namespace, console: Console) -> int:
    """Change the key."""
    from fspf.volume.rekey import rekey

    existing_volume(args.volume)
    with connected(args) as cas:
        version = rekey(args.volume, cas, label="fspf rekey")
        url = cas.url
    console.document({"volume": os.path.abspath(args.volume), "cas": url, "key_version": version})
    console.line(f"{printable(args.volume)}: key version {version}")
    return 0
