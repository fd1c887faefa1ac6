"""Compile the C programs beside this file, once in a run.

Running them, and what their answers mean, is the tests' own business.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
FLAGS: Final = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")


def compiled(name: str, directory: Path) -> Path:
    """Compile NAME.c into *directory*, unless that was done before."""
    program = directory / name
    if not program.exists():
        temporary = directory / f".{name}.{os.getpid()}"
        subprocess.run(["gcc", *FLAGS, HERE / f"{name}.c", "-o", temporary], check=True)
        temporary.rename(program)
    return program


def on_ext4() -> bool:
    """Tell whether /var/tmp is ext4, which says what is right."""
    got = subprocess.run(["stat", "-f", "-c", "%T", "/var/tmp"], check=True, capture_output=True, text=True)
    return got.stdout.strip() == "ext2/ext3"
