"""The embedded CAS's file: missing, foreign, damaged, read-only, full, locked, moved: a clear error, nothing lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from fspf.cas import EmbeddedCas
from fspf.core.anchor import NEVER_WRITTEN, CasRecord, Lease
from fspf.core.errors import (
    CasError,
    CasUnreachableError,
    FspfError,
    UnsupportedFormatError,
    WrongKeyError,
)
from fspf.core.freshness import Freshness
from tests.unit.cas.conftest import OpenEmbedded, anchor, append, holder, volume

A, B = volume(1), volume(2)
STRICT = Freshness.strict()


def begin(cas: EmbeddedCas, volume_id: bytes = A, generation: int = 1) -> tuple[CasRecord, Lease]:
    """Make a volume with one anchored commit."""
    cas.create(volume_id, f"volume {volume_id[-1]}", STRICT)
    lease = cas.acquire(volume_id, expected=NEVER_WRITTEN, expected_epoch=0, adopt=NEVER_WRITTEN, holder=holder())
    cas.advance(volume_id, lease, NEVER_WRITTEN, anchor(generation))
    return cas.fetch(volume_id), lease


@pytest.fixture
def made(open_embedded: OpenEmbedded, cas_path: str) -> CasRecord:
    """A CAS file with volumes A and B, closed."""
    cas = open_embedded()
    record, _ = begin(cas)
    begin(cas, B, 7)
    cas.close()
    return record


@contextlib.contextmanager
def raw(path: str) -> Iterator[apsw.Connection]:
    """The rows as an attacker (or a bug) with SQLite reaches them.

    With the library that the CAS uses: two copies of SQLite in one process end each other's locks.
    """
    with contextlib.closing(apsw.Connection(path)) as connection:
        connection.set_busy_timeout(1000)
        yield connection


class TestMaking:
    def test_nothing_is_made_by_asking(self, open_embedded: OpenEmbedded, scratch: Path) -> None:
        cas = open_embedded()
        assert cas.list() == []
        assert not cas.has_passphrase
        with pytest.raises(CasError, match=r"no CAS file .*cas.sqlite: put it back, or name another with --cas"):
            cas.fetch(A)
        assert os.listdir(scratch) == []

    def test_files_are_for_their_owner_only(self, open_embedded: OpenEmbedded, scratch: Path) -> None:
        before = os.umask(0)
        try:
            cas = open_embedded()
            begin(cas)
        finally:
            os.umask(before)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in scratch.iterdir()}
        assert modes == dict.fromkeys(["cas.sqlite", "cas.sqlite.key", "cas.sqlite-wal", "cas.sqlite-shm"], 0o600)
        cas.close()
        assert sorted(os.listdir(scratch)) == ["cas.sqlite", "cas.sqlite.key"]

    def test_nothing_readable_is_in_the_file(self, made: CasRecord, cas_path: str) -> None:
        content = Path(cas_path).read_bytes()
        for secret in (b"volume 1", A, made.anchor.root_tag, b"host", b"strict"):
            assert secret not in content

    def test_records_survive_closing(self, open_embedded: OpenEmbedded, made: CasRecord) -> None:
        assert open_embedded().fetch(A) == made
        assert [record.anchor.generation for record in open_embedded(create=False).list()] == [1, 7]

    def test_missing_file_is_not_made_against_the_callers_will(self, open_embedded: OpenEmbedded) -> None:
        with pytest.raises(CasError, match="no CAS file"):
            open_embedded(create=False)

    def test_missing_directory(self, open_embedded: OpenEmbedded, scratch: Path) -> None:
        cas = open_embedded(str(scratch / "none" / "cas.sqlite"))
        with pytest.raises(CasError, match="no such directory"):
            cas.create(A, "x", STRICT)

    def test_key_file_of_an_interrupted_attempt_is_used(self, open_embedded: OpenEmbedded, cas_path: str) -> None:
        begin(open_embedded())
        key = Path(cas_path + ".key").read_bytes()
        os.unlink(cas_path)
        for suffix in ("-wal", "-shm"):
            os.unlink(cas_path + suffix)
        begin(open_embedded())
        assert Path(cas_path + ".key").read_bytes() == key

    def test_two_makers_at_once_make_one(self, open_embedded: OpenEmbedded, scratch: Path) -> None:
        cases = [open_embedded() for _ in range(8)]
        barrier = threading.Barrier(8)
        failures: list[BaseException] = []

        def make(number: int) -> None:
            barrier.wait()
            try:
                cases[number].create(volume(number), f"v{number}", STRICT)
            except BaseException as exc:  # noqa: BLE001 - shown by the main thread
                failures.append(exc)

        threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert [record.name for record in open_embedded().list()] == [f"v{number}" for number in range(8)]
        for cas in cases:
            cas.close()
        assert {name for name in os.listdir(scratch) if not name.endswith(("-wal", "-shm"))} == {
            "cas.sqlite",
            "cas.sqlite.key",
        }


class TestForeignFiles:
    def refused(self, path: str, error: type[FspfError], match: str) -> None:
        before = Path(path).read_bytes()
        with pytest.raises(error, match=match) as caught:
            EmbeddedCas(path)
        assert "\n" not in str(caught.value)
        assert Path(path).read_bytes() == before

    @pytest.mark.parametrize(
        "content", [b"\0" * 4096, b"not a database, " * 300, b"SQLite format 3\0" + b"\xff" * 4080, b"x"]
    )
    def test_not_a_database(self, cas_path: str, content: bytes) -> None:
        Path(cas_path).write_bytes(content)
        self.refused(cas_path, CasError, "not a CAS file|damaged")

    def test_another_programs_database(self, cas_path: str) -> None:
        with raw(cas_path) as connection:
            connection.execute("CREATE TABLE volume (id)")
        self.refused(cas_path, CasError, "not a CAS file")

    def test_empty_file(self, cas_path: str) -> None:
        Path(cas_path).touch()
        self.refused(cas_path, CasError, "empty: it was cut off")

    def test_directory(self, scratch: Path) -> None:
        with pytest.raises(CasError, match=r"is a directory: name the CAS file itself, such as .*/cas\.sqlite$"):
            EmbeddedCas(str(scratch))

    def test_newer_version(self, made: CasRecord, cas_path: str) -> None:
        with raw(cas_path) as connection:
            connection.execute("PRAGMA user_version = 2")
        with pytest.raises(UnsupportedFormatError, match=r"version 2.*use a newer fspf"):
            EmbeddedCas(cas_path)


class TestDamage:
    @pytest.mark.parametrize("page", [1, 2, 3])
    def test_damaged_page(self, made: CasRecord, cas_path: str, page: int) -> None:
        content = bytearray(Path(cas_path).read_bytes())
        assert len(content) >= page * 4096
        start = (page - 1) * 4096 + (100 if page == 1 else 0)
        content[start : page * 4096] = b"\xa5" * (page * 4096 - start)
        Path(cas_path).write_bytes(content)
        with pytest.raises(CasError, match=r"damaged|not a CAS"), contextlib.closing(EmbeddedCas(cas_path)) as cas:
            cas.fetch(A)

    def test_file_cut_off(self, made: CasRecord, cas_path: str) -> None:
        os.truncate(cas_path, 4096)
        with pytest.raises(CasError, match="damaged"), contextlib.closing(EmbeddedCas(cas_path)) as cas:
            cas.fetch(A)

    @pytest.mark.parametrize("column", ["state", "fixed"])
    @pytest.mark.parametrize("end", ["first", "last"])
    def test_altered_part_is_refused(self, made: CasRecord, cas_path: str, column: str, end: str) -> None:
        with raw(cas_path) as connection:
            for row_id, value in connection.execute(f"SELECT id, {column} FROM volume").fetchall():
                assert isinstance(value, bytes)
                changed = bytearray(value)
                changed[0 if end == "first" else -1] ^= 1
                connection.execute(f"UPDATE volume SET {column} = ? WHERE id = ?", (bytes(changed), row_id))
        self.both_refused(cas_path)

    def test_altered_version_is_refused(self, made: CasRecord, cas_path: str) -> None:
        with raw(cas_path) as connection:
            connection.execute("UPDATE volume SET version = version - 1")
        self.both_refused(cas_path)

    @pytest.mark.parametrize(
        "columns", [("id",), ("state", "version"), ("fixed",), ("state", "version", "fixed")], ids=str
    )
    def test_parts_swapped_between_volumes_are_refused(
        self, made: CasRecord, cas_path: str, columns: tuple[str, ...]
    ) -> None:
        with raw(cas_path) as connection:
            rows = connection.execute(f"SELECT id, {', '.join(columns)} FROM volume").fetchall()
            if columns == ("id",):
                first, second = rows[0][0], rows[1][0]
                for old, new in ((first, b"temporary"), (second, first), (b"temporary", second)):
                    connection.execute("UPDATE volume SET id = ? WHERE id = ?", (new, old))
            else:
                for (row_id, *_), (_, *values) in zip(rows, reversed(rows), strict=True):
                    sets = ", ".join(f"{column} = ?" for column in columns)
                    connection.execute(f"UPDATE volume SET {sets} WHERE id = ?", (*values, row_id))
        self.both_refused(cas_path)

    def test_old_key_under_the_new_state_is_refused(self, open_embedded: OpenEmbedded, cas_path: str) -> None:
        cas = open_embedded()
        record, lease = begin(cas)
        with raw(cas_path) as connection:
            ((old,),) = connection.execute("SELECT fixed FROM volume").fetchall()
        cas.rekey(A, lease, anchor(1), anchor(2), type(record.key).generate())
        with raw(cas_path) as connection:
            connection.execute("UPDATE volume SET fixed = ?", (old,))
        with pytest.raises(CasError, match="altered or is damaged: restore the CAS file from a backup"):
            cas.fetch(A)

    def test_old_key_of_the_same_version_is_refused(self, open_embedded: OpenEmbedded, cas_path: str) -> None:
        """After an import with `replace` two keys can have the same version."""
        cas = open_embedded()
        record, _ = begin(cas)
        with raw(cas_path) as connection:
            ((old,),) = connection.execute("SELECT fixed FROM volume").fetchall()
        cas.import_records([replace(record, key=type(record.key).generate())], override=True)
        with raw(cas_path) as connection:
            connection.execute("UPDATE volume SET fixed = ?", (old,))
        with pytest.raises(CasError, match="altered or is damaged"):
            cas.fetch(A)

    def test_lost_entry(self, made: CasRecord, cas_path: str) -> None:
        for name in ("check", "unlock"):
            with raw(cas_path) as connection:
                connection.execute("DELETE FROM meta WHERE name = ?", (name,))
            with pytest.raises(CasError, match="lacks its entry"):
                EmbeddedCas(cas_path)

    def test_altered_unlock_entry_is_damage_not_a_wrong_key(self, made: CasRecord, cas_path: str) -> None:
        with raw(cas_path) as connection:
            ((value,),) = connection.execute("SELECT value FROM meta WHERE name = 'unlock'").fetchall()
            assert isinstance(value, bytes)
            changed = value[:20] + bytes([value[20] ^ 1]) + value[21:]
            connection.execute("UPDATE meta SET value = ? WHERE name = 'unlock'", (changed,))
        with pytest.raises(CasError, match="damaged where it keeps its master key"):
            EmbeddedCas(cas_path)

    def test_a_row_put_back_as_a_whole_does_not_show(self, open_embedded: OpenEmbedded, cas_path: str) -> None:
        """Documented in THREATS.md: the file's storage is trusted with this."""
        cas = open_embedded()
        _, lease = begin(cas)
        with raw(cas_path) as connection:
            (row,) = connection.execute("SELECT version, state FROM volume").fetchall()
        cas.advance(A, lease, anchor(1), anchor(2))
        with raw(cas_path) as connection:
            connection.execute("UPDATE volume SET version = ?, state = ?", row)
        assert cas.fetch(A).anchor == anchor(1)

    def both_refused(self, path: str) -> None:
        with contextlib.closing(EmbeddedCas(path)) as cas:
            for volume_id in (A, B):
                with pytest.raises(CasError, match=r"altered or is damaged|does not know") as caught:
                    cas.fetch(volume_id)
                assert caught.value.exit_code == 23
            with pytest.raises(CasError):
                cas.list()


