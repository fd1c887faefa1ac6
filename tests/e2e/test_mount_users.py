"""Mounts of users other than root, in a user namespace, in a container; and root among them.

What root may do with its own mounts is in test_mount_daemon.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounted import REPO, Site, need_fuse
from tests.support.ordinary import DEVICE, NOBODY, Ordinary, device_for_all, make_ordinary, python


@pytest.fixture
def user(scratch: Path) -> Iterator[Ordinary]:
    """A user with a volume, who may open /dev/fuse."""
    need_fuse()
    with device_for_all():
        yield from make_ordinary(scratch)


def mount_line(place: Path) -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        return next((line for line in lines if f" {place} " in line), "")


# -- fusermount3


def test_a_user_mounts_and_unmounts(user: Ordinary) -> None:
    user.mount()
    assert f" - fuse.fspf fspf\\043{user.volume} " in mount_line(user.mountpoint)
    assert "nosuid,nodev" in mount_line(user.mountpoint)
    done = user.run(
        "sh", "-c", "echo hello > mnt/f && mkdir mnt/d && mv mnt/f mnt/d && cat mnt/d/f && stat -c %u mnt/d/f"
    )
    assert done.stdout == f"hello\n{NOBODY}\n", done.stderr
    status = json.loads(user.fspf("status", user.mountpoint, "--json").stdout)
    assert status["counters"]["requests"] > 0
    assert json.loads(user.fspf("umount", user.mountpoint, "--json").stdout)["waited"]
    assert not mount_line(user.mountpoint)
    assert "hello" in user.fspf("cat", f"{user.volume}:/d/f").stdout


@pytest.mark.parametrize("command", [["fusermount3", "-u"], ["umount"]])
def test_the_user_unmounts_with_other_programs(user: Ordinary, command: list[str]) -> None:
    user.mount()
    user.run("sh", "-c", "echo kept > mnt/f")
    pid = json.loads(user.fspf("status", user.mountpoint, "--json").stdout)["pid"]
    done = user.run(*command, user.mountpoint)
    assert done.returncode == 0, done.stderr
    Site.wait_gone(pid)
    assert user.fspf("cat", f"{user.volume}:/f").stdout == "kept\n"


def test_the_words_of_fusermount3_reach_the_user(user: Ordinary, scratch: Path) -> None:
    foreign = scratch / "foreign"
    foreign.mkdir()
    done = user.fspf("mount", user.volume, foreign, "--log", user.log, check=1)
    assert "no write access to mountpoint" in done.stderr
    assert "must belong to you" in done.stderr
    with open("/etc/fuse.conf", encoding="utf-8") as file:
        allowed = any(line.strip() == "user_allow_other" for line in file)
    if not allowed:
        done = user.mount("-o", "allow_other", check=1)
        assert "user_allow_other" in done.stderr
        assert "/etc/fuse.conf" in done.stderr
    os.chmod(DEVICE, 0o600)
    done = user.mount(check=1)
    assert "failed to open /dev/fuse: Permission denied" in done.stderr
    assert "0666" in done.stderr
    user.log.unlink()  # these failures were announced


def test_rights_that_only_root_can_give(user: Ordinary) -> None:
    for word in ("suid", "dev"):
        assert "for root" in user.mount("-o", word, check=2).stderr


def test_a_mount_without_allow_other_belongs_to_its_user_alone(user: Ordinary, site: Site) -> None:
    site.mount()
    site.open_to_others()
    done = user.fspf("status", site.mountpoint, check=1)
    assert "belongs to root (0): ask as that user, or as root" in done.stderr
    assert "belongs to root" in user.fspf("umount", site.mountpoint, check=1).stderr
    assert site.is_mounted()


# -- root


def test_root_sees_and_ends_the_mount_of_a_user(user: Ordinary, site: Site) -> None:
    user.mount()
    user.run("sh", "-c", "echo kept > mnt/f")
    with pytest.raises(PermissionError):
        os.listdir(user.mountpoint)
    status = json.loads(site.run("status", user.mountpoint, "--json").stdout)
    assert status["path"] == str(user.volume)
    with subprocess.Popen(["setpriv", f"--reuid={NOBODY}", "--clear-groups", "sleep", "60"], cwd="/") as _sleeper:
        _sleeper.kill()
    assert json.loads(site.run("umount", user.mountpoint, "--json").stdout)["waited"]
    assert not mount_line(user.mountpoint)
    assert user.fspf("cat", f"{user.volume}:/f").stdout == "kept\n"


def test_root_is_told_who_uses_the_mount_of_a_user(user: Ordinary, site: Site) -> None:
    user.mount()
    sleeper = subprocess.Popen(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", "cd mnt && exec sleep 60"],
        cwd=user.home,
    )
    try:
        deadline = time.monotonic() + 20
        while os.readlink(f"/proc/{sleeper.pid}/cwd") != str(user.mountpoint):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        done = site.run("umount", user.mountpoint, check=1)
        assert f"({sleeper.pid}) works in {user.mountpoint}" in done.stderr
    finally:
        sleeper.kill()
        sleeper.wait()
    site.run("umount", user.mountpoint)


def test_root_takes_away_the_dead_mount_of_a_user(user: Ordinary, site: Site) -> None:
    user.mount()
    pid = json.loads(site.run("status", user.mountpoint, "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    Site.wait_gone(pid)
    assert "gone" in site.run("status", user.mountpoint, check=1).stderr
    assert "gone already" in site.run("umount", user.mountpoint).stderr
    assert not mount_line(user.mountpoint)


def test_root_unmounts_what_it_cannot_ask_and_says_so(user: Ordinary, site: Site) -> None:
    user.mount()
    pid = json.loads(site.run("status", user.mountpoint, "--json").stdout)["pid"]
    os.chown(user.home, 0, 0)
    user.home.chmod(0o700)
    assert "who cannot reach it either" in site.run("status", user.mountpoint, check=1).stderr
    done = site.run("umount", user.mountpoint, "--json")
    assert not json.loads(done.stdout)["waited"]
    assert "nobody knows whether its last commit went well" in done.stderr
    Site.wait_gone(pid)
    os.chown(user.home, NOBODY, NOBODY)
    user.home.chmod(0o755)


# -- namespaces

# Interpreter, volume, mountpoint, log.
SCRIPT = """
set -e
test -d "$2" || "$1" -m fspf create -q "$2" > /dev/null
"$1" -m fspf mount "$2" "$3" --log "$4" {options}
grep -c " $3 .* fuse.fspf " /proc/self/mountinfo
echo "from inside" > "$3/f"
"$1" -m fspf status --json "$3" > /dev/null
{end}
"""
OWN: Final = ("unshare", "-Ur", "-m")


def need_user_namespaces(user: Ordinary) -> None:
    if user.run("true", prefix=OWN).returncode != 0:
        pytest.skip("kernel: users may not make user namespaces here")


@pytest.mark.parametrize(
    ("options", "end"),
    [
        pytest.param("", '"$1" -m fspf umount "$3"', id="fspf umount"),
        pytest.param("-o allow_other", 'umount "$3"', id="umount of util-linux"),
    ],
)
def test_in_a_user_namespace(user: Ordinary, options: str, end: str) -> None:
    need_user_namespaces(user)
    made = user.home / "made inside"  # its owners are the numbers of that namespace
    script = SCRIPT.format(options=options, end=end)
    done = user.run("sh", "-c", script, "sh", python()[0], made, user.mountpoint, user.log, prefix=OWN)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    wait_for_the_lease(user, made)
    assert user.fspf("cat", f"{made}:/f").stdout == "from inside\n"
    assert "everything is committed" in user.log.read_text()


def wait_for_the_lease(user: Ordinary, volume: Path) -> None:
    """Wait until the daemon, which nobody waited for, has closed the volume."""
    deadline = time.monotonic() + 30
    while json.loads(user.fspf("info", volume, "--json").stdout)["lease"] is not None:
        assert time.monotonic() < deadline, user.log.read_text()
        time.sleep(0.1)


def container(site: Site, *options: str) -> list[str]:
    """A container of its own root, processes, network and mounts; only what it gets is there."""
    if shutil.which("bwrap") is None:
        pytest.skip("no-program: bwrap (Debian package bubblewrap)")
    given = [path for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc") if os.path.exists(path)]
    prefixes = {str(REPO), sys.prefix, sys.base_prefix}
    binds = [word for path in [*given, *sorted(prefixes)] for word in ("--ro-bind", path, path)]
    return [
        *("bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"),
        *("--tmpfs", "/tmp", *binds),
        *("--proc", "/proc", "--dev", "/dev", "--bind", str(site.root), str(site.root)),
        *options,
    ]


def in_container(site: Site, command: list[str]) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(options="", end='"$1" -m fspf umount "$3"')
    words = ["sh", "-c", script, "sh", sys.executable, site.volume, site.mountpoint, site.log]
    return subprocess.run(
        [*command, *map(str, words)], env=site.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def test_in_a_container_with_the_device(site: Site) -> None:
    done = in_container(site, container(site, "--dev-bind", DEVICE, DEVICE, "--cap-add", "CAP_SYS_ADMIN"))
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert not site.is_mounted()  # outside
    assert site.run("cat", f"{site.volume}:/f").stdout == "from inside\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--cap-add", "CAP_SYS_ADMIN"], "/dev/fuse cannot be opened: No such file or directory", id="no device"),
        pytest.param(["--dev-bind", DEVICE, DEVICE], "CAP_SYS_ADMIN", id="no capability"),
    ],
)  # fmt: skip
def test_a_container_that_lacks_something_says_what(site: Site, options: list[str], message: str) -> None:
    done = in_container(site, container(site, "--cap-drop", "ALL", *options))
    assert done.returncode == 1
    assert message in done.stderr, done.stderr
    site.allow("CRITICAL")


def test_a_container_that_is_killed_loses_only_what_was_not_synced(site: Site) -> None:
    script = SCRIPT.format(options="", end='echo later > "$3/g"; sync "$3/f"; echo ready; sleep 60')
    command = container(site, "--dev-bind", DEVICE, DEVICE, "--cap-add", "CAP_SYS_ADMIN")
    words = ["sh", "-c", script, "sh", sys.executable, str(site.volume), str(site.mountpoint), str(site.log)]
    with subprocess.Popen([*command, *words], env=site.environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    site.mount("ro")  # a writer waits until the lease ends by itself: the holder, of another namespace, cannot be seen
    assert (site.mountpoint / "f").read_text() == "from inside\n"
