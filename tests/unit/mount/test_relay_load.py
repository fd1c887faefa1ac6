"""No request is lost or answered twice: under load, with slow answers, interrupts, and when either side goes away."""

from __future__ import annotations

import errno
import gc
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from fspf.core.types import ROOT_INO, Ino
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.support import fusewire as w
from tests.support.fakekernel import ROOT, FakeKernel, Reply
from tests.support.fakemount import Asked, FakeMount, ThroughOperations
from tests.support.fusewire import Op

REPO = Path(__file__).parents[3]
STATFS_REPLY = w.STATFS_OUT.pack(1, 2, 3, 4, 5, 4096, 255, 4096, 0)


class Tardy:
    """A control plane that answers STATFS late and in any order, and everything else through `Operations`."""

    def __init__(self) -> None:
        self.through: ThroughOperations | None = None
        self.late: list[int] = []
        self._lock = threading.Lock()
        self._rng = random.Random(1)

    def __call__(self, asked: Asked) -> bytes | int | None:
        if asked.opcode == Op.STATFS:
            with self._lock:
                self.late.append(asked.unique)
            return None
        assert self.through is not None
        return self.through(asked)

    def answer_some(self, mounted: FakeMount) -> None:
        with self._lock:
            self._rng.shuffle(self.late)
            ready, self.late = self.late, []
        for unique in ready:
            mounted.control.reply(unique, 0, STATFS_REPLY)


def work(kernel: FakeKernel, seed: int, rounds: int) -> None:
    """One application, in a directory of its own; each step asserts what it must find."""
    rng = random.Random(seed)
    home = kernel.mkdir(ROOT, b"home%d" % seed).ino
    content: dict[bytes, bytes] = {}
    for i in range(rounds):
        name = b"f%d" % rng.randrange(12)
        action = rng.randrange(8)
        if name not in content or action == 0:
            if name not in content:
                kernel.create(home, name)
                content[name] = b""
            ino = kernel.lookup(home, name).ino
            data = rng.randbytes(rng.randrange(1, 9000))
            kernel.write(ino, 0, data)
            content[name] = data + content[name][len(data) :]
        elif action == 1:
            kernel.unlink(home, name)
            del content[name]
        elif action == 2:
            other = b"f%d" % rng.randrange(12)
            kernel.rename(home, name, home, other)
            content[other] = content.pop(name) if other != name else content[name]
        elif action == 3:
            assert kernel.listdir(home, 1024).keys() == content.keys()
        elif action == 4:
            entry = kernel.lookup(home, name)
            assert entry.attr.size == len(content[name])
            kernel.forget(entry.ino, 1)
        elif action == 5 and i % 16 == 0:
            kernel.fsync(kernel.lookup(home, name).ino)
        elif action == 6:
            kernel.setxattr(kernel.lookup(home, name).ino, b"user.n", b"%d" % i)
        else:
            ino = kernel.lookup(home, name).ino
            assert kernel.read(ino, 0, 65536) == content[name]
    assert kernel.listdir(home).keys() == content.keys()


def test_every_request_is_answered_once_under_load(volume: Volume, assert_sound: Callable[[], None]) -> None:
    tardy = Tardy()
    with FakeMount(volume, script=tardy, cache_bytes=16 << 10) as mounted:  # so small that memory is let go of
        tardy.through = ThroughOperations(mounted.operations)
        kernel = mounted.kernel
        over = threading.Event()
        slow: list[Future[Reply]] = []

        def bother() -> None:
            """Requests whose answers come late, and interrupts of them and of others."""
            rng = random.Random(2)
            while not over.is_set():
                slow.append(kernel.submit(Op.STATFS))
                kernel.interrupt(rng.randrange(2, 2 * len(slow) + 100, 2))
                if len(slow) % 7 == 0:
                    tardy.answer_some(mounted)
                if len(slow) % 50 == 0:
                    mounted.volume.commit()

        bothering = threading.Thread(target=bother)
        bothering.start()
        try:
            with ThreadPoolExecutor(8) as pool:
                for done in [pool.submit(work, kernel, seed, 120) for seed in range(8)]:
                    done.result()
        finally:
            over.set()
            bothering.join()
        while kernel.waiting:
            tardy.answer_some(mounted)
        assert all(done.result(0).body == STATFS_REPLY for done in slow)
        stats = mounted.plane.relay.stats()
        assert stats["errors"] == 0
        assert stats["passed_statfs"] == len(slow)
        assert stats["requests"] == kernel.requests.total()
        assert stats["evictions"] > 0
    assert_sound()


