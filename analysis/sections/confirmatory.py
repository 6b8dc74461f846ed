"""Confirmatory tables: the comparisons that a study declared before it ran, and no others.

The family comes from the study, never from the runs that happen to be stored. A comparison is tested once, when none of
its runs is open; until then it counts in the correction with p = 1. Sentences are made from the tests: none says
"better" or "worse" unless its corrected p is below the family's level, the settings were matched and the data is the
official one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table, p_value, signed, signed_range
from analysis.reading.folders import Unfinished
from analysis.reading.stored import Stored
from analysis.reading.study import Study
from analysis.sections.arms import PARAMETER_TOLERANCE, TUNED, listed, manifest_notes, training_differences
from analysis.stats.seeds import holm, paired_d, seeds_needed, sign_flip, summary, win_tie_loss
from elalora.errors import UserError
from experiments.store.name import short_id
from experiments.studies.smallest_p import smallest_p

if TYPE_CHECKING:
    from experiments.config.study import FamilyConfig

WORTH = 0.5  # points; the difference for which the table says how many seeds would find it
SAMPLED = 99_999  # sign patterns above 16 seeds, drawn by a fixed seed


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The confirmatory table and its sentences; empty without a study that declares a family."""
    study = stored.declared
    if study is None or study.family is None:
        return []
    confirmation = confirm(stored.known, study, stored.unfinished)
    tables = {"confirmatory": confirmation.table}
    return [Section(f"Study {study.name}: confirmatory", tables, lines=confirmation.sentences)]


@dataclass(frozen=True)
class Confirmation:
    """The table, and a sentence for every comparison in the same order."""

    table: Table
    sentences: list[str]


def confirm(
    runs: pd.DataFrame, study: Study, unfinished: Sequence[Unfinished] = (), level: float = 0.95
) -> Confirmation:
    """Tests the family of comparisons that a study declares.

    Args:
        runs: from `load_runs`; runs outside the study are ignored.
        study: from `analysis.reading.study.load_study`.
        unfinished: from `load_runs(...).attrs`, to tell failed runs from those that are still to come.
        level: of the intervals, which are not corrected.

    Raises:
        UserError: the study declares no family, or an arm of it has no run in the confirmatory part.
    """
    family, cells = study.family, study.cells
    if family is None:
        raise UserError(f"study {study.name} declares no confirmatory comparisons; add study.family to its file")
    part = cells[cells["part"] == family.part]
    if absent := {family.baseline, *family.arms} - set(part["arm"]):
        raise UserError(f"study {study.name}: the part {family.part} has no arm {', '.join(sorted(absent))}")
    done = {row["id"]: row for row in runs[runs["id"].isin(list(part["id"]))].to_dict("records")}
    failed = {run.short_id: run.ending for run in unfinished if run.ending}
    records = [
        _comparison(part, done, failed, family, arm, budget, level) for budget in family.budgets for arm in family.arms
    ]
    corrected = holm([record.get("p", 1.0) for record in records])
    for record, q in zip(records, corrected, strict=True):
        if "p" in record:
            record["p_holm"] = float(q)
        record["claim"] = bool(record.get("p_holm", 1.0) < family.alpha) and not record["no_claim"]
    notes = _notes(study.name, family, records, level)
    in_family = runs[runs["id"].isin(list(done))]
    for _, cell in in_family.groupby(["task", "budget"], sort=True):
        notes += manifest_notes(cell)
    sentences = [sentence(record, family) for record in records]
    caption = f"Confirmatory: study {study.name}, part {family.part}, differences to {family.baseline} in points."
    return Confirmation(_table(caption, pd.DataFrame(records), records, notes), sentences)


