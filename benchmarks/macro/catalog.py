"""What is measured: every line with its unit, its target, and the file systems it makes sense for.

How a line is measured is in lines_*.py and apps.py, under the same key; what the figures mean, in report.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PEERS: Final = ("gocryptfs", "securefs", "cryfs", "encfs")
ALL: Final = ("ext4", "fspf", *PEERS)
STREAM: Final = ("ext4", "null", "fspf", *PEERS)
SYNCED: Final = ("ext4", "fspf", "fspf-bounded", *PEERS)
APPS: Final = ("ext4", "fspf", "gocryptfs")
DATABASES: Final = ("ext4", "fspf", "fspf-bounded", "gocryptfs")
FUSE: Final = tuple(name for name in STREAM if name != "ext4")
MOUNTED: Final = tuple(name for name in ALL if name != "ext4")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report.

    Attributes:
        group: The function that measures it, together with its neighbours.
        unit: Of the figures; rates are better higher, times and sizes better lower.
        target: Share of plain ext4 that fspf is to reach.
        bounded_target: The same for fspf in `bounded` freshness.
        issue: What gocryptfs 2.3 reached, in per cent of ext4, when the targets were set.
        gocryptfs_target: How many times gocryptfs's speed fspf is to reach.
        null_target: Share of the null FUSE file system that fspf is to reach.
        full_only: File systems on which it takes so long that --full has to ask for it.
    """

    key: str
    group: str
    title: str
    unit: str
    systems: tuple[str, ...] = ALL
    target: float | None = None
    bounded_target: float | None = None
    issue: int | None = None
    gocryptfs_target: float | None = None
    null_target: float | None = None
    full_only: tuple[str, ...] = ()

    @property
    def higher_is_better(self) -> bool:
        return self.unit in {"MB/s", "/s"}


LINES: Final = (
    Line("seq-write", "stream", "sequential write, 1 MiB, buffered, until the last write returned", "MB/s", STREAM, null_target=0.75),
    Line("seq-write-fsync", "stream", "sequential write, 1 MiB, buffered, until fsync returned", "MB/s", STREAM, target=0.50, issue=15),
    Line("seq-read-cold", "stream", "sequential read, 1 MiB, cold", "MB/s", STREAM, target=0.90, issue=43),
    Line("seq-read-warm", "stream", "sequential read, 1 MiB, warm", "MB/s", STREAM, target=0.95, issue=9),
    Line("seq-read-backing", "stream", "sequential read, 1 MiB, remounted over a warm backing", "MB/s", FUSE, null_target=0.75),
    Line("seq4-write-fsync", "stream", "4 streams: write until fsync returned", "MB/s", STREAM),
    Line("seq4-read-cold", "stream", "4 streams: read, cold", "MB/s", STREAM),
    Line("seq4-read-warm", "stream", "4 streams: read, warm", "MB/s", STREAM),
    Line("direct-write", "stream", "sequential write, 1 MiB, O_DIRECT, until fsync returned", "MB/s", STREAM),
    Line("direct-read", "stream", "sequential read, 1 MiB, O_DIRECT, cold", "MB/s", STREAM),
    Line("write-512", "stream", "512-byte writes, buffered, until the last write returned", "MB/s", STREAM, target=0.80, issue=10),
    Line("write-512-fsync", "stream", "512-byte writes, buffered, until fsync returned", "MB/s", STREAM),
    Line("rand-read-cold", "random", "random 4 KiB read, cold, queue depth 1", "/s", STREAM, target=0.90, issue=78),
    Line("rand-read-cold-16", "random", "random 4 KiB read, cold, queue depth 16", "/s", STREAM),
    Line("rand-read-backing", "random", "random 4 KiB read, remounted over a warm backing", "/s", FUSE, null_target=0.70),
    Line("rand-read-backing-16", "random", "random 4 KiB read, warm backing, queue depth 16", "/s", FUSE, null_target=0.70),
    Line("rand-write", "random", "random 4 KiB write, buffered, queue depth 1", "/s", STREAM, target=0.50, issue=14),
    Line("rand-write-16", "random", "random 4 KiB write, buffered, queue depth 16", "/s", STREAM),
    Line("rand-write-end", "random", "random 4 KiB write, queue depth 1, with one fsync at the end", "/s", STREAM),
    Line("rand-write-fsync", "random", "4 KiB write + fsync, queue depth 1", "/s", SYNCED, target=0.50, issue=55),
    Line("rand-write-fsync-16", "random", "4 KiB write + fsync, 16 at a time, one file", "/s", SYNCED),
    Line("rand-write-fsync-16f", "random", "4 KiB write + fsync, 16 clients, a file each", "/s", SYNCED),
    Line("untar", "tree", "untar of 50 000 files, until tar ended", "s", target=0.25, issue=13, gocryptfs_target=3.0),
    Line("untar-sync", "tree", "untar of 50 000 files, until sync returned", "s"),
    Line("ls-cold", "tree", "ls -lR, cold", "s"),
    Line("find-cold", "tree", "find -ls, cold", "s", target=0.50, issue=26),
    Line("read-cold", "tree", "read all files, cold", "s", target=0.60, issue=32),
    Line("rm", "tree", "rm -rf of 50 000 files", "s", target=1.00, issue=44, gocryptfs_target=3.0),
    Line("mount-0", "tree", "mount, empty volume", "ms", MOUNTED),
    Line("mount-50k", "tree", "mount, 50 000 files", "ms", MOUNTED),
    Line("mount-1m", "million", "mount, 1 000 000 files", "ms", MOUNTED, full_only=PEERS),
    Line("memory", "tree", "peak memory of the daemon in the lines on the tree", "MB", MOUNTED),
    Line("git-clone", "git", "git clone (local, 4000 files)", "s"),
    Line("git-status-cold", "git", "git status, cold", "s"),
    Line("git-status", "git", "git status, warm", "s"),
    Line("git-checkout", "git", "git checkout of a branch with 2000 changed files", "s"),
    Line("sqlite-commits", "sqlite", "SQLite: one insert a transaction, rollback journal", "/s", SYNCED, target=0.60, issue=42),
    Line("sqlite-commits-wal", "sqlite", "SQLite: one insert a transaction, WAL, synchronous=FULL", "/s", SYNCED),
    Line("sqlite-batch", "sqlite", "SQLite: 200 000 inserts in one transaction", "/s", SYNCED),
    Line("sqlite-read", "sqlite", "SQLite: random selects by key, cold", "/s"),
    Line("app-nginx", "nginx", "nginx, static files, wrk", "/s", APPS, target=0.90),
    Line("app-mariadb", "mariadb", "MariaDB, sysbench OLTP read-write, default durability", "/s", DATABASES, bounded_target=0.78),
    Line("app-sqlite", "speedtest", "SQLite, in the manner of speedtest1", "s", DATABASES, target=0.90),
    Line("app-pip", "pip", "pip install of pandas and numpy from local wheels", "s", APPS, target=0.90),
    Line("app-gcc", "gcc", "make -j2 of a C project, cold", "s", APPS, target=0.90),
    Line("app-pandas", "pandas", "NumPy/pandas job over a large data set, cold", "s", APPS, target=0.90),
    Line("app-git", "appgit", "git: clone, checkout, edit, status, commit, gc", "s", APPS, target=0.90),
)  # fmt: skip
BY_KEY: Final = {line.key: line for line in LINES}
GROUPS: Final = tuple(dict.fromkeys(line.group for line in LINES))
APP_GROUPS: Final = ("nginx", "mariadb", "speedtest", "pip", "gcc", "pandas", "appgit")
SYSTEM_NAMES: Final = ("ext4", "null", "fspf", "fspf-bounded", *PEERS)


