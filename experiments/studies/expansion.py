"""A study: many runs from one file, stage by stage; and what `python run.py` does with everything it composed.

What is unusual: a study is expanded anew from the run store whenever it is looked at. Runs whose learning rate
depends on the tuning have no plan until the tuning is done; then the same expansion gives them one. So nothing but
the runs themselves has to be kept, and a study goes on in whatever checkout has its store.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from omegaconf import DictConfig, OmegaConf

from elalora.errors import UserError
from experiments.config.compose import compose_run
from experiments.config.study import PartKind, StudyConfig, TuningConfig
from experiments.config.words import key_of
from experiments.runs.plan import Plan, plan_of
from experiments.studies.rules import TUNING, check, seeds_of

FIXED = ("method", "task", "budget", "seed", "protocol", "recipe")  # what a study decides and the command must not


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        part: its part's name, or "tuning"; kind: what that part is read for.
        arm, task, budget, seed: its place.
        overrides: the command that makes it, without `python run.py`; the learning rate is missing while it waits.
        plan: None while its settings wait for the tuning.
        after: ids of the runs that must be done before.
    """

    part: str
    kind: str
    arm: str
    task: str
    budget: str
    seed: int
    overrides: tuple[str, ...]
    plan: Plan | None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What the tuning of one arm on one task at one budget came to.

    Attributes:
        lr: the winner; None while trials are open.
        trials: learning rates tried.
        edge: the winner is the least or the largest of them, and the grid is not extended further.
        runs: ids of the trials that are planned.
    """

    lr: float | None
    trials: tuple[float, ...]
    edge: bool
    runs: tuple[str, ...]


def expand(name: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """Every run of a study as far as it is known now, the tuning first.

    Args:
        name: a file of conf/study.
        overrides: as on the command line, for instance ["store.root=runs", "study.smoke=true"].

    Raises:
        UserError: the study is not consistent, or could not reach its level.
    """
    return cells_of(compose_run([f"+study={name}", *overrides]))


def cells_of(config: DictConfig) -> list[Cell]:
    """Every run of the study that a configuration holds (`run.py +study=NAME`)."""
    return Expansion(config).cells


def study_of(config: DictConfig) -> StudyConfig:
    """The checked study of a configuration, in its small form where `study.smoke` asks for it."""
    study: StudyConfig = OmegaConf.to_object(config.study)
    check(study)
    if study.only is not None:
        if unknown := [name for name in study.only if name not in study.parts]:
            raise UserError(f"study.only: there is no part {unknown[0]}; allowed: {', '.join(study.parts)}")
        study = replace(study, parts={name: study.parts[name] for name in study.only})
    return _small(study) if study.smoke else study


# -- expansion -------------------------------------------------------------------------------------------------


class Expansion:
    """One look at a study.

    Args:
        config: holds the study and the words of the command that chose it.

    Attributes:
        study: checked, in its small form where asked for.
        choices: what the tuning chose so far, by (arm, task, budget).
        cells: every run, the tuning first.
    """

    def __init__(self, config: DictConfig) -> None:
        self.study = study_of(config)
        words = [word for word in config.overrides if not re.match(r"study(\.|=|$)", key_of(word))]
        for word in words:
            if key_of(word) in FIXED:
                raise UserError(
                    f"'{word}': {key_of(word)} is decided by the study; change study.parts.NAME.{key_of(word)}s, "
                    "or leave +study away"
                )
            if own := [arm for arm, given in self.study.arms.items() if key_of(word) in map(key_of, given.overrides)]:
                raise UserError(
                    f"'{word}': {key_of(word)} is set by the study's arms ({', '.join(own)}), which count last; change "
                    "study.arms.NAME.overrides, or leave +study away"
                )
            if key_of(word) == "trainer.lr" and self.study.tuning and any(p.tuned for p in self.study.parts.values()):
                raise UserError(f"'{word}': the study tunes it; change study.tuning.grids, or leave +study away")
        self.words = words
        self.choices: dict[tuple[str, str, str], Choice] = {}
        self.cells = [*self._tuning(), *self._parts()]

    def _tuning(self) -> list[Cell]:
        tuning = self.study.tuning
        if tuning is None:
            return []
        wanted: dict[tuple[str, str], dict[str, bool]] = {}  # (task, budget) -> arms, and whether a claim may need them
        for part in self.study.parts.values():
            if part.tuned:
                for task in part.tasks:
                    for budget in part.budgets:
                        place = wanted.setdefault((task, tuning.budget or budget), {})
                        for arm in self._with_sources(map(self._tuned_as, part.arms)):
                            place[arm] = place.get(arm, False) or part.kind == "confirmatory"
        return [cell for (task, budget), arms in wanted.items() for cell in self._tune(tuning, arms, task, budget)]

    def _tuned_as(self, arm: str) -> str:
        return self.study.arms[arm].tuned_as or arm

    def _with_sources(self, given: Iterable[str]) -> Iterable[str]:
        """The arms and those that give them their ranks, each once."""
        arms = list(given)
        sources = [self._tuned_as(s) for a in arms if (s := self.study.arms[a].ranks_from) is not None]
        return dict.fromkeys([*sources, *arms])

    def _sources_first(self, arms: Iterable[str]) -> list[str]:
        return sorted(arms, key=lambda arm: self.study.arms[arm].ranks_from is not None)

    def _parts(self) -> list[Cell]:
        return [
            self._cell(name, arm, task, budget, seed)
            for name, part in self.study.parts.items()
            for arm in part.arms
            for task in part.tasks
            for budget in part.budgets
            for seed in seeds_of(part.seeds)
        ]

    def _shared(self, task: str, budget: str, own: list[str]) -> list[str]:
        """What all arms of a task and budget share; the command's words count last, the small form's before them."""
        study = self.study
        late = study.small.overrides if study.smoke else []
        mine = [*study.overrides, *study.by_task.get(task, []), *own, *late, *self.words]
        return [*mine, f"task={task}", f"budget={budget}"]

    def _cell(self, name: str, arm: str, task: str, budget: str, seed: int) -> Cell:
        part = self.study.parts[name]
        shared = [*self._shared(task, budget, part.overrides), f"seed={seed}"]
        if self.study.tuning is None or not part.tuned:
            return self._make(name, part.kind, arm, task, budget, seed, [*shared, *self._words(arm, {})])
        needed = [arm, *filter(None, [self.study.arms[arm].ranks_from])]
        at = self.study.tuning.budget or budget
        found = {a: self.choices[self._tuned_as(a), task, at] for a in needed}
        rates = {a: choice.lr for a, choice in found.items() if choice.lr is not None}
        words = [*shared, *self._words(arm, rates)]
        if len(rates) < len(needed):
            waits = dict.fromkeys(run for choice in found.values() for run in choice.runs)
            return Cell(name, part.kind, arm, task, budget, seed, tuple(words), None, tuple(waits))
        return self._make(name, part.kind, arm, task, budget, seed, words)

    def _words(self, arm: str, rates: dict[str, float]) -> list[str]:
        """An arm's overrides, with its learning rate and with those of the arm that gives it its ranks."""
        own = self.study.arms[arm]
        words = [*own.overrides, *([f"trainer.lr={rates[arm]!r}"] if arm in rates else [])]
        if own.ranks_from is not None:
            words.append(f"method.ranks_from='{' '.join(self._words(own.ranks_from, rates))}'")
        return words

    def _make(self, part: str, kind: str, arm: str, task: str, budget: str, seed: int, words: list[str]) -> Cell:
        words = _last(words)
        plan = plan_of(tuple(words))
        after = tuple(source.id for source in plan.sources if source.plan is not None)
        return Cell(part, kind, arm, task, budget, seed, tuple(words), plan, after)

    # -- tuning ------------------------------------------------------------------------------------------

    def _tune(self, tuning: TuningConfig, wanted: dict[str, bool], task: str, budget: str) -> list[Cell]:
        """Plans the trials of one task and budget, and chooses where they are done.

        A winner at the edge of its grid extends the grid of every arm, so that all have the same number of trials. The
        arms of a confirmatory part are extended by one another only: arms that are tuned after their scores were seen
        must not give them other learning rates. The others have as many trials, or more.
        """
        most = 0 if self.study.smoke else tuning.extensions
        made: dict[str, list[Cell]] = {}
        least = 0
        for claimed in (True, False):
            arms = self._sources_first(arm for arm, needed in wanted.items() if needed is claimed)
            for extension in range(least, most + 1):
                made |= {arm: self._trials(tuning, arm, task, budget, extension) for arm in arms}
                # an arm whose trials are not done is at no edge yet; it must not hide that another one is
                least = extension
                if not any(self.choices[arm, task, budget].edge for arm in arms):
                    break
        return [cell for cells in made.values() for cell in cells]

    def _trials(self, tuning: TuningConfig, arm: str, task: str, budget: str, extension: int) -> list[Cell]:
        """One arm's trials on one grid; leaves what they came to in `choices`."""
        key = (arm, task, budget)
        source = self.study.arms[arm].ranks_from
        place = [*self._shared(task, budget, tuning.overrides), "protocol=tune"]
        grid = extended(tuning.grids[self._family(arm, place, tuning)], extension)
        given: dict[str, float] = {}
        if source is not None:
            chosen = self.choices[self._tuned_as(source), task, budget]
            if chosen.lr is None:
                self.choices[key] = Choice(None, grid, False, chosen.runs)
                return []
            given[source] = chosen.lr
        cells: list[Cell] = []
        scores = []
        for lr in grid:
            words = self._words(arm, {arm: lr, **given})
            trial = [
                self._make(TUNING, TUNING, arm, task, budget, seed, [*place, f"seed={seed}", *words])
                for seed in seeds_of(tuning.seeds)
            ]
            cells += trial
            scores.append([score_of(cell.plan) for cell in trial if cell.plan is not None])
        self.choices[key] = choose(grid, scores, tuple(cell.plan.id for cell in cells if cell.plan is not None))
        return cells

    def _family(self, arm: str, place: list[str], tuning: TuningConfig) -> str:
        family = compose_run(_last([*place, *self.study.arms[arm].overrides])).recipe.family
        if family not in tuning.grids:
            raise UserError(f"study.tuning.grids has no learning rates for the family {family} of the arm {arm}")
        return str(family)


