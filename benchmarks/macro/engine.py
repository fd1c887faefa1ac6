"""Run groups of lines on file systems, interleaved, and clean up whatever happens.

Order: groups, then rounds, then file systems, each round beginning with another one; so that a slow minute of the
machine hits all of them alike. Each visit has a new, empty file system; only one is mounted at a time. What a visit
measures is in lines_*.py and apps.py.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from benchmarks.macro import apps, assets
from benchmarks.macro.catalog import BY_KEY, GROUPS, Sizes
from benchmarks.macro.lines_programs import git, sqlite
from benchmarks.macro.lines_random import random
from benchmarks.macro.lines_stream import stream
from benchmarks.macro.lines_tree import million, tree
from benchmarks.macro.measure import BenchError, Failures, Figures, Take, drop_caches
from benchmarks.macro.systems import SYSTEMS, System

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VISITS: Final[dict[str, Callable[[Take], None]]] = {
    "stream": stream,
    "random": random,
    "tree": tree,
    "million": million,
    "git": git,
    "sqlite": sqlite,
    **apps.VISITS,
}
assert set(VISITS) == set(GROUPS)

# A peer whose visit to a group took this long is not visited again, and one that takes that long is broken off.
SLOW_VISIT_S: Final = 45.0
NEVER_SLOW: Final = frozenset({"ext4", "fspf", "fspf-bounded", "gocryptfs", "null"})
HUNG_VISIT_S: Final = 900.0
HUNG_MILLION_S: Final = 6 * 3600.0  # --full asked for it
# One figure says it: a mount is timed several times in one visit, and filling the volume takes minutes.
ONCE: Final = frozenset({"million"})


@dataclass
class Run:
    """What is asked for, and what has come out so far."""

    keys: list[str]
    systems: list[str]
    sizes: Sizes
    rounds: int
    work: Path
    full: bool = False
    wheels: Path | None = None  # where pip's wheels are, if they could be had
    figures: Figures = field(default_factory=dict)
    failures: Failures = field(default_factory=dict)
    visits_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        wanted = {BY_KEY[key].group for key in self.keys}
        return [group for group in GROUPS if group in wanted]

    def wanted(self, group: str, system: str) -> frozenset[str]:
        """The lines of *group* that make sense for *system*."""
        return frozenset(
            key
            for key in self.keys
            if BY_KEY[key].group == group
            and system in BY_KEY[key].systems
            and (self.full or system not in BY_KEY[key].full_only)
        )

    def go(self, after_group: Callable[[], None] = lambda: None) -> None:
        """Measure everything; whatever happens, leave nothing mounted, running or stored."""
        place = Path(tempfile.mkdtemp(prefix="fspf-bench-", dir=self.work))
        try:
            with stopped_by_signals():
                self.note_missing()
                prepare(self, place)
                for group in self.groups:
                    for number in range(1 if group in ONCE else self.rounds):
                        for system in rotated(self.systems, number):
                            self.visit(group, system, number, place)
                    after_group()
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def note_missing(self) -> None:
        """Take out the file systems that are not installed, and say so for each of their lines."""
        for name in list(self.systems):
            reason = SYSTEMS[name].missing()
            if reason:
                self.systems.remove(name)
                for group in self.groups:
                    self.failures.update(((key, name), reason) for key in self.wanted(group, name))

    def visit(self, group: str, name: str, number: int, place: Path) -> None:
        wanted = frozenset(key for key in self.wanted(group, name) if (key, name) not in self.failures)
        before = self.visits_s.setdefault((group, name), [])
        slow = name not in NEVER_SLOW and bool(before) and max(before) > SLOW_VISIT_S
        if not wanted or slow:
            return
        system: System = SYSTEMS[name](place, place / "tools")
        take = Take(system, number, wanted, self.sizes, place / "tools", place / "assets", self.figures, self.failures)
        begin = time.monotonic()
        problem = ""
        try:
            with broken_off(system, HUNG_MILLION_S if group == "million" else HUNG_VISIT_S):
                system.create()
                system.mount()
                VISITS[group](take)
        except (BenchError, OSError) as exc:
            problem = str(exc)
        finally:
            try:
                system.destroy()
            except BenchError as exc:
                problem = problem or str(exc)
        if problem:
            for key in wanted:
                if number not in self.figures.get(key, {}).get(name, {}):
                    self.failures[key, name] = problem
        before.append(time.monotonic() - begin)
        print(f"round {number + 1}  {group:9} {name:12} {before[-1]:6.1f} s  {problem}".rstrip(), file=sys.stderr)


@contextlib.contextmanager
def broken_off(system: System, limit_s: float) -> Iterator[None]:
    """End the daemon of *system* if the block takes too long: a request that it never answers would last for ever."""
    timer = threading.Timer(limit_s, system.give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def rotated(names: list[str], by: int) -> Iterator[str]:
    at = by % len(names)
    yield from names[at:] + names[:at]


def prepare(run: Run, place: Path) -> None:
    """Build programs and inputs, and touch the machine's memory: a virtual machine gets it from its host only then."""
    assets.build_tools(place / "tools", with_null="null" in run.systems)
    for group, problem in assets.make(place / "assets", run.groups, run.sizes).items():
        run.failures.update(((key, name), problem) for name in run.systems for key in run.wanted(group, name))
    if run.wheels is not None:
        (place / "assets" / "wheels").symlink_to(run.wheels)
    warm = place / "warm"
    with open(warm, "wb") as file:
        file.writelines(bytes(1 << 20) for _ in range(run.sizes.stream_bytes * 2 >> 20))
    warm.unlink()
    drop_caches()


class stopped_by_signals:  # noqa: N801  # reads as a statement
    """SIGTERM and SIGHUP end the run as Ctrl-C does: by an exception, so that everything is cleaned up."""

    def __enter__(self) -> None:
        def stop(number: int, _frame: object) -> NoReturn:
            raise KeyboardInterrupt(signal.Signals(number).name)

        self.before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
