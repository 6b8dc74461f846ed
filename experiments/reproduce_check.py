"""Runs the study reproduce_check and compares its means with published ranges: `python -m experiments.reproduce_check`

Needs the DeBERTa-v3-base weights and GLUE (from the hub or folders) and a GPU. It starts with what `python -m
experiments check +study=reproduce_check` does, and trains nothing if that fails. study.smoke=true runs the whole study
on stand-ins, where the ranges do not apply. Further words are overrides as for run.py (store.root=...).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from elalora.errors import UserError
from experiments.check import check, study_plans
from experiments.config.compose import compose_run
from experiments.config.explain import explain
from experiments.runtime.pipes import as_command
from experiments.runtime.places import CONF
from experiments.studies.expansion import Cell, cells_of
from experiments.studies.stages import run_study

STUDY = "reproduce_check"
RANGES = CONF / "study" / "reproduce_ranges.csv"


@dataclass(frozen=True)
class Range:
    """The range of one cell's mean, in points, and the reading that it holds for."""

    arm: str
    task: str
    reading: str
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Verdict:
    """A cell with its mean over finished seeds; passed is None if the range is not applied."""

    range: Range
    mean: float | None
    seeds: int
    passed: bool | None


def ranges() -> list[Range]:
    """The published ranges with their sources."""
    with RANGES.open(encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [Range(r["arm"], r["task"], r["reading"], float(r["low"]), float(r["high"]), r["source"]) for r in rows]


def judge(cells: Iterable[Cell], stated: Iterable[Range], apply: bool = True) -> list[Verdict]:
    """Compares every cell of the study with its range, if the ranges `apply`; a cell with a missing run fails."""
    cells = list(cells)
    verdicts = []
    for expected in stated:
        plans = [cell.plan for cell in cells if (cell.arm, cell.task) == (expected.arm, expected.task) and cell.plan]
        results = [done.result() for plan in plans if (done := plan.finished()) is not None]
        readings = [(r["metric"], r["readings"][expected.reading]) for r in results]
        scores = [reading["report"]["metrics"][metric] for metric, reading in readings if reading is not None]
        mean = fmean(scores) if scores else None
        complete = mean is not None and len(scores) == len(plans)
        passed = complete and mean is not None and expected.low <= mean <= expected.high
        verdicts.append(Verdict(expected, mean, len(scores), passed if apply else None))
    return verdicts


def table(verdicts: Iterable[Verdict]) -> str:
    """One line per cell."""
    lines = [f"{'arm':<18}{'task':<6}{'reading':<9}{'mean':>7}  {'seeds':<7}{'range':<17}{'source':<10}verdict"]
    for v in verdicts:
        r = v.range
        mean = "-" if v.mean is None else f"{v.mean:.2f}"
        passed = {True: "pass", False: "FAIL", None: "not applied"}[v.passed]
        stated = f"{r.low:.2f} .. {r.high:.2f}"
        lines.append(f"{r.arm:<18}{r.task:<6}{r.reading:<9}{mean:>7}  {v.seeds:<7}{stated:<17}{r.source:<10}{passed}")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Returns the exit code: 0 if all cells pass or no range applies, 1 if one or a run failed, 2 for a mistake."""
    from experiments.runs.run import run_plans

    try:
        config = compose_run([f"+study={STUDY}", *words])
        if check(study_plans(cells_of(config))):
            print("nothing was trained")
            return 1
        code = run_study(config, run_plans)
        verdicts = judge(cells_of(config), ranges(), apply=not config.study.smoke)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"elalora: {explain(error)}", file=sys.stderr)
        return 2
    print(table(verdicts))
    if config.study.smoke:
        print("smoke run on stand-ins: the ranges do not apply")
    return max(code, int(any(verdict.passed is False for verdict in verdicts)))


if __name__ == "__main__":
    as_command(lambda: main(sys.argv[1:]))
