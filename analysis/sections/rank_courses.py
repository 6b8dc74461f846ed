"""The course of a run's ranks over its rounds, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from analysis.reading.rounds import load_ranks
from analysis.sections.matrix_types import layers_and_types
from analysis.stats.seeds import Array


class Course(NamedTuple):
    """Ranks of one run.

    Attributes:
        steps: at which ranks changed; 0 is the start, and the last step repeats the end.
        matrices: (type, layer) of each.
        ranks: (steps, matrices); NaN for a matrix that a round lacks.
    """

    steps: list[int]
    matrices: list[tuple[str, int]]
    ranks: Array


def course_of(run: Mapping[str, Any]) -> Course | None:
    """The course of a row of `load_runs`; None for a run without stored rounds."""
    if not (rounds := load_ranks(run["folder"])):
        return None
    lines = {max(0, step): ranks for step, ranks in rounds}
    lines[max(run["steps"], *lines)] = list(lines.values())[-1]
    places = layers_and_types(run["places"])
    names = [name for name in dict.fromkeys(chain(*lines.values())) if name in places]
    table = [[ranks.get(name, np.nan) for name in names] for ranks in lines.values()]
    return Course(list(lines), [places[name][::-1] for name in names], np.array(table, dtype=np.float64))


def whole_course(run: Mapping[str, Any]) -> Course:
    """As `course_of`; the final ranks alone of a run without stored rounds."""
    if (course := course_of(run)) is not None:
        return course
    places, ranks = layers_and_types(run["places"]), run["ranks_final"]
    return Course([run["steps"]], [places[name][::-1] for name in ranks], np.array([list(ranks.values())], np.float64))


def filled(course: Course, steps: Sequence[int], matrices: Sequence[tuple[str, int]]) -> Array:
    """The ranks at other steps, which include its own: those of the last round before, or of the first one."""
    column = {matrix: place for place, matrix in enumerate(matrices)}
    kept = [place for place, matrix in enumerate(course.matrices) if matrix in column]
    ranks = np.full((len(steps), len(matrices)), np.nan)
    rows, columns = np.searchsorted(steps, course.steps), [column[course.matrices[place]] for place in kept]
    ranks[rows[:, None], columns] = course.ranks[:, kept]
    return _forward(_forward(ranks)[::-1])[::-1]


def _forward(x: Array) -> Array:
    """Gaps (NaN) take the value above them."""
    known = np.where(np.isnan(x), 0, np.arange(len(x))[:, None])
    return np.take_along_axis(x, np.maximum.accumulate(known, axis=0), axis=0)
