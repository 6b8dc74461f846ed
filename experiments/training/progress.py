"""What training is given, the state of a run that trains, and the part of it that a checkpoint stores as JSON.

A checkpoint is a file that may come from another run, another version or an editor. `Progress.read` therefore checks
every type and every cross-reference before anything of the run is changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from elalora.budget import Count
from elalora.method import Method
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule
from experiments.data.increments import Increments, one_increment
from experiments.data.items import Items
from experiments.runtime.files import FileSum
from experiments.store.finished import LINES
from experiments.training.readout import Readout, Row

if TYPE_CHECKING:
    from accelerate import Accelerator

    from experiments.data.content import TaskData


class Split(NamedTuple):
    """The items of one split and its name."""

    name: str
    data: Items


class DataPass(NamedTuple):
    """What a method read of the training items before the first step, and how long that took."""

    seconds: float
    batches: int
    items: int


class Splits(NamedTuple):
    """The items of a run by purpose; `select` is None where no checkpoint is chosen.

    `available` is the number of training items before data.train_items drew a subset, `reportable` that of reported
    items before data.eval_items drew one.
    """

    train: Split
    select: Split | None
    report: Split
    available: int = 0
    reportable: int = 0


@dataclass
class Prepared:
    """Everything a run needs before its first step; the method is attached to the model.

    Attributes:
        accelerator: device, precision and processes.
        data: the loaded task; None in tests that make their own splits.
        readout: how the task's outputs become predictions and scores.
        read: digests of the files that the model was read from, for the manifest.
        zero_shot: whether the untrained model is scored first.
        general: text that is scored before and after training, and how.
        increments: the parts of a task whose classes or domains arrive one after another; None for an ordinary task.
    """

    accelerator: Accelerator
    data: TaskData | None
    splits: Splits
    readout: Readout
    model: nn.Module
    method: Method
    read: dict[str, Any] = field(default_factory=dict)
    zero_shot: bool = False
    general: tuple[Split, Readout] | None = None
    increments: Increments | None = None

    @property
    def sequence(self) -> Increments:
        """The increments, one of all items in an ordinary run."""
        return self.increments or one_increment(len(self.splits.train.data), self.method.total_steps)


@dataclass
class Scores:
    """The metrics of one split, in points."""

    split: str
    metrics: dict[str, float]


@dataclass
class Reading:
    """One evaluation of one split: its scores and a row for every item."""

    scores: Scores
    collapsed: bool
    rows: list[Row]


@dataclass
class Best:
    """The best checkpoint of the common window.

    Attributes:
        step: optimizer steps done.
        select: scores on the selection split; report: on the reported split, None until training is over.
        ranks, count: of the adapter at that step.
    """

    step: int
    select: Scores
    report: Scores | None
    ranks: dict[str, int]
    count: Count


@dataclass
class Progress:
    """How far a run is; a checkpoint stores it as JSON under these names.

    Attributes:
        run: id of the run.
        initial, peak: counts before the first step, and the largest so far.
        moved: directions moved so far.
        best: None before the first evaluation in the common window.
        unread: step after which the selection split was due and could not be read completely.
        seconds: wall time of all steps and of all evaluations, earlier attempts included.
        losses: training losses since the last line of metrics.jsonl, and
        lines: size and checksum of every .jsonl file; both set when a checkpoint is written.
    """

    run: str
    initial: Count
    peak: Count
    moved: int = 0
    best: Best | None = None
    unread: int | None = None
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    losses: list[float] = field(default_factory=list)
    lines: dict[str, FileSum] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Any, step: int, method: Method, metrics: Sequence[str]) -> Progress:
        """The progress in a checkpoint.

        Args:
            value: its JSON value; step: of the checkpoint.
            method: of this run, attached.
            metrics: names of the task's metrics.

        Raises:
            ValueError: a run of this method on this task cannot have written it.
        """
        progress: Progress = _typed(cls, value)
        fits = progress.lines.keys() == set(LINES) and len(progress.seconds) == 2
        fits &= progress.unread in (None, step - 1)
        if (best := progress.best) is not None:
            scores = [best.select] if best.report is None else [best.select, best.report]
            fits &= 0 < best.step <= step and best.ranks.keys() == method.ranks().keys()
            fits &= all(score.metrics.keys() == set(metrics) for score in scores)
        if not fits:
            raise ValueError("its keys or steps are not those of this run")
        return progress


@dataclass
class TrainState:
    """Everything that changes while a run trains.

    Attributes:
        progress: the part that checkpoints store as JSON.
        total: optimizer steps of the whole run; step: those done.
        losses: training losses since the last line of metrics.jsonl, each ().
        step_seconds: wall time of each step of this attempt.
        finishing: the training steps are over, and the weights may differ from every checkpoint's.
        start_ranks: rank of every matrix before the first step.
        report, select: readings of the last checkpoint; select is None where it equals report or nothing is chosen.
        by_rank: scores of the last checkpoint on the reported split by rank, for methods that train several ranks.
    """

    model: nn.Module
    method: Method
    optimizer: RowwiseAdamW
    schedule: Schedule
    progress: Progress
    total: int
    start_ranks: dict[str, int]
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    finishing: bool = False
    report: Reading | None = None
    select: Reading | None = None
    by_rank: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[nn.Module, Method, RowwiseAdamW, Schedule]:
        """What `checkpoint.collect` reads and `checkpoint.restore` sets."""
        return self.model, self.method, self.optimizer, self.schedule


def _typed(kind: Any, value: Any) -> Any:
    """A JSON value as a type that a dataclass declares; raises ValueError where it is of another type."""
    options = get_args(kind)
    if get_origin(kind) is UnionType:
        return None if value is None else _typed(options[0], value)
    if is_dataclass(kind):
        if isinstance(value, dict) and value.keys() == {part.name for part in fields(kind)}:
            hints = get_type_hints(kind)
            return cast(Any, kind)(**{name: _typed(hints[name], part) for name, part in value.items()})
    elif get_origin(kind) is dict and isinstance(value, dict):
        return {name: _typed(options[1], part) for name, part in value.items()}
    elif get_origin(kind) is list and isinstance(value, list):
        return [_typed(options[0], part) for part in value]
    elif type(value) is kind or kind is float and type(value) is int:
        if kind is not float or math.isfinite(value):
            return value
    raise ValueError(f"{str(value)[:40]} is not of type {getattr(kind, '__name__', kind)}")