def test_slow_requests_do_not_hold_up_others(volume: Volume) -> None:
    """However many wait for the control plane, those that it is not needed for go on."""
    with FakeMount(volume, script=lambda _asked: None) as mounted:
        kernel = mounted.kernel
        slow = [kernel.submit(Op.STATFS) for _ in range(200)]
        mounted.control.wait_for(Op.STATFS, 200)
        file = kernel.create(ROOT, b"file").ino
        assert kernel.write(file, 0, b"x") == 1
        assert not any(done.done() for done in slow)
        for asked in list(mounted.control.asked):
            if asked.opcode == Op.STATFS:
                mounted.control.reply(asked.unique, errno.EXDEV)
        assert {done.result(60).error for done in slow} == {errno.EXDEV}


def test_an_fsync_that_waits_holds_nobody_up(volume: Volume, cas: MemoryCas) -> None:
    with FakeMount(volume) as mounted:
        kernel = mounted.kernel
        file = kernel.create(ROOT, b"file").ino
        reached, go_on = threading.Event(), threading.Event()

        def wait(_call: str) -> None:
            reached.set()
            assert go_on.wait(60)

        cas.before = wait
        waiting = [kernel.submit(Op.FSYNC, file, w.FSYNC_IN.pack(0, 0, 0)) for _ in range(20)]
        assert reached.wait(60)
        for i in range(50):
            kernel.write(file, i, b"x")
        assert kernel.getattr(file).size == 50
        assert not any(done.done() for done in waiting)
        cas.before = lambda _call: None
        go_on.set()
        assert {done.result(60).error for done in waiting} == {0}


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    """As many descriptors and threads as before."""
    gc.collect()
    before = descriptors(), threads()
    yield
    gc.collect()  # plane and relay know each other
    assert len(descriptors()) == len(before[0])
    assert threads() == before[1]


@pytest.fixture
def tight(nothing_leaks: None, scratch: Path, cas: MemoryCas) -> Iterator[Volume]:
    with Volume.create(scratch / "tight", cas, commit_interval=None) as made:
        yield made


def test_when_the_control_plane_dies_what_waits_for_it_fails_and_the_rest_goes_on(tight: Volume) -> None:
    mounted = FakeMount(tight, script=lambda _asked: None)
    kernel = mounted.kernel
    slow = [kernel.submit(Op.STATFS) for _ in range(20)]
    mounted.control.wait_for(Op.STATFS, 20)
    mounted.control.die()
    assert {done.result(60).error for done in slow} == {errno.EIO}
    assert kernel.call(Op.STATFS).error == errno.EIO
    assert kernel.call(Op.SYMLINK, ROOT, b"a\0b\0").error == errno.EIO
    file = kernel.create(ROOT, b"file").ino
    assert kernel.write(file, 0, b"kept") == 4
    kernel.fsync(file)
    mounted.unmount()
    assert tight.lookup(ROOT_INO, b"file").size == 4


