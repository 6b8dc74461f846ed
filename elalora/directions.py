"""Which slots of one adapted matrix are alive, and how a direction is born or dies.

What is unusual: a rank change moves rows inside tensors that never change shape or identity. A matrix
owns `capacity` slots, of which the first `rank` are active. Every tensor with one row per slot (the
factors, their Adam moments and step counters, their importance) *follows* the directions, so one call
keeps all of them in line, and optimizer, schedule, DDP and checkpoints see static parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from elalora.errors import UserError

Rows = Callable[[], Iterable[Tensor]]


class Directions:
    """The slots of one matrix.

    Args:
        capacity: number of slots, fixed for the whole run.
        rank: number of active slots at the start; they are slots 0 .. rank-1.

    Raises:
        UserError: when the rank does not fit the capacity.
    """

    def __init__(self, capacity: int, rank: int) -> None:
        if not 0 <= rank <= capacity:
            raise UserError(f"rank {rank} does not fit a matrix of {capacity} slots (allowed: 0..{capacity})")
        self.capacity = capacity
        self.rank = rank
        self._followers: list[Rows] = []

    def follow(self, rows: Rows) -> None:
        """Registers a provider of tensors whose dimension 0 is the slot; asked anew at every change."""
        self._followers.append(rows)

    @torch.no_grad()
    def die(self, slot: int) -> None:
        """Removes the direction in `slot`: the last active row moves into the gap, its old row becomes 0."""
        last = self.rank - 1
        if not 0 <= slot <= last:
            raise IndexError(f"slot {slot} is not active (active: 0..{last})")
        for tensor in self._followed():
            if slot != last:
                tensor[slot].copy_(tensor[last])
            tensor[last].zero_()
        self.rank = last

    @torch.no_grad()
    def be_born(self) -> int:
        """Activates the next slot with every followed row at 0 (fresh moments, no importance) and returns it."""
        if self.rank == self.capacity:
            raise IndexError(f"all {self.capacity} slots are active")
        slot = self.rank
        for tensor in self._followed():
            tensor[slot].zero_()
        self.rank += 1
        return slot

    def _followed(self) -> Iterable[Tensor]:
        for rows in self._followers:
            yield from rows()
