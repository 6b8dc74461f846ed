"""The paragraph on methods that a paper has: what a study compared, on what, trained and tuned how, and tested by what.

Every number comes from the stored runs and the declared family, so the paragraph cannot disagree with the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.reading.arms import name_of
from analysis.reading.settings import flatten
from analysis.reading.stored import Stored
from analysis.sections.claims import CORRECTIONS
from elalora.errors import UserError
from experiments.runtime.text import counted


def methods(stored: Stored) -> str:
    """The paragraph, of the confirmatory part of a study.

    Raises:
        UserError: the study declares no family, or no run of it is stored.
    """
    study = stored.declared
    assert study is not None
    if (family := study.family) is None:
        raise UserError(f"study {study.name} declares no comparisons, so there is nothing to describe")
    cells = study.cells[study.cells["part"] == family.part]
    runs = stored.runs[stored.runs["id"].isin(set(cells["id"]))]
    if runs.empty:
        raise UserError(f"study {study.name} has no run of part {family.part} yet")
    sentences = [_compared(runs), _trained(runs), _tuned(stored, runs, cells), _seeds(runs), _tested(family)]
    return " ".join(filter(None, sentences))


def _compared(runs: pd.DataFrame) -> str:
    names = sorted({name_of(run) for run in runs.to_dict("records")})
    low, high = runs["params_final"].min(), runs["params_final"].max()
    size = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
    tasks = [
        f"{task} ({_several(of_task['train_items'])} training and {_several(of_task['report_items'])} reported items, "
        f"{of_task['metric'].iloc[0]}; {of_task['model'].iloc[0]})"
        for task, of_task in runs.groupby("task", sort=True)
    ]
    budgets = _listed(sorted(set(runs["budget"])))
    return f"We compare {_listed(names)} at the rank budget {budgets} ({size} adapter parameters) on {_listed(tasks)}."


def _trained(runs: pd.DataFrame) -> str:
    trainers = [flatten(tree) for tree in runs["settings"]]

    def of(key: str) -> str:
        return _listed(sorted({str(trainer.get(f"trainer.{key}")) for trainer in trainers}))

    order = {trainer.get("trainer.batches", "length") for trainer in trainers}
    batches = _listed(sorted("at random" if kind == "random" else "by like length" for kind in order))
    return (
        f"Every run takes {_several(runs['steps'])} steps of {of('batch_size')} items, drawn {batches}, with AdamW "
        f"(weight decay {of('weight_decay')}, gradients clipped at norm {of('max_grad_norm')}), a {of('schedule')} "
        f"schedule and the warm-up {of('warmup')}, in {of('precision')}; the last checkpoint is reported."
    )


def _tuned(stored: Stored, runs: pd.DataFrame, cells: pd.DataFrame) -> str:
    """Rates that were tried, and those that the runs have."""
    arms = cells.set_index("id")["arm"]
    chosen = pd.DataFrame({"arm": runs["id"].map(arms), "task": runs["task"], "rate": _rates(runs)})
    texts = [
        f"{arm} {_listed([f'{rate:g}' for rate in sorted(set(rates))])}"
        for arm, rates in chosen.groupby("arm", sort=True)["rate"]
    ]
    if stored.tuning.empty:
        return f"Learning rates were not tuned: {'; '.join(texts)}."
    tried, seeds = _rates(stored.tuning), sorted(set(stored.tuning["seed"]))
    return (
        f"Learning rates from {min(tried):g} to {max(tried):g} were tried for each method and task on held-out "
        f"training items with {len(seeds)} other seeds, as many for every method; the runs have {'; '.join(texts)}."
    )


def _seeds(runs: pd.DataFrame) -> str:
    seeds = sorted(set(runs["seed"]))
    return (
        f"There are {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}); runs of one seed share items, their order and the "
        "initial head."
    )


def _tested(family: Any) -> str:
    pairs = _listed(list(family.contrasts))
    margin = "" if family.margin is None else (
        f" Two one-sided t tests ask whether a difference lies within {family.margin:g} points."
    )  # fmt: skip
    over = f"{CORRECTIONS[str(family.correction)]} over {counted(family.m, 'comparison')}"
    return (
        f"Declared before the first run were the differences {pairs}: paired by seed, averaged over tasks, tested by "
        f"exact two-sided sign flips of whole seeds with {over} at {family.alpha:g}. Intervals are 95 % t intervals "
        f"over seeds and are not corrected.{margin}"
    )


def _rates(runs: pd.DataFrame) -> list[float]:
    return [float(tree["trainer"]["lr"]) for tree in runs["settings"]]


def _several(values: Iterable[int]) -> str:
    return _listed([f"{value:,}" for value in sorted({int(value) for value in values})])


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
