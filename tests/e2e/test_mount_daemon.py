"""The life of a mount: starting, refusing, ending, dying, and what the caller is told.

Operations on files are in test_mount_operations.py.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.mounted import Site, as_nobody, is_running


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda exc: exc.errno == number)


# -- starting


def test_mount_returns_when_the_mount_answers(site: Site) -> None:
    done = site.run("mount", site.volume, site.mountpoint, "--log", site.log, "--json")
    document = json.loads(done.stdout)
    assert document["mountpoint"] == str(site.mountpoint)
    assert is_running(document["pid"])
    assert os.listdir(site.mountpoint) == []
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        line = next(line for line in lines if f" {site.mountpoint} " in line)
    assert " - fuse.fspf fspf\\043/" in line
    assert "nosuid,nodev" in line


def test_the_daemon_keeps_nothing_of_its_caller(site: Site) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*site.command("mount", site.volume, site.mountpoint, "--log", site.log)],
        env=site.environment,
        cwd=site.root,
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(writer,),
    ) as process:
        os.close(writer)
        assert process.stdout is not None
        assert process.stdout.read() == b""  # ends although the daemon lives
    assert process.returncode == 0
    assert os.read(reader, 1) == b""  # so does any other pipe
    os.close(reader)
    pid = site.pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert os.readlink(f"/proc/{pid}/fd/0") == os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
    assert os.getsid(pid) != os.getsid(0)
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        limits = {line[:26].strip(): line[26:].split()[:2] for line in file}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"][0] == limits["Max open files"][1]
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert status["PPid"] != str(os.getpid())
    assert int(status["Umask"], 8) & 0o077 == 0o077
    assert os.stat(f"/proc/{pid}/environ").st_uid == 0


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        pytest.param(["nowhere", "mnt"], 1, "no such volume", id="no volume"),
        pytest.param(["empty", "mnt"], 1, "volume", id="not a volume"),
        pytest.param(["volume", "nowhere"], 1, "No such file", id="no mountpoint"),
        pytest.param(["volume", "file"], 1, "not a directory", id="a file as mountpoint"),
        pytest.param(["volume", "full"], 1, "not empty", id="full mountpoint"),
        pytest.param(["volume", "volume"], 2, "inside", id="onto itself"),
        pytest.param(["volume", "volume/segments"], 2, "inside", id="into the volume"),
        pytest.param(["volume", "."], 2, "inside", id="over the volume"),
        pytest.param(["volume", "mnt", "-o", "frobnicate"], 2, "unknown mount option 'frobnicate'", id="option"),
        pytest.param(["volume", "mnt", "-o", "commit=never"], 2, "commit=never", id="commit"),
        pytest.param(["volume", "mnt", "-o", "cache=1"], 2, "cache=1", id="cache"),
        pytest.param(["volume", "mnt", "--log", "mnt/log"], 2, "log", id="log on the mount"),
        pytest.param(["volume", "mnt", "--log", "nowhere/log"], 1, "nowhere/log", id="no log"),
        pytest.param(["volume", "mnt", "--cas", "sqlite:///dev/shm/nowhere/cas"], 23, "", id="no CAS"),
    ],
)
def test_errors_reach_the_caller(site: Site, words: list[str], exit_code: int, text: str) -> None:
    for name in ("empty", "full/below"):
        (site.root / name).mkdir(parents=True)
    (site.root / "file").touch()
    done = site.run("mount", *words, check=exit_code)
    assert done.stdout == ""
    assert done.stderr.startswith("fspf: error: ")
    assert text in done.stderr
    assert not site.is_mounted()
    site.allow("CRITICAL")


def test_a_full_mountpoint_is_hidden_if_asked(site: Site) -> None:
    (site.mountpoint / "below").touch()
    site.mount(check=1)
    site.mount("nonempty")
    assert os.listdir(site.mountpoint) == []
    site.umount()
    assert os.listdir(site.mountpoint) == ["below"]


def test_a_second_mount_of_the_volume_names_the_holder(site: Site) -> None:
    site.mount()
    other = site.root / "other"
    other.mkdir()
    done = site.run("mount", site.volume, other, "--log", site.root / "log2", check=22)
    assert str(site.pid) in done.stderr
    assert str(site.mountpoint) in done.stderr
    assert os.listdir(other) == []
    done = site.run("mount", site.volume, site.mountpoint, check=1)
    assert "mounted" in done.stderr
    site.run("mount", site.volume, other, "-o", "ro", "--log", site.root / "log3")  # readers need no lease
    site.run("umount", other)


def test_an_altered_volume_is_refused(site: Site) -> None:
    header = site.volume / "header"
    raw = bytearray(header.read_bytes())
    raw[100] ^= 1
    header.write_bytes(raw)
    done = site.mount(check=20)
    assert "header" in done.stderr
    site.allow("CRITICAL")


def test_a_passphrase_is_asked_by_the_caller(site: Site) -> None:
    secret = site.root / "secret"
    secret.write_text("correct horse\n")
    site.run("passwd", "--new-passphrase-file", secret)
    wrong = site.root / "wrong"
    wrong.write_text("incorrect horse\n")
    site.run("mount", site.volume, site.mountpoint, "--log", site.log, check=24)
    site.run("mount", site.volume, site.mountpoint, "--log", site.log, "--passphrase-file", wrong, check=24)
    site.run("mount", site.volume, site.mountpoint, "--log", site.log, "--passphrase-file", secret)
    (site.mountpoint / "f").write_text("x")
    site.allow("CRITICAL")


def test_in_the_foreground_it_logs_to_stderr_and_tells_systemd(site: Site) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        address = str(site.root / "notify")
        systemd.bind(address)
        systemd.settimeout(20)
        process = subprocess.Popen(
            site.command("mount", "-f", site.volume, site.mountpoint),
            env={**site.environment, "NOTIFY_SOCKET": address},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert systemd.recv(1000).startswith(b"READY=1")
        (site.mountpoint / "f").write_text("x")
        assert site.pid == process.pid
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=30)
        states: list[bytes] = []
        while not states or not states[-1].startswith(b"STOPPING=1"):
            states.append(systemd.recv(1000))
    assert process.returncode == 0
    assert "is mounted on" in text
    assert "everything is committed" in text
    assert not site.is_mounted()


# -- status


def test_status(site: Site, mnt: Path) -> None:
    (mnt / "f").write_bytes(b"x" * 10_000)
    status = site.status()
    assert status["path"] == str(site.volume)
    assert status["cas"] == site.cas_url
    assert status["mountpoint"] == str(mnt)
    assert status["options"] == ["allow_other"]
    assert status["failed"] is None
    with (mnt / "f").open("ab") as file:
        os.fsync(file.fileno())
    status = site.status()
    assert status["generation"] == status["anchored_generation"] > 1
    text = site.run("status", mnt).stdout
    assert f"{status['generation']}, anchored {status['anchored_generation']}" in text
    assert "user.fspf.status" not in os.listxattr(mnt)


def test_only_mounts_have_a_status(site: Site) -> None:
    for place in (site.mountpoint, site.root, "/"):
        for command in ("status", "umount"):
            done = site.run(command, place, check=1)
            assert "mount" in done.stderr


def test_others_may_not_ask(site: Site, mnt: Path) -> None:
    site.open_to_others()
    for call in (
        "os.getxattr(sys.argv[1], 'user.fspf.status')",
        "os.setxattr(sys.argv[1], 'user.fspf.control', b'commit')",
    ):
        assert as_nobody(call, mnt) == errno.EPERM
    with refused(errno.EINVAL):
        os.setxattr(mnt, "user.fspf.control", b"self-destruct")


def test_control_commits(site: Site, mnt: Path) -> None:
    before = site.status()["anchored_generation"]
    (mnt / "f").write_text("x")
    os.setxattr(mnt, "user.fspf.control", b"commit")
    assert site.status()["anchored_generation"] > before


# -- ending


def test_umount_waits_for_the_anchor(site: Site, mnt: Path) -> None:
    for number in range(200):
        (mnt / f"f{number}").write_bytes(os.urandom(50_000))
    pid = site.pid
    site.umount()
    assert not is_running(pid)
    with site.library(read_only=True) as volume:
        assert len(volume.listdir("/")) == 200
        status = volume.status()
        assert status["generation"] == status["anchored_generation"]


def test_umount_names_who_uses_the_mount(site: Site, mnt: Path) -> None:
    user = subprocess.Popen(["sleep", "60"], cwd=mnt)
    try:
        done = site.umount(check=1)
        assert f"sleep ({user.pid}) works in {mnt}" in done.stderr
        assert site.is_mounted()
        (mnt / "still").write_text("alive")
        pid = site.pid
        done = site.umount("-z")
        assert not site.is_mounted()
        assert is_running(pid)
    finally:
        user.kill()
        user.wait()
    site.wait_gone(pid)
    site.mount()
    assert (mnt / "still").read_text() == "alive"


def test_umount_by_others_commits_too(site: Site, mnt: Path) -> None:
    (mnt / "f").write_text("x" * 100_000)
    pid = site.pid
    subprocess.run(["umount", str(mnt)], check=True)
    site.wait_gone(pid)
    site.mount()
    assert (mnt / "f").read_text() == "x" * 100_000
    pid = site.pid
    (mnt / "g").write_text("y")
    subprocess.run(["fusermount3", "-u", str(mnt)], check=True)
    site.wait_gone(pid)
    site.mount()
    assert (mnt / "g").read_text() == "y"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_commits(site: Site, mnt: Path, number: signal.Signals) -> None:
    with (mnt / "f").open("wb") as file:
        file.write(b"x" * 3_000_000)
    pid = site.pid
    os.kill(pid, number)
    for _ in range(5):  # impatience does no harm
        time.sleep(0.005)
        if is_running(pid):
            os.kill(pid, number)
    site.wait_gone(pid)
    assert not site.is_mounted()
    site.mount()
    assert (mnt / "f").read_bytes() == b"x" * 3_000_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_mounting_is_not_lost(site: Site, number: signal.Signals) -> None:
    """As `systemctl stop` right after the start: the daemon that did not hear it served for ever."""
    with open("/proc/self/mountinfo", "rb") as mounts:
        watch = select.poll()
        watch.register(mounts, select.POLLPRI | select.POLLERR)
        process = subprocess.Popen(
            site.command("mount", "-f", site.volume, site.mountpoint), env=site.environment, stderr=subprocess.DEVNULL
        )
        try:
            while not site.is_mounted():
                assert process.poll() is None
                watch.poll(1000)
            process.send_signal(number)  # nothing is answered yet: the daemon has only just called mount(2)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
    assert not site.is_mounted()
    site.mount()  # the lease and the lock were given back


WRITER = """
import os, sys
number = 0
while True:
    with open(f"{sys.argv[1]}/{number}", "wb") as file:
        file.write(b"%d" % number * 1000)
        file.flush()
        if number % 10 == 0:
            os.fsync(file.fileno())
            print(number, flush=True)
    number += 1
