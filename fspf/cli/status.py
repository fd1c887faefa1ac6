"""`fspf status`: show the state of a mounted volume.

The values come from the mount itself, through `fspf.mount.client`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fspf.cli.console import human_size, printable
from fspf.cli.options import nonempty

if TYPE_CHECKING:
    import argparse

    from fspf.cli.console import Console


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="show the state of a mounted volume",
        description="Show generation, anchored generation, what is not committed yet, and errors of a mounted volume.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=nonempty)


def run(args: argparse.Namespace, console: Console) -> int:
    from fspf.mount.client import place_of, status_of

    status = status_of(place_of(args.mountpoint))
    console.document(status)
    uptime = time.strftime("%H:%M:%S", time.gmtime(status["uptime_s"] % 86400))
    days = int(status["uptime_s"] // 86400)
    rows = [
        ("volume", printable(status["path"])),
        ("name", printable(status["name"])),
        ("id", status["volume_id"]),
        ("mountpoint", printable(status["mountpoint"])),
        ("state", _state(status)),
        ("generation", f"{status['generation']}, anchored {status['anchored_generation']}"),
        ("freshness", status["freshness"]),
        ("not committed", human_size(status["dirty_bytes"]) + (", names or attributes" if status["dirty"] else "")),
        ("files", f"{status['files']}, {human_size(status['bytes'])}"),
        ("CAS", printable(status["cas"])),
        ("daemon", f"{status['pid']}, fspf {status['version']}, for {f'{days} d ' if days else ''}{uptime}"),
    ]
    for label, value in rows:
        console.line(f"{label + ':':<15}{value}")
    for error in [*status["problems"], *status["errors"]]:
        console.line(f"{'error:':<15}{printable(error)}")
    return 0


def _state(status: dict[str, Any]) -> str:
    if status["failed"]:
        return f"read-only: {printable(status['failed'])}"
    state = "read-only" if status["read_only"] else "writable"
    return state + (", free space is being counted" if status["rebuilding"] else "")
