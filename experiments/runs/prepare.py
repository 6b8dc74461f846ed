"""What a process keeps of one run for the next: data, tokenizer and token ids, each by everything that determines it.

What is unusual: pretrained weights are not kept. They are mapped from their file, which takes less time than a copy in
memory would, and so every run starts from the file's and none can have touched them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from omegaconf import OmegaConf

from elalora.errors import UserError
from experiments.data.content import TaskData
from experiments.runs.plan import Plan
from experiments.runtime.distributed import (
    on_cpu,
)
from experiments.runtime.seeds import stream
from experiments.training.outcome import Split

Value = TypeVar("Value")
MOST = 2  # of each kind: a sweep over two tasks goes back and forth between them


class Kept(Generic[Value]):
    """The last `MOST` values that were asked for; nobody may change one."""

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}  # the oldest first

    def get(self, key: Any, make: Callable[[], Value]) -> Value:
        """The value of a key, made where it is not there.

        Args:
            key: anything that JSON can write; must name all that `make` depends on.
        """
        text = json.dumps(key, sort_keys=True)
        known = text in self._values
        if not known and len(self._values) == MOST:  # before the new one is made: they need not fit side by side
            self._values.pop(next(iter(self._values)))
        value = self._values.pop(text) if known else make()
        self._values[text] = value
        return value


class Splits(NamedTuple):
    """The items of a run, by what they are for; select is None where no checkpoint is chosen."""

    train: Split
    select: Split | None
    report: Split


_data: Kept[TaskData] = Kept()
_processors: Kept[Any] = Kept()
_splits: Kept[Splits] = Kept()


def data_of(plan: Plan) -> TaskData:
    """The run's task, loaded and checked."""
    from experiments.data import load_task

    task, data = OmegaConf.to_object(plan.config.task), OmegaConf.to_object(plan.config.data)
    return _data.get(_data_key(plan), lambda: load_task(task, data))


def processor_of(plan: Plan) -> Any:
    """The tokenizer of the run's model, or its image processor."""
    from experiments.models.load import load_processor

    return _processors.get(
        _processor_key(plan), lambda: load_processor(plan.config.model, OmegaConf.to_object(plan.config.task))
    )


def splits_of(plan: Plan) -> Splits:
    """The run's items, ready for batches."""
    config = plan.config
    seed = None if config.data.train_items is None else stream(config.seed, "subset")
    key = [_data_key(plan), _processor_key(plan), plan.identity["protocol"], config.data.train_items, seed]
    return _splits.get(key, lambda: _make_splits(plan))


def _make_splits(plan: Plan) -> Splits:
    from experiments.data.items import make_items
    from experiments.data.protocols import apply_protocol

    config = plan.config
    task, processor = OmegaConf.to_object(config.task), processor_of(plan)
    rows = apply_protocol(
        data_of(plan),
        OmegaConf.to_object(config.protocol),
        train_items=config.data.train_items,
        seed=stream(config.seed, "subset"),
    )

    def ready(dataset: Any, name: str) -> Split:
        return Split(name, make_items(dataset, processor, task, config.data.cache))

    select = None if rows.select is None else ready(rows.select, rows.select_name or "validation")
    return Splits(ready(rows.train, "train"), select, ready(rows.report, rows.report_name))


def _data_key(plan: Plan) -> list[Any]:
    """The identity has the content of the user's own files, where the settings have paths."""
    return [plan.identity["task"], plan.config.data.root, plan.config.data.cache]


def _processor_key(plan: Plan) -> list[Any]:
    model, task = plan.config.model, plan.config.task
    return [plan.identity["model"], model.path, model.revision, task.kind, task.normalise]


def prepare(plan: Plan) -> tuple[Any, ...]:
    """Loads data, tokenizer and model and attaches the method: every user's mistake shows here, before a write."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from elalora.targets import matrices_in, patterns_in
    from experiments.models.load import check_fit, load_model
    from experiments.runs.prepare import data_of, processor_of, splits_of
    from experiments.runtime.memory import use_cpu
    from experiments.training.trainer import run_length

    config = plan.config
    use_cpu(config.threads)
    AcceleratorState._reset_state(True)  # the state is a singleton, and precision may differ between runs
    accelerator = Accelerator(mixed_precision="bf16" if config.trainer.precision == "bf16" else "no", cpu=on_cpu())
    task, seed = OmegaConf.to_object(config.task), config.seed
    data, processor = data_of(plan), processor_of(plan)
    model, head = load_model(config.model, task, stream(seed, "head"))
    check_fit(config.model, task, model, processor)
    train, select, report = splits_of(plan)
    model = model.to(accelerator.device)
    method = plan.method(plan.method_config, plan.budget)
    _take_pattern(plan, method)
    total = run_length(config.trainer, len(train.data))
    targets = list(config.model.targets)
    expected = config.model.matrices or matrices_in(model, targets)
    model = method.attach(model, patterns_in(model, targets), total, keep=head, seed=stream(seed, "adapter"))
    _check_matrices(expected, method)
    _start(plan, method)
    return accelerator, data, processor, train, select, report, model, method


def _check_matrices(expected: int | None, method: Any) -> None:
    found = len(method.ranks())
    if method.capabilities.ranked and expected and found != expected:
        raise UserError(
            f"model.targets match {found} matrices, {expected} are expected; "
            f"type model.matrices={found} if that is meant"
        )


def _take_pattern(plan: Plan, method: Any) -> None:
    """Hands the transplant its rank pattern, from the run that `method.ranks_from` names."""
    source = plan.source("method.ranks_from")
    if source is not None:
        final = source.finished().result()["ranks"]["final"]
        method.pattern = {name: int(rank) for name, rank in final.items()}


def _start(plan: Plan, method: Any) -> None:
    """Starts the adapter from the update of the run that `init_from` names."""
    source = plan.source("init_from")
    if source is not None:
        from elalora.export import read_factors

        method.start_from(read_factors(source.finished().path / "adapter"))