def _comparison(
    part: pd.DataFrame, done: Mapping[str, Any], failed: Mapping[str, str], family: FamilyConfig, arm: str, budget: str,
    level: float,
) -> dict[str, Any]:  # fmt: skip
    """Everything about one arm at one budget; "p" only when none of its runs is open."""
    base = family.baseline
    at = part[(part["budget"] == budget) & part["arm"].isin([arm, base])]
    ids = {(c["arm"], c["task"], int(c["seed"])): c["id"] for c in at.to_dict("records")}
    tasks, seeds = sorted(set(at["task"])), sorted({int(seed) for seed in at["seed"]})
    lost = {key for key, run in ids.items() if run not in done and run and short_id(run) in failed}
    open_runs = [key for key, run in ids.items() if run not in done and key not in lost]
    present = {key: done[run] for key, run in ids.items() if run in done}
    record: dict[str, Any] = {
        "arm": arm, "baseline": base, "budget": budget, "tasks": len(tasks), "missing": len(open_runs),
        "failed": len(lost), "collapsed": sum(run["collapsed"] for run in present.values()),
        "no_claim": _no_claim(list(present.values())),
    }  # fmt: skip
    sizes = [[run["params_final"] for key, run in present.items() if key[0] == name] for name in (arm, base)]
    if all(sizes):
        size, base_size = (sum(counts) / len(counts) for counts in sizes)
        smaller = min(size, base_size)
        record |= {"params": size, "params_baseline": base_size}
        record["params_apart"] = abs(size - base_size) / smaller if smaller else math.nan
    whole = [s for s in seeds if all((a, t, s) in present for a in (arm, base) for t in tasks)]
    record["n"] = len(whole)
    if not whole:
        return record
    gaps = np.array(
        [[present[arm, t, s]["score"] - present[base, t, s]["score"] for t in tasks] for s in whole]
    )  # (seeds, tasks)
    means = gaps.mean(axis=1)
    s = summary(means, level)
    record |= {"mean": s.mean, "sd": s.sd, "low": s.low, "high": s.high, "seeds": " ".join(map(str, whole))}
    record |= {f"mean_{task}": float(gap) for task, gap in zip(tasks, gaps.mean(axis=0), strict=True)}
    record["wins"], record["ties"], record["losses"] = win_tie_loss(means)
    if len(whole) >= 2:
        record["d"] = paired_d(means)
        if s.sd > 0:
            record["seeds_needed"] = seeds_needed(WORTH, s.sd, family.alpha, family.m)
    if not open_runs:
        record["p"] = sign_flip(gaps, np.random.default_rng(0), SAMPLED)
        record["reachable"] = smallest_p(len(whole)) * family.m < family.alpha
    return record


def _no_claim(present: Sequence[Mapping[str, Any]]) -> str:
    """The reasons why these runs support no claim, or ""."""
    reasons = []
    recipes = sorted({run["recipe"] or "none" for run in present if not run["recipe"].startswith("matched")})
    if recipes:
        reasons.append(f"recipe {', '.join(recipes)} is not matched")
    if any(not run["verified"] for run in present):
        reasons.append("the data is not the official one")
    if any(run["off_budget"] for run in present):
        reasons.append("an arm is off its budget")
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for run in present:
        by_task.setdefault(run["task"], []).append(run)
    unlike: dict[str, dict[str, None]] = {}  # setting: its values, in order
    for of_task in by_task.values():
        for key, values in training_differences(run["settings"] for run in of_task).items():
            unlike.setdefault(key, {}).update(dict.fromkeys(values))
    if untuned := {key: list(values) for key, values in unlike.items() if key not in TUNED}:
        reasons.append(f"the arms were not trained alike ({listed(untuned)})")
    if any(len({run["fingerprint"] for run in of_task}) > 1 for of_task in by_task.values()):
        reasons.append("the arms saw different data")
    return "; ".join(reasons)


