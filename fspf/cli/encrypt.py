"""`fspf encrypt`: make a volume from a directory, or update one to equal it.

Reading and writing the files is `fspf.volume.importer`'s; this makes sure that a volume appears under its name
whole or not at all.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.boundary import uninterrupted
from fspf.cli.cas import sync_directory
from fspf.cli.console import human_size, json_name, printable, quoted
from fspf.cli.create import add_volume_options, describe, final_name, volume_settings
from fspf.cli.options import add_threads, closing, connected, existing_volume, nonempty, refuse_existing
from fspf.core.errors import FspfError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from fspf.cli.console import Console
    from fspf.core.anchor import Cas
    from fspf.volume.transfer import Problem, Progress, Summary
    from fspf.volume.volume import Volume

_LABEL: Final = "fspf encrypt"
_SUFFIX: Final = ".fspf-new"
_MOST_SHOWN: Final = 50  # problems of one kind on stderr; --json has them all


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "encrypt",
        description="Make a new volume with the files of SOURCE. The volume appears under its name when it is complete. "
        "Files that cannot be read are listed and left out, and the exit code is 1: the volume holds all the others, and "
        "--update adds what was missing. With --update, make an existing volume equal to SOURCE; what is in the volume and "
        "not in SOURCE is deleted there.",
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=nonempty, help="directory to read; it is not changed")
    add("volume", metavar="VOLUME", type=nonempty, help="volume to make; must not exist without --update")
    add("--update", action="store_true", help="make the existing volume VOLUME equal to SOURCE")
    add("--checksum", action="store_true", help="with --update: compare contents, not only size and time")
    add(
        "--authenticated",
        metavar="PATH",
        action="append",
        default=[],
        help="store this part of SOURCE (a path relative to it) authenticated but not encrypted; may be repeated",
    )
    add_threads(parser)
    add_volume_options(parser)


def run(args: Namespace, console: Console) -> int:
    """Make or update the volume."""
    settings = volume_settings(args)
    if not os.path.isdir(args.source):
        what = "is not a directory" if os.path.lexists(args.source) else "does not exist"
        message = f"SOURCE {quoted(args.source)} {what}"
        raise FspfError(message)
    _check_apart(args.source, args.volume)
    for path in args.authenticated:
        _check_region(args.source, path)
    if args.update:
        return _update(args, console)
    if args.checksum:
        message = "--checksum is for --update only"
        raise UsageError(message)
    refuse_existing(args.volume, "choose another name, or give --update to make it equal to SOURCE")
    return _make(args, console, settings)


def _check_apart(source: str, volume: str) -> None:
    inner, outer = os.path.realpath(source), os.path.realpath(volume)
    if inner == outer or inner.startswith(outer.rstrip("/") + "/") or outer.startswith(inner.rstrip("/") + "/"):
        message = f"SOURCE {quoted(source)} and VOLUME {quoted(volume)} lie within each other: choose two separate directories"
        raise UsageError(message)


def _check_region(source: str, path: str) -> None:
    parts = path.split("/")
    if os.path.isabs(path) or ".." in parts:
        message = f"--authenticated takes a path relative to SOURCE, not {quoted(path)}"
        raise UsageError(message)
    if not os.path.lexists(os.path.join(source, path)):
        message = f"--authenticated {quoted(path)}: there is no such file in {quoted(source)}"
        raise UsageError(message)


# -- a new volume


def _make(args: Namespace, console: Console, settings: dict[str, Any]) -> int:
    from fspf.volume.volume import Volume

    with connected(args, create=True) as cas:
        remove_leftovers(args.volume, cas, console)
        with _temporary(args.volume, cas) as (temporary, note_id):
            name = args.name or final_name(args.volume)
            with uninterrupted():
                volume = Volume.create(temporary, cas, name=name, label=_LABEL, commit_interval=None, **settings)
                note_id(volume.header.volume_id)
            with closing(volume):
                summary = _transfer(args, console, volume, update=False)
                document = describe(volume)
    document["volume"] = os.path.abspath(args.volume)
    return _finish(args, console, document, summary)


@contextmanager
def _temporary(path: str, cas: Cas) -> Iterator[tuple[str, Callable[[bytes], None]]]:
    """Give a sibling name of *path* to make a volume under; rename it at the end, or remove it and its record."""
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f".{name[:200]}.{secrets.token_hex(4)}{_SUFFIX}")
    ids: list[bytes] = []
    renamed = False
    try:
        yield temporary, ids.append
        if os.path.lexists(path):
            refuse_existing(path, "it was made meanwhile")
        with uninterrupted():
            os.rename(temporary, path)
            renamed = True
    except BaseException:
        if not renamed:
            _discard(temporary, ids, cas)
        raise
    sync_directory(directory)


def _discard(temporary: str, ids: list[bytes], cas: Cas) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    for volume_id in ids:
        with suppress(FspfError):
            cas.remove(volume_id)


def remove_leftovers(path: str, cas: Cas, console: Console) -> None:
    """Remove what commands that were killed while they made *path* left beside it, and its record."""
    from fspf.volume.layout import Layout

    _remove_unborn(path, cas)
    directory, name = os.path.split(os.path.abspath(path))
    pattern = re.compile(re.escape(f".{name[:200]}.") + r"[0-9a-f]{8}" + re.escape(_SUFFIX))
    try:
        found = [entry for entry in os.listdir(directory) if pattern.fullmatch(entry)]
    except OSError:
        return
    for entry in found:
        leftover = os.path.join(directory, entry)
        try:
            with open(os.path.join(leftover, "lock"), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ids: list[bytes] = []
                with suppress(FspfError):  # killed before there was a header
                    ids.append(Layout(leftover).read_header()[0].volume_id)
                _discard(leftover, ids, cas)
        except OSError:  # somebody is at it, or it is none of ours
            continue
        console.note(f"{leftover} was left by a command that was killed; it is removed")


def _remove_unborn(path: str, cas: Cas) -> None:
    """Remove records of commands that were killed before their volume had a header: nothing else knows their ids.

    Such a record is under the lease of a process that is gone, and no commit but the empty first one was ever made.
    """
    from fspf.cas.liveness import holder_is_gone

    for record in cas.list():
        lease = record.lease
        if (
            record.name == final_name(path)
            and record.anchor.generation <= 1
            and lease is not None
            and lease.holder.label == _LABEL
            and holder_is_gone(lease.holder)
        ):
            cas.remove(record.volume_id)


# -- an existing volume


def _update(args: Namespace, console: Console) -> int:
    from fspf.volume.volume import Volume

    for option, value in (
        ("--name", args.name),
        ("--freshness", args.freshness),
        ("--chunk-size", args.chunk_size),
        ("--segment-slots", args.segment_slots),
    ):
        if value is not None:
            message = f"{option} is for a new volume, not for --update"
            raise UsageError(message)
    existing_volume(args.volume)
    with connected(args) as cas:
        volume = Volume.open(args.volume, cas, label="fspf encrypt --update", commit_interval=None)
        with closing(volume):
            summary = _transfer(args, console, volume, update=True)
            document = describe(volume)
    return _finish(args, console, document, summary)


# -- both


def _transfer(args: Namespace, console: Console, volume: Volume, *, update: bool) -> Summary:
    from fspf.volume.importer import encrypt_tree

    options: dict[str, Any] = {"checksum": True} if args.checksum else {}
    with console.progress("update" if update else "encrypt") as bar:
        return encrypt_tree(
            args.source,
            volume,
            authenticated=args.authenticated,
            update=update,
            threads=args.threads,
            progress=follow(bar),
            **options,
        )


def follow(bar: Callable[..., None]) -> Callable[[Progress], None]:
    """Return a callback that shows a transfer's progress; also for `decrypt`."""

    def show(progress: Progress) -> None:
        bar(progress.bytes, None, f"{progress.entries} files")

    return show


