"""Shows what a command would run (`--plan`): groups of repeats, what is done, what waits, and the expected time.

Expected times come from stored runs of the same kind only; runs without one are counted separately.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from statistics import fmean, median, stdev
from typing import Any

from omegaconf import DictConfig

from experiments.config.study import FamilyConfig
from experiments.runs.plan import Plan, in_order
from experiments.runtime.text import counted, duration
from experiments.store.compact import opened
from experiments.store.foreign import DAMAGE, read_json
from experiments.studies.expansion import Cell, Expansion, score_of
from experiments.studies.power import POWER, least_effect
from experiments.studies.rules import TUNING_PART, divisor, pairs_of
from experiments.studies.smallest_p import smallest_p


def preview(plans: Sequence[Plan]) -> str:
    """The runs of a plain command, as "task/method-budget: n repeats"."""
    plans = in_order(plans)
    groups: dict[str, list[Plan]] = defaultdict(list)
    for plan in plans:
        sources = {source.setting: source.value for source in plan.sources}
        groups[json.dumps([_without_seed(plan.identity), sources], sort_keys=True)].append(plan)
    lines = []
    for repeats in groups.values():
        lines.append(f"  {_label(repeats[0])}: {_repeats(p.seed for p in repeats)}{_done(repeats)}")
        lines += _sources(repeats, {plan.id for plan in plans})
    return "\n".join([f"{counted(len(plans), 'run')}:", *lines, *_summary(plans)])


def preview_study(config: DictConfig) -> str:
    """The runs of a study by part, what they wait for, and its family of comparisons."""
    expansion = Expansion(config)
    study, cells = expansion.study, expansion.cells
    lines = [f"{study.name}{' (smoke)' if study.smoke else ''}: {study.about}"]
    for part in dict.fromkeys(cell.part for cell in cells):
        lines += _part(part, [cell for cell in cells if cell.part == part])
        if part == TUNING_PART:
            planned = {(cell.arm, cell.task, cell.budget) for cell in cells if cell.part == part}
            lines += [
                f"  {arm} x {budget} x {task}: waits for the tuning of the arm that gives it its ranks"
                for arm, task, budget in expansion.choices
                if (arm, task, budget) not in planned
            ]
    edges = [
        f"tuning: {arm} on {task} at {budget} chose {choice.lr}, at the edge of {list(choice.trials)}"
        for (arm, task, budget), choice in expansion.choices.items()
        if choice.edge and choice.lr is not None
    ]
    plans = in_order(cell.plan for cell in cells if cell.plan is not None)
    waiting = sum(cell.plan is None for cell in cells)
    if (f := study.family) is not None and f.part in study.parts:
        contrasts, budgets = ", ".join(f.contrasts), ", ".join(f.budgets)
        family = f"family: {contrasts} at {budgets}: m = {f.m}, {f.correction}, alpha = {f.alpha}"
        lines += ["", family, *_reach(f, [cell for cell in cells if cell.part == f.part])]
    return "\n".join([*lines, *edges, *_summary(plans, waiting, len(cells) - waiting - len(plans))])


def _reach(family: FamilyConfig, cells: list[Cell]) -> list[str]:
    """What the family's seeds can show: the smallest p, and the least difference found with 80 % power."""
    seeds, of = len({cell.seed for cell in cells}), divisor(family)
    needed = f"{family.alpha:g} / {of} = {family.alpha / of:.2g}" if of > 1 else f"{family.alpha:g}"
    lines = [f"  {counted(seeds, 'seed')}: the smallest p is {smallest_p(seeds):.2g}, and {needed} is needed"]
    sd, source = (family.sd, "declared") if family.sd else (_stored_sd(family, cells), "of the stored runs")
    if sd is None:
        return [*lines, "  set study.family.sd to a pilot's standard deviation to see which difference can be found"]
    least, level = least_effect(sd, seeds, family.alpha / family.m), f"level {family.alpha:g} / {family.m}"
    text = f"  with a standard deviation of {sd:.2f} points ({source}) they find a difference of {least:.2f} points"
    lines.append(f"{text} with {POWER:.0%} power ({level})")
    if family.margin is not None and least > family.margin:
        lines.append(
            f"  a true difference between {family.margin:g} (the margin) and {least:.2f} points often gets no verdict"
        )
    return lines


def _stored_sd(family: FamilyConfig, cells: list[Cell]) -> float | None:
    """The median over the comparisons of the spread of their paired differences; None before three seeds are done."""
    scores: dict[tuple[str, str, int], dict[str, float]] = defaultdict(dict)
    for cell in cells:
        score = None if cell.plan is None else score_of(cell.plan)
        if score is not None and math.isfinite(score):
            scores[cell.arm, cell.budget, cell.seed][cell.task] = score
    tasks = {cell.task for cell in cells}
    means = {key: fmean(by_task.values()) for key, by_task in scores.items() if set(by_task) == tasks}
    spreads = []
    for (arm, other), budget in product(pairs_of(family), family.budgets):
        base = {seed: mean for (name, at, seed), mean in means.items() if (name, at) == (other, budget)}
        gaps = [mean - base[s] for (name, at, s), mean in means.items() if (name, at) == (arm, budget) and s in base]
        spreads += [stdev(gaps)] if len(gaps) >= 3 and stdev(gaps) > 0 else []
    return median(spreads) if spreads else None


