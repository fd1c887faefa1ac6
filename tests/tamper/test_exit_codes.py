"""The command line on altered volumes: the right exit code, one line of message, no wrong byte on stdout.

The cases are those of test_explorer.py, one or two of each group; here each costs processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fspf.cas import EmbeddedCas
from tests.tamper.specimens import Specimen
from tools.lib.tampering.anatomy import Anatomy
from tools.lib.tampering.blocks import block_cases, segment_cases
from tools.lib.tampering.cases import Case
from tools.lib.tampering.oracle import damage
from tools.lib.tampering.patient import Patient
from tools.lib.tampering.small import small_cases

REPO = Path(__file__).resolve().parents[2]


class Desk:
    """A CAS file that knows the specimens, and a place for copies."""

    def __init__(self, scratch: Path, specimen: Specimen) -> None:
        self.scratch, self.specimen = scratch, specimen
        self.url = f"sqlite://{scratch}/cas.sqlite"
        cas = EmbeddedCas(str(scratch / "cas.sqlite"))
        cas.import_records(specimen.cas.list(), override=False)
        cas.close()

    def copy(self, name: str) -> Patient:
        path = self.scratch / name
        shutil.copytree(self.specimen.anatomy.path, path)
        anatomy = Anatomy(**{name: getattr(self.specimen.anatomy, name) for name in Anatomy.__slots__})
        anatomy.path = path
        return Patient(anatomy)

    def fspf(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "fspf", *arguments],
            capture_output=True,
            timeout=60,
            cwd=REPO,
            env={**os.environ, "FSPF_CAS": self.url},
        )


@pytest.fixture
def desk(scratch: Path, specimens: dict[str, Specimen]) -> Desk:
    return Desk(scratch, specimens["closed"])


def one_of_each(cases: Iterator[Case], *, spread: int = 1) -> list[Case]:
    """One case for each group and outcome."""
    found: dict[tuple[str, object], list[Case]] = {}
    for case in cases:
        found.setdefault((case.group, case.expected), []).append(case)
    return [each[len(each) // 2] for each in found.values()][::spread]


def test_refused_volumes_have_their_exit_codes(desk: Desk) -> None:
    specimen = desk.specimen
    cases = one_of_each(small_cases(specimen.anatomy, specimen.material))
    codes = {case.expected.exit_code for case in cases if case.expected is not None}
    assert codes == {1, 20, 21, 23, 24}

    def check(numbered: tuple[int, Case]) -> list[str]:
        number, case = numbered
        patient = desk.copy(f"refused{number}")
        case.apply(patient)
        before = patient.fingerprint()
        expected = 0 if case.expected is None else case.expected.exit_code
        command = (("ls", "-lR"), ("info",), ("cat",))[number % 3]
        target = f"{patient.path}:/small" if command == ("cat",) else str(patient.path)
        done = desk.fspf(*command, target)
        problems = []
        if done.returncode != expected:
            problems.append(f"{command[0]} gave {done.returncode}, {expected} expected: {done.stderr!r}")
        if expected and (done.stdout or done.stderr.count(b"\n") != 1 or not done.stderr.startswith(b"fspf: error: ")):
            problems.append(f"{command[0]} wrote {done.stdout!r}, {done.stderr!r}")
        if command == ("cat",) and not expected and done.stdout != specimen.known[b"/small"]:
            problems.append("cat gave wrong bytes")
        if patient.fingerprint() != before:
            problems.append(f"{command[0]} changed the volume")
        shutil.rmtree(patient.path)
        return [f"{case.name}: {problem}" for problem in problems]

    with ThreadPoolExecutor(2) as pool:
        problems = [each for found in pool.map(check, enumerate(cases)) for each in found]
    assert not problems, "\n".join(problems)


def test_a_damaged_file_stops_cat_and_nothing_else(desk: Desk) -> None:
    """What comes before the damage is right, the exit code is 20; other files are whole; verify finds the place."""
    specimen = desk.specimen
    content = specimen.known[b"/big"]
    names = {path: ino for ino, each in specimen.truth.names.items() for _, _, path in each}
    tree = f"ino {names[b'/big']}"
    blocks = {block.slot for block in specimen.anatomy.blocks if block.tree == tree}
    chosen = [
        case
        for case in block_cases(specimen.anatomy, specimen.material)
        if case.group.startswith("block file") and int(case.name.split("slot ")[1].split(",")[0]) in blocks
    ]
    wanted = ("a middle bit flipped", "zeroed with its entry", "checksum made right", "entry too", "segment cut inside")
    cases = [next(case for case in chosen if case.name.endswith(word) or word in case.name) for word in wanted]

    def check(numbered: tuple[int, Case]) -> list[str]:
        number, case = numbered
        patient = desk.copy(f"damaged{number}")
        case.apply(patient)
        hurt = damage(patient)
        assert tree in hurt, case.name
        first = min(each.start for each in hurt[tree])
        problems = []
        done = desk.fspf("cat", f"{patient.path}:/big")
        if "namespace" not in hurt:
            if done.returncode != 20 or done.stdout != content[:first]:
                problems.append(f"cat: {done.returncode}, {len(done.stdout)} bytes, {first} expected: {done.stderr!r}")
            if hurt.keys() == {tree}:
                done = desk.fspf("cat", f"{patient.path}:/exact")
                if done.returncode != 0 or done.stdout != specimen.known[b"/exact"]:
                    problems.append(f"cat of a whole file: {done.returncode} {done.stderr!r}")
            done = desk.fspf("--json", "verify", str(patient.path))
            findings = json.loads(done.stdout)["findings"]
            kinds = {each.kind for each in hurt[tree]}
            if done.returncode != 20 or not any(f["kind"] in kinds and f.get("path") == "/big" for f in findings):
                problems.append(f"verify: {done.returncode} {findings}")
        shutil.rmtree(patient.path)
        return [f"{case.name}: {problem}" for problem in problems]

    with ThreadPoolExecutor(2) as pool:
        problems = [each for found in pool.map(check, enumerate(cases)) for each in found]
    assert not problems, "\n".join(problems)


def test_whole_segments_through_the_command_line(desk: Desk) -> None:
    """verify and scrub end by themselves, with 0 or 20, whatever lies in the place of a segment."""
    specimen = desk.specimen
    made = segment_cases(specimen.anatomy, specimen.material)
    cases = [case for case in made if "00000001" in case.name or "directory" in case.name or "stray" in case.name]

    def check(numbered: tuple[int, Case]) -> list[str]:
        number, case = numbered
        patient = desk.copy(f"segment{number}")
        case.apply(patient)
        problems = []
        for command in ("verify", "scrub"):
            done = desk.fspf(command, str(patient.path))
            if done.returncode not in {0, 20} or b"Traceback" in done.stderr or b"internal" in done.stderr:
                problems.append(f"{case.name}: {command} gave {done.returncode}: {done.stderr[-300:]!r}")
        if "stray" in case.name and problems:
            problems.append(f"{case.name}: a stray file is no damage")
        shutil.rmtree(patient.path)
        return problems

    with ThreadPoolExecutor(2) as pool:
        problems = [each for found in pool.map(check, enumerate(cases[::2])) for each in found]
    assert not problems, "\n".join(problems)


def test_the_tool_lists_applies_and_runs(desk: Desk) -> None:
    patient = desk.copy("volume")

    def tamper(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(REPO / "tools" / "tamper.py"), "--cas", desk.url, *arguments],
            capture_output=True,
            text=True,
            timeout=100,
        )

    path = str(patient.path)
    listed = tamper("list", path, "header", "magic")
    assert listed.returncode == 0, listed.stderr
    name = listed.stdout.splitlines()[0].partition("\t")[0]
    assert "magic" in name
    ran = tamper("run", path, "newest root", "--most", "30")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "30 cases in" in ran.stdout
    assert "0 faults" in ran.stdout
    assert desk.fspf("ls", path).returncode == 0, "run works on a copy"
    assert tamper("apply", path, name).returncode == 0
    assert desk.fspf("ls", path).returncode == 20
    assert tamper("apply", str(desk.copy("second").path), "no such case").returncode == 2
