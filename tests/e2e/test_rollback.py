"""Old states, forks and stale writers are refused, by the library and by the command line, with both generations named.

The same decisions as tables of values are in tests/unit/core; single altered bytes in tests/tamper.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fspf.cas import EmbeddedCas
from fspf.core.anchor import Anchor, Lease
from fspf.core.errors import (
    AnchorMovedError,
    CasError,
    CasUnreachableError,
    DamagedFileError,
    FreshnessError,
    FspfError,
    IntegrityError,
    LeaseError,
    LeaseHeldError,
    LeaseLostError,
    ReadOnlyError,
    UnknownVolumeError,
    WrongKeyError,
)
from fspf.core.format import ROOT_NAMES
from fspf.core.freshness import Freshness
from fspf.volume.volume import Volume
from tests.support.logs import Quiet
from tests.support.mounted import need_fuse

REPO = Path(__file__).resolve().parents[2]
HOUR_NS = 3_600_000_000_000


class FlakyCas(EmbeddedCas):
    """An embedded CAS that goes away on command. The commit is durable then, but not anchored."""

    away = False

    def advance(self, volume_id: bytes, lease: Lease, expected: Anchor, new: Anchor) -> None:
        if self.away:
            raise CasUnreachableError("the CAS is away")
        super().advance(volume_id, lease, expected, new)


@dataclass
class Site:
    """A CAS file, a volume, and copies of the volume as a thief or a backup keeps them."""

    root: Path
    shift_ns: int = 0
    opened: list[FlakyCas] = field(default_factory=list)

    @property
    def volume(self) -> Path:
        return self.root / "volume"

    @property
    def url(self) -> str:
        return f"sqlite://{self.root}/cas.sqlite"

    def cas(self, name: str = "cas.sqlite") -> FlakyCas:
        cas = FlakyCas(str(self.root / name), clock=lambda: time.time_ns() + self.shift_ns)
        self.opened.append(cas)
        return cas

    def create(self, content: bytes, *, freshness: Freshness | None = None, cas_timeout_s: float = 0.0) -> Volume:
        volume = Volume.create(
            self.volume,
            self.cas(),
            segment_slots=64,
            freshness=freshness,
            commit_interval=None,
            cas_timeout_s=cas_timeout_s,
        )
        volume.write_bytes("/file", content)
        volume.commit()
        return volume

    def write(self, content: bytes, *, at: Path | None = None, name: str = "/file") -> int:
        """One session that writes one file; the generation it leaves."""
        with Volume.open(at or self.volume, self.cas(), commit_interval=None, cas_timeout_s=0.0) as volume:
            volume.write_bytes(name, content)
        return self.anchor().generation

    def read(self, at: Path | None = None, name: str = "/file") -> bytes:
        with Volume.open(at or self.volume, self.cas(), read_only=True) as volume:
            return volume.read_bytes(name)

    def keep(self, name: str) -> Path:
        copy = self.root / name
        shutil.copytree(self.volume, copy)
        return copy

    def put_back(self, copy: Path, *names: str) -> None:
        """Let single files, or all of it, be what *copy* has."""
        if not names:
            shutil.rmtree(self.volume)
            shutil.copytree(copy, self.volume)
        for name in names:
            source, target = copy / name, self.volume / name
            if source.is_dir():
                shutil.rmtree(target)
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)

    def anchor(self) -> Anchor:
        (record,) = self.cas().list()
        return record.anchor

    def fspf(self, *arguments: str | Path, cas: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fspf", *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=60,
            cwd=REPO,
            env={**os.environ, "FSPF_CAS": cas or self.url},
        )


@pytest.fixture
def site(scratch: Path) -> Iterator[Site]:
    site = Site(scratch)
    yield site
    for cas in site.opened:
        cas.close()


@pytest.fixture(autouse=True)
def _problems_are_logged(quiet: Quiet) -> None:
    """What a damaged volume's opening says of it in the log is not what these tests are about."""
    quiet.allow(r"fspf\.volume")


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def assert_refused(site: Site, expected: int, found: int, *, at: Path | None = None) -> None:
    """Both ways of opening, and every command that opens, refuse with 21 and both generations; nothing changes."""
    path = at or site.volume
    before, record = contents(path), site.cas().list()
    for read_only in (True, False):
        with pytest.raises(FreshnessError) as caught:
            Volume.open(path, site.cas(), read_only=read_only, commit_interval=None).close()
        assert (caught.value.expected_generation, caught.value.found_generation) == (expected, found)
        assert re.search(rf"\b{expected}\b.*\b{found}\b|\b{found}\b.*\b{expected}\b", str(caught.value))
    for arguments in (("cat", f"{path}:/file"), ("rekey", str(path))):
        done = site.fspf(*arguments)
        assert done.returncode == 21, done
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, "one line"
        assert str(expected) in done.stderr
        assert str(found) in done.stderr
    assert contents(path) == before
    assert site.cas().list() == record


