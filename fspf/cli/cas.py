"""`fspf cas show|export|import|remove`: records of the CAS.

What a record is, and what importing one may change, is decided in `fspf.cas`; a server's commands are in `server`.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from fspf.cli import cas_audit, cas_recovery, cas_tpm, server
from fspf.cli.console import printable, quoted
from fspf.cli.options import add_common, ask_passphrase, connected, descriptor, nonempty, read_passphrase
from fspf.cli.passwd import ask_twice
from fspf.core.errors import FspfError, LeaseHeldError, UnknownVolumeError, UsageError, VolumeExistsError

if TYPE_CHECKING:
    import argparse
    from argparse import Namespace

    from fspf.cli.console import Console
    from fspf.core.anchor import Cas, CasRecord

_VOLUME_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MAX_DOCUMENT: Final = 64 << 20  # bytes
_WHICH: Final = "a volume's directory, its id, or its name in the CAS"


def add_parser(commands: Any) -> None:
    """Add the command and its actions."""
    parser = commands.add_parser(
        "cas",
        description="Show, export, import or remove records of the CAS, which hold a volume's key and anchor; run a CAS server, or get to "
        "know one.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title="actions")

    show = actions.add_parser("show", help="show records", description="Show records; no key is ever shown.")
    which = show.add_mutually_exclusive_group()
    which.add_argument("volume", metavar="VOLUME", nargs="?", type=nonempty, help=_WHICH)
    which.add_argument("--all", action="store_true", help="all records (default)")

    export = actions.add_parser(
        "export",
        help="write records to a file",
        description="Write records, with their keys, to a new file that is sealed with a passphrase of its own: a backup, or a "
        "way to another CAS.",
    )
    export.add_argument("volumes", metavar="VOLUME", nargs="*", type=nonempty, help=f"{_WHICH} (default: all)")
    export.add_argument(
        "-o", "--output", metavar="FILE", required=True, type=nonempty, help="file to make; must not exist"
    )
    _add_document_passphrase(export)

    take = actions.add_parser(
        "import",
        help="take records over from a file",
        description="Take over the records of an exported file, all or none. Afterwards this CAS owns the volumes.",
    )
    take.add_argument("file", metavar="FILE", type=nonempty, help="what `fspf cas export` wrote")
    take.add_argument(
        "--replace",
        action="store_true",
        help="also where a record has another key or a newer anchor, which is then lost",
    )
    _add_document_passphrase(take)

    remove = actions.add_parser(
        "remove",
        help="forget a volume and its key",
        description="Remove a record. Its key is gone with it: unless it was exported, nobody can read the volume any more.",
    )
    remove.add_argument("volume", metavar="VOLUME", type=nonempty, help=_WHICH)
    remove.add_argument("--yes", action="store_true", help="do not ask")

    for action in (show, export, take, remove, *server.add_actions(actions)):
        add_common(action)
    cas_audit.add_actions(actions)
    cas_tpm.add_actions(actions)
    cas_recovery.add_actions(actions)


def _add_document_passphrase(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--export-passphrase-file", metavar="FILE", help="first line of FILE is the passphrase of the exported file"
    )
    which.add_argument(
        "--export-passphrase-fd",
        metavar="N",
        type=descriptor,
        help="read the passphrase of the exported file from descriptor N",
    )


def run(args: Namespace, console: Console) -> int:
    """Do what was asked."""
    actions = {
        "show": _show,
        "export": _export,
        "import": _import,
        "remove": _remove,
        "audit": cas_audit.run,
        "tpm": cas_tpm.run,
        "recovery": cas_recovery.run,
        **server.ACTIONS,
    }
    return actions[args.action](args, console)


def find_record(cas: Cas, text: str) -> CasRecord:
    """Return the record that *text* names: by directory, id or name.

    Raises:
        UnknownVolumeError: There is none.
        UsageError: Several volumes have this name.
    """
    from fspf.volume.layout import Layout

    if os.path.isdir(text):
        header, _ = Layout(text).read_header()
        return cas.fetch(header.volume_id)
    if _VOLUME_ID.fullmatch(text):
        return cas.fetch(bytes.fromhex(text))
    found = [record for record in cas.list() if record.name == text]
    if not found:
        message = f"the CAS {cas.url} has no volume named {quoted(text)}, and there is no such directory"
        raise UnknownVolumeError(message)
    if len(found) > 1:
        ids = ", ".join(record.volume_id.hex() for record in found)
        message = f"{len(found)} volumes are named {quoted(text)}, name one by its id: {ids}"
        raise UsageError(message)
    return found[0]


def record_document(record: CasRecord) -> dict[str, Any]:
    """Return a record as JSON members."""
    lease = record.lease
    return {
        "volume_id": record.volume_id.hex(),
        "name": record.name,
        "anchored_generation": record.anchor.generation,
        "root_tag": record.anchor.root_tag.hex(),
        "epoch": record.epoch,
        "freshness": str(record.freshness),
        "key_version": record.key_version,
        "key_fingerprint": record.key.fingerprint,
        "lease": None
        if lease is None
        else {
            "epoch": lease.epoch,
            "holder": str(lease.holder),
            "host": lease.holder.host,
            "pid": lease.holder.pid,
            "label": lease.holder.label,
            "expires_ns": lease.expires_ns,
            "expired": lease.expires_ns <= time.time_ns(),
        },
    }


def _show(args: Namespace, console: Console) -> int:
    with connected(args) as cas:
        records = [find_record(cas, args.volume)] if args.volume else cas.list()
        url = cas.url
    with console.listing({"cas": url}, "records") as listing:
        for record in records:
            listing.add(record_document(record))
            holder = "no writer" if record.lease is None else f"writer {record.lease.holder}"
            console.line(
                f"{record.volume_id.hex()}  {printable(record.name)}  generation {record.anchor.generation}  "
                f"epoch {record.epoch}  {record.freshness}  key {record.key.fingerprint} v{record.key_version}  {printable(holder)}"
            )
    if not records:
        console.note(f"{url} has no records")
    return 0


def _document_passphrase(args: Namespace, *, new: bool) -> bytes:
    if args.export_passphrase_file is not None or args.export_passphrase_fd is not None:
        return read_passphrase(args.export_passphrase_file, args.export_passphrase_fd)
    what = "passphrase of the exported file"
    option = "--export-passphrase"
    return ask_twice(what, option) if new else ask_passphrase(f"{what}: ", option)


def _export(args: Namespace, console: Console) -> int:
    from fspf.cas import export_records

    if os.path.lexists(args.output):
        message = f"{quoted(args.output)} exists: choose another name"
        raise VolumeExistsError(message)
    with connected(args) as cas:
        ids = [find_record(cas, each).volume_id for each in args.volumes] if args.volumes else None
        count = len(dict.fromkeys(ids)) if ids is not None else len(cas.list())
        document = export_records(cas, ids, _document_passphrase(args, new=True))
        url = cas.url
    write_new_file(args.output, document)
    console.document({"cas": url, "file": os.path.abspath(args.output), "records": count})
    console.line(f"{count} records written to {printable(args.output)}")
    return 0


def write_new_file(path: str, data: bytes) -> None:
    """Make a file (mode 0600) with this content: complete and durable, or not at all.

    Raises:
        VolumeExistsError: There is one.
    """
    directory = os.path.dirname(os.path.abspath(path))
    part = os.path.join(directory, f".{os.path.basename(path)[:200]}.{secrets.token_hex(4)}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            os.link(part, path)
        except FileExistsError:
            message = f"{quoted(path)} exists: choose another name"
            raise VolumeExistsError(message) from None
        sync_directory(directory)
    finally:
        with suppress(OSError):
            os.unlink(part)


def sync_directory(path: str) -> None:
    """Make names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _import(args: Namespace, console: Console) -> int:
    from fspf.cas import TAKEOVER_ADVICE, import_records

    with open(args.file, "rb") as file:
        document = file.read(_MAX_DOCUMENT + 1)
    if len(document) > _MAX_DOCUMENT:
        message = f"{quoted(args.file)} is too large for an export of records"
        raise FspfError(message)
    with connected(args, create=True) as cas:
        records = import_records(cas, document, _document_passphrase(args, new=False), replace=args.replace)
        url = cas.url
    with console.listing({"cas": url}, "records") as listing:
        for record in records:
            listing.add(record_document(record))
    console.line(f"{len(records)} records taken over by {url}")
    if records:
        console.note(TAKEOVER_ADVICE)
    return 0


def _remove(args: Namespace, console: Console) -> int:
    from fspf.cas.liveness import holder_is_gone

    with connected(args) as cas:
        record = find_record(cas, args.volume)
        lease = record.lease
        if lease is not None and lease.expires_ns > time.time_ns() and not holder_is_gone(lease.holder):
            raise LeaseHeldError(lease.holder)
        what = f"{quoted(record.name)} ({record.volume_id.hex()}, generation {record.anchor.generation})"
        question = f"remove the key of {what}? Without an export, its data is lost for good"
        if not args.yes and not console.confirm(question):
            message = f"{what} was not removed: confirm with --yes"
            raise UsageError(message)
        cas.remove(record.volume_id)
        url = cas.url
    console.document({"cas": url, "removed": record_document(record)})
    console.line(f"{what} removed from {url}")
    return 0