def test_when_the_kernel_goes_away_in_the_middle_the_last_commit_has_everything_that_was_answered(
    tight: Volume, scratch: Path, cas: MemoryCas
) -> None:
    mounted = FakeMount(tight, script=lambda _asked: None)
    kernel = mounted.kernel
    answered: list[bytes] = []

    def make(worker: int) -> None:
        with suppress(OSError):
            for i in range(10**6):
                name = b"%d-%d" % (worker, i)
                kernel.write(kernel.create(ROOT, name).ino, 0, name)
                answered.append(name)

    with ThreadPoolExecutor(4) as pool:
        for worker in range(4):
            pool.submit(make, worker)
        slow = [kernel.submit(Op.STATFS) for _ in range(5)]
        while len(answered) < 400:
            kernel.getattr(ROOT)
        kernel.close()
    assert {done.result(60).error for done in slow} <= {errno.ENODEV, errno.EIO}
    mounted.plane.stop()
    mounted.control.close()
    mounted.operations.forget_all()
    path = tight.path
    tight.close()
    with Volume.open(path, cas, commit_interval=None) as again:
        for name in answered:
            assert again.lookup(ROOT_INO, name).size == len(name)


def test_the_end_of_the_kernels_side_wakes_the_session(tight: Volume) -> None:
    mounted = FakeMount(tight)
    assert not readable(mounted.plane.relay.wake_fd, 0)
    mounted.kernel.close()
    assert readable(mounted.plane.relay.wake_fd, 60)
    mounted.plane.stop()
    mounted.control.close()
    mounted.operations.forget_all()


def readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


@pytest.mark.parametrize("when", ["never started", "not negotiated", "at work"])
def test_stopping_at_any_time(tight: Volume, when: str) -> None:
    for _ in range(3):
        mounted = FakeMount(tight, script=lambda _asked: None, started=False)
        slow: list[Future[Reply]] = []
        if when != "never started":
            mounted.plane.start()
        if when == "at work":
            mounted.kernel.init()
            slow = [mounted.kernel.submit(Op.STATFS) for _ in range(30)]
        mounted.break_off()
        assert all(done.result(60).error in {errno.EIO, errno.ENODEV} for done in slow)


def test_stopping_closes_nothing_that_is_not_the_relays(tight: Volume) -> None:
    """What waits at the end is failed before its descriptor is closed: nothing is written to whoever gets the number next."""
    for _ in range(10):
        mounted = FakeMount(tight, script=lambda _asked: None)
        slow = [mounted.kernel.submit(Op.STATFS) for _ in range(100)]
        mounted.control.wait_for(Op.STATFS, 100)
        over = threading.Event()
        strange: list[bytes] = []

        def take_numbers(over: threading.Event = over, strange: list[bytes] = strange) -> None:
            while not over.is_set():
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with ours, theirs:
                    for end in (ours, theirs):
                        end.setblocking(False)
                        with suppress(BlockingIOError):
                            strange.append(end.recv(100))

        taker = threading.Thread(target=take_numbers)
        taker.start()
        mounted.break_off()
        over.set()
        taker.join()
        assert strange == []
        assert {done.result(60).error for done in slow} <= {errno.EIO, errno.ENODEV}


PYFUSE3 = """
import sys, trio, pyfuse3
class Nothing(pyfuse3.Operations):
    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = True
    async def statfs(self, ctx):
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = 12345
        return data
    async def symlink(self, parent, name, target, ctx):
        raise pyfuse3.FUSEError(28)
pyfuse3.init(Nothing(), "/dev/fd/" + sys.argv[1], set())
trio.run(pyfuse3.main)
"""


