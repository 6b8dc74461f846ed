"""A run as a sequence of increments: which items train when, and over which outputs.

An ordinary run is a sequence of one increment with all items and all outputs, so training knows one case only. In
class-incremental learning an increment brings classes; in domain-incremental learning (`task.domains`) it brings a
domain, and every increment has all classes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from elalora.errors import UserError
from experiments.config.increments import Part, group_count, loss_over, parts_of
from experiments.config.task import ClassOrder, TaskConfig
from experiments.data.batches import train_batches
from experiments.runtime.seeds import stream

Batches = list[list[int]]
Lengths = Callable[[Sequence[int]], list[int]]  # numbers of items to numbers of steps


@dataclass(frozen=True)
class Increment:
    """One part of a sequence.

    Attributes:
        groups: the classes, or domains, that arrive; empty in an ordinary run.
        items: positions of its items in the training split, (n,).
        start, end: its steps, from start to before end.
        outputs: the outputs that its loss is over; None for all.
        seen: the outputs that may be predicted after it; None for all.
    """

    groups: Part
    items: np.ndarray
    start: int
    end: int
    outputs: Part | None = None
    seen: Part | None = None


@dataclass(frozen=True)
class Increments:
    """The increments of a run, in their order.

    Attributes:
        parts: at least one.
        report_groups: class or domain of every reported item, (n,); None in an ordinary run.
        domains: whether the groups are domains, so that those to come can be read too.
    """

    parts: tuple[Increment, ...]
    report_groups: np.ndarray | None = None
    domains: bool = False

    def at(self, step: int) -> int:
        """The number of the increment that a step belongs to; after the last step that of the last."""
        return min(bisect_right([part.end for part in self.parts], step), len(self.parts) - 1)

    def ends_before(self, step: int) -> bool:
        """Whether an increment, but not the last, ends with the step before this one."""
        return any(part.end == step for part in self.parts[:-1])

    @property
    def stages(self) -> tuple[int, ...]:
        """Steps of every increment."""
        return tuple(part.end - part.start for part in self.parts)

    def reported(self, number: int) -> np.ndarray:
        """Positions of the reported items of an increment, (n,)."""
        assert self.report_groups is not None
        return np.flatnonzero(np.isin(self.report_groups, self.parts[number].groups))

    def read_after(self, number: int) -> np.ndarray:
        """Positions of the reported items that are read after an increment: of those seen; of domains, all."""
        assert self.report_groups is not None
        if self.domains:
            return np.arange(len(self.report_groups))
        return np.sort(np.concatenate([self.reported(i) for i in range(number + 1)]))

    def batches(self, lengths: np.ndarray, size: int, seed: int, number: int, epoch: int, by_length: bool) -> Batches:
        """The batches of one epoch of an increment, as positions in the training split.

        Args:
            lengths: of all training items; size: items of a batch.
            seed: the run's; number: of the increment; epoch: counted from 0 in each increment.
            by_length: as for `train_batches`.
        """
        items = self.parts[number].items
        batches = train_batches(lengths[items], size, data_seed(seed, number), epoch, by_length)
        return [items[batch].tolist() for batch in batches]

    def place(self, step: int, size: int) -> tuple[int, int, int]:
        """Increment, epoch within it and position within the epoch of a step."""
        number = self.at(step)
        part = self.parts[number]
        return number, *divmod(step - part.start, math.ceil(len(part.items) / size))


def data_seed(seed: int, number: int) -> int:
    """The seed of the order of items in an increment of a run."""
    return stream(seed, f"data:{number}" if number else "data")


def one_increment(items: int, steps: int) -> Increments:
    """An ordinary run."""
    return Increments((Increment((), np.arange(items), 0, steps),))


def increments_of(
    task: TaskConfig, trained: Sequence[int], reported: Sequence[int], seed: int, lengths: Lengths
) -> Increments:
    """The increments of a task.

    Args:
        task: its increments are not null.
        trained, reported: class or domain of every training and of every reported item.
        seed: the run's, which may draw the order of the classes.
        lengths: the run's steps for the items of every increment.

    Raises:
        UserError: an increment has no items, or no step.
    """
    parts = parts_of(task, group_order(task, seed))
    groups, report = np.asarray(trained), np.asarray(reported)
    items = [np.flatnonzero(np.isin(groups, part)) for part in parts]
    for part, own in zip(parts, items, strict=True):
        if not len(own) or not np.isin(report, part).any():
            raise UserError(
                f"task.increments={task.increments}: the increment {list(part)} has no items to "
                f"{'report' if len(own) else 'train on'}; raise data.train_items, or choose other parts"
            )
    ends = np.cumsum(lengths([len(own) for own in items])).tolist()
    out = []
    for number, (part, own) in enumerate(zip(parts, items, strict=True)):
        seen = tuple(sorted(group for earlier in parts[: number + 1] for group in earlier))
        outputs = tuple(sorted(part)) if loss_over(task, parts) == "current" else seen
        start = ends[number - 1] if number else 0
        classes = (None, None) if task.domains else (outputs, seen)
        out.append(Increment(part, own, start, ends[number], *classes))
    return Increments(tuple(out), report, bool(task.domains))


def group_order(task: TaskConfig, seed: int) -> list[int]:
    """The classes, or domains, in the order in which equal parts take them."""
    count = group_count(task)
    if task.class_order == ClassOrder.label:
        return list(range(count))
    return np.random.default_rng(stream(seed, "classes")).permutation(count).tolist()


def equal_steps(total: int) -> Lengths:
    """Shares out the steps of a run equally.

    Raises:
        UserError: there are fewer steps than increments.
    """

    def lengths(items: Sequence[int]) -> list[int]:
        count = len(items)
        if total < count:
            raise UserError(f"trainer.max_steps={total} is below the {count} increments of the task: train longer")
        ends = [round(number * total / count) for number in range(count + 1)]
        return [b - a for a, b in pairwise(ends)]

    return lengths
