"""What a command would run, before anything starts: groups of repeats, what is done, what waits, how long it takes.

Times are never invented: they come from stored runs that are alike, and what has none is counted apart.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from omegaconf import DictConfig

from experiments.runs.plan import Plan, in_order
from experiments.store.compact import opened
from experiments.studies.expansion import Cell, Expansion
from experiments.studies.rules import TUNING


def overview(plans: Sequence[Plan]) -> str:
    """The runs of a plain command, "method-budget on task: n repeats"."""
    plans = in_order(plans)
    groups: dict[str, list[Plan]] = defaultdict(list)
    for plan in plans:
        groups[_repeats_of(plan)].append(plan)
    lines = []
    for alike in groups.values():
        label = alike[0].label.rpartition("-s")[0]
        lines.append(
            f"  {label}: {_count(len(alike), 'repeat')} ({_seeds(p.config.seed for p in alike)}){_done(alike)}"
        )
        lines += _needs(alike, {plan.id for plan in plans})
    return "\n".join([f"{_count(len(plans), 'run')}:", *lines, *_summary(plans, [], [])])


def overview_of_study(config: DictConfig) -> str:
    """The runs of a study by part, with what waits for what and what its family demands."""
    look = Expansion(config)
    study, cells = look.study, look.cells
    heading = f"{study.name}{' (small form)' if study.smoke else ''}: {study.about}"
    lines = [heading]
    for part in dict.fromkeys(cell.part for cell in cells):
        mine = [cell for cell in cells if cell.part == part]
        kind = "first stage" if part == TUNING else mine[0].kind
        lines.append(f"\n{part} ({kind}), {_count(len(mine), 'run')}")
        groups: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
        for cell in mine:
            groups[cell.arm, cell.budget, cell.task].append(cell)
        for (arm, budget, task), alike in groups.items():
            lines.append(f"  {arm} x {budget} x {task}: {_what(part, alike)}")
        if part == TUNING:
            planned = {(cell.arm, cell.task, cell.budget) for cell in mine}
            lines += [
                f"  {arm} x {budget} x {task}: waits for the tuning of the arm that gives it its ranks"
                for arm, task, budget in look.choices
                if (arm, task, budget) not in planned
            ]
    plans = in_order(cell.plan for cell in cells if cell.plan is not None)
    edges = [
        f"tuning: {arm} on {task} at {budget} chose {choice.lr}, at the edge of {list(choice.trials)}"
        for (arm, task, budget), choice in look.choices.items()
        if choice.edge and choice.lr is not None
    ]
    if study.family is not None and study.family.part in study.parts:
        f = study.family
        lines.append(
            f"\nfamily: {f.baseline} with {', '.join(f.arms)} at {', '.join(f.budgets)}: m = {f.m}, "
            f"{f.correction}, alpha = {f.alpha}"
        )
    return "\n".join([*lines, *edges, *_summary(plans, [c for c in cells if c.plan is None], cells)])


def _what(part: str, alike: list[Cell]) -> str:
    seeds = {cell.seed for cell in alike}
    plans = [cell.plan for cell in alike if cell.plan is not None]
    if part == TUNING:
        text = f"{len(alike) // len(seeds)} learning rates x {_count(len(seeds), 'repeat')} ({_seeds(seeds)})"
    else:
        text = f"{_count(len(alike), 'repeat')} ({_seeds(seeds)})"
    if not plans:
        return f"{text}, waits for the tuning"
    after = sorted({source.plan.label.rpartition("-s")[0] for p in plans for source in p.sources if source.plan})
    return text + _done(plans) + (f", after {', '.join(after)}" if after else "")


def _summary(plans: list[Plan], waiting: list[Cell], cells: list[Cell]) -> list[str]:
    done = [plan for plan in plans if plan.finished() is not None]
    lines = ["", f"{len(done)} of {len(plans) + len(waiting)} done"]
    if waiting:
        lines[-1] += f"; {len(waiting)} wait until the tuning has chosen their learning rate"
    double = len(cells) - len(waiting) - len(plans)
    if double > 0:
        lines[-1] += f"; {double} more are the same runs in another part"
    stored = Timings(plans)
    times = [stored.seconds(plan) for plan in plans if plan.finished() is None]
    known = [seconds for seconds in times if seconds is not None]
    if known:
        lines.append(
            f"about {_duration(sum(known))} of work for {_count(len(known), 'run')}, from stored runs that are alike"
        )
    if len(known) < len(times):
        lines.append(f"no stored time for {_count(len(times) - len(known), 'run')}")
    if waiting and times:
        lines.append("the waiting runs are not in this time")
    return lines


class Timings:
    """How long runs took, from the stores that these plans name.

    The nearest kind counts: the same run with another seed or learning rate, else the same task, model, data and
    trainer with another method or budget.
    """

    def __init__(self, plans: Iterable[Plan]) -> None:
        roots = dict.fromkeys(r for p in plans for r in (p.config.store.root, *p.config.store.also))
        seconds: dict[str, list[float]] = defaultdict(list)
        for root in roots:
            for path in opened(root).glob("*/*/result.json"):
                try:
                    result = json.loads(path.read_text(encoding="utf-8"))
                    took = result["cost"]["train_seconds"] + result["cost"]["eval_seconds"]
                    keys = _kinds(result["identity"])
                except (ValueError, KeyError, TypeError):
                    continue  # damaged, or of another schema: it is no evidence
                for key in keys:
                    seconds[key].append(took)
        self.medians = {key: median(values) for key, values in seconds.items()}

    def seconds(self, plan: Plan) -> float | None:
        """Median of what is most alike; None where nothing is."""
        return next((self.medians[key] for key in _kinds(plan.identity) if key in self.medians), None)


def _kinds(identity: dict[str, Any]) -> list[str]:
    """Keys from the narrowest kind to the widest."""
    trainer = {k: v for k, v in identity["trainer"].items() if k != "lr"}
    near = {k: v for k, v in identity.items() if k not in ("seed", "init_from")} | {"trainer": trainer}
    near["method"] = {k: v for k, v in identity["method"].items() if k != "ranks_from"}
    wide = {k: near[k] for k in ("task", "model", "data", "protocol")} | {"trainer": trainer}
    return [json.dumps(kind, sort_keys=True) for kind in (near, wide)]


def _repeats_of(plan: Plan) -> str:
    """What all repeats of a run have in common; a transplant's source differs by seed, but is named alike."""
    alike = {k: v for k, v in plan.identity.items() if k not in ("seed", "init_from")}
    named = {source.setting: source.wanted for source in plan.sources}
    alike["method"] = {k: v for k, v in plan.identity["method"].items() if k != "ranks_from"}
    return json.dumps([alike, named], sort_keys=True)


def _needs(alike: list[Plan], given: set[str]) -> list[str]:
    """Sources of these runs, and whether they are part of the command."""
    lines: Counter[str] = Counter()
    for plan in alike:
        for source in plan.sources:
            if source.plan is not None:
                there = source.plan.finished() is not None
                state = "done" if there else "in this plan" if source.id in given else "MISSING, run it first"
                lines[f"    after {source.plan.label.rpartition('-s')[0]} ({source.setting}), {state}"] += 1
    return [f"{line}: {count}" for line, count in lines.items()]


def _done(plans: Sequence[Plan]) -> str:
    done = sum(plan.finished() is not None for plan in plans)
    return f", {done} done" if done else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _seeds(seeds: Iterable[int]) -> str:
    found = sorted(set(seeds))
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"seeds {found[0]}..{found[-1]}"
    return f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
