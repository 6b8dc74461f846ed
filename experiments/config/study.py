"""The schema of recipes and studies; conf/recipe/ and conf/study/ hold the files."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from omegaconf import MISSING

FAMILIES = {
    **dict.fromkeys(("lora", "prilora", "beamlora", "sora", "peft"), "lora"),
    **dict.fromkeys(("dora_dynamic", "l1ra", "alora", "dylora"), "lora"),
    **dict.fromkeys(("rac_lora", "chain_lora", "xgblora"), "lora"),
    **dict.fromkeys(("sd_lora", "o_lora", "task_lora"), "lora"),
    **dict.fromkeys(("elalora", "svd_lora", "adalora", "flexlora", "increlora"), "svd"),
    **dict.fromkeys(("gelora", "gora", "eva"), "lora"),
    "head": "head",
    "class_means": "head",
    "bitfit": "head",
    "full": "full",
}
CENTRES = {"lora": 1e-3, "svd": 3e-3, "head": 1e-3, "full": 3e-5}
PartKind = StrEnum("PartKind", "confirmatory exploratory ablation")
Correction = StrEnum("Correction", "holm maxt")


@dataclass
class RecipeConfig:
    """Where a run's settings come from; not part of its identity, which has the settings themselves.

    Attributes:
        name: none, published, published_script or matched.
        source: the paper or script from which the values for this method, task and model are copied; null if none.
        changed: settings of the source that the command changed.
        families: method -> family; methods of one family share the centre of their learning-rate grid.
        centres: family -> learning rate of a run that sets none, and the centre of grids (docs/studies.md).
        family: of this run's method.
    """

    name: str = "none"
    source: str | None = None
    changed: list[str] = field(default_factory=list)
    families: dict[str, str] = field(default_factory=lambda: dict(FAMILIES))
    centres: dict[str, float] = field(default_factory=lambda: dict(CENTRES))
    family: str = "${oc.select:recipe.families.${method.name},lora}"


@dataclass
class ArmConfig:
    """One arm of a study.

    Attributes:
        overrides: its settings, for instance [method=elalora, method.variant=official].
        ranks_from: the arm whose run of the same task, budget and seed gives this one its final ranks (a transplant).
        tuned_as: the arm whose tuned learning rate this one takes; null tunes it itself. In a confirmatory part only
            for an arm that differs from that one in its ranks (`ranks_from`).
    """

    overrides: list[str] = field(default_factory=list)
    ranks_from: str | None = None
    tuned_as: str | None = None


@dataclass
class PartConfig:
    """Every combination of some arms, tasks, budgets and seeds, run for one purpose."""

    kind: PartKind = PartKind.exploratory  # confirmatory, exploratory or ablation
    arms: list[str] = MISSING
    tasks: list[str] = MISSING
    budgets: list[str] = MISSING
    seeds: str = MISSING  # "range(10)", "range(10,20)" or "0,1,2"
    overrides: list[str] = field(default_factory=list)  # of this part only
    tuned: bool = True  # whether arms take the learning rate that won the study's tuning, or the configured one
    rates: dict[str, list[float]] = field(default_factory=dict)  # family -> learning rates, each run by its arms


@dataclass
class TuningConfig:
    """The first stage of a study: it tunes learning rates, with the same number of trials for every arm.

    It runs under `protocol=tune`, which reads the held-out part of train and never what the study reports.

    Attributes:
        seeds: must differ from the seeds of all parts.
        grids: family of methods (`recipe.families`) -> learning rates in rising order; all of the same length.
        budget: the one budget at which learning rates are tuned; null tunes at each budget.
        extensions: how often a winner at the edge extends every arm's grid by one value at both ends.
        stable: whether a learning rate at which most trials are unstable cannot win (training/stability.py).
        overrides: of this stage only.
    """

    seeds: str = MISSING
    grids: dict[str, list[float]] = MISSING
    budget: str | None = None
    extensions: int = 2
    stable: bool = False
    overrides: list[str] = field(default_factory=list)


@dataclass
class FamilyConfig:
    """The comparisons that a study declares before it runs: every contrast of two arms at every budget.

    Attributes:
        part: the confirmatory part.
        contrasts: "ARM - OTHER", the difference of two arms' scores.
        budgets: at which they are compared.
        alpha: level of the whole family.
        correction: for multiple comparisons: holm, or maxt (step-down, joint sign flips of the seeds).
        m: number of comparisons; must equal contrasts times budgets, so that a change of either is noticed.
        margin: the largest difference in points that does not matter; null tests no equivalence.
        sd: expected standard deviation of a seed's paired difference in points, for instance of a pilot; with it
            `--plan` says which difference the study can find.
    """

    part: str = MISSING
    contrasts: list[str] = MISSING
    budgets: list[str] = MISSING
    alpha: float = 0.05
    correction: Correction = Correction.holm
    m: int = MISSING
    margin: float | None = None
    sd: float | None = None


@dataclass
class SmokeConfig:
    """A study's smoke run (`study.smoke=true`): every arm and budget, with few steps, stand-ins and one seed.

    Attributes:
        tasks: replace each part's tasks; null keeps them.
        overrides: added to the study's; {standins} is replaced by the folder of stand-in models and data.
    """

    tasks: list[str] | None = None
    overrides: list[str] = field(default_factory=list)


@dataclass
class StudyConfig:
    """One study."""

    name: str = MISSING  # of the file
    about: str = ""  # the question it answers, in one sentence
    overrides: list[str] = field(default_factory=list)  # common to every run
    by_task: dict[str, list[str]] = field(default_factory=dict)  # overrides of single tasks, the same for every arm
    arms: dict[str, ArmConfig] = MISSING
    parts: dict[str, PartConfig] = MISSING
    tuning: TuningConfig | None = None
    family: FamilyConfig | None = None
    only: list[str] | None = None  # names of the parts to run; null runs all
    smoke: bool = False  # whether to do the smoke run
    small: SmokeConfig = field(default_factory=SmokeConfig)  # settings of the smoke run