"""


def test_a_signal_during_writes(site: Site, mnt: Path) -> None:
    """Whoever still writes is cut off with an error; what was acknowledged is there, and files are whole or absent."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(mnt)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert writer.stdout is not None
    synced = [int(writer.stdout.readline()) for _ in range(5)]
    pid = site.pid
    os.kill(pid, signal.SIGTERM)
    site.wait_gone(pid)
    writer.kill()
    rest, _ = writer.communicate(timeout=20)
    synced += [int(line) for line in rest.split()]
    assert not site.is_mounted()
    for name in os.listdir(mnt):  # the writer may have gone on into the directory below
        (mnt / name).unlink()
    site.mount()
    for number in synced:
        if number <= 40:
            assert (mnt / str(number)).read_bytes() == b"%d" % number * 1000
    site.allow("in use")


def test_a_signal_takes_the_mount_from_those_who_stay(site: Site, mnt: Path) -> None:
    (mnt / "f").write_text("kept")
    descriptor = os.open(mnt / "f", os.O_RDWR)
    pid = site.pid
    os.pwrite(descriptor, b"KEPT", 0)
    os.kill(pid, signal.SIGTERM)
    site.wait_gone(pid)
    assert not site.is_mounted()
    with refused(errno.ENOTCONN):
        os.listxattr(descriptor)
    os.close(descriptor)  # asks nobody: the kernel sends no FLUSH
    site.mount()
    assert (mnt / "f").read_text() == "KEPT"
    site.allow("in use")


