"""Drawings of the rank study: spread over seeds, ranks round by round, moves, agreement, scores, contribution.

Each function takes frames from `analysis.sections.rank_study_frames`.
Colours are safe for colour-blind readers: orange and purple for signed values, cividis for amounts, and the Okabe-Ito
set with a marker for every matrix type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.output.figure import WIDEST, new_figure, save_figure, wrapped
from analysis.sections.matrix_types import type_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = [  # colour and marker of a matrix type
    ("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "^"), ("#009E73", "D"), ("#CC79A7", "v"), ("#D55E00", "P"),
    ("#56B4E9", "X"), ("#7F7F7F", "*"),
]  # fmt: skip
MOST_MATRICES = 48  # rows of one panel of moves
MOST_COLUMNS = 24  # of all panels of moves together


def draw_spreads(maps: Mapping[str, pd.DataFrame], path: Path, title: str = "", data: str = "") -> list[Path]:
    """Heat maps of the standard deviation of final ranks over seeds, layer by matrix type, on one scale."""
    most = max(float(np.nanmax(m.to_numpy(float))) for m in maps.values()) or 1.0
    return _panels(maps, path, title, data, "cividis", 0.0, most, "standard deviation over seeds", "{:.1f}")


def draw_rounds(maps: Mapping[str, pd.DataFrame], centre: float, path: Path, title: str, data: str) -> list[Path]:
    """Small multiples: the map of ranks at the start and after each round.

    Args:
        maps: from `maps_of_rounds`.
        centre: the rank drawn white, the budget's mean rank.
    """
    reach = max(1.0, max(float(np.nanmax(np.abs(m.to_numpy(float) - centre))) for m in maps.values()))
    low, high = centre - reach, centre + reach
    return _panels(maps, path, title, data, "PuOr_r", low, high, f"rank (white: {centre:g})", "{:.3g}")


def _panels(
    maps: Mapping[str, pd.DataFrame], path: Path, title: str, data: str, colours: str, low: float, high: float,
    meaning: str, form: str,
) -> list[Path]:  # fmt: skip
    first = next(iter(maps.values()))
    width = max(2.9, 0.5 * len(first.columns) + 0.7)
    columns = min(len(maps), 4, max(1, int(WIDEST / width)))
    rows = -(-len(maps) // columns)
    figure = new_figure(columns * width + 1.0, rows * (0.32 * len(first) + 1.4) + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, frame) in zip(axes.flat, maps.items(), strict=False):
        image = axis.imshow(frame.to_numpy(float), cmap=colours, vmin=low, vmax=high, aspect="auto")
        axis.set_title(wrapped(name, int(width * 9)), fontsize=9)
        axis.set_xticks(range(len(frame.columns)), frame.columns, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(frame)), [str(layer) for layer in frame.index])
        axis.tick_params(labelsize=8)
        _numbers(axis, frame.to_numpy(float), image, form)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer", fontsize=9)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    bar = figure.colorbar(image, ax=axes, label=meaning, fraction=0.04, pad=0.02)
    bar.outline.set_linewidth(0.5)
    bar.ax.set_ylim(max(0.0, low), high)  # neither a rank nor a deviation is below 0
    return save_figure(figure, path, title, data)


def _numbers(axis: Axes, values: Any, image: Any, form: str) -> None:
    """The value in every cell, black on light and white on dark."""
    for (y, x), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5
        text, colour = form.format(round(float(value), 2) + 0.0).replace("-", "−"), "black" if light else "white"
        axis.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)


def draw_events(net: pd.DataFrame, replaced: pd.DataFrame, path: Path, title: str, data: str) -> list[Path]:
    """What was pruned and grown when: a row per matrix, a column per round.

    More than `MOST_MATRICES` matrices are split by type into panels side by side; more rounds than fit are joined.

    Args:
        net: directions gained less lost, (matrices, steps), mean over seeds; only matrices that ever moved.
        replaced: directions replaced within the matrix in that round, likewise; drawn as dots.
    """
    panels = _by_types(list(net.index))
    rounds, most_columns = len(net.columns), max(8, MOST_COLUMNS // len(panels))
    net, replaced = (_joined(frame, most_columns) for frame in (net, replaced))
    most = max(1.0, float(np.abs(net.to_numpy(float)).max()))
    width = max(2.2, 0.36 * len(net.columns)) if len(panels) > 1 else max(3.9, 0.55 * len(net.columns))
    figure = new_figure(len(panels) * (width + 1.0) + 1.6, 0.2 * max(map(len, panels)) + 1.9)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, rows in zip(axes, panels, strict=True):
        image = axis.imshow(net.loc[rows].to_numpy(float), cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        for y, x in np.argwhere(replaced.loc[rows].to_numpy(float) > 0):
            axis.plot(x, y, "o", color="black", markersize=3.5, markerfacecolor="white", markeredgewidth=0.7)
        steps = [str(step) for step in net.columns]
        axis.set_xticks(range(len(steps)), steps, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(rows)), rows)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("step of the round")
    figure.colorbar(image, ax=axes, label="directions gained less lost", pad=0.02).outline.set_linewidth(0.5)
    remark = "A dot: a direction of the matrix was replaced by a new one of its own. "
    remark += f"Columns join {rounds} rounds. " if rounds > len(net.columns) else ""
    return save_figure(figure, path, title, data, remark)


def _by_types(rows: list[str]) -> list[list[str]]:
    """Rows ("query 0") in panels of about equal height and at most `MOST_MATRICES`, if no type is larger."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row.rpartition(" ")[0], []).append(row)
    height = len(rows) / -(-len(rows) // MOST_MATRICES)
    panels: list[list[str]] = [[]]
    for members in kinds.values():
        if panels[-1] and len(panels[-1]) + len(members) > max(height, len(members)) + 0.5:
            panels.append([])
        panels[-1] += members
    return panels


def _joined(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` columns: neighbouring rounds are added up and named by their first and last step."""
    if len(frame.columns) <= most:
        return frame
    parts = [list(part) for part in np.array_split(frame.columns.to_numpy(), most)]
    named = {f"{p[0]}–{p[-1]}" if len(p) > 1 else str(p[0]): frame[p].sum(axis=1) for p in parts}
    return pd.DataFrame(named, index=frame.index)


def draw_agreement(taus: pd.DataFrame, path: Path, title: str, data: str) -> list[Path]:
    """Mean tau-b between seeds, within an arm on the diagonal and between arms beside it; grey is not defined."""
    from matplotlib import colormaps

    colours = colormaps["PuOr_r"].with_extremes(bad="0.85")
    figure = new_figure(0.75 * len(taus) + 3.6, 0.55 * len(taus) + 2.2)
    axis = figure.subplots()
    image = axis.imshow(taus.to_numpy(float), cmap=colours, vmin=-1, vmax=1)
    arms = [wrapped(str(name), 22) for name in taus.index]
    axis.set_xticks(range(len(taus)), arms, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(taus)), arms, fontsize=8)
    _numbers(axis, taus.to_numpy(float), image, "{:.2f}")
    figure.colorbar(image, ax=axis, label="mean tau-b of two seeds", fraction=0.05, pad=0.03)
    return save_figure(figure, path, title, data)


def draw_scores(frames: Mapping[str, pd.DataFrame], path: Path, title: str, data: str) -> list[Path]:
    """Distributions of the directions' scores before each round, a panel per arm, on a logarithmic axis.

    Args:
        frames: from `analysis.reading.rounds.scores`, all seeds of an arm joined, by the panel's title.
    """
    figure = new_figure(max(6.0, 4.6 * len(frames)), 3.8)
    axes = figure.subplots(1, len(frames), squeeze=False, sharey=True)
    for axis, (name, frame) in zip(axes[0], frames.items(), strict=True):
        positive = frame[frame["score"] > 0]
        steps = sorted(set(positive["step"]))
        groups = [positive.loc[positive["step"] == step, "score"].to_numpy() for step in steps]
        drawn = axis.boxplot(groups, whis=(5, 95), showfliers=False, patch_artist=True, widths=0.6)
        for box in drawn["boxes"]:
            box.set(facecolor="#BFD7EA", edgecolor="#0072B2")
        for line in drawn["medians"]:
            line.set(color="#D55E00", linewidth=1.5)
        axis.set_yscale("log")
        axis.set_xticks(range(1, len(steps) + 1), [str(step) for step in steps], rotation=40, ha="right", fontsize=8)
        axis.set_xlabel("step of the round")
        axis.set_title(wrapped(name, 40), fontsize=10)
        axis.grid(axis="y", linewidth=0.3)
    axes[0][0].set_ylabel("score of a direction")
    return save_figure(figure, path, title, data, "Box: quartiles and median; whiskers: 5th and 95th percentile. ")


WITHOUT = {  # what a contribution is, by its measure
    "loss": "rise of the held-out loss", "calibrated loss": "rise of the calibrated loss",
    "score": "fall of the score (points)",
}  # fmt: skip


def draw_relation(points: pd.DataFrame, path: Path, title: str, data: str) -> list[Path]:
    """Rank against contribution: a row per measure, a panel per comparison, a look per matrix type.

    A point is a matrix, the mean over seeds.
    """
    panels: Sequence[str] = list(dict.fromkeys(points["panel"]))
    measures: Sequence[str] = list(dict.fromkeys(points["measure"]))
    kinds = sorted(set(points["type"]), key=type_order)
    figure = new_figure(4.4 * len(panels) + 1.4, 0.6 + 3.4 * len(measures))
    axes = figure.subplots(len(measures), len(panels), squeeze=False, sharex=True, sharey="row")
    for (row, measure), (column, panel) in product(enumerate(measures), enumerate(panels)):
        axis = axes[row][column]
        inside = points[(points["panel"] == panel) & (points["measure"] == measure)]
        for number, kind in enumerate(kinds):
            colour, marker = LOOKS[number % len(LOOKS)]
            of_type = inside[inside["type"] == kind]
            face = colour if number < len(LOOKS) else "none"  # a repeated look is hollow
            axis.plot(
                of_type["rank"], of_type["rise"], marker, color=colour, mfc=face, markersize=6, alpha=0.85, label=kind
            )
        axis.axhline(0, color="0.5", linewidth=0.6)
        axis.grid(linewidth=0.3)
        if row == 0:
            axis.set_title(wrapped(panel, 46), fontsize=10)
        if row == len(measures) - 1:
            axis.set_xlabel("final rank, mean over seeds")
    for row, measure in enumerate(measures):
        axes[row][0].set_ylabel(f"{WITHOUT[measure]}\nwithout the adapter")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8, title="matrix type")
    return save_figure(figure, path, title, data)
