"""A run before anything is loaded: its validated configuration, its identity and its folder.

A run's identity covers everything that can change its numbers; its id is the hash. The place of the store, the number
of threads and logging are not part of it; the manifest has them.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from baselines.registry import METHODS, method_class
from elalora.budget import Budget
from elalora.errors import UserError
from elalora.method import Method
from elalora.schedules import steps_of
from experiments.config.compose import compose_run, same_command
from experiments.config.increments import group_count, parts_of
from experiments.config.members import Repeat, arm_of
from experiments.config.suggest import HUB
from experiments.config.task import TaskConfig, check_task
from experiments.config.words import key_of
from experiments.data.digests import digests
from experiments.data.general_text import identity_of
from experiments.data.increments import equal_steps
from experiments.models.files import BUILT_IN, EMBEDDED, WEIGHTS
from experiments.models.files import digests as model_digests
from experiments.runs.identity import LONG, canonical, check_method
from experiments.runtime.distributed import world_size
from experiments.store.find import find, refuse_older
from experiments.store.finished import id_of
from experiments.store.folder import RunFolder
from experiments.store.name import RunName

TRAINER_NUMERICS = 1
OUTSIDE_IDENTITY = ("store", "tracking", "launcher", "threads", "recipe", "overrides", "study")


@dataclass(frozen=True)
class Plan:
    """One run, ready to start.

    Attributes:
        composed: its configuration, checked; runs that differ in the seed share one.
        method: its class; method_config: its dataclass, in the spelling of the identity.
        budget: None for methods without one.
        identity: the scientific configuration; id: its hash, 64 hex digits.
        name: of the folder.
        sources: runs that must be done before, because it takes their ranks or weights.
        reads_seed: whether an interpolation of the configuration may read the seed.
    """

    composed: DictConfig
    method: type[Method]
    method_config: Any
    budget: Budget | None
    identity: dict[str, Any]
    id: str
    name: RunName
    sources: tuple[Source, ...] = ()
    reads_seed: bool = True

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.identity["seed"])

    @cached_property
    def config(self) -> DictConfig:
        """The run's configuration."""
        if self.composed.seed == self.seed:
            return self.composed
        config = self.composed.copy()
        config.seed = self.seed
        config.overrides = [f"seed={self.seed}" if key_of(word) == "seed" else word for word in config.overrides]
        return config

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.composed.task.name)

    @cached_property
    def stores(self) -> tuple[str, ...]:
        """The store of the run, and those in which it counts as done too."""
        return (self.composed.store.root, *self.composed.store.also)

    @cached_property
    def folder(self) -> RunFolder:
        """Where the run is or will be stored."""
        return RunFolder(Path(self.stores[0]) / self.task / str(self.name))

    def with_seed(self, seed: int) -> Plan | None:
        """The same run with another seed; None where the seed may change more than itself."""
        if self.reads_seed:
            return None
        sources = tuple(source.with_seed(self.seed, seed) for source in self.sources)
        identity = self.identity | {"seed": seed}
        identity |= {"method": dict(identity["method"])} if sources else {}
        _name_sources(identity, sources)
        run_id = id_of(identity)
        return replace(
            self, identity=identity, id=run_id, name=RunName.of(self.name.arm, seed, run_id), sources=sources
        )

    @property
    def label(self) -> str:
        """task/method-budget-seed, for display."""
        return f"{self.task}/{self.name.label}"

    @property
    def recipe(self) -> str:
        """The source of its settings, as tables show it."""
        recipe = self.composed.recipe
        if not recipe.name.startswith("published"):
            return str(recipe.name)
        if recipe.source is None:
            return f"{recipe.name}: none for this pair, common settings"
        return f"{recipe.name} ({'; '.join([recipe.source, *(f'{key} changed' for key in recipe.changed)])})"

    def source(self, setting: str) -> Source | None:
        """The run that one of its settings names."""
        return next((source for source in self.sources if source.setting == setting), None)

    def finished(self) -> RunFolder | None:
        """The folder of its result, in its store or in one of `store.also`; None while it is not done.

        Raises:
            UserError: the result is damaged, or an older version wrote it or others of this arm and seed.
        """
        if self.folder.done:
            self.folder.result()
            return self.folder
        found = find(list(self.stores[1:]), self.id)
        if found is None:
            refuse_older(self.stores, self.task, self.name.label)
        return found


