"""Loads data, tokenizer and model of a run and attaches its method.

Data, tokenizers and token ids are cached in the process for the next run, each under everything that determines it.
What is read must be what the run was planned with, so a cached value always belongs to its key. Pretrained weights are
read for every run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import OmegaConf

from elalora.errors import UserError
from elalora.method import Method
from experiments.config.schema import TrainerConfig
from experiments.data.content import TaskData
from experiments.runs.identity import epochs_in_steps
from experiments.runs.plan import Plan
from experiments.runtime.distributed import on_cpu, refuse_sharding
from experiments.runtime.seeds import stream
from experiments.store.finished import FORGETTING
from experiments.training.progress import Prepared, Split, Splits
from experiments.training.tracking import check_installed

if TYPE_CHECKING:
    from experiments.data.increments import Increments
    from experiments.data.protocols import Splits as Rows
    from experiments.models.load import Loaded
    from experiments.training.readout import Readout

Value = TypeVar("Value")
MOST = 2  # values a cache holds: a sweep over two tasks alternates between them


def prepare(plan: Plan) -> Prepared:
    """Everything a run needs before its first step; a user's mistake shows here, before anything is written.

    Raises:
        UserError: data, model, method or a source run do not fit.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from experiments.models.load import LANGUAGE
    from experiments.models.precision import refuse_rounded_training
    from experiments.runtime.memory import use_cpu
    from experiments.training.readout import make_readout

    refuse_sharding()
    config = plan.config
    check_installed(config.tracking)
    use_cpu(config.threads)
    AcceleratorState._reset_state(True)  # the state is a singleton, and precision may differ between runs
    accelerator = Accelerator(mixed_precision="bf16" if config.trainer.precision == "bf16" else "no", cpu=on_cpu())
    task = OmegaConf.to_object(config.task)
    loaded = load(plan)
    splits = splits_of(plan)
    network = loaded.network.to(accelerator.device)
    sequence = sequence_of(plan)
    model, method = attach(plan, network, loaded.head, len(splits.train.data), sequence)
    refuse_rounded_training(model, method.name)
    if config.trainer.gradient_checkpointing:
        checkpoint_layers(model)
    read = loaded.read
    if task.kind != "image":
        read = read | {"pad_token": processor_of(plan).pad_token}
    if task.kind in LANGUAGE:
        read = read | {"decoding": model.generation_config.to_diff_dict()}
    readout = make_readout(task, processor_of(plan), model)
    zero_shot = readout.zero_shot and config.init_from is None
    general = _general(plan, model)
    return Prepared(
        accelerator, data_of(plan), splits, readout, model, method, read, zero_shot, general, sequence
    )  # fmt: skip


def _general(plan: Plan, model: Any) -> tuple[Split, Readout] | None:
    """The general text of `forgetting`, and how it is scored."""
    from experiments.data.general_text import general_items
    from experiments.models.positions import longest
    from experiments.training.readout import make_readout

    config = plan.config
    if config.forgetting is None:
        return None
    tokenizer = processor_of(plan)
    items = general_items(config.forgetting, OmegaConf.to_object(config.data), tokenizer, longest(model))
    task = replace(OmegaConf.to_object(config.task), answer="tokens", metrics=["token_loss"])
    return Split(FORGETTING, items), make_readout(task, tokenizer, model)


