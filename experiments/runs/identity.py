"""What a run's id covers, in one spelling: commands that compute the same have the same identity.

An identity is the resolved configuration without what changes no number (where the run is stored, how it is started
and shown) and without settings that nothing reads. `canonical` writes it down in one spelling; it is a function of
the identity alone, so that a stored run gets its id again. What only the loaded model or data can tell, for instance
that a list of head modules is the architecture's, stays as it was typed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from copy import copy
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from baselines.registry import METHODS, method_class
from elalora.budget import Budget
from elalora.errors import UserError
from elalora.low_rank import MANY
from elalora.method import Method
from elalora.resolve import RunSize, added_defaults, identifying
from elalora.resolve import canonical as canonical_settings
from elalora.schedules import steps_of
from elalora.targets import ARCHITECTURES, NAMES, patterns_of
from experiments.config.increments import group_count, is_listed, loss_over, parts_of
from experiments.config.schema import ModelConfig, TrainerConfig
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.protocols import draws_held_out, selects

LONG = 100_000  # steps; any schedule fits into that many, and listing its rounds would take time
WARMUP = 0.06  # the default of trainer.warmup, in whose spelling an equal number of steps is written
# read for one kind of task only
KINDS = {
    **dict.fromkeys(
        ("beams", "generate_length", "target_length", "min_generate_length", "length_penalty", "no_repeat_ngram",
         "early_stopping"), ("summarization",)
    ),
    **dict.fromkeys(
        ("prompt", "prompt_without", "completion", "chat", "system", "loss", "truncation", "answer", "options",
         "options_column", "option_score", "parser", "stop", "execute"), ("causal",)
    ),
    "generate_length": ("summarization", "causal"),
    "max_length": ("classification", "regression", "summarization", "causal"), "normalise": ("image",),
}  # fmt: skip
# read for one form of a causal task's answer only
ANSWERS = {
    "option_score": "options",
    "options_column": "options",
    **dict.fromkeys(("parser", "stop", "execute", "generate_length"), "generate"),
}
SCHEMAS = {"model": ModelConfig, "task": TaskConfig, "trainer": TrainerConfig, "data": DataConfig}
MAY_DROP = ("causal",)  # kinds of tasks that leave out training rows which are too long
# the architectures of the models of conf/model, whose configuration is not read before the run starts
MODEL_TYPES = {
    "embedded": "bert", "sentence-transformers/all-MiniLM-L6-v2": "bert", "google-bert/bert-base-uncased": "bert",
    "FacebookAI/roberta-base": "roberta", "microsoft/deberta-v3-base": "deberta-v2",
    "microsoft/deberta-v3-small": "deberta-v2", "facebook/bart-base": "bart", "facebook/bart-large": "bart",
    "google/vit-base-patch16-224-in21k": "vit", "digits": "vit", "random": "bert", "smollm2": "llama",
    "answerdotai/ModernBERT-base": "modernbert",
    "meta-llama/Llama-3.2-1B": "llama",
    "meta-llama/Llama-3.2-3B": "llama",
    "meta-llama/Llama-3.1-8B": "llama",
    "Qwen/Qwen3-0.6B-Base": "qwen3",
    "Qwen/Qwen3-1.7B-Base": "qwen3",
    "Qwen/Qwen3-8B-Base": "qwen3",
    "Qwen/Qwen2.5-0.5B": "qwen2",
    "google/gemma-3-1b-pt": "gemma3_text",
    "HuggingFaceTB/SmolLM2-135M": "llama",
    "HuggingFaceTB/SmolLM2-360M": "llama",
    "mistralai/Mistral-7B-v0.1": "mistral",
}  # fmt: skip


def canonical(identity: Mapping[str, Any], path: str | None = None, at_most: bool = False) -> dict[str, Any]:
    """The identity in the one spelling that all commands of the same computation share.

    Args:
        identity: settings by group, as resolved from a command or as stored; ranks_from and init_from hold ids.
        at_most: whether the training split may have fewer items than data.train_items (`task.quick_items`).
        path: `model.path`, which names the architecture of the models that come with this project.

    Raises:
        UserError: the method cannot be loaded, or a setting is not one of it.
    """
    out = {key: _numbers(value) for key, value in identity.items()}
    cls = method_class(out["method"]["name"])
    config = check_method(cls, {key: value for key, value in out["method"].items() if key != "name"})
    kind = out["task"].get("kind")
    answer = out["task"]["answer"] if kind == "causal" else None
    out["task"] = _increments(out["task"])
    in_parts = out["task"].get("increments") is not None  # whose lengths only the data can tell
    items = None if at_most or kind in MAY_DROP or in_parts else out["data"]["train_items"]
    size = size_of(out, getattr(config, "ranks_from", None) is None, items)
    config = canonical_settings(config, size)
    out["method"] = {"name": _name(cls, out["method"]["name"]), **_numbers(identifying(config))}
    out["trainer"] = _trainer(out, size, cls(config, _budget(out)))
    out["task"] = {
        key: value for key, value in out["task"].items()
        if key != "citation" and kind in KINDS.get(key, (kind,)) and answer in (None, ANSWERS.get(key, answer))
    }  # fmt: skip
    if not draws_held_out(out["protocol"]["name"], out["task"]):
        out["protocol"] = {"name": out["protocol"]["name"]}
    out["model"] = {key: value for key, value in out["model"].items() if key != "matrices"}  # a check, no setting
    for group, schema in SCHEMAS.items():
        later = added_defaults(schema)
        out[group] = {key: value for key, value in out[group].items() if key not in later or value != later[key]}
    out["model"]["targets"] = _targets(out["model"]["targets"], path)
    return out


def check_method(cls: type[Method], settings: Mapping[str, Any]) -> Any:
    """The method's dataclass from plain values.

    Raises:
        UserError: a setting is unknown, has the wrong type or is out of range.
    """
    try:
        text = json.dumps(dict(settings))
    except TypeError:  # a value that no file can hold, such as a type; it is refused below
        return _checked(cls, settings)
    return copy(_checked_text(cls, text))  # type: ignore[arg-type]  # a class is hashable


@lru_cache(maxsize=1024)
def _checked_text(cls: type[Method], text: str) -> Any:
    """As `check_method`: a sweep has few different settings of its methods, and checking them takes milliseconds."""
    return _checked(cls, json.loads(text))


def _checked(cls: type[Method], settings: Mapping[str, Any]) -> Any:
    types = {f.name: f.type for f in fields(cls.Config)}
    for name in settings:
        if name not in types:
            raise UserError(f"method.{name} is not a setting of method={cls.name}; allowed: {', '.join(types)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls.Config), settings))
    except OmegaConfBaseException as error:
        key = str(error.full_key or "").split(".")[0].split("[")[0]
        raise UserError(f"method.{key}={settings.get(key)} is not of type {types.get(key)}") from error
    except OverflowError as error:
        raise UserError(f"a setting of method={cls.name} is out of range: {error}") from error


def size_of(identity: Mapping[str, Any], own_ranks: bool, items: int | None) -> RunSize:
    """What the identity tells of the run's size before data and model are loaded.

    Args:
        identity: see `canonical`.
        own_ranks: False if another run gives the initial ranks, whose sum is then not known.
        items: number of training items; None if only the data can tell.
    """
    trainer, budget = identity["trainer"], _budget(identity)
    steps = trainer.get("max_steps")
    if steps is None and items is not None:
        steps = epochs_in_steps(trainer["epochs"], items, trainer["batch_size"])
    rank, matrices = None if budget is None else budget.rank, identity["model"].get("matrices")
    rank_sum = rank * matrices if rank and matrices and matrices < MANY and own_ranks else None
    return RunSize(steps, rank, rank_sum, trainer["lr"], trainer["weight_decay"])


def epochs_in_steps(epochs: float, items: int, batch_size: int) -> int:
    """Optimizer steps of this many passes over the training items."""
    return max(1, math.ceil(epochs * math.ceil(items / batch_size)))


def _budget(identity: Mapping[str, Any]) -> Budget | None:
    text = identity["budget"]
    if text is None:
        return None
    return Budget(params=int(text[6:])) if text.startswith("params") else Budget(int(text[1:]))


def _numbers(value: Any) -> Any:
    """The value without -0.0, which equals 0.0 and is written in another way."""
    if isinstance(value, Mapping):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(inner) for inner in value]
    return value + 0.0 if isinstance(value, float) else value


def _name(cls: type[Method], typed: str) -> str:
    """The registered name of a method, however it was typed; a class of the user's keeps package.module:Class."""
    return cls.name if cls.name in METHODS and method_class(cls.name) is cls else typed


