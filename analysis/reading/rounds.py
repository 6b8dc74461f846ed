"""What one run wrote beside its result: ranks by round, predictions by item, contributions by matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.reading.result_row import reason
from analysis.reading.runs import rows_of
from elalora.errors import UserError
from experiments.contribution import FILE, READABLE
from experiments.runtime.text import clean_tree
from experiments.store.foreign import DAMAGE, read_json, read_table, read_text

if TYPE_CHECKING:
    import pandas as pd

    from analysis.stats.seeds import Array

Round = TypeVar("Round")
MEASURES = {"loss": "rises", "calibrated loss": "calibrated_rises", "score": "score_falls"}  # of a contribution
RUN_AGAIN = "delete its folder and run it again"


def load_rounds(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rounds of one run, from ranks.jsonl; the first has step -1 and holds the ranks at the start.

    Returns:
        Dicts with step, ranks, pruned, grown, scores and notes; no dict for a method without ranks. A last line
        that was only half written is dropped.

    Raises:
        UserError: a line in the middle is damaged.
    """
    empty: dict[str, Any] = {"pruned": [], "grown": [], "scores": {}, "notes": {}}

    def whole(entry: dict[str, Any]) -> dict[str, Any]:
        entry = clean_tree(entry)
        return empty | entry | {"step": int(entry["step"]), "ranks": _ranks(entry)}

    return _rounds(run_dir, whole)


def load_ranks(run_dir: str | Path) -> list[tuple[int, dict[str, int]]]:
    """Step and ranks of every round, as `load_rounds` gives them, in half of its time."""
    return _rounds(run_dir, lambda entry: (int(entry["step"]), _ranks({"ranks": clean_tree(entry["ranks"])})))


def _ranks(entry: Mapping[str, Any]) -> dict[str, int]:
    return {str(name): int(rank) for name, rank in entry["ranks"].items()}


def _rounds(run_dir: str | Path, read: Callable[[dict[str, Any]], Round]) -> list[Round]:
    """What `read` makes of every line of ranks.jsonl; raises as `load_rounds`."""
    path = Path(run_dir) / "ranks.jsonl"
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); {RUN_AGAIN}") from error
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            rounds.append(read(json.loads(line)))
        except DAMAGE as error:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is damaged ({reason(error)}); {RUN_AGAIN}") from error
    return rounds


def load_predictions(run_dir: str | Path) -> pd.DataFrame:
    """Items of the reported split: idx, label, prediction, score, ordered by idx.

    Raises:
        UserError: the file is missing or has other columns.
    """
    import pyarrow

    path = Path(run_dir) / "predictions.parquet"
    try:
        return read_table(path, ["idx", "label", "prediction", "score"]).to_pandas(use_threads=False).sort_values("idx")
    except (*DAMAGE, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); {RUN_AGAIN}") from error


def patterns(runs: pd.DataFrame, which: str = "final") -> tuple[Array, list[str]]:
    """Rank patterns of the runs of one arm, (seeds, matrices), and the matrices' names.

    Args:
        runs: rows of `load_runs` with the same matrices.
        which: "final" or "initial".

    Raises:
        ValueError: the runs adapt different matrices.
    """
    import numpy as np

    columns = list(runs[f"ranks_{which}"])
    places = runs["places"].iloc[0]
    order = sorted(columns[0], key=lambda name: tuple(places[name]))
    if any(set(ranks) != set(order) for ranks in columns):
        raise ValueError("these runs adapt different matrices; compare runs of one model and one set of targets")
    return np.array([[ranks[name] for name in order] for ranks in columns], dtype=np.float64), order


def shares_of_types(ranks: Mapping[str, float], kinds: Mapping[str, str]) -> dict[str, float]:
    """Mean rank of each matrix type over the mean rank of all: 1 is an even share, comparable between models."""
    overall = sum(ranks.values()) / len(ranks)
    members: dict[str, list[float]] = {}
    for name, rank in ranks.items():
        members.setdefault(kinds[name], []).append(rank)
    return {kind: sum(values) / len(values) / overall for kind, values in members.items()} if overall else {}