AS_NOBODY = """
import os, sys
sys.path.insert(0, {root!r})
from fspf.cas import EmbeddedCas
from fspf.core.errors import FspfError
from fspf.core.freshness import Freshness
import fspf.cas.portable, fspf.cas.unlock
os.setgid(65534), os.setuid(65534)
try:
    cas = EmbeddedCas({path!r})
    print(cas.fetch(bytes(15) + b"\\1").anchor.generation)
    cas.create(bytes(16), "x", Freshness.strict())
except FspfError as exc:
    print(type(exc).__name__, exc.exit_code, exc)
"""


class TestReadOnly:
    """As another user, since root may write everywhere."""

    def ask(self, path: str) -> list[str]:
        if os.getuid():
            pytest.skip("no-root: becomes another user")
        for part in (*Path(path).parents, Path(path), Path(path + ".key")):
            if str(part).startswith("/dev/shm/") or str(part) == path:
                part.chmod(part.stat().st_mode | 0o055 if part.is_dir() else part.stat().st_mode)
        root = str(Path(__file__).resolve().parents[3])
        script = AS_NOBODY.format(root=root, path=path)
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={"TMPDIR": "/tmp"}
        )
        assert run.stderr == ""
        return run.stdout.splitlines()

    def give(self, path: str, mode: int) -> None:
        for name in os.listdir(os.path.dirname(path)):
            full = os.path.join(os.path.dirname(path), name)
            os.chown(full, 65534, 65534)
            os.chmod(full, 0o400 if name.endswith(".key") else mode)

    def test_read_only_directory(self, made: CasRecord, cas_path: str) -> None:
        self.give(cas_path, 0o600)
        value, refusal = self.ask(cas_path)
        assert value == "1"
        assert refusal.startswith("CasError 23")
        assert "read-only" in refusal

    def test_read_only_file(self, made: CasRecord, cas_path: str) -> None:
        self.give(cas_path, 0o400)
        value, refusal = self.ask(cas_path)
        assert value == "1"
        assert refusal.startswith("CasError 23")
        assert "read-only" in refusal

    @pytest.mark.parametrize("directory", [0o500, 0o700])
    def test_reading_it_does_not_keep_the_owner_from_writing_later(
        self, made: CasRecord, cas_path: str, directory: int
    ) -> None:
        self.give(cas_path, 0o400)
        self.own_directory(cas_path, directory)
        value, refusal = self.ask(cas_path)
        assert value == "1"
        assert "read-only" in refusal
        assert sorted(os.listdir(os.path.dirname(cas_path))) == ["cas.sqlite", "cas.sqlite.key"]
        os.chmod(cas_path, 0o600)
        self.own_directory(cas_path, 0o700)
        assert self.ask(cas_path) == ["1"]

    def test_read_only_files_that_an_older_version_left_beside_it_are_mended(
        self, made: CasRecord, cas_path: str
    ) -> None:
        for suffix in ("-wal", "-shm"):
            Path(cas_path + suffix).touch()
        self.give(cas_path, 0o400)
        os.chmod(cas_path, 0o600)
        self.own_directory(cas_path, 0o700)
        assert self.ask(cas_path) == ["1"]

    def own_directory(self, path: str, mode: int) -> None:
        directory = os.path.dirname(path)
        os.chown(directory, 65534, 65534)
        os.chmod(directory, mode)

    def test_log_of_a_dead_writer_beside_it(self, open_embedded: OpenEmbedded, cas_path: str, scratch: Path) -> None:
        cas = open_embedded()
        _, lease = begin(cas)
        cas.advance(A, lease, anchor(1), anchor(5))
        image = scratch / "image"
        image.mkdir()
        for suffix in ("", "-wal", ".key"):
            shutil.copy(cas_path + suffix, image / f"cas.sqlite{suffix}")
        path = str(image / "cas.sqlite")
        self.give(path, 0o400)
        value, refusal = self.ask(path)
        assert value == "5"
        assert "read-only" in refusal

    def test_unreadable_file(self, made: CasRecord, cas_path: str) -> None:
        (answer,) = self.ask(cas_path)
        assert answer.startswith("CasUnreachableError 23")
        assert "cannot be opened" in answer

    def test_unreadable_key_file(self, made: CasRecord, cas_path: str) -> None:
        os.chmod(cas_path, 0o644)
        (answer,) = self.ask(cas_path)
        assert answer.startswith("CasUnreachableError 23")
        assert "key file" in answer


