"""Which CAS a URL, the environment or the default names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fspf.cas import open_cas, parse_url
from fspf.core.errors import CasError, UsageError
from fspf.core.freshness import Freshness


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///srv/cas.sqlite", "/srv/cas.sqlite"),
        ("sqlite:////srv/cas.sqlite", "/srv/cas.sqlite"),
        ("sqlite:///srv/with%20blank%25.sqlite", "/srv/with blank%.sqlite"),
        ("/srv/../srv/cas.sqlite", "/srv/cas.sqlite"),
        ("/srv/100%20.sqlite", "/srv/100%20.sqlite"),
        ("cas.sqlite", os.path.abspath("cas.sqlite")),
        ("./a://b", os.path.abspath("a:/b")),
    ],
)
def test_url(url: str, path: str) -> None:
    assert parse_url(url) == path


@pytest.mark.parametrize(
    "url",
    ["https://cas.example:18765", "etcd://a,b", "sqlite://host/x", "sqlite://", "sqlite:///", "/srv/", "", "a\0b"],
)
def test_what_names_no_cas_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="sqlite:///path"):
        parse_url(url)


def test_url_of_an_open_cas_opens_it_again(scratch: Path) -> None:
    cas = open_cas(str(scratch / "a %20 ü?#.sqlite"))
    record = cas.create(bytes(16), "x", Freshness.strict())
    again = open_cas(cas.url, create=False)
    assert again.fetch(bytes(16)) == record
    cas.close()
    again.close()


def test_default_is_in_the_users_data_directory(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSPF_CAS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(scratch / "data"))
    cas = open_cas()
    assert cas.url == f"sqlite://{scratch}/data/fspf/cas.sqlite"
    assert stat.S_IMODE((scratch / "data/fspf").stat().st_mode) == 0o700
    cas.close()


def test_relative_data_directory_is_ignored(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSPF_CAS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    monkeypatch.setenv("HOME", str(scratch))
    cas = open_cas()
    assert cas.url == f"sqlite://{scratch}/.local/share/fspf/cas.sqlite"
    cas.close()


def test_environment_names_it(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSPF_CAS", f"sqlite://{scratch}/env.sqlite")
    cas = open_cas()
    assert cas.url == f"sqlite://{scratch}/env.sqlite"
    cas.close()
    cas = open_cas(f"{scratch}/named.sqlite")
    assert cas.url == f"sqlite://{scratch}/named.sqlite"
    cas.close()


def test_reading_makes_nothing(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSPF_CAS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(scratch))
    with pytest.raises(CasError, match="no CAS file"):
        open_cas(create=False)
    assert os.listdir(scratch) == []
