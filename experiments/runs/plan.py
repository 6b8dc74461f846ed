"""What a run is, before anything is loaded: its validated configuration, its identity and its folder.

A run's identity is the hash of everything that can change its numbers. Where results lie, how many threads
work and what is logged are no part of it; they stand in the manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from baselines.registry import METHODS, method_class
from elalora.budget import Budget
from elalora.errors import UserError
from elalora.method import Method
from elalora.schedules import steps_of
from experiments.config.compose import compose_run, same_command
from experiments.config.task import check_task
from experiments.data.own import digests
from experiments.models.files import sha256_of
from experiments.runtime.distributed import world_size
from experiments.store.find import find
from experiments.store.folder import RunFolder

TRAINER_NUMERICS = 1
LONG = 100_000  # steps; a schedule has room in that many, and listing its rounds would take time
OUTSIDE_IDENTITY = ("store", "tracking", "launcher", "threads", "recipe", "overrides", "study")


@dataclass(frozen=True)
class Plan:
    """One run, ready to start.

    Attributes:
        config: resolved, checked.
        method: its class; method_config: its dataclass.
        budget: None for methods without one.
        identity: the scientific configuration; id: its hash, 64 hex digits.
        folder: where it is or will be.
        sources: runs that must be done before, whose ranks or weights it takes.
    """

    config: DictConfig
    method: type[Method]
    method_config: Any
    budget: Budget | None
    identity: dict[str, Any]
    id: str
    folder: RunFolder
    sources: tuple[Source, ...] = ()

    @property
    def label(self) -> str:
        """task/method-budget-seed, for people."""
        return f"{self.folder.path.parent.name}/{self.folder.path.name[:-11]}"

    @property
    def recipe(self) -> str:
        """Where its settings come from, as tables show it."""
        recipe = self.config.recipe
        if not recipe.name.startswith("published"):
            return str(recipe.name)
        if recipe.source is None:
            return f"{recipe.name}: none for this pair, common settings"
        return f"{recipe.name} ({'; '.join([recipe.source, *(f'{key} changed' for key in recipe.changed)])})"

    def source(self, setting: str) -> Source | None:
        """The run that a setting of this one names."""
        return next((source for source in self.sources if source.setting == setting), None)

    def finished(self) -> RunFolder | None:
        """The folder of its result, here or in a store named in `store.also`."""
        if self.folder.done:
            self.folder.result()
            return self.folder
        return find(list(self.config.store.also), self.id)


def make_plan(config: DictConfig) -> Plan:
    """Checks a composed configuration and names the run.

    Raises:
        UserError: a value of the wrong type, an unknown method knob, or a budget that is none.
    """
    for key in sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{key} must be given: type {key}=...")
    _check_places(config)
    if not isinstance(config.method.get("name"), str):
        raise UserError(f"method.name={config.method.get('name')} is no name; type method={next(iter(METHODS))}")
    cls = method_class(config.method.name)
    knobs = {k: v for k, v in OmegaConf.to_container(config.method, resolve=True).items() if k != "name"}
    method_config = check_method(cls, knobs)
    budget = budget_of(config) if cls.capabilities.budget != "none" else None
    _check_counts(config)
    _check_trainer(config)
    _check_length(config, cls(method_config, budget))
    check_task(OmegaConf.to_object(config.task))
    sources = []
    if (wanted := getattr(method_config, "ranks_from", None)) is not None:
        sources.append(_source(config, "method.ranks_from", wanted))
    if config.init_from is not None:
        sources.append(_start_of(config, cls, budget))
    identity = _identity(config, cls, method_config, budget, sources)
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = RunFolder(
        Path(config.store.root) / config.task.name / f"{_name(config, cls, method_config)}-{run_id[:10]}"
    )
    return Plan(config, cls, method_config, budget, identity, run_id, folder, tuple(sources))


@cache
def plan_of(overrides: tuple[str, ...]) -> Plan:
    """The plan of a command, made once in a process: a study looks at the same run again after every stage."""
    return make_plan(compose_run(overrides))


def check_method(cls: type[Method], knobs: dict[str, Any]) -> Any:
    """The method's dataclass from plain values; unknown names and wrong types are the user's mistakes."""
    allowed = [f.name for f in fields(cls.Config)]
    for name in knobs:
        if name not in allowed:
            raise UserError(f"method.{name} is no knob of method={cls.name}; allowed: {', '.join(allowed)}")
    try:
        typed = OmegaConf.merge(OmegaConf.structured(cls.Config), knobs)
        return OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        key = str(error.full_key or "").split(".")[0].split("[")[0]
        kinds = {f.name: f.type for f in fields(cls.Config)}
        raise UserError(f"method.{key}={knobs.get(key)} is not of type {kinds.get(key)}") from error
    except OverflowError as error:
        raise UserError(f"a knob of method={cls.name} is a number beyond all sense: {error}") from error


def budget_of(config: DictConfig) -> Budget:
    """The run's budget; raises UserError when it is none."""
    return Budget(config.budget.rank, config.budget.params)


