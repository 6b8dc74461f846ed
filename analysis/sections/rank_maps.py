"""Where the ranks went: heat maps of the final ranks, and their course over the rounds.

`rank_map` and `trajectory` compute frames, the `draw_` functions take frames. Colours are safe for colour-blind readers
(orange and purple around the budget, viridis for layers), and every cell of a map also carries its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.output.figure import WIDEST, file_name, new_figure, save_figure, wrapped
from analysis.output.section import Section
from analysis.reading.arms import CELL
from analysis.reading.result_row import NO_BUDGET
from analysis.reading.rounds import patterns
from analysis.reading.runs import rows_of
from analysis.reading.stored import Stored
from analysis.sections.arms import by_method, cell_label, cell_stem
from analysis.sections.charts import look_of, looks_of, rank_map_chart
from analysis.sections.matrix_types import layer_map, type_order
from analysis.sections.rank_courses import Course, course_of, whole_course

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ACROSS = 8  # panels of trajectories in one row
MOST_SEEDS = 3  # with more, trajectories show their mean


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """A heat map of final ranks per task and budget, and the course of the ranks of every arm that moved any."""
    section = Section("Ranks")
    ranked = stored.runs[[bool(ranks) for ranks in stored.runs["ranks_final"]]]
    for _, cell in ranked.groupby(CELL, sort=False):
        arms = {name: arm.sort_values("seed") for name, arm in by_method(cell)}
        files = _draw(arms, cell, folder) if folder is not None else {}
        looks = looks_of(stored)
        panels = [(name, look_of(looks, arm), rank_map(arm), _courses(arm)) for name, arm in arms.items()]
        section.charts.append(rank_map_chart(panels, _centre(cell), f"Ranks: {cell_label(cell)}", files))
    return [section]


def _courses(arm: pd.DataFrame) -> dict[int, Course]:
    """The course of every seed."""
    read = rows_of(arm, "seed", "folder", "steps", "places", "ranks_final")
    return {int(run["seed"]): whole_course(run) for run in read}


def _draw(arms: Mapping[str, pd.DataFrame], cell: pd.DataFrame, folder: Path) -> dict[Path, str]:
    """The pictures of a cell: its final ranks, and the course of every arm that moved any; with their titles."""
    label, stem, citation = cell_label(cell), cell_stem(cell), cell["citation"].iloc[0]
    maps = _joined({name: rank_map(arm) for name, arm in arms.items()})
    title = f"Final ranks: {label}" + _mean_over(map(len, arms.values()))
    files = {draw_rank_maps(maps, _centre(cell), folder / f"ranks_{file_name(stem)}", title, citation)[-1]: title}
    for name, arm in arms.items():
        if courses := courses_of(arm):
            path = folder / f"trajectories_{file_name([*stem, _arm_stem(name, arm)])}"
            title = f"Ranks of {name}: {label}"
            files[draw_trajectories(courses, path, title, citation)[-1]] = title
    return files


def rank_map(runs: pd.DataFrame) -> pd.DataFrame:
    """Final ranks averaged over the runs of an arm: (layers, matrix types); NaN for a type that a layer lacks."""
    ranks, matrices = patterns(runs)
    return layer_map(dict(zip(matrices, ranks.mean(axis=0), strict=True)), runs["places"].iloc[0])


def trajectory(run: Mapping[str, Any]) -> pd.DataFrame:
    """The ranks of one run, a row of `load_runs`, over its rounds.

    Returns:
        One row per step at which ranks changed (0 for the start, the last step repeats the end), columns
        (matrix type, layer); empty without stored rounds.
    """
    if (course := course_of(run)) is None:
        return pd.DataFrame()
    columns = pd.MultiIndex.from_tuples(course.matrices, names=["type", "layer"])
    table = pd.DataFrame(course.ranks, index=course.steps, columns=columns)
    return table[sorted(course.matrices, key=lambda matrix: (type_order(matrix[0]), matrix[1]))]


def draw_rank_maps(
    maps: Mapping[str, pd.DataFrame], centre: float, path: Path, title: str = "", data: str = ""
) -> list[Path]:
    """Heat maps side by side on one colour scale around the budget.

    Args:
        maps: from `rank_map`, by the panel's title.
        centre: the rank that is drawn white: the budget's mean rank.
    """
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
    for (y, x), rank in np.ndenumerate(ranks):
        if np.isnan(rank):
            continue
        text = f"{rank:.0f}" if float(rank).is_integer() else f"{rank:.1f}"
        dark = abs(rank - centre) > 0.55 * reach
        axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def draw_trajectories(courses: Mapping[str, pd.DataFrame], path: Path, title: str = "", data: str = "") -> list[Path]:
    """A panel per matrix type and course, a line per layer, as steps; courses by their row's title ("seed 0")."""
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
    """The courses to draw for one arm: of each seed whose ranks moved, or their mean for more than `MOST_SEEDS`."""
    frames = {f"seed {run['seed']}": trajectory(run) for run in runs.to_dict("records")}
    moved = {name: frame for name, frame in frames.items() if len(frame) and frame.nunique().max() > 1}
    if len(moved) <= MOST_SEEDS:
        return moved
    steps = sorted({step for frame in moved.values() for step in frame.index})
    filled = [frame.reindex(steps).ffill() for frame in moved.values()]
    return {f"mean of {len(filled)} seeds": sum(filled[1:], start=filled[0]) / len(filled)}


def _mean_over(seeds: Iterable[int]) -> str:
    """How many seeds the panels are means over; "" for one."""
    counts = sorted(set(seeds))
    if counts == [1]:
        return ""
    return f", mean over {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} seeds"


def _joined(maps: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Joins all arms that have the same one rank everywhere in one panel at the end."""
    moved = {name: ranks for name, ranks in maps.items() if ranks.stack().nunique() > 1}
    flat: dict[float, list[str]] = {}
    for name, ranks in maps.items():
        if name not in moved:
            flat.setdefault(float(ranks.stack().iloc[0]), []).append(name)
    return moved | {", ".join(names): maps[names[0]] for names in flat.values()}


def _arm_stem(name: str, arm: pd.DataFrame) -> str:
    """Part of a file name; the digest of their settings separates arms that share a name."""
    first = arm.iloc[0]
    plain = "-".join(part for part in (first["label"], first["variant"]) if part)
    return f"{plain}-{first['arm']}" if "[" in name else plain


def _centre(cell: pd.DataFrame) -> float:
    """The budget's mean rank; for a budget in parameters, the mean of the final ranks."""
    budget = str(cell["budget"].iloc[0])
    if budget != NO_BUDGET and budget[1:].isdigit():
        return float(budget[1:])
    return float(sum(cell["rank_sum_final"]) / sum(map(len, cell["ranks_final"])))
