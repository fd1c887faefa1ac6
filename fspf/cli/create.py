"""`fspf create`: make an empty volume.

Making one from a directory is `encrypt`.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from fspf.cli.boundary import uninterrupted
from fspf.cli.console import printable
from fspf.cli.options import closing, connected, nonempty, refuse_existing

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console
    from fspf.core.freshness import Freshness
    from fspf.volume.volume import Volume


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("create", description="Make an empty volume, and its record in the CAS.")
    parser.add_argument(
        "volume", metavar="VOLUME", type=nonempty, help="directory to make; it may exist if it is empty"
    )
    add_volume_options(parser)


def add_volume_options(parser: argparse.ArgumentParser) -> None:
    """Add what a new volume can be given; also for `encrypt`."""
    add = parser.add_argument
    add("--name", type=nonempty, help="name in the CAS, for people (default: the directory's name)")
    add(
        "--freshness",
        metavar="MODE",
        type=_freshness,
        help="strict (default), bounded:500ms, bounded:500ms,64 (milliseconds, commits), or none",
    )
    add(
        "--id",
        dest="volume_id",
        metavar="HEX",
        type=_volume_id,
        help="the id that a policy gave the volume: 32 hex digits",
    )
    add("--chunk-size", metavar="BYTES", type=int, help="unit of content: a power of two from 4096 (default) to 65536")
    add(
        "--segment-slots",
        metavar="N",
        type=int,
        help="chunks per file on the host: a power of two from 64 to 1048576 (default 16384)",
    )


def _volume_id(text: str) -> bytes:
    if len(text) != 32 or set(text) - set("0123456789abcdef"):
        message = f"the id of a volume has 32 hex digits in lower case, unlike {text!r}"
        raise argparse.ArgumentTypeError(message)
    return bytes.fromhex(text)


def _freshness(text: str) -> Freshness:
    from fspf.core.errors import UsageError
    from fspf.core.freshness import Freshness

    try:
        return Freshness.parse(text)
    except UsageError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def volume_settings(args: Namespace) -> dict[str, Any]:
    """Return the arguments of `Volume.create` that the options ask for.

    Raises:
        UsageError: A number is none that format 1 has.
    """
    from fspf.core import format as form
    from fspf.core.errors import UsageError

    settings: dict[str, Any] = {}
    limits = {
        "chunk_size": (args.chunk_size, form.MIN_CHUNK_SIZE, form.MAX_CHUNK_SIZE),
        "segment_slots": (args.segment_slots, form.MIN_SEGMENT_SLOTS, form.MAX_SEGMENT_SLOTS),
    }
    for name, (value, low, high) in limits.items():
        if value is None:
            continue
        if not low <= value <= high or value & (value - 1):
            message = f"--{name.replace('_', '-')} is a power of two from {low} to {high}, not {value}"
            raise UsageError(message)
        settings[name] = value
    if args.volume_id is not None:
        settings["volume_id"] = args.volume_id
    if args.freshness is not None:
        settings["freshness"] = args.freshness
    return settings


def final_name(path: str) -> str:
    """Return the name that a volume at *path* gets in the CAS unless told otherwise."""
    return os.path.basename(os.path.abspath(path)) or "volume"


def describe(volume: Volume) -> dict[str, Any]:
    """Return what is said of a volume that was made."""
    return {
        "volume": str(volume.path),
        "volume_id": volume.header.volume_id.hex(),
        "name": volume.record.name,
        "cas": volume.cas.url,
        "freshness": str(volume.record.freshness),
    }


def run(args: Namespace, console: Console) -> int:
    """Make the volume."""
    from fspf.volume.volume import Volume

    settings = volume_settings(args)
    if not (os.path.isdir(args.volume) and not os.listdir(args.volume)):
        refuse_existing(args.volume, "choose another name, or an empty directory")
    name = args.name or final_name(args.volume)
    with connected(args, create=True) as cas, uninterrupted():
        volume = Volume.create(args.volume, cas, name=name, label="fspf create", commit_interval=None, **settings)
        with closing(volume):
            document = describe(volume)
    console.document(document)
    console.line(f"{printable(args.volume)}: volume {document['volume_id']}, key in {document['cas']}")
    return 0
