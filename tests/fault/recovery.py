"""What runs under the recorder after a crash: open, change something, commit, close; in many directories, one by one.

python -m tests.fault.recovery ROOT JOBS RESULT
"""

from __future__ import annotations

import logging
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from fspf.core.types import ROOT_INO
from fspf.volume.volume import Volume
from tests.fault.memcas import of_snapshot
from tests.fault.plane_workload import VOLUME
from tests.fault.workload import QUOTA_BYTES, Result
from tests.property.model import tree_in
from tests.support.iotrace import mark


def recover(directory: Path, snapshot: bytes, acknowledged: int) -> Result:
    """Recover one volume; the trees of the result are those of the generations made here."""
    result = Result()
    cas = of_snapshot(snapshot)
    result.cas.append(snapshot)
    mark("cas 0 start")
    mark(f"ack {acknowledged}")

    def before(what: str) -> None:
        if what != "fetch":
            mark(f"cas-begin {len(result.cas)} {what}")

    def after(what: str) -> None:
        result.cas.append(cas.snapshot())
        mark(f"cas {len(result.cas) - 1} {what}")

    cas.before, cas.after = before, after
    volume = Volume.open(directory / VOLUME, cas, commit_interval=None, max_bytes=QUOTA_BYTES)
    state, commits = volume.root_record, volume._commits
    assert state is not None
    assert commits is not None
    result.trees[state.generation] = tree_in(volume)
    result.trees[commits.generation] = result.trees[state.generation]  # a replay of the intent log is a commit
    mark(f"ack {state.generation}")
    if volume._rebuild is not None:
        volume._rebuild.wait()
    for number in range(2):
        with suppress(FileNotFoundError):
            volume.unlink(ROOT_INO, b"recovered")
        ino = volume.mknod(ROOT_INO, b"recovered", 0o100644).ino
        with volume.open_file(ino, write=True) as file:
            file.write(0, b"%d" % number * 20000)
        volume.commit()
        result.trees[commits.generation] = tree_in(volume)
        mark(f"ack {commits.generation}")
    volume.close()
    result.trees[commits.generation] = result.trees[max(result.trees)]
    mark(f"ack {commits.generation}")
    return result


def main(arguments: list[str]) -> None:
    root, jobs_file, target = arguments
    logging.disable(logging.CRITICAL)
    jobs: Any = pickle.loads(Path(jobs_file).read_bytes())
    results = {}
    for number, snapshot, acknowledged in jobs:
        mark(f"recovery {number}")
        results[number] = recover(Path(root) / str(number), snapshot, acknowledged)
    mark("recovery none")
    Path(target).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    from tests.fault import recovery  # what is pickled must not be of `__main__`

    recovery.main(sys.argv[1:])
