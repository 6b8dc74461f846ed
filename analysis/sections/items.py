"""Item by item against the baseline: what two trained models get right, from the runs' stored predictions.

What is unusual: this table supports no claim, and says so. A test over items asks whether two trained models differ on
these items; many items make any p small, whatever the methods do. It shows where a difference comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.output.table import Table, signed, signed_range, summarise
from analysis.reading.arms import CELL, NAMES
from analysis.reading.rounds import load_predictions
from analysis.sections.arms import fitting, place_of
from analysis.stats.items import mcnemar_by_seed, two_way_bootstrap
from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.seeds import Array
from typing import TYPE_CHECKING

from analysis.output.section import Section

if TYPE_CHECKING:
    import pandas as pd


KINDS = ("classification", "image")  # of tasks whose items are right or wrong
ALPHA = 0.05  # of one seed pair's McNemar test
MOST_RUNS = 600  # whose predictions are read for one page: about 6 seconds at 1,000 items each


def item_tests(runs: pd.DataFrame, baseline: str = "lora", level: float = 0.95) -> tuple[Table | None, list[str]]:
    """Every arm against the baseline of its task, model, budget and protocol, paired by seed.

    Args:
        runs: from `load_runs`, of the last checkpoint, whose predictions are stored.
        baseline: name of the method that every arm is compared with.
        level: of the intervals.

    Returns:
        The table, None where there is nothing to compare; and what a reader must know where there is none.
    """
    import pandas as pd

    pairs, skipped = _pairs(runs, baseline)
    read = {folder for _, arm, base in pairs for side in (arm, base) for folder in side["folder"]}
    if len(read) > MOST_RUNS:
        return None, [
            f"No table of single items: it would read the predictions of {len(read)} runs, more than {MOST_RUNS}; "
            "choose with --task, --budget or --method."
        ]
    known = {folder: rows for folder in sorted(read) if (rows := _right(folder)) is not None}
    problems: list[str] = []
    records = []
    for where, arm, base in pairs:
        found = _compared(arm, base, known, level, f"{where}, {arm['shown'].iloc[0]}", problems)
        if found is not None:
            records.append({key: arm[key].iloc[0] for key in (*CELL, "shown")} | found)
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
    return Table(f"Single items: every arm against {name}.", _columns(frame, name), _rows(frame), notes, frame), []


def _pairs(runs: pd.DataFrame, baseline: str) -> tuple[list[tuple[str, pd.DataFrame, pd.DataFrame]], list[str]]:
    """(where, arm, its baseline), both cut to their common seeds; and the tasks that are not about classes."""
    found, skipped = [], set()
    for _, cell in runs.groupby(CELL, sort=True):
        arms = [arm.sort_values("seed") for _, arm in cell.groupby(["arm", "fingerprint"], sort=False)]
        within = [arm for arm in arms if not any("off budget" in flags for flags in arm["flags"])]
        bases = [arm for arm in within if arm["method"].iloc[0] == baseline]
        for arm in within:
            fit = fitting(arm, bases)
            if arm["method"].iloc[0] == baseline or len(fit) != 1:
                continue
            both = set(arm["seed"]) & set(fit[0]["seed"])
            if both and _kind(arm) not in KINDS:
                skipped.add(str(arm["task"].iloc[0]))
            elif both:
                found.append((place_of(cell), *(side[side["seed"].isin(both)] for side in (arm, fit[0]))))
    return found, sorted(skipped)


def _kind(arm: pd.DataFrame) -> str:
    task = arm["settings"].iloc[0].get("task")
    return str(task.get("kind", KINDS[0])) if isinstance(task, dict) else KINDS[0]


def _right(folder: str) -> pd.DataFrame | None:
    """label and right of every item of a run, by idx; None where the predictions cannot be read or are no classes."""
    try:
        rows = load_predictions(folder).set_index("idx")
    except UserError:
        return None
    if any(rows[column].dtype.kind != "i" for column in ("label", "prediction")) or rows.index.has_duplicates:
        return None
    return rows.assign(right=rows["label"] == rows["prediction"])[["label", "right"]]


def _compared(
    arm: pd.DataFrame,
    base: pd.DataFrame,
    known: Mapping[str, pd.DataFrame],
    level: float,
    where: str,
    problems: list[str],
) -> dict[str, Any] | None:
    """What the tests say of the seeds whose predictions are of the same items; None where there is no such seed."""
    import numpy as np

    others = dict(zip(base["seed"], base["folder"], strict=True))
    sides: tuple[list[Array], list[Array]] = ([], [])
    first = None
    for seed, folder in zip(arm["seed"], arm["folder"], strict=True):
        mine, other = known.get(folder), known.get(others[seed])
        if mine is None or other is None or mine.empty or not mine["label"].equals(other["label"]):
            continue
        first = mine["label"] if first is None else first
        if not first.equals(mine["label"]):
            continue
        sides[0].append(mine["right"].to_numpy(bool))
        sides[1].append(other["right"].to_numpy(bool))
    if lost := len(arm) - len(sides[0]):
        problems.append(f"{where}, {lost} of {len(arm)} seeds: predictions are missing, unreadable or of other items.")
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
        "seeds": a.shape[0],
        "items": a.shape[1],
        "diff": float(differences.mean()),
        "low": low,
        "high": high,
        "only_it": float(np.median([test.only_first for test in tests])),
        "only_base": float(np.median([test.only_second for test in tests])),
        "higher": sum(test.only_first > test.only_second for test in sure),
        "lower": sum(test.only_first < test.only_second for test in sure),
    }


def _columns(frame: pd.DataFrame, name: str) -> list[str]:
    measures = ["Seeds", "Items", "Δ accuracy", "Only it", f"Only {name}", "Higher", "Lower"]
    return [*(key.capitalize() for key in _varying(frame)), "Method", *measures]


def _rows(frame: pd.DataFrame) -> list[list[str]]:
    keys = _varying(frame)
    return [
        [*(str(r[key]) for key in keys), r["shown"], str(r["seeds"]), str(r["items"]), _interval(r)]
        + [f"{r['only_it']:g}", f"{r['only_base']:g}", *(f"{r[way]} of {r['seeds']}" for way in ("higher", "lower"))]
        for r in frame.to_dict("records")
    ]


def _varying(frame: pd.DataFrame) -> Sequence[str]:
    """Task always; the other parts of a place where there is more than one."""
    return [key for key in CELL if key == "task" or frame[key].nunique() > 1]


def _interval(record: Mapping[str, Any]) -> str:
    return signed(record["diff"]) + signed_range(record["low"], record["high"])


def _items(runs: pd.DataFrame, baseline: str) -> list[Section]:
    from analysis.sections.items import item_tests

    table, lines = item_tests(runs, baseline)
    return [Section("Single items", {"items": table} if table is not None else {}, lines=lines)]