def make_plan(config: DictConfig) -> Plan:
    """Checks a composed configuration and names the run.

    Raises:
        UserError: an unknown setting, or a value of the wrong type or out of range.
    """
    plain = OmegaConf.to_container(config)
    text = str(plain)
    if "???" in text:  # listing the missing keys takes milliseconds
        for key in sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"{key} is required: type {key}=...")
    _check_paths(config)
    if not isinstance(config.method.get("name"), str):
        raise UserError(f"method.name={config.method.get('name')} is not a name; type method={next(iter(METHODS))}")
    if "${" in text:  # resolving takes as long again
        plain = OmegaConf.to_container(config, resolve=True)
    cls = method_class(config.method.name)
    settings = {k: v for k, v in plain["method"].items() if k != "name"}
    method_config = check_method(cls, settings)
    budget = budget_of(config) if cls.capabilities.budget != "none" else None
    _check_counts(config)
    _check_trainer(config)
    method = cls(method_config, budget)
    _check_length(config, method)
    task = OmegaConf.to_object(config.task)
    check_task(task)
    if task.increments is not None:
        _check_increments(config, task)
    if config.forgetting is not None and config.task.kind != "causal":
        raise UserError(
            f"forgetting={config.forgetting} needs a causal task, not task={config.task.name}; leave it out"
        )
    sources = []
    if method.ranks_from is not None:
        sources.append(_source(config, "method.ranks_from", method.ranks_from))
    if config.init_from is not None:
        sources.append(_start_of(config, cls, budget))
    identity = _identity(config, plain, cls, method_config, budget, sources)
    named = {source.setting.removeprefix("method."): source.value for source in sources}
    method_config = check_method(cls, {k: named.get(k, v) for k, v in identity["method"].items() if k != "name"})
    run_id = id_of(identity)
    name = RunName.of(_arm(cls(method_config, budget)), config.seed, run_id)
    reads_seed = bool(re.search(r"\$\{[^}]*\bseed\b", text))
    return Plan(config, cls, method_config, budget, identity, run_id, name, tuple(sources), reads_seed)


@cache
def plan_of(overrides: tuple[str, ...]) -> Plan:
    """The plan of a command, cached because a study asks for the same runs after every stage."""
    arm = arm_of(overrides)
    if arm is None:
        return make_plan(compose_run(overrides))
    plan = _first_of(arm[0], overrides)
    return plan if plan.seed == arm[1] else plan.with_seed(arm[1]) or make_plan(compose_run(overrides))


_firsts: dict[tuple[str, ...], Plan] = {}


def _first_of(arm: tuple[str, ...], overrides: tuple[str, ...]) -> Plan:
    """The plan of an arm that was made first, with whatever seed."""
    if arm not in _firsts:
        _firsts[arm] = make_plan(compose_run(overrides))
    return _firsts[arm]


def make_plans(members: Sequence[DictConfig | Repeat]) -> list[Plan]:
    """The plans of what `run.py` composed; raises as `make_plan`."""
    plans: list[Plan] = []
    for member in members:
        if not isinstance(member, Repeat):
            plans.append(make_plan(member))
            continue
        first = plans[member.first]
        plan = first.with_seed(member.seed)
        if plan is None:
            config = first.composed.copy()
            config.seed = member.seed
            config.overrides = [f"seed={member.seed}" if key_of(word) == "seed" else word for word in config.overrides]
            plan = make_plan(config)
        plans.append(plan)
    return plans


def budget_of(config: DictConfig) -> Budget:
    """The run's budget; raises UserError unless exactly one kind is set."""
    return Budget(config.budget.rank, config.budget.params)


def budget_name(budget: Budget | None) -> str | None:
    """r4, params330000, or None."""
    if budget is None:
        return None
    return f"r{budget.rank}" if budget.rank is not None else f"params{budget.params}"


def _check_paths(config: DictConfig) -> None:
    """Refuses what cannot be a path, before anything is looked up there; whoever needs a file says if it is missing."""
    paths = {"store.root": config.store.root, "data.root": config.data.root, "data.cache": config.data.cache}
    paths |= {f"store.also[{number}]": also for number, also in enumerate(config.store.also)}
    paths |= {f"task.files.{split}": file for split, file in config.task.files.items()}
    for name, value in {**paths, "model.path": config.model.path}.items():
        if value is not None:
            _refuse_no_path(name, value)
        try:
            os.lstat(Path(value or "").expanduser())
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{name}={value} is not a valid path ({why})") from error
    if os.path.exists(config.store.root) and not os.path.isdir(config.store.root):
        raise UserError(f"store.root={config.store.root} is a file; type the path of a folder, which may be missing")


