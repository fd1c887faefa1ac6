"""`fspf cat`: write one file of a volume to stdout.

Nothing but verified bytes is ever written; the verifying is the engine's.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from fspf.cli.console import json_name
from fspf.cli.location import parse_location
from fspf.cli.options import opened
from fspf.core.errors import DamagedFileError
from fspf.core.types import Ino

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from fspf.cli.console import Console
    from fspf.volume.contents import OpenFile

_BLOCK: Final = 3 << 19  # bytes; divisible by 3, so that pieces of base64 join


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "cat",
        description="Write a file to stdout, byte for byte. At damage it stops with exit code 20: what was written until "
        "then is verified. Symbolic links are followed within the volume.",
    )
    parser.add_argument("location", metavar="VOLUME:PATH", type=parse_location, help="which file")


def run(args: Namespace, console: Console) -> int:
    """Write."""
    path = args.location.required()
    with opened(args, args.location.volume, "fspf cat") as volume:
        found = volume.stat(path)
        if not stat.S_ISREG(found.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
            reason = os.strerror(code) if code == errno.EISDIR else "not a regular file"
            raise OSError(code, reason, os.fsdecode(path))
        with volume.open_file(Ino(found.st_ino)) as file:
            if console.as_json:
                _write_json(console, str(volume.path), path, file)
                return 0
            for block in _blocks(file):
                console.write(block)
            console.flush()
    return 0


def _blocks(file: OpenFile) -> Iterator[bytes]:
    """Return the content up to its end, or up to the first byte that does not verify; then raise."""
    offset = 0
    while True:
        try:
            block = file.read(offset, _BLOCK)
        except DamagedFileError as exc:
            if exc.offset > offset:
                yield file.read(offset, exc.offset - offset)
            raise
        if not block:
            return
        yield block
        offset += len(block)


def _write_json(console: Console, volume: str, path: bytes, file: OpenFile) -> None:
    head = {"volume": volume, **json_name("path", path), "size": file.size}
    console.write(json.dumps(head)[:-1].encode("ascii") + b', "content_base64": "')
    complete = False
    try:
        rest = b""
        for block in _blocks(file):
            block = rest + block  # noqa: PLW2901  # with what the last block left over
            cut = len(block) - len(block) % 3
            rest = block[cut:]
            console.write(base64.b64encode(memoryview(block)[:cut]))
        console.write(base64.b64encode(rest))
        complete = True
    finally:
        console.write(b'", "complete": ' + (b"true" if complete else b"false") + b"}\n")
