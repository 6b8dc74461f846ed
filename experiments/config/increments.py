"""The parts of a task whose classes or domains arrive one after another (`task.increments`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from elalora.errors import UserError

Part = tuple[int, ...]


def check_increments(task: Any) -> None:
    """Checks `task.increments` against the task's classes or domains.

    Args:
        task: a `TaskConfig` whose increments are not null.

    Raises:
        UserError: the task has no classes, the parts do not add up, or a loss over one class is asked for.
    """
    if task.kind not in ("classification", "image"):
        raise UserError(f"task.increments needs a task with classes; task={task.name} has kind {task.kind}")
    if task.teacher.pattern is not None:
        raise UserError(f"task.increments does not go with task.teacher: remove one of them from task={task.name}")
    parts = parts_of(task, list(range(group_count(task))))
    if task.increment_loss == "current" and not task.domains and min(map(len, parts)) == 1:
        raise UserError(
            "task.increment_loss=current: an increment has one class, over which the loss is always 0; type "
            "task.increment_loss=seen, or increments of at least two classes"
        )


def group_count(task: Any) -> int:
    """How many classes, or domains, the increments of a task share out."""
    return len(task.domains) if task.domains else int(task.num_labels)


def is_listed(given: Any) -> bool:
    """Whether `task.increments` lists the classes of every part, so that no order is needed."""
    return isinstance(given, list) and bool(given) and all(isinstance(part, list) and part for part in given)


def loss_over(task: Any, parts: Sequence[Part]) -> str:
    """ "current" or "seen": the task's setting, or what its null stands for."""
    if task.increment_loss is not None:
        return str(task.increment_loss)
    return "seen" if min(map(len, parts)) == 1 else "current"


def parts_of(task: Any, order: list[int]) -> list[Part]:
    """The classes or domains of every increment.

    Args:
        task: a `TaskConfig` whose increments are not null.
        order: all classes or domains, in the order in which numbers and sizes take them.

    Raises:
        UserError: they are not shared out, each once.
    """
    given, what = task.increments, "domains" if task.domains else "classes"
    listed = f"task.increments={given}"
    if type(given) is int:
        if not 1 <= given <= len(order) or len(order) % given:
            fitting = [n for n in range(1, len(order) + 1) if len(order) % n == 0]
            raise UserError(
                f"{listed} does not divide the {len(order)} {what} of task={task.name}; allowed: "
                f"{', '.join(map(str, fitting))}, or sizes such as task.increments=[{len(order) - 1},1]"
            )
        sizes = [len(order) // given] * given
    elif isinstance(given, list) and given and all(type(size) is int for size in given):
        sizes = list(given)
        if min(sizes) < 1 or sum(sizes) != len(order):
            raise UserError(f"{listed}: sizes must be at least 1 and add up to the {len(order)} {what}")
    elif is_listed(given):
        if sorted(number for part in given for number in part) != sorted(order):
            raise UserError(f"{listed} must have each of the {what} 0 to {len(order) - 1} once")
        return [tuple(part) for part in given]
    else:
        raise UserError(
            f"{listed} is neither a number of equal parts, nor a list of sizes such as [2,2,1], nor a list of lists of "
            f"{what} such as [[0,1],[2]]"
        )
    return [tuple(order[a:b]) for a, b in pairwise([0, *accumulate(sizes)])]
