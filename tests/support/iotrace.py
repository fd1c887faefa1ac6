"""Run a program so that every write, sync and rename below one directory is recorded, or made to fail.

Builds and drives tests/fault/iotrace.c. What a disk may hold after a crash is the business of tests/support/crash.py.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

REPO: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = REPO / "tests" / "fault" / "iotrace.c"
CFLAGS: Final = (
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-nonnull-compare",
    "-pthread",
)

_FRAME: Final = struct.Struct("<IHHHHIQqQQQ")
_MAGIC: Final = 0x52544F49
assert _FRAME.size == 56


class Op(enum.IntEnum):
    """Kinds of events; the numbers are those of iotrace.c."""

    WRITE = 1
    TRUNCATE = 2
    FALLOCATE = 3
    SYNC_BEGIN = 4
    SYNC_END = 5
    CREATE = 6
    MKDIR = 7
    RENAME = 8
    UNLINK = 9
    RMDIR = 10
    LINK = 11
    SYMLINK = 12
    SYNC_ALL = 13
    MARK = 14
    FAULT = 15
    UNSUPPORTED = 16


@dataclass(frozen=True, slots=True)
class Event:
    """One step, in the order in which it happened.

    Attributes:
        path: below the traced directory ("" is the directory itself); the label of a MARK.
        path2: new name of RENAME and LINK, target of SYMLINK.
        ino: what tells files apart, whatever they are called at the moment.
        offset: of WRITE and FALLOCATE; new size of TRUNCATE; result of SYNC_END.
        arg: length of FALLOCATE; number of a sync; errno of FAULT.
        flags: mode of FALLOCATE; flags of RENAME.
    """

    op: Op
    path: str
    path2: str
    ino: int
    offset: int
    arg: int
    flags: int
    pid: int
    time_ns: int
    data: bytes = b""


class UnsupportedTraceError(Exception):
    """The program changed files in a way that the recorder cannot see through."""


def library() -> Path:
    """Compile iotrace.c unless this very source was compiled before."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(CFLAGS).encode()).hexdigest()[:16]
    built = REPO / "build" / f"iotrace-{digest}.so"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        temporary = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", *CFLAGS, str(SOURCE), "-o", str(temporary)], check=True)
        temporary.replace(built)
    return built


def environment(
    root: str | os.PathLike[str],
    trace: str | os.PathLike[str] | None = None,
    *,
    fault: str = "",
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment for a subprocess whose file operations below *root* go to *trace* and meet *fault*.

    Args:
        root: Directory to watch; exists.
        trace: File for the frames, not below *root*; none: nothing is recorded.
        fault: Rules as in iotrace.c: "op=write,nth=17,errno=ENOSPC[,sticky][,path=SUBSTRING][,short=BYTES][,after]".
        base: Environment to start from; os.environ if not given.
    """
    result = dict(os.environ if base is None else base)
    result["LD_PRELOAD"] = " ".join(filter(None, (str(library()), result.get("LD_PRELOAD", ""))))
    result["FSPF_TRACE_ROOT"] = os.fspath(root)
    result["FSPF_TRACE_FILE"] = os.fspath(trace) if trace is not None else ""
    result["FSPF_FAULT"] = fault
    result["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPO), result.get("PYTHONPATH", ""))))
    return result


# ------------------------------------------------------------------------- called inside the traced process


def _preloaded() -> ctypes.CDLL | None:
    this = ctypes.CDLL(None)
    return this if hasattr(this, "iotrace_mark") else None


def mark(label: str) -> None:
    """Put *label* into the trace, in order with the file operations. Does nothing in a process that is not traced."""
    this = _preloaded()
    if this is not None:
        this.iotrace_mark(label.encode())


def set_fault(rules: str) -> None:
    """Replace the rules of this traced process; "" for none. Counting starts again."""
    this = _preloaded()
    if this is None:
        raise RuntimeError("this process does not run under iotrace.so")
    if this.iotrace_fault(rules.encode()) < 0:
        raise ValueError(f"rules not understood: {rules!r}")


def hits(rule: int = 0) -> int:
    """Tell how many calls the rule has matched so far, whether it fired or not."""
    this = _preloaded()
    if this is None:
        raise RuntimeError("this process does not run under iotrace.so")
    this.iotrace_hits.restype = ctypes.c_long
    return int(this.iotrace_hits(rule))


# ------------------------------------------------------------------------- traces


def parse(raw: bytes) -> Iterator[Event]:
    """Read frames. A last frame that is cut off (the writer was killed) ends the trace."""
    at = 0
    while at + _FRAME.size <= len(raw):
        magic, op, path_len, path2_len, flags, pid, ino, offset, arg, data_len, time_ns = _FRAME.unpack_from(raw, at)
        if magic != _MAGIC:
            raise ValueError(f"no frame at {at} of the trace")
        end = at + _FRAME.size + path_len + path2_len + data_len
        if end > len(raw):
            return
        at += _FRAME.size
        path = os.fsdecode(raw[at : at + path_len])
        path2 = os.fsdecode(raw[at + path_len : at + path_len + path2_len])
        event = Event(Op(op), path, path2, ino, offset, arg, flags, pid, time_ns, raw[end - data_len : end])
        if event.op is Op.UNSUPPORTED:
            raise UnsupportedTraceError(f"{event.path}: {event.path2} cannot be traced")
        yield event
        at = end


@dataclass(slots=True)
class Trace:
    """What was there at the start, and what happened then.

    Attributes:
        start: A copy of the traced directory from before (hard links and inode numbers are in *inodes*).
        inodes: path -> inode number at the start.
    """

    events: list[Event]
    start: dict[str, bytes | None] = field(default_factory=dict)
    inodes: dict[str, int] = field(default_factory=dict)
    returncode: int = 0
    output: str = ""

    def marks(self) -> list[str]:
        return [event.path for event in self.events if event.op is Op.MARK]

    def count(self, *ops: Op) -> int:
        return sum(event.op in ops for event in self.events)


def read_directory(root: str | os.PathLike[str]) -> tuple[dict[str, bytes | None], dict[str, int]]:
    """Read all files (directories: None) and inode numbers below *root*; "" is the root itself."""
    contents: dict[str, bytes | None] = {"": None}
    inodes = {"": os.stat(root).st_ino}
    for here, directories, files in os.walk(root):
        for name in sorted(directories + files):
            path = os.path.join(here, name)
            relative = os.path.relpath(path, root)
            inodes[relative] = os.lstat(path).st_ino
            if name in directories:
                contents[relative] = None
            else:
                contents[relative] = Path(path).read_bytes()
    return contents, inodes


def record(
    command: Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str],
    trace: str | os.PathLike[str],
    *,
    fault: str = "",
    base: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Trace:
    """Run *command* to its end and return what it did below *root*. *trace*: a file to use, overwritten."""
    Path(trace).unlink(missing_ok=True)
    start, inodes = read_directory(root)
    arguments = [os.fspath(part) for part in command]
    program = shutil.which(arguments[0]) or arguments[0]
    environ = environment(root, trace, fault=fault, base=base)
    done = subprocess.run(
        [program, *arguments[1:]],
        env=environ,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    raw = Path(trace).read_bytes() if Path(trace).exists() else b""
    output = done.stdout.decode(errors="replace")
    return Trace(list(parse(raw)), start, inodes, done.returncode, output)
