"""Which slots of one adapted matrix are active, and how a direction is born or dies.

A rank change moves rows inside parameters that never change shape or identity, so optimizer, schedule and DDP see
static parameters. A matrix has `capacity` slots, of which the first `rank` are active. The factors have a row for
every slot; the state about them (Adam moments, step counters, importance) has rows for active slots only, so a free
slot costs no memory there. Both *follow* the directions: one call changes all of them consistently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from elalora.errors import UserError

Rows = Callable[[], Iterable[Tensor]]
Table = MutableMapping[Any, Tensor]
ActiveRows = Callable[[], Iterable[tuple[Table, Any]]]


class Directions:
    """The slots of one matrix.

    Args:
        capacity: number of slots, fixed for the whole run.
        rank: number of active slots at the start, which are slots 0 .. rank-1.

    Attributes:
        moving: the slots that the optimizer updates; None for all active ones.
        changes: number of births, deaths and restorations so far; cached views of followed rows are valid until it
            changes.

    Raises:
        UserError: the rank does not fit the capacity.
    """

    def __init__(self, capacity: int, rank: int) -> None:
        if not 0 <= rank <= capacity:
            raise UserError(f"rank {rank} does not fit a matrix of {capacity} slots (allowed: 0..{capacity})")
        self.capacity = capacity
        self.rank = rank
        self.changes = 0
        self.moving: slice | None = None
        self._followers: list[Rows] = []
        self._packed: list[ActiveRows] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the followers of active rows: moments and importance belong to this object, not to a copy."""
        return self.__dict__ | {"_packed": []}

    def follow(self, rows: Rows) -> None:
        """Registers a function that returns tensors with a row for every slot; it is called at every change."""
        self._followers.append(rows)

    def follow_active(self, rows: ActiveRows) -> None:
        """As `follow`, for (mapping, key) whose tensor has rows for *active* slots only; a change replaces it."""
        self._packed.append(rows)

    @torch.no_grad()
    def die(self, slot: int) -> None:
        """Removes the direction in `slot`; the last active row moves into the gap, and its old row becomes 0."""
        last = self.rank - 1
        if not 0 <= slot <= last:
            raise IndexError(f"slot {slot} is not active (active: 0..{last})")
        for tensor in self._rows():
            tensor[slot].copy_(tensor[last])
            tensor[last].zero_()
        for table, key in self._active_rows():
            table[key][slot].copy_(table[key][last])
            table[key] = table[key][:last].clone()
        self.rank, self.changes = last, self.changes + 1

    @torch.no_grad()
    def be_born(self) -> int:
        """Activates the next slot, with every followed row at 0 (fresh moments, no importance), and returns it."""
        if self.rank == self.capacity:
            raise IndexError(f"all {self.capacity} slots are active")
        slot = self.rank
        for tensor in self._rows():
            tensor[slot].zero_()
        for table, key in self._active_rows():
            tensor = table[key]
            table[key] = torch.cat([tensor, tensor.new_zeros(1, *tensor.shape[1:])])
        self.rank, self.changes = slot + 1, self.changes + 1
        return slot

    def restore(self, rank: int) -> None:
        """Sets the rank of a saved state; the owners of the rows restore them.

        Raises:
            ValueError: the rank does not fit the capacity.
        """
        if not 0 <= rank <= self.capacity:
            raise ValueError(f"rank {rank} does not fit a matrix of {self.capacity} slots")
        self.rank, self.changes = rank, self.changes + 1

    def _rows(self) -> Iterable[Tensor]:
        for rows in self._followers:
            yield from rows()

    def _active_rows(self) -> Iterable[tuple[Table, Any]]:
        for rows in self._packed:
            yield from rows()
