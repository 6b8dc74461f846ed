"""The look of every arm, the same in all charts and figures: a colour of its method's family, a dash and a symbol."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

FAMILIES = {  # by what a method does with ranks; page.css has the colours of each
    "fixed": ("lora", "svd_lora", "prilora", "beamlora", "dylora", "peft"),
    "once": ("gelora", "gora", "eva"),
    "moved": ("elalora", "flexlora", "alora", "l1ra"),
    "changed": ("adalora", "dora_dynamic", "sora", "increlora"),
    "added": ("rac_lora", "chain_lora", "xgblora", "sd_lora", "o_lora", "task_lora"),
    "other": ("full", "head", "bitfit", "class_means"),
}
SHADES = 3  # colours of one family
DASHES = ("", "6 3", "2 3", "8 3 2 3")
SYMBOLS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "star": "*"}  # d3's, matplotlib's


class Look(NamedTuple):
    """How an arm is drawn: a CSS colour, an SVG dash pattern ("" for a whole line), and a name of d3's symbols."""

    colour: str
    dash: str
    symbol: str

    @property
    def ink(self) -> str:
        """The colour on white paper, for matplotlib."""
        return _inks()[self.colour]

    @property
    def line(self) -> str | tuple[int, tuple[float, ...]]:
        """The dash as a line style of matplotlib, whose dashes count in line widths; the page's lines are 2 wide."""
        return (0, tuple(float(part) / 2 for part in self.dash.split())) if self.dash else "-"

    @property
    def marker(self) -> str:
        """The symbol as a marker of matplotlib."""
        return SYMBOLS[self.symbol]


@lru_cache(maxsize=1)
def _inks() -> dict[str, str]:
    """The light colour of every variable of a family in page.css."""
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return {f"var(--{name})": ink for name, ink in re.findall(r"--(\w+-\d): light-dark\((#\w+)", style)}


class Looks:
    """Looks by the name of an arm; arms of one family differ in shade first, then in dash, and in their symbol.

    Args:
        arms: names, methods, and another name of the same arm, in the order that fixes the looks.
    """

    def __init__(self, arms: Iterable[tuple[str, str, str]] = ()) -> None:
        self._by_name: dict[str, Look] = {}
        self._members: dict[str, int] = {}
        for name, method, other in arms:
            self._by_name.setdefault(other, self.of(name, method))

    def of(self, name: str, method: str) -> Look:
        """The look of an arm, a new one for a name that has none."""
        if name not in self._by_name:
            family = next((family for family, methods in FAMILIES.items() if method in methods), "other")
            number = self._members[family] = self._members.get(family, -1) + 1
            colour = f"var(--{family}-{number % SHADES})"
            symbol = list(SYMBOLS)[(list(FAMILIES).index(family) + number) % len(SYMBOLS)]
            self._by_name[name] = Look(colour, DASHES[number // SHADES % len(DASHES)], symbol)
        return self._by_name[name]
