"""What `-o` may say about a mount, read once and checked.

Carrying the options out is left to `attach`, `session`, `upkeep` and `daemon`; the words of fstab to `fspf.cli.helper`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fspf.core.errors import UsageError
from fspf.core.freshness import Freshness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MIN_CACHE_BYTES: Final = 1 << 20
DEFAULT_CACHE_BYTES: Final = 128 << 20
_SIZES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_TIMES: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_S: Final = 366 * 86400.0
_UNSET_ID: Final = 0xFFFFFFFF  # (uid_t)-1 means "no change" to the kernel
_LABEL: Final = re.compile(r"[\x21-\x7e]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a volume is mounted.

    Attributes:
        atime: Keep access times as relatime does.
        diratime: Those of directories, too.
        suid, dev: Honour set-user-id bits and device nodes; for root only.
        sync: Every write(2) is an fsync, too.
        nonempty: The mountpoint may hold something, which the mount then hides.
        auto_unmount: When the daemon dies, the mountpoint goes away instead of answering ENOTCONN.
        guard: The directory below the mount becomes immutable.
        view_uid, view_gid: What everything appears to belong to; None: as it is stored.
        view_umask: Permission bits appear as 0777 without these, and no set-id bits; None: as they are stored.
        context: SELinux label of everything, or "".
        idle_s: Unmount after so long without use; None: never.
        commit_interval_s: Seconds between commits by the clock.
        freshness: How far this mount lets the CAS lag; None: as the volume says.
        total_cache_bytes: What caches of clean data may take in all; see `cache_bytes` and `meta_cache_bytes`.
        fsname: What mount(8) shows as the source; empty: fspf#VOLUME.
        metrics: File for the counters in Prometheus' text form, or "".
        cas, passphrase_file, log: As the options of the command line, for fstab; "" if not given.
    """

    read_only: bool = False
    allow_other: bool = False
    atime: bool = True
    diratime: bool = True
    suid: bool = False
    dev: bool = False
    exec: bool = True
    sync: bool = False
    native: bool = True
    uring: bool = True
    spin: bool = True
    nonempty: bool = False
    auto_unmount: bool = False
    guard: bool = False
    view_uid: int | None = None
    view_gid: int | None = None
    view_umask: int | None = None
    context: str = ""
    idle_s: float | None = None
    commit_interval_s: float = 5.0
    freshness: Freshness | None = None
    total_cache_bytes: int = DEFAULT_CACHE_BYTES
    fsname: str = ""
    metrics: str = ""
    cas: str = ""
    passphrase_file: str = ""
    log: str = ""
    words: tuple[str, ...] = field(default=(), compare=False)  # as given, for `fspf status`

    @property
    def cache_bytes(self) -> int:
        """What `Volume.open` takes: nodes of content trees; the namespace's pages take a quarter of it besides."""
        return split_cache(self.total_cache_bytes).nodes

    @property
    def meta_cache_bytes(self) -> int:
        """For the mount's own cache of attributes and names."""
        return split_cache(self.total_cache_bytes).metadata


class CacheShares(NamedTuple):
    """Bytes for each cache; their sum is what was asked for."""

    nodes: int  # of content trees: pointers and tags; `Volume`'s cache_bytes
    pages: int  # of the namespace's database: `Volume` gives it a quarter of `nodes`
    metadata: int  # attributes and names that the mount answers without asking the namespace


def split_cache(total: int) -> CacheShares:
    """Divide the stated bound (docs/MOUNT.md, "Memory"): half for metadata, of the rest four fifths for nodes."""
    nodes = (total - total // 2) * 4 // 5
    pages = nodes // 4
    return CacheShares(nodes, pages, total - nodes - pages)


# -- the table


class Flag(NamedTuple):
    attribute: str
    setting: bool
    help: str


class Value(NamedTuple):
    attribute: str
    parse: Callable[[str, str], Any]
    form: str
    help: str


def _duration(name: str, text: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd]?)", text, re.ASCII)
    seconds = float(found[1]) * _TIMES[found[2]] if found else 0.0
    if not 0.01 <= seconds <= _MAX_S:
        raise UsageError(f"{name}={text}: a time such as 5 (seconds), 500ms, 10m or 2h is expected, from 10ms to 366d")
    return seconds


