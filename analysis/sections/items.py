"""Item by item against the baseline: what two trained models get right, from the runs' stored predictions.

This table supports no claim, and says so. A test over items asks whether two trained models differ on these items; many
items make any p small, whatever the methods do. The table shows where a difference comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.output.section import Section
from analysis.output.table import Table, signed, signed_range, summarise
from analysis.reading.arms import CELL, NAMES
from analysis.reading.rounds import load_predictions
from analysis.reading.stored import Stored
from analysis.sections.arms import cell_label, matching_baselines
from analysis.stats.items import mcnemar_by_seed, two_way_bootstrap
from analysis.stats.seeds import Array
from elalora.errors import UserError

KINDS_WITH_CLASSES = ("classification", "image", "causal")  # tasks whose items are right or wrong
ALPHA = 0.05  # of one seed pair's McNemar test
MOST_RUNS = 600  # whose predictions are read for one page: about 6 seconds at 1,000 items each


class Answers:
    """The predictions of runs, each read once."""

    def __init__(self) -> None:
        self._read: dict[str, pd.DataFrame | None] = {}

    def of(self, folder: str) -> pd.DataFrame | None:
        """Columns label and right of every item by idx; None if the predictions are unreadable or no classes."""
        if folder not in self._read:
            self._read[folder] = _answers(folder)
        return self._read[folder]

    def differences(self, pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Array | None:
        """Points by which the first run of each pair is above the second, item by item: (pairs, items).

        Returns:
            None where a file is missing or of other items, or where the metric is not the share of right items, so that
            the mean over items would not be the difference in score.
        """
        rows: list[Array] = []
        for pair in pairs:
            first, second = (self.of(str(run["folder"])) for run in pair)
            if first is None or second is None or not first["label"].equals(second["label"]):
                return None
            difference = 100 * (first["right"].to_numpy(float) - second["right"].to_numpy(float))
            if rows and len(rows[0]) != len(difference):
                return None
            if abs(difference.mean() - (pair[0]["score"] - pair[1]["score"])) > 1e-6:
                return None
            rows.append(difference)
        return np.stack(rows) if rows else None


class Pair(NamedTuple):
    """An arm and its baseline, cut to their common seeds, and the label of their cell."""

    label: str
    arm: pd.DataFrame
    base: pd.DataFrame


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The table of single items; empty for the best checkpoint, whose predictions are not stored."""
    if stored.reading != "last":
        return []
    table, lines = item_tests(stored.runs, stored.baseline)
    return [Section("Single items", {"items": table} if table is not None else {}, lines=lines)]


def item_tests(runs: pd.DataFrame, baseline: str = "lora", level: float = 0.95) -> tuple[Table | None, list[str]]:
    """Every arm against the baseline of its task, model, budget and protocol, paired by seed.

    Args:
        runs: from `load_runs`, of the last checkpoint, whose predictions are stored.
        baseline: name of the method that every arm is compared with.
        level: of the intervals.

    Returns:
        The table, or None if nothing can be compared, and sentences that say why not.
    """
    pairs, skipped = _pairs(runs, baseline)
    folders = {folder for pair in pairs for side in (pair.arm, pair.base) for folder in side["folder"]}
    if len(folders) > MOST_RUNS:
        return None, [
            f"No table of single items: it would read the predictions of {len(folders)} runs, more than {MOST_RUNS}; "
            "choose with --task, --budget or --method."
        ]
    answers = {folder: rows for folder in sorted(folders) if (rows := _answers(folder)) is not None}
    problems: list[str] = []
    records = []
    for pair in pairs:
        tests = _tests(pair, answers, level, problems)
        if tests is not None:
            records.append({key: pair.arm[key].iloc[0] for key in (*CELL, "shown")} | tests)
    if not records:
        return None, [f"No table of single items: {problems[0]}"] if problems else []
    name = NAMES.get(baseline, baseline)
    notes = [
        "These tests alone support no claim. They ask whether two trained models differ on these items, not whether "
        "two methods do; claims come from a study's confirmatory table.",
        f"Δ: points of accuracy above {name}, seeds paired, with a {level:.0%} interval that draws seeds and items "
        "both (from 2 seeds on).",
        f"Only it, only {name}: items that one of the two got right and the other did not, median over seeds. Higher, "
        f"lower: seeds whose McNemar test (exact, two-sided, not corrected) has p < {ALPHA}, by direction.",
    ]
    if skipped:
        notes.append(f"Not right or wrong by item, so left out: {', '.join(skipped)}.")
    if problems:
        notes.append("Left out: " + " ".join(summarise(problems).splitlines()))
    frame = pd.DataFrame(records)
    columns, rows = _shown(frame, name)
    return Table(f"Single items: every arm against {name}.", columns, rows, notes, frame), []


