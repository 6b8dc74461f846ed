"""Items of one split, ready for batches: texts, documents with summaries, prompts with completions, or images.

Training and evaluation use the protocol `Items` only; `make_items` chooses the class.
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
        idx: numbers of the items, (n,) int64.
        truncated: how many items were truncated to the task's maximum length.
    """

    @property
    def idx(self) -> Tensor: ...

    @property
    def truncated(self) -> int: ...

    @property
    def labels(self) -> Any:
        """(n,) int64 classes or float32 numbers; ragged token ids of summaries; None for completions."""
        ...

    def __len__(self) -> int: ...

    @property
    def lengths(self) -> np.ndarray:
        """Cost of every item, (n,); items of similar length share a batch."""
        ...

    def weight(self, indices: Sequence[int]) -> float:
        """Weight of these items in a mean loss: number of items or of target tokens."""
        ...

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Keyword arguments of the model for b items, including labels where they are trained on."""
        ...


def make_items(dataset: Dataset, processor: Any, task: TaskConfig, cache: str | None, training: bool = True) -> Items:
    """The items of one split.

    Args:
        dataset: the columns that the kind of task needs (`experiments.data.content`).
        processor: the model's tokenizer or `ImageProcessor`.
        task: determines kind, columns and lengths.
        cache: data.cache, the argument of `cache_dir`.
        training: whether the split is trained on; causal tasks read the others in another form.

    Raises:
        UserError: the split is empty, or the tokenizer does not fit.
    """
    if len(dataset) == 0:
        raise UserError(f"task {task.name}: a split is empty; provide more data")
    if task.kind == "image":
        from experiments.data.image_items import ImageItems

        return ImageItems(dataset, processor)
    if task.kind == "causal":
        from experiments.data.causal_items import causal_items

        return causal_items(dataset, processor, task, cache, training)
    from experiments.data.text_items import tokenise

    return tokenise(dataset, processor, task, cache)
