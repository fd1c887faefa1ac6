"""Key file and passphrase: who gets in, what they are told, and that changing them loses nobody's access."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import apsw
import pytest

from fspf.cas import EmbeddedCas, change_passphrase
from fspf.cas.unlock import Argon2, Unlock, read_key_file, write_key_file
from fspf.core.anchor import CasRecord
from fspf.core.errors import CasError, CasUnreachableError, FspfError, UsageError, WrongKeyError
from fspf.core.freshness import Freshness
from fspf.core.keys import SecretKey
from tests.unit.cas.conftest import OpenEmbedded, volume

A: Final = volume(1)
DIED: Final = 86  # exit status of a child that was ended at a crash point


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id with little memory, where the test is about something else."""
    monkeypatch.setattr(Argon2, "fresh", lambda: Argon2(os.urandom(16), 64, 1, 1))


@pytest.fixture
def record(open_embedded: OpenEmbedded) -> CasRecord:
    cas = open_embedded()
    made = cas.create(A, "data", Freshness.strict())
    cas.close()
    return made


def never() -> bytes:
    raise AssertionError("the passphrase was asked for though a key file locks this CAS")


class TestKeyFile:
    def test_is_one_line_for_its_owner(self, scratch: Path) -> None:
        path = str(scratch / "key")
        key = write_key_file(path)
        content = Path(path).read_bytes()
        assert content.startswith(b"FSPF-CAS-KEY-1 ")
        assert content.count(b"\n") == 1
        assert content.endswith(b"\n")
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert read_key_file(path) == key
        assert os.listdir(scratch) == ["key"]

    def test_is_never_overwritten(self, scratch: Path) -> None:
        path = str(scratch / "key")
        key = write_key_file(path)
        with pytest.raises(FileExistsError):
            write_key_file(path)
        assert read_key_file(path) == key
        assert os.listdir(scratch) == ["key"]

    def test_missing(self, scratch: Path) -> None:
        assert read_key_file(str(scratch / "key")) is None

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
    def test_that_others_can_reach_is_refused_with_a_hint(
        self, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str, mode: int
    ) -> None:
        os.chmod(cas_path + ".key", mode)
        with pytest.raises(WrongKeyError, match=rf"mode {mode:04o}, others can read it: chmod 600 .*cas.sqlite.key"):
            open_embedded()
        os.chmod(cas_path + ".key", 0o400)
        assert open_embedded().fetch(A) == record

    @pytest.mark.parametrize("offset", [0, 14, 15, 40, 78, 79, 80, 87, 88])
    def test_any_changed_byte_is_refused(self, scratch: Path, offset: int) -> None:
        path = scratch / "key"
        write_key_file(str(path))
        content = bytearray(path.read_bytes())
        content[offset] = ord("0") if content[offset] != ord("0") else ord("1")
        path.write_bytes(content)
        with pytest.raises(WrongKeyError, match="not a key file of fspf, or is damaged"):
            read_key_file(str(path))

    @pytest.mark.parametrize(
        "edit",
        [
            pytest.param(lambda content: content[:0], id="empty"),
            pytest.param(lambda content: content[:-1], id="cut off"),
            pytest.param(lambda content: content + b"\n", id="longer"),
            pytest.param(lambda content: content.upper(), id="upper case"),
            pytest.param(lambda content: b"\xff" * len(content), id="binary"),
        ],
    )
    def test_other_content_is_refused(self, scratch: Path, edit: Callable[[bytes], bytes]) -> None:
        path = scratch / "key"
        write_key_file(str(path))
        path.write_bytes(edit(path.read_bytes()))
        with pytest.raises(WrongKeyError, match="not a key file of fspf"):
            read_key_file(str(path))

    def test_what_is_no_file_is_refused(self, scratch: Path) -> None:
        with pytest.raises(WrongKeyError, match="not a regular file"):
            read_key_file(str(scratch))

    def test_in_a_directory_that_is_missing(self, scratch: Path) -> None:
        with pytest.raises(CasUnreachableError, match="cannot be written"):
            write_key_file(str(scratch / "none" / "key"))

    def test_link_to_a_key_file_is_followed(
        self, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str, scratch: Path
    ) -> None:
        os.rename(cas_path + ".key", scratch / "secret")
        os.symlink(scratch / "secret", cas_path + ".key")
        assert open_embedded().fetch(A) == record

    def test_missing_for_a_cas_that_is_there(
        self, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str
    ) -> None:
        os.unlink(cas_path + ".key")
        with pytest.raises(WrongKeyError, match=r"cas.sqlite.key is missing: .* until it is put back") as caught:
            open_embedded(passphrase=never)
        assert caught.value.exit_code == 24
        assert not os.path.exists(cas_path + ".key")

    def test_of_another_cas(self, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str) -> None:
        os.unlink(cas_path + ".key")
        write_key_file(cas_path + ".key")
        with pytest.raises(WrongKeyError, match="not the one of this CAS: put the right one back"):
            open_embedded(passphrase=never)


