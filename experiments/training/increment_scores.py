"""Scores of a sequence of increments, as pure functions of its accuracy matrix.

The accuracy matrix R has one row for each increment that was trained and one column for each that is read: R[t, j] is
the accuracy, in points, on the items of increment j after training on increment t. A cell that was not read is NaN: in
class-incremental learning those above the diagonal, whose classes the model had not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def accuracy_matrix(readings: Sequence[Sequence[float | None]]) -> Array:
    """R, (T, T), from one list of accuracies for each trained increment; missing ones become NaN."""
    matrix = np.full((len(readings), len(readings)), np.nan)
    for t, row in enumerate(readings):
        for j, value in enumerate(row):
            matrix[t, j] = np.nan if value is None else value
    return matrix


def seen_accuracy(matrix: Array, sizes: Sequence[int]) -> Array:
    """Acc_t, the accuracy over all items of the increments seen by then, (T,).

    Args:
        matrix: R, (T, T).
        sizes: items that are read of every increment, (T,).
    """
    weights = np.asarray(sizes, dtype=float)
    return np.array([np.average(matrix[t, : t + 1], weights=weights[: t + 1]) for t in range(len(matrix))])


def final_accuracy(matrix: Array, sizes: Sequence[int]) -> float:
    """Acc_T, the accuracy over all items after the last increment; "Acc" of SD-LoRA's tables (arXiv 2501.13198)."""
    return float(seen_accuracy(matrix, sizes)[-1])


def anytime_accuracy(matrix: Array, sizes: Sequence[int]) -> float:
    """The mean of Acc_1 .. Acc_T, average anytime accuracy; "AAA" of SD-LoRA's tables (arXiv 2501.13198)."""
    return float(seen_accuracy(matrix, sizes).mean())


def forgetting(matrix: Array) -> float | None:
    """Mean over the earlier increments j of max over t < T of R[t, j], less R[T, j] (arXiv 1801.10112, eq. 3).

    Returns:
        Points lost since the best reading, negative where later increments helped; None for one increment.
    """
    if len(matrix) < 2:
        return None
    best = np.array([np.nanmax(matrix[j:-1, j]) for j in range(len(matrix) - 1)])
    return float((best - matrix[-1, :-1]).mean())


def forward_transfer(matrix: Array, before: Sequence[float]) -> float | None:
    """Mean over the later increments j of R[j - 1, j] - b_j (arXiv 1706.08840, section 3).

    Args:
        matrix: R, (T, T).
        before: b, accuracies before the first step, (T,).

    Returns:
        Points that the increments before j add on j; None where they were not read, or for one increment.
    """
    if len(matrix) < 2:
        return None
    gained = np.diagonal(matrix, offset=1) - np.asarray(before, dtype=float)[1:]
    return None if np.isnan(gained).any() else float(gained.mean())
