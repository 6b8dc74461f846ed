"""Methods over all tasks that they share: pooled means, robust means, and ranks. Descriptive, no source of claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.output.table import Table
from analysis.sections.shared_tasks import LEAST_RUNS, PLACE, Place, mean_ranks, p_text, places
from analysis.stats.seeds import win_tie_loss
from analysis.stats.tasks import (
    cliques,
    interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap_t,
)

if TYPE_CHECKING:
    import pandas as pd
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.output.figure import _file, _looks
from analysis.output.section import Section

if TYPE_CHECKING:
    import pandas as pd


def overall(runs: pd.DataFrame, baseline: str = "lora", level: float = 0.95) -> Table | None:
    """Every place where two or more arms share two or more tasks.

    Args:
        runs: from `load_runs`.
        baseline: the method that wins and chances of improvement are against.
        level: of the intervals.
    """
    import pandas as pd

    records: list[dict[str, Any]] = []
    notes: list[str] = []
    for place in places(runs):
        records += _place(place, baseline, level)
        notes += [f"{place.where()}: {outside(place.off)}"] if place.off else []
        notes += _ranks(place)
    if not records:
        return None
    columns = [
        "Model",
        "Protocol",
        "Recipe",
        "Budget",
        "Method",
        "Tasks",
        "n",
        "Mean",
        "Middle half",
        "P(above)",
        "W/T/L",
    ]
    rows = [
        [*(str(r[k]) for k in PLACE), r["shown"], str(r["tasks"]), str(r["n"]),
         f"{r['mean']:.2f}" + (f" [{r['low']:.2f}, {r['high']:.2f}]" if "low" in r else ""), f"{r['iqm']:.2f}",
         f"{r['above']:.2f}" if "above" in r else "", r.get("wtl", "")]
        for r in records
    ]  # fmt: skip
    heads = [
        "Over the tasks and seeds that all arms of a row's place share. Mean: over tasks, with a stratified "
        f"bootstrap-t interval ({level:.0%}, from {LEAST_RUNS} seeds on). Middle half: mean of that half of all runs.",
        f"P(above): chance that a run scores above one of {baseline} on the same task. W/T/L: tasks with a higher, "
        "equal and lower mean. All descriptive: no test of a claim, and nothing reaches beyond these tasks.",
    ]
    return Table("Over all tasks.", columns, rows, heads + notes, pd.DataFrame(records))


def outside(names: Sequence[str]) -> str:
    """The sentence that says which arms are left out for their budget."""
    return f"off the budget and outside of all means, ranks and figures: {', '.join(names)}."


def _place(place: Place, baseline: str, level: float) -> list[dict[str, Any]]:
    import numpy as np

    base = place.base(baseline)
    records = []
    for name, table in place.arms.items():
        x = table.to_numpy(float)
        record: dict[str, Any] = place.key | {"shown": name, "tasks": x.shape[1], "n": x.shape[0]}
        record |= {"mean": float(x.mean()), "iqm": interquartile_mean(x)}
        if x.shape[0] >= LEAST_RUNS:
            record["low"], record["high"] = stratified_bootstrap_t(x, np.random.default_rng(0), level, 1_999)
        if base is not None and name != base:
            y = place.arms[base].to_numpy(float)
            record["above"] = probability_of_improvement(x, y)
            record["wtl"] = "/".join(map(str, win_tie_loss(x.mean(axis=0) - y.mean(axis=0))))
        records.append(record)
    return records


def _ranks(place: Place) -> list[str]:
    """Friedman's test over tasks, and which arms its critical difference does not tell apart."""
    import numpy as np

    if len(place.arms) < 3:
        return []
    names = list(place.arms)
    found, bound = mean_ranks(place)
    ranks = ", ".join(f"{names[i]} {found.mean_ranks[i]:.2f}" for i in np.argsort(found.mean_ranks, kind="stable"))
    groups = "; ".join(", ".join(names[i] for i in group) for group in cliques(found.mean_ranks, bound)) or "none"
    return [
        f"{place.where()}: mean ranks over {len(place.tasks())} tasks (1 is highest) {ranks}; Friedman "
        f"{p_text(found.p)}, critical difference {bound:.2f} (Nemenyi, 0.05), not told apart: {groups}."
    ]


def _overall(runs: pd.DataFrame, compared: Table, baseline: str, folder: Path | None) -> list[Section]:
    """The table over all tasks, and diagram and profiles of every place that allows them; no folder draws nothing."""
    from analysis.sections.overall import overall
    from analysis.sections.shared_tasks import places

    table = overall(runs, baseline)
    if table is None:
        return []
    section = Section("Over all tasks", {"overall": table})
    if folder is not None:
        from analysis.sections import overall_figures as drawing

        for place in places(runs):
            stem, where = _file(place.key.values()), place.where()
            if reason := drawing.why_not_ranks(place):
                section.lines.append(reason)
            else:
                title = f"Mean ranks over {len(place.tasks())} tasks: {where}"
                section.figures[drawing.draw_ranks(place, folder / f"mean_ranks_{stem}", title)[-1]] = title
            if reason := drawing.why_not_profiles(place):
                section.lines.append(reason)
            else:
                title = f"Performance profiles over {len(place.tasks())} tasks: {where}"
                path = folder / f"profiles_{stem}"
                section.figures[drawing.draw_profiles(place, baseline, path, title, _looks(compared))[-1]] = title
    return [section]
