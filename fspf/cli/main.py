"""The parser tree of `fspf`.

Each command adds its own arguments when it is used, and only then is its module loaded; what errors become is in `boundary`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from fspf._version import __version__
from fspf.cli.boundary import guard
from fspf.cli.console import Console, logged
from fspf.cli.options import DEFAULTS, add_common
from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: Final = {
    "create": "make an empty volume",
    "encrypt": "make a volume from a directory, or update one to equal it",
    "decrypt": "write a volume's files to a directory",
    "ls": "list files in a volume",
    "cat": "write one file of a volume to stdout",
    "info": "show what is known of a volume",
    "verify": "read everything and report what is damaged",
    "scrub": "check a volume's checksums without any key",
    "mount": "mount a volume",
    "umount": "unmount a volume and wait for its last commit",
    "status": "show the state of a mounted volume",
    "setup": "make mount(8), fstab and systemd know FSPF",
    "passwd": "set or change the passphrase of the CAS",
    "rekey": "give a volume a new key",
    "policy": "check, sign and change policies of a CAS server",
    "cas": "records of the CAS; CAS servers",
}
_WITHOUT_KEYS: Final = {"scrub", "umount", "status", "setup"}  # the others keep out of core dumps
_LOGS_ITSELF: Final = {"mount"}  # to syslog or a file
_EPILOG: Final = """\
exit codes: 0 done, 1 error, 2 usage, 20 integrity, 21 freshness, 22 lease held elsewhere,
23 CAS unreachable or unknown volume, 24 wrong key or passphrase, 130 interrupted, 143 terminated
"""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` instead of printing and exiting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help or version, and notice when that is not possible."""
        console = Console()
        console.write(message.encode("utf-8", "backslashreplace"))
        console.flush()

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        text = f"{message}; try {self.prog} --help"
        raise UsageError(text)


class CommandParser(Parser):
    """The parser of one command. It loads the command's module when it is used."""

    module = ""

    def add_parser(self, name: str, **settings: Any) -> CommandParser:
        """Be the place to which a command's `add_parser(commands)` adds itself."""
        assert self.prog.split()[-1] == name, f"{self.module} adds itself as {name}"
        self.description = settings.get("description", settings.get("help"))
        self.epilog = settings.get("epilog")
        if "formatter_class" in settings:
            self.formatter_class = settings["formatter_class"]
        add_common(self)
        return self

    def load(self) -> CommandParser:
        """Let the command's module fill this parser."""
        if self.module:
            module = importlib.import_module(self.module)
            self.module = ""
            module.add_parser(self)
            self.set_defaults(run=module.run)
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Load the command, then parse."""
        self.load()
        return super().parse_known_args(args, namespace)


def build_parser(*, load: bool = False) -> Parser:
    """Build the parser tree.

    Args:
        load: Load every command, for whoever wants to look at the tree.
    """
    parser = Parser(
        prog="fspf",
        description="Protected directories: everything on storage encrypted, authenticated and fresh.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fspf {__version__}")
    add_common(parser)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=CommandParser, title="commands"
    )
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        command.module = f"fspf.cli.{name}"
        if load:
            command.load()
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* (default: the process's) ask for, and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(as_json="--json" in words, debug="--debug" in words)

    def action() -> int:
        args = build_parser().parse_args(words, argparse.Namespace(**DEFAULTS))
        console.as_json, console.quiet, console.debug = args.as_json, args.quiet, args.debug
        if args.command not in _WITHOUT_KEYS:
            from fspf.mount.system import forbid_core_dumps

            forbid_core_dumps()
        if args.command in _LOGS_ITSELF or getattr(args, "action", "") == "serve":
            return int(args.run(args, console))
        with logged(console):
            return int(args.run(args, console))

    return guard(console, action)