# -- dying


def test_after_a_crash_the_mount_is_dead_and_synced_data_safe(site: Site, mnt: Path) -> None:
    (mnt / "synced").write_text("safe")
    with (mnt / "synced").open() as file:
        os.fsync(file.fileno())
    (mnt / "unsynced").write_text("lost or whole")
    site.kill()
    with refused(errno.ENOTCONN):
        os.listdir(mnt)
    with refused(errno.ENOTCONN):
        (mnt / "new").write_text("never in the directory below")
    assert "gone" in site.run("status", mnt, check=1).stderr
    done = site.mount(check=1)
    assert "fspf umount" in done.stderr
    site.detach_dead()
    assert os.listdir(mnt) == []
    site.mount()  # the dead daemon's lease is no obstacle
    assert (mnt / "synced").read_text() == "safe"
    assert not (mnt / "unsynced").exists() or (mnt / "unsynced").read_text() == "lost or whole"


def test_a_crash_while_files_are_unlinked_but_open(site: Site, mnt: Path) -> None:
    descriptor = os.open(mnt / "gone", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"x" * 1_000_000)
    os.fsync(descriptor)
    (mnt / "gone").unlink()
    os.fsync(descriptor)
    site.kill()
    with refused(errno.ENOTCONN):
        os.listxattr(descriptor)
    os.close(descriptor)
    site.detach_dead()
    site.mount()
    assert os.listdir(mnt) == []
    assert site.status()["files"] == 1