def _trainer(identity: Mapping[str, Any], size: RunSize, method: Method) -> dict[str, Any]:
    """The trainer's settings that change numbers; its length in steps where these are known."""
    unread = {"log_every"}
    trainer = dict(identity["trainer"])
    if size.steps is not None:
        unread.add("epochs")
        trainer["max_steps"] = size.steps
        if size.steps <= LONG and identity["task"].get("increments") is None:
            trainer["warmup"] = _warmup(trainer["warmup"], size.steps, method)
    if not selects(identity["protocol"]["name"], identity["task"]["suite"], identity["task"]["source"]):
        unread.add("evaluations")
    share = math.ceil(trainer["batch_size"] / identity["world_size"])
    if trainer["micro_batch"] is not None and trainer["micro_batch"] >= share:
        trainer["micro_batch"] = None
    if trainer["max_grad_norm"] == math.inf:
        trainer["max_grad_norm"] = None
    return {key: value for key, value in trainer.items() if key not in unread}


def _increments(task: dict[str, Any]) -> dict[str, Any]:
    """The settings of a task with its increments in one spelling, and without what they do not read."""
    unread = {key: added_defaults(TaskConfig)[key] for key in ("class_order", "increment_loss")}
    if task.get("increments") is None:
        return task | {key: default for key, default in unread.items() if key in task}
    known = TaskConfig(**task)
    parts = parts_of(known, list(range(group_count(known))))
    if known.domains or known.increment_loss == loss_over(replace(known, increment_loss=None), parts):
        task = task | {"increment_loss": None}
    if is_listed(known.increments) or known.class_order == "label":
        return task | {"increments": [list(part) for part in parts], "class_order": unread["class_order"]}
    return task | {"increments": [len(part) for part in parts]}


def _warmup(typed: float, steps: int, method: Method) -> float:
    """The warm-up in steps, or the default where that is as long."""
    try:
        method.check_length(steps)
    except UserError:  # the run is refused when it starts
        return typed
    shortest = min(method.stages())
    length = steps_of(typed, shortest, "trainer.warmup")
    return WARMUP if length == steps_of(WARMUP, shortest, "trainer.warmup") else float(length)


def _targets(typed: list[str], path: str | None) -> list[str]:
    """A named set in place of its patterns, where the architecture is known; else the patterns without an order."""
    kind = MODEL_TYPES.get(path or "")
    patterns = set(patterns_of(kind, typed)) if kind else set(typed)
    sets = ARCHITECTURES[kind].sets() if kind else {}
    return next(([name] for name in NAMES if set(sets.get(name, ())) == patterns), sorted(patterns))
