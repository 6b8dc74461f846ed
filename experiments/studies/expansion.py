"""Expands a study, one file, into its runs.

A study keeps no state: every expansion reads the run store. Runs whose learning rate depends on the tuning have no plan
until the tuning is done; then the same expansion gives them one. So any checkout that has the store can continue it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean

from omegaconf import DictConfig, OmegaConf

from elalora.errors import UserError
from elalora.schedules import steps_of
from experiments.config.compose import compose_run
from experiments.config.mistakes import check_groups
from experiments.config.study import PartKind, StudyConfig, TuningConfig
from experiments.config.task import Protocol
from experiments.config.words import key_of
from experiments.runs.plan import Plan, plan_of
from experiments.studies.rules import TUNING_PART, check, seeds_of
from experiments.training.stability import logged_losses, stability

FIXED = ("method", "task", "budget", "seed", "protocol", "recipe")  # set by the study; refused on the command line


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    part: str  # "tuning" for tuning runs
    kind: str  # of the part; "tuning" for tuning runs
    arm: str
    task: str
    budget: str
    seed: int
    overrides: tuple[str, ...]  # the words of its command, without a learning rate that the tuning has not chosen
    plan: Plan | None  # None while its settings depend on unfinished tuning
    after: tuple[str, ...] = ()  # ids of the runs that must be done first


@dataclass(frozen=True)
class Choice:
    """The learning rate that the tuning chose for one arm on one task at one budget."""

    lr: float | None  # None while trials are unfinished
    trials: tuple[float, ...]  # learning rates of the grid
    edge: bool  # whether the winner is the smallest or largest of the grid
    runs: tuple[str, ...]  # ids of the planned trials


def expand(name: str, overrides: Sequence[str] = ()) -> list[Cell]:
    """Every run of a study, the tuning first.

    Args:
        name: a file of conf/study.
        overrides: as on the command line, for instance ["store.root=runs", "study.smoke=true"].

    Raises:
        UserError: the study is inconsistent, or cannot reach its level.
    """
    return cells_of(compose_run([f"+study={name}", *overrides]))


def cells_of(config: DictConfig) -> list[Cell]:
    """Every run of the study in a configuration (`run.py +study=NAME`)."""
    return Expansion(config).cells


def study_of(config: DictConfig) -> StudyConfig:
    """The validated study of a configuration; with `study.smoke`, its smoke form."""
    check_groups(config.study, "study.")
    study: StudyConfig = OmegaConf.to_object(config.study)
    check(study)
    if study.only is not None:
        if unknown := [name for name in study.only if name not in study.parts]:
            raise UserError(f"study.only: unknown part {unknown[0]}; allowed: {', '.join(study.parts)}")
        study = replace(study, parts={name: study.parts[name] for name in study.only})
    return _smoke(study) if study.smoke else study


class Expansion:
    """The runs of a study, with the state of its store now.

    Args:
        config: holds the study and the words of its command.

    Attributes:
        study: validated.
        choices: what the tuning has chosen so far, by (arm, task, budget).
        cells: every run, the tuning first.
    """

    def __init__(self, config: DictConfig) -> None:
        self.study = study_of(config)
        self.words = [word for word in config.overrides if not re.match(r"study(\.|=|$)", key_of(word))]
        for word in self.words:
            self._check_word(word, key_of(word))
        self.choices: dict[tuple[str, str, str], Choice] = {}
        self.cells = self._tuning()  # first: the parts read its choices
        for name, part in self.study.parts.items():
            for arm, task, budget in product(part.arms, part.tasks, part.budgets):
                rates = self._curve(name, arm, task, budget)
                for seed, rate in product(seeds_of(part.seeds), rates):
                    self.cells.append(self._cell(name, arm, task, budget, seed, rate))

    def _check_word(self, word: str, key: str) -> None:
        """Refuses a word of the command that the study would ignore."""
        if key in FIXED:
            raise UserError(f"'{word}': the study sets {key}; change study.parts.NAME.{key}s, or remove +study")
        if arms := [name for name, arm in self.study.arms.items() if key in map(key_of, arm.overrides)]:
            raise UserError(
                f"'{word}': the study's arms ({', '.join(arms)}) set {key}; "
                "change study.arms.NAME.overrides, or remove +study"
            )
        if key == "trainer.lr" and self.study.tuning and any(part.tuned for part in self.study.parts.values()):
            raise UserError(f"'{word}': the study tunes it; change study.tuning.grids, or remove +study")

    def _tuning(self) -> list[Cell]:
        tuning = self.study.tuning
        if tuning is None:
            return []
        # (task, budget) -> arm -> whether a confirmatory part needs its learning rate
        tuned: dict[tuple[str, str], dict[str, bool]] = {}
        for part in [part for part in self.study.parts.values() if part.tuned]:
            for task, budget in product(part.tasks, part.budgets):
                arms = tuned.setdefault((task, tuning.budget or budget), {})
                names = [self._tuned_as(arm) for arm in part.arms]
                sources = [self._tuned_as(s) for arm in names if (s := self.study.arms[arm].ranks_from) is not None]
                for arm in (*sources, *names):
                    arms[arm] = arms.get(arm, False) or part.kind == "confirmatory"
        return [cell for (task, budget), arms in tuned.items() for cell in self._tune(tuning, arms, task, budget)]

    def _tuned_as(self, arm: str) -> str:
        return self.study.arms[arm].tuned_as or arm

    def _shared(self, task: str, budget: str, stage: list[str]) -> list[str]:
        """Words of all arms at a task and budget; later ones win: study, task, part or tuning, smoke, command."""
        study = self.study
        smoke = study.small.overrides if study.smoke else []
        words = [*study.overrides, *study.by_task.get(task, []), *stage, *smoke, *self.words]
        return [*words, f"task={task}", f"budget={budget}"]

    def _curve(self, name: str, arm: str, task: str, budget: str) -> Sequence[float | None]:
        """The learning rates of an arm in a part that runs rate curves; (None,) elsewhere."""
        part = self.study.parts[name]
        if not part.rates:
            return (None,)
        words = [*self._shared(task, budget, part.overrides), *self.study.arms[arm].overrides]
        return _of_family(part.rates, words, arm, f"study.parts.{name}.rates")

    def _cell(self, name: str, arm: str, task: str, budget: str, seed: int, rate: float | None = None) -> Cell:
        part, tuning = self.study.parts[name], self.study.tuning
        choices: dict[str, Choice] = {}
        if tuning is not None and part.tuned:
            needed = filter(None, [arm, self.study.arms[arm].ranks_from])
            choices = {a: self.choices[self._tuned_as(a), task, tuning.budget or budget] for a in needed}
        rates = {a: choice.lr for a, choice in choices.items() if choice.lr is not None}
        if rate is not None:
            rates[arm] = rate
        words = [*self._shared(task, budget, part.overrides), f"seed={seed}", *self._words(arm, rates)]
        if len(rates) < len(choices):
            waits = dict.fromkeys(run for choice in choices.values() for run in choice.runs)
            return Cell(name, part.kind, arm, task, budget, seed, tuple(words), None, tuple(waits))
        return _planned(name, part.kind, arm, task, budget, seed, words)

    def _words(self, arm: str, rates: dict[str, float]) -> list[str]:
        """An arm's overrides, with its learning rate and with those of the arm that gives it its ranks."""
        config = self.study.arms[arm]
        words = [*config.overrides, *([f"trainer.lr={rates[arm]!r}"] if arm in rates else [])]
        if config.ranks_from is not None:
            words.append(f"method.ranks_from='{' '.join(self._words(config.ranks_from, rates))}'")
        return words

    def _tune(self, tuning: TuningConfig, tuned: dict[str, bool], task: str, budget: str) -> list[Cell]:
        """Plans the trials of one task and budget, and chooses the learning rates of arms whose trials are done.

        A winner at the edge of its grid extends the grid of every arm, so that all have the same number of trials. The
        grids of arms in a confirmatory part are extended by such arms only: arms that are tuned after their scores were
        seen must not change their learning rates. The other arms have at least as many trials.

        Args:
            tuned: arm -> whether a confirmatory part needs it.
        """
        last = 0 if self.study.smoke else tuning.extensions
        trials: dict[str, list[Cell]] = {}
        first = 0
        for confirmatory in (True, False):
            arms = [arm for arm, needed in tuned.items() if needed is confirmatory]
            arms.sort(key=lambda arm: self.study.arms[arm].ranks_from is not None)  # sources first
            for extension in range(first, last + 1):
                trials |= {arm: self._trials(tuning, arm, task, budget, extension) for arm in arms}
                first = extension
                # an arm with unfinished trials has no edge yet, but another arm's edge extends its grid too
                if not any(self.choices[arm, task, budget].edge for arm in arms):
                    break
        return [cell for cells in trials.values() for cell in cells]

    def _trials(self, tuning: TuningConfig, arm: str, task: str, budget: str, extension: int) -> list[Cell]:
        """One arm's trials on one grid; stores their outcome in `choices`."""
        key = (arm, task, budget)
        source = self.study.arms[arm].ranks_from
        shared = [*self._shared(task, budget, tuning.overrides), f"protocol={Protocol.tune}"]
        words = [*shared, *self.study.arms[arm].overrides]
        grid = extended(_of_family(tuning.grids, words, arm, "study.tuning.grids"), extension)
        rates: dict[str, float] = {}
        if source is not None:
            chosen = self.choices[self._tuned_as(source), task, budget]
            if chosen.lr is None:
                self.choices[key] = Choice(None, grid, False, chosen.runs)
                return []
            rates[source] = chosen.lr
        trials = [
            [
                _planned(TUNING_PART, TUNING_PART, arm, task, budget, seed, [*shared, f"seed={seed}", *words])
                for seed in seeds_of(tuning.seeds)
            ]
            for words in (self._words(arm, {arm: lr, **rates}) for lr in grid)
        ]
        cells = [cell for trial in trials for cell in trial]
        scores = [[score_of(cell.plan) for cell in trial] for trial in trials]
        wild = [tuning.stable and 2 * sum(unstable(cell.plan) for cell in trial) > len(trial) for trial in trials]
        self.choices[key] = choose(grid, scores, tuple(cell.plan.id for cell in cells if cell.plan is not None), wild)
        return cells


