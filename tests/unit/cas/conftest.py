"""Fixtures of the CAS's tests: a clock that is set, holders that are ended, and every CAS there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from fspf.cas import EmbeddedCas, assembly
from fspf.cas.client import RemoteCas
from fspf.core.anchor import Anchor, Cas, Holder
from fspf.volume.holder import this_process
from tests.support.casserver import thread_server
from tests.support.memstore import MemoryStore

NOW: Final = 1_800_000_000_000_000_000
SECOND: Final = 1_000_000_000


@dataclass
class World:
    """What a CAS sees of the world: the time, and which holders are gone."""

    now_ns: int = NOW
    gone: set[Holder] = field(default_factory=set)

    def clock(self) -> int:
        return self.now_ns

    def is_gone(self, holder: Holder) -> bool:
        return holder in self.gone

    def pass_seconds(self, seconds: float) -> None:
        self.now_ns += int(seconds * SECOND)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def cas_path(scratch: Path) -> str:
    return str(scratch / "cas.sqlite")


OpenEmbedded = Callable[..., EmbeddedCas]


@pytest.fixture
def open_embedded(cas_path: str, world: World) -> Iterator[OpenEmbedded]:
    """Open the CAS file of this test, again and again; all are closed at the end."""
    opened: list[EmbeddedCas] = []

    def open_one(path: str = cas_path, **options: object) -> EmbeddedCas:
        cas = EmbeddedCas(path, **({"clock": world.clock, "is_gone": world.is_gone} | options))  # type: ignore[arg-type]
        opened.append(cas)
        return cas

    yield open_one
    for cas in opened:
        cas.close()


@pytest.fixture
def remote(scratch: Path, world: World) -> Iterator[RemoteCas]:
    """A client of a server over TLS, whose store is in memory."""
    with thread_server(
        scratch, MemoryStore(), assembly.World(this_process("test"), world.clock, world.is_gone)
    ) as running:
        client = running.client()
        yield client
        client.close()


@pytest.fixture(params=["embedded", "server"])
def cas(request: pytest.FixtureRequest) -> Cas:
    """Every implementation of the Protocol, empty."""
    if request.param == "server":
        remote: Cas = request.getfixturevalue("remote")
        return remote
    open_embedded: OpenEmbedded = request.getfixturevalue("open_embedded")
    return open_embedded()


def volume(number: int) -> bytes:
    return number.to_bytes(16, "big")


def holder(label: str = "test") -> Holder:
    return Holder("host", "boot", 4711, 12345, 4026531836, label)


def anchor(generation: int, name: str = "") -> Anchor:
    """An anchor whose tag is its generation and, for a fork, a name."""
    return Anchor(generation, f"{generation}{name}".encode().ljust(16, b".") if generation else bytes(16))


def append(path: str | os.PathLike[str], data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)
