"""Which tests may be skipped, and why: every skip names one of these keys.

A test says ``pytest.skip("no-root: device nodes need CAP_MKNOD")``. Deciding whether a machine has what a test
needs is the test's own business.
"""

from __future__ import annotations

from typing import Final

KEYS: Final = {
    "no-root": "needs root; CI is root",
    "no-fuse": "needs /dev/fuse; CI has it",
    "no-program": "needs a program that tools/setup installs; CI has run it",
    "no-clang": "needs clang and its sanitizer runtime; tools/setup installs them",
    "kernel": "needs a kernel feature, named in the reason, that a machine may truly lack",
    "filesystem": "needs a feature of the file system below the scratch directory, named in the reason",
    "no-space": "needs more free disk or memory than the machine has, the amount named in the reason",
}

# Even in CI: a kernel, a file system or a disk cannot be installed by tools/setup.
ALLOWED_IN_CI: Final = frozenset({"kernel", "filesystem", "no-space"})


def complaint(reason: str, *, ci: bool) -> str | None:
    """Say what is wrong with a skip for *reason*, or nothing."""
    reason = reason.removeprefix("Skipped: ")
    key, colon, detail = reason.partition(":")
    if not colon or key not in KEYS or not detail.strip():
        return f"a skip says 'key: detail' with a key of tests/support/skips.py, this one says {reason!r}"
    if ci and key not in ALLOWED_IN_CI:
        return f"this test should have run in CI, it was skipped: {reason}"
    return None