def sentence(record: Mapping[str, Any], family: FamilyConfig) -> str:
    """What one comparison says, with its interval and p."""
    arm, base, where = record["arm"], record["baseline"], f"at {record['budget']}"
    if record["missing"]:
        return f"{arm} and {base} {where} are not tested yet: {record['missing']} runs are missing."
    if "p" not in record:
        return f"{arm} and {base} {where} cannot be tested: no seed has a result of both on every task."
    over = f"{record['tasks']} tasks" if record["tasks"] > 1 else "1 task"
    reach = "" if math.isnan(record["low"]) else f", 95 % t interval{signed_range(record['low'], record['high'])}"
    facts = (
        f"{signed(record['mean'])} points, mean over {over} of the paired difference{reach}, {record['n']} seeds, "
        f"p = {p_value(record['p'], exact=True)}, with Holm's correction over {family.m} comparisons "
        f"p = {p_value(record['p_holm'], exact=True)}"
    )
    below = record["p_holm"] < family.alpha
    if record["claim"]:
        word = "better" if record["mean"] > 0 else "worse"
        text = f"{arm} is {word} than {base} {where}: {facts}, below the level {family.alpha:g}."
    elif below:
        text = f"{arm} and {base} differ {where}, but no claim is made because {record['no_claim']}: {facts}."
    else:
        text = (
            f"No difference between {arm} and {base} was shown {where}: {facts}, not below the level {family.alpha:g}."
        )
    if record.get("params_apart", 0.0) > PARAMETER_TOLERANCE:
        text += f" Their adapter parameters differ by {100 * record['params_apart']:.1f} %."
    return text


def _table(caption: str, frame: pd.DataFrame, records: Sequence[Mapping[str, Any]], notes: list[str]) -> Table:
    tasks = [name.removeprefix("mean_") for name in frame.columns if name.startswith("mean_")]
    columns = [
        "Arm", "Budget", "n", "Mean difference", "p", "p (Holm)", "W/T/L", "d", "Seeds to settle", "Missing", "Failed",
    ]  # fmt: skip
    rows = []
    for r in records:
        interval = signed_range(r.get("low", math.nan), r.get("high", math.nan))
        needed = r.get("seeds_needed")
        row = [
            r["arm"], r["budget"], str(r["n"]), signed(r["mean"]) + interval if "mean" in r else "",
            p_value(r["p"], exact=True) if "p" in r else "not tested",
            p_value(r["p_holm"], exact=True) + ("*" if r["claim"] else "") if "p" in r else "",
            f"{r['wins']}/{r['ties']}/{r['losses']}" if "wins" in r else "", signed(r["d"]) if "d" in r else "",
            "" if needed is None else str(needed), str(r["missing"] or ""), str(r["failed"] or ""),
        ]  # fmt: skip
        rows.append(row + [signed(r[f"mean_{t}"]) if f"mean_{t}" in r else "" for t in tasks])
    return Table(caption, [*columns, *tasks], rows, notes, frame)


def _notes(study: str, family: FamilyConfig, records: Sequence[Mapping[str, Any]], level: float) -> list[str]:
    notes = [
        f"Family: {family.baseline} with {', '.join(family.arms)} at {', '.join(family.budgets)}; m = {family.m} "
        f"comparisons, declared in the study; Holm's correction, level {family.alpha:g} for the whole family.",
        "Statistic: mean over the tasks of the paired difference; two-sided sign flips of whole seeds, exact up to 16 "
        "seeds. * corrected p below the level.",
        f"{level:.0%} t intervals cover the choice of seed and are not corrected. The columns of single tasks are "
        "descriptive and not tested.",
        f"Seeds to settle: for 80 % power at a difference of {WORTH:g} points, at this spread and the level / m.",
    ]
    open_runs = sum(record["missing"] for record in records)
    if open_runs:
        notes.append(
            "Comparisons with missing runs are not tested and count with p = 1; make the runs with: "
            f"python run.py -m +study={study}"
        )
    for r in records:
        where = f"{r['arm']} at {r['budget']}"
        if r["failed"]:
            notes.append(
                f"{where}: {r['failed']} runs of it or its baseline failed; their seeds are left out of this test."
            )
        if r["collapsed"]:
            notes.append(f"{where}: {r['collapsed']} collapsed runs of it or its baseline keep their scores.")
        if not r.get("reachable", True):
            notes.append(f"{where}: {r['n']} seeds are too few to reach the level at all.")
        if r["no_claim"]:
            notes.append(f"{where}: no claim, {r['no_claim']}.")
        if r.get("params_apart", 0.0) > PARAMETER_TOLERANCE:
            notes.append(
                f"{where}: adapter parameters {r['params']:,.0f} and {r['params_baseline']:,.0f} "
                f"({100 * r['params_apart']:.1f} % apart)."
            )
    return notes
