"""Which arms compare, and what a reader must know of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.reading.result_row import NO_BUDGET
from analysis.reading.settings import differing

if TYPE_CHECKING:
    import pandas as pd


TUNED = ("trainer.lr", "trainer.weight_decay")  # may differ between arms that are compared


LEAST_FOR_INTERVAL = 3


PARAMETER_TOLERANCE = 0.01


METRICS = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "mcc": "MCC",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


PROTOCOLS = {
    "clean": "hyper-parameters and checkpoint chosen on data that is not reported",
    "paper_last": "trained on all of train, last checkpoint, one named split for all arms",
    "paper_best": "best evaluation on the reported split itself, hence optimistic",
}


LAST_OF_BEST = "as paper_last; evaluated on the reported split itself, but the last checkpoint is shown, not the best"


def _rest(settings: dict[str, Any]) -> dict[str, Any]:
    """Everything but the method: what two compared arms must have in common."""
    numerics = settings.get("numerics")
    rest = {k: v for k, v in settings.items() if k not in ("method", "budget", "numerics")}
    return rest | {"numerics": numerics.get("trainer") if isinstance(numerics, dict) else numerics}


def fitting(arm: pd.DataFrame, bases: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The baseline arms of the same data and training; where none is, those that differ in what is tuned only."""
    same = [b for b in bases if b["fingerprint"].iloc[0] == arm["fingerprint"].iloc[0]]
    unlike = [set(_unlike([arm, b])) for b in same]
    exact = [b for b, keys in zip(same, unlike, strict=True) if not keys]
    return exact or [b for b, keys in zip(same, unlike, strict=True) if keys <= set(TUNED)]


def place_of(cell: pd.DataFrame) -> str:
    """Task, model, budget and protocol that the runs share, for a note."""
    first = cell.iloc[0]
    parts = [first["task"], first["model"], *([first["budget"]] if first["budget"] != NO_BUDGET else [])]
    return ", ".join([*parts, first["protocol"]])


def _unlike(arms: Iterable[pd.DataFrame]) -> dict[str, list[str]]:
    return trained_unlike(arm["settings"].iloc[0] for arm in arms)


def trained_unlike(settings: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """What compared runs have not in common beside the method and its budget: dotted keys and their values."""
    return differing(map(_rest, settings))


def note_manifests(cell: pd.DataFrame, where: str, notes: list[str]) -> None:
    """Names the versions, commits and machines that differ between the runs that are set side by side."""
    manifests = list(cell["manifest"])
    if unlike := differing({**m, "commit": (m.get("commit") or "unknown")[:10], "dirty": None} for m in manifests):
        listed = "; ".join(f"{key}: {', '.join(v[:24] for v in values)}" for key, values in unlike.items())
        notes.append(f"{where}: the runs differ in {listed}.")
    dirty = sum(bool(m.get("dirty")) for m in manifests)
    if dirty:
        notes.append(f"{where}: {dirty} of {len(manifests)} runs came from a checkout with uncommitted changes.")


def protocol_notes(runs: pd.DataFrame) -> list[str]:
    """A line for every protocol of the runs; what paper_best shows depends on the checkpoint that was read."""
    said = PROTOCOLS if set(runs["reading"]) == {"best"} else PROTOCOLS | {"paper_best": LAST_OF_BEST}
    return [f"Protocol {p}: {said[p]}." for p in sorted(set(runs["protocol"])) if p in said]


def start_to_end(record: dict[str, Any], count: str) -> str:
    """163,728, or 166,032 → 163,728 with the peak where it was above both."""
    if f"{count}_final" not in record:
        return ""
    start, peak, end = (round(record[f"{count}_{when}"]) for when in ("initial", "peak", "final"))
    text = f"{end:,}" if start == end else f"{start:,} → {end:,}"
    return text + (f" (peak {peak:,})" if peak > max(start, end) else "")


ROW = ["shown", "budget", "protocol", "recipe"]
