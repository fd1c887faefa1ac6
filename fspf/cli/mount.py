"""`fspf mount`: mount a volume, and return when it answers.

The mount itself is `fspf.mount`; which options it has, `fspf.mount.options`.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from fspf.cli.options import existing_volume, nonempty, passphrase_source, pin_of
from fspf.core.errors import FspfError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.cli.console import Console
    from fspf.core.anchor import Cas


def add_parser(commands: Any) -> None:
    from fspf.mount.options import help_text

    parser = commands.add_parser(
        "mount",
        help="mount a volume",
        description="Mount VOLUME on the directory MOUNTPOINT. Returns when the mount answers.",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("volume", metavar="VOLUME", type=nonempty)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=nonempty)
    parser.add_argument("-f", "--foreground", action="store_true", help="do not become a daemon; log to stderr")
    parser.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTION[,OPTION…]", help="mount options, see below"
    )
    parser.add_argument("--log", metavar="FILE", type=nonempty, help="log to FILE instead of syslog")
    parser.add_argument(
        "--cache", metavar="SIZE", help="memory for caches, such as 128M (default); the same as -o cache=SIZE"
    )
    parser.add_argument(
        "--guard",
        action="store_true",
        help="make the directory below the mount immutable, so that nothing can be written into it in plain text while "
        "the volume is not mounted (as chattr +i; chattr -i undoes it)",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    from fspf.cas import open_cas
    from fspf.mount.daemon import Daemon
    from fspf.mount.options import parse_options
    from fspf.mount.place import make_plan
    from fspf.mount.system import make_immutable

    words = [*args.options, *([f"cache={args.cache}"] if args.cache is not None else [])]
    options = parse_options(words, is_root=os.geteuid() == 0)
    plan = make_plan(existing_volume(args.volume), args.mountpoint, options)
    log_file = os.path.abspath(args.log) if args.log is not None else options.log or None
    for path, what in ((log_file, "the log"), (options.metrics or None, "the file of metrics")):
        if path is not None and os.path.realpath(path).startswith(plan.mountpoint.rstrip("/") + "/"):
            raise UsageError(f"{what} cannot be kept on the mount that writes it")
    if args.passphrase_file is None and args.passphrase_fd is None and options.passphrase_file:
        args.passphrase_file = options.passphrase_file
    cas_url = args.cas if args.cas is not None else options.cas or None
    pin = pin_of(args)
    if args.guard or options.guard:
        try:
            make_immutable(plan.mountpoint)
        except OSError as exc:
            raise FspfError(
                f"{plan.mountpoint!r} cannot be made immutable: {exc.strerror}: mount without --guard"
            ) from exc

    def connect(passphrase: Callable[[], bytes]) -> Cas:
        return open_cas(cas_url, passphrase=passphrase, create=False, pin=pin)

    daemon = Daemon(plan, connect, passphrase_source(args), log_file=log_file, debug=args.debug)
    if args.foreground:
        return daemon.run_in_foreground()
    console.flush()  # lest the child print it again
    pid = daemon.start()
    console.document({"mountpoint": plan.mountpoint, "volume": plan.volume, "pid": pid})
    return 0
