"""The order of items: a pure function of lengths, seed and epoch.

There is no state between epochs, so a resumed run sees the batches of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MEGA_BATCHES = 50  # batches among which items are sorted by length


def train_batches(
    lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int, epoch: int, by_length: bool
) -> list[list[int]]:
    """The batches of one epoch: every item once, drawn at random or grouped by similar length.

    Items are shuffled and cut into batches. By length, the items of each 50 batches are first sorted by length, and
    their batches are shuffled afterwards: less padding, but the items of a batch are no random sample, and scores
    differ. The short batch is kept, so an epoch has ceil(n / batch_size) batches.

    Args:
        lengths: tokens of every item, (n,).
        batch_size: items per batch, at least 1.
        seed: the run's seed for data order; all arms of a seed see the same batches.
        epoch: counted from 0.
        by_length: whether a batch has items of similar length.
    """
    lengths = np.asarray(lengths)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if not by_length:
        return _cut(order, batch_size)
    mega = batch_size * MEGA_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), mega):
        stretch = order[start : start + mega]
        stretch = stretch[np.argsort(-lengths[stretch], kind="stable")]
        batches += _cut(stretch, batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def eval_batches(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[list[int]]:
    """All items by decreasing length: little padding, and memory problems show in the first batch."""
    return _cut(np.argsort(-np.asarray(lengths), kind="stable"), batch_size)


def _cut(order: np.ndarray, batch_size: int) -> list[list[int]]:
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]
