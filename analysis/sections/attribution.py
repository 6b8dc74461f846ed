"""Where does ElaLoRA's difference come from: from moving ranks, from the scores, or from two accidents of its code?

The factorial {fixed rank, random prune-and-grow, scored} x D1 x D2 holds twelve arms with the same seeds. D1 drops the
optimizer's moments at every round, D2 keeps the learning rate at its peak from the first round on. Both also work on a
fixed-rank adapter, which separates their effect from that of the ranks.

Every effect is one number per seed (a contrast of that seed's twelve scores, mean over tasks), so its interval is
Student's over seeds and its test the exact sign flip, Holm-corrected over all eleven. The two contrasts of ranks are
orthogonal: *moving* is the mean of both moving arms less the fixed one, *scores* is scored less random. An interaction
is a difference of differences: the effect with a switch on less the effect with it off.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from analysis.output.figure import file_name
from analysis.output.section import Section
from analysis.output.table import Table, p_value, signed
from analysis.reading.settings import cell_of, flatten
from analysis.reading.stored import Stored
from analysis.sections.arms import TUNED
from analysis.sections.attribution_figure import draw
from analysis.sections.evidence import no_claim, unstable
from analysis.stats.factorial import MEANING, RANKS, Effect, Factorial
from experiments.studies.smallest_p import least_pairs, smallest_p

FACTORIAL_KEYS = ["model", "budget", "protocol", "recipe"]  # a factorial lies within one of each


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """Paragraph, table and figure of every complete factorial among the runs, and what the others lack."""
    complete, gaps = factorials(stored.runs)
    section = Section("Attribution: ranks or side effects", lines=[paragraph(one) for one in complete] + gaps)
    for number, factorial in enumerate(complete, start=1):
        stem = f"attribution_{file_name([factorial.where, str(number) if len(complete) > 1 else ''])}"
        section.tables[stem] = effects_table(factorial)
        section.tables[stem.replace("attribution_", "attribution_plain_", 1)] = plain_table(factorial)
        if folder is not None:
            caption = section.tables[stem].caption
            section.figures[draw(factorial, folder / f"{stem}_figure")[-1]] = caption
    return [section] if section.lines else []


def factorials(runs: pd.DataFrame, tuned: bool = False) -> tuple[list[Factorial], list[str]]:
    """Every complete factorial among the runs, and what the incomplete ones lack.

    Runs are one factorial if they share model, budget, protocol, recipe and all settings except the method's, the task
    and the seed; so runs at another learning rate are another factorial.

    Args:
        tuned: whether the cells may differ in learning rate and weight decay.
    """
    placed = runs.assign(cell=[cell_of(s) for s in runs["settings"]])
    placed = placed[placed["cell"].notna()]
    ignored = ("method.", "task.", "numerics.", "recipe.", *(TUNED if tuned else ()))
    flats = [flatten(s) for s in placed["settings"]]
    common = [json.dumps({k: flat[k] for k in sorted(flat) if not k.startswith(ignored)}) for flat in flats]
    complete: list[Factorial] = []
    gaps: list[str] = []
    for (_, *key), group in placed.assign(common=common).groupby(["common", *FACTORIAL_KEYS], sort=False):
        if len(set(group["cell"])) < 4:  # two methods that were never meant as a factorial
            continue
        factorial = _complete(group, ", ".join(str(part) for part in key if part), gaps)
        if factorial is not None:
            complete.append(factorial)
    return complete, gaps


def _complete(group: pd.DataFrame, label: str, gaps: list[str]) -> Factorial | None:
    twice = group[group.duplicated(["task", "seed", "cell"], keep=False)]
    if len(twice):
        gaps.append(
            f"{label}: {len(twice)} runs share a cell of the factorial and a seed; choose one kind with filters"
        )
        return None
    wide = group.pivot(index=["task", "seed"], columns="cell", values="score")
    cells = list(product(range(3), range(2), range(2)))
    present = wide.reindex(columns=cells).notna().groupby("task").any()
    tasks = [str(task) for task in present.index[present.all(axis=1)]]
    if not tasks:
        fullest = present.loc[present.sum(axis=1).idxmax()]
        gaps.append(f"{label}: the factorial lacks {', '.join(cell_name(cell) for cell in cells if not fullest[cell])}")
        return None
    group = group[group["task"].isin(tasks)]  # another task may have some of the arms for another purpose
    whole = wide.loc[tasks, cells].dropna().unstack("task").dropna()
    if len(whole) < len(set(group["seed"])):
        gaps.append(f"{label}: {len(set(group['seed'])) - len(whole)} seeds lack a cell and are left out")
    if len(whole) < 2:
        gaps.append(f"{label}: an effect needs two complete seeds, {len(whole)} are there")
        return None
    scores = whole.to_numpy(float).reshape(len(whole), 3, 2, 2, len(tasks)).mean(axis=-1)
    source = "; ".join(dict.fromkeys(group["citation"]))
    used = group[group["seed"].isin(whole.index)].to_dict("records")
    wild = sum(bool(unstable(run)) for run in used)
    return Factorial(scores, [int(s) for s in whole.index], tasks, label, source, no_claim(used), wild)


def cell_name(cell: Sequence[int]) -> str:
    """ "random + D1" for (1, 1, 0)."""
    switches = [name for name, on in zip(("D1", "D2"), cell[1:], strict=True) if on]
    return " + ".join([RANKS[cell[0]], *switches])


def effects_table(factorial: Factorial) -> Table:
    """The eleven effects, their meaning and the reach of the tests."""
    results = factorial.effects
    columns = ["Effect", "Points", "95 % interval", "p", "p (Holm)", "p (maxT)"]
    rows = [
        [e.name, signed(e.mean), f"[{signed(e.low)}, {signed(e.high)}]", p_value(e.p), p_value(e.corrected),
         p_value(e.max_t)]
        for e in results
    ]  # fmt: skip
    n = len(factorial.seeds)
    notes = [f"{name}: {text}." for name, text in MEANING.items()]
    notes += [
        "An interaction is a difference of differences: the effect with the switch on less the effect with it off.",
        f"Each effect is one contrast per seed ({n} seeds, {factorial.over}); t interval over seeds, exact "
        f"two-sided sign-flip test, Holm over the {len(results)} effects of this table, which the text reads; beside "
        "it step-down maxT from joint sign flips, which finds more at the same level.",
        f"Data: {factorial.source}",
    ]
    if n < (needed := least_pairs(0.05, len(results))):
        bound = p_value(min(1.0, len(results) * smallest_p(n)))
        notes.append(
            f"With {n} seeds no corrected p can be below {bound}; to reach 0.05 takes {needed} seeds. "
            "The intervals are what this table says."
        )
    frame = pd.DataFrame(results)
    frame["seeds"], frame["tasks"], frame["where"] = n, ",".join(factorial.tasks), factorial.where
    return Table(f"Attribution: {factorial.where}, {factorial.over}", columns, rows, notes, frame)


def plain_table(factorial: Factorial) -> Table:
    """Ways to set ranks against one another without side effects, which the averages over D1 and D2 hide."""
    columns = ["Difference", "Points", "95 % interval", "p", "Equivalent within"]
    rows = [
        [d.name, signed(d.mean), f"[{signed(d.low)}, {signed(d.high)}]", p_value(d.p), f"{d.margin:.2f}"]
        for d in factorial.plain
    ]
    notes = [
        f"Arms without D1 and D2 ({len(factorial.seeds)} seeds, {factorial.over}); t interval over seeds, exact "
        "sign-flip test, not corrected.",
        "Equivalent within: the smallest margin in points for which two one-sided t tests at 0.05 call the two "
        "equivalent. No margin was declared before the runs, so it is a reading and no verdict.",
    ]
    frame = pd.DataFrame(factorial.plain).assign(seeds=len(factorial.seeds), where=factorial.where)
    return Table(f"Without side effects: {factorial.where}, {factorial.over}", columns, rows, notes, frame)


def paragraph(factorial: Factorial, alpha: float = 0.05) -> str:
    """What the tests say of each main effect and of the interactions, in words, and nothing else."""
    results = factorial.effects
    main, crossed = results[:4], results[4:]
    parts = [
        f"In {len(factorial.seeds)} paired seeds ({factorial.where}; {factorial.over}), "
        f"with Holm's correction over {len(results)} effects at a level of {alpha:g}:"
    ]
    if factorial.no_claim:
        clearest = min(results, key=lambda e: e.corrected)
        parts.append(
            f"No effect is claimed, because {factorial.no_claim}. The smallest corrected p is that of {clearest.name} "
            f"({signed(clearest.mean)} points, p {p_value(clearest.corrected)})."
        )
        return " ".join(parts)
    parts += [_sentence(effect, alpha) for effect in main]
    if clear := [e for e in crossed if e.corrected <= alpha]:
        listed = "; ".join(f"{e.name} {signed(e.mean)} points, corrected p {p_value(e.corrected)}" for e in clear)
        parts.append(f"These effects depend on one another: {listed}. The main effects are averages over them.")
    else:
        least = min(e.corrected for e in crossed)
        parts.append(f"No interaction is told apart from 0 (smallest corrected p {p_value(least)}).")
    alone = factorial.plain[0]
    parts.append(
        f"Without side effects scored less fixed ranks is {signed(alone.mean)} points (95 % interval "
        f"{signed(alone.low)} to {signed(alone.high)}), equivalent within {alone.margin:.2f} points."
    )
    if 2 * factorial.unstable > factorial.scores.size * len(factorial.tasks):
        parts.append(
            f"{factorial.unstable} of the {factorial.scores.size * len(factorial.tasks)} runs are unstable, so this is "
            "about an unstable rate and says nothing about a stable one."
        )
    if len(factorial.seeds) < least_pairs(alpha, len(results)):
        parts.append(
            f"So few seeds cannot reach the level (it takes {least_pairs(alpha, len(results))}), "
            "so no effect could have been shown here."
        )
    return " ".join(parts)


def _sentence(effect: Effect, alpha: float) -> str:
    meaning = MEANING[effect.name][0].upper() + MEANING[effect.name][1:]
    facts = f"95 % interval {signed(effect.low)} to {signed(effect.high)}, corrected p {p_value(effect.corrected)}"
    if effect.corrected <= alpha:
        verb = "raised" if effect.mean > 0 else "lowered"
        return f"{meaning} {verb} the score by {abs(effect.mean):.2f} points ({facts})."
    return f"{meaning} is not told apart from no effect ({signed(effect.mean)} points, {facts})."
