"""Arms of a comparison: their names, and which runs compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.reading.result_row import NO_BUDGET
from analysis.reading.settings import arm_suffix, differing

if TYPE_CHECKING:
    import pandas as pd
from typing import TYPE_CHECKING

from analysis.reading.settings import changed_knobs, told_apart

if TYPE_CHECKING:
    import pandas as pd
if TYPE_CHECKING:
    import pandas as pd


NAMING = ["label", "method", "variant", "reconstructed"]


CELL = ["task", "protocol", "model", "recipe", "budget"]  # arms within one cell are compared


TUNED = ("trainer.lr", "trainer.weight_decay")  # may differ between arms that are compared


LEAST_FOR_INTERVAL = 3


PARAMETER_TOLERANCE = 0.01


MOST_TOLD = 4  # settings behind a name, where they are enough


NAMES = {
    "elalora": "ElaLoRA", "lora": "LoRA", "svd_lora": "SVD-LoRA", "adalora": "AdaLoRA", "sora": "SoRA",
    "prilora": "PRILoRA", "beamlora": "BeamLoRA", "peft": "PEFT LoRA", "full": "Full fine-tuning",
    "head": "Head only", "bitfit": "BitFit",
}  # fmt: skip


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


def shown_names(runs: pd.DataFrame, names: Sequence[str] = ()) -> list[str]:
    """The name of every run's arm; where one name covers several settings, the settings that differ follow it.

    Args:
        runs: from `load_runs`.
        names: of the runs to begin with, instead of label and variant.
    """
    rows = runs.to_dict("records")
    names = list(names) or [name_of(row | {"label": row["label"] + arm_suffix(row["settings"])[0]}) for row in rows]
    for _, group in runs.assign(shown=names).groupby([*CELL, "shown"], sort=False):
        if group["arm"].nunique() < 2:
            continue
        told = _told(group.drop_duplicates("arm").set_index("arm"))
        for index, arm in zip(group.index, group["arm"], strict=True):
            names[int(index)] += f" [{told[arm]}]"
    return names


def _told(arms: pd.DataFrame) -> dict[str, str]:
    """What tells arms of one name apart: their settings that differ, and more of them until no two are alike."""
    rows = arms.to_dict("index")
    whole = {arm: _labelled(row) for arm, row in rows.items()}
    plain = {arm: _labelled({**row, "settings": _without_told(row["settings"])}) for arm, row in rows.items()}
    texts: dict[str, str] = {}
    for trees, most in ((plain, MOST_TOLD), (plain, None), (whole, None)):
        found = list(differing(trees.values()))
        keys = [key for key in found if not key.endswith("_arm")] or found  # a source is told by its words if it can be
        flats = {arm: differing([tree, {}]) for arm, tree in trees.items()}
        for arm, flat in flats.items():
            listed = [f"{k.removeprefix('method.')}={flat[k][0] if k in flat else 'null'}" for k in keys[:most]]
            texts[arm] = ", ".join(listed + (["..."] if len(keys) > len(listed) else []))
        if len(set(texts.values())) == len(texts):
            break
    return texts


def _without_told(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the knobs that the name of a cell of the factorial tells already."""
    told = arm_suffix(settings)[1]
    return {**settings, "method": {k: v for k, v in settings["method"].items() if k not in told}} if told else settings


def _labelled(row: dict[str, Any]) -> dict[str, Any]:
    return {**row["settings"], "data": {**row["settings"].get("data", {}), "fingerprint": row["fingerprint"][:12]}}


def name_of(row: dict[str, Any]) -> str:
    """ElaLoRA (official)†: label, variant, and a dagger when the method is a reconstruction."""
    label, method = row["label"], row["method"]
    if label.startswith(method) and method in NAMES:
        label = NAMES[method] + label[len(method) :]
    return label + (f" ({row['variant']})" if row["variant"] else "") + ("†" if row["reconstructed"] else "")


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


NAMED = ("variant", "ranks_from", "shuffle")  # knobs that a method's label already tells


def row_names(runs: pd.DataFrame) -> list[str]:
    """Names of arms that are the same on every task; knobs follow where several stand in one cell.

    Args:
        runs: from `load_runs`, with a plain index.
    """
    names = [name_of(row) for row in runs[NAMING].to_dict("records")]
    for _, group in runs.assign(name=names).groupby([*CELL, "name"], sort=False):
        arms = group.drop_duplicates("arm")
        knobs = [[k for k in changed_knobs(s) if k.partition("=")[0] not in NAMED] for s in arms["settings"]]
        turned = dict(zip(arms["arm"], told_apart(knobs), strict=True))
        for index, arm in zip(group.index, group["arm"], strict=True):
            names[int(index)] += f" [{', '.join(turned[arm])}]" if turned[arm] else ""
    return shown_names(runs, names)


def short_recipe(recipe: str) -> str:
    """published, of whatever source: a row goes over tasks, and every task has a source of its own."""
    return recipe.partition(" (")[0].partition(":")[0]
