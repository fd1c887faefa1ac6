"""What a mount does by itself, without a mount: when it is idle, what its metrics look like, what a line of --watch says."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fspf.cli.status import watch_line
from fspf.mount.metrics import METRICS, render, write_file
from fspf.mount.upkeep import Idleness

DOCS = Path(__file__).parents[3] / "docs"


def example() -> dict[str, Any]:
    text = (DOCS / "CLI.md").read_text(encoding="utf-8").split("## `fspf status")[1]
    document: dict[str, Any] = json.loads(text.split("```json\n")[1].split("```")[0])
    return document


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        pytest.param([(5, 0, False), (9.9, 0, False)], [False, False], id="too early"),
        pytest.param([(10, 0, False)], [True], id="nothing ever happened"),
        pytest.param(
            [(9, 1, False), (18, 1, False), (19, 1, False)], [False, False, True], id="counted from the last use"
        ),
        pytest.param([(10, 0, True), (19, 0, False), (20, 0, False)], [False, False, True], id="open files are use"),
        pytest.param([(10, 1, True), (100, 1, True)], [False, False], id="open for long"),
    ],
)
def test_idleness(states: list[tuple[float, int, bool]], expected: list[bool]) -> None:
    idleness = Idleness(10.0, 0.0, 0)
    assert [idleness.due(now, activity, in_use=in_use) for now, activity, in_use in states] == expected


def test_idleness_that_was_refused_counts_anew() -> None:
    idleness = Idleness(10.0, 0.0, 0)
    assert idleness.due(10, 0, in_use=False)
    idleness.postpone(10, 2)
    assert not idleness.due(19, 2, in_use=False)
    assert idleness.due(20, 2, in_use=False)


def test_metrics_are_what_prometheus_reads() -> None:
    document = example()
    families = {family.name: family for family in text_string_to_metric_families(render(document))}
    samples = {sample.name: sample for family in families.values() for sample in family.samples}
    assert samples["fspf_requests_total"].value == 812
    assert samples["fspf_requests_total"].labels == {"volume": "0f3c…", "mountpoint": "/mnt"}
    assert samples["fspf_mount_info"].labels["freshness"] == "strict"
    assert samples["fspf_failed"].value == 0
    assert samples["fspf_storage_used_bytes"].value == 18010 * 4096
    for family in families.values():
        assert family.documentation
        assert re.fullmatch(r"fspf_[a-z_]+", family.name)
        assert family.type in {"counter", "gauge"}
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
    assert len(samples) == len(METRICS) + 1  # all of them are known of a mount


def test_every_metric_is_documented_and_back() -> None:
    text = (DOCS / "MOUNT.md").read_text(encoding="utf-8").split("## Monitoring")[1].split("\n## ")[0]
    documented = set(re.findall(r"`(fspf_[a-z_]+)", "\n".join(re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE))))
    assert documented == {f"fspf_{metric.name}" for metric in METRICS} | {"fspf_mount_info"}


def test_what_a_mount_does_not_count_is_not_shown() -> None:
    document = example()
    del document["counters"]["open_files"]
    assert "fspf_open_files" not in render(document)


@pytest.mark.parametrize("name", ['quote"s', "back\\slash", "new\nline", "\udcff", "ü"])
def test_names_cannot_break_out_of_a_label(name: str) -> None:
    families = list(text_string_to_metric_families(render({**example(), "mountpoint": f"/{name}"})))
    labels = families[0].samples[0].labels
    assert labels["mountpoint"] == f"/{name}".replace("\udcff", "�")
    assert len(families) == len(METRICS) + 1


def test_the_file_is_replaced_at_once(scratch: Path) -> None:
    path = scratch / "m.prom"
    write_file(str(path), "old\n")
    with path.open() as reader:
        write_file(str(path), "new\n")
        assert reader.read() == "old\n"
    assert path.read_text() == "new\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(scratch) == ["m.prom"]
    with pytest.raises(FileNotFoundError):
        write_file(str(scratch / "nowhere" / "m.prom"), "x")


def test_watch_shows_rates() -> None:
    before, after = example(), example()
    after["uptime_s"] += 2.0
    after["commits"] += 1
    after["counters"] |= {"requests": 1012, "written_bytes": 2 << 20, "cache_hits": 9129, "cache_misses": 144}
    assert watch_line(before, after).split() == [
        *("100", "0", "B", "1.0", "MiB", "1", "8", "0", "0", "B", "3", "50.0", "MiB", "90", "%", "0")
    ]