def checkpoint_layers(model: Any) -> None:
    """Makes every layer of a model of transformers run again in the backward pass.

    Methods count input statistics inside `watching` only, which the second run is not, so nothing is counted twice.

    Raises:
        UserError: the architecture cannot.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(f"trainer.gradient_checkpointing=true: {kind} has none in transformers; leave it out")
    # the name of transformers 5.20 and later, and the one before
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def load(plan: Plan) -> Loaded:
    """The run's pretrained model, after its data and tokenizer, which fit it.

    Raises:
        UserError: data, tokenizer or model cannot be read, are not the planned ones, or do not fit together.
    """
    from experiments.models.fit import fit
    from experiments.models.load import check_kind, load_model

    model, task = plan.config.model, OmegaConf.to_object(plan.config.task)
    check_kind(model, task)
    data_of(plan)
    processor = processor_of(plan)
    loaded = load_model(model, task, stream(plan.config.seed, "head"), plan.identity["model"].get("files"))
    fit(model, task, loaded.network, processor)
    return loaded


def attach(
    plan: Plan, network: Any, head: list[str], items: int, sequence: Increments | None = None
) -> tuple[Any, Method]:
    """The model with its method, for a run over this many training items, or over a sequence of increments.

    Raises:
        UserError: the targets match other matrices than expected, or a source run does not fit.
    """
    from elalora.targets import matrices_in, patterns_in

    method = plan.method(plan.method_config, plan.budget)
    _set_pattern(plan, method)
    total = run_length(plan.config.trainer, items)
    if sequence is not None:
        total, method.increments = sequence.parts[-1].end, len(sequence.parts)
    targets = list(plan.config.model.targets)
    expected = plan.config.model.matrices or matrices_in(network, targets)
    seed = stream(plan.config.seed, "adapter")
    model = method.attach(network, patterns_in(network, targets), total, keep=head, seed=seed)
    _check_matrices(expected, method)
    _start_adapter(plan, method)
    return model, method


def run_length(config: TrainerConfig, items: int) -> int:
    """Optimizer steps of a run over this many items."""
    if config.max_steps is not None:
        return config.max_steps
    return epochs_in_steps(config.epochs, items, config.batch_size)


def _check_matrices(expected: int | None, method: Method) -> None:
    count = len(method.ranks())
    if method.capabilities.ranked and expected and count != expected:
        raise UserError(
            f"model.targets match {count} matrices, {expected} are expected; type model.matrices={count} to accept that"
        )


def _set_pattern(plan: Plan, method: Any) -> None:
    """Gives a transplant its rank pattern, the final ranks of the run that `method.ranks_from` names."""
    source = plan.source("method.ranks_from")
    if source is not None:
        ranks = source.finished().result()["ranks"]["final"]
        method.pattern = {name: int(rank) for name, rank in ranks.items()}


def _start_adapter(plan: Plan, method: Method) -> None:
    """Starts the adapter from the update of the run that `init_from` names."""
    source = plan.source("init_from")
    if source is not None:
        from elalora.export import read_factors

        method.start_from(read_factors(source.finished().path / "adapter"))


# -- cached between runs -----------------------------------------------------------------------------------


def cached(key: Callable[[Plan], Any]) -> Callable[[Callable[[Plan], Value]], Callable[[Plan], Value]]:
    """Caches a function of a plan for the last `MOST` keys; nobody may change a value.

    Unlike functools.lru_cache it drops the oldest value before it makes a new one, so that the two need not fit into
    memory together.

    Args:
        key: JSON of everything the value depends on.
    """

    def decorate(make: Callable[[Plan], Value]) -> Callable[[Plan], Value]:
        values: dict[str, Value] = {}  # the least recently used first

        @wraps(make)
        def get(plan: Plan) -> Value:
            text = json.dumps(key(plan), sort_keys=True)
            if text not in values and len(values) == MOST:
                values.pop(next(iter(values)))
            values[text] = values.pop(text) if text in values else make(plan)
            return values[text]

        get.cache_clear = values.clear  # type: ignore[attr-defined]
        return get

    return decorate


def _data_key(plan: Plan) -> list[Any]:
    # the identity has the content of the user's files, where the settings have their paths
    own = [plan.identity["task"], plan.config.data.root, plan.config.data.cache]
    return own if plan.config.task.teacher.pattern is None else [*own, _model_key(plan)]


def _model_key(plan: Plan) -> list[Any]:
    model = plan.config.model
    return [plan.identity["model"], model.path, model.revision]


def _processor_key(plan: Plan) -> list[Any]:
    return [*_model_key(plan), plan.config.task.kind, plan.config.task.normalise]


def _splits_key(plan: Plan) -> list[Any]:
    items = plan.config.data.train_items
    seed = None if items is None else stream(plan.config.seed, "subset")
    evaluated = plan.config.data.eval_items
    return [_data_key(plan), _processor_key(plan), plan.identity["protocol"], items, seed, evaluated]


@cached(_data_key)
def data_of(plan: Plan) -> TaskData:
    """The run's task, loaded and checked; labelled by its teacher if it has one."""
    from experiments.data import load_task

    task, data = OmegaConf.to_object(plan.config.task), OmegaConf.to_object(plan.config.data)
    loaded = load_task(task, data, plan.identity["task"]["files"])
    if task.teacher.pattern is None:
        return loaded
    from experiments.models.teacher import taught

    return taught(loaded, data, OmegaConf.to_object(plan.config.model), plan.identity["model"].get("files"))


@cached(_processor_key)
def processor_of(plan: Plan) -> Any:
    """The tokenizer of the run's model, or its image processor."""
    from experiments.models.load import load_processor

    task = OmegaConf.to_object(plan.config.task)
    return load_processor(plan.config.model, task, plan.identity["model"].get("files"))


def rows_of(plan: Plan) -> Rows:
    """The run's rows by their part in it: train, select and report."""
    from experiments.data.protocols import apply_protocol

    config = plan.config
    return apply_protocol(
        data_of(plan), OmegaConf.to_object(config.protocol), train_items=config.data.train_items,
        seed=stream(config.seed, "subset"), eval_items=config.data.eval_items,
    )  # fmt: skip


def sequence_of(plan: Plan) -> Increments | None:
    """The run's increments; None for a task whose classes are all there from the start.

    Raises:
        UserError: an increment has no items, or no step.
    """
    from experiments.data.increments import equal_steps, increments_of

    config, task = plan.config, OmegaConf.to_object(plan.config.task)
    if task.increments is None:
        return None
    rows = rows_of(plan)
    column = "domain" if task.domains else "label"

    def by_epochs(items: Sequence[int]) -> list[int]:
        return [run_length(config.trainer, count) for count in items]

    lengths = by_epochs if config.trainer.max_steps is None else equal_steps(config.trainer.max_steps)
    return increments_of(task, rows.train[column][:], rows.report[column][:], config.seed, lengths)


@cached(_splits_key)
def splits_of(plan: Plan) -> Splits:
    """The run's items, ready for batches."""
    from experiments.data.items import make_items

    config, processor = plan.config, processor_of(plan)
    task, rows = OmegaConf.to_object(config.task), rows_of(plan)

    def ready(dataset: Any, name: str) -> Split:
        return Split(name, make_items(dataset, processor, task, config.data.cache, name == "train"))

    select = None if rows.select is None else ready(rows.select, rows.select_name or "validation")
    report = ready(rows.report, rows.report_name)
    return Splits(ready(rows.train, "train"), select, report, rows.available, rows.reportable)
