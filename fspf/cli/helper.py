"""`mount.fspf` and `umount.fspf`: what mount(8) and umount(8) run, and with them fstab and systemd.

They turn the arguments of mount(8) into a command line of `fspf` and its exit code into one of mount(8). `fspf setup` puts them
where mount(8) looks. Which options there are is left to `fspf.mount.options`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from fspf.cli.boundary import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED, EXIT_USAGE, guard
from fspf.cli.console import Console
from fspf.cli.main import Parser, main
from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    _Action = Callable[[str, list[str]], int]

# Exit codes as mount(8) describes them, in its section of that name.
_MOUNT_USAGE: Final = 1
_MOUNT_INTERRUPTED: Final = 8
_MOUNT_FAILURE: Final = 32
_CODES: Final = {
    EXIT_OK: 0,
    EXIT_USAGE: _MOUNT_USAGE,
    EXIT_INTERRUPTED: _MOUNT_INTERRUPTED,
    EXIT_TERMINATED: _MOUNT_INTERRUPTED,
}
_REMOUNTABLE: Final = frozenset(
    {"remount", "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "noatime", "relatime"}
)
_UMOUNT_TIMEOUT_S: Final = (
    3600  # whoever runs umount(8) has a limit of his own, and the last commit is worth waiting for
)


def mount_main(arguments: Sequence[str] | None = None) -> int:
    """Be `mount.fspf SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`."""
    return _helper("mount.fspf", _mount, arguments)


def umount_main(arguments: Sequence[str] | None = None) -> int:
    """Be `umount.fspf DIRECTORY [-flnrv] [-N NAMESPACE] [-t TYPE]`."""
    return _helper("umount.fspf", _umount, arguments)


def _helper(name: str, action: _Action, arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = guard(Console(), lambda: action(name, words))
    return _CODES.get(code, _MOUNT_FAILURE)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=name, description=description, add_help=True)
    add = parser.add_argument
    add("-n", action="store_true", help="accepted: there is no mtab")
    add("-v", action="count", default=0, help="say what is done")
    add("-N", dest="namespace", metavar="NAMESPACE", help="do it in this mount namespace")
    add("-t", dest="type", metavar="TYPE", help="accepted: the type is known")
    return parser


def _mount(name: str, words: list[str]) -> int:
    parser = _parser(name, "Mount a volume for mount(8): see docs/MOUNT.md.")
    add = parser.add_argument
    add("source", metavar="VOLUME")
    add("directory", metavar="DIRECTORY")
    add("-s", dest="sloppy", action="store_true", help="leave out options that are not known")
    add("-f", dest="fake", action="store_true", help="check the options, but do not mount")
    add("-o", dest="options", metavar="OPTIONS", action="append", default=[], help="mount options")
    args = parser.parse_args(words)

    from fspf.mount.options import parse_options, split_words

    options = [word for text in args.options for word in split_words(text)]
    if "remount" in options:
        return _remount(args, options)
    checked = parse_options(options, is_root=os.geteuid() == 0, sloppy=args.sloppy)
    if args.sloppy:
        options = [word for word in options if _is_known(word)]
    if args.fake:
        return EXIT_OK
    _enter(args.namespace)
    if not checked.fsname and args.source.isprintable() and '"' not in args.source:
        options.append(f'fsname="{args.source}"')  # so that `mount -a` finds that it is mounted
    command = ["mount", "-q", "-o", ",".join(options), "--", _volume(args.source), args.directory]
    if args.v:
        print(f"{name}: fspf {' '.join(command)}", file=sys.stderr)
    return main(command)


def _is_known(word: str) -> bool:
    from fspf.mount.options import parse_options

    try:
        parse_options([word], is_root=True)
    except UsageError:
        return False
    return True


def _volume(source: str) -> str:
    """Return the volume's directory; the form fspf#/directory is what mount(8) shows of a mount."""
    return source.removeprefix("fspf#")


def _remount(args: argparse.Namespace, options: list[str]) -> int:
    """Let the kernel change its own flags; the rest, which mount(8) adds from fstab, needs a new mount."""
    kept = ["nosuid", "nodev", *(word for word in options if word in _REMOUNTABLE)]  # our defaults, not mount(8)'s
    command = ["mount", "-i", "-n", "-t", "fuse.fspf", "-o", ",".join(kept), "--", args.source, args.directory]
    return EXIT_OK if subprocess.run(command, check=False).returncode == 0 else EXIT_ERROR


def _umount(name: str, words: list[str]) -> int:
    parser = _parser(name, "Unmount a volume for umount(8), and wait for its last commit: see docs/MOUNT.md.")
    add = parser.add_argument
    add("directory", metavar="DIRECTORY")
    add("-f", dest="force", action="store_true", help="unmount though the last commit fails")
    add("-l", dest="lazy", action="store_true", help="unmount though it is in use; do not wait")
    add("-r", dest="read_only", action="store_true", help="accepted")
    args = parser.parse_args(words)
    _enter(args.namespace)
    command = ["umount", "-q", "--timeout", str(_UMOUNT_TIMEOUT_S)]
    command += ["--force"] if args.force else []
    command += ["--lazy"] if args.lazy else []
    command += ["--", args.directory]
    if args.v:
        print(f"{name}: fspf {' '.join(command)}", file=sys.stderr)
    return main(command)


def _enter(namespace: str | None) -> None:
    """Go to another mount namespace, as mount(8) was asked to by --namespace."""
    if namespace is not None:
        from fspf.mount.system import enter_mount_namespace

        path = f"/proc/{namespace}/ns/mnt" if namespace.isdecimal() else namespace
        enter_mount_namespace(path)
