"""What an administrator uses: mount(8), umount(8), fstab, systemd, and options that act by themselves.

`fspf setup` writes to /sbin for a moment; what was there before comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fspf.cli.setup import LINKS, UNIT, unit_text
from tests.support.mounted import REPO, Site, is_running


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


@pytest.fixture
def helpers(site: Site) -> Iterator[None]:
    """mount(8) and umount(8) know FSPF."""
    paths = [f"/{name}" for name in LINKS] + [f"/etc/systemd/system/{UNIT}"]
    kept = site.root / "kept"
    kept.mkdir()
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        shutil.copy2(path, kept / path.replace("/", "_"), follow_symlinks=False)
    site.run("setup", "-q")
    yield
    site.run("setup", "--remove", "-q")
    for path in there:
        shutil.copy2(kept / path.replace("/", "_"), path, follow_symlinks=False)


def system(site: Site, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), env=site.environment, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def mounted_line(site: Site) -> str:
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        return next((line for line in lines if f" {site.mountpoint} " in line), "")


# -- by mount, umount and fstab


@pytest.mark.parametrize("kind", ["fspf", "fuse.fspf"])
def test_mount_8_and_umount_8(site: Site, helpers: None, kind: str) -> None:
    options = f"cas={site.cas_url},log={site.log},noatime,commit=3"
    done = system(site, "mount", "-t", kind, "-o", options, site.volume, site.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert f" - fuse.fspf {site.volume} " in mounted_line(site)
    assert {"nosuid", "nodev", "noatime"} <= set(mounted_line(site).split()[5].split(","))
    for number in range(100):
        (site.mountpoint / str(number)).write_bytes(os.urandom(20_000))
    pid = site.pid
    done = system(site, "umount", *(["-c"] if kind == "fspf" else []), site.mountpoint)  # systemd says -c
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_running(pid)  # umount(8) has waited for the last commit
    assert str(site.mountpoint) not in Path("/run/mount/utab").read_text()
    with site.library(read_only=True) as volume:
        status = volume.status()
        assert status["generation"] == status["anchored_generation"]
        assert len(volume.listdir("/")) == 100


def test_mount_8_tells_why(site: Site, helpers: None) -> None:
    for options, code, text in (
        ("frobnicate", 1, "unknown mount option 'frobnicate'"),
        (f"cas={site.root}/none.sqlite", 32, "none.sqlite"),
        ("remount,ro", 32, ""),
    ):
        done = system(site, "mount", "-t", "fspf", "-o", f"log={site.log},{options}", site.volume, site.mountpoint)
        assert done.returncode == code, done
        assert text in done.stderr
    assert not site.is_mounted()
    done = system(site, "mount", "-s", "-f", "-t", "fspf", "-o", "frobnicate", site.volume, site.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")  # sloppy, and fake
    assert not site.is_mounted()
    site.allow("CRITICAL")


def test_umount_8_tells_why(site: Site, helpers: None) -> None:
    site.mount()
    with subprocess.Popen(["sleep", "60"], cwd=site.mountpoint) as user:
        done = system(site, "umount", site.mountpoint)
        assert done.returncode == 32
        assert f"sleep ({user.pid}) works in {site.mountpoint}" in done.stderr
        assert site.is_mounted()
        assert system(site, "umount", "-l", site.mountpoint).returncode == 0
        pid = int(site.read_log().split("fspf[")[1].split("]")[0])
        user.kill()
    site.wait_gone(pid)
    assert "everything is committed" in site.read_log()


def test_fstab(site: Site, helpers: None) -> None:
    fstab = site.root / "fstab"
    words = "defaults,nofail,_netdev,x-systemd.requires=network-online.target,X-mount.mkdir,noexec,relatime"
    fstab.write_text(f"{site.volume} {site.mountpoint} fspf {words},cas={site.cas_url},log={site.log} 0 0\n")
    for _ in range(2):  # the second time it is there already, and that is no error
        done = system(site, "mount", "-a", "-T", fstab)
        assert (done.returncode, done.stderr) == (0, "")
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        assert sum(f" {site.mountpoint} " in line for line in lines) == 1
    assert system(site, "findmnt", "-n", "-o", "SOURCE", site.mountpoint).stdout.strip() == str(site.volume)
    (site.mountpoint / "f").write_text("x")
    assert system(site, "mount", "-o", "remount,ro", site.mountpoint).returncode == 0
    with pytest.raises(OSError, match="Read-only"):
        (site.mountpoint / "g").touch()
    done = system(site, "mount", "-T", fstab, "-o", "remount,rw", site.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(mounted_line(site).split()[5].split(","))
    (site.mountpoint / "g").touch()
    assert system(site, "umount", site.mountpoint).returncode == 0
    assert not site.is_mounted()


def test_umount_after_remounting_read_only(site: Site) -> None:
    site.mount()
    (site.mountpoint / "f").write_text("x")
    subprocess.run(["mount", "-i", "-o", "remount,ro", str(site.mountpoint)], check=True)
    done = site.umount()
    assert "only in its log" in done.stderr
    assert "everything is committed" in site.read_log()
    site.mount()
    assert (site.mountpoint / "f").read_text() == "x"


# -- fspf setup


def test_setup_keeps_its_hands_off_what_is_not_its_own(site: Site) -> None:
    image = site.root / "image"
    (image / "sbin").mkdir(parents=True)
    (image / "etc/systemd/system").mkdir(parents=True)
    foreign = image / "sbin/mount.fuse.fspf"
    foreign.write_text("#!/bin/sh\n")
    done = site.run("setup", "--root", image, check=1)
    assert "is not from fspf setup: nothing was changed" in done.stderr
    assert os.listdir(image / "sbin") == ["mount.fuse.fspf"]
    foreign.unlink()
    for _ in range(2):  # again: an update
        installed = json.loads(site.run("setup", "--root", image, "--json").stdout)["installed"]
        assert sorted(installed) == sorted(f"{image}/{name}" for name in (*LINKS, f"etc/systemd/system/{UNIT}"))
        assert all(os.path.exists(path) for path in installed)
    (image / "etc/systemd/system" / UNIT).write_text("[Unit]\n")
    site.run("setup", "--root", image, "--remove", check=1)
    (image / "etc/systemd/system" / UNIT).unlink()
    removed = json.loads(site.run("setup", "--root", image, "--remove", "--json").stdout)["removed"]
    assert sorted(removed) == sorted(f"{image}/{name}" for name in LINKS)
    assert os.listdir(image / "sbin") == []


# -- systemd


def test_systemd_accepts_the_units(site: Site) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no-program: systemd-analyze (Debian package systemd)")
    unit = site.root / "fspf@data.service"
    unit.write_text(unit_text(sys.executable))
    example = shutil.copy(REPO / "fspf/mount/units/mnt-data.mount", site.root)
    for path in (unit, example):
        done = system(site, "systemd-analyze", "verify", "--man=no", path)
        assert (done.returncode, done.stderr) == (0, ""), path


def test_the_unit_gives_the_service_no_mounts_of_its_own() -> None:
    """Any of these makes the service's mount invisible to everybody else, and nothing says so."""
    private = [
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateUsers",
        "ProtectSystem",
        "ProtectHome",
        "ProtectKernelTunables",
        "ProtectControlGroups",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectProc",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "TemporaryFileSystem",
        "BindPaths",
        "BindReadOnlyPaths",
        "RootDirectory",
        "RootImage",
        "MountImages",
        "MountFlags",
        "DynamicUser",
        "StateDirectory",
    ]
    keys = {line.partition("=")[0] for line in unit_text("fspf").splitlines() if not line.startswith("#")}
    assert keys.isdisjoint(private)