def _last(words: Iterable[str]) -> list[str]:
    """Of several overrides of one setting the last."""
    return list({key_of(word): word for word in words}.values())


def choose(grid: tuple[float, ...], scores: list[list[float | None]], runs: tuple[str, ...]) -> Choice:
    """The learning rate with the highest mean score over the tuning seeds; of equal ones the nearest to the middle.

    Args:
        grid: learning rates in rising order.
        scores: of every seed at every rate; None where a trial is open, minus infinity where it was lost.
        runs: ids of the trials.
    """
    if any(score is None for trial in scores for score in trial):
        return Choice(None, grid, False, runs)
    means = [fmean(score for score in trial if score is not None) for trial in scores]
    if max(means) == -math.inf:
        raise UserError(f"every trial of the learning rates {', '.join(map(str, grid))} was lost: lower the grid")
    middle = (len(grid) - 1) / 2
    best = max(range(len(grid)), key=lambda i: (means[i], -abs(i - middle)))
    return Choice(grid[best], grid, best in (0, len(grid) - 1), runs)


def score_of(plan: Plan | None) -> float | None:
    """A trial's score on the held-out part; None while it is open, minus infinity where training diverged."""
    assert plan is not None
    done = plan.finished()
    if done is not None:
        result = done.result()
        return float(result["readings"]["last"]["report"]["metrics"][result["metric"]])
    status = plan.folder.status()
    lost = status.get("failure") in ("nan", "never_acted", "budget")
    return -math.inf if lost else None


def extended(grid: Sequence[float], times: int) -> tuple[float, ...]:
    """A grid with so many more values at both ends, each in the ratio of its neighbours there."""
    values = list(grid)
    for _ in range(times):
        low, high = values[0] ** 2 / values[1], values[-1] ** 2 / values[-2]
        values = [float(f"{low:.3g}"), *values, float(f"{high:.3g}")]
    return tuple(values)


def _small(study: StudyConfig) -> StudyConfig:
    """Every arm and budget on stand-ins, with the first seed only; it supports no claim, so it declares no family."""
    from experiments.standins.folder import standins

    where = str(standins())
    small = study.small
    first = {
        name: replace(
            part,
            kind=PartKind.exploratory if part.kind == "confirmatory" else part.kind,
            tasks=small.tasks or part.tasks,
            seeds=str(seeds_of(part.seeds)[0]),
        )
        for name, part in study.parts.items()
    }
    tuning = study.tuning and replace(study.tuning, seeds=str(seeds_of(study.tuning.seeds)[0]))
    overrides = [word.replace("{standins}", where) for word in small.overrides]
    return replace(study, small=replace(small, overrides=overrides), parts=first, tuning=tuning, family=None)


# -- the command -----------------------------------------------------------------------------------------------
