"""Options that every command has, and what follows from them: the CAS, the passphrase, an open volume.

Options of a single command are in that command's file.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.console import quoted
from fspf.core.errors import FspfError, IntegrityError, LeaseError, NotAVolumeError, UsageError, WrongKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fspf.cas import Pin
    from fspf.core.anchor import Cas
    from fspf.volume.volume import Volume

_MAX_PASSPHRASE: Final = 4096  # bytes
PASSPHRASE_FILE_VARIABLE: Final = "FSPF_PASSPHRASE_FILE"  # noqa: S105  # names a file

DEFAULTS: Final[dict[str, Any]] = {
    "cas": None,
    "cas_key_hash": None,
    "cas_identity": None,
    "cas_service": None,
    "as_json": False,
    "quiet": False,
    "debug": False,
    "passphrase_file": None,
    "passphrase_fd": None,
}


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the common options. They may stand before or after the command; `DEFAULTS` has what they are otherwise."""
    group = parser.add_argument_group("common options")
    add = group.add_argument
    add(
        "--cas",
        metavar="URL",
        default=argparse.SUPPRESS,
        help="the CAS: sqlite:///PATH or https://HOST:PORT (default: $FSPF_CAS, else a file in the user's data directory)",
    )
    add(
        "--cas-key-hash",
        metavar="HASH",
        default=argparse.SUPPRESS,
        help="the hash of the key of a CAS server (default: $FSPF_CAS_KEY_HASH, else what `fspf cas attest` remembered)",
    )
    add(
        "--cas-identity",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="the key with which a CAS server knows you (default: $FSPF_CAS_IDENTITY, else as remembered)",
    )
    add(
        "--cas-service",
        metavar="POLICY#SERVICE",
        default=argparse.SUPPRESS,
        help="attest to a CAS server as this service; #INSTANCE may follow (default: $FSPF_CAS_SERVICE, else as yourself)",
    )
    add(
        "--json",
        dest="as_json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="write one JSON document to stdout, and messages as JSON lines to stderr",
    )
    add("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help="no notes, no progress")
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show a traceback with an error")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--passphrase-file",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help=f"first line of FILE is the passphrase of the CAS (default: ${PASSPHRASE_FILE_VARIABLE})",
    )
    which.add_argument(
        "--passphrase-fd",
        metavar="N",
        type=descriptor,
        default=argparse.SUPPRESS,
        help="read the passphrase of the CAS from the open file descriptor N",
    )