def budget_name(budget: Budget | None) -> str | None:
    """r4, params330000, or None."""
    if budget is None:
        return None
    return f"r{budget.rank}" if budget.rank is not None else f"params{budget.params}"


def _check_places(config: DictConfig) -> None:
    """Refuses what can name no file or folder, before anything looks there."""
    places = {"store.root": config.store.root, "data.root": config.data.root, "data.cache": config.data.cache}
    places |= {f"store.also[{number}]": also for number, also in enumerate(config.store.also)}
    places |= {f"task.files.{split}": file for split, file in config.task.files.items()}
    for name, value in {**places, "model.path": config.model.path}.items():
        try:
            os.lstat(Path(value or "").expanduser())
        except (FileNotFoundError, NotADirectoryError):
            pass  # whoever needs it says so
        except (OSError, ValueError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{name}={value} can name no file or folder here ({why})") from error
    if os.path.exists(config.store.root) and not os.path.isdir(config.store.root):
        raise UserError(f"store.root={config.store.root} is a file; name a folder, which is made where it is missing")


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
    length = t.epochs if t.max_steps is None else t.max_steps
    if not 0 < length < 2**63:
        raise UserError(
            f"trainer.max_steps={t.max_steps}, trainer.epochs={t.epochs}: nothing to train, or no end of it"
        )
    if not 0 < t.lr < math.inf:
        raise UserError(f"trainer.lr={t.lr} must be above 0, and finite")
    if not 0 <= t.weight_decay < math.inf:
        raise UserError(f"trainer.weight_decay={t.weight_decay} must be at least 0, and finite")
    if t.max_grad_norm is not None and not t.max_grad_norm > 0:
        raise UserError(f"trainer.max_grad_norm={t.max_grad_norm} must be above 0, or null for no clipping")
    if t.max_steps is not None and steps_of(t.warmup, t.max_steps, "trainer.warmup") >= t.max_steps:
        raise UserError(f"trainer.warmup={t.warmup} leaves no step of trainer.max_steps={t.max_steps}")


def _check_length(config: DictConfig, method: Method) -> None:
    """Refuses a number of steps that has no room for the method's phases or stages, where that number is known."""
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


def _identity(
    config: DictConfig, cls: type[Method], method_config: Any, budget: Budget | None, sources: list[Source]
) -> dict[str, Any]:
    whole = OmegaConf.to_container(config, resolve=True)
    science = {k: v for k, v in whole.items() if k not in OUTSIDE_IDENTITY}
    science["method"] = {"name": config.method.name, **vars(method_config)}
    for source in sources:
        (science if source.setting == "init_from" else science["method"])[source.setting.split(".")[-1]] = source.id
    science["budget"] = budget_name(budget)
    science["task"]["files"] = digests(config.task.files, config.data.root)
    science["model"] = _model_identity(science["model"])
    science["data"] = {"train_items": config.data.train_items}
    science["numerics"] = {"trainer": TRAINER_NUMERICS, "method": cls.numerics}
    science["world_size"] = world_size()
    return science


@dataclass(frozen=True)
class Source:
    """A run that another one takes something from: its plan where words name it, its folder where it is there already.

    Attributes:
        setting: the setting that names it; wanted: that setting's value; id: the run's.
    """

    setting: str
    wanted: str
    id: str
    plan: Plan | None = None
    folder: RunFolder | None = None

    def finished(self) -> RunFolder:
        """The folder of its result; raises UserError where that run is not done."""
        folder = self.folder if self.plan is None else self.plan.finished()
        if folder is None:
            assert self.plan is not None
            raise UserError(
                f"{self.setting}={self.wanted} needs the run {self.plan.label} first; it is this command with other "
                f"words: python run.py {' '.join(map(shlex.quote, self.plan.config.overrides))}"
            )
        return folder


def _source(config: DictConfig, setting: str, wanted: str) -> Source:
    """The run that a setting names, known before that run is done."""
    words = wanted.split()
    if words and (words[0] in METHODS or "=" in words[0]):
        # a source starts from the pretrained weights unless its own words say otherwise
        more = " init_from=null" if setting == "init_from" and "init_from=" not in wanted else ""
        plan = plan_of(same_command(config, wanted + more))
        return Source(setting, wanted, plan.id, plan)
    if os.path.isfile(Path(wanted, "result.json")):  # of words that can name no folder it is False too
        folder: RunFolder | None = RunFolder(Path(wanted))
    else:
        folder = find([config.store.root, *config.store.also], wanted)
    if folder is None:
        raise UserError(
            f"{setting}={wanted} is neither a method ({', '.join(METHODS)}) nor words such as task=mnli, nor the "
            "folder of a finished run, nor the id of one in store.root"
        )
    return Source(setting, wanted, folder.result()["id"], folder=folder)


def _start_of(config: DictConfig, cls: type[Method], budget: Budget | None) -> Source:
    """The run that `init_from` names; it must have this run's method, model and budget."""
    source = _source(config, "init_from", config.init_from)
    there = source.plan.identity if source.plan is not None else source.finished().result()["identity"]
    mine = {"method": cls.name, "model": config.model.name, "budget": budget_name(budget)}
    theirs = {"method": there["method"]["name"], "model": (there.get("model") or {}).get("name")}
    theirs["budget"] = there.get("budget")
    for name, value in mine.items():
        if value != theirs[name]:
            raise UserError(f"init_from={config.init_from}: that run has {name} {theirs[name]}, this one has {value}")
    return source


def in_order(plans: Iterable[Plan]) -> list[Plan]:
    """Each plan once, and after those that it takes something from; else in the order given."""
    given = {plan.id: plan for plan in plans}
    out: dict[str, Plan] = {}

    def visit(plan: Plan) -> None:
        for source in plan.sources:
            if source.id in given and source.id not in out:
                visit(given[source.id])
        out.setdefault(plan.id, plan)

    for plan in given.values():
        visit(plan)
    return list(out.values())


def _model_identity(model: dict[str, Any]) -> dict[str, Any]:
    """Weights in a package or folder by their digest, so that it does not matter where they lie; hub ids by name."""
    model = dict(model)
    path, revision = model.pop("path"), model.pop("revision")
    weights = Path(path).expanduser() / "model.safetensors"
    if weights.is_file():
        if model["sha256"] is None:
            model["sha256"] = sha256_of(weights)
    elif path != "embedded":
        model |= {"path": path, "revision": revision}
    return model


def _name(config: DictConfig, cls: type[Method], method_config: Any) -> str:
    variant = getattr(method_config, "variant", None)
    default = next((f.default for f in fields(cls.Config) if f.name == "variant"), None)
    parts = [cls.name, variant if variant != default else None]
    if cls.capabilities.budget != "none":
        parts.append(budget_name(budget_of(config)))
    return "-".join([p for p in parts if p] + [f"s{config.seed}"])
