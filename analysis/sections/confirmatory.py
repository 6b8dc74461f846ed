"""Confirmatory tables: the comparisons that a study declared before it ran, and no others.

The family comes from the study, never from the runs that happen to be stored. A comparison is tested once, when none of
its runs is open; until then it counts in the correction with p = 1. `analysis.stats.verdicts` says what the tests show,
`analysis.sections.claims` puts it into words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.output.looks import Look, Looks
from analysis.output.section import Section
from analysis.output.table import Table, p_value, signed, signed_range
from analysis.reading.folders import Unfinished
from analysis.reading.stored import Stored
from analysis.reading.study import Study
from analysis.sections.arms import PARAMETER_TOLERANCE, cell_notes
from analysis.sections.charts import forest_chart, looks_of
from analysis.sections.claims import CORRECTIONS, sentence
from analysis.sections.confounds import at_edge, confounds, tried_rates
from analysis.sections.evidence import Runs, collect, no_claim, unstable_arms
from analysis.sections.forest import draw_forest
from analysis.sections.items import MOST_RUNS, Answers
from analysis.stats.items import seeds_and_items
from analysis.stats.seeds import paired_d, seeds_needed, seeds_needed_range, summary, win_tie_loss
from analysis.stats.verdicts import judge
from elalora.errors import UserError
from experiments.studies.rules import common_base, divisor, pairs_of
from experiments.studies.smallest_p import smallest_p

if TYPE_CHECKING:
    from experiments.config.study import FamilyConfig

WORTH = 0.5  # points; the difference for which the table says how many seeds would find it
TEXTS = (
    "compared", "arm_name", "baseline_name", "setting", "sizes", "rates", "failures", "collapses", "withheld",
    "p_corrected", "without_items", "unstable",
)  # fmt: skip
HEADS = {"holm": "p (Holm)", "maxt": "p (maxT)"}


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The declared comparisons: sentences, a forest plot, the table, and what else differs between the arms."""
    study = stored.declared
    if study is None or study.family is None:
        return []
    confirmation = confirm(stored.known, study, stored.unfinished, last=stored.reading == "last")
    tables = {"confirmatory": confirmation.table}
    if (card := confounds(stored.known, study, confirmation.compared)) is not None:
        tables["confounds"] = card
    section = Section(f"Study {study.name}: confirmatory", tables, lines=confirmation.sentences, card="confounds")
    frame, margin, title = confirmation.table.frame, study.family.margin, "The declared comparisons"
    files = {}
    looks = [_look(one, looks_of(stored)) for one in confirmation.compared]
    inked = frame.assign(ink=[look.ink if look else "" for look in looks])
    if folder is not None and draw_forest(inked, folder / "forest", margin=margin):
        files = {folder / "forest.svg": title}
    first = confirmation.compared[0]
    base = first.name(first.base) if common_base(study.family) else None
    rows = _forest_rows(confirmation, looks, base is None)
    section.lead = forest_chart(rows, base, margin, title, files)
    return [section]


def _look(one: Runs, looks: Looks) -> Look | None:
    """The look of the arm of a comparison; None for an arm without a run."""
    runs = one.of(one.arm)
    return looks.of(one.name(one.arm), runs[0]["method"]) if runs else None


def _forest_rows(confirmation: Confirmation, looks: list[Look | None], both: bool) -> list[dict[str, Any]]:
    """A row of the forest chart for each comparison that has a difference; `both` names both arms."""
    rows = []
    records = confirmation.table.frame.to_dict("records")
    for one, look, record in zip(confirmation.compared, looks, records, strict=True):
        if look is None or math.isnan(record.get("mean", math.nan)):
            continue
        known = ("mean", "n", "low", "high", "low_items", "high_items", "p", "p_corrected", "claim")
        row = {key: record[key] for key in known if key in record}
        tasks = {task: record[f"mean_{task}"] for task in one.tasks} if len(one.tasks) > 1 else {}
        name = f"{one.name(one.arm)} - {one.name(one.base)}" if both else one.name(one.arm)
        rows.append(row | {"name": f"{name}, {one.budget}", "colour": look.colour, "tasks": tasks})
    return rows


@dataclass(frozen=True)
class Confirmation:
    """The table, a sentence for every comparison in the same order, and the runs of every comparison."""

    table: Table
    sentences: list[str]
    compared: list[Runs]


