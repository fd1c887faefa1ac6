"""The job of the line on NumPy and pandas, and its data: `python -m benchmarks.macro.data_job make|imports|work DIR`.

Runs as a process of its own, as such jobs do. Who times it is apps.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

COLUMNS: Final = 64
CSV_SHARE: Final = 8  # one byte in so many is text
CSV_ROW_BYTES: Final = 40


def make(directory: Path, size: int) -> None:
    """Write *size* bytes: mostly a matrix, the rest a table of comma-separated values."""
    directory.mkdir()
    random = np.random.default_rng(2026)
    rows = size * (CSV_SHARE - 1) // CSV_SHARE // (4 * COLUMNS)
    np.save(directory / "matrix.npy", random.random((rows, COLUMNS), dtype=np.float32))
    lines = size // CSV_SHARE // CSV_ROW_BYTES
    frame = pd.DataFrame(
        {
            "day": np.arange(lines) // 500,
            "place": random.integers(0, 200, lines),
            "value": random.random(lines).round(6),
            "weight": random.random(lines).round(6),
        }
    )
    frame.to_csv(directory / "table.csv", index=False)


def work(directory: Path) -> None:
    """Read everything, and leave results as a matrix and as Parquet; print sums of them."""
    matrix = np.load(directory / "matrix.npy")
    means = matrix.mean(axis=0, dtype=np.float64)
    mapped = np.load(directory / "matrix.npy", mmap_mode="r")
    picked = mapped[np.random.default_rng(1).integers(0, len(mapped), 5000)]
    frame = pd.read_csv(directory / "table.csv")
    frame["product"] = frame["value"] * frame["weight"]
    grouped = frame.groupby(["day", "place"], as_index=False)[["value", "product"]].mean()
    frame.to_parquet(directory / "table.parquet")
    back = pd.read_parquet(directory / "table.parquet", columns=["product"])
    np.save(directory / "picked.npy", picked)
    print(
        f"{means.sum():.9g} {float(np.load(directory / 'picked.npy').sum()):.9g} "
        f"{len(grouped)} {back['product'].sum():.9g}"
    )


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1] == "work":
        work(Path(sys.argv[2]))
    else:  # `imports`: everything that the work needs is loaded now
        pd.DataFrame({"a": [1]}).to_parquet("/dev/null")