def events(rounds: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """What was pruned and grown when.

    Args:
        rounds: of one run, from `load_rounds`.

    Returns:
        One row per round and matrix that lost or gained directions: step, matrix, pruned, grown, and
        net = grown - pruned. A net of 0 is a matrix whose directions were replaced.
    """
    import pandas as pd

    rows = []
    for line in rounds:
        lost: dict[str, int] = {}
        gained: dict[str, int] = {}
        for name, _ in line["pruned"]:
            lost[name] = lost.get(name, 0) + 1
        for name in line["grown"]:
            gained[name] = gained.get(name, 0) + 1
        for name in dict.fromkeys([*lost, *gained]):
            pruned, grown = lost.get(name, 0), gained.get(name, 0)
            rows.append((int(line["step"]), name, pruned, grown, grown - pruned))
    return pd.DataFrame(rows, columns=["step", "matrix", "pruned", "grown", "net"])


def scores(rounds: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Importance of every direction before each round: step, matrix, slot, score; empty where none were stored."""
    import pandas as pd

    rows = [
        (int(line["step"]), name, slot, float(score))
        for line in rounds
        for name, values in line["scores"].items()
        for slot, score in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["step", "matrix", "slot", "score"])


@lru_cache(maxsize=10_000)
def _contributions(path: Path, changed: int, size: int) -> dict[str, Any]:
    """A file in the state of this time and size, read once for all measures and pairs of arms."""
    whole: dict[str, Any] = clean_tree(read_json(path))
    return whole


def load_contributions(run_dir: str | Path, measure: str = "loss") -> dict[str, float] | None:
    """Contribution of every matrix of a run, None where it was not measured.

    Args:
        run_dir: the run's folder.
        measure: a name of `MEASURES`.

    Raises:
        UserError: the file is damaged or of another schema.
    """
    path = Path(run_dir) / FILE
    try:
        state = path.stat()
        stored = _contributions(path, state.st_mtime_ns, state.st_size)
        if stored["schema"] not in READABLE:
            raise ValueError(f"it has schema {stored['schema']}, this version reads {' and '.join(map(str, READABLE))}")
        if measure != "loss" and MEASURES[measure] not in stored:
            return None
        rises = {str(name): float(rise) for name, rise in stored[MEASURES[measure]].items()}
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); type: python -m experiments.contribution {run_dir}"
        ) from error
    if not all(math.isfinite(rise) for rise in rises.values()):
        raise UserError(f"{path} holds a number that is not finite; delete it and measure again")
    return rises


def paired(
    runs: pd.DataFrame, measured: pd.DataFrame, measure: str = "loss"
) -> tuple[Array, Array, list[str], list[int]]:
    """Ranks of one arm and contributions of another (or the same), for the seeds that have both.

    Args:
        runs: rows of the arm whose final ranks are taken.
        measured: rows of the arm whose contributions are taken.
        measure: a name of `MEASURES`.

    Returns:
        Ranks and contributions (seeds, matrices), matrices, seeds; no rows where no seed has both.
    """
    import numpy as np

    rises = {
        int(run["seed"]): load_contributions(run["folder"], measure) for run in rows_of(measured, "seed", "folder")
    }
    rows = [
        (run, rise)
        for run in sorted(rows_of(runs, "seed", "ranks_final", "places"), key=itemgetter("seed"))
        if (rise := rises.get(int(run["seed"]))) and set(rise) == set(run["ranks_final"])
    ]
    if not rows:
        return np.empty((0, 0)), np.empty((0, 0)), [], []
    matrices = sorted(rows[0][1], key=lambda name: tuple(rows[0][0]["places"][name]))
    ranks = np.array([[run["ranks_final"][name] for name in matrices] for run, _ in rows], dtype=np.float64)
    contributions = np.array([[rise[name] for name in matrices] for _, rise in rows], dtype=np.float64)
    return ranks, contributions, matrices, [int(run["seed"]) for run, _ in rows]