def confirm(
    runs: pd.DataFrame,
    study: Study,
    unfinished: Sequence[Unfinished] = (),
    level: float = 0.95,
    last: bool = True,
) -> Confirmation:
    """Tests the family of comparisons that a study declares.

    Args:
        runs: from `load_runs`; runs outside the study are ignored.
        study: from `analysis.reading.study.load_study`.
        unfinished: from `load_runs(...).attrs`, to tell failed runs from those that are still to come.
        level: of the intervals, which are not corrected.
        last: whether the runs are read at the last checkpoint, of which single predictions are stored.

    Raises:
        UserError: the study declares no family, or an arm of it has no run in the confirmatory part.
    """
    family, cells = study.family, study.cells
    if family is None:
        raise UserError(f"study {study.name} declares no confirmatory comparisons; add study.family to its file")
    part = cells[cells["part"] == family.part]
    pairs = pairs_of(family)
    if absent := {arm for pair in pairs for arm in pair} - set(part["arm"]):
        raise UserError(f"study {study.name}: the part {family.part} has no arm {', '.join(sorted(absent))}")
    done = {row["id"]: row for row in runs[runs["id"].isin(list(part["id"]))].to_dict("records")}
    failed = {run.short_id: run.ending for run in unfinished if run.ending}
    compared = [collect(part, done, failed, pair, budget) for budget in family.budgets for pair in pairs]
    answers = Answers() if last and len(done) <= MOST_RUNS else None
    tried = tried_rates(runs, study)
    records = [_record(one, family, level, answers, at_edge(one, tried)) for one in compared]
    _tested(records, compared, family)
    notes = _notes(study.name, family, records, level)
    if last and answers is None:
        notes.append(f"No interval over items: it would read the predictions of {len(done)} runs, above {MOST_RUNS}.")
    if tasks := sorted({task for record in records for task in record.get("without_items", ())}):
        why = "the score is no share of right items, or predictions are missing"
        notes.append(f"No interval over items: on {', '.join(tasks)} {why}.")
    in_family = runs[runs["id"].isin(list(done))]
    for _, cell in in_family.groupby(["task", "budget"], sort=True):
        notes += cell_notes(cell)
    sentences = [sentence(record, family) for record in records]
    to = f" to {base}" if (base := common_base(family)) else ""
    caption = f"Confirmatory: study {study.name}, part {family.part}, differences{to} in points."
    return Confirmation(_table(caption, family, records, notes), sentences, compared)


def _tested(records: list[dict[str, Any]], compared: Sequence[Runs], family: FamilyConfig) -> None:
    """Adds what the tests of the whole family say to each record."""
    evidence = [one.evidence() for one in compared]
    rng, alpha = np.random.default_rng(0), family.alpha
    verdicts = judge(evidence, rng, alpha, str(family.correction), family.margin)
    for record, given, verdict in zip(records, evidence, verdicts, strict=True):
        record |= {"claim": False, "p_corrected": verdict.corrected, "withheld": "; ".join(verdict.withheld)}
        if given is None:
            continue
        record["p"] = verdict.p
        record["reachable"] = smallest_p(record["n"]) * divisor(family) < alpha
        record[f"p_{family.correction}"] = verdict.corrected
        record["claim"] = bool(verdict.direction) and not record["no_claim"]
        record["better"] = record["claim"] and verdict.better
        record |= {"rate": verdict.rate, "unseen": verdict.unseen}
        if given.worst is not None:
            record |= {"mean_worst": float(given.worst_sample.mean()), "p_worst": verdict.p_worst}
        if family.margin is not None:
            record |= {"p_equivalent": verdict.p_equivalent, "equivalent": verdict.equivalent}


