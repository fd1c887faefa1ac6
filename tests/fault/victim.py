"""A process that is going to be killed: it changes a volume without end and says what was promised.

    python -m tests.fault.victim VOLUME CAS FIRST

Round *n* makes files that all say *n*, in an order in which every promise (a line ``n K`` on stdout after step K
of round n) can be checked afterwards by `tests.fault.test_kill`.
"""

from __future__ import annotations

import logging
import sys

from fspf.cas import EmbeddedCas
from fspf.core.types import ROOT_INO
from fspf.volume.volume import Volume

FILES = 5


def content(number: int) -> bytes:
    return b"%08d\n" % number * (500 + number % 7 * 300)


def main(arguments: list[str]) -> None:
    path, cas_path, first = arguments
    logging.disable(logging.CRITICAL)
    cas = EmbeddedCas(cas_path)
    volume = Volume.open(path, cas, commit_interval=0.02)
    number = int(first)
    while True:
        for file_number in range(FILES):
            name = b"%d" % file_number
            try:
                ino = volume.lookup(ROOT_INO, name).ino
            except FileNotFoundError:
                ino = volume.mknod(ROOT_INO, name, 0o100600).ino
            with volume.open_file(ino, write=True) as file:
                data = content(number)
                file.write(0, data)
                file.truncate(len(data))
                file.fsync()
            print(number, file_number, flush=True)
        temporary = volume.mknod(ROOT_INO, b"new", 0o100600).ino
        with volume.open_file(temporary, write=True) as file:
            file.write(0, content(number))
        volume.rename(ROOT_INO, b"new", ROOT_INO, b"renamed")
        volume.commit()
        print(number, FILES, flush=True)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1:])
