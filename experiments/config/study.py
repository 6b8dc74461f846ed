"""What a recipe and a study are made of, as typed configuration; conf/recipe/ and conf/study/ hold the files."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

PartKind = StrEnum("PartKind", "confirmatory exploratory ablation")
Correction = StrEnum("Correction", "holm")


@dataclass
class RecipeConfig:
    """Where a run's settings come from; no part of its identity, because the settings themselves are.

    Attributes:
        name: none, published, published_script or matched.
        source: what the values of this method, task and model were copied from; null where there are none.
        changed: settings of that source which the command changed.
        families: method -> family; methods of one family share the centre of their learning-rate grid.
        centres: family -> learning rate.
        family: of this run's method.
    """

    name: str = "none"
    source: str | None = None
    changed: list[str] = field(default_factory=list)
    families: dict[str, str] = field(default_factory=dict)
    centres: dict[str, float] = field(default_factory=dict)
    family: str = "lora"


@dataclass
class ArmConfig:
    """One competitor of a study.

    Attributes:
        overrides: what makes it, for instance [method=elalora, method.variant=official].
        ranks_from: an arm whose run of the same task, budget and seed gives this one its final ranks (the transplant).
        tuned_as: an arm whose tuned learning rate this one takes; null tunes it itself. Never in a confirmatory part.
    """

    overrides: list[str] = field(default_factory=list)
    ranks_from: str | None = None
    tuned_as: str | None = None


@dataclass
class PartConfig:
    """Every combination of arms, tasks, budgets and seeds, read for one purpose.

    Attributes:
        kind: confirmatory, exploratory or ablation.
        arms, tasks, budgets: names.
        seeds: "range(10)", "range(10,20)" or "0,1,2".
        overrides: of this part only.
        tuned: arms take the learning rate that won the study's tuning; false takes the one that is configured.
    """

    kind: PartKind = PartKind.exploratory
    arms: list[str] = MISSING
    tasks: list[str] = MISSING
    budgets: list[str] = MISSING
    seeds: str = MISSING
    overrides: list[str] = field(default_factory=list)
    tuned: bool = True


@dataclass
class TuningConfig:
    """The first stage of a study: learning rates, the same number of trials for every arm.

    It runs under `protocol=tune`, which reads the held-out part of train and never what the study reports.

    Attributes:
        seeds: other seeds than those of any part.
        grids: learning rates in rising order by family of methods (`recipe.families`), all of one length.
        budget: the budget that is tuned for all; null tunes each one.
        extensions: how often a winner at an edge extends every arm's grid by one value at both ends.
        overrides: of this stage only.
    """

    seeds: str = MISSING
    grids: dict[str, list[float]] = MISSING
    budget: str | None = None
    extensions: int = 2
    overrides: list[str] = field(default_factory=list)


@dataclass
class FamilyConfig:
    """The comparisons that a study declares before it runs: `baseline` with every arm at every budget.

    Attributes:
        part: the confirmatory part.
        baseline, arms, budgets: what is compared.
        alpha, correction: level of the whole family.
        m: number of comparisons; must be arms times budgets, and is written down so that a change is seen.
    """

    part: str = MISSING
    baseline: str = MISSING
    arms: list[str] = MISSING
    budgets: list[str] = MISSING
    alpha: float = 0.05
    correction: Correction = Correction.holm
    m: int = MISSING


@dataclass
class SmokeConfig:
    """The small form of a study (`study.smoke=true`): every arm and budget, few steps, stand-ins, one seed.

    Attributes:
        tasks: instead of each part's tasks; null keeps them.
        overrides: added to the study's; {standins} stands for the folder of stand-in models and data.
    """

    tasks: list[str] | None = None
    overrides: list[str] = field(default_factory=list)


@dataclass
class StudyConfig:
    """One study.

    Attributes:
        name: of the file.
        about: what it is to settle, one sentence.
        overrides: common to every run.
        by_task: overrides of single tasks, the same for every arm.
        arms, parts, tuning, family: see there.
        only: names of the parts that are wanted; null takes all.
        smoke: whether the small form runs; small: what that is.
    """

    name: str = MISSING
    about: str = ""
    overrides: list[str] = field(default_factory=list)
    by_task: dict[str, list[str]] = field(default_factory=dict)
    arms: dict[str, ArmConfig] = MISSING
    parts: dict[str, PartConfig] = MISSING
    tuning: TuningConfig | None = None
    family: FamilyConfig | None = None
    only: list[str] | None = None
    smoke: bool = False
    small: SmokeConfig = field(default_factory=SmokeConfig)