class _FaultFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], faults: Faults) -> None:
        super().__init__("", name, flags)
        self._faults = faults

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - apsw's name
        self._faults.check("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        self._faults.syncs += 1
        self._faults.check("sync")
        super().xSync(flags)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802 - apsw's name
        self._faults.check("read")
        return super().xRead(amount, offset)


class Faults(apsw.VFS):
    """A VFS over the usual one whose operations fail on demand."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.vfs_name = name
        self.failing: dict[str, type[apsw.Error]] = {}
        self.syncs = 0

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        return _FaultFile(name, flags, self)

    def check(self, operation: str) -> None:
        error = self.failing.get(operation)
        if error is not None:
            raise error("injected")


class TestFaults:
    @pytest.fixture
    def faults(self) -> Iterator[Faults]:
        vfs = Faults("fspf-cas-faults")
        yield vfs
        vfs.unregister()

    def test_one_sync_per_commit(self, open_embedded: OpenEmbedded, faults: Faults) -> None:
        cas = open_embedded(vfs=faults.vfs_name)
        _, lease = begin(cas)
        before = faults.syncs
        for generation in range(1, 51):
            cas.advance(A, lease, anchor(generation), anchor(generation + 1))
        assert faults.syncs - before <= 50 + 2  # and now and then a checkpoint

    def test_reading_syncs_nothing(self, open_embedded: OpenEmbedded, faults: Faults) -> None:
        cas = open_embedded(vfs=faults.vfs_name)
        _, lease = begin(cas)
        before = faults.syncs
        cas.fetch(A)
        cas.list()
        cas.release(A, Lease(99, lease.holder, 0))  # of another: nothing changes
        assert faults.syncs == before

    @pytest.mark.parametrize(
        ("error", "says"), [(apsw.FullError, "no space left"), (apsw.IOError, "input/output error")]
    )
    @pytest.mark.parametrize("operation", ["write", "sync"])
    def test_disk_that_takes_nothing(
        self, open_embedded: OpenEmbedded, faults: Faults, operation: str, error: type[apsw.Error], says: str
    ) -> None:
        cas = open_embedded(vfs=faults.vfs_name)
        record, lease = begin(cas)
        faults.failing[operation] = error
        for change in (
            lambda: cas.advance(A, lease, anchor(1), anchor(2)),
            lambda: cas.create(B, "other", STRICT),
            lambda: cas.remove(A),
            lambda: cas.rekey(A, lease, anchor(1), anchor(2), type(record.key).generate()),
        ):
            with pytest.raises(CasUnreachableError, match=says) as caught:
                change()
            assert caught.value.retryable
        assert cas.fetch(A).anchor == anchor(1)
        faults.failing.clear()
        cas.advance(A, lease, anchor(1), anchor(2))
        assert open_embedded().fetch(A).anchor == anchor(2)
        assert [one.volume_id for one in cas.list()] == [A]

    @pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning"
    )  # SQLite ignores what fails in a close
    @pytest.mark.parametrize("operation", ["write", "sync"])
    def test_failed_making_leaves_nothing(
        self, open_embedded: OpenEmbedded, faults: Faults, scratch: Path, operation: str
    ) -> None:
        cas = open_embedded(vfs=faults.vfs_name)
        faults.failing[operation] = apsw.FullError
        with pytest.raises(CasUnreachableError, match="no space left"):
            cas.create(A, "x", STRICT)
        assert os.listdir(scratch) == ["cas.sqlite.key"]
        faults.failing.clear()
        begin(cas)

    def test_disk_that_gives_nothing(self, made: CasRecord, open_embedded: OpenEmbedded, faults: Faults) -> None:
        faults.failing["read"] = apsw.IOError
        with pytest.raises(CasUnreachableError, match="input/output error"):
            open_embedded(vfs=faults.vfs_name)


class TestOtherProcesses:
    def test_locked_file(self, made: CasRecord, open_embedded: OpenEmbedded, cas_path: str) -> None:
        cas = open_embedded(busy_timeout_s=0.2)
        with raw(cas_path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(CasUnreachableError, match=r"locked by another process for 0.2 s") as caught:
                cas.create(volume(3), "x", STRICT)
            assert caught.value.retryable
            assert cas.fetch(A) == made  # readers do not wait
            other.execute("ROLLBACK")
        cas.create(volume(3), "x", STRICT)

    def test_lock_that_ends_in_time_is_waited_for(
        self, made: CasRecord, open_embedded: OpenEmbedded, cas_path: str
    ) -> None:
        cas = open_embedded()
        with raw(cas_path) as other:
            other.execute("BEGIN IMMEDIATE")
            timer = threading.Timer(0.1, other.execute, ("ROLLBACK",))
            timer.start()
            cas.create(volume(3), "x", STRICT)
            timer.join()

    def test_changes_of_others_are_seen(self, made: CasRecord, open_embedded: OpenEmbedded) -> None:
        one, two = open_embedded(), open_embedded()
        one.create(volume(3), "x", STRICT)
        assert two.fetch(volume(3)) == one.fetch(volume(3))
        two.remove(volume(3))
        assert len(one.list()) == 2

    def test_file_that_vanished(self, made: CasRecord, open_embedded: OpenEmbedded, cas_path: str) -> None:
        cas = open_embedded()
        os.rename(cas_path, cas_path + ".away")
        with pytest.raises(CasError, match="no CAS file"):
            cas.fetch(A)
        os.rename(cas_path + ".away", cas_path)
        assert cas.fetch(A) == made

    def test_file_put_back_from_a_backup_is_the_one_that_counts(
        self, made: CasRecord, open_embedded: OpenEmbedded, cas_path: str
    ) -> None:
        shutil.copy(cas_path, cas_path + ".backup")
        cas = open_embedded()
        cas.remove(A)
        os.replace(cas_path + ".backup", cas_path)
        assert cas.fetch(A) == made

    def test_another_cas_under_the_name_is_noticed(
        self, made: CasRecord, open_embedded: OpenEmbedded, cas_path: str, scratch: Path
    ) -> None:
        begin(open_embedded(str(scratch / "other.sqlite")))
        cas = open_embedded()
        other = str(scratch / "moved.sqlite")
        open_embedded(other).create(B, "other", STRICT)
        with raw(other) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.replace(other, cas_path)
        with pytest.raises(WrongKeyError, match="not the one of this CAS"):
            cas.fetch(A)


def test_appended_bytes_do_no_harm(made: CasRecord, open_embedded: OpenEmbedded, cas_path: str) -> None:
    append(cas_path, b"\0" * 512)
    assert open_embedded().fetch(A) == made