class Systemd:
    """Plays systemd for one service: starts what the unit says, and hears what it is told."""

    def __init__(self, site: Site, channel: socket.socket) -> None:
        self.site = site
        self.channel = channel
        self.heard: list[str] = []
        self.environment = {
            **site.environment,
            "NOTIFY_SOCKET": channel.getsockname(),
            "FSPF_VOLUME": str(site.volume),
            "FSPF_MOUNTPOINT": str(site.mountpoint),
            "FSPF_OPTIONS": "noatime,commit=60",
        }

    def command(self, key: str) -> list[str]:
        line = next(line for line in unit_text("FSPF").splitlines() if line.startswith(f"{key}="))
        words = shlex.split(line.partition("=")[2].lstrip("-"))
        for name, value in self.environment.items():
            words = [word.replace(f"${{{name}}}", value) for word in words]
        assert words[0] == "FSPF"
        return [*self.site.command(), *words[1:]]

    def hear(self, text: str, seconds: float = 20.0) -> None:
        """Wait for a message."""
        deadline = time.monotonic() + seconds
        while not any(text in message for message in self.heard):
            self.channel.settimeout(max(deadline - time.monotonic(), 0.01))
            self.heard.append(self.channel.recv(4096).decode())


@pytest.fixture
def systemd(site: Site) -> Iterator[Systemd]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(site.root / "notify"))
        yield Systemd(site, channel)