def parse_size(name: str, text: str) -> int:
    """Read a size such as 64M.

    Raises:
        UsageError: It is none, or out of bounds.
    """
    found = re.fullmatch(r"([0-9]+)([kmg]?)", text.lower(), re.ASCII)
    size = int(found[1]) * _SIZES[found[2]] if found else 0
    if not MIN_CACHE_BYTES <= size <= 1 << 40:
        raise UsageError(f"{name}={text}: a size such as 64M is expected, at least 1M")
    return size


def _user(name: str, text: str) -> int:
    import pwd

    return _id(name, text, lambda: pwd.getpwnam(text).pw_uid)


def _group(name: str, text: str) -> int:
    import grp

    return _id(name, text, lambda: grp.getgrnam(text).gr_gid)


def _id(name: str, text: str, look_up: Callable[[], int]) -> int:
    if text.isascii() and text.isdecimal():
        if int(text) < _UNSET_ID:
            return int(text)
        raise UsageError(f"{name}={text}: the largest is {_UNSET_ID - 1}")
    try:
        return look_up()
    except (KeyError, ValueError) as exc:
        raise UsageError(f"{name}={text}: a number or a name of this system is expected") from exc


def _umask(name: str, text: str) -> int:
    if not re.fullmatch(r"0*[0-7]{1,3}", text, re.ASCII):
        raise UsageError(f"{name}={text}: up to three octal digits are expected, such as 027")
    return int(text, 8)


def _context(name: str, text: str) -> str:
    if not _LABEL.fullmatch(text) or '"' in text:
        raise UsageError(f"{name}={text}: an SELinux label is expected, in double quotes if it has commas")
    return text


def _freshness(name: str, text: str) -> Freshness:
    try:
        return Freshness.parse(text.replace("/", ","))  # a comma would end the option
    except UsageError as exc:
        raise UsageError(
            f"{name}={text}: strict, none, bounded:500ms or bounded:500ms/64 (commits) is expected"
        ) from exc


def _text(name: str, text: str) -> str:
    if not text or not text.isprintable():
        raise UsageError(f"{name}=: printable text is expected")
    return text


def _path(name: str, text: str) -> str:
    if not text or "\0" in text:
        raise UsageError(f"{name}=: a path is expected")
    return os.path.abspath(text)


def _cas(name: str, text: str) -> str:
    return _text(name, text)


