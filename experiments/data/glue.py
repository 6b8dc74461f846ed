"""GLUE from a local folder of parquet files or from the hub, checked against the official counts.

Only train and the official validation split are used: the labels of the official test split are hidden for most
tasks (MRPC's are public, but unused for uniformity). MNLI is two tasks on one training split: mnli reports the matched
validation split, mnli_mm the mismatched one.
Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", ICLR 2019.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import check_count, checked_splits
from experiments.data.hub import local_files, read_official

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Known:
    """Official size of a split, with rows per label or mean label if verified."""

    rows: int
    per_label: tuple[int, ...] | None = None
    mean: float | None = None


def _classes(*per_label: int) -> Known:
    return Known(sum(per_label), per_label)


SPLITS: dict[str, dict[str, Known]] = {
    "cola": {"train": _classes(2528, 6023), "validation": _classes(322, 721)},
    "rte": {"train": _classes(1249, 1241), "validation": _classes(146, 131)},
    "mrpc": {"train": _classes(1194, 2474), "validation": _classes(129, 279)},
    "stsb": {"train": Known(5749, mean=2.7010), "validation": Known(1500, mean=2.3639)},
    "sst2": {"train": _classes(29780, 37569), "validation": _classes(428, 444)},
    "wnli": {"train": _classes(323, 312), "validation": _classes(40, 31)},
    "qnli": {"train": Known(104743), "validation": _classes(2702, 2761)},
    "mnli": {"train": Known(392702), "validation_matched": _classes(3479, 3123, 3213)},
    "mnli_mm": {"train": Known(392702), "validation_mismatched": Known(9832)},
    "qqp": {"train": Known(363846), "validation": Known(40430)},
}


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train and validation of one GLUE task, and their source.

    Raises:
        UserError: unknown subset, missing data, bad rows, or counts that differ from the official ones.
    """
    if task.subset not in SPLITS:
        raise UserError(f"task.subset={task.subset} is not a GLUE task; type one of {', '.join(SPLITS)}")
    below = _below(task)
    raw, source = read_official(task, data, below, SPLITS[task.subset], ["idx", *task.text, "label"])
    splits = checked_splits(task, ((name, f"{below} {name}", columns) for name, columns in raw.items()))
    for name in splits if task.verify else ():
        check_split(task, name, raw[name]["label"])
    return splits, source


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> the file in data.root that it is read from."""
    return local_files(root, _below(task), SPLITS[task.subset])


def _below(task: TaskConfig) -> str:
    return f"glue/{task.subset.removesuffix('_mm')}"


def check_split(task: TaskConfig, name: str, labels: list[float]) -> None:
    """Refuses a split whose size or label balance is not the official one."""
    known = SPLITS[task.subset][name]
    label = f"glue/{task.subset} {name}"
    check_count(label, len(labels), known.rows)
    if known.per_label is not None:
        counts, expected = Counter(labels), dict(enumerate(known.per_label))
        if counts != expected:
            raise UserError(f"{label} has rows per label {dict(counts)}; expected {expected}")
    if known.mean is not None:
        mean = sum(labels) / len(labels)
        if abs(mean - known.mean) > 5e-4:
            raise UserError(f"{label} has mean label {mean:.4f}; expected {known.mean:.4f}")