def _of_family(grids: Mapping[str, Sequence[float]], words: list[str], arm: str, setting: str) -> Sequence[float]:
    """The learning rates of the family of an arm's method.

    Args:
        grids: family -> learning rates.
        words: of a command of the arm.
        setting: the key of `grids`, for the error.
    """
    family = str(compose_run(_last(words)).recipe.family)
    if family not in grids:
        raise UserError(f"{setting} lacks learning rates for the family {family} of the arm {arm}")
    return grids[family]


def _planned(part: str, kind: str, arm: str, task: str, budget: str, seed: int, words: list[str]) -> Cell:
    overrides = tuple(_last(words))
    plan = plan_of(overrides)
    after = tuple(source.id for source in plan.sources if source.plan is not None)
    return Cell(part, kind, arm, task, budget, seed, overrides, plan, after)


def _last(words: Iterable[str]) -> list[str]:
    """The last override of each setting."""
    return list({key_of(word): word for word in words}.values())


def choose(
    grid: tuple[float, ...], scores: list[list[float | None]], runs: tuple[str, ...], wild: Sequence[bool] = ()
) -> Choice:
    """The learning rate with the highest mean score over the tuning seeds; of equal ones the nearest to the middle.

    Args:
        grid: learning rates in rising order.
        scores: of every seed at every rate; None for an unfinished trial, minus infinity for one that failed.
        runs: ids of the trials.
        wild: which rates cannot win because they are unstable; none if empty. Where all are, the lowest wins, which
            extends the grid.

    Raises:
        UserError: every trial failed.
    """
    if any(score is None for trial in scores for score in trial):
        return Choice(None, grid, False, runs)
    means = [fmean(score for score in trial if score is not None) for trial in scores]
    if max(means) == -math.inf:
        raise UserError(f"all learning rates {', '.join(map(str, grid))} diverged; lower study.tuning.grids")
    middle = (len(grid) - 1) / 2
    trained = [i for i, mean in enumerate(means) if mean > -math.inf]
    calm = [i for i in trained if not (wild and wild[i])] or trained[:1]
    best = max(calm, key=lambda i: (means[i], -abs(i - middle)))
    return Choice(grid[best], grid, best in (0, len(grid) - 1), runs)


