"""Do the matrices that carry more get more ranks? Contributions (`experiments.contribution`) against ranks.

What is unusual: both patterns are alike in all seeds, so ten seeds of 36 matrices are not 360 independent points. A
permutation moves the matrices of all seeds together, and a bootstrap draws matrices with all their seeds. The seed is
the sample only where two arms are paired by it. "Within types" compares a matrix with others of its type only: types
differ in size, and a rank in a large matrix is another thing than in a small one.

Arrays are (seeds, matrices).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from analysis.ranks import groups_of, pattern_array
from analysis.statistics import Array, holm, sign_flip, t_interval
from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
FILE = "contributions.json"


class Relation(NamedTuple):
    """Spearman's correlation of contribution and rank, mean over seeds.

    Attributes:
        rho: the correlation; NaN where ranks or contributions are the same everywhere.
        low, high: 95 % percentile bootstrap interval over matrices.
        p: two-sided permutation p.
    """

    rho: float
    low: float
    high: float
    p: float


def spearman(ranks: ArrayLike, rises: ArrayLike, strata: Sequence[Any] | None = None) -> Array:
    """Spearman's correlation of every seed, (seeds,).

    Args:
        ranks, rises: (seeds, matrices).
        strata: the type of every matrix; mid-ranks are then taken, and centred, within each type.
    """
    x, y = pattern_array(ranks), pattern_array(rises)
    if x.shape != y.shape:
        raise ValueError(f"ranks {x.shape} and contributions {y.shape} are not of the same runs and matrices")
    return _correlation(x, y, groups_of(strata, x.shape[1]))


def _correlation(x: Array, y: Array, groups: Sequence[NDArray[np.int64]]) -> Array:
    a, b = _centred(x, groups), _centred(y, groups)
    length = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=-1) / np.where(length > 0, length, np.nan)


def _centred(x: Array, groups: Sequence[NDArray[np.int64]]) -> Array:
    """Mid-ranks within each group less their mean."""
    from scipy import stats

    out = np.empty_like(x)
    for members in groups:
        out[..., members] = stats.rankdata(x[..., members], axis=-1) - (len(members) + 1) / 2
    return out


def relation(
    ranks: ArrayLike, rises: ArrayLike, rng: Generator, strata: Sequence[Any] | None = None, resamples: int = 1_999
) -> Relation:
    """How contribution and rank go together, with interval and test.

    Args:
        ranks: (seeds, matrices), of the arm whose ranks are in question.
        rises: (seeds, matrices), contributions of the same seeds, of the same arm or of another.
        rng: draws resamples and permutations.
        strata: the type of every matrix: correlation, resamples and permutations then stay within types.
        resamples: of the bootstrap and of the permutation test.
    """
    x, y = pattern_array(ranks), pattern_array(rises)
    groups = groups_of(strata, x.shape[1])
    rho = _mean(spearman(x, y, strata))
    if math.isnan(rho):
        return Relation(math.nan, math.nan, math.nan, math.nan)
    drawn, extreme = [], 0
    a, b = _centred(x, groups), _centred(y, groups)
    length = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    for _ in range(resamples):
        taken = np.concatenate([rng.choice(members, len(members)) for members in groups])
        places = _places(groups)
        drawn.append(_mean(_correlation(x[:, taken], y[:, taken], places)))
        order = np.arange(x.shape[1])
        for members in groups:
            order[members] = rng.permutation(members)
        with np.errstate(invalid="ignore", divide="ignore"):
            shuffled = _mean((a[:, order] * b).sum(axis=1) / np.where(length > 0, length, np.nan))
        extreme += abs(shuffled) >= abs(rho) - 1e-12
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Relation(rho, float(low), float(high), (1 + extreme) / (1 + resamples))


def _places(groups: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Where the groups stand once they are joined one after the other."""
    ends = np.cumsum([len(members) for members in groups])
    return [np.arange(end - len(members), end) for end, members in zip(ends, groups, strict=True)]


def _mean(values: Array) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


# -- from the run store ------------------------------------------------------------------------------------


def load_contributions(run_dir: str | Path) -> dict[str, float] | None:
    """Contribution of every matrix of a run, None where it was not measured.

    Raises:
        UserError: the file is damaged or of another schema.
    """
    path = Path(run_dir) / FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["schema"] != SCHEMA:
            raise ValueError(f"it has schema {stored['schema']}, this version reads {SCHEMA}")
        rises = {str(name): float(rise) for name, rise in stored["rises"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} cannot be read ({line}); type: python -m experiments.contribution {run_dir}"
        ) from error
    if not all(math.isfinite(rise) for rise in rises.values()):
        raise UserError(f"{path} holds a number that is not finite; delete it and measure again")
    return rises