def descriptor(text: str) -> int:
    """Parse a file descriptor number."""
    if not (text.isascii() and text.isdecimal()):
        message = f"{quoted(text)} is no file descriptor"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def threads(text: str) -> int:
    """Parse a number of threads."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 256):
        message = f"{quoted(text)} is no number of threads from 1 to 256"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def default_threads() -> int:
    """As many threads as this process has processors, at most 8."""
    return min(len(os.sched_getaffinity(0)), 8)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    parser.add_argument(
        "--threads",
        metavar="N",
        type=threads,
        default=default_threads(),
        help="threads that read and write (default: %(default)s)",
    )


# -- passphrases


def read_passphrase(file: str | None, fd: int | None) -> bytes:
    """Return the first line of *file* or of *fd*.

    Raises:
        WrongKeyError: It cannot be read, or is empty.
    """
    try:
        if fd is not None:
            with os.fdopen(os.dup(fd), "rb") as stream:
                line = stream.readline(_MAX_PASSPHRASE + 1)
        else:
            assert file is not None
            with open(file, "rb") as stream:
                line = stream.readline(_MAX_PASSPHRASE + 1)
    except OSError as exc:
        where = f"file descriptor {fd}" if fd is not None else repr(file)
        message = f"cannot read a passphrase from {where}: {exc.strerror}"
        raise WrongKeyError(message) from exc
    passphrase = line.rstrip(b"\r\n")
    if not passphrase or len(passphrase) > _MAX_PASSPHRASE:
        message = f"the passphrase must have 1 to {_MAX_PASSPHRASE} bytes on one line"
        raise WrongKeyError(message)
    return passphrase


def ask_passphrase(prompt: str, option: str = "--passphrase") -> bytes:
    """Ask a person on the terminal.

    Args:
        option: Beginning of the options that give it otherwise, for the message.

    Raises:
        WrongKeyError: There is no terminal, or the answer is empty.
    """
    import getpass

    if not (sys.stdin and sys.stdin.isatty()):
        message = f"a passphrase is needed and there is no terminal to ask on: give {option}-file or {option}-fd"
        raise WrongKeyError(message)
    try:
        answer = getpass.getpass(prompt).encode("utf-8", "surrogateescape")
    except EOFError:
        answer = b""
    if not answer:
        message = "no passphrase was given"
        raise WrongKeyError(message)
    return answer


def passphrase_source(args: argparse.Namespace) -> Callable[[], bytes]:
    """Return a function that gets the passphrase of the CAS when it is needed, once."""
    known: list[bytes] = []

    def source() -> bytes:
        if not known:
            file = args.passphrase_file
            if file is None and args.passphrase_fd is None:
                file = os.environ.get(PASSPHRASE_FILE_VARIABLE) or None
            if file is None and args.passphrase_fd is None:
                known.append(ask_passphrase("passphrase of the CAS: "))
            else:
                known.append(read_passphrase(file, args.passphrase_fd))
        return known[0]

    return source


# -- the CAS and volumes


def pin_of(args: argparse.Namespace) -> Pin:
    """Return how the user recognises a CAS server, and who the user is there."""
    from fspf.cas import Pin

    return Pin(args.cas_key_hash, args.cas_identity, args.cas_service)


@contextmanager
def connected(args: argparse.Namespace, *, create: bool = False) -> Iterator[Cas]:
    """Open the CAS that the user named.

    Args:
        args: The command's arguments.
        create: Make it when there is none; otherwise that is a `CasError`.
    """
    from fspf.cas import open_cas

    cas = open_cas(args.cas, passphrase=passphrase_source(args), create=create, pin=pin_of(args))
    try:
        yield cas
    finally:
        cas.close()


def existing_volume(path: str) -> str:
    """Return *path* if it can be a volume at all, before anybody asks the CAS.

    Raises:
        NotAVolumeError: There is no such directory.
    """
    if not os.path.isdir(path):
        what = "not a directory, so not a volume" if os.path.lexists(path) else "no such volume"
        message = f"{quoted(path)}: {what}"
        raise NotAVolumeError(message)
    return path


@contextmanager
def opened(args: argparse.Namespace, path: str, label: str, *, read_only: bool = True) -> Iterator[Volume]:
    """Open a volume with the user's CAS; close it, or drop what was not committed when the command fails."""
    from fspf.volume.volume import Volume

    existing_volume(path)
    with connected(args) as cas:
        volume = Volume.open(path, cas, read_only=read_only, label=label, commit_interval=None)
        with closing(volume):
            try:
                yield volume
            except IntegrityError as exc:
                if read_only and moved(volume):
                    raise WrittenMeanwhileError from exc
                raise


class WrittenMeanwhileError(LeaseError):
    """A writer replaced what we were reading. Not damage, as far as anybody can tell."""

    retryable = True

    def __str__(self) -> str:
        """Say so."""
        return "somebody wrote to the volume while it was read, and replaced what was to be read: run the command again"


def moved(volume: Volume) -> bool:
    """Tell whether somebody committed since *volume* was opened for reading."""
    try:
        return volume.cas.fetch(volume.header.volume_id).anchor != volume.record.anchor
    except FspfError:
        return False


@contextmanager
def closing(volume: Volume) -> Iterator[Volume]:
    """Close *volume* at the end; abandon it on an exception."""
    try:
        yield volume
    except BaseException:
        volume.abandon()
        raise
    volume.close()


def nonempty(text: str) -> str:
    """Parse a path or name that must not be empty."""
    if not text or "\0" in text:
        message = "a name is needed, not an empty one"
        raise argparse.ArgumentTypeError(message)
    return text


def refuse_existing(path: str, hint: str) -> None:
    """Raise unless *path* is free.

    Raises:
        VolumeExistsError: Something is there.
    """
    from fspf.core.errors import VolumeExistsError

    if os.path.lexists(path):
        message = f"{quoted(path)} exists: {hint}"
        raise VolumeExistsError(message)
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        message = f"{quoted(path)}: the directory {quoted(parent)} does not exist"
        raise UsageError(message)