def _refuse_no_path(name: str, value: str) -> None:
    """Refuses an empty text, which would be the current folder, and a URL, which would be a folder of that name."""
    if not value.strip():
        raise UserError(f"{name}= is empty; type {name}=PATH, or leave it out (for the current folder type {name}=.)")
    if "://" in value:
        hub = HUB.match(value) if name == "model.path" else None
        raise UserError(f"{name}={value} is a URL; type {name}={hub[1] if hub else 'PATH of a copy on this machine'}")


def _check_counts(config: DictConfig) -> None:
    least = {
        "seed": 0, "protocol.split_seed": 0, "threads": 1, "store.checkpoint_every": 0, "trainer.batch_size": 1,
        "trainer.micro_batch": 1, "trainer.log_every": 1, "trainer.evaluations": 0,
    }  # fmt: skip
    for name, low in least.items():
        value = OmegaConf.select(config, name)
        if value is not None and not low <= value < 2**63:
            raise UserError(f"{name}={value} must be at least {low}{'' if value < low else ' and below 2^63'}")


def _check_trainer(config: DictConfig) -> None:
    t = config.trainer
    for name, value in (("epochs", t.epochs if t.max_steps is None else None), ("max_steps", t.max_steps)):
        if value is not None and not 0 < value < 2**63:
            raise UserError(f"trainer.{name}={value} must be above 0 and finite")
    if not 0 < t.lr < math.inf:
        raise UserError(f"trainer.lr={t.lr} must be above 0 and finite")
    if not 0 <= t.weight_decay < math.inf:
        raise UserError(f"trainer.weight_decay={t.weight_decay} must be at least 0 and finite")
    if t.max_grad_norm is not None and not t.max_grad_norm > 0:
        raise UserError(f"trainer.max_grad_norm={t.max_grad_norm} must be above 0, or null for no clipping")
    if t.max_steps is not None and steps_of(t.warmup, t.max_steps, "trainer.warmup") >= t.max_steps:
        raise UserError(f"trainer.warmup={t.warmup} leaves no step of trainer.max_steps={t.max_steps}")


def _check_length(config: DictConfig, method: Method) -> None:
    """Refuses too few steps for the method's phases or stages, where the number of steps is known."""
    total = config.trainer.max_steps
    if total is None or total > LONG:
        return
    method.check_length(total)
    shortest = min(method.stages())
    if steps_of(config.trainer.warmup, shortest, "trainer.warmup") >= shortest:
        raise UserError(
            f"trainer.warmup={config.trainer.warmup} leaves no step of the {shortest} steps of a stage: lower it, or "
            "train longer (trainer.max_steps)"
        )


def _check_increments(config: DictConfig, task: TaskConfig) -> None:
    """Refuses a run whose increments leave no steps, or that would choose a checkpoint of an early increment."""
    count, total = len(parts_of(task, list(range(group_count(task))))), config.trainer.max_steps
    if config.trainer.evaluations:
        raise UserError(
            f"trainer.evaluations={config.trainer.evaluations}: a sequence of increments is read when each of them "
            "ends, and its last reading is reported; type trainer.evaluations=0"
        )
    if total is not None:
        equal_steps(total)([1] * count)


def _identity(
    config: DictConfig,
    whole: dict[str, Any],
    cls: type[Method],
    method_config: Any,
    budget: Budget | None,
    sources: list[Source],
) -> dict[str, Any]:
    """The identity of a configuration; `whole` has its plain values, resolved."""
    science = {k: v for k, v in whole.items() if k not in OUTSIDE_IDENTITY}
    science["method"] = {"name": config.method.name, **vars(method_config)}
    _name_sources(science, sources)
    if (general := science.pop("forgetting")) is not None:
        science["forgetting"] = identity_of(general)
    science["budget"] = budget_name(budget)
    science["task"]["files"] = digests(config.task, config.data.root)
    at_most = config.task.quick_items == config.data.train_items  # a smaller split is taken whole
    science["task"] = {key: value for key, value in science["task"].items() if not key.startswith("quick_")}
    science["model"] = _model_identity(science["model"])
    science["data"] = {"train_items": config.data.train_items, "eval_items": config.data.eval_items}
    science["numerics"] = {"trainer": TRAINER_NUMERICS, "method": cls.revision(method_config)}
    science["world_size"] = world_size()
    return canonical(science, config.model.path, at_most)