def paired(runs: pd.DataFrame, measured: pd.DataFrame) -> tuple[Array, Array, list[str], list[int]]:
    """Ranks of one arm and contributions of another (or the same), for the seeds that have both.

    Args:
        runs: rows of the arm whose final ranks are taken.
        measured: rows of the arm whose contributions are taken.

    Returns:
        Ranks and contributions (seeds, matrices), matrices, seeds; no rows where no seed has both.
    """
    rises = {int(run["seed"]): load_contributions(run["folder"]) for run in measured.to_dict("records")}
    rows = [
        (run, rise)
        for run in runs.sort_values("seed").to_dict("records")
        if (rise := rises.get(int(run["seed"]))) and set(rise) == set(run["ranks_final"])
    ]
    if not rows:
        return np.empty((0, 0)), np.empty((0, 0)), [], []
    matrices = sorted(rows[0][1], key=lambda name: tuple(rows[0][0]["places"][name]))
    ranks = np.array([[run["ranks_final"][name] for name in matrices] for run, _ in rows], dtype=np.float64)
    found = np.array([[rise[name] for name in matrices] for _, rise in rows], dtype=np.float64)
    return ranks, found, matrices, [int(run["seed"]) for run, _ in rows]


# -- does the layout itself help? --------------------------------------------------------------------------


class Step(NamedTuple):
    """A paired difference in points, with its 95 % t interval (NaN below 3 seeds), exact p and Holm's p."""

    name: str
    meaning: str
    seeds: int
    mean: float
    low: float
    high: float
    p: float
    corrected: float


STEPS = (  # (name, arm, less this arm, what the difference is)
    ("whole", "elalora", "svd_lora", "moving ranks: layout and the way there together"),
    ("layout", "transplant", "svd_lora", "ElaLoRA's final layout, trained from scratch"),
    ("place", "transplant", "shuffled", "which layers of a type have the ranks, not how many the type has"),
    ("dynamics", "elalora", "transplant", "the way there, at the same final layout"),
)


def arm_of(settings: dict[str, Any]) -> str | None:
    """elalora, svd_lora, transplant or shuffled; None for a run that is none of them."""
    method = settings.get("method", {})
    if method.get("name") == "elalora":
        return "elalora" if method.get("variant", "paper") == "paper" and not _side_effects(method) else None
    if method.get("name") != "svd_lora" or _side_effects(method):
        return None
    return "svd_lora" if not method.get("ranks_from") else "shuffled" if method.get("shuffle") else "transplant"


def _side_effects(method: dict[str, Any]) -> bool:
    switched = any(method.get(name) for name in ("D1", "D2", "D8", "D12", "D15")) or method.get("D4") not in (
        None,
        "off",
    )
    chosen_at_random = "random" in (method.get("importance"), method.get("expansion"))
    return switched or chosen_at_random


def transplant(runs: pd.DataFrame) -> list[Step]:
    """What the transplant control says, paired by seed (and task, where there are several: their mean).

    Args:
        runs: of one model, budget, protocol and recipe.

    Returns:
        One step for each pair of arms with two common seeds or more; p corrected over the steps that are there. Empty
        where several arms would stand for one, as with two learning rates: choose one by filters.
    """
    arms = runs.assign(arm_name=[arm_of(s) for s in runs["settings"]])
    arms = arms[arms["arm_name"].notna()]
    if arms.duplicated(["arm_name", "task", "seed"]).any():
        return []
    wide = arms.pivot(index="seed", columns=["arm_name", "task"], values="score")
    found = []
    for name, arm, less, meaning in STEPS:
        if arm not in wide.columns.get_level_values(0) or less not in wide.columns.get_level_values(0):
            continue
        x = (wide[arm] - wide[less]).dropna(axis=1, how="all").dropna().mean(axis=1).to_numpy(float)
        if len(x) >= 2:
            low, high = t_interval(x) if len(x) >= 3 else (math.nan, math.nan)
            p = sign_flip(x, np.random.default_rng(0))
            found.append(Step(name, meaning, len(x), float(x.mean()), low, high, p, math.nan))
    if not found:
        return []
    return [step._replace(corrected=float(p)) for step, p in zip(found, holm([s.p for s in found]), strict=True)]
