"""What training takes beside a model, and what it leaves: the words that the trainer and its callers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from elalora.budget import Count
from experiments.data.items import Items
from experiments.training.readout import Row


class Watcher(Protocol):
    """What a display and a tracker offer the loop."""

    def update(self, step: int, phase: str, loss: float, moved: int, metrics: str | None = None) -> None: ...

    def reading(self, split: str, done: int, total: int) -> None: ...


class Mirror(Protocol):
    """Where numbers go beside the files."""

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None: ...

    def round(self, line: dict[str, Any]) -> None: ...


@dataclass
class Split:
    """The items of a split and its name."""

    name: str
    data: Items


@dataclass
class Reading:
    """One evaluation of one split."""

    split: str
    step: int
    metrics: dict[str, float]
    collapsed: bool
    rows: list[Row]


@dataclass
class Outcome:
    """What training leaves beside the trained model.

    Attributes:
        step_seconds: wall time of each step of this attempt.
        train_seconds: wall time of all steps, earlier attempts that this one resumed counted in.
        initial, peak: counts over the run.
        best: readings of the best checkpoint in the common window, None without evaluations.
    """

    step_seconds: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    initial: Count = Count(0, 0)
    peak: Count = Count(0, 0)
    best: dict[str, Any] | None = None
