"""What every readout shares: the rows that it makes of items, and the error for outputs that are not numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.data.items import Items

Row = tuple[Any, ...]  # idx, label, prediction, score, and what the readout's further columns hold


class NotFinite(RuntimeError):
    """A loss, gradient or output that is NaN or infinite."""

    failure = "nan"


def check_finite(values: Tensor) -> None:
    """Raises NotFinite for an output that is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise NotFinite("an output is not finite; lower trainer.lr")


def rows_of(items: Items, indices: Sequence[int], *columns: Tensor | list[Any]) -> list[Row]:
    """Rows of b items: their numbers, then one value of each column."""
    numbers = items.idx[torch.as_tensor(indices)].tolist()
    values = (column.tolist() if isinstance(column, Tensor) else column for column in columns)
    return list(zip(numbers, *values, strict=True))