# -- old states


def test_the_old_whole_volume_is_refused(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    was = site.anchor().generation
    now = site.write(b"new")
    site.put_back(old)
    assert_refused(site, now, was)
    done = site.fspf("--json", "info", site.volume)
    error = json.loads(done.stderr)["error"]
    assert (error["expected_generation"], error["found_generation"], error["exit_code"]) == (now, was, 21)


def test_every_command_refuses_the_old_volume(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    site.write(b"new")
    site.put_back(old)
    before = contents(site.volume)
    for arguments in (("ls", "-lR"), ("info",), ("verify",), ("rekey",)):
        done = site.fspf(*arguments, site.volume)
        assert done.returncode == 21, (arguments, done)
    assert site.fspf("scrub", site.volume).returncode == 0, "without a key an old copy looks whole"
    assert contents(site.volume) == before


def test_an_old_volume_can_be_salvaged_when_asked_for(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    site.write(b"new")
    site.put_back(old)
    done = site.fspf("verify", "--salvage", site.root / "rescued", "--accept-stale", site.volume)
    assert done.returncode == 21
    assert (site.root / "rescued" / "file").read_bytes() == b"old"


def test_the_old_root_pair_alone_is_refused(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    was = site.anchor().generation
    site.write(b"newer")
    now = site.write(b"newest")
    assert now >= was + 2, "both root files are newer"
    site.put_back(old, *ROOT_NAMES)
    assert_refused(site, now, was)


def test_the_old_root_pair_with_old_segments_is_refused(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    was = site.anchor().generation
    now = site.write(b"new")
    site.put_back(old, *ROOT_NAMES, "segments")
    assert_refused(site, now, was)


def test_one_old_root_beside_the_one_before_the_newest_is_refused(site: Site) -> None:
    volume = site.create(b"one")
    old = site.keep("old")
    for content in (b"two", b"three"):
        volume.write_bytes("/file", content)
        volume.commit()
    now = site.anchor().generation
    volume.abandon()
    site.put_back(old, ROOT_NAMES[now % 2])
    assert_refused(site, now, now - 1)


def test_old_segments_below_the_newest_root_give_no_old_bytes(site: Site) -> None:
    site.create(b"old" * 5000).close()
    old = site.keep("old")
    site.write(b"new" * 5000)
    newest = contents(site.volume)
    for name in sorted(name for name in newest if name.startswith("segments/")):
        if not (old / name).exists():
            continue
        site.put_back(old, name)
        try:
            assert site.read() == b"new" * 5000
        except IntegrityError as exc:
            assert exc.exit_code == 20  # noqa: PT017  # either is right: it depends on what the segment held
        done = site.fspf("cat", f"{site.volume}:/file")
        assert done.returncode in {0, 20}
        assert done.stdout.encode() == b"new" * 5000 or "old" not in done.stdout
        (site.volume / name).write_bytes(newest[name])
    assert site.read() == b"new" * 5000


def test_a_single_old_block_is_stale(site: Site) -> None:
    """The slot of a file is freed, used again for the same file's next content, and then given its old bytes back."""
    volume = site.create(b"\0" * 4096)
    past: list[Path] = []
    for number in range(8):
        volume.write_bytes("/file", bytes([number + 1]) * 4096)
        volume.commit()
        past.append(site.keep(f"past{number}"))
    volume.abandon()
    truth = site.read()
    stale = 0
    newest = contents(site.volume)
    for copy in past[:-1]:
        for name in [name for name in newest if name.startswith("segments/")]:
            if not (copy / name).exists():
                continue
            site.put_back(copy, name)
            try:
                assert site.read() == truth
            except DamagedFileError as exc:
                assert exc.kind in {"stale", "missing"}  # noqa: PT017
                stale += exc.kind == "stale"
            except IntegrityError as exc:
                stale += "stale" in str(exc)
            (site.volume / name).write_bytes(newest[name])
    assert stale, "no slot was used twice: the test shows nothing"


def test_an_old_keyring_is_refused_when_the_newest_epoch_is_missing(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    site.write(b"new")
    site.put_back(old, "keyring", "keyring.bak")
    with pytest.raises(IntegrityError, match=r"keyring: .* epochs up to .* expected") as caught:
        site.read()
    assert not isinstance(caught.value, FreshnessError)
    assert site.fspf("ls", site.volume).returncode == 20


def test_one_old_copy_of_the_keyring_is_mended(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    site.write(b"new")
    site.put_back(old, "keyring")
    assert site.read() == b"new"
    site.write(b"newer")
    assert (site.volume / "keyring").read_bytes() == (site.volume / "keyring.bak").read_bytes()
    assert site.read() == b"newer"


def test_a_deleted_file_does_not_come_back(site: Site) -> None:
    volume = site.create(b"kept")
    volume.write_bytes("/secret", b"to be forgotten")
    volume.commit()
    old = site.keep("old")
    was = site.anchor().generation
    volume.unlink("/secret")
    volume.close()
    now = site.anchor().generation
    site.put_back(old)
    assert_refused(site, now, was)


def test_an_old_volume_is_refused_after_a_rekey(site: Site) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    done = site.fspf("rekey", site.volume)
    assert done.returncode == 0, done
    now = site.anchor().generation
    assert site.read() == b"old"
    site.put_back(old)
    with pytest.raises((FreshnessError, WrongKeyError)) as caught:
        site.read()
    assert isinstance(caught.value, FreshnessError)
    assert str(now) in str(caught.value)
    assert site.fspf("ls", site.volume).returncode == 21


# -- forks


def test_a_fork_by_two_writers_has_one_winner(site: Site) -> None:
    """A copy is written to after the lease was released; the original, written to later, loses."""
    site.create(b"common").close()
    copy = site.keep("copy")
    start = site.anchor().generation
    now = site.write(b"the copy's", at=copy)
    assert now > start
    assert_refused(site, now, start)
    assert site.read(copy) == b"the copy's"


def test_two_writers_at_once_after_the_lease_expired(site: Site) -> None:
    original = site.create(b"common")
    copy = site.keep("copy")
    site.shift_ns = HOUR_NS  # the original's lease has expired, by the CAS's clock
    second = Volume.open(copy, site.cas(), commit_interval=None, cas_timeout_s=0.0)
    second.write_bytes("/file", b"second")
    second.commit()
    winner = site.anchor()
    original.write_bytes("/file", b"original")
    with pytest.raises(LeaseLostError, match="epoch"):
        original.commit()
    lost = original.status()["generation"]
    assert original.failed
    with pytest.raises((ReadOnlyError, OSError)):
        original.write_bytes("/other", b"more")
    with pytest.raises(FspfError):
        original.commit()
    with pytest.raises(FspfError):
        original.close()
    assert site.anchor() == winner, "nothing of the stale writer reached the CAS"
    second.close()
    now = site.anchor().generation
    assert_refused(site, now, lost)
    assert site.read(copy) == b"second"


def test_a_fork_at_the_same_generation_is_told_from_a_rollback(site: Site) -> None:
    original = site.create(b"common")
    copy = site.keep("copy")
    site.shift_ns = HOUR_NS
    second = Volume.open(copy, site.cas(), commit_interval=None, cas_timeout_s=0.0)
    second.write_bytes("/file", b"second")
    second.commit()
    original.write_bytes("/file", b"original")
    with pytest.raises(LeaseLostError):
        original.commit()
    now = site.anchor().generation
    assert original.status()["generation"] == now, "both wrote this generation"
    original.abandon()
    second.abandon()
    with pytest.raises(FreshnessError, match="fork") as caught:
        site.read()
    assert (caught.value.expected_generation, caught.value.found_generation) == (now, now)
    assert "root tag" in str(caught.value)


def test_what_a_stale_writer_wrote_is_never_accepted(site: Site) -> None:
    """Neither in its own directory nor mixed into the winner's, however often it tries."""
    original = site.create(b"common")
    copy = site.keep("copy")
    site.shift_ns = HOUR_NS
    second = Volume.open(copy, site.cas(), commit_interval=None, cas_timeout_s=0.0)
    original.write_bytes("/file", b"stale")
    with pytest.raises(LeaseLostError):
        original.commit()
    original.abandon()
    # Its root is one generation above the anchor now, as a recovered commit would be, but of an ended epoch: passed over.
    assert site.read() == b"common", "the anchored state beside it still is the newest"
    second.write_bytes("/file", b"second")
    second.commit()
    with pytest.raises(FreshnessError, match="fork"):
        site.read()
    second.write_bytes("/file", b"second again")
    second.close()
    with pytest.raises(FreshnessError):
        site.read()
    for name in ROOT_NAMES:
        mixed = site.root / f"mixed {name}"
        shutil.copytree(copy, mixed)
        shutil.copy(site.volume / name, mixed / name)
        with suppress(IntegrityError):  # it stood in the place of the newest
            assert site.read(mixed) == b"second again"
        shutil.rmtree(mixed)
    assert site.read(copy) == b"second again"


# -- leases


def test_a_copy_cannot_be_written_to_while_the_original_is_leased(site: Site) -> None:
    volume = site.create(b"common")
    copy = site.keep("copy")
    with pytest.raises(LeaseHeldError, match=str(os.getpid())):
        Volume.open(copy, site.cas(), commit_interval=None)
    before = contents(copy)
    done = site.fspf("rekey", copy)
    assert done.returncode == 22, done
    assert str(os.getpid()) in done.stderr, "the holder is named"
    assert contents(copy) == before
    assert site.read(copy) == b"common", "reading needs no lease"
    volume.close()


def test_the_original_cannot_be_opened_twice(site: Site) -> None:
    volume = site.create(b"content")
    with pytest.raises(LeaseError):
        Volume.open(site.volume, site.cas(), commit_interval=None)
    done = site.fspf("rekey", site.volume)
    assert done.returncode == 22, done
    volume.write_bytes("/file", b"still ours")
    volume.close()
    assert site.read() == b"still ours"


def test_a_copy_read_while_the_original_goes_on_becomes_stale(site: Site) -> None:
    volume = site.create(b"one")
    copy = site.keep("copy")
    was = site.anchor().generation
    assert site.read(copy) == b"one"
    volume.write_bytes("/file", b"two")
    volume.commit()
    now = site.anchor().generation
    with pytest.raises(FreshnessError) as caught:
        site.read(copy)
    assert (caught.value.expected_generation, caught.value.found_generation) == (now, was)
    volume.close()


# -- recovery


def test_a_commit_that_is_durable_but_not_anchored_opens_after_a_crash(site: Site) -> None:
    volume = site.create(b"anchored")
    anchored = site.anchor()
    site.opened[0].away = True
    volume.write_bytes("/file", b"durable")
    with pytest.raises(CasUnreachableError, match="durable but not anchored"):
        volume.commit()
    assert volume.failed
    volume.abandon()
    assert site.anchor() == anchored
    assert site.read() == b"durable", "a reader sees it, and anchors nothing"
    assert site.anchor() == anchored
    assert site.fspf("cat", f"{site.volume}:/file").stdout == "durable"
    with Volume.open(site.volume, site.cas(), commit_interval=None) as again:
        assert site.anchor().generation == anchored.generation + 1, "opening for writing adopts it"
        assert again.read_bytes("/file") == b"durable"


def test_after_the_recovery_the_state_before_it_is_old(site: Site) -> None:
    volume = site.create(b"anchored")
    old = site.keep("old")
    was = site.anchor().generation
    site.opened[0].away = True
    volume.write_bytes("/file", b"durable")
    with pytest.raises(CasUnreachableError):
        volume.commit()
    volume.abandon()
    assert site.read(old) == b"anchored", "both could still be the last: neither was acknowledged as lost"
    now = site.write(b"after", name="/other")
    site.put_back(old)
    assert_refused(site, now, was)


def test_a_writer_from_before_a_recovery_elsewhere_cannot_have_its_commit_recovered(site: Site) -> None:
    """Copy opened at the anchored state takes the next epoch: the unanchored commit of the old one is dead."""
    volume = site.create(b"anchored")
    copy = site.keep("copy")
    site.opened[0].away = True
    volume.write_bytes("/file", b"durable")
    with pytest.raises(CasUnreachableError):
        volume.commit()
    volume.abandon()
    with Volume.open(copy, site.cas(), commit_interval=None) as second:
        assert second.read_bytes("/file") == b"anchored"
        assert site.read() == b"anchored", "what was only durable is passed over"
        second.write_bytes("/file", b"second")
        second.commit()
        with pytest.raises(FreshnessError):
            site.read()


# -- the CAS


def test_another_cas_does_not_know_the_volume(site: Site) -> None:
    site.create(b"content").close()
    other = f"sqlite://{site.root}/other.sqlite"
    Volume.create(site.root / "elsewhere", site.cas("other.sqlite"), commit_interval=None).close()
    with pytest.raises(UnknownVolumeError):
        Volume.open(site.volume, site.cas("other.sqlite"), read_only=True)
    for arguments in (("ls",), ("rekey",), ("verify",)):
        assert site.fspf(*arguments, site.volume, cas=other).returncode == 23
    assert site.fspf("ls", site.volume, cas=f"sqlite://{site.root}/not there.sqlite").returncode == 23


def test_an_old_backup_of_the_cas_is_noticed(site: Site) -> None:
    """The CAS is trusted, but it may be restored from a backup by mistake: the volume is then newer than it."""
    site.create(b"old").close()
    backup = site.root / "backup.sqlite"
    was = site.anchor().generation
    for cas in site.opened:
        cas.close()
    for name in ("cas.sqlite", "cas.sqlite.key"):
        shutil.copy(site.root / name, backup if name == "cas.sqlite" else f"{backup}.key")
    now = site.write(b"new")
    with pytest.raises(FreshnessError, match="the CAS itself is older") as caught:
        Volume.open(site.volume, site.cas("backup.sqlite"), read_only=True)
    assert (caught.value.expected_generation, caught.value.found_generation) == (was, now)


def test_a_volume_that_another_cas_anchored_since_is_refused(site: Site) -> None:
    """Records carried to another CAS, and the volume written there: the first CAS refuses it."""
    site.create(b"start").close()
    was = site.anchor().generation
    second = site.cas("second.sqlite")
    second.import_records(site.cas().list(), override=False)
    with Volume.open(site.volume, second, commit_interval=None) as volume:
        volume.write_bytes("/file", b"under the second")
    now = second.list()[0].anchor.generation
    assert_refused(site, was, now)


# -- freshness modes


def test_bounded_mode_refuses_old_states_too(site: Site) -> None:
    volume = site.create(b"old", freshness=Freshness.bounded(200))
    volume.close()
    old = site.keep("old")
    was = site.anchor().generation
    now = site.write(b"new")
    site.put_back(old)
    assert_refused(site, now, was)


def test_bounded_mode_recovers_what_the_cas_had_not_heard_of(site: Site) -> None:
    volume = site.create(b"old", freshness=Freshness.bounded(60_000), cas_timeout_s=60.0)
    volume._commits._drain()  # type: ignore[union-attr]
    anchored = site.anchor().generation
    site.opened[0].away = True
    for content in (b"one", b"two"):
        volume.write_bytes("/file", content)
        volume.commit()
    crashed = site.keep("crashed")
    ahead = volume.status()["generation"]
    assert ahead == anchored + 2
    volume.abandon()
    assert site.anchor().generation == anchored
    site.put_back(crashed)
    assert site.read() == b"two"
    with Volume.open(site.volume, site.cas(), commit_interval=None):
        assert site.anchor().generation == ahead


def test_mode_none_accepts_an_old_state_and_only_that_mode(site: Site) -> None:
    site.create(b"old", freshness=Freshness.none()).close()
    old = site.keep("old")
    site.write(b"new")
    site.put_back(old)
    assert site.read() == b"old"
    assert site.fspf("cat", f"{site.volume}:/file").stdout == "old"
    cas = site.cas()
    (record,) = cas.list()
    cas.set_freshness(record.volume_id, Freshness.strict())
    with pytest.raises(FreshnessError):
        site.read()


def test_mode_none_still_refuses_altered_bytes(site: Site) -> None:
    site.create(b"content", freshness=Freshness.none()).close()
    for name in ROOT_NAMES:
        data = bytearray((site.volume / name).read_bytes())
        data[40] ^= 1
        (site.volume / name).write_bytes(data)
    with pytest.raises(IntegrityError):
        site.read()


def test_an_anchor_that_moved_under_a_writer_ends_it(site: Site) -> None:
    """Somebody with access to the CAS moved the anchor: the writer's next commit is refused, and it says so."""
    volume = site.create(b"one")
    cas = site.cas()
    (record,) = cas.list()
    assert record.lease is not None
    elsewhere = Anchor(record.anchor.generation + 5, b"\x77" * 16)
    cas.advance(record.volume_id, record.lease, record.anchor, elsewhere)
    volume.write_bytes("/file", b"two")
    with pytest.raises(AnchorMovedError, match=rf"{elsewhere.generation}") as caught:
        volume.commit()
    assert isinstance(caught.value, CasError)
    assert volume.failed
    volume.abandon()
    now = site.anchor()
    assert now == elsewhere
    with pytest.raises(FreshnessError) as refused:
        site.read()
    assert refused.value.expected_generation == elsewhere.generation


# -- through a mount


@pytest.fixture
def mountpoint(site: Site) -> Iterator[Path]:
    need_fuse()
    path = site.root / "mountpoint"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        site.fspf("umount", "--force", path)
    assert not os.path.ismount(path)


def assert_not_mounted(site: Site, volume: Path, mountpoint: Path, code: int, *texts: str) -> None:
    done = site.fspf("mount", volume, mountpoint)
    assert done.returncode == code, done
    for text in texts:
        assert text in done.stderr
    assert not os.path.ismount(mountpoint)
    assert os.listdir(mountpoint) == []


def test_an_old_volume_is_not_mounted(site: Site, mountpoint: Path) -> None:
    site.create(b"old").close()
    old = site.keep("old")
    was = site.anchor().generation
    assert site.fspf("mount", site.volume, mountpoint).returncode == 0
    (mountpoint / "file").write_bytes(b"new")
    assert site.fspf("umount", mountpoint).returncode == 0
    now = site.anchor().generation
    assert site.read() == b"new"
    site.put_back(old)
    before = contents(site.volume)
    assert_not_mounted(site, site.volume, mountpoint, 21, str(was), str(now))
    assert contents(site.volume) == before


def test_a_copy_is_not_mounted_beside_the_original(site: Site, mountpoint: Path) -> None:
    site.create(b"common").close()
    assert site.fspf("mount", site.volume, mountpoint).returncode == 0
    (mountpoint / "file").write_bytes(b"the original's")
    copy = site.keep("copy")
    second = site.root / "second"
    second.mkdir()
    assert_not_mounted(site, copy, second, 22, "open for writing by")
    assert (mountpoint / "file").read_bytes() == b"the original's"
    assert site.fspf("umount", mountpoint).returncode == 0
    assert_not_mounted(site, copy, second, 21, str(site.anchor().generation))


def test_a_mount_that_lost_its_lease_loses_the_fork(site: Site, mountpoint: Path) -> None:
    """Somebody writes to a copy after the lease had ended: what the mount writes later is never accepted."""
    site.create(b"common").close()
    assert site.fspf("mount", site.volume, mountpoint).returncode == 0
    copy = site.keep("copy")
    cas = site.cas()
    (record,) = cas.list()
    assert record.lease is not None
    cas.release(record.volume_id, record.lease)  # as after a long absence of its machine
    site.write(b"the copy's", at=copy)
    winner = site.anchor()
    with suppress(OSError), (mountpoint / "file").open("r+b") as file:
        file.write(b"the stale mount's")
        file.flush()
        os.fsync(file.fileno())
        pytest.fail("a stale writer was told that its data is safe")
    with pytest.raises(OSError, match="Read-only"):
        (mountpoint / "another").touch()
    assert site.fspf("umount", "--force", mountpoint).returncode != 0, "what is lost is told"
    assert site.anchor() == winner
    assert_not_mounted(site, site.volume, mountpoint, 21, str(winner.generation))
    assert site.read(copy) == b"the copy's"
