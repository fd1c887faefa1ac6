"""Coverage-guided fuzzing of the evidence parsers: seconds here, an hour with `tools/test --nightly`.

The target is `fuzz_evidence.py`; what it found once is a line in `test_hostile_evidence.py`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NIGHTLY = os.environ.get("FSPF_NIGHTLY", "") not in {"", "0"}
SEED = int.from_bytes(os.urandom(3), "big")


@pytest.mark.timeout(7200 if NIGHTLY else 300)
def test_fuzz(scratch: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("no-program: atheris has no wheel for this Python")
    program = [sys.executable, str(HERE / "fuzz_evidence.py")]
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    subprocess.run([*program, "--seeds", str(scratch)], check=True, env=environment, cwd=scratch, timeout=120)
    options = [
        f"-max_total_time={3600 if NIGHTLY else 8}",
        "-timeout=20",
        "-max_len=20000",
        "-len_control=0",
        f"-seed={SEED}",
    ]
    # libFuzzer's own limit looks at the peak of this process, which inherits that of pytest.
    options.append("-rss_limit_mb=0")
    done = subprocess.run(
        ["prlimit", f"--as={2 << 30}", *program, *options, f"-artifact_prefix={HERE}/crash-evidence-", str(scratch)],
        capture_output=True, text=True, env=environment, cwd=scratch, timeout=7000,
    )  # fmt: skip
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert "DONE" in done.stderr, done.stderr[-2000:]
