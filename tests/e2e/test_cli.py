"""The command line from outside: what it promises in docs/CLI.md, and what bad input gets.

Each command runs as a process of its own. What the engine does is tested elsewhere; here count exit codes, output,
and that a command that failed has changed nothing.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

import fspf
from fspf.core.types import ROOT_INO, Ino
from fspf.volume.volume import Volume

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "CLI.md").read_text(encoding="utf-8")
CHUNK = 4096
SLOTS = 1024
Tree = dict[str, tuple[int, bytes]]


def _default_hangup() -> None:
    """A run under nohup ignores SIGHUP, and what it starts would inherit that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Cli:
    """Runs `fspf` with one CAS."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cas = home / "cas.sqlite"
        self.environment = {**os.environ, "FSPF_CAS": str(self.cas), "PYTHONPATH": str(ROOT)}
        self.environment.pop("FSPF_PASSPHRASE_FILE", None)

    def start(self, *words: str | bytes | Path, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fspf", *words]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        pipes["preexec_fn"] = _default_hangup
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command, cwd=self.home, env=self.environment, **(pipes | options)
        )
        return process

    def __call__(self, *words: str | bytes | Path, code: int = 0, **options: Any) -> subprocess.CompletedProcess[bytes]:
        with self.start(*words, **options) as process:
            out, err = process.communicate(timeout=120)
        text = err.decode(errors="replace") if err else ""
        assert process.returncode == code, f"{words}: exit code {process.returncode}, {code} expected\n{text}"
        assert "Traceback" not in text
        assert "internal error" not in text
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def refuses(self, code: int, *words: str | bytes | Path, message: str = "") -> str:
        """Run a command that must fail with one line (and perhaps a hint), and change nothing in `home`."""
        before = snapshot(self.home)
        done = self(*words, code=code)
        assert snapshot(self.home) == before, "the command failed and yet changed something"
        lines = done.stderr.decode().splitlines()
        errors = [line for line in lines if line.startswith("fspf: error: ")]
        assert len(errors) == 1, lines
        assert all(
            line.startswith(("fspf: error: ", "fspf: hint: ", "fspf: note: ", "fspf: warning: ")) for line in lines
        )
        assert re.search(message, errors[0]), errors[0]
        return errors[0]

    def json(self, *words: str | bytes | Path, code: int = 0) -> Any:
        """Run a command with --json and return its only document."""
        return json.loads(self(*words, "--json", code=code).stdout)


def snapshot(top: Path) -> Tree:
    """Names, types, modes, times and contents of everything; of the CAS only that it reads the same."""
    found: Tree = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if re.search(r"sqlite(-wal|-shm)?$", name):
            continue
        status = path.lstat()
        content = b""
        if stat.S_ISREG(status.st_mode):
            content = xxhash.xxh3_128_digest(path.read_bytes()) + status.st_mtime_ns.to_bytes(8, "little")
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(os.fsencode(path))
        found[name] = (status.st_mode, content)
    return found


def plain(top: Path) -> dict[bytes, tuple[int, int, int, bytes]]:
    """What a round trip must keep of a tree: type and mode, size, mtime, content."""
    found = {}
    for directory, names, files in os.walk(os.fsencode(top)):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = xxhash.xxh3_128_digest(file.read())
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found[os.path.relpath(path, os.fsencode(top))] = (status.st_mode, size, status.st_mtime_ns, content)
    return found


def make_source(top: Path) -> None:
    (top / "d" / "e").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "a").write_bytes(b"hello")
    (top / "zero").touch()
    (top / "d" / "big").write_bytes(bytes(range(256)) * 1024)  # 64 chunks
    (top / "d" / "e" / "deep").write_bytes(b"deep")
    (top / "d" / "hard").hardlink_to(top / "d" / "big")
    (top / "link").symlink_to("d/big")
    (top / "dangling").symlink_to("nowhere")
    (top / ".hidden").write_text("hidden")
    (top / "public").mkdir()
    (top / "public" / "page").write_bytes(b"authenticated, not secret " * 400)
    with open(os.fsencode(top) + b"/odd \xff\x1b[31m\nname", "wb") as file:
        file.write(b"odd")
    os.utime(top / "a", ns=(1, 1_600_000_000_123_456_789))


@pytest.fixture(scope="module")
def specimen(scratch_root: Path) -> Iterator[Path]:
    """A source, its volume and the CAS; tests take copies."""
    home = scratch_root / "cli-specimen"
    home.mkdir()
    make_source(home / "src")
    cli = Cli(home)
    cli("encrypt", "src", "v", "--authenticated", "public", "--segment-slots", str(SLOTS), "--name", "specimen")
    yield home
    shutil.rmtree(home)


@pytest.fixture
def cli(scratch: Path, specimen: Path) -> Cli:
    """A `Cli` whose home has `src`, `v` and the CAS of the specimen."""
    subprocess.run(["cp", "-a", "--sparse=always", f"{specimen}/.", scratch], check=True)
    return Cli(scratch)


@pytest.fixture
def bare(scratch: Path) -> Cli:
    """A `Cli` without anything."""
    return Cli(scratch)


# -- knowing where things lie


def opened(cli: Cli, name: str = "v", **options: Any) -> Volume:
    return fspf.open(cli.home / name, str(cli.cas), **options)


def content_slots(cli: Cli) -> dict[str, int]:
    """Slot of the top block of each file with content, by name of the path."""
    volume = opened(cli, read_only=True)
    try:
        rows = volume.namespace_connection.execute(
            "SELECT ino, pointer FROM inode WHERE pointer IS NOT NULL"
        ).fetchall()
        return {os.fsdecode(volume.path_of(ino)): int.from_bytes(pointer[:5], "little") for ino, pointer in rows}
    finally:
        volume.abandon()


def chunk_slot(cli: Cli, path: str, index: int) -> int:
    """Slot of one chunk of a file whose tree has one level of nodes."""
    from fspf.volume.slots import _Nodes

    volume = opened(cli, read_only=True)
    nodes = _Nodes(volume)
    try:
        question = "SELECT pointer, depth FROM inode WHERE ino = ?"
        ((pointer, depth),) = volume.namespace_connection.execute(question, (volume.stat(path).st_ino,))
        assert depth == 1
        low, high, epoch, more, counter, tag = struct.unpack("<IBHBQ16s", pointer)
        node = nodes.open(low | high << 32, epoch | more << 16, counter, tag, 0)
        return int.from_bytes(node[32 * index : 32 * index + 5], "little")
    finally:
        nodes.close()
        volume.abandon()


def namespace_slots(cli: Cli) -> list[int]:
    """Slots whose checksum is in the table and that belong to the namespace's tree: its node and its pages."""
    from fspf.volume.slots import SlotMap

    volume = opened(cli, read_only=True)
    try:
        assert volume.root_record is not None
        slots = SlotMap(volume.root_record.end_of_slots)
        slots.add(volume, volume.root_record.namespace, "namespace")
        slots.close()
        return [n for n in range(volume.root_record.end_of_slots) if slots._bits[n >> 3] >> (n & 7) & 1]
    finally:
        volume.abandon()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def tamper(cli: Cli, slot: int, *, fix_checksum: bool = True, name: str = "v") -> None:
    """Alter a slot as an attacker would: with a checksum that fits."""
    path = cli.home / name / "segments" / f"{slot // SLOTS:08x}"
    flip(path, slot % SLOTS * CHUNK + 100)
    if fix_checksum:
        with path.open("r+b") as file:
            file.seek(slot % SLOTS * CHUNK)
            checksum = xxhash.xxh3_64_intdigest(file.read(CHUNK))
            file.seek(SLOTS * CHUNK + slot % SLOTS * 16)
            file.write(checksum.to_bytes(8, "little"))


