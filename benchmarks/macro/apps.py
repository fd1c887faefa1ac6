"""Real applications: nginx, MariaDB, SQLite, pip, gcc, NumPy with pandas, git.

Each is run as its users run it, and what it has made is checked afterwards, outside the measured time. Their inputs
come from assets.py; servers are children that end with the visit.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.macro import mariadb
from benchmarks.macro.measure import BenchError, cold, need, run, server, shell, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.macro.measure import Take, Word

CONNECTIONS: Final = 16
_RATE: Final = re.compile(r"Requests/sec:\s+([0-9.]+)")
REPO: Final = Path(__file__).resolve().parents[2]


def away(take: Take) -> Path:
    """A directory that is not on the file system under test: for sockets, logs and process numbers."""
    path = take.system.root / "away"
    path.mkdir(exist_ok=True)
    return path


# --------------------------------------------------------------------------------------------------------- nginx

# What Debian's own nginx.conf says, with paths and address of ours.
_NGINX: Final = """
user root;
worker_processes auto;
daemon off;
pid {away}/nginx.pid;
error_log {away}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log {away}/access.log;
    client_body_temp_path {away}/body;
    proxy_temp_path {away}/proxy;
    fastcgi_temp_path {away}/fastcgi;
    uwsgi_temp_path {away}/uwsgi;
    scgi_temp_path {away}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""
# Each thread of wrk visits the files in an order that no cache would guess.
_WRK: Final = """
local at = 0
request = function()
    at = (at + 7919) % {files}
    return wrk.format("GET", string.format("/d%02d/f%05d.html", at % 20, at))
end
"""


def nginx(take: Take) -> None:
    need("nginx", "wrk")
    outside = away(take)
    www = take.place / "www"
    run(["cp", "-r", take.assets / "www", www])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration, script = outside / "nginx.conf", outside / "visit.lua"
    configuration.write_text(_NGINX.format(away=outside, root=www, port=port))
    script.write_text(_WRK.format(files=take.sizes.web_files))

    def answers() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    log = outside / "nginx.log"
    with server(["nginx", "-e", log, "-c", configuration], log) as process:
        until(answers, process, log)
        wrk(script, port, 1)
        take.record("app-nginx", wrk(script, port, take.sizes.seconds))


def wrk(script: Path, port: int, seconds: int) -> float:
    """Return requests a second; every one must have been answered with a file."""
    url = f"http://127.0.0.1:{port}"
    out = run(["wrk", "-t", "2", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "-s", script, url])
    found = _RATE.search(out)
    if found is None or "Non-2xx" in out or "Socket errors" in out:
        raise BenchError(f"wrk: {' '.join(out.split())[-300:]}")
    return float(found[1])


# ----------------------------------------------------------------------------------------------------- databases


def maria(take: Take) -> None:
    data = take.place / "data"
    run(["cp", "-a", take.assets / "mariadb", data])
    take.system.sync()
    with mariadb.serving(data, away(take)) as listening:
        mariadb.transactions(listening, take.sizes.sbtest_rows, 1, seed=999)
        speed = mariadb.transactions(listening, take.sizes.sbtest_rows, take.sizes.seconds, seed=take.round + 1)
        take.record("app-mariadb", speed)


def speedtest(take: Take) -> None:
    path = take.place / "speedtest.db"
    with take.timed("app-sqlite"):
        speedtest_run(path, take.sizes.speedtest_rows)
    with closing(sqlite3.connect(path)) as database:
        (verdict,) = database.execute("pragma integrity_check").fetchone()
    if verdict != "ok":
        raise BenchError(f"SQLite's integrity check: {verdict}")


