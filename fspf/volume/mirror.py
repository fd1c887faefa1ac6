"""What a mount's native data plane knows ahead of the namespace, and how the two are kept equal.

The rows themselves are `fspf.volume.namespace`; the native side is `fspf_native.Relay`. docs/DATAPLANE.md has the rules.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from fspf.core.anchor import LentRing
    from fspf_native import Captured, Drained, LaneEnd, SecretKey


class LentLog(NamedTuple):
    """What native code needs in order to write records of the intent log by itself."""

    key: SecretKey
    key_version: int
    epoch: int
    volume_id: bytes
    header: bytes
    descriptor: int
    end: int  # where the next record goes
    length: int
    generation: int  # of the newest state, which is anchored
    tag: bytes
    silence_ns: int  # how long the CAS may not have been heard of
    contact_ns: int  # when it was, by CLOCK_BOOTTIME


class Mirror(Protocol):
    """What `Namespace` and `Volume` ask of the data plane; all with the volume's lock held."""

    @property
    def pending(self) -> int:
        """Rows and names that the namespace does not have."""

    def drain(self) -> tuple[list[Drained], Drained]:
        """Take them; first those that the intent log has already, oldest first."""

    def flush_all(self) -> int:
        """Seal all contents; the errno of the first failure, or 0."""

    def flush_these(self, inos: list[int], /) -> int:
        """Seal these contents; the errno of the first failure, or 0."""

    def take_log(self, inos: list[int], /) -> tuple[list[Drained], Drained, list[tuple[int, Captured]], bool]:
        """Take what `drain` gives, and changes of these contents, for a record of the intent log; all of it or not."""

    @property
    def lane_contact_ns(self) -> int: ...
    @property
    def lane_anchored(self) -> int: ...
    def lane_lend(self, log: LentLog, ring: LentRing, /) -> bool:
        """Let fsyncs write records of the log by themselves, from this state on."""

    def lane_pause(self) -> None:
        """Let them take nothing any more: somebody changes the namespace."""

    def lane_take_back(self) -> LaneEnd | None:
        """Wait for what is under way, and go on from there."""

    def in_use(self, ino: int, /) -> bool:
        """Tell whether the kernel knows the inode."""

    def end_marks(self) -> None:
        """Everything was drained, and the data plane has ended: frees take effect with the next commit again."""

    def take_ino(self) -> int: ...
    def take_cookie(self) -> int: ...
    def changed(self, ino: int, columns: dict[str, int | bytes | None], /) -> None: ...
    def has_xattrs(self, ino: int, /) -> None: ...
    def put_name(self, parent: int, cookie: int, name: bytes, ino: int, mode: int, /) -> None: ...
    def set_blocked(self, errno: int, /) -> None:
        """Answer every change with this errno."""

    def set_no_space(self, flag: bool, /) -> None:  # noqa: FBT001  # the native method's signature
        """Let whatever makes the namespace larger be asked for first."""


class VolumeLock:
    """The volume's re-entrant lock. Whoever enters it from outside sees all that the data plane has answered.

    Attributes:
        quietly: The same lock for one who does not look at the namespace; nothing is applied.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self.on_enter: Callable[[], None] | None = None
        self.quietly = _Quietly(self)

    def enter_quietly(self) -> None:
        """Take the lock without looking for what is to be applied."""
        self._lock.acquire()
        self._depth += 1

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1 and self.on_enter is not None:
            try:
                self.on_enter()
            except BaseException:
                self._depth -= 1
                self._lock.release()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        self._lock.release()


class _Quietly:
    """Context manager of `VolumeLock.quietly`."""

    def __init__(self, lock: VolumeLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.enter_quietly()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, value, trace)