def select(words: list[str]) -> list[str]:
    """Return the keys of the lines that *words* name: keys, groups, or `apps`; all, if there are none.

    Raises:
        ValueError: A word names nothing.
    """
    if not words:
        return list(BY_KEY)
    chosen: set[str] = set()
    for word in words:
        groups = APP_GROUPS if word == "apps" else (word,)
        found = {line.key for line in LINES if line.key == word or line.group in groups}
        if not found:
            raise ValueError(f"no line or group is called {word!r}")
        chosen |= found
    return [key for key in BY_KEY if key in chosen]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each line moves."""

    stream_bytes: int
    stream4_bytes: int
    small_bytes: int
    random_bytes: int
    random_count: int
    sync_count: int
    tree_files: int
    tree_mean_bytes: int
    git_files: int
    commits: int
    rows: int
    million_files: int
    web_files: int
    sbtest_rows: int  # in each of four tables
    speedtest_rows: int
    c_files: int
    data_bytes: int
    wheels: tuple[str, ...]  # what pip installs
    seconds: int  # how long servers are under load


DEFAULT: Final = Sizes(
    stream_bytes=1 << 30,
    stream4_bytes=256 << 20,
    small_bytes=64 << 20,
    random_bytes=512 << 20,
    random_count=8000,
    sync_count=1500,
    tree_files=50_000,
    tree_mean_bytes=6000,
    git_files=4000,
    commits=1000,
    rows=200_000,
    million_files=1_000_000,
    web_files=2000,
    sbtest_rows=50_000,
    speedtest_rows=50_000,
    c_files=100,
    data_bytes=512 << 20,
    wheels=("pandas", "numpy"),
    seconds=10,
)
QUICK: Final = Sizes(
    stream_bytes=64 << 20,
    stream4_bytes=16 << 20,
    small_bytes=4 << 20,
    random_bytes=32 << 20,
    random_count=500,
    sync_count=200,
    tree_files=1000,
    tree_mean_bytes=6000,
    git_files=200,
    commits=40,
    rows=5000,
    million_files=5000,
    web_files=100,
    sbtest_rows=500,
    speedtest_rows=1000,
    c_files=8,
    data_bytes=8 << 20,
    wheels=("numpy",),
    seconds=2,
)