def speedtest_run(path: Path, rows: int) -> None:
    """Do what SQLite's own speed test does: tables with and without indexes, each step in a transaction of its own."""
    values = [
        (number, number * 7919 % (2 * rows), f"{number * 6700417 % 1000003:x} of many words") for number in range(rows)
    ]
    spans = [(number * 97 % rows, number * 97 % rows + 10) for number in range(rows // 5)]
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        steps: list[Callable[[], object]] = [
            lambda: database.execute("create table z1(a integer, b integer, c text)"),
            lambda: database.executemany("insert into z1 values(?, ?, ?)", values),
            lambda: database.execute("create table z2(a integer primary key, b integer, c text)"),
            lambda: database.executemany("insert into z2 values(?, ?, ?)", values),
            lambda: database.execute("create table t3(a integer, b integer unique, c text)"),
            lambda: database.executemany("insert or replace into t3 values(?, ?, ?)", values),
            lambda: [database.execute("select count(*), avg(b) from z1 where b between ? and ?", span).fetchall() for span in spans[:20]],
            lambda: [database.execute("select count(*) from z1 where c like ?", (f"%{word:x}%",)).fetchall() for word in range(20)],
            lambda: database.execute("select a, b, c from z1 order by c").fetchall(),
            lambda: database.execute("create index i1 on z1(b)"),
            lambda: database.execute("create index i2 on z1(c)"),
            lambda: [database.execute("select count(*), sum(a) from z1 where b between ? and ?", span).fetchall() for span in spans],
            lambda: [database.execute("update z2 set b = b + 1 where a between ? and ?", span) for span in spans],
            lambda: [database.execute("update z1 set c = c || 'x' where b = ?", (first,)) for first, _ in spans],
            lambda: database.execute("update z2 set c = c || ' and more'"),
            lambda: [database.execute("delete from z1 where b between ? and ?", span) for span in spans[: len(spans) // 4]],
            lambda: database.execute("insert into z1 select * from z2"),
            lambda: database.execute("select z1.a, z2.b from z1 join z2 on z1.b = z2.a order by z2.c limit 1000").fetchall(),
            lambda: database.execute("delete from z2"),
            lambda: database.execute("analyze"),
        ]  # fmt: skip
        for step in steps:
            database.execute("begin")
            step()
            database.execute("commit")
        database.execute("vacuum")


# ------------------------------------------------------------------------------------------------ tools and data


def pip(take: Take) -> None:
    wheels = take.assets / "wheels"
    if not wheels.exists():
        raise BenchError("pip could not fetch the wheels, or was not allowed to")
    shell(f"cat '{wheels}'/*.whl >/dev/null")
    venv = take.place / "venv"
    python = venv / "bin" / "python"
    with take.timed("app-pip"):
        run([sys.executable, "-m", "venv", venv])
        options: list[Word] = [
            "--no-index",
            "--find-links",
            wheels,
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--quiet",
        ]
        run([python, "-m", "pip", "install", *options, *take.sizes.wheels], env={"PIP_CONFIG_FILE": os.devnull})
    run([python, "-c", "; ".join(f"import {name}" for name in take.sizes.wheels)])


def gcc(take: Take) -> None:
    project = take.place / "project"
    run(["cp", "-r", take.assets / "project", project])
    cold(take)
    run(["make", "-C", take.assets / "project", "-n"])  # compiler and system headers are warm for everybody
    run(["gcc", "-O1", "-c", "-o", os.devnull, take.assets / "project" / "main.c"])
    with take.timed("app-gcc"):
        run(["make", "-C", project, "-s", "-j2"])
    run([project / "program"])


def pandas(take: Take) -> None:
    data = take.place / "data"
    run(["cp", "-r", take.assets / "data", data])
    cold(take)
    job: list[Word] = [sys.executable, "-m", "benchmarks.macro.data_job"]
    run([*job, "imports"], cwd=REPO)  # the libraries are warm for everybody
    with take.timed("app-pandas"):
        out = run([*job, "work", data], cwd=REPO)
    if out != run([*job, "work", take.assets / "data"], cwd=REPO):
        raise BenchError(f"the job's result differs from that on the plain copy: {out[:200]}")


def git(take: Take) -> None:
    clone = take.place / "clone"
    command: list[Word] = [
        "git",
        "-C",
        clone,
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@localhost",
        "-c",
        "gc.auto=0",
    ]
    with take.timed("app-git"):
        run(["git", "clone", "-q", "--no-local", take.assets / "repository.git", clone])
        run([*command, "checkout", "-q", "main"])
        for path in sorted(clone.rglob("*.c"))[::20]:
            with path.open("a") as file:
                file.write("edited;\n")
        run([*command, "status", "--porcelain"])
        run([*command, "commit", "-q", "-a", "-m", "edit"])
        run([*command, "gc", "-q"])
    run([*command, "fsck", "--strict"])
    if run([*command, "status", "--porcelain"]):
        raise BenchError("git status: the tree is not clean after the commit")


VISITS: Final[dict[str, Callable[[Take], None]]] = {
    "nginx": nginx,
    "mariadb": maria,
    "speedtest": speedtest,
    "pip": pip,
    "gcc": gcc,
    "pandas": pandas,
    "appgit": git,
}
