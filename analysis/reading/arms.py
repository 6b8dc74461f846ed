"""Names of arms, made once when runs are read.

An arm is one exact configuration apart from its seed. Its name depends on the other runs of the frame: where two arms
of one cell would have the same name, the settings that differ follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.reading.settings import arm_suffix, changed_knobs, differing, told_apart

if TYPE_CHECKING:
    import pandas as pd

CELL = ["task", "protocol", "model", "recipe", "budget"]  # arms within one cell are compared
MOST_TOLD = 4  # settings behind a name, where they are enough
NAMES = {
    "elalora": "ElaLoRA", "lora": "LoRA", "svd_lora": "SVD-LoRA", "adalora": "AdaLoRA", "sora": "SoRA",
    "prilora": "PRILoRA", "beamlora": "BeamLoRA", "peft": "PEFT LoRA", "full": "Full fine-tuning",
    "head": "Head only", "bitfit": "BitFit",
}  # fmt: skip
IN_LABEL = ("variant", "ranks_from", "shuffle")  # knobs that a method's label already tells


def with_names(runs: pd.DataFrame) -> pd.DataFrame:
    """Adds an arm's name to every run.

    Args:
        runs: rows of `load_runs`, with a plain index.

    Returns:
        The frame with two more columns: `shown`, the name within the run's cell (`CELL`), followed by all settings
        that differ where several arms share it; and `row_name`, the same on every task of a method with the same
        knobs, for tables whose rows go over tasks.
    """
    return runs.assign(shown=_shown(runs, _cell_names(runs)), row_name=_shown(runs, _row_names(runs)))


def _cell_names(runs: pd.DataFrame) -> list[str]:
    return [name_of(row | {"label": row["label"] + arm_suffix(row["settings"])[0]}) for row in _rows(runs)]


def _row_names(runs: pd.DataFrame) -> list[str]:
    """Method and variant; knobs follow where several arms stand in one cell."""
    names = [name_of(row) for row in _rows(runs)]
    for _, group in runs.assign(name=names).groupby([*CELL, "name"], sort=False):
        arms = group.drop_duplicates("arm")
        knobs = [[k for k in changed_knobs(s) if k.partition("=")[0] not in IN_LABEL] for s in arms["settings"]]
        turned = dict(zip(arms["arm"], told_apart(knobs), strict=True))
        for index, arm in zip(group.index, group["arm"], strict=True):
            names[int(index)] += f" [{', '.join(turned[arm])}]" if turned[arm] else ""
    return names


def _rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    return runs[["label", "method", "variant", "reconstructed", "settings"]].to_dict("records")


def _shown(runs: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The names, followed by the settings that differ where one name covers several arms of a cell."""
    names = list(names)
    for _, group in runs.assign(name=names).groupby([*CELL, "name"], sort=False):
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


def short_recipe(recipe: str) -> str:
    """published, of whatever source: a row goes over tasks, and every task has a source of its own."""
    return recipe.partition(" (")[0].partition(":")[0]
