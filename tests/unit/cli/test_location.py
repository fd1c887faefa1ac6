"""VOLUME:PATH is taken apart as docs/CLI.md says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fspf.cli.location import Location, parse_location
from fspf.core.errors import UsageError


@pytest.fixture
def here(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(scratch)
    for name in ("v", "v:w", "v:w:x"):
        Path(name).mkdir()
    Path("file").touch()
    return scratch


@pytest.mark.parametrize(
    ("argument", "volume", "path"),
    [
        pytest.param("v", "v", None, id="no path"),
        pytest.param("v:", "v", b"/", id="empty path"),
        pytest.param("v:/", "v", b"/", id="root"),
        pytest.param("v:a/b", "v", b"/a/b", id="slash is added"),
        pytest.param("v://a/./b//", "v", b"/a/b", id="slashes and dots are dropped"),
        pytest.param("v:a/../b", "v", b"/a/../b", id="dot dot is kept"),
        pytest.param("v:w", "v:w", None, id="a directory with a colon wins over a path"),
        pytest.param("v:w:x", "v:w:x", None, id="two colons"),
        pytest.param("v:w:y", "v:w", b"/y", id="longest directory wins"),
        pytest.param("v:q:y", "v", b"/q:y", id="colon in the path"),
        pytest.param("v:\udcff", "v", b"/\xff", id="not UTF-8"),
        pytest.param("nowhere", "nowhere", None, id="no directory"),
        pytest.param("nowhere:a:b", "nowhere", b"/a:b", id="no directory, first colon"),
        pytest.param("file:a", "file", b"/a", id="a file is no directory"),
        pytest.param(":a", ":a", None, id="an empty volume is none"),
    ],
)
def test_split(here: Path, argument: str, volume: str, path: bytes | None) -> None:
    assert parse_location(argument) == Location(volume, path)


@pytest.mark.parametrize("argument", ["", "a\0b"])
def test_impossible_argument_is_refused(argument: str) -> None:
    with pytest.raises(UsageError):
        parse_location(argument)


def test_required_path() -> None:
    with pytest.raises(UsageError, match="v:PATH"):
        Location("v", None).required()
    assert Location("v", None).inside == b"/"
    assert Location("v", b"/a").required() == b"/a"


def test_volume_name_that_is_not_utf8(here: Path) -> None:
    os.mkdir(b"\xfe:1")
    assert parse_location(os.fsdecode(b"\xfe:1:x")) == Location(os.fsdecode(b"\xfe:1"), b"/x")
