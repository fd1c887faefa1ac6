"""`fspf info`: show what is known of a volume.

It opens the volume for reading, which needs no lease: it works while the volume is mounted elsewhere.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from fspf.cli.console import human_size, printable
from fspf.cli.options import nonempty, opened

if TYPE_CHECKING:
    from argparse import Namespace

    from fspf.cli.console import Console
    from fspf.volume.volume import Volume


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        description="Show a volume's identity, state, size, key fingerprint and who writes to it. Works while the volume is "
        "mounted, here or elsewhere: what is shown is then its last commit.",
    )
    parser.add_argument("volume", metavar="VOLUME", type=nonempty, help="the volume's directory")


def run(args: Namespace, console: Console) -> int:
    """Show."""
    with opened(args, args.volume, "fspf info") as volume:
        document = _document(volume)
    console.document(document)
    if not console.as_json:
        for name, value in _table(document):
            console.line(f"{name + ':':<16}{value}")
    for problem in document["problems"]:
        console.warn(problem)
    return 0


def _document(volume: Volume) -> dict[str, Any]:
    state, record = volume.root_record, volume.record
    assert state is not None
    lease = record.lease
    return {
        "volume": str(volume.path),
        "volume_id": volume.header.volume_id.hex(),
        "name": record.name,
        "cas": volume.cas.url,
        "format": 1,
        "generation": state.generation,
        "anchored_generation": record.anchor.generation,
        "epoch": state.epoch,
        "committed_ns": state.created_ns,
        "closed_cleanly": state.space_map is not None,
        "lease": None if lease is None else _lease(lease),
        "freshness": str(record.freshness),
        "chunk_size": volume.header.chunk_size,
        "segment_slots": volume.header.segment_slots,
        "files": state.files,
        "bytes": state.total_bytes,
        "space_used": _space_used(str(volume.path)),
        "key_version": record.key_version,
        "key_fingerprint": record.key.fingerprint,
        "protections": _protections(volume),
        "problems": list(volume.problems),
    }


def _lease(lease: Any) -> dict[str, Any]:
    holder = lease.holder
    return {
        "epoch": lease.epoch,
        "holder": str(holder),
        "host": holder.host,
        "pid": holder.pid,
        "label": holder.label,
        "expires_ns": lease.expires_ns,
        "expired": lease.expires_ns <= time.time_ns(),
    }


def _space_used(path: str) -> int:
    """Return the bytes that the volume's files take on the host."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _protections(volume: Volume) -> dict[str, int]:
    """Return how many regular files have which protection."""
    counts = {"encrypted": 0, "authenticated": 0}
    names = list(counts)
    question = "SELECT protection, count(*) FROM inode WHERE mode & 61440 = 32768 GROUP BY protection"
    with volume.lock, volume.namespace.translated():
        for protection, count in volume.namespace_connection.execute(question):
            counts[names[protection]] = count
    return counts


def _table(document: dict[str, Any]) -> list[tuple[str, str]]:
    lease = document["lease"]
    if lease is None:
        writer = "nobody"
    else:
        writer = lease["holder"] + (
            " (expired)" if lease["expired"] else ", the volume is in use: this is its last commit"
        )
    protections = ", ".join(f"{count} {name}" for name, count in document["protections"].items())
    when = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(document["committed_ns"] // 1_000_000_000))
    return [
        ("volume", printable(document["volume"])),
        ("id", document["volume_id"]),
        ("name", printable(document["name"])),
        ("cas", printable(document["cas"])),
        ("generation", f"{document['generation']} (anchored: {document['anchored_generation']})"),
        ("committed", f"{when}, {'closed cleanly' if document['closed_cleanly'] else 'not closed cleanly, or in use'}"),
        ("epoch", str(document["epoch"])),
        ("writer", printable(writer)),
        ("freshness", document["freshness"]),
        ("files", f"{document['files']} ({protections} regular)"),
        ("bytes", f"{document['bytes']} ({human_size(document['bytes'])})"),
        ("space used", f"{document['space_used']} ({human_size(document['space_used'])})"),
        ("chunk size", f"{document['chunk_size']}, {document['segment_slots']} a segment"),
        ("key", f"{document['key_fingerprint']} (version {document['key_version']})"),
    ]
