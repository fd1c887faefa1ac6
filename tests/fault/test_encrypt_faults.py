"""`fspf encrypt` on a disk that fails: one clear line, the right exit code, and it can be repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import iotrace

FAULTS = [
    "op=write,errno=ENOSPC,sticky,nth=8,path=segments",
    "op=write,errno=EIO,nth=3,path=segments",
    "op=write,errno=EIO,nth=1,path=root",
    "op=write,errno=ENOSPC,nth=1,path=keyring",
    "op=fsync,errno=EIO,nth=1,path=segments",
    "op=fsync,errno=EIO,nth=2,path=root",
    "op=create,errno=ENOSPC,sticky,path=segments",
    "op=mkdir,errno=ENOSPC,nth=1",
    "op=rename,errno=EIO,nth=1",
]


def _fspf(*arguments: str, root: Path, fault: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fspf", *arguments],
        env=iotrace.environment(root, fault=fault),
        cwd=iotrace.REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_encrypt_fails_clearly_and_can_be_repeated(scratch: Path, fault: str) -> None:
    source, root = scratch / "source", scratch / "root"
    for directory in (source, root):
        directory.mkdir()
    for number in range(20):
        (source / str(number)).write_bytes(os.urandom(200_000))
    cas = f"sqlite://{scratch}/cas.sqlite"
    failed = _fspf("encrypt", str(source), str(root / "v"), "--cas", cas, root=root, fault=fault)
    assert failed.returncode == 1, failed
    assert "Traceback" not in failed.stderr
    assert "fspf: error: " in failed.stderr
    again = ["encrypt", *(["--update"] if (root / "v").exists() else []), str(source), str(root / "v"), "--cas", cas]
    done = _fspf(*again, root=root)
    assert done.returncode == 0, done
    assert _fspf("verify", str(root / "v"), "--cas", cas, root=root).returncode == 0
    assert _fspf("decrypt", str(root / "v"), str(scratch / "back"), "--cas", cas, root=root).returncode == 0
    for number in range(20):
        assert (scratch / "back" / str(number)).read_bytes() == (source / str(number)).read_bytes()