def _record(
    one: Runs, family: FamilyConfig, level: float, answers: Answers | None, edges: Sequence[str]
) -> dict[str, Any]:
    """Everything about one arm at one budget but its tests; `edges` are reasons against a claim."""
    rows = list(one.present.values())
    wild = unstable_arms(rows)
    record: dict[str, Any] = {
        "compared": one.arm if common_base(family) else f"{one.arm} - {one.base}",
        "arm": one.arm, "baseline": one.base, "budget": one.budget, "tasks": len(one.tasks), "missing": len(one.open),
        "failed": len(one.lost), "collapsed": sum(run["collapsed"] for run in one.present.values()),
        "no_claim": "; ".join(filter(None, [no_claim(rows), *(arm.reason for arm in wild if arm.most), *edges])),
        "unstable": "; ".join(f"{arm.wild} of {arm.of} of {arm.name} on {arm.task}" for arm in wild),
    }  # fmt: skip
    record |= {"sizes": one.sizes(), **_words(one)}
    if sizes := list(one.sizes().values()):
        record["params"], record["params_baseline"] = (float(np.mean(side)) for side in zip(*sizes, strict=True))
        record["params_apart"] = max((abs(a - b) / min(a, b) for a, b in sizes if min(a, b) > 0), default=math.nan)
    record["n"] = len(one.whole)
    if not one.whole:
        return record
    gaps = one.gaps[~np.isnan(one.gaps).any(axis=1)]  # (seeds, tasks)
    means = gaps.mean(axis=1)
    s = summary(means, level)
    record |= {"mean": s.mean, "sd": s.sd, "low": s.low, "high": s.high, "seeds": " ".join(map(str, one.whole))}
    record |= {f"mean_{task}": float(gap) for task, gap in zip(one.tasks, gaps.mean(axis=0), strict=True)}
    record["wins"], record["ties"], record["losses"] = win_tie_loss(means)
    if len(means) >= 2:
        record["d"] = paired_d(means)
        if s.sd > 0:
            record["seeds_needed"] = seeds_needed(WORTH, s.sd, family.alpha, family.m)
            ends = seeds_needed_range(WORTH, s.sd, len(means), family.alpha, family.m)
            record["seeds_needed_low"], record["seeds_needed_high"] = ends
    if answers is not None and len(one.whole) > 1:
        tables = one.items(answers)
        record["without_items"] = [task for task, table in tables.items() if table is None]
        if not record["without_items"]:
            both = seeds_and_items([table for table in tables.values() if table is not None], level)
            record |= {"low_items": both.low, "high_items": both.high}
    return record


def _words(one: Runs) -> dict[str, str]:
    """Names, setting, learning rates, failures and collapses, as a sentence has them."""
    names = {arm: one.name(arm) for arm in (one.arm, one.base)}
    if len(set(names.values())) < 2:
        names = {arm: f"{name} [{arm}]" for arm, name in names.items()}
    rows = list(one.present.values())
    models = ", ".join(sorted({run["model"] for run in rows}))
    steps, items = (_numbers([run[key] for run in rows]) for key in ("steps", "train_items"))
    reported = ", ".join(
        f"{task} ({_numbers([run['report_items'] for run in rows if run['task'] == task])} reported items)"
        for task in one.tasks
    )
    rates = {arm: one.rates(arm) for arm in names}
    unlike = [task for task in one.tasks if rates[one.arm].get(task) != rates[one.base].get(task)]
    failures = {arm: one.failures(arm) for arm in names}
    planned = len(one.seeds) * len(one.tasks)
    collapsed = {arm: sum(run["collapsed"] for run in one.of(arm)) for arm in names}
    return {
        "arm_name": names[one.arm], "baseline_name": names[one.base],
        "setting": f"Setting: {models} on {reported}; {items} training items, {steps} steps." if rows else "",
        "rates": "; ".join(f"{_rates(names, rates, task)} on {task}" for task in unlike),
        "failures": "; ".join(
            f"{sum(count.values())} of {planned} runs of {names[arm]} "
            f"({', '.join(f'{kind} {number}' for kind, number in count.items())})"
            for arm, count in failures.items() if count
        ),
        "collapses": "; ".join(
            f"{count} of {planned} runs of {names[arm]}, which keep their scores"
            for arm, count in collapsed.items() if count
        ),
    }  # fmt: skip


def _numbers(values: Sequence[int]) -> str:
    return " or ".join(f"{value:,}" for value in sorted(set(values)))


def _rates(names: Mapping[str, str], rates: Mapping[str, Mapping[str, list[float]]], task: str) -> str:
    sides = {arm: " and ".join(f"{lr:g}" for lr in rates[arm].get(task, [])) or "none" for arm in names}
    return ", ".join(f"{names[arm]} {text}" for arm, text in sides.items())


