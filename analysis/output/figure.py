"""What all figures share: size, texts, saving. Arms take their colours from `analysis.output.looks`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDEST = 18.0  # inches, of panels side by side
MOST_CITED = 3  # sources below one figure


def new_figure(width: float, height: float) -> Figure:
    """A figure without display, global state or the caller's backend; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, title: str, data: str, remark: str = "") -> list[Path]:
    """Writes .png and .svg; without dates, so that the same runs give the same files.

    No text is read as a formula, whatever dollar signs it has; only the labels of logarithmic axes are formulas.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    wide = int(figure.get_size_inches()[0] * 11)
    if title:
        figure.suptitle(wrapped(title, wide), fontsize=11)
    if below := remark + (f"Data: {data}" if data else ""):
        figure.supxlabel(wrapped(below, int(wide * 1.4)), fontsize=7, color="0.35")
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            for label in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)):
                label.set_parse_math(True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is found once and serves both files
    paths = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    with rc_context({"svg.hashsalt": "elalora"}):
        figure.savefig(paths[0], metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def source_of(citations: Sequence[str]) -> str:
    """The sources of several tasks' data; of many, where they stand."""
    if len(citations) <= MOST_CITED:
        return "; ".join(citations)
    return "the sources of all tasks stand in the comparison table"


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width`."""
    import textwrap

    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) or text


def file_name(parts: Iterable[str]) -> str:
    """A file name from free text: letters, digits, dot, plus and minus only."""
    return "-".join(re.sub(r"[^A-Za-z0-9.+-]+", "_", part).strip("._-") or "x" for part in parts if part)[:150]
