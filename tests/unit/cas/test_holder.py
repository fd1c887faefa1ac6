"""A holder goes everywhere whole: a part that is lost would make two writers one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fspf.cas import wire
from fspf.cas.sealing import pack_holder, unpack_holder
from fspf.core.anchor import Holder
from fspf.volume.holder import this_process

HOLDER = Holder("host", "boot", 4711, 12345, 4026531836, "mount", (1 << 48) - 1)


@pytest.mark.parametrize("name", [field.name for field in fields(Holder)])
def test_every_part_of_a_holder_arrives(name: str) -> None:
    value = getattr(HOLDER, name)
    changed: dict[str, Any] = {name: value + "x" if isinstance(value, str) else value - 1}
    other = replace(HOLDER, **changed)
    assert wire.to_holder(wire.holder_members(other)) == other != HOLDER
    assert unpack_holder(pack_holder(other)) == other


def test_a_lease_written_before_openings_were_told_apart_is_read() -> None:
    assert unpack_holder(pack_holder(HOLDER)[:-1]) == replace(HOLDER, opening=0)


def test_two_openings_of_one_process_differ() -> None:
    assert this_process("mount") != this_process("mount")
    assert 0 <= this_process("").opening < 1 << 53  # exact in JSON
