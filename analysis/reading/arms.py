"""Names of arms, made once when runs are read.

An arm is one exact configuration apart from its seed. Its name depends on the other runs of the frame: where two arms
of one cell would have the same name, the settings that differ follow it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.reading.settings import arm_suffix, changed_knobs, differing, flatten, told_apart, typed

if TYPE_CHECKING:
    import pandas as pd

CELL = ["task", "protocol", "model", "recipe", "budget"]  # arms within one cell are compared
MOST_NAMED = 4  # settings behind a name, where they are enough
NAMES = {
    "elalora": "ElaLoRA", "lora": "LoRA", "svd_lora": "SVD-LoRA", "adalora": "AdaLoRA", "sora": "SoRA",
    "rac_lora": "RAC-LoRA", "chain_lora": "Chain of LoRA", "xgblora": "XGBLoRA",
    "sd_lora": "SD-LoRA", "o_lora": "O-LoRA", "task_lora": "LoRA per task, merged",
    "prilora": "PRILoRA", "beamlora": "BeamLoRA", "flexlora": "FlexLoRA",
    "dora_dynamic": "Dynamic-rank DoRA", "l1ra": "L1RA", "increlora": "IncreLoRA", "alora": "ALoRA",
    "dylora": "DyLoRA",
    "peft": "PEFT LoRA",
    "gelora": "GeLoRA", "gora": "GoRA", "eva": "EVA",
    "full": "Full fine-tuning", "head": "Head only", "bitfit": "BitFit",
    "class_means": "Class means",
}  # fmt: skip
Row = dict[str, Any]  # of the frame of `load_runs`
IN_LABEL = ("variant", "ranks_from", "pattern", "shuffle")  # knobs that a method's label already contains


def with_names(runs: pd.DataFrame) -> pd.DataFrame:
    """Adds an arm's name to every run.

    Args:
        runs: rows of `load_runs`.

    Returns:
        The frame with two more columns: `shown`, the name within the run's cell (`CELL`), followed by all settings
        that differ where several arms share it; and `row_name`, the same on every task of a method with the same
        knobs, for tables whose rows go over tasks.
    """
    needed = [*CELL, "label", "method", "variant", "reconstructed", "settings", "arm", "fingerprint"]
    rows = [dict(zip(needed, row, strict=True)) for row in zip(*(runs[key].tolist() for key in needed), strict=True)]
    cell_names = [name_of(row | {"label": row["label"] + arm_suffix(row["settings"])[0]}) for row in rows]
    return runs.assign(shown=_distinct(rows, cell_names), row_name=_distinct(rows, _with_knobs(rows)))


def _with_knobs(rows: Sequence[Row]) -> list[str]:
    """Method and variant of every row; the method's knobs follow where several arms of a cell share them."""
    names = [name_of(row) for row in rows]
    for members, arms in _sharing(rows, names):
        knobs = [
            [k for k in changed_knobs(r["settings"]) if k.partition("=")[0] not in IN_LABEL] for r in arms.values()
        ]
        turned = dict(zip(arms, told_apart(knobs), strict=True))
        for i in members:
            names[i] += f" [{', '.join(turned[rows[i]['arm']])}]" if turned[rows[i]["arm"]] else ""
    return names


def _distinct(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The names, followed by the settings that differ where several arms of a cell share one."""
    distinct = list(names)
    for members, arms in _sharing(rows, names):
        differences = _differences(arms)
        for i in members:
            distinct[i] += f" [{differences[rows[i]['arm']]}]"
    return distinct


def _sharing(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[list[int], dict[str, Row]]]:
    """For every name that several arms of a cell share: positions of the rows, and the first row of each arm."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        groups.setdefault((*(row[key] for key in CELL), name), []).append(i)
    shared = []
    for members in groups.values():
        arms: dict[str, Row] = {}
        for i in members:
            arms.setdefault(rows[i]["arm"], rows[i])
        if len(arms) > 1:
            shared.append((members, arms))
    return shared


def _differences(arms: Mapping[str, Row]) -> dict[str, str]:
    """The settings in which arms of one name differ: as many as it takes for no two texts to be alike."""
    whole = {arm: flatten(_with_data(row)) for arm, row in arms.items()}
    plain = {
        arm: flatten(_with_data({**row, "settings": _without_suffix(row["settings"])})) for arm, row in arms.items()
    }
    texts: dict[str, str] = {}
    for flats, most in ((plain, MOST_NAMED), (plain, None), (whole, None)):
        unlike = list(differing(flats.values()))
        keys = [key for key in unlike if not key.endswith("_arm")] or unlike  # a source's words, where they suffice
        for arm, flat in flats.items():
            listed = [f"{key.removeprefix('method.')}={typed(flat.get(key))}" for key in keys[:most]]
            texts[arm] = ", ".join(listed + (["..."] if len(keys) > len(listed) else []))
        if len(set(texts.values())) == len(texts):
            break
    return texts


def _without_suffix(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the knobs that the name of a cell of the factorial already contains."""
    named = arm_suffix(settings)[1]
    if not named:
        return settings
    return {**settings, "method": {k: v for k, v in settings["method"].items() if k not in named}}


def _with_data(row: Row) -> dict[str, Any]:
    """The settings, with the fingerprint of the data among them."""
    return {**row["settings"], "data": {**row["settings"].get("data", {}), "fingerprint": row["fingerprint"][:12]}}


def name_of(row: Row) -> str:
    """ElaLoRA (official)†: label, variant, and a dagger when the method is a reconstruction."""
    label, method = row["label"], row["method"]
    if label.startswith(method) and method in NAMES:
        label = NAMES[method] + label[len(method) :]
    return label + (f" ({row['variant']})" if row["variant"] else "") + ("†" if row["reconstructed"] else "")


def short_recipe(recipe: str) -> str:
    """published, of whatever source: a row goes over tasks, and every task has a source of its own."""
    return recipe.partition(" (")[0].partition(":")[0]
