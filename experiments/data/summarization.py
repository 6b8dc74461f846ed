"""Documents with summaries: XSum, CNN/DailyMail (3.0.0) and SciTLDR (abstracts only), with all their references.

Files keep the upstream column names, so a parquet copy of the hub's data set is read unchanged. Loaded splits have
`document`, `label` (the first summary, for training) and `references` (all summaries, for ROUGE; by default the label).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import check_count, checked_splits
from experiments.data.content import reference_list
from experiments.data.hub import local_files, read_official
from experiments.data.tables import Columns

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
SIZES = {
    "xsum": (204_045, 11_332, 11_334),
    "cnn_dailymail": (287_113, 13_368, 11_490),
    "scitldr_a": (1_992, 619, 618),
}
DOCUMENTS = ("document", "article", "source")  # a list holds the document's sentences
SUMMARIES = ("summary", "highlights", "target")  # a list holds all references


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train, validation and test of one data set, and their source.

    Raises:
        UserError: unknown subset, missing data, bad rows, or counts that differ from the official ones.
    """
    below = f"summarization/{task.subset}"
    if task.verify and task.subset not in SIZES:
        raise UserError(
            f"task.subset={task.subset} has no known counts; type one of {', '.join(SIZES)}, "
            "or type task.verify=false for a subset or a stand-in"
        )
    hub = task if task.subset in SIZES else replace(task, hub_id=None)
    raw, source = read_official(hub, data, below, SPLITS)
    labels = {name: f"{below} {name}" for name in SPLITS}
    splits = checked_splits(task, ((n, label, _columns(task, label, raw.pop(n))) for n, label in labels.items()))
    if task.verify:
        for name, size in zip(SPLITS, SIZES[task.subset], strict=True):
            check_count(labels[name], len(splits[name]), size)
    return splits, source


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> the file in data.root that it is read from."""
    return local_files(root, f"summarization/{task.subset}", SPLITS)


def _columns(task: TaskConfig, label: str, raw: Columns) -> Columns:
    documents, summaries = _one_of(label, raw, DOCUMENTS), _one_of(label, raw, SUMMARIES)
    return {
        task.text[0]: [" ".join(d) if isinstance(d, list) else d for d in documents],
        "label": [(s[0] if s else None) if isinstance(s, list) else s for s in summaries],
        "references": list(map(reference_list, raw["references"]))
        if "references" in raw
        else [s if isinstance(s, list) else [s] for s in summaries],
    }


def _one_of(label: str, raw: Columns, names: tuple[str, ...]) -> list[Any]:
    name = next((name for name in names if name in raw), None)
    if name is None:
        raise UserError(f"{label}: no column {' or '.join(map(repr, names))} among {', '.join(map(repr, raw))}")
    return raw[name]
