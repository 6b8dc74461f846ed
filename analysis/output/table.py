"""A table of a report: columns, rows, notes and the data frame behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    frame: pd.DataFrame


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
