#!/usr/bin/env python3
"""Write docs/CAS-API.md from the table of routes.

    .venv/bin/python tools/make_api_docs.py

What is written is decided by `fspf.cas.reference`; a test holds the file to it.
"""

from __future__ import annotations

from pathlib import Path

from fspf.cas.reference import reference

if __name__ == "__main__":
    (Path(__file__).resolve().parents[1] / "docs" / "CAS-API.md").write_text(reference(), encoding="utf-8")