def _pairs(runs: pd.DataFrame, baseline: str) -> tuple[list[Pair], list[str]]:
    """Every arm with its one baseline, and the tasks without classes."""
    pairs, skipped = [], set()
    for _, cell in runs.groupby(CELL, sort=True):
        arms = [arm.sort_values("seed") for _, arm in cell.groupby(["arm", "fingerprint"], sort=False)]
        within = [arm for arm in arms if not arm["off_budget"].any()]
        baselines = [arm for arm in within if arm["method"].iloc[0] == baseline]
        for arm in within:
            matches = matching_baselines(arm, baselines)
            if arm["method"].iloc[0] == baseline or len(matches) != 1:
                continue
            seeds = set(arm["seed"]) & set(matches[0]["seed"])
            if seeds and _kind(arm) not in KINDS_WITH_CLASSES:
                skipped.add(str(arm["task"].iloc[0]))
            elif seeds:
                pairs.append(Pair(cell_label(cell), *(side[side["seed"].isin(seeds)] for side in (arm, matches[0]))))
    return pairs, sorted(skipped)


def _kind(arm: pd.DataFrame) -> str:
    task = arm["settings"].iloc[0].get("task")
    return str(task.get("kind", KINDS_WITH_CLASSES[0])) if isinstance(task, dict) else KINDS_WITH_CLASSES[0]


def _answers(folder: str) -> pd.DataFrame | None:
    """Columns label and right of every item of a run, by idx; None if the predictions are unreadable or no classes."""
    try:
        rows = load_predictions(folder).set_index("idx")
    except UserError:
        return None
    if rows["label"].dtype.kind == "O" and rows["score"].isin((0, 100)).all():  # generated answers
        rows = rows.assign(label=rows["label"].map(str).astype("category").cat.codes, prediction=-1)
        rows["prediction"] = rows["label"].where(rows["score"] == 100, -1)
    if any(rows[column].dtype.kind != "i" for column in ("label", "prediction")) or rows.index.has_duplicates:
        return None
    return rows.assign(right=rows["label"] == rows["prediction"])[["label", "right"]]


def _tests(pair: Pair, answers: Mapping[str, pd.DataFrame], level: float, problems: list[str]) -> dict[str, Any] | None:
    """The tests of a pair, over the seeds whose predictions are of the same items; None if no seed has them."""
    base_folders = dict(zip(pair.base["seed"], pair.base["folder"], strict=True))
    sides: tuple[list[Array], list[Array]] = ([], [])
    labels = None
    for seed, folder in zip(pair.arm["seed"], pair.arm["folder"], strict=True):
        rows, base_rows = answers.get(folder), answers.get(base_folders[seed])
        if rows is None or base_rows is None or rows.empty or not rows["label"].equals(base_rows["label"]):
            continue
        labels = rows["label"] if labels is None else labels
        if not labels.equals(rows["label"]):
            continue
        sides[0].append(rows["right"].to_numpy(bool))
        sides[1].append(base_rows["right"].to_numpy(bool))
    if lost := len(pair.arm) - len(sides[0]):
        problems.append(
            f"{pair.label}, {pair.arm['shown'].iloc[0]}, {lost} of {len(pair.arm)} seeds: predictions are missing, "
            "unreadable or of other items."
        )
    if not sides[0]:
        return None
    a, b = (np.stack(side) for side in sides)  # (seeds, items)
    tests = mcnemar_by_seed(a, b)
    differences = 100 * (a.astype(np.float64) - b)
    low = high = math.nan
    if min(a.shape) > 1:
        _, (low, high) = two_way_bootstrap(differences, np.random.default_rng(0), level)
    sure = [test for test in tests if test.p < ALPHA]
    return {
        "seeds": a.shape[0], "items": a.shape[1], "diff": float(differences.mean()), "low": low, "high": high,
        "only_it": float(np.median([test.only_first for test in tests])),
        "only_base": float(np.median([test.only_second for test in tests])),
        "higher": sum(test.only_first > test.only_second for test in sure),
        "lower": sum(test.only_first < test.only_second for test in sure),
    }  # fmt: skip


def _shown(frame: pd.DataFrame, baseline: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; of the cell, the task and whatever differs between rows."""
    keys = [key for key in CELL if key == "task" or frame[key].nunique() > 1]
    measures = ["Seeds", "Items", "Δ accuracy", "Only it", f"Only {baseline}", "Higher", "Lower"]
    rows = [
        [*(str(r[key]) for key in keys), r["shown"], str(r["seeds"]), str(r["items"]),
         signed(r["diff"]) + signed_range(r["low"], r["high"]), f"{r['only_it']:g}", f"{r['only_base']:g}",
         *(f"{r[way]} of {r['seeds']}" for way in ("higher", "lower"))]
        for r in frame.to_dict("records")
    ]  # fmt: skip
    return [*(key.capitalize() for key in keys), "Method", *measures], rows
