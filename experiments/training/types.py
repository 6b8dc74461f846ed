"""What training is given and what an evaluation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from elalora.method import Method
from experiments.data.items import Items
from experiments.training.readout import Readout, Row

if TYPE_CHECKING:
    from accelerate import Accelerator

    from experiments.data.content import TaskData


class Split(NamedTuple):
    """The items of one split and its name."""

    name: str
    data: Items


class Splits(NamedTuple):
    """The items of a run by purpose; `select` is None where no checkpoint is chosen."""

    train: Split
    select: Split | None
    report: Split


@dataclass
class Prepared:
    """Everything a run needs before its first step; the method is attached to the model.

    Attributes:
        accelerator: device, precision and processes.
        data: the loaded task; None in tests that make their own splits.
        readout: how the task's outputs become predictions and scores.
    """

    accelerator: Accelerator
    data: TaskData | None
    splits: Splits
    readout: Readout
    model: nn.Module
    method: Method


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
