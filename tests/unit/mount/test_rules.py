"""The mount's own rules as tables of values: errno values, access lists, set-id bits. No mount is made."""

from __future__ import annotations

import errno
import inspect
import stat

import pytest

from fspf.core.errors import (
    CasUnreachableError,
    DamagedFileError,
    FspfError,
    LeaseLostError,
    ReadOnlyError,
)
from fspf.mount import acl
from fspf.mount.attributes import without_privileges
from fspf.mount.boundary import Boundary, Repeats
from fspf.mount.operations import Operations
from tests.support.logs import Quiet


@pytest.mark.parametrize(
    ("error", "expected", "level"),
    [
        (FileNotFoundError(errno.ENOENT, "no"), errno.ENOENT, None),
        (OSError(errno.ENODATA, "no"), errno.ENODATA, None),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC, "ERROR"),
        (OSError("without a number"), errno.EIO, "ERROR"),
        (DamagedFileError(b"/f", 4096, 4096, "tampered"), errno.EIO, "ERROR"),
        (ReadOnlyError("closed"), errno.EROFS, "WARNING"),
        (LeaseLostError("gone"), errno.EROFS, "WARNING"),
        (CasUnreachableError("away"), errno.EIO, "WARNING"),
        (FspfError("other"), errno.EIO, "WARNING"),
        (MemoryError(), errno.ENOMEM, "ERROR"),
        (KeyError(5), errno.EIO, "ERROR"),
    ],
)
def test_every_exception_has_an_errno(error: Exception, expected: int, level: str | None, quiet: Quiet) -> None:
    if level is not None:
        quiet.require("handler")
    assert Boundary().errno_of("handler", error) == expected


def test_a_damaged_range_is_named_once_in_the_log(quiet: Quiet) -> None:
    quiet.require(r"read: '/secret': bytes 4096 to 8191 are tampered")
    boundary = Boundary()
    for _ in range(1000):
        boundary.errno_of("read", DamagedFileError(b"/secret", 4096, 4096, "tampered"))


def test_repeats_are_counted() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    assert repeats.admit("a") == "a"
    assert [repeats.admit("a") for _ in range(5)] == [None] * 5
    assert repeats.admit("b") == "b"
    now[0] = 61.0
    assert repeats.admit("a") == "a (5 times more since the last line)"
    assert repeats.admit("a") is None
    for number in range(5000):
        repeats.admit(str(number))


def test_no_handler_lets_an_exception_out() -> None:
    """A handler without the boundary ends the mount for everyone at its first exception."""
    for name, member in vars(Operations).items():
        if inspect.iscoroutinefunction(member) and not name.startswith("_") and name != "forget":
            assert hasattr(member, "is_guarded"), name


# -- access lists


def entries(*words: str) -> acl.Acl:
    tags = {"u": 1, "U": 2, "g": 4, "G": 8, "m": 16, "o": 32}
    found = []
    for word in words:
        who, bits = word.split("=")
        tag = tags[who[0] if len(who) == 1 else who[0].upper()]
        found.append(acl.Entry(tag, int(bits), int(who[1:]) if who[1:] else 0xFFFFFFFF))
    return found


FULL = entries("u=7", "u5=6", "g=5", "g6=4", "m=7", "o=4")
MINIMAL = entries("u=6", "g=4", "o=0")


def test_packing_and_parsing() -> None:
    for each in (FULL, MINIMAL):
        assert acl.parse(acl.pack(each)) == each
    assert acl.is_minimal(MINIMAL)
    assert not acl.is_minimal(FULL)


@pytest.mark.parametrize(
    "each",
    [
        pytest.param([], id="empty"),
        pytest.param(entries("u=7", "g=7"), id="no others"),
        pytest.param(entries("u=7", "u5=7", "g=7", "o=7"), id="no mask"),
        pytest.param(entries("g=7", "u=7", "o=7"), id="wrong order"),
        pytest.param(entries("u=7", "u=7", "g=7", "o=7"), id="two owners"),
        pytest.param([acl.Entry(1, 8, 0), *entries("g=7", "o=7")], id="unknown bit"),
        pytest.param([*entries("u=7", "g=7", "o=7"), acl.Entry(64, 7, 0)], id="unknown tag"),
    ],
)
def test_invalid_lists(each: acl.Acl) -> None:
    with pytest.raises(OSError) as caught:
        acl.parse(acl.pack(each))
    assert caught.value.errno == errno.EINVAL


def test_other_versions_of_lists() -> None:
    for raw, number in ((b"", errno.EINVAL), (b"\2\0\0", errno.EINVAL), (b"\3\0\0\0", errno.EOPNOTSUPP)):
        with pytest.raises(OSError) as caught:
            acl.parse(raw)
        assert caught.value.errno == number


def test_lists_and_modes() -> None:
    assert acl.mode_of(FULL, 0o104000) == 0o104774
    assert acl.mode_of(MINIMAL, 0o100777) == 0o100640
    assert acl.with_mode(FULL, 0o610) == entries("u=6", "u5=6", "g=5", "g6=4", "m=1", "o=0")
    assert acl.with_mode(MINIMAL, 0o751) == entries("u=7", "g=5", "o=1")
    inherited, mode = acl.inherit(FULL, 0o100640)
    assert inherited == entries("u=6", "u5=6", "g=5", "g6=4", "m=4", "o=0")
    assert mode == 0o100640


@pytest.mark.parametrize(
    ("mode", "keeps_group", "expected"),
    [
        (0o4755, True, 0o755),
        (0o2755, True, 0o755),
        (0o2755, False, 0o755),
        (0o2745, True, 0o2745),  # mandatory locking, not a privilege
        (0o2745, False, 0o745),
        (0o6777, True, 0o777),
        (0o1777, True, 0o1777),
        (0o644, False, 0o644),
    ],
)
def test_what_a_change_takes(mode: int, keeps_group: bool, expected: int) -> None:
    assert without_privileges(stat.S_IFREG | mode, keeps_group=keeps_group) == stat.S_IFREG | expected
