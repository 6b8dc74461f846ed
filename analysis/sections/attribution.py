"""Where does ElaLoRA's difference come from: from moving ranks, from the scores, or from two accidents of its code?

The factorial {fixed rank, random prune-and-grow, scored} x D1 x D2 holds twelve arms with the same seeds. D1 drops the
optimizer's moments at every round, D2 keeps the learning rate at its peak from the first round on; both can be
done to a fixed-rank adapter too, so what they do is told apart from what the ranks do.

What is unusual: every effect is one number per seed (a contrast of that seed's twelve scores, mean over tasks), so its
interval is Student's over seeds and its test the exact sign flip, Holm-corrected over all eleven. The two contrasts of
ranks are orthogonal: *moving* is the mean of both moving arms less the fixed one, *scores* is scored less random. An
interaction is a difference of differences: the effect with a switch on less the effect with it off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.output.table import Table, signed
from analysis.reading.settings import cell_of, flatten
from analysis.sections.arms import TUNED
from analysis.sections.attribution_figure import draw
from analysis.stats.factorial import MEANING, RANKS, Effect, Factorial, effects, tasks_of
from experiments.studies.smallest_p import least_pairs, smallest_p

if TYPE_CHECKING:
    import pandas as pd

    from analysis.output.section import Section

WITHIN = ["model", "budget", "protocol", "recipe"]  # a factorial lies within one of each


# -- from the run store ------------------------------------------------------------------------------------


def factorials(runs: pd.DataFrame, tuned: bool = False) -> tuple[list[Factorial], list[str]]:
    """Every complete factorial among the runs, and what keeps the others from being complete.

    Runs are one factorial when they share model, budget, protocol, recipe and all settings but the method's own,
    the task and the seed; so a factorial at one common learning rate stands apart from other rates.

    Args:
        runs: from `load_runs`.
        tuned: whether the cells may have learning rates and weight decays of their own.
    """
    import json

    placed = runs.assign(cell=[cell_of(s) for s in runs["settings"]])
    placed = placed[placed["cell"].notna()]
    apart = [f"{key}." for key in ("method", "task", "numerics", "recipe")] + [*(TUNED if tuned else ())]
    flats = [flatten(s) for s in placed["settings"]]
    common = [json.dumps({k: flat[k] for k in sorted(flat) if not k.startswith(tuple(apart))}) for flat in flats]
    found: list[Factorial] = []
    gaps: list[str] = []
    for (_, *where), group in placed.assign(common=common).groupby(["common", *WITHIN], sort=False):
        if len(set(group["cell"])) < 4:  # two methods that were never meant as a factorial
            continue
        place = ", ".join(str(part) for part in where if part)
        one = _complete(group, place, gaps)
        if one is not None:
            found.append(one)
    return found, gaps


def _complete(group: pd.DataFrame, where: str, gaps: list[str]) -> Factorial | None:
    twice = group[group.duplicated(["task", "seed", "cell"], keep=False)]
    if len(twice):
        gaps.append(
            f"{where}: {len(twice)} runs share a cell of the factorial and a seed; choose one kind with filters"
        )
        return None
    wide = group.pivot(index=["task", "seed"], columns="cell", values="score")
    cells = [(i, j, k) for i in range(3) for j in range(2) for k in range(2)]
    held = wide.reindex(columns=cells).notna().groupby("task").any()
    tasks = [str(task) for task in held.index[held.all(axis=1)]]
    if not tasks:
        fullest = held.loc[held.sum(axis=1).idxmax()]
        gaps.append(f"{where}: the factorial lacks {', '.join(cell_name(cell) for cell in cells if not fullest[cell])}")
        return None
    group = group[group["task"].isin(tasks)]  # another task may have some of the arms for another purpose
    whole = wide.loc[tasks, cells].dropna().unstack("task").dropna()
    if len(whole) < len(set(group["seed"])):
        gaps.append(f"{where}: {len(set(group['seed'])) - len(whole)} seeds lack a cell and are left out")
    if len(whole) < 2:
        gaps.append(f"{where}: an effect needs two complete seeds, {len(whole)} are there")
        return None
    scores = whole.to_numpy(float).reshape(len(whole), 3, 2, 2, len(tasks)).mean(axis=-1)
    return Factorial(scores, [int(s) for s in whole.index], tasks, where, _sources(group))


def _sources(group: pd.DataFrame) -> str:
    return "; ".join(dict.fromkeys(group["citation"]))


def cell_name(cell: Sequence[int]) -> str:
    """ "random + D1" for (1, 1, 0)."""
    switches = [name for name, on in zip(("D1", "D2"), cell[1:], strict=True) if on]
    return " + ".join([RANKS[cell[0]], *switches])


# -- one table, one paragraph ------------------------------------------------------------------------------


def table(factorial: Factorial) -> Table:
    """The eleven effects, with what they mean and how far the tests reach."""
    import pandas as pd

    found = effects(factorial.scores, np.random.default_rng(0))
    columns = ["Effect", "Points", "95 % interval", "p", "p (Holm)"]
    rows = [[e.name, signed(e.mean), f"[{signed(e.low)}, {signed(e.high)}]", _p(e.p), _p(e.corrected)] for e in found]
    n = len(factorial.seeds)
    notes = [f"{name}: {text}." for name, text in MEANING.items()]
    notes += [
        "An interaction is a difference of differences: the effect with the switch on less the effect with it off.",
        f"Each effect is one contrast per seed ({n} seeds, {tasks_of(factorial.tasks)}); t interval over seeds, exact "
        f"two-sided sign-flip test, Holm over the {len(found)} effects of this table.",
        f"Data: {factorial.source}",
    ]
    if n < (needed := least_pairs(0.05, len(found))):
        notes.append(
            f"With {n} seeds no corrected p can be below {_p(min(1.0, len(found) * smallest_p(n)))}; to reach 0.05 "
            f"takes {needed} seeds. The intervals are what this table says."
        )
    frame = pd.DataFrame(found)
    frame["seeds"], frame["tasks"], frame["where"] = n, ",".join(factorial.tasks), factorial.where
    return Table(f"Attribution: {factorial.where}, {tasks_of(factorial.tasks)}", columns, rows, notes, frame)


def paragraph(factorial: Factorial, alpha: float = 0.05) -> str:
    """What the tests say of each main effect and of the interactions, in words; nothing else is said."""
    found = effects(factorial.scores, np.random.default_rng(0))
    main, crossed = found[:4], found[4:]
    parts = [
        f"In {len(factorial.seeds)} paired seeds ({factorial.where}; {tasks_of(factorial.tasks)}), "
        f"with Holm's correction over {len(found)} effects at a level of {alpha:g}:"
    ]
    parts += [_sentence(effect, alpha) for effect in main]
    clear = [e for e in crossed if e.corrected <= alpha]
    if clear:
        listed = "; ".join(f"{e.name} {signed(e.mean)} points, corrected p {_p(e.corrected)}" for e in clear)
        parts.append(f"These effects depend on one another: {listed}. The main effects are averages over them.")
    else:
        least = min(e.corrected for e in crossed)
        parts.append(f"No interaction is told apart from 0 (smallest corrected p {_p(least)}).")
    if len(factorial.seeds) < least_pairs(alpha, len(found)):
        parts.append(
            f"So few seeds cannot reach the level (it takes {least_pairs(alpha, len(found))}), "
            "so no effect could have been shown here."
        )
    return " ".join(parts)


def _sentence(effect: Effect, alpha: float) -> str:
    known = f"95 % interval {signed(effect.low)} to {signed(effect.high)}, corrected p {_p(effect.corrected)}"
    if effect.corrected <= alpha:
        verb = "raised" if effect.mean > 0 else "lowered"
        return f"{_capital(MEANING[effect.name])} {verb} the score by {abs(effect.mean):.2f} points ({known})."
    return f"{_capital(MEANING[effect.name])} is not told apart from no effect ({signed(effect.mean)} points, {known})."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# -- one figure --------------------------------------------------------------------------------------------


def sections(runs: pd.DataFrame, folder: Path | None) -> list[Section]:
    """Paragraph, table and figure of every complete factorial among the runs, and what the others lack.

    Args:
        runs: from `load_runs`.
        folder: for the figures; None draws none.
    """
    from analysis.output.figure import names
    from analysis.output.section import Section

    found, gaps = factorials(runs)
    section = Section("Attribution: ranks or side effects", lines=[paragraph(one) for one in found] + gaps)
    for number, factorial in enumerate(found, start=1):
        stem = f"attribution_{names([factorial.where, str(number) if len(found) > 1 else ''])}"
        shown = section.tables[stem] = table(factorial)
        if folder is not None:
            section.figures[draw(factorial, folder / f"{stem}_figure")[-1]] = shown.caption
    return [section] if section.lines else []
