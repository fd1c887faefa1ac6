"""Run Python under the recorder (tests/fault/iotrace.c), and read what it recorded as events of `tests.fault.disk`."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.fault.disk import Event

SOURCE: Final = Path(__file__).with_name("iotrace.c")
REPOSITORY: Final = SOURCE.parents[2]
_FRAME: Final = struct.Struct("<IHHHHIQqQQQ")
_MAGIC: Final = 0x52544F49
_KINDS: Final = (
    "", "write", "truncate", "fallocate", "sync-begin", "sync-end", "create", "mkdir", "rename", "unlink", "rmdir",
    "link", "symlink", "sync-all", "mark", "fault", "unsupported",
)  # fmt: skip
_PUNCH_OR_ZERO: Final = 0x02 | 0x10  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
_KEEP_SIZE: Final = 0x01


def library() -> Path:
    """Return the recorder, compiled for this source; made once per user and machine."""
    stamp = f"{SOURCE.stat().st_mtime_ns:x}"
    target = Path(tempfile.gettempdir()) / f"fspf-iotrace-{os.getuid()}-{stamp}.so"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", SOURCE, "-o", part, "-pthread"], check=True)
        part.rename(target)
    return target


def environment(root: Path, trace: Path | None = None, fault: str = "") -> dict[str, str]:
    """Return the environment in which a process is recorded and gets faults."""
    values = dict(os.environ, LD_PRELOAD=str(library()), FSPF_TRACE_ROOT=str(root), PYTHONPATH=str(REPOSITORY))
    if trace is not None:
        values["FSPF_TRACE_FILE"] = str(trace)
    if fault:
        values["FSPF_FAULT"] = fault
    return values


def run_traced(arguments: list[str], root: Path, trace: Path, *, timeout: float = 300) -> None:
    """Run a Python module under the recorder; an error of it is ours."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment(root, trace),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-4000:]}")


def read_trace(path: Path) -> list[Event]:
    """Read a whole trace, in order."""
    raw = path.read_bytes()
    events = []
    at = 0
    while at < len(raw):
        magic, op, path_len, path2_len, flags, _, _, offset, argument, data_len, _ = _FRAME.unpack_from(raw, at)
        assert magic == _MAGIC, "the trace is damaged"
        at += _FRAME.size
        name = raw[at : at + path_len].decode("utf-8", "surrogateescape")
        at += path_len
        other = raw[at : at + path2_len].decode("utf-8", "surrogateescape")
        at += path2_len
        data = raw[at : at + data_len]
        at += data_len
        kind = _KINDS[op]
        match kind:
            case "write":
                events.append(Event(kind, name, offset=offset, data=data))
            case "truncate":
                events.append(Event(kind, name, length=offset))
            case "fallocate":
                if flags & _PUNCH_OR_ZERO:
                    events.append(Event("punch", name, offset=offset, length=argument))
                elif not flags & _KEEP_SIZE:
                    events.append(Event("grow", name, length=offset + argument))
            case "sync-begin" | "sync-end":
                events.append(Event(kind, name, offset=argument))
            case "create" | "mkdir" | "unlink" | "rmdir" | "rename" | "link":
                assert not flags or kind != "rename", "renameat2 with flags"
                events.append(Event(kind, name, other))
            case "mark":
                events.append(Event(kind, text=name))
            case _:
                raise AssertionError(f"{kind} of {name}: {other} cannot be replayed")
    return events


# -- inside the traced process


def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # what LD_PRELOAD brought


def mark(label: str) -> None:
    """Put a mark into the trace."""
    assert _loaded().iotrace_mark(label.encode()), "not traced"


def set_fault(rule: str) -> None:
    """Make calls of this process fail from now on; see iotrace.c."""
    assert _loaded().iotrace_fault(rule.encode()) >= 0, rule


def fault_hits() -> int:
    """Return how many calls the first rule has matched."""
    return int(_loaded().iotrace_hits(0))