@contextlib.contextmanager
def cas_is_stuck(site: Site) -> Iterator[None]:
    """Nobody gets through to the CAS, and it does not say no either."""
    with contextlib.closing(sqlite3.connect(site.root / "cas.sqlite", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.execute("ROLLBACK")


@pytest.mark.parametrize("stop", ["ExecStop", "SIGTERM"])
def test_the_unit_starts_and_stops_and_is_waited_for(site: Site, systemd: Systemd, stop: str) -> None:
    service = subprocess.Popen(systemd.command("ExecStart"), env=systemd.environment, stderr=subprocess.PIPE, text=True)
    systemd.hear("READY=1")
    systemd.hear(f"STATUS={site.volume} on {site.mountpoint}: writable, generation ")
    (site.mountpoint / "f").write_text("kept")
    with cas_is_stuck(site):
        stopping = None
        if stop == "ExecStop":
            stopping = subprocess.Popen(systemd.command("ExecStop"), env=site.environment, stderr=subprocess.PIPE)
        else:
            service.send_signal(signal.SIGTERM)
            systemd.hear("STOPPING=1")
        systemd.hear("EXTEND_TIMEOUT_USEC=")  # nobody is to lose patience while the CAS keeps us waiting
        assert service.poll() is None
    _, text = service.communicate(timeout=60)
    assert service.returncode == 0, text
    if stopping is not None:
        _, words = stopping.communicate(timeout=60)
        assert stopping.returncode == 0, words
    systemd.hear("STOPPING=1")
    systemd.hear("waiting until the last commit")
    assert subprocess.run(systemd.command("ExecStopPost"), env=site.environment).returncode == 0
    site.mount()
    assert (site.mountpoint / "f").read_text() == "kept"


def test_the_unit_clears_a_dead_mount_before_it_is_started_again(site: Site, systemd: Systemd) -> None:
    service = subprocess.Popen(systemd.command("ExecStart"), env=systemd.environment, stderr=subprocess.DEVNULL)
    systemd.hear("READY=1")
    service.kill()
    service.wait()
    wait_until(lambda: site.run("status", site.mountpoint, check=1).stderr.find("gone") > 0)
    assert subprocess.run(systemd.command("ExecStopPost"), env=site.environment).returncode == 0
    assert not site.is_mounted()
    site.mount()
    assert subprocess.run(systemd.command("ExecStopPost"), env=site.environment).returncode == 0
    assert site.is_mounted()  # it lives


# -- options that act by themselves


def test_an_idle_mount_goes_and_commits(site: Site) -> None:
    site.mount("idle=1s", "commit=1h")
    with (site.mountpoint / "f").open("w") as file:
        file.write("x")
        file.flush()
        pid = site.pid
        for _ in range(8):
            time.sleep(0.25)
            site.status()  # looking is no use …
        assert site.is_mounted()  # … but an open file is
    wait_until(lambda: not site.is_mounted(), 10)
    site.wait_gone(pid)
    assert "without use" in site.read_log()
    with site.library(read_only=True) as volume:
        assert volume.listdir("/") == ["f"]


def test_an_idle_mount_stays_while_somebody_works_in_it(site: Site) -> None:
    site.mount("idle=500ms")
    with subprocess.Popen(["sleep", "60"], cwd=site.mountpoint) as user:
        time.sleep(2.0)
        assert site.is_mounted()
        user.kill()
    wait_until(lambda: not site.is_mounted(), 10)


def test_metrics_in_a_file(site: Site) -> None:
    path = site.root / "fspf.prom"
    site.mount(f"metrics={path}")
    wait_until(path.exists)
    values = {
        sample.name: sample for family in text_string_to_metric_families(path.read_text()) for sample in family.samples
    }
    assert values["fspf_generation"].labels["mountpoint"] == str(site.mountpoint)
    assert values["fspf_cache_limit_bytes"].value == 128 << 20
    text = site.run("status", site.mountpoint, "--prometheus").stdout
    assert {family.name for family in text_string_to_metric_families(text)} >= {"fspf_requests", "fspf_failed"}
    site.umount()
    assert not path.exists()
    done = site.mount(f"metrics={site.mountpoint}/m.prom", check=2)
    assert "cannot be kept on the mount" in done.stderr


def test_metrics_that_cannot_be_written_are_no_reason_to_stop(site: Site) -> None:
    site.mount("metrics=/proc/nowhere/m.prom")
    wait_until(lambda: "metrics cannot be written" in site.read_log())
    (site.mountpoint / "f").write_text("x")
    site.allow("metrics cannot be written")


def test_auto_unmount(site: Site) -> None:
    site.mount("auto_unmount")
    (site.mountpoint / "f").write_text("x")
    os.sync()
    os.kill(site.pid, signal.SIGKILL)
    wait_until(lambda: not site.is_mounted())
    site.mount("auto_unmount")
    site.umount()  # and in order, too
    assert not site.is_mounted()


def test_auto_unmount_leaves_a_later_mount_alone(site: Site) -> None:
    site.mount("auto_unmount")
    pid = site.pid
    system(site, "umount", "-i", "-l", site.mountpoint)
    site.wait_gone(pid)
    site.mount()
    time.sleep(0.3)
    assert site.is_mounted()


def test_status_counts(site: Site, mnt: Path) -> None:
    before = site.status()
    (mnt / "f").write_bytes(b"x" * 1_000_000)
    with (mnt / "f").open("rb") as file:
        os.fsync(file.fileno())
        after = site.status()
    assert after["counters"]["requests"] > before["counters"]["requests"]
    assert after["counters"]["written_bytes"] - before["counters"]["written_bytes"] == 1_000_000
    assert after["memory_bytes"] > 10 << 20
    assert after["anchor_lag"] == 0
    text = site.run("status", mnt).stdout
    for word in ("requests:", "memory:", "976.6 KiB written", "caches", "128.0 MiB"):
        assert word in text
    with subprocess.Popen(
        site.command("status", mnt, "--watch", "0.2"), env=site.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[0] == "requests/s"
        line = process.stdout.readline().split()
        process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert int(line[0]) >= 0
    done = site.run("status", mnt, "--watch", "1", "--json", check=2)
    assert "exclude each other" in done.stderr


def test_the_cache_is_what_was_asked_for(site: Site) -> None:
    site.run("mount", site.volume, site.mountpoint, "--log", site.log, "--cache", "2M")
    assert site.status()["cache_limit_bytes"] == 2 << 20
    with (site.mountpoint / "f").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    for _ in range(3):
        with (site.mountpoint / "f").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(1 << 20):
                pass
    assert site.status()["counters"]["cache_bytes"] <= 2 << 20


def test_a_read_only_disk_hints_at_the_option(site: Site) -> None:
    subprocess.run(["mount", "--bind", str(site.volume), str(site.volume)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(site.volume)], check=True)
        assert "mount the volume with -o ro" in site.mount(check=1).stderr
        site.mount("ro")
        assert site.status()["read_only"]
        site.umount()
    finally:
        subprocess.run(["umount", str(site.volume)], check=True)
    site.allow("CRITICAL")


def test_a_label_is_refused_where_selinux_is_off(site: Site) -> None:
    if os.path.exists("/sys/fs/selinux/enforce"):
        pytest.skip("kernel: SELinux is on here")
    done = site.mount("context=system_u:object_r:tmp_t:s0", check=1)
    assert "SELinux is off" in done.stderr
    assert not site.is_mounted()
    site.allow("CRITICAL")


def test_sync_makes_every_write_durable(site: Site) -> None:
    site.mount("sync", "commit=1h")
    before = site.status()["generation"]
    (site.mountpoint / "f").write_text("x")
    assert site.status()["generation"] > before


# -- keys stay out of core dumps


def test_commands_with_keys_cannot_be_dumped(site: Site) -> None:
    fifo = site.root / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(
        site.command("passwd", "--new-passphrase-file", fifo), env=site.environment, stderr=subprocess.DEVNULL
    ) as process:  # it waits for somebody to write into the fifo
        wait_until(lambda: limit_of(process.pid, "Max core file size") == ["0", "0", "bytes"])
        wait_until(lambda: os.stat(f"/proc/{process.pid}/environ").st_uid == 0)
        process.kill()


def limit_of(pid: int, name: str) -> list[str]:
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        return next(line[26:].split() for line in file if line.startswith(name))
