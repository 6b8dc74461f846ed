"""Figures of sequences: accuracy and ranks as parts arrive, and the accuracy matrix of every arm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from analysis.output.figure import new_figure, save_figure, wrapped
from analysis.output.looks import Look
from analysis.stats.seeds import Array, summary

STYLES = ("--", ":")  # of the lines of joint runs
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6BB1")  # Okabe & Ito's
MARKERS = "osD^vPX*"  # of types of matrices, as the colours
ACROSS = 4  # panels side by side
BESIDE = 0.05  # of a part, between the error bars of two arms


def draw_accuracy(
    arms: Mapping[str, tuple[Look, Array]], lines: Mapping[str, float], path: Path, title: str, data: str
) -> list[Path]:
    """Draws the accuracy over all parts seen so far: means over seeds, with t intervals from 3 seeds on.

    Args:
        arms: name -> look, and accuracies, (seeds, parts).
        lines: name -> mean accuracy of runs on all parts at once.
    """
    figure = new_figure(7.6, 3.8 + 0.2 * max(0, len(arms) - 8))
    axis = figure.subplots()
    for place, (name, (look, seen)) in enumerate(arms.items()):
        at = np.arange(1, seen.shape[1] + 1) + BESIDE * (place - (len(arms) - 1) / 2)
        found = [summary(column) for column in seen.T]
        mean, low, high = np.array([(s.mean, s.low, s.high) for s in found]).T
        low, high = np.clip(low, 0, 100), np.clip(high, 0, 100)  # of points
        axis.errorbar(
            at, mean, yerr=None if np.isnan(low).any() else np.maximum(0.0, [mean - low, high - mean]),
            color=look.ink, linestyle=look.line, elinewidth=0.6,
            capsize=1.5, marker=look.marker, markersize=4, linewidth=1.4, label=wrapped(name, 28),
        )  # fmt: skip
    for number, (name, value) in enumerate(lines.items()):
        axis.axhline(value, color="0.3", linewidth=1.0, linestyle=STYLES[number % 2], label=wrapped(name, 28))
    axis.set_xlabel("parts seen")
    axis.set_ylabel("accuracy on all parts seen (points)")
    axis.set_xticks(np.arange(1, max(seen.shape[1] for _, seen in arms.values()) + 1))
    axis.set_ylim(0, 102)
    axis.grid(linewidth=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    remark = "Means over seeds, which also draw the order of the parts, with 95 % t intervals. "
    return save_figure(figure, path, title, data, remark)


def draw_matrices(arms: Mapping[str, Array], path: Path, title: str, data: str) -> list[Path]:
    """Draws the accuracy matrix of every arm, (parts, parts); a cell that was not read stays empty."""
    rows = math.ceil(len(arms) / ACROSS)
    across = min(len(arms), ACROSS)
    figure = new_figure(2.5 * across + 0.9, 2.6 * rows + 0.7)
    panels = figure.subplots(rows, across, squeeze=False).ravel()
    shown = None
    for panel, (name, matrix) in zip(panels, arms.items(), strict=False):
        shown = panel.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
        for (t, j), value in np.ndenumerate(matrix):
            if not math.isnan(value) and len(matrix) <= 10:
                panel.text(j, t, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if value < 60 else "k")
        panel.set_title(wrapped(name, 26), fontsize=9)
        ticks = range(len(matrix)) if len(matrix) <= 10 else range(0, len(matrix), 5)
        panel.set_xticks(ticks, [str(t + 1) for t in ticks])
        panel.set_yticks(ticks, [str(t + 1) for t in ticks])
        panel.set_xlabel("read on part", fontsize=8)
        panel.set_ylabel("after part", fontsize=8)
    for panel in panels[len(arms) :]:
        panel.set_visible(False)
    if shown is not None:
        figure.colorbar(shown, ax=list(panels), label="accuracy (points)", shrink=0.8)
    return save_figure(figure, path, title, data, "Means over seeds. ")


def draw_ranks(arms: Mapping[str, Mapping[str, list[float]]], path: Path, title: str, data: str) -> list[Path]:
    """Draws the mean rank of the matrices of each type while each part trains, a panel for each arm."""
    rows, across = math.ceil(len(arms) / ACROSS), min(len(arms), ACROSS)
    figure = new_figure(2.5 * across + 1.6, 2.4 * rows + 0.7)
    panels = figure.subplots(rows, across, squeeze=False).ravel()
    kinds = list(dict.fromkeys(kind for curves in arms.values() for kind in curves))
    handles = {}
    for panel, (name, curves) in zip(panels, arms.items(), strict=False):
        for kind, curve in curves.items():
            at = range(1, len(curve) + 1)
            number = kinds.index(kind) % len(COLOURS)
            handles[kind] = panel.plot(
                at, curve, color=COLOURS[number], marker=MARKERS[number], markersize=3.5, linewidth=1.2
            )[0]
        panel.set_title(wrapped(name, 26), fontsize=9)
        panel.set_xticks(list(at))
        panel.set_xlabel("part", fontsize=8)
        panel.set_ylim(0, 1.1 * max(map(max, curves.values())))
        panel.set_ylabel("mean rank", fontsize=8)
        panel.grid(linewidth=0.3)
    for panel in panels[len(arms) :]:
        panel.set_visible(False)
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=8)
    return save_figure(figure, path, title, data, "Means over seeds, in the last step of each part. ")