FLAGS: Final = {
    "ro": Flag("read_only", True, "read only; takes no lease"),
    "rw": Flag("read_only", False, "read and write (default)"),
    "allow_other": Flag("allow_other", True, "for all users, with the usual checks of owner and mode"),
    "atime": Flag("atime", True, "keep access times, as relatime (default)"),
    "relatime": Flag("atime", True, "keep access times that are older than the last change or than a day (default)"),
    "noatime": Flag("atime", False, "keep no access times"),
    "diratime": Flag("diratime", True, "those of directories, too (default)"),
    "nodiratime": Flag("diratime", False, "not those of directories"),
    "suid": Flag("suid", True, "honour set-user-id bits; for root"),
    "nosuid": Flag("suid", False, "ignore set-user-id bits (default)"),
    "dev": Flag("dev", True, "honour device nodes; for root"),
    "nodev": Flag("dev", False, "ignore device nodes (default)"),
    "exec": Flag("exec", True, "run programs (default)"),
    "noexec": Flag("exec", False, "run no programs"),
    "sync": Flag("sync", True, "every write is an fsync, too: slow"),
    "async": Flag("sync", False, "write back later (default)"),
    "native": Flag("native", True, "answer most requests in C (default)"),
    "nonative": Flag("native", False, "answer all requests in Python: slow; to compare, and to find faults"),
    "uring": Flag("uring", True, "let the kernel hand requests over through io_uring, where it offers that (default)"),
    "nouring": Flag("uring", False, "read requests from /dev/fuse"),
    "spin": Flag(
        "spin", True, "in a small virtual machine, keep its CPUs awake between requests in quick succession (default)"
    ),
    "nospin": Flag("spin", False, "let idle CPUs halt at once: slower, less power"),
    "nonempty": Flag("nonempty", True, "hide what the mountpoint holds"),
    "auto_unmount": Flag("auto_unmount", True, "when the daemon dies, unmount instead of answering ENOTCONN"),
    "guard": Flag("guard", True, "make the directory below the mount immutable, as --guard"),
}
VALUES: Final = {
    "uid": Value("view_uid", _user, "USER", "everything appears to belong to USER (number or name)"),
    "gid": Value("view_gid", _group, "GROUP", "everything appears to belong to GROUP"),
    "umask": Value("view_umask", _umask, "OCTAL", "permission bits appear as 0777 without those of OCTAL"),
    "context": Value("context", _context, "LABEL", "SELinux label of everything"),
    "idle": Value("idle_s", _duration, "TIME", "unmount after TIME without use (10m, 2h)"),
    "commit": Value("commit_interval_s", _duration, "TIME", "time between commits by the clock (default 5 s)"),
    "freshness": Value(
        "freshness", _freshness, "MODE", "strict, bounded:500ms, bounded:500ms/64 or none, for this mount"
    ),
    "cache": Value("total_cache_bytes", parse_size, "SIZE", "memory for caches (default 128M)"),
    "fsname": Value("fsname", _text, "NAME", "what mount(8) shows as the source"),
    "metrics": Value("metrics", _path, "FILE", "write the counters to FILE every 15 s, for Prometheus' node exporter"),
    "cas": Value("cas", _cas, "URL", "as --cas"),
    "passphrase_file": Value("passphrase_file", _path, "FILE", "as --passphrase-file"),
    "log": Value("log", _path, "FILE", "as --log"),
}
# For mount(8), systemd and other readers of fstab, not for us.
IGNORED: Final = frozenset(
    [
        "defaults",
        "auto",
        "noauto",
        "nofail",
        "fail",
        "_netdev",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "loud",
        "nolazytime",
    ]
)
_IGNORED_VALUES: Final = frozenset({"user", "comment", "helper", "uhelper"})
IMPOSSIBLE: Final = {
    "strictatime": "reads that the kernel answers from memory are not seen: relatime or noatime",
    "lazytime": "access times wait for the next commit anyhow: relatime or noatime",
    "dirsync": "use sync, or fsync the directory",
    "mand": "Linux has no mandatory locks any more",
    "remount": "only mount(8) can: mount -o remount,ro MOUNTPOINT",
    "allow_root": "use allow_other: owner and mode of files still count",
    "keyfile": "the CAS finds its key file beside itself; a passphrase comes from passphrase_file=FILE",
    "passphrase": "not on a command line that everybody can see: passphrase_file=FILE",
    "password": "not on a command line that everybody can see: passphrase_file=FILE",
}


def parse_options(texts: Iterable[str], *, is_root: bool, sloppy: bool = False) -> MountOptions:
    """Read the values of all `-o`; the last of two that contradict each other counts.

    Args:
        sloppy: Leave out what is unknown.

    Raises:
        UsageError: An option is unknown, lacks its value, has a wrong one, or is not for this user.
    """
    settings: dict[str, Any] = {}
    words = [word for text in texts for word in split_words(text)]
    for word in words:
        name, separator, value = word.partition("=")
        if name in FLAGS and not separator:
            settings[FLAGS[name].attribute] = FLAGS[name].setting
        elif name in VALUES and separator:
            settings[VALUES[name].attribute] = VALUES[name].parse(
                name, value.replace('"', "") if '"' in value else value
            )
        elif word in IGNORED or name.lower().startswith("x-") or (name in _IGNORED_VALUES and separator):
            continue
        elif name in IMPOSSIBLE:
            raise UsageError(f"mount option {name!r}: {IMPOSSIBLE[name]}")
        elif name in VALUES:
            raise UsageError(f"mount option {name!r} needs a value: {name}={VALUES[name].form}")
        elif name in FLAGS:
            raise UsageError(f"mount option {name!r} takes no value")
        elif not sloppy:
            known = ", ".join([*FLAGS, *(f"{each}={VALUES[each].form}" for each in VALUES)])
            raise UsageError(f"unknown mount option {name!r}: there are {known}")
    if not is_root and (settings.get("suid") or settings.get("dev")):
        raise UsageError("the mount options suid and dev are for root")
    return MountOptions(**settings, words=tuple(words))


def split_words(text: str) -> Iterator[str]:
    """Split at commas outside of double quotes, as mount(8) does."""
    for word in re.findall(r'(?:[^,"]|"[^"]*"|")+', text):
        if word := word.strip():
            yield word


def help_text() -> str:
    """Return the table for `fspf mount --help`."""
    rows = [(name, flag.help) for name, flag in FLAGS.items()]
    rows += [(f"{name}={value.form}", value.help) for name, value in VALUES.items()]
    return "mount options:\n" + "".join(f"  {word:<22} {text}\n" for word, text in rows)