def _part(name: str, cells: list[Cell]) -> list[str]:
    kind = "first stage" if name == TUNING_PART else cells[0].kind
    lines = [f"\n{name} ({kind}), {counted(len(cells), 'run')}"]
    groups: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.arm, cell.budget, cell.task].append(cell)
    for (arm, budget, task), group in groups.items():
        lines.append(f"  {arm} x {budget} x {task}: {_group(group)}")
    return lines


def _group(cells: list[Cell]) -> str:
    """The runs of one arm on one task at one budget."""
    text = _repeats(cell.seed for cell in cells)
    if (rates := len(cells) // len({cell.seed for cell in cells})) > 1:
        text = f"{rates} learning rates x {text}"
    plans = [cell.plan for cell in cells if cell.plan is not None]
    if not plans:
        return f"{text}, waits for the tuning"
    after = sorted({_label(source.plan) for p in plans for source in p.sources if source.plan})
    return text + _done(plans) + (f", after {', '.join(after)}" if after else "")


def _summary(plans: list[Plan], waiting: int = 0, double: int = 0) -> list[str]:
    """How much is done, and the expected time of the rest; parts of a study share `double` runs."""
    todo = [plan for plan in plans if plan.finished() is None]
    lines = ["", f"{len(plans) - len(todo)} of {len(plans) + waiting} done"]
    if waiting:
        lines[-1] += f"; {waiting} wait until the tuning has chosen their learning rate"
    if double > 0:
        lines[-1] += f"; {double} more are the same runs in another part"
    stored = Timings(plans)
    times = [seconds for plan in todo if (seconds := stored.seconds(plan)) is not None]
    if times:
        work = f"about {duration(sum(times))} of work for {counted(len(times), 'run')}"
        lines.append(f"{work}, from stored runs like them")
    if len(times) < len(todo):
        lines.append(f"no stored time for {counted(len(todo) - len(times), 'run')}")
    if waiting and todo:
        lines.append("the waiting runs are not in this time")
    return lines


class Timings:
    """Times of the finished runs in the stores of these plans.

    A run's expected time is the median over runs that differ in seed and learning rate only; if there are none, over
    runs of the same task, model, data and trainer with any method and budget.
    """

    def __init__(self, plans: Iterable[Plan]) -> None:
        roots = dict.fromkeys(r for p in plans for r in p.stores)
        seconds: dict[str, list[float]] = defaultdict(list)
        for root in roots:
            for path in opened(root).glob("*/*/result.json"):
                try:
                    result = read_json(path)
                    took = result["cost"]["train_seconds"] + result["cost"]["eval_seconds"]
                    keys = _kinds(result["identity"])
                except DAMAGE:
                    continue  # damaged, or of another schema
                for key in keys:
                    seconds[key].append(took)
        self.medians = {key: median(values) for key, values in seconds.items()}

    def seconds(self, plan: Plan) -> float | None:
        """The expected time; None if no stored run is similar."""
        return next((self.medians[key] for key in _kinds(plan.identity) if key in self.medians), None)


def _kinds(identity: dict[str, Any]) -> list[str]:
    """Keys of similar runs, from the narrowest kind to the widest."""
    trainer = {k: v for k, v in identity["trainer"].items() if k != "lr"}
    near = _without_seed(identity) | {"trainer": trainer}
    wide = {k: near[k] for k in ("task", "model", "data", "protocol")} | {"trainer": trainer}
    return [json.dumps(kind, sort_keys=True) for kind in (near, wide)]


def _without_seed(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity without the seed and the ids of sources, which differ by seed too."""
    method = {k: v for k, v in identity["method"].items() if k != "ranks_from"}
    return {k: v for k, v in identity.items() if k not in ("seed", "init_from")} | {"method": method}


def _sources(repeats: list[Plan], planned: set[str]) -> list[str]:
    """The runs that these depend on, and whether they are done or part of the command."""
    lines: Counter[str] = Counter()
    for plan in repeats:
        for source in plan.sources:
            if source.plan is not None:
                done = source.plan.finished() is not None
                state = "done" if done else "in this plan" if source.id in planned else "MISSING, run it first"
                lines[f"    after {_label(source.plan)} ({source.setting}), {state}"] += 1
    return [f"{line}: {count}" for line, count in lines.items()]


def _label(plan: Plan) -> str:
    """Task and arm, without the seed."""
    return f"{plan.task}/{plan.name.arm}"


def _done(plans: Sequence[Plan]) -> str:
    done = sum(plan.finished() is not None for plan in plans)
    return f", {done} done" if done else ""


def _repeats(seeds: Iterable[int]) -> str:
    """The number of repeats, and their seeds as a range or a list."""
    numbers = sorted(set(seeds))
    count = counted(len(numbers), "repeat")
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{count} (seeds {numbers[0]}..{numbers[-1]})"
    return f"{count} (seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))})"