def test_umount_tells_of_a_lost_lease_and_can_be_forced(site: Site, mnt: Path) -> None:
    (mnt / "f").write_text("committed")
    os.setxattr(mnt, "user.fspf.control", b"commit")
    take_lease(site)
    (mnt / "g").write_text("never")
    with refused(errno.EROFS), (mnt / "g").open() as file:
        os.fsync(file.fileno())
    with refused(errno.EROFS):
        (mnt / "h").touch()
    assert (mnt / "f").read_text() == "committed"  # reading goes on
    assert site.status()["failed"]
    done = site.umount(check=None)
    assert done.returncode != 0
    assert "stays mounted" in done.stderr
    assert site.is_mounted()
    done = site.umount("--force", check=None)
    assert done.returncode != 0
    assert not site.is_mounted()
    site.allow("WARNING|ERROR|CRITICAL")


def take_lease(site: Site) -> None:
    """Let the daemon's lease be ended in the CAS, as after a long absence of its machine."""
    from fspf.cas import open_cas

    cas = open_cas(site.cas_url, create=False)
    try:
        record = cas.list()[0]
        assert record.lease is not None
        cas.release(record.volume_id, record.lease)
    finally:
        cas.close()


def test_a_guarded_mountpoint_takes_no_plain_text(site: Site) -> None:
    done = site.run("mount", "--guard", site.volume, site.mountpoint, "--log", site.log, check=None)
    if done.returncode != 0:
        assert "immutable" in done.stderr
        pytest.skip("filesystem: the scratch directory knows no immutable attribute")
    try:
        (site.mountpoint / "f").write_text("x")
        site.umount()
        with refused(errno.EPERM):
            (site.mountpoint / "plain").write_text("never")
        site.mount()
        assert (site.mountpoint / "f").read_text() == "x"
        site.umount()
    finally:
        subprocess.run(["chattr", "-i", str(site.mountpoint)], check=True)


def test_an_aborted_connection_ends_with_a_commit_and_never_with_an_empty_directory(site: Site, mnt: Path) -> None:
    (mnt / "f").write_text("x")
    subprocess.run(["sync", "-f", str(mnt)], check=True)
    pid = site.pid
    connections = site.root / "connections"
    connections.mkdir()
    minor = os.minor(mnt.stat().st_dev)
    subprocess.run(["mount", "-t", "fusectl", "none", str(connections)], check=True)
    try:
        (connections / str(minor) / "abort").write_text("1")
    finally:
        subprocess.run(["umount", str(connections)], check=True)
    site.wait_gone(pid)
    with refused(errno.ENOTCONN):
        os.listdir(mnt)
    site.detach_dead()
    site.mount()
    assert (mnt / "f").read_text() == "x"


def test_a_read_only_mount_after_a_crash_shows_what_only_the_intent_log_has(site: Site) -> None:
    """What was replayed is in memory only: the data plane must not read past it."""
    site.allow("root.[ab]: |keyring: ")
    site.mount("commit=60")
    path = site.mountpoint / "f"
    for content in (b"the first commit of a writer is a root", b"the second one is a record " * 1000):
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    site.kill()
    site.detach_dead()
    for options in (("ro",), ("ro", "nonative"), ()):
        site.mount(*options)
        assert path.stat().st_size == 27000, options
        assert path.read_bytes() == b"the second one is a record " * 1000, options
        site.umount()
