"""Where the ranks went: heat maps of the final ranks and their course over the rounds.

Computing stands apart from drawing: `rank_map` and `trajectory` return frames, the `draw_` functions take frames.
Colours are safe for colour-blind readers (orange and purple around the budget, viridis for layers), and every
cell of a map also carries its number. Drawing uses matplotlib's object interface, so no display, no global
state and no backend of the caller is touched.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.store import load_rounds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.self.query_proj": "query", "attention.self.key_proj": "key", "attention.self.value_proj": "value",
    "attention.attention.query": "query", "attention.attention.key": "key", "attention.attention.value": "value",
    "attention.output.dense": "attn out", "intermediate.dense": "ffn in", "output.dense": "ffn out",
}  # fmt: skip
ORDER = ["query", "key", "value", "attn out", "ffn in", "ffn out"]
SIDES = {"encoder self_attn": "enc", "decoder self_attn": "dec", "decoder encoder_attn": "cross"}  # of BART
for _part, _side in SIDES.items():
    SHORT |= {f"{_part}.{kind}_proj": f"{_side} {ORDER[i]}" for i, kind in enumerate(("q", "k", "v", "out"))}
for _part, _side in (("encoder", "enc"), ("decoder", "dec")):
    SHORT |= {f"{_part} fc1": f"{_side} ffn in", f"{_part} fc2": f"{_side} ffn out"}
ORDER += [f"{side} {kind}" for side in ("enc", "dec", "cross") for kind in ORDER]
WIDEST = 18.0  # inches, of panels side by side
MOST_ACROSS = 8  # panels of trajectories in one row
MOST_CITED = 3  # sources below one figure
MOST_SEEDS = 3  # with more, trajectories show the mean


def rank_map(runs: pd.DataFrame, which: str = "final") -> pd.DataFrame:
    """Ranks averaged over the given runs.

    Args:
        runs: rows of one arm, from `load_runs`.
        which: "final" or "initial".

    Returns:
        (layers, matrix types); a type that a layer lacks is NaN.
    """
    import pandas as pd

    maps = [_as_map(ranks, places) for ranks, places in zip(runs[f"ranks_{which}"], runs["places"], strict=True)]
    total = sum(maps[1:], start=maps[0])
    mean = total / len(maps)
    return pd.DataFrame(mean, columns=sorted(mean.columns, key=_type_order)).sort_index()


def _as_map(ranks: Mapping[str, int], places: Mapping[str, tuple[int, str]]) -> pd.DataFrame:
    import pandas as pd

    cells = _cells_of(places)
    rows = [(*cells[name], rank) for name, rank in ranks.items()]
    return pd.DataFrame(rows, columns=["layer", "type", "rank"]).pivot(index="layer", columns="type", values="rank")


def _cells_of(places: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    """(layer, short type) of every matrix; where two share a place, as in models of two towers, longer names."""
    cells = {name: (layer, SHORT.get(kind, kind)) for name, (layer, kind) in places.items()}
    for longer in (lambda name: re.sub(r"\.\d+\.", ".*.", name, count=1), str):
        count = Counter(cells.values())
        cells |= {name: (cell[0], longer(name)) for name, cell in cells.items() if count[cell] > 1}
    return cells


def _type_order(kind: str) -> tuple[int, str]:
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), kind)


def trajectory(run: Mapping[str, Any]) -> pd.DataFrame:
    """The ranks of one run over its rounds.

    Args:
        run: a row of `load_runs`.

    Returns:
        One row per step at which ranks changed (0 for the start, the last step repeats the end), columns
        (matrix type, layer).
    """
    import pandas as pd

    rounds = load_rounds(run["folder"])
    if not rounds:
        return pd.DataFrame()
    cells = {name: cell[::-1] for name, cell in _cells_of(run["places"]).items()}
    lines = {max(0, r["step"]): {cells[n]: rank for n, rank in r["ranks"].items() if n in cells} for r in rounds}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.loc[max(run["steps"], max(lines))] = frame.iloc[-1]
    frame.columns = pd.MultiIndex.from_tuples(frame.columns, names=["type", "layer"])
    kinds = sorted(set(frame.columns.get_level_values("type")), key=_type_order)
    return frame.sort_index(axis=1)[kinds]


def draw_rank_maps(
    maps: Mapping[str, pd.DataFrame], centre: float, path: Path, title: str = "", data: str = ""
) -> list[Path]:
    """Heat maps side by side on one colour scale around the budget.

    Args:
        maps: from `rank_map`, by the panel's title.
        centre: the rank that is drawn white: the budget's mean rank.
        path: without suffix; .png and .svg are written.
        title: above all panels.
        data: source of the data, below.
    """
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    values = np.concatenate([m.to_numpy(float).ravel() for m in maps.values()])
    reach = max(1.0, float(np.nanmax(np.abs(values - centre))))
    norm = TwoSlopeNorm(centre, centre - reach, centre + reach)
    first = next(iter(maps.values()))
    width = max(3.4, 0.62 * len(first.columns) + 0.9)
    columns = min(len(maps), 3, max(1, int(WIDEST / width)))
    rows = -(-len(maps) // columns)
    figure = new_figure(columns * width + 0.9, rows * (0.4 * len(first) + 1.5) + 0.9)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, ranks) in zip(axes.flat, maps.items(), strict=False):
        image = axis.imshow(ranks.to_numpy(float), cmap="PuOr_r", norm=norm, aspect="auto")
        axis.set_title(wrapped(name, 30), fontsize=10)
        axis.set_xticks(range(len(ranks.columns)), ranks.columns, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(ranks)), [str(layer) for layer in ranks.index])
        axis.set_ylabel("layer")
        _annotate(axis, ranks.to_numpy(float), centre, reach)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    bar = figure.colorbar(image, ax=axes, label=f"final rank (white: {centre:g})", fraction=0.04, pad=0.02)
    bar.outline.set_linewidth(0.5)
    bar.ax.set_ylim(max(0.0, centre - reach), centre + reach)  # no rank is below 0
    return save_figure(figure, path, title, data)


def _annotate(axis: Axes, ranks: Any, centre: float, reach: float) -> None:
    for (y, x), rank in _cells(ranks):
        text = f"{rank:.0f}" if float(rank).is_integer() else f"{rank:.1f}"
        dark = abs(rank - centre) > 0.55 * reach
        axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _cells(ranks: Any) -> list[tuple[tuple[int, int], float]]:
    import numpy as np

    return [(place, rank) for place, rank in np.ndenumerate(ranks) if not np.isnan(rank)]


def draw_trajectories(courses: Mapping[str, pd.DataFrame], path: Path, title: str = "", data: str = "") -> list[Path]:
    """A panel per matrix type and course, a line per layer, as steps.

    Args:
        courses: from `trajectory`, by the row's title, for instance "seed 0".
        path: without suffix; .png and .svg are written.
        title: above all panels.
        data: source of the data, below.
    """
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    first = next(iter(courses.values()))
    kinds = list(dict.fromkeys(first.columns.get_level_values("type")))
    layers = sorted({layer for _, layer in first.columns})
    colour = {layer: colormaps["viridis"](0.85 * i / max(1, len(layers) - 1)) for i, layer in enumerate(layers)}
    across = -(-len(kinds) // -(-len(kinds) // MOST_ACROSS))
    blocks = [kinds[i : i + across] for i in range(0, len(kinds), across)]
    figure = new_figure(1.75 * across + 1.6, 2.1 * len(courses) * len(blocks) + 1.3)
    axes = figure.subplots(len(courses) * len(blocks), across, squeeze=False, sharex=True, sharey=True)
    whole = all((course % 1 == 0).all(axis=None) for course in courses.values())
    rows = [(block, name, course) for block in blocks for name, course in courses.items()]
    for number, (row, (block, name, course)) in enumerate(zip(axes, rows, strict=True)):
        for axis, kind in zip(row, block, strict=False):
            for layer in course[kind].columns:
                # whole ranks are often equal in several layers: a small shift keeps each line visible
                shift = 0.36 * (layers.index(layer) / max(1, len(layers) - 1) - 0.5) if whole else 0.0
                ranks = course[kind][layer] + shift
                axis.step(course.index, ranks, where="post", color=colour[layer], linewidth=1.3)
            axis.grid(axis="y", linewidth=0.3)
            axis.yaxis.get_major_locator().set_params(integer=True)
            if number % len(courses) == 0:
                axis.set_title(wrapped(kind, 16), fontsize=10)
        for axis in row[len(block) :]:
            axis.set_visible(False)
        row[0].set_ylabel(f"{name}\nrank")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    handles = [Line2D([], [], color=colour[layer], linewidth=2, label=str(layer)) for layer in layers]
    figure.legend(handles=handles, title="layer", loc="outside right center", frameon=False, fontsize=8)
    shifted = "Lines of equal rank are drawn slightly apart. " if whole and len(layers) > 1 else ""
    return save_figure(figure, path, title, data, shifted)


def courses_of(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The courses to draw for one arm: each seed's, or their mean when there are many; only where ranks moved."""
    frames = {f"seed {run['seed']}": trajectory(run) for run in runs.to_dict("records")}
    moved = {name: frame for name, frame in frames.items() if len(frame) and frame.nunique().max() > 1}
    if len(moved) <= MOST_SEEDS:
        return moved
    steps = sorted({step for frame in moved.values() for step in frame.index})
    held = [frame.reindex(steps).ffill() for frame in moved.values()]
    return {f"mean of {len(held)} seeds": sum(held[1:], start=held[0]) / len(held)}


def new_figure(width: float, height: float) -> Figure:
    """A figure without display, global state or the caller's backend; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, title: str, data: str, remark: str = "") -> list[Path]:
    """Writes .png and .svg; without dates, so that the same runs give the same files."""
    from matplotlib import rc_context

    wide = int(figure.get_size_inches()[0] * 11)
    if title:
        figure.suptitle(wrapped(title, wide), fontsize=11)
    if below := remark + (f"Data: {data}" if data else ""):
        figure.supxlabel(wrapped(below, int(wide * 1.4)), fontsize=7, color="0.35")
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
    """Lines of at most `width`; a dollar sign stays one and starts no formula."""
    import textwrap

    return "\n".join(textwrap.wrap(text.replace("$", r"\$"), width, break_on_hyphens=False)) or text


def names(parts: Sequence[str]) -> str:
    """A file name from free text: letters, digits, dot, plus and minus only."""
    return "-".join(re.sub(r"[^A-Za-z0-9.+-]+", "_", part).strip("._-") or "x" for part in parts if part)[:150]
