"""The rank study's figures: which are drawn, and the frames behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.output.figure import file_name
from analysis.reading.rounds import MEASURES, events, load_rounds, paired, patterns, scores
from analysis.reading.settings import cell_of
from analysis.sections.matrix_types import layer_map, layers_and_types, type_order, types_of
from analysis.sections.rank_study_figures import (
    draw_agreement,
    draw_events,
    draw_relation,
    draw_rounds,
    draw_scores,
    draw_spreads,
)  # fmt: skip
from analysis.sections.transplant import arm_of
from analysis.stats.rank_agreement import mean_tau, mean_tau_between
from analysis.stats.seeds import Array

MOST_ROUNDS = 8  # panels of the small multiples


class Contribution(NamedTuple):
    """Ranks of one arm and contributions of matrices in the same or another arm, of the seeds that have both.

    Attributes:
        ranks_of, measured_in: names of the arms.
        measure: a name of `MEASURES`.
        ranks, rises: (seeds, matrices).
        types: of the matrices.
    """

    ranks_of: str
    measured_in: str
    measure: str
    ranks: Array
    rises: Array
    types: list[str]


def figures(
    chosen: Mapping[str, pd.DataFrame], measured: Sequence[Contribution], out: Path, stem: str, label: str, data: str
) -> dict[Path, str]:
    """Draws spread over seeds, agreement, rounds, moves, scores and contribution, each if the runs have it.

    Arms with the side effects D1 or D2 have no figures of rounds and moves.

    Args:
        chosen: runs by arm, of the arms that chose their ranks themselves.
        measured: from `contributions`.
        out: folder for the files.
        stem: part of every file's name.
        label: of the cell, for titles.
        data: source of the data.

    Returns:
        Captions by the path of the .svg; a .png stands beside it.
    """
    drawn: dict[Path, str] = {}

    def draw(function: Callable[..., list[Path]], kind: str, title: str, *frames: Any, of: str = "") -> None:
        path = out / f"{kind}_{file_name([stem, of])}"
        drawn[function(*frames, path, title, data)[-1]] = title

    moved = {name: arm for name, arm in chosen.items() if varies(patterns(arm)[0])}
    spread = {name: spread_map(arm) for name, arm in moved.items() if len(arm) > 1}
    if spread:
        draw(draw_spreads, "spread", f"Spread of final ranks over seeds: {label}", spread)
    if len(moved) > 1 or spread:
        draw(draw_agreement, "agreement", f"Agreement of final ranks: {label}", agreement(moved))
    distributions = {}
    for name, arm in moved.items():
        rounds = [load_rounds(folder) for folder in arm["folder"]]
        if max(map(len, rounds)) < 2 or any((cell_of(arm.iloc[0]["settings"]) or (0,))[1:]):
            continue
        title = f"{name}: {label}" + (f", mean over {len(arm)} seeds" if len(arm) > 1 else "")
        maps = maps_of_rounds(arm, rounds)
        centre = float(np.nanmean(next(iter(maps.values())).to_numpy(float)))
        draw(draw_rounds, "rounds", f"Ranks of {title}", maps, centre, of=name)
        net, replaced = moves(arm, rounds)
        if len(net):
            draw(draw_events, "moves", f"Moves of {title}", net, replaced, of=name)
        if frames := [frame for one in rounds if len(frame := scores(one))]:
            distributions[name] = pd.concat(frames)
    if distributions:
        draw(draw_scores, "scores", f"Scores before each round: {label}", distributions)
    if len(points := contribution_points(measured)):
        draw(draw_relation, "contribution", f"Rank against contribution: {label}", points)
    return drawn


def spread_map(arm: pd.DataFrame) -> pd.DataFrame:
    """Standard deviation (ddof 1) of the final ranks over seeds, (layers, matrix types)."""
    x, order = patterns(arm)
    return layer_map(dict(zip(order, x.std(axis=0, ddof=1), strict=True)), arm.iloc[0]["places"])


def agreement(arms: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean tau-b within arms (of different seeds) and between arms, (arms, arms); NaN for one seed."""
    table = pd.DataFrame(math.nan, index=list(arms), columns=list(arms))
    for one, first in arms.items():
        for two, second in arms.items():
            x, y = patterns(first)[0], patterns(second)[0]
            if one != two:
                table.loc[one, two] = mean_tau_between(x, y).value
            elif len(x) > 1:
                table.loc[one, two] = mean_tau(x).value
    return table