class TestPassphrase:
    def test_way_there_and_back(self, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str) -> None:
        """With the real parameters."""
        cas = open_embedded()
        change_passphrase(cas, b"correct horse")
        assert cas.has_passphrase
        assert cas.fetch(A) == record
        assert not os.path.exists(cas_path + ".key")
        again = open_embedded(passphrase=lambda: b"correct horse")
        assert again.fetch(A) == record
        change_passphrase(again, None)
        assert not again.has_passphrase
        assert open_embedded(passphrase=never).fetch(A) == record
        assert cas.fetch(A) == record  # opened before, still open

    def test_wrong_one(self, quick: None, record: CasRecord, open_embedded: OpenEmbedded) -> None:
        change_passphrase(open_embedded(), b"right")
        for wrong in (b"wrong", b"right ", b"\0right"):
            with pytest.raises(WrongKeyError, match="wrong passphrase") as caught:
                open_embedded(passphrase=lambda wrong=wrong: wrong)
            assert caught.value.exit_code == 24

    def test_none_given(self, quick: None, record: CasRecord, open_embedded: OpenEmbedded) -> None:
        change_passphrase(open_embedded(), b"right")
        with pytest.raises(WrongKeyError, match="locked with a passphrase, and none was given"):
            open_embedded()

    def test_empty_one(self, quick: None, record: CasRecord, open_embedded: OpenEmbedded) -> None:
        cas = open_embedded()
        with pytest.raises(UsageError, match="empty"):
            change_passphrase(cas, b"")
        assert open_embedded(passphrase=never).fetch(A) == record

    def test_old_ways_are_shut(
        self, quick: None, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str
    ) -> None:
        cas = open_embedded()
        key_file = Path(cas_path + ".key").read_bytes()
        change_passphrase(cas, b"first")
        change_passphrase(cas, b"second")
        with pytest.raises(WrongKeyError):
            open_embedded(passphrase=lambda: b"first")
        change_passphrase(cas, None)
        new_key_file = Path(cas_path + ".key").read_bytes()
        assert new_key_file != key_file
        change_passphrase(cas, None)
        for old in (key_file, new_key_file):
            Path(cas_path + ".key").write_bytes(old)
            with pytest.raises(WrongKeyError):
                open_embedded()

    def test_old_wrapping_is_not_in_the_files(
        self, quick: None, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str
    ) -> None:
        cas = open_embedded()
        with cas._file.reading() as connection:
            old = cas._file._stored_unlock(connection).wrapped
        change_passphrase(cas, b"new")
        for suffix in ("", "-wal"):
            assert old not in Path(cas_path + suffix).read_bytes()

    def test_interrupted_prompt_leaves_nothing_open(
        self, quick: None, record: CasRecord, open_embedded: OpenEmbedded
    ) -> None:
        change_passphrase(open_embedded(), b"right")

        def interrupted() -> bytes:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            open_embedded(passphrase=interrupted)

    def test_cas_that_cannot_is_told_apart(self) -> None:
        class Remote:
            url = "https://cas"

        with pytest.raises(UsageError, match="https://cas"):
            change_passphrase(Remote(), None)  # type: ignore[arg-type]

    def test_parameters_are_those_of_rfc_9106(self) -> None:
        assert Argon2(bytes(16)) == Argon2(bytes(16), memory_kib=64 * 1024, passes=3, lanes=4)

    @pytest.mark.parametrize(
        "argon2",
        [Argon2(bytes(15)), Argon2(bytes(16), 2**31), Argon2(bytes(16), 65536, 10**6), Argon2(bytes(16), 65536, 3, 99)],
    )
    def test_stored_parameters_cannot_ask_for_much(self, argon2: Argon2) -> None:
        with pytest.raises(CasError, match="out of range"):
            argon2.key(b"passphrase")

    @pytest.mark.parametrize("argon2", [None, Argon2(bytes(16), 64, 1, 1)], ids=["key file", "passphrase"])
    def test_stored_form_round_trip(self, argon2: Argon2 | None) -> None:
        stored = Unlock(b"w" * 48, argon2)
        assert Unlock.parse(stored.pack()) == stored
        for offset in range(len(stored.pack())):
            changed = bytearray(stored.pack())
            changed[offset] ^= 1
            with pytest.raises(CasError, match="damaged"):
                Unlock.parse(bytes(changed))

    def test_parameters_are_bound_to_the_wrapped_key(self) -> None:
        master = SecretKey.generate()
        stored = Unlock(
            Argon2(bytes(16), 64, 1, 1).key(b"p").wrap(master, b"something else"), Argon2(bytes(16), 64, 1, 1)
        )
        with pytest.raises(WrongKeyError):
            stored.open_with_passphrase(b"p")