def _name_sources(identity: dict[str, Any], sources: Iterable[Source]) -> None:
    """Puts the ids of the runs that another starts from into its identity."""
    for source in sources:
        (identity if source.setting == "init_from" else identity["method"])[source.setting.split(".")[-1]] = source.id


@dataclass(frozen=True)
class Source:
    """A run whose ranks or weights another run takes.

    Attributes:
        setting: the setting that names it; value: that setting's value.
        id: of the run.
        plan: set where the value is a method or overrides; folder: set where it names a finished run.
    """

    setting: str
    value: str
    id: str
    plan: Plan | None = None
    folder: RunFolder | None = None

    def finished(self) -> RunFolder:
        """The folder of its result; raises UserError while it has none."""
        folder = self.folder if self.plan is None else self.plan.finished()
        if folder is None:
            assert self.plan is not None
            raise UserError(
                f"{self.setting}={self.value} depends on run {self.plan.label}, which has not finished. Run it first: "
                f"python run.py {shlex.join(w for w in self.plan.config.overrides if not w.startswith('launcher.'))}"
            )
        return folder

    def with_seed(self, old: int, seed: int) -> Source:
        """What the setting names in the run of another seed, where the words of both are otherwise the same."""
        if self.plan is None or any(key_of(word) == "seed" for word in self.value.split()):
            return self
        words = (f"seed={seed}" if word == f"seed={old}" else word for word in self.plan.config.overrides)
        plan = plan_of(tuple(words))
        return replace(self, id=plan.id, plan=plan)


def _source(config: DictConfig, setting: str, value: str) -> Source:
    """The run that a setting names, whether it is done or not."""
    words = value.split()
    if words and (words[0] in METHODS or "=" in words[0]):
        # a source starts from the pretrained weights unless its overrides say otherwise
        more = " init_from=null" if setting == "init_from" and "init_from=" not in value else ""
        plan = plan_of(same_command(config, value + more))
        return Source(setting, value, plan.id, plan)
    if os.path.isfile(Path(value, "result.json")):  # False, too, for what is not a valid path
        folder: RunFolder | None = RunFolder(Path(value))
    else:
        folder = find([config.store.root, *config.store.also], value)
    if folder is None:
        raise UserError(
            f"{setting}={value} names no run; allowed: a method ({', '.join(METHODS)}), overrides such as task=mnli, "
            "the folder of a finished run, or the id of one in store.root"
        )
    return Source(setting, value, folder.result()["id"], folder=folder)


def _start_of(config: DictConfig, cls: type[Method], budget: Budget | None) -> Source:
    """The run that `init_from` names; it must have this run's method, model and budget."""
    source = _source(config, "init_from", config.init_from)
    identity = source.plan.identity if source.plan is not None else source.finished().result()["identity"]
    model = (identity.get("model") or {}).get("name")
    for name, value, other in (
        ("method", cls.name, identity["method"]["name"]),
        ("model", config.model.name, model),
        ("budget", budget_name(budget), identity.get("budget")),
    ):
        if value != other:
            raise UserError(f"init_from={config.init_from}: that run has {name} {other}, this one has {value}")
    return source


def in_order(plans: Iterable[Plan]) -> list[Plan]:
    """Each plan once, after its sources, and otherwise in the given order."""
    by_id = {plan.id: plan for plan in plans}
    ordered: dict[str, Plan] = {}

    def visit(plan: Plan) -> None:
        for source in plan.sources:
            if source.id in by_id and source.id not in ordered:
                visit(by_id[source.id])
        ordered.setdefault(plan.id, plan)

    for plan in by_id.values():
        visit(plan)
    return list(ordered.values())


def _model_identity(model: dict[str, Any]) -> dict[str, Any]:
    """A package by its name, a folder by the content of its files, so that paths do not matter; hub ids by revision."""
    model = dict(model)
    path, revision = model.pop("path"), model.pop("revision")
    folder = Path(path).expanduser()
    if path == "embedded":
        return model
    if path in BUILT_IN or not folder.is_dir():
        return model | {"path": path, "revision": revision}
    files = model_digests(folder)
    if model["sha256"] is None:
        model["sha256"] = files.get(WEIGHTS)
    return model if files == EMBEDDED else model | {"files": files}


def _arm(method: Method) -> str:
    """The arm in a folder's name: method, variant unless it is the default, budget."""
    default = next((f.default for f in fields(method.Config) if f.name == "variant"), None)
    parts = [method.name, method.variant if method.variant != default else None, budget_name(method.budget)]
    return "-".join(part for part in parts if part)