def maps_of_rounds(arm: pd.DataFrame, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, pd.DataFrame]:
    """Mean ranks over seeds at the start and after up to `MOST_ROUNDS` - 1 rounds, by panel title."""
    steps = sorted({line["step"] for one in rounds for line in one})
    if len(steps) > MOST_ROUNDS:
        steps = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, MOST_ROUNDS)]
    places, maps = arm.iloc[0]["places"], {}
    for step in steps:
        at_step = [[line["ranks"] for line in one if line["step"] <= step][-1] for one in rounds if one]
        mean = {name: sum(ranks[name] for ranks in at_step) / len(at_step) for name in places}
        maps["start" if step < 0 else f"after step {step}"] = layer_map(mean, places)
    return maps


def moves(arm: pd.DataFrame, rounds: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Directions gained less lost and replaced in place, (matrices that moved, steps), mean over seeds."""
    short = layers_and_types(arm.iloc[0]["places"])
    moved = pd.concat([events(one) for one in rounds])
    moved["replaced"] = np.minimum(moved["pruned"], moved["grown"])
    order = sorted(set(moved["matrix"]), key=lambda n: (type_order(short[n][1]), short[n][0]))
    steps = sorted(set(moved["step"]))
    wide = moved.pivot_table(index="matrix", columns="step", values=["net", "replaced"], aggfunc="sum", fill_value=0)
    net, replaced = (wide[part].reindex(index=order, columns=steps) / len(rounds) for part in ("net", "replaced"))
    for frame in (net, replaced):
        frame.index = pd.Index([f"{short[name][1]} {short[name][0]}" for name in order])
    return net, replaced


def contributions(arms: Mapping[str, pd.DataFrame]) -> list[Contribution]:
    """Each arm with itself, and ElaLoRA's ranks with the contributions in the fixed-rank adapter, on every measure."""
    kinds = {name: arm_of(arm.iloc[0]["settings"]) for name, arm in arms.items()}
    pairs = [(name, name) for name in arms]
    for name in arms:
        if kinds[name] == "elalora":
            pairs += [(name, other) for other in arms if kinds[other] == "svd_lora"]
    measured = []
    for measure, (ranks_of, measured_in) in product(MEASURES, pairs):
        ranks, rises, matrices, seeds = paired(arms[ranks_of], arms[measured_in], measure)
        if seeds and varies(ranks):
            types = types_of(matrices, arms[ranks_of].iloc[0]["places"])
            measured.append(Contribution(ranks_of, measured_in, measure, ranks, rises, types))
    return measured


def contribution_points(measured: Sequence[Contribution]) -> pd.DataFrame:
    """Mean rank and mean contribution of every matrix."""
    rows = []
    for c in measured:
        own = c.ranks_of == c.measured_in
        other = f"ranks of {c.ranks_of}, contributions in {c.measured_in}"
        panel = f"{c.ranks_of}, own contributions" if own else other
        means = zip(c.types, c.ranks.mean(axis=0), c.rises.mean(axis=0), strict=True)
        rows += [(c.measure, panel, *line) for line in means]
    return pd.DataFrame(rows, columns=["measure", "panel", "type", "rank", "rise"])


def varies(ranks: Array) -> bool:
    """Whether any seed has more than one rank."""
    return bool((np.ptp(ranks, axis=1) > 0).any())
