"""`fspf passwd`: lock the CAS with a passphrase, change it, or go back to a key file.

How the master key is wrapped is in `fspf.cas`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fspf.cli.options import ask_passphrase, connected, descriptor, read_passphrase
from fspf.core.errors import UsageError, WrongKeyError

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "passwd",
        description="Lock the CAS with a new passphrase. The present one, if there is one, is asked for or comes from "
        "--passphrase-file; volumes are not touched.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--new-passphrase-file", metavar="FILE", help="first line of FILE is the new passphrase")
    which.add_argument(
        "--new-passphrase-fd", metavar="N", type=descriptor, help="read the new passphrase from descriptor N"
    )
    which.add_argument(
        "--remove", action="store_true", help="no passphrase any more: a key file (mode 0600) unlocks the CAS"
    )


def run(args: Namespace, console: Console) -> int:
    """Change it."""
    from fspf.cas import can_change_passphrase, change_passphrase

    with connected(args) as cas:
        if not can_change_passphrase(cas):
            raise UsageError(f"{cas.url} is a CAS server: what unlocks it is its operator's business")
        new = None if args.remove else _new_passphrase(args)
        change_passphrase(cas, new)
        url = cas.url
    lock = "keyfile" if args.remove else "passphrase"
    console.document({"cas": url, "lock": lock})
    console.line(f"{url}: {'unlocked by its key file' if args.remove else 'locked with the new passphrase'}")
    return 0


def _new_passphrase(args: Namespace) -> bytes:
    if args.new_passphrase_file is not None or args.new_passphrase_fd is not None:
        return read_passphrase(args.new_passphrase_file, args.new_passphrase_fd)
    return ask_twice("new passphrase of the CAS", "--new-passphrase")


def ask_twice(what: str, option: str) -> bytes:
    """Ask a person for a new passphrase.

    Args:
        option: As for `ask_passphrase`.

    Raises:
        WrongKeyError: There is no terminal, or the two answers differ.
    """
    first = ask_passphrase(f"{what}: ", option)
    if first != ask_passphrase("the same again: ", option):
        message = "the two passphrases differ; nothing was changed"
        raise WrongKeyError(message)
    return first