def reseal(path: Path) -> None:
    """Make the checksum at the end of a header or root fit again."""
    body = path.read_bytes()[:-8]
    path.write_bytes(body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little"))


# -- what the commands do


def test_round_trip(cli: Cli) -> None:
    cli("decrypt", "v", "out")
    assert plain(cli.home / "out") == plain(cli.home / "src")
    assert (cli.home / "out/d/hard").samefile(cli.home / "out/d/big")
    cli("decrypt", "v:d/e", "part")
    assert (cli.home / "part" / "deep").read_bytes() == b"deep"


def test_update_makes_the_volume_equal(cli: Cli) -> None:
    source = cli.home / "src"
    (source / "a").write_bytes(b"changed")
    (source / "new").write_bytes(b"new")
    shutil.rmtree(source / "d")
    document = cli.json("encrypt", "--update", "src", "v")
    assert document["removed"] >= 1
    cli("decrypt", "v", "out")
    assert plain(cli.home / "out") == plain(source)
    again = cli.json("encrypt", "--update", "--checksum", "src", "v")
    assert (again["removed"], again["data_bytes"]) == (0, 0)


def test_ls(cli: Cli) -> None:
    assert cli("ls", "v:d").stdout == b"big\ne\nhard\n"
    assert b"odd \xff\x1b[31m\nname\n" in cli("ls", "v").stdout
    assert b".hidden" not in cli("ls", "v").stdout
    assert b".hidden\n" in cli("ls", "-a", "v").stdout
    assert cli("ls", "v:a").stdout == b"/a\n"
    recursive = cli("ls", "-R", "v").stdout
    assert b"\n/d/e:\ndeep\n" in recursive
    long = cli("ls", "-l", "v").stdout.decode(errors="surrogateescape")
    assert re.search(r"^lrwxrwxrwx .* link -> d/big$", long, re.MULTILINE)
    assert re.search(r"^-rw-r--r-- +1 .* 5 20..-..-.. ..:..:.. a$", long, re.MULTILINE)
    entries = {e["path"]: e for e in cli.json("ls", "-aR", "v")["entries"]}
    assert entries["/d/hard"]["nlink"] == 2
    assert entries["/public/page"]["protection"] == "authenticated"
    assert entries["/a"]["mtime_ns"] == 1_600_000_000_123_456_789
    assert entries["/link"]["target"] == "d/big"
    assert [e["path_base64"] for e in entries.values() if "path_base64" in e] == ["L29kZCD/G1szMW0KbmFtZQ=="]


def test_ls_of_a_terminal_is_escaped(cli: Cli) -> None:
    leader, follower = os.openpty()
    try:
        cli("ls", "v", stdout=follower)
        shown = os.read(leader, 1 << 16)
    finally:
        os.close(leader)
        os.close(follower)
    assert b"odd \\xff\\x1b[31m\\nname" in shown
    assert b"\x1b" not in shown


def test_cat(cli: Cli) -> None:
    assert cli("cat", "v:a").stdout == b"hello"
    assert cli("cat", "v:/link").stdout == bytes(range(256)) * 1024
    assert cli("cat", b"v:odd \xff\x1b[31m\nname").stdout == b"odd"
    assert cli("cat", "v:zero").stdout == b""


def test_volume_with_colons_in_its_name(cli: Cli) -> None:
    (cli.home / "v").rename(cli.home / "v:a:b")
    assert cli("cat", "v:a:b:a").stdout == b"hello"
    (cli.home / "v:a").mkdir()
    assert cli("cat", "v:a:b:a").stdout == b"hello"
    assert b"big" in cli("ls", "v:a:b:d").stdout


def test_verify_and_scrub_of_a_whole_volume(cli: Cli) -> None:
    before = snapshot(cli.home)
    done = cli("verify", "v")
    assert re.fullmatch(rb"\d+ files, \d+ bytes verified.*\n", done.stdout)
    assert done.stderr == b""
    assert b"no damage found" in cli("scrub", "v").stdout
    document = cli.json("verify", "v")
    assert (document["ok"], document["findings"]) == (True, [])
    assert document["bytes"] == sum(
        p.stat().st_size for p in (cli.home / "src").rglob("*") if p.is_file() and not p.is_symlink()
    ) - len(bytes(range(256)) * 1024)
    assert snapshot(cli.home) == before


def test_rekey_keeps_the_data_and_changes_the_key(cli: Cli) -> None:
    before = cli.json("cas", "show", "v")["records"][0]
    assert cli.json("rekey", "v")["key_version"] == 2
    after = cli.json("cas", "show", "v")["records"][0]
    assert (after["key_version"], after["key_fingerprint"] != before["key_fingerprint"]) == (2, True)
    cli("verify", "v")
    assert cli("cat", "v:a").stdout == b"hello"


def test_info_beside_a_writer(cli: Cli) -> None:
    with opened(cli, label="a writer") as volume:
        document = cli.json("info", "v")
        assert document["lease"]["label"] == "a writer"
        assert document["lease"]["pid"] == os.getpid()
        assert cli("cat", "v:a").stdout == b"hello"
        volume.write_bytes("later", b"x")
    assert cli.json("info", "v")["lease"] is None
    assert cli("cat", "v:later").stdout == b"x"


def test_passphrase(cli: Cli) -> None:
    for name, text in (("one", "first\n"), ("two", "second"), ("empty", "\n")):
        (cli.home / name).write_text(text)
    assert cli.json("passwd", "--new-passphrase-file", "one")["lock"] == "passphrase"
    cli.refuses(24, "cat", "v:a", message="no terminal")
    cli.refuses(24, "cat", "v:a", "--passphrase-file", "two", message="wrong passphrase")
    cli.refuses(24, "cat", "v:a", "--passphrase-file", "empty")
    cli.refuses(24, "cat", "v:a", "--passphrase-file", "nowhere", message="nowhere")
    cli.refuses(24, "cat", "v:a", "--passphrase-fd", "77")
    assert cli("cat", "v:a", "--passphrase-file", "one").stdout == b"hello"
    with (cli.home / "one").open("rb") as file:
        fd = file.fileno()
        assert cli("cat", "v:a", "--passphrase-fd", str(fd), pass_fds=[fd]).stdout == b"hello"
    cli.environment["FSPF_PASSPHRASE_FILE"] = "one"
    cli("passwd", "--new-passphrase-file", "two")
    cli.refuses(24, "ls", "v")
    cli.environment["FSPF_PASSPHRASE_FILE"] = "two"
    cli("ls", "v")
    assert cli.json("passwd", "--remove")["lock"] == "keyfile"
    del cli.environment["FSPF_PASSPHRASE_FILE"]
    cli("ls", "v")


def test_records_travel_to_another_cas(cli: Cli) -> None:
    (cli.home / "secret").write_text("pass\n")
    (cli.home / "wrong").write_text("other\n")
    secret = ("--export-passphrase-file", "secret")
    assert cli.json("cas", "export", "specimen", "-o", "records", *secret)["records"] == 1
    assert stat.S_IMODE((cli.home / "records").stat().st_mode) == 0o600
    cli.refuses(1, "cas", "export", "-o", "records", *secret, message="exists")
    cli.refuses(24, "cas", "export", "-o", "other")
    other = Cli(cli.home)
    other.environment["FSPF_CAS"] = str(cli.home / "other.sqlite")
    assert other("cas", "import", "records", "--export-passphrase-file", "wrong", code=24).stdout == b""
    assert other.json("cas", "import", "records", *secret)["records"][0]["name"] == "specimen"
    assert other("cat", "v:a").stdout == b"hello"
    flip(cli.home / "records", 60)
    cli.refuses(20, "cas", "import", "records", *secret)
    cli.refuses(1, "cas", "import", "nowhere", *secret, message="nowhere")


def test_removing_a_record_must_be_confirmed(cli: Cli) -> None:
    cli.refuses(2, "cas", "remove", "v", message="--yes")
    assert cli("cat", "v:a").stdout == b"hello"
    cli.json("cas", "remove", "specimen", "--yes")
    cli.refuses(23, "cat", "v:a")
    cli.refuses(23, "cas", "show", "specimen")
    assert cli.json("cas", "show") == {"cas": f"sqlite://{cli.cas}", "records": [], "complete": True}


def test_two_volumes_of_one_name(cli: Cli) -> None:
    cli("create", "w", "--name", "specimen", "--segment-slots", "64")
    cli.refuses(2, "cas", "show", "specimen", message="2 volumes")
    identity = cli.json("info", "w")["volume_id"]
    assert cli.json("cas", "show", identity)["records"][0]["volume_id"] == identity
    assert len(cli.json("cas", "show", "--all")["records"]) == 2


# -- JSON is as documented


def example(command: str) -> Any:
    text = DOCUMENT.split(f"## `fspf {command}")[1].split("\n## ")[0]
    return json.loads(text.split("```json\n")[1].split("```")[0])


def shape(value: Any) -> Any:
    """Names of members and types of values; of an array its first element."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def alike(found: Any, documented: Any) -> bool:
    """Same members, same types; an empty array and null stand for anything."""
    if isinstance(documented, dict) and isinstance(found, dict):
        return documented.keys() == found.keys() and all(alike(found[name], documented[name]) for name in documented)
    if isinstance(documented, list) and isinstance(found, list):
        return not found or not documented or alike(found[0], documented[0])
    return "NoneType" in {found, documented} or found == documented


@pytest.mark.parametrize(
    "command",
    [
        "create",
        "encrypt",
        "decrypt",
        "ls",
        "cat",
        "info",
        "verify",
        "scrub",
        "passwd",
        "rekey",
        "cas show",
        "cas export",
        "cas import",
        "cas remove",
    ],
)
def test_json_is_as_documented(cli: Cli, command: str) -> None:
    (cli.home / "secret").write_text("pass\n")
    secret = ("--export-passphrase-file", "secret")
    if command == "cas import":
        cli("cas", "export", "-o", "records", *secret)
    if command in {"verify", "scrub"}:
        tamper(cli, content_slots(cli)["/a"], fix_checksum=command == "verify")
    words: dict[str, list[str]] = {
        "create": ["new", "--segment-slots", "64"],
        "encrypt": ["src", "new"],
        "decrypt": ["v", "out"],
        "ls": ["v:a"],
        "cat": ["v:a"],
        "passwd": ["--new-passphrase-file", "secret"],
        "cas export": ["-o", "records", *secret],
        "cas import": ["records", *secret],
        "cas remove": ["v", "--yes"],
    }
    document = cli.json(*command.split(), *words.get(command, ["v"]), code=20 if command in {"verify", "scrub"} else 0)
    expected = example(command)
    assert alike(shape(document), shape(expected)), f"{shape(document)}\n{shape(expected)}"
    if command == "cat":
        assert document["content_base64"] == "aGVsbG8="


def test_an_error_is_one_json_document_on_stderr(cli: Cli) -> None:
    done = cli("cat", "v:nowhere", "--json", code=1)
    assert done.stdout == b""
    error = json.loads(done.stderr)["error"]
    assert (error["exit_code"], error["errno"]) == (1, 2)


# -- what bad input gets


@pytest.mark.parametrize("command", ["ls", "info", "verify", "scrub", "rekey"])
def test_what_is_no_volume(bare: Cli, command: str) -> None:
    (bare.home / "directory").mkdir()
    (bare.home / "directory" / "file").touch()
    for name in ("nowhere", "directory", "directory/file"):
        Cli(bare.home).refuses(23 if name == "directory" and command != "scrub" else 1, command, name)
    bare("create", "v", "--segment-slots", "64")  # now there is a CAS
    bare.refuses(1, command, "directory", message="not a volume")


@pytest.mark.parametrize("command", ["ls", "info", "verify", "scrub", "rekey"])
@pytest.mark.parametrize("what", ["version", "flags"])
def test_a_newer_format(cli: Cli, command: str, what: str) -> None:
    with (cli.home / "v/header").open("r+b") as file:
        file.seek({"version": 8, "flags": 10}[what])
        file.write(b"\x02\x00")
    reseal(cli.home / "v/header")
    cli.refuses(1, command, "v", message="use a newer fspf")


@pytest.mark.parametrize("names", [("header",), ("keyring", "keyring.bak"), ("root.a", "root.b")], ids="+".join)
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "gone", "resealed"])
def test_damaged_files_around_the_segments(cli: Cli, names: tuple[str, ...], damage: str) -> None:
    for name in names:
        path = cli.home / "v" / name
        if damage == "empty":
            os.truncate(path, 0)
        elif damage == "cut":
            os.truncate(path, path.stat().st_size - 1)
        elif damage == "gone":
            path.unlink()
        else:
            flip(path, 30)
            if damage == "resealed" and not name.startswith("keyring"):
                reseal(path)
    for command in ("ls", "info", "rekey"):
        if names == ("header",) and damage == "resealed":
            code = cli(command, "v", code=23).returncode  # another volume id: the CAS does not know it
            assert code == 23
        else:
            cli.refuses(20, command, "v")
    if names == ("header",) and damage == "resealed":
        return
    before = snapshot(cli.home)
    done = cli("verify", "v", code=20)
    assert snapshot(cli.home) == before
    assert b"internal" not in done.stderr
    document = cli.json("verify", "v", code=20)
    assert document["findings"]
    assert {each["kind"] for each in document["findings"]} <= {"missing", "torn", "tampered"}


@pytest.mark.parametrize("name", ["keyring", "keyring.bak"])
def test_one_damaged_copy_of_the_keyring_hinders_nobody_and_is_told(cli: Cli, name: str) -> None:
    flip(cli.home / "v" / name, 20)
    assert cli("cat", "v:a").stdout == b"hello"
    document = cli.json("verify", "v", code=20)
    assert [(each["path"], each["kind"]) for each in document["findings"]] == [(name, "torn")]


@pytest.mark.parametrize(("fix_checksum", "kind"), [(True, "tampered"), (False, "torn")])
def test_a_damaged_chunk_is_one_finding(cli: Cli, fix_checksum: bool, kind: str) -> None:
    tamper(cli, content_slots(cli)["/a"], fix_checksum=fix_checksum)
    document = cli.json("verify", "v", code=20)
    (finding,) = document["findings"]
    assert (finding["path"], finding["offset"], finding["length"], finding["kind"]) == ("/a", 0, 5, kind)
    assert (document["damaged_files"], document["damaged_bytes"]) == (1, 5)
    cli.refuses(20, "cat", "v:a", message="'/a': bytes 0 to 4")
    assert cli("cat", "v:d/e/deep").stdout == b"deep"
    cli("decrypt", "v", "out", code=20)
    expected = plain(cli.home / "src")
    del expected[b"a"]
    found = plain(cli.home / "out")
    assert found == expected
    cli("scrub", "v", code=0 if fix_checksum else 20)


def test_cat_writes_what_comes_before_the_damage(cli: Cli) -> None:
    content = bytes(range(256)) * 1024
    tamper(cli, chunk_slot(cli, "d/big", 10))
    assert cli("cat", "v:d/big", code=20).stdout == content[: 10 * CHUNK]
    document = json.loads(cli("cat", "--json", "v:d/big", code=20).stdout)
    assert document["complete"] is False
    assert base64.b64decode(document["content_base64"]) == content[: len(base64.b64decode(document["content_base64"]))]


def test_a_missing_segment(cli: Cli) -> None:
    (cli.home / "v/segments/00000000").unlink()
    cli.refuses(20, "ls", "v")
    document = cli.json("verify", "v", code=20)
    assert document["findings"]
    os.truncate(cli.home / "v/header", 4096)


def test_a_cut_segment(cli: Cli) -> None:
    os.truncate(cli.home / "v/segments/00000000", 3 * CHUNK)
    document = cli.json("verify", "v", code=20)
    assert {each["kind"] for each in document["findings"]} <= {"missing", "torn"}
    cli("scrub", "v", code=20)


def test_an_older_copy_is_refused(cli: Cli) -> None:
    shutil.copytree(cli.home / "v", cli.home / "old")
    with opened(cli) as volume:
        volume.write_bytes("a", b"newer")
    for command in ("ls", "info", "rekey"):
        message = cli.refuses(21, command, "old", message="generation")
        assert len(re.findall(r"\b\d+\b", message)) >= 2
    cli.refuses(21, "encrypt", "--update", "src", "old")
    document = cli.json("verify", "old", code=21)
    assert [each["kind"] for each in document["findings"]] == ["stale"]
    assert cli("cat", "v:a").stdout == b"newer"


def test_an_older_segment_mixed_in(cli: Cli) -> None:
    shutil.copytree(cli.home / "v/segments", cli.home / "old")
    with opened(cli) as volume:
        volume.write_bytes("a", b"newer" * 1000)
        volume.commit()
        volume.write_bytes("d/big", b"x" * 20000)
    shutil.copyfile(cli.home / "old/00000000", cli.home / "v/segments/00000000")
    document = cli.json("verify", "v", code=20)
    assert document["findings"]
    cli("decrypt", "v", "out", code=20)


def test_a_copy_while_the_original_is_leased(cli: Cli) -> None:
    shutil.copytree(cli.home / "v", cli.home / "copy")
    with opened(cli, label="the other"):
        cli.refuses(22, "encrypt", "--update", "src", "copy", message="the other")
        cli.refuses(22, "rekey", "v")
        cli.refuses(22, "cas", "remove", "specimen", "--yes", message="the other")
        assert cli("cat", "copy:a").stdout == b"hello"
    cli("rekey", "v")


def test_unknown_volume_and_missing_cas(cli: Cli) -> None:
    other = Cli(cli.home)
    other.environment["FSPF_CAS"] = str(cli.home / "nowhere.sqlite")
    for command in ("ls", "info", "verify", "rekey", "passwd"):
        other.refuses(23, command, *([] if command == "passwd" else ["v"]), message="nowhere.sqlite")
    other("create", "w", "--segment-slots", "64")
    other.refuses(23, "ls", "v", message="does not know volume")


@pytest.mark.parametrize("content", [b"", b"no database at all, but some text" * 200])
def test_a_cas_that_is_none(cli: Cli, content: bytes) -> None:
    (cli.home / "bad.sqlite").write_bytes(content)
    cli.refuses(23, "ls", "v", "--cas", "bad.sqlite")
    assert (cli.home / "bad.sqlite").read_bytes() == content


def test_a_cas_url_that_is_none(cli: Cli) -> None:
    cli.refuses(2, "ls", "v", "--cas", "https://example.org/cas")


def test_a_wrong_key_file(cli: Cli, specimen: Path) -> None:
    other = Cli(cli.home / "x")
    other.home.mkdir()
    other("create", "w", "--segment-slots", "64")
    shutil.copyfile(other.home / "cas.sqlite.key", cli.home / "cas.sqlite.key")
    cli.refuses(24, "ls", "v", message="key file")
    (cli.home / "cas.sqlite.key").unlink()
    cli.refuses(24, "ls", "v", message="key file")


def test_paths_in_a_volume(cli: Cli) -> None:
    cli.refuses(1, "cat", "v:nowhere", message="no such file")
    cli.refuses(1, "cat", "v:d", message="directory")
    cli.refuses(1, "cat", "v:dangling", message="no such file")
    cli.refuses(1, "cat", "v:a/b", message="not a directory")
    cli.refuses(2, "cat", "v", message="path")
    cli.refuses(1, "ls", "v:nowhere", message="no such file")
    cli.refuses(1, "decrypt", "v:nowhere", "out")
    cli.refuses(1, "cat", "v:" + "x" * 300)


def test_destinations(cli: Cli) -> None:
    (cli.home / "full").mkdir()
    (cli.home / "full" / "file").touch()
    cli.refuses(1, "create", "v", message="choose another name")
    cli.refuses(1, "create", "full")
    cli.refuses(1, "encrypt", "src", "v", message="exists")
    cli.refuses(1, "encrypt", "src", "full", message="exists")
    cli.refuses(1, "decrypt", "v", "full", message="exists")
    cli.refuses(2, "decrypt", "v", "v/out", message="within the volume")
    cli.refuses(2, "verify", "v", "--salvage", "v/out")
    cli.refuses(2, "create", "nowhere/w")
    cli.refuses(1, "encrypt", "nowhere", "w", message="does not exist")
    cli.refuses(1, "encrypt", "src/a", "w", message="not a directory")
    cli.refuses(2, "encrypt", "src", "src/w", message="within each other")
    cli.refuses(2, "encrypt", ".", "w", message="within each other")
    cli.refuses(2, "encrypt", "--update", "v/segments", "v", message="within each other")
    cli.refuses(2, "encrypt", "src", "w", "--authenticated", "nowhere")
    cli.refuses(2, "encrypt", "src", "w", "--authenticated", "../x")
    cli.refuses(2, "encrypt", "src", "w", "--checksum")
    cli.refuses(2, "encrypt", "--update", "src", "v", "--name", "x")
    cli.refuses(1, "encrypt", "--update", "src", "w", message="no such volume")
    assert cli.json("cas", "show")["records"][0]["name"] == "specimen"
    assert len(cli.json("cas", "show")["records"]) == 1


def test_sockets_and_unreadable_files(bare: Cli) -> None:
    source = bare.home / "src"
    source.mkdir()
    (source / "good").write_bytes(b"good")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
    done = bare("encrypt", "src", "v", "--segment-slots", "64")
    assert b"fspf: warning: socket: " in done.stderr
    (source / "secret").write_bytes(b"secret")
    (source / "secret").chmod(0)
    (source / "closed").mkdir()
    (source / "closed").chmod(0)
    try:
        done = bare("encrypt", "src", "w", "--segment-slots", "64", code=1, preexec_fn=drop_reading_everything)
        assert b"fspf: error: secret: Permission denied" in done.stderr
        assert b"fspf: error: closed: Permission denied" in done.stderr
        assert b"fspf: hint: " in done.stderr
    finally:
        (source / "closed").chmod(0o755)
    assert bare("cat", "w:good").stdout == b"good"
    bare("cat", "w:secret", code=1)
    bare("verify", "w")
    bare("encrypt", "--update", "src", "w")
    assert bare("cat", "w:secret").stdout == b"secret"


def drop_reading_everything() -> None:
    """Let root, after exec, be refused what its own files' modes refuse."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_odd_sources(bare: Cli) -> None:
    source = bare.home / "src"
    source.mkdir()
    (source / ("n" * 255)).write_bytes(b"long")
    with (source / "sparse").open("wb") as file:
        file.truncate(4 << 30)
        file.seek(3 << 30)
        file.write(b"in the middle")
    os.mkfifo(source / "fifo")
    bare("encrypt", "src", "v", "--segment-slots", "1024")
    info = bare.json("info", "v")
    assert info["bytes"] > 4 << 30 > info["space_used"] * 100
    bare("verify", "v")
    bare("decrypt", "v", "out")
    assert (bare.home / "out/sparse").stat().st_blocks < 1000
    assert stat.S_ISFIFO((bare.home / "out/fifo").stat().st_mode)
    assert (bare.home / "out" / ("n" * 255)).read_bytes() == b"long"


# -- a command that fails or is ended leaves nothing behind


def big_source(home: Path, files: int = 3000) -> Path:
    source = home / "many"
    source.mkdir()
    for number in range(files):
        (source / f"{number}").write_bytes(os.urandom(20_000))
    return source


def wait_for_temporary(home: Path) -> Path:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = list(home.glob(".w.*.fspf-new/segments/*"))
        if found and found[0].stat().st_blocks > 1000:
            return found[0].parent.parent
        time.sleep(0.002)
    pytest.fail("no temporary volume appeared")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_an_ended_encrypt_leaves_nothing(bare: Cli, number: signal.Signals, code: int) -> None:
    big_source(bare.home)
    bare("create", "other", "--segment-slots", "64")
    before = set(os.listdir(bare.home))
    with bare.start("encrypt", "many", "w") as process:
        wait_for_temporary(bare.home)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert b"Traceback" not in err
    assert set(os.listdir(bare.home)) == before
    assert [each["name"] for each in bare.json("cas", "show")["records"]] == ["other"]


def test_a_killed_encrypt_is_cleaned_up_by_the_next(bare: Cli) -> None:
    big_source(bare.home)
    with bare.start("encrypt", "many", "w") as process:
        temporary = wait_for_temporary(bare.home)
        process.kill()
        process.communicate()
    assert not (bare.home / "w").exists()
    assert temporary.exists()
    done = bare("encrypt", "many", "w")
    assert b"left by a command that was killed" in done.stderr
    assert not list(bare.home.glob(".w.*"))
    assert [each["name"] for each in bare.json("cas", "show")["records"]] == ["w"]
    bare("verify", "w")


def test_a_temporary_in_use_is_left_alone(bare: Cli) -> None:
    bare("create", "v", "--segment-slots", "64")
    (bare.home / "src").mkdir()
    leftover = bare.home / ".w.01234567.fspf-new"
    (bare.home / "v").rename(leftover)
    with (leftover / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        bare("encrypt", "src", "w")
        assert leftover.exists()


def test_a_full_disk_leaves_nothing(bare: Cli) -> None:
    import resource

    big_source(bare.home, 200)
    bare("create", "other", "--segment-slots", "64")
    before = set(os.listdir(bare.home))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = bare("encrypt", "many", "w", code=1, preexec_fn=limit)
    assert b"fspf: error: " in done.stderr
    assert set(os.listdir(bare.home)) == before
    assert [each["name"] for each in bare.json("cas", "show")["records"]] == ["other"]


# -- stdout


def test_a_reader_that_stops_is_no_error_message(cli: Cli) -> None:
    with cli.start("ls", "-lR", "v") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize(
    "words", [["ls", "v"], ["cat", "v:a"], ["info", "v"], ["verify", "v"], ["scrub", "v"], ["ls", "--json", "v"]]
)
def test_a_full_stdout_is_an_error(cli: Cli, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = cli(*words, code=1, stdout=full)
    assert b"cannot write the result" in done.stderr


def test_a_closed_stdout_is_an_error_and_harms_no_file(cli: Cli) -> None:
    before = snapshot(cli.home)
    line = 'exec "$0" -m fspf ls v >&-'
    done = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable], cwd=cli.home, env=cli.environment, capture_output=True
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"stdout is closed" in done.stderr
    assert snapshot(cli.home) == before


# -- salvage


def test_salvage_writes_what_verifies(cli: Cli) -> None:
    slots = content_slots(cli)
    tamper(cli, slots["/a"])
    document = cli.json("verify", "v", "--salvage", "rescued", code=20)
    assert document["damaged_files"] == 1
    expected, found = plain(cli.home / "src"), plain(cli.home / "rescued")
    assert {**expected, b"a": b"", b"a.fspf-damaged": b""} == {**found, b"a": b"", b"a.fspf-damaged": b""}
    assert b"a" not in found
    assert (cli.home / "rescued/a.fspf-damaged").read_bytes() == bytes(5)
    report = json.loads((cli.home / "rescued.fspf-damage.json").read_text())
    assert (report["incomplete"], report["failed"], report["complete"], report["stale"]) == (1, 0, True, None)
    assert report["damaged"][0]["lost"] == [{"offset": 0, "length": 5, "kind": "tampered"}]
    cli.refuses(1, "verify", "v", "--salvage", "rescued", message="exists")


def test_salvage_of_every_damaged_namespace_page(cli: Cli) -> None:
    """Each page of the namespace is lost once: what comes out is right, and nothing wrong does."""
    source = {path: row[3] for path, row in plain(cli.home / "src").items()}
    pristine = (cli.home / "v/segments/00000000").read_bytes()
    opened_with_damage = 0
    for number, slot in enumerate(namespace_slots(cli)):
        tamper(cli, slot)
        document = cli.json("verify", "v", "--salvage", f"out{number}", code=20)
        assert any(each["scope"] in {"namespace", "directory"} for each in document["findings"])
        rescued = cli.home / f"out{number}"
        if rescued.exists():
            opened_with_damage += 1
            for path, row in plain(rescued).items():
                if path.startswith(b"lost+found"):
                    assert stat.S_ISDIR(row[0]) or row[3] in source.values()
                else:
                    assert row[3] == source[path]
        (cli.home / "v/segments/00000000").write_bytes(pristine)
    assert opened_with_damage
    cli("verify", "v")


def test_salvage_of_an_older_state_only_when_asked(cli: Cli) -> None:
    shutil.copytree(cli.home / "v", cli.home / "old")
    with opened(cli) as volume:
        volume.write_bytes("a", b"newer")
    cli("verify", "old", "--salvage", "out", code=21)
    assert not (cli.home / "out").exists()
    done = cli("verify", "old", "--salvage", "out", "--accept-stale", code=21)
    assert b"OLD" in done.stderr
    assert (cli.home / "out/a").read_bytes() == b"hello"
    assert json.loads((cli.home / "out.fspf-damage.json").read_text())["stale"]


def test_every_slot_in_use_matters_to_verify(cli: Cli) -> None:
    """Whatever slot that the state reaches is altered, verify says so; and only then."""
    volume = opened(cli, read_only=True)
    assert volume.root_record is not None
    end = volume.root_record.end_of_slots
    volume.abandon()
    path = cli.home / "v/segments/00000000"
    pristine = path.read_bytes()
    table = pristine[SLOTS * CHUNK :]
    used = [slot for slot in range(min(end, SLOTS)) if any(table[slot * 16 : slot * 16 + 16])]
    missed = []
    for slot in used[:: max(len(used) // 25, 1)]:
        tamper(cli, slot)
        with cli.start("verify", "-q", "v") as process:
            process.communicate()
        if process.returncode != 20:
            missed.append((slot, process.returncode))
        path.write_bytes(pristine)
    assert missed == []


def test_salvage_around_damaged_pages_of_a_large_namespace(bare: Cli) -> None:
    """One page of many is lost: the files whose rows are on the others come out, under their names or in lost+found."""
    volume = fspf.create(bare.home / "v", str(bare.cas), segment_slots=SLOTS * 16, commit_interval=None)
    with volume:
        for directory in range(8):
            volume.mkdir(f"d{directory}")
            for number in range(300):
                volume.write_bytes(f"d{directory}/{number}", f"{directory} {number}".encode())
    path = bare.home / "v/segments/00000000"
    slots = namespace_slots(bare)
    assert len(slots) > 60
    pages = slots[5 :: len(slots) // 6]
    lost = []
    for number, slot in enumerate(pages):
        with path.open("r+b") as file:
            file.seek(slot * CHUNK)
            kept = file.read(CHUNK)
            file.seek(slot * CHUNK)
            file.write(bytes(CHUNK))
        bare("verify", "-q", "v", "--salvage", f"out{number}", code=20)
        with path.open("r+b") as file:
            file.seek(slot * CHUNK)
            file.write(kept)
        rescued = bare.home / f"out{number}"
        if not rescued.exists():  # a page without which nothing can be opened
            continue
        found = [each for each in rescued.rglob("*") if each.is_file()]
        for each in found:
            if each.parent.name != "lost+found":
                assert each.read_text() == f"{each.parent.name[1:]} {each.name}"
        lost.append(2400 - len(found))
    assert len(lost) >= len(pages) - 1
    assert sorted(lost)[len(lost) // 2] < 100
    bare("verify", "-q", "v")


CONTRADICTIONS = {
    "link count": ("UPDATE inode SET nlink = 5 WHERE ino = {a}", "/a", "names are not there"),
    "link count of a directory": ("UPDATE inode SET nlink = 9 WHERE ino = {d}", "/d", "link count 9, 3 expected"),
    "a name too many": ("INSERT INTO dirent VALUES (1, 9999999, x'71', {a})", "/q", "more names than its link count"),
    "a name that leads nowhere": ("INSERT INTO dirent VALUES (1, 9999998, x'71', 9999999)", "/q", "cannot be read"),
    "an inode without a name": ("DELETE FROM dirent WHERE ino = {a}", "", "no name leads to inode"),
    "one place twice": (
        "UPDATE inode SET pointer = (SELECT pointer FROM inode WHERE ino = {a}) WHERE ino = {deep}",
        "",
        "is used by",
    ),
    "parent": ("UPDATE inode SET parent = 1 WHERE ino = {e}", "/d/e", "its parent is inode 1"),
    "sum of sizes": ("UPDATE inode SET size = 4 WHERE ino = {a}", "", "bytes expected by the root record"),
    "no name": ("INSERT INTO dirent VALUES (1, 9999997, x'612f62', {a})", "/a/b", "this is no name"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_contradictions_in_authentic_data_are_found(cli: Cli, what: str) -> None:
    statement, path, detail = CONTRADICTIONS[what]
    with opened(cli) as volume:
        inodes = {name.rpartition("/")[2]: volume.stat(name).st_ino for name in ("a", "d", "d/e", "d/e/deep")}
        with volume.lock, volume.namespace.change():
            volume.namespace.next_cookie = 10_000_000
            volume.namespace.next_ino = max(volume.namespace.next_ino, 10_000_000)
            volume.namespace_connection.execute(statement.format(**inodes))
    document = cli.json("verify", "v", code=20)
    found = [each for each in document["findings"] if each["kind"] == "inconsistent"]
    assert any(each["path"] == path and detail in each["detail"] for each in found), document["findings"]


def test_unlinked_files_that_a_crash_left_are_a_note(cli: Cli) -> None:
    volume = opened(cli)
    handle = volume.open_file(Ino(volume.stat("a").st_ino))
    volume.unlink(ROOT_INO, b"a")
    volume.commit()
    handle.close()
    volume.abandon()
    document = cli.json("verify", "v")
    assert any("1 unlinked files" in note for note in document["notes"])
