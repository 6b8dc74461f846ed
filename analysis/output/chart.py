"""A chart that the page draws from its data, with the values under the pointer and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_VALUES = 30_000  # of single seeds in one chart; above it a chart holds means and bands only


@dataclass(frozen=True)
class Chart:
    """One interactive chart of the page.

    Attributes:
        kind: which function of charts.js draws it: "rank_map", "lines", "points" or "forest".
        caption: what it shows, on which data.
        data: what that function reads, as JSON values; numbers that are not finite count as missing.
        files: its pictures for papers, by the .svg file, with what each shows; the .png lies beside it.
    """

    kind: str
    caption: str
    data: Mapping[str, Any]
    files: Mapping[Path, str] = field(default_factory=dict)

    @property
    def json(self) -> str:
        """The data for a script element: no `<`, so that no text of it can end the element."""
        text = json.dumps(_plain(self.data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    """JSON values only: five significant digits of every float, None for one that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):  # a number of numpy
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.5g}")
    return value
