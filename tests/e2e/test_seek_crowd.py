"""Many programs that look for holes at the same time, in files whose data is only in the page cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CROWD = """
import errno, os, sys, threading

files = [os.open(f"{sys.argv[1]}/{number}", os.O_RDWR | os.O_CREAT) for number in range(40)]
start = threading.Barrier(len(files))
wrong = []

def look(file):
    start.wait()
    for _ in range(10):
        os.pwrite(file, bytes(65536), 0)
        try:
            if os.lseek(file, 0, os.SEEK_HOLE) != 65536:
                wrong.append("a hole in the data")
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # too many at once: as on a file system that does not know holes
                wrong.append(str(exc))

threads = [threading.Thread(target=look, args=(file,)) for file in files]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(wrong[0] if wrong else 0)
"""


def test_a_crowd_that_looks_for_holes_gets_answers(mnt: Path) -> None:
    subprocess.run([sys.executable, "-c", _CROWD, mnt], check=True, timeout=100)
