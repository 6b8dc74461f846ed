"""What differs between the arms of a declared comparison beside the method: rates, targets, scale, batch, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.output.table import Table
from analysis.reading.settings import flatten, typed
from analysis.reading.study import Study
from analysis.sections.arms import TUNED
from analysis.sections.evidence import Runs, rate
from experiments.studies.rules import TUNING_PART

SETTINGS = {  # named where they are alike too; any other setting beside the method's only where it differs
    "trainer.weight_decay": "Weight decay",
    "model.targets": "Targets",
    "trainer.batch_size": "Batch",
    "trainer.batches": "Order of items",
    "trainer.max_steps": "Steps",
    "trainer.warmup": "Warm-up",
    "trainer.schedule": "Schedule",
    "trainer.precision": "dtype",
    "data.train_items": "Training items",
}
METHOD = ("method.", "numerics.method", "budget")  # what the arms are compared in
SIZES = {"params_initial": "at the start", "params_peak": "at the peak", "params_final": "at the end"}


def confounds(runs: pd.DataFrame, study: Study, compared: Sequence[Runs]) -> Table | None:
    """The confound card: a row for everything that differs between an arm and its baseline.

    Args:
        runs: all stored runs, those of the tuning included.
        study: that declares the comparisons.
        compared: the runs of each comparison.

    Returns:
        None where no comparison has runs of both arms.
    """
    tried = tried_rates(runs, study)
    records: list[dict[str, str]] = []
    alike: dict[str, set[str]] = {}
    both = [one for one in compared if one.of(one.arm) and one.of(one.base)]
    for one in both:
        for what in _facts(one, tried):
            if len(set(what[1:])) > 1:
                records.append(dict(zip(("what", "arm_value", "baseline_value"), what, strict=True)) | _key(one))
            else:
                alike.setdefault(what[0], set()).add(what[1])
    if not both:
        return None
    frame = pd.DataFrame(records, columns=["comparison", "budget", "what", "arm_value", "baseline_value"])
    columns = ["Comparison", "Budget", "Differs", "Arm", "Baseline"]
    same = "; ".join(
        f"{what} {next(iter(values))}" for what, values in alike.items()
        if len(values) == 1 and what not in set(frame["what"])
    )  # fmt: skip
    notes = ["What differs between the arms beside the method; a difference in score may come from any of it."]
    notes += [f"The same in both arms of every comparison: {same}."] if same else []
    notes.append(
        "Rates tried: in the tuning, lowest to highest and how many; an optimum at an edge may lie outside. Parameters "
        "are the adapter's, mean over seeds."
    )
    return Table("What differs beside the method.", columns, frame.to_numpy().tolist(), notes, frame)


def _key(one: Runs) -> dict[str, str]:
    return {"comparison": f"{one.name(one.arm)} with {one.name(one.base)}", "budget": one.budget}


def _facts(one: Runs, tried: dict[tuple[str, str], list[float]]) -> list[tuple[str, ...]]:
    """Every fact of the card: its name, and the texts of the arm and of the baseline."""
    sides = (one.arm, one.base)
    facts: list[tuple[str, ...]] = []
    for name, text in (("Learning rate", _chosen), ("Rates tried", _range)):
        facts.append((name, *(_over(one, {t: text(one, arm, t, tried) for t in one.tasks}) for arm in sides)))
    facts.append(("Scale", *(_over(one, {t: _scale(one, arm, t) for t in one.tasks}) for arm in sides)))
    flats = {arm: {t: flatten(r[0]["settings"]) for t in one.tasks if (r := one.of(arm, t))} for arm in sides}
    keys = {key for of_arm in flats.values() for flat in of_arm.values() for key in flat}
    others = sorted(key for key in keys if key not in (*SETTINGS, *TUNED) and not key.startswith(METHOD))
    for key in [*(key for key in SETTINGS if key in keys), *others]:
        texts = [_over(one, {t: typed(flats[a][t].get(key)) for t in flats[a]}) for a in sides]
        if key in SETTINGS or len(set(texts)) > 1:
            facts.append((SETTINGS.get(key, key), *texts))
    for count, when in SIZES.items():
        pairs = one.sizes(count)
        facts.append(
            (f"Parameters {when}", *(_over(one, {t: f"{pair[i]:,.0f}" for t, pair in pairs.items()}) for i in (0, 1)))
        )
    return facts


def _over(one: Runs, by_task: dict[str, str]) -> str:
    """One text for all tasks, or each task with its own."""
    if len(set(by_task.values())) == 1 or len(one.tasks) == 1:
        return next(iter(by_task.values()), "")
    return "; ".join(f"{task}: {text}" for task, text in by_task.items())


def _chosen(one: Runs, arm: str, task: str, tried: dict[tuple[str, str], list[float]]) -> str:
    """The rates of an arm on a task, and whether one is the lowest or highest that was tried."""
    rates = one.rates(arm).get(task, [])
    return " and ".join(f"{lr:g}" for lr in rates) + (" (at the edge)" if _edge(one, arm, task, tried) else "")


def _edge(one: Runs, arm: str, task: str, tried: dict[tuple[str, str], list[float]]) -> bool:
    grid = tried.get((arm, task), [])
    return len(grid) > 1 and bool({grid[0], grid[-1]} & set(one.rates(arm).get(task, [])))


def at_edge(one: Runs, tried: dict[tuple[str, str], list[float]]) -> list[str]:
    """A line for every arm whose rate on a task is the lowest or highest that was tried, so that a better one may lie
    outside."""
    return [
        f"the rate of {one.name(arm)} on {task} is at the edge of those tried ({_range(one, arm, task, tried)})"
        for arm in (one.arm, one.base)
        for task in one.tasks
        if _edge(one, arm, task, tried)
    ]


def _scale(one: Runs, arm: str, task: str) -> str:
    """The rule for the factor on an arm's update, "16 / r" for instance."""
    method: dict[str, Any] = next((run["settings"].get("method", {}) for run in one.of(arm, task)), {})
    options = method.get("options") or {}
    root = method.get("rslora") or options.get("use_rslora")
    alpha = options.get("lora_alpha", method.get("alpha"))
    return "" if alpha is None else f"{alpha:g} / {'sqrt(r)' if root else 'r'}"


def _range(one: Runs, arm: str, task: str, tried: dict[tuple[str, str], list[float]]) -> str:
    grid = tried.get((arm, task), [])
    return f"{grid[0]:g} to {grid[-1]:g} ({len(grid)})" if grid else "not tuned"


def tried_rates(runs: pd.DataFrame, study: Study) -> dict[tuple[str, str], list[float]]:
    """Rising learning rates that the study's tuning tried, by arm and task."""
    cells = study.cells[study.cells["part"] == TUNING_PART]
    known: dict[str, Any] = {run["id"]: run for run in runs[runs["id"].isin(list(cells["id"]))].to_dict("records")}
    tried: dict[tuple[str, str], set[float]] = {}
    for cell in cells.to_dict("records"):
        if cell["id"] in known and (lr := rate(known[cell["id"]])) is not None:
            tried.setdefault((cell["arm"], cell["task"]), set()).add(lr)
    return {key: sorted(rates) for key, rates in tried.items()}
