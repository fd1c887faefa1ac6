"""`fspf umount`: unmount a volume; returns when its last commit is anchored and its daemon gone.

How that is known is in `fspf.mount.client`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fspf.cli.options import nonempty

if TYPE_CHECKING:
    from fspf.cli.console import Console


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        message = f"{text!r} is no number of seconds"
        raise argparse.ArgumentTypeError(message)
    return seconds


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "umount",
        help="unmount a volume and wait for its last commit",
        description="Commit, unmount, and wait until the last commit is anchored. If the commit fails, or the mount is in "
        "use, it stays mounted.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=nonempty)
    parser.add_argument("-z", "--lazy", action="store_true", help="unmount though it is in use; do not wait")
    parser.add_argument(
        "--force", action="store_true", help="unmount though the last commit fails; what it held is lost"
    )
    parser.add_argument(
        "--if-dead", action="store_true", help="only take away a mount whose daemon is gone; else do nothing"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="how long to wait for the daemon (default: 60)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    from fspf.mount.client import NotMountedError, Unmounted, detach_dead, mount_of, unmount_and_wait

    if args.if_dead:
        try:
            entry = mount_of(args.mountpoint)
        except NotMountedError:
            console.document({"mountpoint": args.mountpoint, "waited": False})
            return 0
        gone = detach_dead(entry)
        done = Unmounted(waited=gone, remark="its daemon was gone: taken away" if gone else "")
    else:
        entry = mount_of(args.mountpoint)
        done = unmount_and_wait(entry, lazy=args.lazy, force=args.force, timeout_s=args.timeout)
    place = entry.path
    if done.remark:
        console.warn(f"{place!r}: {done.remark}")
    console.document({"mountpoint": place, "waited": done.waited})
    return 0