@pytest.mark.parametrize(
    "flags",
    [
        w.LINUX_6_18,
        w.LINUX_6_18 & ~w.Flag.POSIX_ACL,
        w.LINUX_6_18 & ~w.Flag.WRITEBACK_CACHE,
        w.LINUX_6_18 & ~w.Flag.NO_OPEN_SUPPORT,
        w.LINUX_6_18 & ~w.Flag.READDIRPLUS_AUTO,  # without DO_READDIRPLUS pyfuse3 does not start: Linux 3.9 has it
        w.LINUX_6_18 & ~w.Flag.DONT_MASK & ~w.Flag.MAX_PAGES,
    ],
    ids=["everything", "no access lists", "no write-back", "opening", "always readdirplus", "no masks, small"],
)
def test_with_the_real_pyfuse3(volume: Volume, flags: w.Flag) -> None:
    mounted = FakeMount(volume, started=False, serve=False)
    descriptor = mounted.control.descriptor
    child = subprocess.Popen([sys.executable, "-c", PYFUSE3, str(descriptor)], pass_fds=(descriptor,), cwd=REPO)
    mounted.control.leave()  # the child has its own
    try:
        mounted.plane.start()
        kernel = mounted.kernel
        negotiated = kernel.init(flags=flags)
        assert negotiated.flags & w.Flag.WRITEBACK_CACHE == flags & w.Flag.WRITEBACK_CACHE
        assert kernel.statfs()[0] == 12345
        assert kernel.call(Op.SYMLINK, ROOT, b"a\0b\0").error == errno.ENOSPC
        kernel.write(kernel.create(ROOT, b"file").ino, 0, b"data")
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert kernel.call(Op.STATFS).error == errno.EIO
        assert kernel.read(kernel.lookup(ROOT, b"file").ino, 0, 9) == b"data"
    finally:
        child.kill()
        child.wait()
        mounted.break_off()


def test_what_was_loaded_is_not_let_go_of_before_it_was_used(volume: Volume) -> None:
    """A directory larger than the memory for it, while other requests fill that memory again and again."""
    with FakeMount(volume, cache_bytes=1) as mounted:
        kernel, plane = mounted.kernel, mounted.plane
        home, other = kernel.mkdir(ROOT, b"home").ino, kernel.mkdir(ROOT, b"other").ino
        for i in range(20):
            kernel.create(home, b"%d" % i)
            kernel.create(other, b"%d" % i)
        volume.commit()
        loads = {"inode": plane.load_inode, "directory": plane.load_directory}

        def then_push_out(load: Callable[[int], int], ino: int) -> int:
            result = load(ino)
            for name, original in loads.items():
                setattr(plane, f"load_{name}", original)
            assert len(kernel.listdir(other)) == 20
            kernel.lookup(other, b"7")
            for name, original in loads.items():
                setattr(plane, f"load_{name}", lambda ino, original=original: then_push_out(original, ino))
            return result

        for name, original in loads.items():
            setattr(plane, f"load_{name}", lambda ino, original=original: then_push_out(original, ino))
        assert len(kernel.listdir(home)) == 20
        assert kernel.lookup(home, b"3").attr.nlink == 1
        kernel.rename(home, b"3", home, b"33")
        kernel.unlink(home, b"4")
        assert plane.relay.stats()["evictions"] > 20
        for name, original in loads.items():
            setattr(plane, f"load_{name}", original)


def test_a_file_that_loses_its_last_user_while_it_is_sealed_is_deleted_afterwards(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that seals contents in the background holds an inode for a moment, too."""
    with FakeMount(volume) as mounted:
        kernel, plane = mounted.kernel, mounted.plane
        file = kernel.create(ROOT, b"file").ino
        kernel.setxattr(file, b"user.a", b"b")  # so that the write asks for the capability
        volume.commit()
        reached, go_on = threading.Event(), threading.Event()

        def wait(_ino: int) -> int:
            reached.set()
            assert go_on.wait(60)
            return 0

        monkeypatch.setattr(plane, "drop_capability", wait)
        writing = kernel.submit(Op.WRITE, file, w.WRITE_IN.pack(0, 0, 4, 0, 0, 0, 0) + b"data")
        assert reached.wait(60)
        kernel.unlink(ROOT, b"file")
        kernel.forget(file)
        while not plane.relay.stats()["request_forget"]:
            kernel.getattr(ROOT)
        go_on.set()
        writing.result(60).check("write")
        while plane.relay.in_use(file):
            kernel.getattr(ROOT)
        with volume.lock:
            assert volume.namespace.inode(Ino(file)) is None
