"""Fixtures of the attestation tests: a binding, a moment.

Vectors are read by `tests/support/evidence.py`.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def binding() -> bytes:
    return bytes(range(32))