def score_of(plan: Plan | None) -> float | None:
    """A trial's score on held-out data; None while it is unfinished, minus infinity if training diverged."""
    assert plan is not None
    done = plan.finished()
    if done is not None:
        result = done.result()
        return float(result["readings"]["last"]["report"]["metrics"][result["metric"]])
    return -math.inf if plan.folder.status().get("failure") in ("nan", "never_acted", "budget") else None


def unstable(plan: Plan | None) -> bool:
    """Whether a trial is done and was unstable, read from its losses as tables read it, whichever version did it."""
    done = None if plan is None else plan.finished()
    if plan is None or done is None:
        return False
    result = done.result()
    if (guessing := result["data"].get("guessing_loss")) is None:
        return False
    warmup = steps_of(plan.config.trainer.warmup, result["steps"], "trainer.warmup")
    regression = plan.config.task.kind == "regression"
    return stability(logged_losses(done.lines("metrics.jsonl")), guessing, warmup, regression=regression).unstable


def extended(grid: Sequence[float], times: int) -> tuple[float, ...]:
    """A grid extended `times` times by one value at both ends, each with the ratio of the two values next to it."""
    values = list(grid)
    for _ in range(times):
        low, high = values[0] ** 2 / values[1], values[-1] ** 2 / values[-2]
        values = [float(f"{low:.3g}"), *values, float(f"{high:.3g}")]
    return tuple(values)


def _smoke(study: StudyConfig) -> StudyConfig:
    """Every arm and budget on stand-ins, with the first seed only; without a family, because it supports no claim."""
    from experiments.standins.folder import standins

    small = study.small
    parts = {
        name: replace(
            part,
            kind=PartKind.exploratory if part.kind == "confirmatory" else part.kind,
            tasks=small.tasks or part.tasks,
            seeds=str(seeds_of(part.seeds)[0]),
            rates={family: rates[:2] for family, rates in part.rates.items()},
        )
        for name, part in study.parts.items()
    }
    tuning = study.tuning and replace(study.tuning, seeds=str(seeds_of(study.tuning.seeds)[0]))
    overrides = [word.replace("{standins}", str(standins())) for word in small.overrides]
    return replace(study, small=replace(small, overrides=overrides), parts=parts, tuning=tuning, family=None)
