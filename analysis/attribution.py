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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

from analysis.settings import cell_of, flatten
from analysis.statistics import Array, holm, least_pairs, sign_flip, smallest_p, t_interval
from analysis.table import TUNED, Table, signed

if TYPE_CHECKING:
    import pandas as pd

    from analysis.page import Section

RANKS = ("fixed", "random", "scored")
WITHIN = ["model", "budget", "protocol", "recipe"]  # a factorial lies within one of each
WEIGHTS = {"moving": (-1.0, 0.5, 0.5), "scores": (0.0, -1.0, 1.0)}  # on fixed, random, scored
MEANING = {
    "moving": "moving ranks at all (random and scored together) against fixed ranks",
    "scores": "choosing by scores against choosing at random",
    "D1": "dropping the optimizer's moments at every round",
    "D2": "holding the learning rate at its peak",
}


class Effect(NamedTuple):
    """One contrast in points: mean over seeds, 95 % t interval, exact sign-flip p and Holm's p within the table."""

    name: str
    mean: float
    low: float
    high: float
    p: float
    corrected: float


@dataclass(frozen=True)
class Factorial:
    """A complete factorial.

    Attributes:
        scores: (seeds, ranks, D1, D2), ranks in the order of `RANKS`, the switches off and on; mean over tasks.
        seeds: of the rows.
        tasks: that every cell has.
        where: model, budget, protocol and recipe, for captions.
        source: of the data.
    """

    scores: Array
    seeds: list[int]
    tasks: list[str]
    where: str
    source: str


def contrasts() -> dict[str, Array]:
    """The eleven contrasts as weights (ranks, D1, D2): four main effects, five pairs, two triples."""
    means, switch, half = (1 / 3, 1 / 3, 1 / 3), (-1.0, 1.0), (0.5, 0.5)
    found: dict[str, Array] = {}
    for ranks in ("", *WEIGHTS):
        for d1 in ("", "D1"):
            for d2 in ("", "D2"):
                name = " x ".join(part for part in (ranks, d1, d2) if part)
                on_ranks = WEIGHTS[ranks] if ranks else means
                found[name] = np.einsum("i,j,k->ijk", on_ranks, switch if d1 else half, switch if d2 else half)
    del found[""]  # the mean of all is no effect
    order = list(MEANING)
    return dict(sorted(found.items(), key=lambda item: (item[0].count(" x "), *map(order.index, _parts(item[0])))))


def _parts(name: str) -> list[str]:
    return name.split(" x ")


def effects(scores: ArrayLike, rng: Generator | None = None) -> list[Effect]:
    """Main effects and interactions.

    Args:
        scores: (seeds, ranks, D1, D2) in points, seeds at least 2.
        rng: for more than 16 seeds, where sign flips are sampled.

    Raises:
        ValueError: another shape, or a score that is not finite.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 4 or x.shape[1:] != (3, 2, 2) or x.shape[0] < 2:
        raise ValueError(f"scores (seeds of at least 2, 3, 2, 2) are needed, shape {x.shape} was given")
    samples = {name: np.einsum("sijk,ijk->s", x, weights) for name, weights in contrasts().items()}
    p = [sign_flip(sample, rng) for sample in samples.values()]
    return [
        Effect(name, float(sample.mean()), *t_interval(sample), p_value, float(corrected))
        for (name, sample), p_value, corrected in zip(samples.items(), p, holm(p), strict=True)
    ]


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
        f"Each effect is one contrast per seed ({n} seeds, {_listed(factorial.tasks)}); t interval over seeds, exact "
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
    return Table(f"Attribution: {factorial.where}, {_listed(factorial.tasks)}", columns, rows, notes, frame)


def paragraph(factorial: Factorial, alpha: float = 0.05) -> str:
    """What the tests say of each main effect and of the interactions, in words; nothing else is said."""
    found = effects(factorial.scores, np.random.default_rng(0))
    main, crossed = found[:4], found[4:]
    parts = [
        f"In {len(factorial.seeds)} paired seeds ({factorial.where}; {_listed(factorial.tasks)}), "
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


def _listed(tasks: Sequence[str]) -> str:
    return tasks[0] if len(tasks) == 1 else f"mean over {', '.join(tasks)}"


# -- one figure --------------------------------------------------------------------------------------------


def draw(factorial: Factorial, path: Path) -> list[Path]:
    """Left: the twelve arms, mean and t interval over seeds. Right: the effects with their intervals.

    Args:
        factorial: complete.
        path: without suffix; .png and .svg are written.
    """
    from analysis.figures import new_figure, save_figure

    found = effects(factorial.scores, np.random.default_rng(0))
    figure = new_figure(10.5, 4.6)
    arms, forest = figure.subplots(1, 2, width_ratios=[1.0, 1.15])
    looks = {(0, 0): ("#000000", "o"), (1, 0): ("#0072B2", "s"), (0, 1): ("#D55E00", "^"), (1, 1): ("#CC79A7", "D")}
    for number, ((d1, d2), (colour, marker)) in enumerate(looks.items()):
        label = " + ".join(n for n, on in (("D1", d1), ("D2", d2)) if on) or "neither"
        for ranks in range(3):
            sample = factorial.scores[:, ranks, d1, d2]
            low, high = t_interval(sample)
            at = ranks + 0.16 * (number - 1.5)
            mean = float(sample.mean())
            arms.errorbar(
                [at], [mean], yerr=[[mean - low], [high - mean]], fmt=marker, color=colour, capsize=2, markersize=5,
                linewidth=1, label=label if ranks == 0 else None,
            )  # fmt: skip
    arms.set_xticks(range(3), ["fixed ranks", "random moves", "scored moves"])
    arms.set_ylabel("score (points)")
    arms.set_title("The twelve arms: mean and 95 % interval", fontsize=10)
    arms.legend(title="side effects", frameon=False, fontsize=8, ncols=2)
    arms.grid(axis="y", linewidth=0.3)
    for number, effect in enumerate(found):
        clear = effect.corrected <= 0.05
        y = len(found) - number
        forest.plot([effect.low, effect.high], [y, y], color="#0072B2", linewidth=1.4)
        forest.plot([effect.mean], [y], "o", color="#0072B2", markerfacecolor="#0072B2" if clear else "white")
    forest.axvline(0, color="0.4", linewidth=0.8)
    forest.set_yticks(range(len(found), 0, -1), [e.name for e in found])
    forest.set_xlabel("effect (points)")
    forest.set_title("Effects; filled: corrected p at most 0.05", fontsize=10)
    forest.grid(axis="x", linewidth=0.3)
    title = f"Attribution: {factorial.where}, {_listed(factorial.tasks)}, {len(factorial.seeds)} seeds"
    return save_figure(figure, path, title, factorial.source)


def sections(runs: pd.DataFrame, folder: Path | None) -> list[Section]:
    """Paragraph, table and figure of every complete factorial among the runs, and what the others lack.

    Args:
        runs: from `load_runs`.
        folder: for the figures; None draws none.
    """
    from analysis.figures import names
    from analysis.page import Section

    found, gaps = factorials(runs)
    section = Section("Attribution: ranks or side effects", lines=[paragraph(one) for one in found] + gaps)
    for number, factorial in enumerate(found, start=1):
        stem = f"attribution_{names([factorial.where, str(number) if len(found) > 1 else ''])}"
        shown = section.tables[stem] = table(factorial)
        if folder is not None:
            section.figures[draw(factorial, folder / f"{stem}_figure")[-1]] = shown.caption
    return [section] if section.lines else []
