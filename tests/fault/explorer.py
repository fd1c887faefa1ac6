"""Explore every state that a crash of a recorded workload may leave, and check each.

    python -m tests.fault.explorer RECORDING [--share I/N] [--states N] [--seed N] [--keep DIRECTORY] …

A state is a cut between two steps of the trace, a choice of what the disk kept of the unsynced ones
(`tests.support.crash`), and what the CAS had by then. Prints a JSON report.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from fspf.cas import EmbeddedCas
from tests.fault.memcas import of_snapshot
from tests.fault.plane_workload import CAS, VOLUME
from tests.fault.state import Expected, check_state
from tests.fault.workload import Result
from tests.support import crash, iotrace

SCRATCH: Final = Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir())


@dataclass(slots=True)
class Recording:
    """A trace and what the workload said about it."""

    trace: iotrace.Trace
    result: Result


@dataclass(frozen=True, slots=True)
class State:
    """One thing that a crash may leave."""

    disk: crash.State
    cas: int  # number of the CAS's state in the result
    acknowledged: int  # newest generation that was promised

    def __str__(self) -> str:
        return f"cut {self.disk.cut}, {self.disk.variant}, CAS step {self.cas}, generation {self.acknowledged} promised"


@dataclass(slots=True)
class Report:
    """What an exploration found."""

    states: int = 0
    cuts: int = 0
    seconds: float = 0.0
    generations: list[int] = field(default_factory=list)  # that were found at least once
    variants: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.states += other.states
        self.cuts = max(self.cuts, other.cuts)
        self.seconds = max(self.seconds, other.seconds)
        self.generations = sorted({*self.generations, *other.generations})
        for name, count in other.variants.items():
            self.variants[name] = self.variants.get(name, 0) + count
        self.violations += other.violations
        self.kept += other.kept


def run_recorded(arguments: list[str], root: Path, scratch: Path) -> Recording:
    """Run a module with *arguments* under the recorder; its last argument but options is where its result goes.

    Args:
        arguments: Module and arguments; "RESULT" is replaced.
        root: What is recorded.
        scratch: For trace and result; not below *root*.
    """
    result = scratch / "result"
    command = [sys.executable, "-m", *(str(result) if each == "RESULT" else each for each in arguments)]
    trace = iotrace.record(command, root, scratch / "trace", timeout=300)
    if trace.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{trace.output[-4000:]}")
    return Recording(trace, pickle.loads(result.read_bytes()))


def record_workload(
    name: str, seed: int, scratch: Path, *, freshness: str = "strict", broken: str = "", cas: str = "memory"
) -> Recording:
    """Record one of `tests.fault.workload`."""
    root = scratch / "root"
    root.mkdir()
    options = [f"freshness={freshness}", f"broken={broken}", f"cas={cas}"]
    return run_recorded(["tests.fault.workload", name, str(seed), str(root), "RESULT", *options], root, scratch)


def all_states(recording: Recording, *, seed: int, random: int = 3, first: int = 0) -> Iterator[State]:
    """Generate distinct states in the order of their cuts.

    Args:
        recording: What happened.
        seed: Of all choices.
        random: Seeded mixtures per cut, beside the systematic choices.
        first: Cuts before this one are left out.
    """
    disk = crash.Disk(recording.trace)
    seen: set[tuple[int, int, int]] = set()
    cas = acknowledged = 0
    under_way: int | None = None
    for cut in range(len(recording.trace.events) + 1):
        if cut:
            event = recording.trace.events[cut - 1]
            disk.apply(event)
            if event.op is iotrace.Op.MARK:
                what, _, rest = event.path.partition(" ")
                if what == "cas-begin":
                    under_way = int(rest.split(" ")[0])
                elif what == "cas":
                    cas, under_way = int(rest.split(" ")[0]), None
                elif what == "ack":
                    acknowledged = max(acknowledged, int(rest))
        if cut < first:
            continue
        for state in disk.states(random=random, seed=seed):
            for step in (cas,) if under_way is None else (cas, under_way):
                key = (state.fingerprint, step, acknowledged)
                if key not in seen:
                    seen.add(key)
                    yield State(state, step, acknowledged)


class Checker:
    """Builds states one after the other and checks them."""

    def __init__(self, scratch: Path, result: Result) -> None:
        self._stage = crash.Stage(scratch / "state")
        self._result = result

    def place(self, state: State) -> Path:
        """Build the state; the volume's path."""
        return Path(self._stage.put(state.disk.image)) / VOLUME

    def check(self, state: State, *, thorough: bool) -> int:
        """Return the generation found. Raises `ViolationError`."""
        path = self.place(state)
        expected = Expected(self._result.trees, state.acknowledged, max(self._result.trees, default=0))
        if self._result.cas:
            return check_state(path, of_snapshot(self._result.cas[state.cas]), expected, thorough=thorough)
        embedded = EmbeddedCas(str(path.parent / CAS / "cas.sqlite"))
        try:
            return check_state(path, embedded, expected, thorough=thorough)
        finally:
            embedded.close()