class _DyingFile(apsw.VFSFile):
    def __init__(self, name: Any, flags: list[int], step: Callable[[], None]) -> None:
        super().__init__("", name, flags)
        self._step = step

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802 - apsw's name
        self._step()
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        self._step()
        super().xSync(flags)


class _DyingVfs(apsw.VFS):
    def __init__(self, step: Callable[[], None]) -> None:
        self.vfs_name = "fspf-cas-dying"
        super().__init__(self.vfs_name, "")
        self._step = step

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's name
        return _DyingFile(name, flags, self._step)


def run_and_die(path: str, steps: int, change: Callable[[EmbeddedCas], object], **options: Any) -> bool:
    """Do *change* in a child that ends, as if killed, before its *steps*-th call that alters a file; whether it did."""
    child = os.fork()
    if child == 0:
        left = steps

        def step(*_: object, **__: object) -> None:
            nonlocal left
            if left == 0:
                os._exit(DIED)
            left -= 1

        status = 1
        with contextlib.suppress(BaseException):
            vfs = _DyingVfs(step)
            cas = EmbeddedCas(path, vfs=vfs.vfs_name, **options)
            for name in ("open", "write", "fsync", "link", "rename", "replace", "unlink"):
                real = getattr(os, name)

                def stepped(*args: Any, real: Any = real, **keywords: Any) -> Any:
                    step()
                    return real(*args, **keywords)

                setattr(os, name, stepped)
            left = steps
            change(cas)
            status = 0
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in {0, DIED}
    return os.waitstatus_to_exitcode(status) == DIED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(None, b"new", id="key file to passphrase"),
        pytest.param(b"old", None, id="passphrase to key file"),
        pytest.param(b"old", b"new", id="passphrase to passphrase"),
        pytest.param(None, None, id="key file to key file"),
    ],
)
def test_killed_at_any_step_of_a_change(
    quick: None,
    record: CasRecord,
    open_embedded: OpenEmbedded,
    cas_path: str,
    scratch: Path,
    before: bytes | None,
    after: bytes | None,
) -> None:
    """Whichever step it was, one of the two ways opens the CAS, and the change can be made again."""
    for steps in range(200):
        change_passphrase(ways(open_embedded, before, after), before)
        died = run_and_die(
            cas_path,
            steps,
            lambda cas: change_passphrase(cas, after),
            passphrase=None if before is None else lambda: before,
        )
        cas = ways(open_embedded, before, after)
        assert cas.fetch(A) == record
        if not died:
            assert steps > 5
            assert cas.has_passphrase == (after is not None)
            break
        change_passphrase(cas, after)
        assert ways(open_embedded, after).fetch(A) == record
        assert not os.path.exists(cas_path + ".key.new")
        assert os.path.exists(cas_path + ".key") == (after is None)
        assert not [name for name in os.listdir(scratch) if name.startswith("cas.sqlite.key.")]  # nor half-made ones
    else:
        pytest.fail("the change never ended")


def test_leftover_of_a_killed_change_is_not_mistaken_for_the_key(
    quick: None, record: CasRecord, open_embedded: OpenEmbedded, cas_path: str
) -> None:
    """Killed before the store changed; and the next attempt does not get further."""
    write_key_file(cas_path + ".key.new")
    with contextlib.closing(apsw.Connection(cas_path)) as other:
        cas = open_embedded()
        other.execute("CREATE TRIGGER full BEFORE UPDATE ON meta BEGIN SELECT raise(ABORT, 'no'); END")
        with pytest.raises(CasError):
            change_passphrase(cas, b"new")
        other.execute("DROP TRIGGER full")
    assert open_embedded().fetch(A) == record
    change_passphrase(cas, b"new")
    assert open_embedded(passphrase=lambda: b"new").fetch(A) == record


def ways(open_embedded: OpenEmbedded, *passphrases: bytes | None) -> EmbeddedCas:
    """Open the CAS in one of the ways that should work now."""
    refusal: FspfError | None = None
    for passphrase in passphrases:
        try:
            return open_embedded(passphrase=None if passphrase is None else lambda given=passphrase: given)
        except WrongKeyError as exc:
            refusal = exc
    assert refusal is not None
    raise refusal


def test_killed_at_any_step_of_making(open_embedded: OpenEmbedded, scratch: Path) -> None:
    for steps in range(200):
        path = str(scratch / f"{steps}.sqlite")
        died = run_and_die(path, steps, lambda cas: cas.create(A, "data", Freshness.strict()))
        cas = open_embedded(path)
        records = cas.list()
        assert [one.name for one in records] in ([], ["data"])
        if not records:
            cas.create(A, "data", Freshness.strict())
        if not died:
            assert steps > 5
            assert records
            break
    else:
        pytest.fail("making never ended")