def _table(caption: str, family: FamilyConfig, records: Sequence[dict[str, Any]], notes: list[str]) -> Table:
    frame = pd.DataFrame([{k: v for k, v in r.items() if k not in TEXTS} for r in records])
    tasks = [name.removeprefix("mean_") for name in frame.columns if name.startswith("mean_") and name != "mean_worst"]
    columns = [
        "Arm" if common_base(family) else "Contrast", "Budget", "n", "Mean difference", "p",
        HEADS[str(family.correction)], "W/T/L", "d", "Seeds to settle", "Missing", "Failed",
    ]  # fmt: skip
    rows = []
    for r in records:
        interval = signed_range(r.get("low", math.nan), r.get("high", math.nan))
        row = [
            r["compared"], r["budget"], str(r["n"]), signed(r["mean"]) + interval if "mean" in r else "",
            p_value(r["p"], exact=True) if "p" in r else "not tested",
            p_value(r["p_corrected"], exact=True) + ("*" if r["claim"] else "") if "p" in r else "",
            f"{r['wins']}/{r['ties']}/{r['losses']}" if "wins" in r else "", signed(r["d"]) if "d" in r else "",
            _needed(r), str(r["missing"] or ""), str(r["failed"] or ""),
        ]  # fmt: skip
        rows.append(row + [signed(r[f"mean_{t}"]) if f"mean_{t}" in r else "" for t in tasks])
    for title, low, high in (("Seeds and items", "low_items", "high_items"),):
        if any(low in r for r in records):
            columns.insert(4, title)
            for row, r in zip(rows, records, strict=True):
                row.insert(4, signed_range(r[low], r[high]).strip() if low in r else "")
    return Table(caption, [*columns, *tasks], rows, notes, frame)


def _needed(record: Mapping[str, Any]) -> str:
    """18 (9 to 52): seeds at the observed spread, and at the ends of its interval."""
    if record.get("seeds_needed") is None:
        return ""
    ends = [record["seeds_needed_low"], record["seeds_needed_high"]]
    low, high = ("over 10,000" if end is None else f"{end:,}" for end in ends)
    return f"{record['seeds_needed']} ({low} to {high})"


def _declared(family: FamilyConfig) -> str:
    if (base := common_base(family)) is None:
        return ", ".join(family.contrasts)
    return f"{base} with {', '.join(arm for arm, _ in pairs_of(family))}"


def _notes(study: str, family: FamilyConfig, records: Sequence[Mapping[str, Any]], level: float) -> list[str]:
    notes = [
        f"Family: {_declared(family)} at {', '.join(family.budgets)}; m = {family.m} "
        f"comparisons, declared in the study; {CORRECTIONS[str(family.correction)]}, level {family.alpha:g} for the "
        "whole family.",
        "Statistic: mean over the tasks of the paired difference; two-sided sign flips of whole seeds, exact up to 16 "
        "seeds. * corrected p below the level.",
        f"{level:.0%} t intervals cover the choice of seed and are not corrected. The columns of single tasks are "
        "descriptive and not tested.",
        f"Seeds to settle: for 80 % power at a difference of {WORTH:g} points and the level / m, at this spread and at "
        "the ends of its 95 % interval.",
    ]
    if any("low_items" in record for record in records):
        notes.append("Seeds and items: interval with seeds and items both random; it reaches to other items of a task.")
    if any(record.get("claim") and not record["better"] for record in records):
        notes.append(
            "A claim is about a typical run where blow-ups that the runs do not rule out could cancel a higher mean."
        )
    open_runs = sum(record["missing"] for record in records)
    if open_runs:
        notes.append(
            "Comparisons with missing runs are not tested and count with p = 1; make the runs with: "
            f"python run.py -m +study={study}"
        )
    for r in records:
        where = f"{r['compared']} at {r['budget']}"
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
            notes += [
                f"{where}{f' on {task}' if r['tasks'] > 1 else ''}: adapter parameters {a:,.0f} and {b:,.0f} "
                f"({100 * abs(a - b) / min(a, b):.1f} % apart)."
                for task, (a, b) in r["sizes"].items()
                if min(a, b) > 0 and abs(a - b) / min(a, b) > PARAMETER_TOLERANCE
            ]
        if r["withheld"]:
            notes.append(f"{where}: no claim, {r['withheld']}.")
    return notes
