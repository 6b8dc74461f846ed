"""docs/performance.md says what its measurements say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from experiments.bench.report import MEMORY_TARGET, TARGETS, ratio_lines, step_lines
from experiments.bench.startup import start_lines
from experiments.bench.sweep import hour_lines
from experiments.bench.tables import stage_lines
from experiments.bench.timing import Ratio, verdict
from experiments.bench.waiting import waiting_lines
from experiments.runtime.places import CHECKOUT

PAGE = (CHECKOUT / "docs/performance.md").read_text(encoding="utf-8")
FILES = sorted((CHECKOUT / "docs/performance").glob("*.json"))
MEASURED: dict[str, dict[str, Any]] = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FILES}
TABLES = re.findall(r"<!-- from ([\w., -]+): (\w+) -->\n(.*?)\n<!-- end -->", PAGE, re.S)
PRINTED = {
    "ratios": ratio_lines,
    "steps": step_lines,
    "start": start_lines,
    "stages": stage_lines,
    "waiting": waiting_lines,
    "hour": hour_lines,
}


@pytest.mark.parametrize(("names", "part", "text"), TABLES, ids=lambda value: value if len(value) < 80 else "")
def test_a_table_says_what_its_measurements_say(names: str, part: str, text: str):
    lines = text.splitlines()
    shapes = [MEASURED[name] for name in names.split(", ")]
    if part != "summary":
        printed = [PRINTED[part](shape) for shape in shapes]
        rows_printed = [row for table in printed for row in table[2:]]
        assert lines[:2] == printed[0][:2] and len(lines) > 2
        assert lines[2:] == [row for row in rows_printed if row in lines]  # whole rows, in their order
        return
    rows = {row.split(" |")[0].removeprefix("| "): row.split(" | ", maxsplit=1)[1] for row in lines[2:]}
    ratios = [{row["what"]: row for row in shape["ratios"]} for shape in shapes]
    expected = {}
    for one, other, target in TARGETS:
        if target is not None and f"{one} / {other}" in ratios[0]:
            values = [Ratio(*(row[f"{one} / {other}"][key] for key in ("median", "low", "high"))) for row in ratios]
            cells = [f"{v.median:.3f} ({v.low:.3f} to {v.high:.3f}) {verdict(v, target)}" for v in values]
            expected[f"{one} / {other}"] = f"≤ {target:.2f} | {' | '.join(cells)} |"
    one, other, target = MEMORY_TARGET
    sizes = [shape["bytes"][one]["total"] / shape["bytes"][other]["total"] for shape in shapes]
    cells = [f"{size:.3f} {'met' if size <= target else 'missed'}" for size in sizes]
    expected[f"{one} / {other}, peak bytes"] = f"≤ {target:.2f} | {' | '.join(cells)} |"
    assert rows == expected


def test_the_page_shows_every_measurement():
    assert {name for names, _, _ in TABLES for name in names.split(", ")} == set(MEASURED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_measurement_names_its_machine_and_no_place_on_it(file: Path):
    machine = MEASURED[file.stem]["machine"]
    assert machine["host"]["cpu"] and machine["versions"]["torch"]
    assert not re.search(r'"[^"]*=?(\.\.)?/\w+/', file.read_text(encoding="utf-8"))
