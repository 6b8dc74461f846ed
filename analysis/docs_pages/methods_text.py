"""The paragraph on methods that a paper has: what a study compared, on what, trained and tuned how, and tested by what.

Every number comes from the stored runs and the declared family, so the paragraph cannot disagree with the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.reading.arms import name_of
from analysis.reading.stored import Stored
from analysis.reading.study import Study
from analysis.sections.claims import CORRECTIONS
from analysis.sections.confounds import tried_rates
from analysis.sections.evidence import rate
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
    sentences = [_compared(runs), _trained(runs), _tuned(stored, study, runs), _seeds(runs), _tested(family)]
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
    trainers = [tree["trainer"] for tree in runs["settings"]]

    def of(key: str) -> str:
        return _listed(sorted({str(trainer.get(key)) for trainer in trainers}))

    order = {trainer.get("batches", "length") for trainer in trainers}  # older runs name none
    batches = _listed(sorted("at random" if kind == "random" else "by like length" for kind in order))
    return (
        f"Every run takes {_several(runs['steps'])} steps of {of('batch_size')} items, drawn {batches}, with AdamW "
        f"(weight decay {of('weight_decay')}, gradients clipped at norm {of('max_grad_norm')}), a {of('schedule')} "
        f"schedule and the warm-up {of('warmup')}, in {of('precision')}; the last checkpoint is reported."
    )


def _tuned(stored: Stored, study: Study, runs: pd.DataFrame) -> str:
    """Rates that were tried for every arm, and those that its runs have."""
    arms = study.cells.drop_duplicates("id").set_index("id")["arm"]
    rates: dict[str, set[float]] = {}
    for run in runs.to_dict("records"):
        if (lr := rate(run)) is not None:
            rates.setdefault(arms[run["id"]], set()).add(lr)
    tried = tried_rates(stored.known, study)
    texts = []
    for arm, of_arm in sorted(rates.items()):
        values = {value for (name, _), found in tried.items() if name == arm for value in found}
        span = f" of {min(values):g} to {max(values):g}" if values else ""
        texts.append(f"{arm} {_listed([f'{value:g}' for value in sorted(of_arm)])}{span}")
    if not tried:
        return f"Learning rates were not tuned: {'; '.join(texts)}."
    seeds = counted(len(set(stored.tuning["seed"])), "other seed")
    return (
        f"Learning rates were tuned task by task on held-out training items with {seeds}; taken, of those tried: "
        f"{'; '.join(texts)}."
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
        f" Two one-sided sign-flip tests with Holm's correction ask whether a difference lies within {family.margin:g} "
        "points."
    )  # fmt: skip
    over = f"{CORRECTIONS[str(family.correction)]} over {counted(family.m, 'comparison')}"
    return (
        f"Declared before the first run were the differences {pairs}: paired by seed, averaged over tasks, tested by "
        f"exact two-sided sign flips of whole seeds with {over} at {family.alpha:g}. Intervals are 95 % t intervals "
        f"over seeds and are not corrected.{margin}"
    )


def _several(values: Iterable[int]) -> str:
    return _listed([f"{value:,}" for value in sorted({int(value) for value in values})])


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