def keep(state: State, result: Result, where: Path) -> Path:
    """Store a state so that it can be replayed by tools/crash.py."""
    where.mkdir(parents=True, exist_ok=True)
    number = len(list(where.iterdir()))
    target = where / f"cut-{state.disk.cut}-{os.getpid()}-{number}.pickle"
    target.write_bytes(pickle.dumps((state, result)))
    return target


def explore(
    every: Iterator[State],
    result: Result,
    *,
    share: tuple[int, int] = (0, 1),
    limit: int | None = None,
    sample: int | None = None,
    kept_in: Path | None = None,
    thorough_every: int = 3,
    stop_after: int = 5,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Check states.

    Args:
        every: From `all_states`.
        result: Of the workload.
        share: (i, n): only every n-th state, beginning with the i-th.
        limit: At most so many of this share.
        sample: So many of all, chosen by a fixed seed, before they are shared.
        kept_in: Where failing states go.
        thorough_every: So many states share one that is also closed, reopened and crashed again.
        stop_after: That many violations are enough.
        progress: Called with the number of states done.
    """
    report = Report()
    began = time.monotonic()
    found: set[int] = set()
    cuts: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="fspf-crash-", dir=SCRATCH) as scratch:
        checker = Checker(Path(scratch), result)
        if sample is not None:
            found_states = list(every)
            chosen = sorted(Random(sample).sample(range(len(found_states)), min(sample, len(found_states))))
            every = iter([found_states[number] for number in chosen])
        for number, state in enumerate(every):
            if number % share[1] != share[0]:
                continue
            if limit is not None and report.states >= limit:
                break
            report.states += 1
            variant = state.disk.variant.split(" of seed")[0].rstrip(" 0123456789")
            report.variants[variant] = report.variants.get(variant, 0) + 1
            cuts.add(state.disk.cut)
            try:
                found.add(checker.check(state, thorough=number // share[1] % thorough_every == 0))
            except Exception as exc:  # noqa: BLE001  # whatever it is, no crash may lead to it
                report.violations.append(f"{state}: {type(exc).__name__}: {exc}")
                if kept_in is not None:
                    report.kept.append(str(keep(state, result, kept_in)))
                if len(report.violations) >= stop_after:
                    break
            if progress is not None:
                progress(report.states)
    report.generations = sorted(found)
    report.cuts = len(cuts)
    report.seconds = time.monotonic() - began
    return report


# -- crashes during recovery


def recoveries(recording: Recording, *, count: int, seed: int, scratch: Path) -> Iterator[tuple[State, Recording]]:
    """Crash at *count* points, recover from each under the recorder, and return the recoveries to be cut again.

    Half of the first crashes are a killed process: what it had not synced is still pending when the recovery runs,
    and a power cut during the recovery may yet lose it. The others are power cuts.
    """
    candidates = [s for s in all_states(recording, seed=seed, random=1) if s.acknowledged]
    chosen = candidates[:: max(1, len(candidates) // count)][:count]
    killed = [s for s in candidates if s.disk.variant == "all kept"]
    chosen += killed[:: max(1, len(killed) // count)][:count]
    root = scratch / "recoveries"
    root.mkdir()
    jobs = []
    for number, state in enumerate(chosen):
        crash.Stage(root / str(number)).put(state.disk.image)
        jobs.append((number, recording.result.cas[state.cas], state.acknowledged))
    (scratch / "jobs").write_bytes(pickle.dumps(jobs))
    done = run_recorded(["tests.fault.recovery", str(root), str(scratch / "jobs"), "RESULT"], root, scratch)
    results: Any = done.result
    for number, state in enumerate(chosen):
        own: Result = results[number]
        result = Result({**recording.result.trees, **own.trees}, own.cas)
        events = list(_events_of(done.trace, number))
        start, inodes = iotrace_start(done.trace, number)
        if state.disk.variant == "all kept":
            yield state, Recording(_continued(recording.trace, state.disk.cut, events, inodes), result)
        else:
            yield state, Recording(iotrace.Trace(events, start, inodes), result)


def _events_of(trace: iotrace.Trace, number: int) -> Iterator[iotrace.Event]:
    """Take the events of one recovery, with paths as in the first recording."""
    inside = False
    prefix = f"{number}/"
    for event in trace.events:
        if event.op is iotrace.Op.MARK:
            if event.path.startswith("recovery "):
                inside = event.path == f"recovery {number}"
            elif inside:
                yield event
        elif inside and event.path.startswith(prefix):
            other = event.path2.removeprefix(prefix)
            yield replace(event, path=event.path.removeprefix(prefix), path2=other)


def iotrace_start(trace: iotrace.Trace, number: int) -> tuple[dict[str, bytes | None], dict[str, int]]:
    """Take what was there when one recovery began."""
    prefix = f"{number}/"
    start = {p.removeprefix(prefix): data for p, data in trace.start.items() if p.startswith(prefix)}
    inodes = {p.removeprefix(prefix): ino for p, ino in trace.inodes.items() if p.startswith(prefix)}
    return {"": None, **start}, {"": trace.inodes[str(number)], **inodes}


def _continued(first: iotrace.Trace, cut: int, events: list[iotrace.Event], inodes: dict[str, int]) -> iotrace.Trace:
    """Join a killed process's trace and its recovery's: one disk, whose inodes have new numbers in the second part."""
    names: dict[str, int] = dict(first.inodes)
    for event in first.events[:cut]:
        if event.op in {iotrace.Op.CREATE, iotrace.Op.MKDIR}:
            names[event.path] = event.ino
        elif event.op is iotrace.Op.RENAME:
            names[event.path2] = names.pop(event.path)
        elif event.op in {iotrace.Op.UNLINK, iotrace.Op.RMDIR}:
            names.pop(event.path)
    numbers = {ino: names[path] for path, ino in inodes.items()}
    fresh = 1 << 48  # no inode of the first part has a number as high
    renumbered = [replace(e, ino=numbers.get(e.ino, e.ino + fresh), pid=e.pid + fresh) for e in events]
    return iotrace.Trace([*first.events[:cut], *renumbered], first.start, first.inodes)


# -- running it


def explore_in_processes(recording: Recording, scratch: Path, options: list[str], *, processes: int = 2) -> Report:
    """Share the states of a recording among processes."""
    where = scratch / "recording"
    where.write_bytes(pickle.dumps(recording))
    command = [sys.executable, "-m", "tests.fault.explorer", str(where), *options]
    running = [
        subprocess.Popen(
            [*command, "--share", f"{number}/{processes}"],
            cwd=iotrace.REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    report = Report()
    for process in running:
        output, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the explorer failed:\n{errors[-4000:]}")
        report.add(Report(**json.loads(output)))
    return report


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Check every state that a crash of a recorded workload may leave.")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--share", default="0/1", metavar="I/N")
    parser.add_argument("--states", type=int, default=None, help="at most, in this share")
    parser.add_argument("--sample", type=int, default=None, help="so many of all states, chosen by a fixed seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--random", type=int, default=3, help="seeded mixtures per cut")
    parser.add_argument("--stop-after", type=int, default=5, help="violations")
    parser.add_argument("--thorough-every", type=int, default=3)
    parser.add_argument("--keep", type=Path, default=None, help="directory for failing states")
    parser.add_argument("--recoveries", type=int, default=0, help="also crash that many recoveries again")
    parser.add_argument("--recovery-states", type=int, default=60, help="of each recovery, for all shares together")
    parser.add_argument("--only-recoveries", action="store_true")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # what is logged about a crash is no news here
    first, second = options.share.split("/")
    share = (int(first), int(second))
    recording: Recording = pickle.loads(options.recording.read_bytes())

    def go(recorded: Recording, begin: int, every: int, sample: int | None = None) -> Report:
        return explore(
            all_states(recorded, seed=options.seed, random=options.random, first=begin),
            recorded.result,
            share=share,
            limit=options.states,
            sample=sample,
            kept_in=options.keep,
            stop_after=options.stop_after,
            thorough_every=every,
        )

    problems = recording.result.problems
    if options.only_recoveries or len(problems) >= options.stop_after:
        report = Report()
    else:
        report = go(recording, 0, options.thorough_every, options.sample)
    report.violations += problems
    if options.recoveries:
        with tempfile.TemporaryDirectory(prefix="fspf-crash-", dir=SCRATCH) as scratch:
            for state, again in recoveries(
                recording, count=options.recoveries, seed=options.seed, scratch=Path(scratch)
            ):
                begin = (
                    state.disk.cut if again.trace.start is recording.trace.start else 0
                ) + 2  # after the first marks
                found = go(again, begin, 5, options.recovery_states)
                found.violations = [f"recovery after {state}: {text}" for text in found.violations]
                seconds = report.seconds + found.seconds
                report.add(found)
                report.seconds = seconds
                if len(report.violations) >= options.stop_after:
                    break
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    from tests.fault import explorer  # what is pickled must not be of `__main__`

    explorer.main(sys.argv[1:])
