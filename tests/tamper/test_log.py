"""Every byte of an intent log that is needed, altered: refused, or (behind the anchored record) of no effect.

The cases are in `tools.lib.tampering.log`; what the log is for, in tests/unit/volume/test_intent_log.py.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fspf.core.errors import FreshnessError, FspfError, IntegrityError
from fspf.core.format import ROOT_NAMES, Header
from fspf.volume.volume import Volume
from tests.fault.memcas import MemoryCas
from tests.property.model import Seens, differences, tree_in
from tests.support.fakekernel import ROOT
from tests.support.fakemount import FakeMount
from tests.support.plugin import NIGHTLY
from tests.tamper.explorer import Tally, explore
from tests.tamper.specimens import Specimen
from tools.lib.tampering import fields
from tools.lib.tampering.anatomy import Anatomy
from tools.lib.tampering.cases import Case
from tools.lib.tampering.log import HARMLESS, LOG, chain_cases, idle_cases
from tools.lib.tampering.patient import Patient

ANCHORED = 3
RECORDS = 4


@dataclass(slots=True)
class Killed:
    """A volume whose writer was killed when the CAS did not know of its last record yet."""

    anatomy: Anatomy
    cas: bytes
    newest: Seens
    anchored: Seens


def _state(path: Path, snapshot: bytes) -> Seens:
    with Volume.open(path, MemoryCas(snapshot), read_only=True) as volume:
        return tree_in(volume)


@pytest.fixture(scope="module")
def killed(scratch_root: Path) -> Iterator[Killed]:
    where = scratch_root / "killed with a log"
    path, copy = where / "volume", where / "copy"
    where.mkdir()
    cas = MemoryCas()
    snapshot = b""
    with Volume.create(path, cas, segment_slots=64, commit_interval=None) as volume, FakeMount(volume) as mounted:
        kernel = mounted.kernel
        ino = kernel.create(ROOT, b"f").ino
        for number in range(6):  # an earlier round, which lies behind
            kernel.write(ino, number, b"%d" % number * 10)
            kernel.fsync(ino)
        volume.commit()
        for number in range(RECORDS):
            if number == ANCHORED:
                snapshot = cas.snapshot()
                shutil.copytree(path, where / "anchored")
            kernel.write(ino, number, b"record %d" % number)
            kernel.create(ROOT, b"%d" % number)
            kernel.fsync(ino)
        shutil.copytree(path, copy)
        for each in (copy, where / "anchored"):
            (each / "lock").unlink()
        commits = volume._commits
        assert commits is not None
        assert commits.generation == commits._base_generation + RECORDS
    header = Header.parse((copy / "header").read_bytes())
    state = volume.root_record
    anatomy = Anatomy(copy, header, state, *ROOT_NAMES, 1)  # type: ignore[arg-type]  # only its path is looked at
    yield Killed(anatomy, snapshot, _state(copy, snapshot), _state(where / "anchored", snapshot))
    shutil.rmtree(where)


def _cases(killed: Killed) -> list[Case]:
    return list(chain_cases(killed.anatomy, RECORDS, ANCHORED))


def test_every_byte_of_the_log_is_named(killed: Killed) -> None:
    raw = (killed.anatomy.path / LOG).read_bytes()
    table = fields.log_fields(raw, RECORDS)
    assert not fields.unnamed_bytes(
        {name: place for name, place in table.items() if name != fields.LEFT_OVER}, table[fields.LEFT_OVER][0]
    )
    assert table[fields.LEFT_OVER][1] == len(raw) == fields.LOG_LEN
    assert any(raw[table[fields.LEFT_OVER][0] :]), "nothing is left of the earlier round"
    assert {name for name in table if not name.startswith("record ")} <= set(HARMLESS)


def test_every_field_has_cases(killed: Killed) -> None:
    cases = _cases(killed)
    groups = Counter(case.group for case in cases)
    names = {
        name.split()[2] for name in fields.log_fields((killed.anatomy.path / LOG).read_bytes(), 1) if "record" in name
    }
    assert {f"log {name}" for name in names} <= set(groups)
    assert max(Counter(case.name for case in cases).values()) == 1


def test_an_altered_log_is_refused_or_of_no_effect(killed: Killed) -> None:
    patient = Patient(killed.anatomy)
    faults = []
    cases = _cases(killed)
    for case in (
        cases if NIGHTLY else [each for number, each in enumerate(cases) if number % 3 == 0 or "byte" not in each.name]
    ):
        case.apply(patient)
        try:
            found: FspfError | Seens
            try:
                found = _state(killed.anatomy.path, killed.cas)
            except FspfError as exc:
                found = exc
            if isinstance(found, FspfError):
                right = case.expected is not None and type(found) in {IntegrityError, FreshnessError}
                if not right:
                    faults.append(f"{case.name}: {found!r}")
            elif case.expected is not None:
                faults.append(f"{case.name}: it opens")
            else:
                expected = killed.anchored if case.previous else killed.newest
                faults += [f"{case.name}: {line}" for line in differences(expected, found)]
        finally:
            patient.restore()
    assert not faults, "\n".join(faults[:30])
    assert killed.newest != killed.anchored
    assert len(cases) > 1000


def test_the_log_of_a_closed_volume_is_harmless(specimens: dict[str, Specimen]) -> None:
    """Why: `HARMLESS` says it."""
    specimen = specimens["closed"]
    cases = list(idle_cases(specimen.anatomy))
    assert all(case.expected is None for case in cases)
    tally = explore(specimen, cases, Tally(), verify_every=3)
    assert not tally.faults, "\n".join(tally.faults[:30])


def test_the_log_of_a_volume_that_was_mounted_and_closed_is_harmless(scratch: Path) -> None:
    cas = MemoryCas()
    path = scratch / "volume"
    with Volume.create(path, cas, segment_slots=64, commit_interval=None) as volume, FakeMount(volume) as mounted:
        for number in range(3):
            mounted.kernel.fsync(mounted.kernel.create(ROOT, b"%d" % number).ino)
    snapshot = cas.snapshot()
    expected = _state(path, snapshot)
    raw = (path / LOG).read_bytes()
    assert raw.startswith(fields.LOG_MAGIC)
    (path / "lock").unlink()
    anatomy = Anatomy(path, Header.parse((path / "header").read_bytes()), volume.root_record, *ROOT_NAMES, 1)  # type: ignore[arg-type]
    patient = Patient(anatomy)
    for case in idle_cases(anatomy):
        case.apply(patient)
        try:
            assert not differences(expected, _state(path, snapshot)), case.name
        finally:
            patient.restore()
