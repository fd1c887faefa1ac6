"""Run cases on specimens and count.

Which cases there are is in `tools.lib.tampering`, what each must lead to in its oracle.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tools.lib.tampering.anatomy import Anatomy, dissect
from tools.lib.tampering.oracle import Examination, Truth
from tools.lib.tampering.patient import Patient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.tamper.specimens import Specimen
    from tools.lib.tampering.cases import Case


@dataclass(slots=True)
class Tally:
    """What was run, by group; what went wrong."""

    cases: Counter[str] = field(default_factory=Counter)
    without_effect: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.cases.values())

    def __str__(self) -> str:
        groups = ", ".join(f"{group} {count}" for group, count in sorted(self.cases.items()))
        return f"{self.total} cases in {self.seconds:.1f} s ({groups})"


def state_of(specimen: Specimen, case: Case) -> tuple[Anatomy, Truth]:
    """Return what opens after *case*: the newest state, or the one before it."""
    if not case.previous:
        return specimen.anatomy, specimen.truth
    assert specimen.previous is not None
    return specimen.anatomy, specimen.previous


def explore(specimen: Specimen, cases: Iterable[Case], tally: Tally, *, verify_every: int = 0) -> Tally:
    """Apply each case in place, examine, undo."""
    patient = Patient(specimen.anatomy)
    intact = patient.fingerprint()
    started = time.monotonic()
    for number, case in enumerate(cases):
        try:
            case.apply(patient)
            if not patient.touched:
                tally.without_effect += 1
                continue
            tally.cases[case.group] += 1
            _, truth = state_of(specimen, case)
            cas = specimen.cas
            examination = Examination(patient, truth, cas, case)
            examination.reading()
            if case.expected is not None and number % 3 == 0:
                examination.writing_is_refused()
            if verify_every and number % verify_every == 0:
                examination.verifying()
                examination.scrubbing()
            tally.faults += [f"{specimen.name}: {fault}" for fault in examination.faults]
        finally:
            patient.restore()
        if len(tally.faults) > 400:
            break
    (specimen.anatomy.path / "lock").unlink(missing_ok=True)
    intact.pop("lock", None)
    assert patient.fingerprint() == intact, "the undoing is wrong"
    tally.seconds += time.monotonic() - started
    return tally


def live_on(specimen: Specimen, cases: Iterable[Case], tally: Tally, scratch: Path) -> Tally:
    """Apply each case to a copy of its own, and go on writing there."""
    started = time.monotonic()
    for case in cases:
        copy = scratch / "copy"
        shutil.copytree(specimen.anatomy.path, copy)
        cas = specimen.cas.copy()
        anatomy = Anatomy(**{name: getattr(specimen.anatomy, name) for name in Anatomy.__slots__})
        anatomy.path = copy
        patient = Patient(anatomy)
        case.apply(patient)
        tally.cases[case.group] += 1
        examination = Examination(patient, state_of(specimen, case)[1], cas, case)
        examination.living()
        tally.faults += [f"{specimen.name}: {fault}" for fault in examination.faults]
        shutil.rmtree(copy)
        if len(tally.faults) > 400:
            break
    tally.seconds += time.monotonic() - started
    return tally


__all__ = ["Tally", "dissect", "explore", "live_on", "state_of"]
