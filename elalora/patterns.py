"""Patterns: which slots of every matrix count, as masks and gates decide it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

Pattern = Mapping[str, Sequence[bool]]
T = TypeVar("T")


def split(values: Iterable[T], sizes: Mapping[str, int]) -> dict[str, list[T]]:
    """Cuts values of all directions, in the order of the matrices, into one list per matrix."""
    rest = iter(values)
    return {name: [next(rest) for _ in range(size)] for name, size in sizes.items()}


def changes(before: Pattern, after: Pattern) -> tuple[list[tuple[str, int]], list[str]]:
    """(matrix, slot) of every direction that no longer counts, and the matrix of every one that counts again."""
    moved = [
        (name, slot, now)
        for name, row in after.items()
        for slot, (was, now) in enumerate(zip(before[name], row, strict=True))
        if was != now
    ]
    return [(name, slot) for name, slot, now in moved if not now], [name for name, _, now in moved if now]


def dropped(pattern: Pattern) -> list[tuple[str, int]]:
    """(matrix, slot) of every direction that does not count."""
    return [(name, slot) for name, row in pattern.items() for slot, counts in enumerate(row) if not counts]


def select(factors: Mapping[str, tuple[Tensor, Tensor]], pattern: Pattern) -> dict[str, tuple[Tensor, Tensor]]:
    """The directions that count, of A (r, d_in) and B (d_out, r) by matrix."""
    rows = {name: [slot for slot, counts in enumerate(pattern[name]) if counts] for name in factors}
    return {name: (a[rows[name]], b[:, rows[name]]) for name, (a, b) in factors.items()}
