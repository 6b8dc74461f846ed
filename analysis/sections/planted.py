"""Do methods find the ranks that a task was made for? Final ranks against those of a planted teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.figure import file_name
from analysis.output.section import Section
from analysis.output.table import Table, mean_sd, signed_range
from analysis.reading.arms import CELL
from analysis.reading.rounds import patterns
from analysis.reading.stored import Stored
from analysis.sections.arms import cell_label, cell_stem
from analysis.stats.rank_agreement import tau_matrix
from analysis.stats.seeds import Array, summary
from elalora.layouts import read_rule, weights_of
from elalora.shares import largest_remainder


def sections(stored: Stored, folder: Path | None) -> list[Section]:
    """The agreement with the teacher's ranks, for every cell of a task with `task.teacher`."""
    parts = []
    for _, cell in stored.runs.groupby(CELL, sort=False):
        if table := planted_table(cell):
            parts.append(
                Section(f"Planted ranks: {cell_label(cell)}", {f"planted_{file_name(cell_stem(cell))}": table})
            )
    return parts


def planted_table(cell: pd.DataFrame) -> Table | None:
    """Score, tau-b with the teacher's ranks, and share of the ranks where the teacher has its own, of every arm."""
    rows, records = [], []
    for name, arm in cell.groupby("shown", sort=True):
        teacher = (arm.iloc[0]["settings"].get("task") or {}).get("teacher")
        if not (teacher and teacher["pattern"]) or not arm.iloc[0]["ranks_final"]:
            continue
        x, order = patterns(arm)
        planted = teacher_ranks(teacher, order)
        taus, shares = tau_matrix(x, planted[None])[:, 0], x[:, planted > 0].sum(1) / x.sum(1)
        score = summary(arm["score"])
        # a tau is not defined where every matrix has one rank
        measured = [None if np.isnan(values).any() else summary(values) for values in (taus, shares)]
        texts = ["" if s is None else f"{s.mean:.2f}{signed_range(s.low, s.high)}" for s in measured]
        rows.append([str(name), str(len(x)), mean_sd(score.mean, score.sd), *texts])
        numbers = [(np.nan,) * 3 if s is None else (s.mean, s.low, s.high) for s in measured]
        records.append((cell_label(cell), name, len(x), score.mean, *numbers[0], *numbers[1]))
    if not rows:
        return None
    measures = [f"{what}{part}" for what in ("tau", "share") for part in ("", "_low", "_high")]
    frame = pd.DataFrame(records, columns=["where", "arm", "seeds", "score", *measures])
    columns = ["Method", "Seeds", "Score", "tau-b with the teacher", "Share of its ranks in the teacher's matrices"]
    even = float((planted > 0).mean())
    notes = [
        "The teacher's ranks are those of its planted update (task.teacher). tau-b is corrected for ties, and empty "
        "where every matrix has one rank. Means over seeds with a 95 % t interval, from 3 seeds on.",
        f"Ranks spread evenly have a share of {even:.2f} in the teacher's matrices.",
    ]
    return Table(f"Ranks against those of the planted teacher: {cell_label(cell)}", columns, rows, notes, frame)


def teacher_ranks(teacher: dict[str, Any], names: list[str]) -> Array:
    """The teacher's rank in every matrix, (matrices,).

    Args:
        teacher: pattern and rank of `task.teacher`.
        names: the adapted matrices, in the order of the result.
    """
    weights = weights_of(read_rule(teacher["pattern"]), names)
    ranks = largest_remainder([weights[name] for name in names], int(teacher["rank"]) * len(names), least=0)
    return np.array(ranks, dtype=float)
