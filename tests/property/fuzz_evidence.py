"""atheris target: every parser of evidence, the first byte chooses which; started by `test_fuzz_evidence.py`.

    python tests/property/fuzz_evidence.py --seeds DIRECTORY          writes real inputs to begin with
    python tests/property/fuzz_evidence.py -max_total_time=60 DIRECTORY

What must hold is said by `tests/support/hostile.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["fspf.attestation", "fspf.core.factors"]):
    from tests.support.hostile import TARGETS, seeds

NAMES = sorted(TARGETS)


def one_input(data: bytes) -> None:
    if data:
        TARGETS[NAMES[data[0] % len(NAMES)]](data[1:])


def main() -> None:
    if sys.argv[1:2] == ["--seeds"]:
        directory = Path(sys.argv[2])
        for name, inputs in seeds().items():
            for number, data in enumerate(inputs):
                (directory / f"{name.replace(' ', '-')}-{number}").write_bytes(bytes([NAMES.index(name)]) + data)
        return
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
