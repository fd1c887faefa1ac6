"""An endurance run: a mount under mixed stress is killed, ended, filled, robbed of its CAS, and copies of it are altered.

    tools/endurance [--seconds N] [--workers N] [--seed N] [--root DIRECTORY]

It checks that nothing acknowledged is lost, that no wrong byte is read, that every request is answered, and that
the daemon does not grow. The workers are `tests.fault.endurance.worker`, what may be found `tests.fault.endurance.model`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.fault.endurance.crew import HANG_S, Fio, HangError, Member, Samples, stacks
from tests.fault.endurance.tamperer import Vandal
from tests.support import leftovers
from tests.support.mounted import REPO, Site, is_running

DISK_MB: Final = 1024
WARM_UP_S: Final = 15.0
GROWTH_BYTES: Final = 24 << 20  # after the warm-up, over the longest life; caches that fill later are within it
GROWTH_DESCRIPTORS: Final = 8
OPTIONS: Final = ("cache=16M", "commit=0.5")
EXPECTED_IN_LOG: Final = (
    r"root.[ab]: |keyring: |space map",  # torn by a kill; mended
    r"No space left|ENOSPC|could not be written|refused",  # a full disk
    r"the CAS is away|the CAS .* was locked|lease could not be renewed",
    r"is in use: .*; it ends in",  # SIGTERM while the workers go on
    r"the kernel could not write back",
    r"unlinked but open",
)


class Endurance:
    """One run.

    Attributes:
        events: How often each thing happened.
    """

    def __init__(
        self,
        root: Path,
        *,
        seconds: float,
        workers: int,
        seed: int,
        verbose: bool,
        only: str = "",
        options: tuple[str, ...] = OPTIONS,
    ) -> None:
        self.root = root
        self.seconds = seconds
        self.random = random.Random(seed)
        self.seed = seed
        self.verbose = verbose
        self.options = options
        self.only = only  # nothing but events of this name happens
        self.events: Counter[str] = Counter()
        self.tampered: Counter[str] = Counter()
        self.site = Site(root, disk=root / "disk")
        self.fio = Fio()
        self.samples = Samples()
        self.longest = Samples()
        self.pid = 0
        self.mounted_at = 0.0
        self.problems: list[str] = []
        self.watching = threading.Event()
        self.ended = threading.Event()
        (root / "disk").mkdir()
        self.members: list[Member] = []
        self.workers = workers
        self._copy: threading.Thread | None = None
        self._copies = 0
        self._older: Path | None = None

    def say(self, text: str) -> None:
        if self.verbose:
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    # -- the mount

    def mount(self) -> None:
        began = time.monotonic()
        self.site.mount(*self.options)
        took = time.monotonic() - began
        self.pid = self.site.pid
        self.mounted_at = time.monotonic()
        self.samples = Samples()
        self.watching.set()
        self.say(f"mounted in {took:.1f} s, process {self.pid}")

    def directory(self, member: Member) -> Path:
        return self.site.mountpoint / f"worker-{member.number}"

    def start(self) -> None:
        for member in self.members:
            member.tell(f"run {self.directory(member)}")
        self.fio.start(self.site.mountpoint / "fio")

    def pause(self) -> None:
        """Let everybody finish what is under way, while the mount lives."""
        for member in self.members:
            if not member.has_answered:
                member.tell("pause")
        for member in self.members:
            self.hear_pause(member)
        self.fio.stop()
        if self.fio.problem:
            raise AssertionError(self.fio.problem)

    def hear_pause(self, member: Member) -> None:
        stopped = member.hear()
        if stopped.get("stopped") != "paused":
            raise AssertionError("\n".join([f"worker {member.number}: {stopped['stopped']}", *stopped["journal"]]))
        if not member.hear().get("paused"):
            raise AssertionError(f"worker {member.number}: {member.last}")

    def collect(self) -> None:
        """Take what the workers say after the mount has gone under them."""
        for member in self.members:
            if not member.has_answered:
                member.tell("pause")
                stopped = member.hear()
                if "stopped" in stopped:
                    member.hear()
            else:
                member.hear()
        self.fio.stop()
        if self.fio.problem:
            raise AssertionError(self.fio.problem)
        self.release(orderly=False)

    def release(self, *, orderly: bool) -> None:
        for member in self.members:
            member.ask("release orderly" if orderly else "release")

    def verify(self, word: str) -> None:
        for member in self.members:
            member.ask(f"{word} {self.directory(member)}")
        self.events["verified"] += 1

    def unwatch(self) -> None:
        """The daemon is about to end: its size is no news any more."""
        self.watching.clear()
        if self.samples.taken and (not self.longest.taken or self.samples.taken[-1].at > self.longest.taken[-1].at):
            self.longest = self.samples

    # -- what happens

    def life(self, seconds: float) -> None:
        """Let everybody work."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
            for member in self.members:
                if member.has_answered:
                    stopped = member.hear()
                    raise AssertionError("\n".join([f"worker {member.number}: {stopped}", *stopped["journal"]]))
            if self.fio.problem:
                raise AssertionError(self.fio.problem)
            if self.problems:
                raise AssertionError(self.problems[0])
            if not is_running(self.pid):
                raise AssertionError("the daemon has ended by itself")

    def kill(self) -> None:
        """End the daemon as a crash would, in the middle of everything, often within a commit."""
        if self.random.random() < 0.5:
            deadline = time.monotonic() + 1
            while time.monotonic() < deadline and not any("fsync" in m.waiting()[0] for m in self.members):
                time.sleep(0.0005)
            time.sleep(self.random.random() * 0.004)
        self.fio.excuse(last=True)
        self.unwatch()
        os.kill(self.pid, signal.SIGKILL)
        self.site.wait_gone(self.pid)
        self.collect()
        self.copy()
        self.site.detach_dead()
        self.mount()
        self.verify("verify")

    def end_by_signal(self) -> None:
        """SIGTERM while everybody works: what was promised is there."""
        self.fio.excuse(last=True)
        self.unwatch()
        os.kill(self.pid, signal.SIGTERM)
        self.wait_end()
        self.collect()
        self.mount()
        self.verify("verify")

    def umount(self) -> None:
        """In order: everything is there."""
        self.pause()
        self.release(orderly=True)
        self.unwatch()
        self.site.umount()
        self.site.wait_gone(self.pid)
        self.mount()
        self.verify("compare")

    def umount_lazily(self) -> None:
        """Take it from the name space while everybody works on; the daemon ends with the last user."""
        self.fio.excuse(last=True)
        subprocess.run(["umount", "-l", str(self.site.mountpoint)], check=True)
        self.life(self.random.random() * 2)
        self.pause()
        self.unwatch()
        self.release(orderly=True)
        self.wait_end()
        self.mount()
        self.verify("compare")

    def fill_disk(self) -> None:
        """Take all space for some seconds."""
        self.fio.excuse(last=False)
        ballast = self.site.root / "disk" / "ballast"
        space = os.statvfs(ballast.parent)
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(4096, space.f_bavail * space.f_frsize - (1 << 20)))
        self.life(self.random.uniform(1, 4))
        ballast.unlink()
        self.life(1)
        self.pause()
        self.verify("inspect")
        self.release(orderly=True)
        if self.site.status()["failed"]:
            raise AssertionError(f"a full disk ended the mount: {self.site.read_log()[-3000:]}")

    def take_cas_away(self) -> None:
        """Nobody can write to the CAS for some seconds: commits wait, and go on."""
        connection = sqlite3.connect(self.site.root / "cas.sqlite", timeout=10, isolation_level=None)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            self.life(self.random.uniform(1, 7))
            connection.execute("ROLLBACK")
        finally:
            connection.close()
        self.life(0.5)
        self.pause()

    def rest(self) -> None:
        """Pause, compare all, go on with the same mount."""
        self.pause()
        self.verify("inspect")

    def wait_end(self) -> None:
        deadline = time.monotonic() + HANG_S
        while is_running(self.pid):
            if time.monotonic() > deadline:
                raise HangError(f"the daemon does not end:\n{stacks(self.pid)}")
            time.sleep(0.02)

    # -- copies that are altered

    def copy(self) -> None:
        """Copy the volume as the kill left it, with its CAS, and alter it in the background."""
        if self._copy is not None and self._copy.is_alive():
            return
        self._finish_copy()
        self._copies += 1
        where = self.root / f"copy-{self._copies}"
        where.mkdir()
        shutil.copytree(self.site.volume, where / "volume")
        for each in self.root.glob("cas.sqlite*"):
            shutil.copy2(each, where / each.name)
        for member in self.members:
            member.ask(f"save {where / member.model.name}")
        seed = self.random.randrange(1 << 30)
        self._copy = threading.Thread(target=self._alter, args=(where, seed), name="copy")
        self._copy.start()

    def _finish_copy(self) -> None:
        if self._copy is not None:
            self._copy.join(300)
            if self._copy.is_alive():
                raise HangError("the altered copy is not done with")
            self._copy = None

    def _alter(self, where: Path, seed: int) -> None:
        try:
            self._use_altered(where, random.Random(seed))
        except BaseException as exc:  # noqa: BLE001  # told by the main thread
            self.problems.append(f"altered copy {where}: {type(exc).__name__}: {exc}")
        else:
            older, self._older = self._older, where
            if older is not None:
                shutil.rmtree(older)

    def _use_altered(self, where: Path, chance: random.Random) -> None:
        pristine = where / "pristine"
        shutil.copytree(where / "volume", pristine)  # what the next copy gets as its past
        site = Site(where)
        site.mountpoint.mkdir()
        if self._older is not None and chance.random() < 0.3:
            shutil.rmtree(site.volume)
            shutil.copytree(self._older / "pristine", site.volume)
            done = site.mount(check=None)
            if done.returncode not in {20, 21}:
                raise AssertionError(f"an older state was not refused: exit {done.returncode}: {done.stderr}")
            self.tampered["older state refused"] += 1
            shutil.rmtree(site.volume)
            shutil.copytree(pristine, site.volume)
        vandal = Vandal(site.volume, self._older / "pristine" if self._older else None, chance)
        for _ in range(chance.choice((0, 0, 2, 10))):
            with contextlib.suppress(OSError):
                vandal.once()
        done = site.mount("cache=4M", *(["ro"] if chance.random() < 0.4 else []), check=None)
        if done.returncode in {20, 21, 22}:
            self.tampered["mount refused"] += 1
            return
        if done.returncode:
            raise AssertionError(f"exit {done.returncode}: {done.stderr}")
        pid = site.pid
        vandal.start()
        try:
            models = [str(where / member.model.name) for member in self.members]
            reading = subprocess.run(
                [sys.executable, "-m", "tests.fault.endurance.tamperer", str(site.mountpoint),
                 str(chance.uniform(3, 10)), str(chance.randrange(1 << 30)), *models],
                cwd=REPO, capture_output=True, text=True, timeout=HANG_S * 2,
            )  # fmt: skip
            if reading.returncode:
                raise AssertionError(reading.stderr[-3000:])
            found = json.loads(reading.stdout)
            if found["wrong"]:
                raise AssertionError(f"{found['wrong']}\n{site.read_log()[-3000:]}")
            if not is_running(pid):
                raise AssertionError("the daemon has ended")
            self.tampered.update(found["counts"])
        except subprocess.TimeoutExpired:
            raise HangError(f"the altered mount does not answer:\n{stacks(pid)}") from None
        finally:
            vandal.stop()
            done = site.umount(check=None)
            if done.returncode:
                site.umount("--force", check=None)
            with contextlib.suppress(AssertionError):
                site.wait_gone(pid, 20)
            if is_running(pid):
                self.problems.append(f"the altered mount does not end:\n{stacks(pid)}")
                os.kill(pid, signal.SIGKILL)
            if site.is_mounted():
                leftovers.unmount(str(site.mountpoint))
        internal = [line for line in site.read_log().splitlines() if "internal error" in line or "Traceback" in line]
        if internal:
            raise AssertionError(f"{internal[0]}\n{site.read_log()[-3000:]}")
        self.tampered["rounds"] += 1
        self.tampered.update({f"altered: {what}": count for what, count in vandal.counts.items()})

    # -- watching

    def watch(self) -> None:
        """Take samples, ask for the status, and look for calls that are not answered."""
        turn = 0
        while not self.ended.wait(0.5):
            turn += 1
            if self.watching.is_set():
                self.samples.take(self.pid, time.monotonic() - self.mounted_at)
                if turn % 4 == 0 and self.site.is_mounted():
                    with contextlib.suppress(AssertionError, ValueError):  # the mount is just going
                        self.site.status()
            for member in self.members:
                what, seconds = member.waiting()
                if seconds > HANG_S * 0.7 and not self.problems:
                    self.problems.append(
                        f"worker {member.number}: {what} is not answered for {seconds:.0f} s:\n{stacks(self.pid)}"
                    )

    # -- all of it

    @contextmanager
    def disk(self) -> Iterator[None]:
        disk = self.root / "disk"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "fspf-endurance", str(disk)], check=True)
        try:
            yield
        finally:
            for _ in range(50):
                if subprocess.run(["umount", str(disk)], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)

    def run(self) -> None:
        """Do everything. Raises AssertionError with the first thing that is wrong."""
        with self.disk():
            self.site.create()
            watcher = threading.Thread(target=self.watch, name="watcher")
            try:
                self.mount()
                for number in range(self.workers):
                    self.members.append(Member(number, self.seed * 1000 + number, self.root))
                for member in self.members:
                    self.directory(member).mkdir()
                watcher.start()
                self._all_events()
                self._finish_copy()
                self.check_growth()
                if self.problems:
                    raise AssertionError(self.problems[0])
                complaints = self.site.complaints()
                if complaints:
                    raise AssertionError("the daemon's log:\n" + "\n".join(complaints[:20]))
                self.site.run("verify", self.site.volume)
            finally:
                self.ended.set()
                if watcher.is_alive():
                    watcher.join()
                self.clean_up()

    def _all_events(self) -> None:
        for pattern in EXPECTED_IN_LOG:
            self.site.allow(pattern)
        began = time.monotonic()
        happenings: list[tuple[Callable[[], None], int]] = [
            (self.kill, 9), (self.end_by_signal, 2), (self.umount, 2), (self.umount_lazily, 2), (self.fill_disk, 2),
            (self.take_cas_away, 2), (self.rest, 2),
        ]  # fmt: skip
        happenings = [each for each in happenings if self.only in {"", each[0].__name__}]
        due = [action for action, _ in happenings]  # each once, then by chance
        self.random.shuffle(due)
        short = self.seconds < 300
        long_life = self.seconds / 3
        long_at = self.seconds / 4
        while (left := self.seconds - (time.monotonic() - began)) > 0 or due:
            self.start()
            if time.monotonic() - began > long_at:
                long_at = float("inf")
                self.say(f"a long life: {long_life:.0f} s")
                self.life(long_life)
            else:
                self.life(self.random.uniform(0.3, 2.5 if short else 12))
            if left <= 0 and not due:
                break
            action = due.pop() if due else self.random.choices(*zip(*happenings, strict=True))[0]
            self.say(action.__name__)
            self.events[action.__name__] += 1
            action()
            if self.problems:
                raise AssertionError(self.problems[0])
        if self.members and not self.watching.is_set():
            raise AssertionError("no mount at the end")
        with contextlib.suppress(IndexError):
            self.pause_if_running()
        self.verify("inspect")
        self.release(orderly=True)
        self.unwatch()
        self.site.umount()
        self.site.wait_gone(self.pid)

    def pause_if_running(self) -> None:
        """At the end: whoever works stops."""
        for member in self.members:
            answer = member.ask("pause")
            if "stopped" in answer:
                if answer["stopped"] != "paused":
                    raise AssertionError(f"worker {member.number}: {answer}")
                member.hear()
        self.fio.stop()

    def check_growth(self) -> None:
        settled = self.longest.settled(WARM_UP_S if self.seconds >= 120 else self.seconds / 12)
        if len(settled) < 8:
            return
        quarter = max(2, len(settled) // 4)
        first, last = settled[:quarter], settled[-quarter:]
        resident = min(sample.net_resident for sample in last) - max(sample.net_resident for sample in first)
        descriptors = min(sample.net_descriptors for sample in last) - max(sample.net_descriptors for sample in first)
        if resident > GROWTH_BYTES:
            raise AssertionError(f"the daemon grew by {resident >> 20} MiB in {settled[-1].at:.0f} s")
        if descriptors > GROWTH_DESCRIPTORS:
            raise AssertionError(f"the daemon opened {descriptors} files more")

    def clean_up(self) -> None:
        with contextlib.suppress(BaseException):
            self.fio.stop()
        if self._copy is not None:
            self._copy.join(120)
        for member in self.members:
            member.end()
        if self.pid and is_running(self.pid):
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
        for point in leftovers.mounts_below(str(self.root)):
            if point != str(self.root / "disk"):
                leftovers.unmount(point)

    def report(self) -> str:
        operations = sum(member.last.get("operations", 0) for member in self.members)
        promises = sum(member.last.get("promises", 0) for member in self.members)
        lines = [
            f"seed {self.seed}: {operations} operations, {promises} promises",
            f"fio: {self.fio.runs} runs, {self.fio.bytes >> 20} MiB verified",
            "events: " + ", ".join(f"{what} {count}" for what, count in sorted(self.events.items())),
            "altered copies: " + ", ".join(f"{what} {count}" for what, count in sorted(self.tampered.items())),
        ]
        settled = self.longest.settled(WARM_UP_S if self.seconds >= 120 else self.seconds / 12)
        if settled:
            points = settled[:: max(1, len(settled) // 10)]
            lines.append("resident MiB: " + ", ".join(f"{p.at:.0f} s {p.resident / (1 << 20):.1f}" for p in points))
            lines.append(
                f"longest life {settled[-1].at:.0f} s: resident {settled[0].resident >> 20} to "
                f"{settled[-1].resident >> 20} MiB (most {max(s.resident for s in settled) >> 20}), slope "
                f"{self.longest.slope(settled[0].at) / 1024:.2f} KiB/s; descriptors {settled[0].descriptors} to "
                f"{settled[-1].descriptors}, threads {settled[0].threads} to {settled[-1].threads}"
            )
        return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/endurance", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100000)
    parser.add_argument("--only", default="", metavar="EVENT", help="nothing else happens, as fill_disk or kill")
    parser.add_argument("--root", type=Path, default=Path("/var/tmp"), help="where everything lies")
    options = parser.parse_args(arguments)
    root = Path(tempfile.mkdtemp(prefix="fspf-endurance-", dir=options.root))
    run = Endurance(
        root, seconds=options.seconds, workers=options.workers, seed=options.seed, verbose=True, only=options.only
    )
    try:
        run.run()
    except AssertionError as exc:
        print(f"WRONG: {exc}\n\n{run.report()}\nkept: {root}", flush=True)
        return 1
    print(run.report(), flush=True)
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
