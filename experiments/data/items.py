"""Items of one split, ready for batches, whatever they are: texts, documents with summaries, or images.

The loop and the evaluation know `Items` only. `make_items` picks the kind, the rest of a run never asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from elalora.errors import UserError
from experiments.config.task import TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset


class Items(Protocol):
    """One split of n items.

    Attributes:
        idx: the items' own numbers, (n,) int64.
        truncated: how many items were longer than the task allows and were cut.
    """

    @property
    def idx(self) -> Tensor: ...

    @property
    def truncated(self) -> int: ...

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """What an item costs, (n,); items of like length share a batch."""
        ...

    def weight(self, indices: Sequence[int]) -> float:
        """How much these items count in a mean loss: items, or target tokens."""
        ...

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Keyword arguments of the model, labels among them, for b items."""
        ...


def make_items(dataset: Dataset, processor: Any, task: TaskConfig, cache: str | None) -> Items:
    """The items of one split.

    Args:
        dataset: the columns that the kind of task needs (`experiments.data.content`).
        processor: the model's tokenizer, or what an image model expects of its input.
        task: gives the kind, the columns and the lengths.
        cache: the folder that `cache_dir` takes.

    Raises:
        UserError: the split is empty, or tokenizer and task do not fit.
    """
    if len(dataset) == 0:
        raise UserError(f"task {task.name}: a split is empty; give it more data")
    if task.kind == "image":
        from experiments.data.image_items import ImageItems

        return ImageItems(dataset, processor)
    from experiments.data.text_items import tokenise

    return tokenise(dataset, processor, task, cache)