def _finish(args: Namespace, console: Console, document: dict[str, Any], summary: Summary) -> int:
    console.document({**document, "source": os.path.abspath(args.source), **summary_document(summary)})
    show_problems(console, summary)
    changes = f", {summary.updated} updated, {summary.removed} removed" if args.update else ""
    console.line(
        f"{printable(args.volume)}: {summary.entries} files, {human_size(summary.bytes)}{changes}; volume {document['volume_id']}"
    )
    if summary.errors:
        text = f"{_count(summary.errors, summary)} files are not in the volume as they are in SOURCE"
        console.give_up("IncompleteError", text, summary.exit_code)
        console.complain(
            "hint", "the volume is complete but for them: mend what hinders, and run the command with --update"
        )
    return summary.exit_code


def summary_document(summary: Summary) -> dict[str, Any]:
    """Return a transfer's summary as JSON members; also for `decrypt`."""
    document = summary.as_dict()
    for kind in ("warnings", "errors", "damaged"):
        problems: list[Problem] = getattr(summary, kind)
        document[kind] = [{**json_name("path", each.path), "message": each.message} for each in problems]
    return document


def show_problems(console: Console, summary: Summary) -> None:
    """Write what went wrong to stderr; also for `decrypt`. With --json the document has it."""
    if console.as_json:
        return
    for level, problems in (("warning", summary.warnings), ("error", summary.errors)):
        for problem in problems[:_MOST_SHOWN]:
            console.complain(level, f"{printable(problem.path)}: {problem.message}")
        if len(problems) > _MOST_SHOWN:
            console.complain(level, f"and {len(problems) - _MOST_SHOWN} more; --json lists them")


def _count(problems: list[Problem], summary: Summary) -> str:
    return f"more than {len(problems)}" if summary.not_kept else str(len(problems))
