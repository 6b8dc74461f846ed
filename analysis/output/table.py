"""A table of a report: columns, rows, notes and the data frame behind it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table ready for any writer.

    Attributes:
        caption: what it shows, on which data.
        columns: headers of the shown table.
        rows: text cells, one list per row.
        notes: what a reader must know to read it, one line each.
        frame: the same rows as numbers, with everything that does not fit on a page.
        leaders: cells that hold the highest or second highest mean of their place, by row and column: 1 or 2.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    frame: pd.DataFrame
    leaders: Mapping[tuple[int, int], int] = field(default_factory=dict)


def leaders(places: Sequence[Hashable], means: Sequence[float], column: int) -> dict[tuple[int, int], int]:
    """The highest mean of every place with two arms or more, and the second of those with three.

    Args:
        places: of each row; None for a row that takes no part.
        means: of each row; equal ones, as the table shows them, share their rank.
        column: in which they stand.
    """
    found: dict[tuple[int, int], int] = {}
    for place in dict.fromkeys(place for place in places if place is not None):
        shown = {i: round(means[i], 2) for i, at in enumerate(places) if at == place and not math.isnan(means[i])}
        levels = sorted(set(shown.values()), reverse=True)[: min(2, len(shown) - 1)]
        found |= {(i, column): levels.index(mean) + 1 for i, mean in shown.items() if mean in levels}
    return found


def signed(value: float) -> str:
    """+0.31 or −0.31, with a true minus; what rounds to nothing is +0.00."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def signed_range(low: float, high: float) -> str:
    """ " [−0.31, +0.02]" behind a difference, or nothing where there is no interval."""
    return "" if math.isnan(low) else f" [{signed(low)}, {signed(high)}]"


def mean_sd(mean: float, sd: float) -> str:
    """82.00 ± 2.00, or the mean alone where there is no spread."""
    return f"{mean:.2f}" + ("" if math.isnan(sd) else f" ± {sd:.2f}")


def p_value(p: float, exact: bool = False) -> str:
    """0.031 or "< 0.001"; `exact` shows two significant digits below 0.01 instead."""
    if exact:
        return f"{p:.3f}" if p >= 0.01 else f"{p:.2g}"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equation(p: float) -> str:
    """p = 0.031, or p < 0.001."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def summarise(values: Sequence[str], most: int = 5) -> str:
    """The first few of a list of lines and how many more there are."""
    more = len(values) - most
    return "\n".join(values[:most]) + (f"\n... and {more} more" if more > 0 else "")
