"""Which arms may be compared, in which order they stand, and the notes that several tables share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.reading.arms import NAMES, short_recipe
from analysis.reading.result_row import NO_BUDGET
from analysis.reading.settings import differing
from experiments.data.vtab import LOSSY

if TYPE_CHECKING:
    import pandas as pd

TUNED = ("trainer.lr", "trainer.weight_decay")  # may differ between arms that are compared
SESSION = 2 * 3600.0  # seconds without a run that separate two sessions
LEAST_FOR_INTERVAL = 3  # seeds
PARAMETER_TOLERANCE = 0.01  # relative difference in parameters up to which arms count as equally large
PROTOCOL_MEANING = {
    "clean": "hyper-parameters and checkpoint chosen on data that is not reported",
    "paper_last": "trained on all of train, last checkpoint, one named split for all arms",
    "paper_best": "best evaluation on the reported split itself, hence optimistic",
}
PAPER_BEST_READ_LAST = (
    "as paper_last; evaluated on the reported split itself, but the last checkpoint is shown, not the best"
)
AT_ONCE = (
    "(… at once): the largest piece of an update that is a sum of pieces, and the parameters that train in it; the "
    "numbers before it are of all pieces together."
)
RECONSTRUCTED = "† reconstructed, not checked against its authors' code or its paper in full (docs/methods.md)."


def method_order(method: str) -> int:
    """Position of a method in tables: LoRA first, then as in `NAMES`, unknown methods last."""
    return -1 if method == "lora" else list(NAMES).index(method) if method in NAMES else len(NAMES)


def by_method(cell: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Names and runs of the arms of a cell, in the order of methods in tables."""
    arms = [(str(name), arm) for name, arm in cell.groupby("shown")]
    return sorted(arms, key=lambda item: (method_order(item[1]["method"].iloc[0]), item[0]))


def budget_order(budget: str) -> tuple[int, str]:
    """Sort key of a budget: its number, then its name."""
    return int("".join(filter(str.isdigit, budget)) or 0), budget


def named_across_tasks(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with the names and recipes of arms that are the same on every task."""
    return runs.assign(shown=runs["row_name"], recipe=[short_recipe(recipe) for recipe in runs["recipe"]])


def cell_label(cell: pd.DataFrame) -> str:
    """Task, model, budget and protocol that the runs of a cell share."""
    first = cell.iloc[0]
    parts = [first["task"], first["model"], *([first["budget"]] if first["budget"] != NO_BUDGET else [])]
    return ", ".join([*parts, first["protocol"]])


def cell_stem(cell: pd.DataFrame) -> list[str]:
    """Parts of a file name for a cell."""
    return [cell[key].iloc[0] for key in ("task", "model", "budget", "protocol", "recipe")]


def matching_baselines(arm: pd.DataFrame, baselines: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The baseline arms with the arm's data and training; if there are none, those that differ only in `TUNED`."""
    same = [base for base in baselines if base["fingerprint"].iloc[0] == arm["fingerprint"].iloc[0]]
    unlike = [set(training_differences([arm["settings"].iloc[0], base["settings"].iloc[0]])) for base in same]
    exact = [base for base, keys in zip(same, unlike, strict=True) if not keys]
    return exact or [base for base, keys in zip(same, unlike, strict=True) if keys <= set(TUNED)]


def training_differences(settings: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Settings in which compared runs differ, apart from the method and its budget: dotted keys and their values."""
    return differing(map(_without_method, settings))


def _without_method(settings: dict[str, Any]) -> dict[str, Any]:
    numerics = settings.get("numerics")
    rest = {k: v for k, v in settings.items() if k not in ("method", "budget", "numerics")}
    return rest | {"numerics": numerics.get("trainer") if isinstance(numerics, dict) else numerics}


def place_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What runs must share to be compared: every setting but the method, its budget and what is tuned."""
    rest = _without_method(settings)
    tuned = {key.rpartition(".")[2] for key in TUNED}
    return rest | {"trainer": {k: v for k, v in rest.get("trainer", {}).items() if k not in tuned}}


def listed(differences: dict[str, list[str]]) -> str:
    """trainer.lr: 0.001, 0.01; seed: 1, 2."""
    return "; ".join(f"{key}: {', '.join(values)}" for key, values in differences.items())


def cell_notes(cell: pd.DataFrame) -> list[str]:
    """Images that lost something, and the versions, commits and machines in which runs of one cell differ."""
    label, notes, manifests = cell_label(cell), [], list(cell["manifest"])
    if lossy := sum(LOSSY in flags for flags in cell["flags"]):
        notes.append(
            f"{label}: {lossy} of {len(cell)} runs read JPEG copies of images that were published without loss."
        )
    if unlike := differing({**m, "commit": (m.get("commit") or "unknown")[:10], "dirty": None} for m in manifests):
        short = {key: [value[:24] for value in values] for key, values in unlike.items()}
        notes.append(f"{label}: the runs differ in {listed(short)}.")
    if dirty := sum(bool(m.get("dirty")) for m in manifests):
        notes.append(f"{label}: {dirty} of {len(manifests)} runs came from a checkout with uncommitted changes.")
    return notes


def timed_apart(cell: pd.DataFrame) -> bool:
    """Whether the arms of a cell were timed in different sessions, so that their times do not compare.

    A session ends where no run started within `SESSION` seconds after the end of all runs before. Runs without a start
    in their manifest say nothing.
    """
    timed = cell.dropna(subset="started").sort_values("started")
    ends = (timed["started"] + timed["train_seconds"].fillna(0.0)).cummax().shift()
    number = (timed["started"] > ends + SESSION).cumsum()
    return len({tuple(sorted(set(sessions))) for _, sessions in number.groupby(timed["arm"])}) > 1


def protocol_notes(runs: pd.DataFrame) -> list[str]:
    """A line per protocol; the line on paper_best depends on the checkpoint that was read."""
    last = {} if set(runs["reading"]) == {"best"} else {"paper_best": PAPER_BEST_READ_LAST}
    meaning = PROTOCOL_MEANING | last
    return [f"Protocol {p}: {meaning[p]}." for p in sorted(set(runs["protocol"])) if p in meaning]


def start_to_end(record: dict[str, Any], count: str) -> str:
    """163,728, or 166,032 → 163,728, followed by the peak if it was above both, and by what trained at once."""
    if f"{count}_final" not in record:
        return ""
    start, peak, end = (round(record[f"{count}_{when}"]) for when in ("initial", "peak", "final"))
    text = f"{end:,}" if start == end else f"{start:,} → {end:,}"
    text += f" (peak {peak:,})" if peak > max(start, end) else ""
    at_once = record.get(f"{count}_trained", math.nan)
    return text + ("" if math.isnan(at_once) else f" ({at_once:,.0f} at once)")
