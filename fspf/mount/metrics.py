"""The state of a mount in the text form that Prometheus reads (exposition format 0.0.4).

The values are those of `fspf status --json`; when they are written to a file, `upkeep` says.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Document = Mapping[str, Any]


class Metric(NamedTuple):
    name: str  # without the prefix fspf_
    kind: str
    help: str
    value: Callable[[Document], float | None]  # None: not known, and then not shown


def _counter(name: str) -> Callable[[Document], float | None]:
    return lambda document: document["counters"].get(name)


def _member(name: str) -> Callable[[Document], float | None]:
    return lambda document: document.get(name)


METRICS: Final = (
    Metric("requests_total", "counter", "Requests of the kernel.", _counter("requests")),
    Metric("request_errors_total", "counter", "Requests that failed for a reason worth a log line.", _counter("request_errors")),
    Metric("read_bytes_total", "counter", "Bytes that the kernel read; what its page cache answers is not among them.", _counter("read_bytes")),
    Metric("written_bytes_total", "counter", "Bytes that the kernel wrote.", _counter("written_bytes")),
    Metric("open_files", "gauge", "Files that are open.", _counter("open_files")),
    Metric("cache_hits_total", "counter", "Blocks of content trees found in memory.", _counter("cache_hits")),
    Metric("cache_misses_total", "counter", "Blocks of content trees read from storage.", _counter("cache_misses")),
    Metric("cache_bytes", "gauge", "Memory that caches of clean data take.", _counter("cache_bytes")),
    Metric("cache_limit_bytes", "gauge", "The mount option cache=.", _member("cache_limit_bytes")),
    Metric("commits_total", "counter", "Commits since the mount began.", _member("commits")),
    Metric("generation", "gauge", "Number of the newest commit.", _member("generation")),
    Metric("anchored_generation", "gauge", "Number of the newest commit that the CAS has.", _member("anchored_generation")),
    Metric("anchor_lag_commits", "gauge", "Commits that the CAS does not have yet.", _member("anchor_lag")),
    Metric("uncommitted_bytes", "gauge", "Bytes in memory that no commit has.", _member("dirty_bytes")),
    Metric("uncommitted", "gauge", "1 if anything is not committed.", lambda document: float(document["dirty"])),
    Metric("errors_logged", "gauge", "Errors that fspf status shows.", lambda document: len(document["errors"])),
    Metric("damage_found", "gauge", "Damage found when the volume was opened.", lambda document: len(document["problems"])),
    Metric("failed", "gauge", "1 if the volume turned read-only after an error.", lambda document: float(document["failed"] is not None)),
    Metric("read_only", "gauge", "1 if nothing can be written.", lambda document: float(document["read_only"])),
    Metric("volume_files", "gauge", "Files, directories and other inodes.", _member("files")),
    Metric("volume_bytes", "gauge", "Sizes of all files.", _member("bytes")),
    Metric("storage_used_bytes", "gauge", "Space in use in the volume's segments.", lambda document: document["slots_used"] * document["chunk_size"]),
    Metric("storage_free_bytes", "gauge", "Space free within the volume's segments.", lambda document: document["slots_free"] * document["chunk_size"]),
    Metric("resident_memory_bytes", "gauge", "Memory of the daemon.", _member("memory_bytes")),
    Metric("cpu_seconds_total", "counter", "Processor time of the daemon.", _member("cpu_s")),
    Metric("uptime_seconds", "gauge", "How long the mount lives.", _member("uptime_s")),
)  # fmt: skip


def render(document: Document) -> str:
    """Return all metrics of one mount."""
    labels = _labels(volume=document["volume_id"], mountpoint=document["mountpoint"])
    about = _labels(
        volume=document["volume_id"],
        mountpoint=document["mountpoint"],
        name=document["name"],
        path=document["path"],
        freshness=document["freshness"],
        version=document["version"],
    )
    lines = ["# HELP fspf_mount_info What is mounted.", "# TYPE fspf_mount_info gauge", f"fspf_mount_info{about} 1"]
    for metric in METRICS:
        value = metric.value(document)
        if value is not None:
            name = f"fspf_{metric.name}"
            lines += [
                f"# HELP {name} {metric.help}",
                f"# TYPE {name} {metric.kind}",
                f"{name}{labels} {float(value):.15g}",
            ]
    return "\n".join(lines) + "\n"


def _labels(**values: str) -> str:
    def escaped(text: str) -> str:
        text = os.fsencode(text).decode("utf-8", "replace")
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in values.items()) + "}"


def write_file(path: str, text: str) -> None:
    """Replace the file at once, so that whoever reads sees all of the old or all of the new.

    Raises:
        OSError: It cannot be written; the old one stays.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=".fspf-", dir=os.path.dirname(path) or ".")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
