"""`fspf status`: show the state of a mounted volume, once, again and again, or for Prometheus.

The values come from the mount itself, through `fspf.mount.client`.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from fspf.cli.console import human_size, printable
from fspf.cli.options import nonempty
from fspf.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fspf.cli.console import Console


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        message = f"{text!r} is no number of seconds from 0.1 to 86400"
        raise argparse.ArgumentTypeError(message)
    return seconds


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "status",
        help="show the state of a mounted volume",
        description="Show generation, anchored generation, what is not committed yet, counters and errors of a mounted volume.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=nonempty)
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        help="show a line with what happened every so many seconds, until interrupted",
    )
    parser.add_argument("--prometheus", action="store_true", help="write metrics in Prometheus' text format")


def run(args: argparse.Namespace, console: Console) -> int:
    from fspf.mount.client import mount_of, status_of
    from fspf.mount.metrics import render

    entry = mount_of(args.mountpoint)
    if args.as_json + args.prometheus + (args.watch is not None) > 1:
        raise UsageError("--json, --prometheus and --watch exclude each other")
    status = status_of(entry)
    if args.prometheus:
        console.write(render(status).encode("utf-8", "replace"))
        return 0
    if args.watch is not None:
        _watch(lambda: status_of(entry), status, args.watch, console)
    console.document(status)
    for label, value in _rows(status):
        console.line(f"{label + ':':<15}{value}")
    for error in [*status["problems"], *status["errors"]]:
        console.line(f"{'error:':<15}{printable(error)}")
    return 0


def _rows(status: dict[str, Any]) -> list[tuple[str, str]]:
    uptime = time.strftime("%H:%M:%S", time.gmtime(status["uptime_s"] % 86400))
    days = int(status["uptime_s"] // 86400)
    counters = status["counters"]
    per_second = counters["requests"] / max(status["uptime_s"], 0.1)
    requests = f"{counters['requests']}, {per_second:.1f} per second; {counters['request_errors']} failed"
    moved = f"{human_size(counters['read_bytes'])} read, {human_size(counters['written_bytes'])} written"
    caches = f"caches {human_size(counters['cache_bytes'])} of {human_size(status['cache_limit_bytes'])}"
    return [
        ("volume", printable(status["path"])),
        ("name", printable(status["name"])),
        ("id", status["volume_id"]),
        ("mountpoint", printable(status["mountpoint"])),
        ("options", printable(",".join(status["options"])) or "none"),
        ("state", _state(status)),
        (
            "generation",
            f"{status['generation']}, anchored {status['anchored_generation']}, {status['commits']} commits",
        ),
        ("freshness", status["freshness"]),
        ("not committed", human_size(status["dirty_bytes"]) + (", names or attributes" if status["dirty"] else "")),
        ("files", f"{status['files']}, {human_size(status['bytes'])}; {counters['open_files']} open"),
        ("requests", f"{requests}; {moved}"),
        ("memory", f"{human_size(status['memory_bytes'])}; {caches}, {_share(counters)} found"),
        ("CAS", printable(status["cas"])),
        ("daemon", f"{status['pid']}, fspf {status['version']}, for {f'{days} d ' if days else ''}{uptime}"),
    ]


def _share(counters: dict[str, int]) -> str:
    asked = counters["cache_hits"] + counters["cache_misses"]
    return f"{100 * counters['cache_hits'] / asked:.1f} %" if asked else "nothing to be"


def _state(status: dict[str, Any]) -> str:
    if status["failed"]:
        return f"read-only: {printable(status['failed'])}"
    state = "read-only" if status["read_only"] else "writable"
    return state + (", free space is being counted" if status["rebuilding"] else "")


# -- again and again

_HEAD = f"{'requests/s':>11}{'read/s':>11}{'written/s':>11}{'commits':>9}{'generation':>12}{'lag':>5}{'dirty':>11}{'open':>7}{'memory':>11}{'hits':>8}{'errors':>8}"
_HEAD_EVERY = 20  # lines


def _watch(ask: Callable[[], dict[str, Any]], status: dict[str, Any], seconds: float, console: Console) -> None:
    """Show one line per interval; ends with Ctrl-C, or with the mount."""
    lines = 0
    while True:
        before = status
        time.sleep(seconds)
        status = ask()
        if lines % _HEAD_EVERY == 0:
            console.line(_HEAD)
        lines += 1
        console.line(watch_line(before, status))
        console.flush()


def watch_line(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what happened between two states of one mount."""
    elapsed = max(after["uptime_s"] - before["uptime_s"], 0.1)
    old, new = before["counters"], after["counters"]

    def rate(name: str) -> float:
        return float(max(new[name] - old[name], 0) / elapsed)

    hits, misses = rate("cache_hits"), rate("cache_misses")
    cells = (
        (f"{rate('requests'):.0f}", 11),
        (human_size(round(rate("read_bytes"))), 11),
        (human_size(round(rate("written_bytes"))), 11),
        (str(after["commits"] - before["commits"]), 9),
        (str(after["generation"]), 12),
        (str(after["anchor_lag"]), 5),
        (human_size(after["dirty_bytes"]), 11),
        (str(new["open_files"]), 7),
        (human_size(after["memory_bytes"]), 11),
        (f"{100 * hits / (hits + misses):.0f} %" if hits + misses else "-", 8),
        (str(new["request_errors"] - old["request_errors"]), 8),
    )
    return "".join(f"{text:>{width}}" for text, width in cells)
