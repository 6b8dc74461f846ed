"""GLUE from a local folder of parquet files or from the hub, checked against the official counts.

Only train and the official validation split are used: the labels of the official test split are
hidden for most tasks (MRPC's are public and left aside, so that all tasks are read alike). MNLI
reports its matched validation split. Wang et al., "GLUE: A Multi-Task Benchmark and Analysis
Platform for Natural Language Understanding", ICLR 2019.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config_task import DataConfig, TaskConfig
from experiments.data.content import data_root, make_split

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Known:
    """Official size of a split, with its rows per label (or mean label) where one was verified."""

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
    "qqp": {"train": Known(363846), "validation": Known(40430)},
}


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train and validation of one GLUE task, and where they came from.

    Raises:
        UserError: unknown subset, data not to be had, or counts other than the official ones.
    """
    if task.subset not in SPLITS:
        raise UserError(f"task.subset={task.subset} is no GLUE task; it is one of {', '.join(SPLITS)}")
    root = data_root(data)
    folder = root / "glue" / task.subset if root is not None else None
    if folder is not None and folder.is_dir():
        raw, source = _from_folder(task, folder), f"local folder glue/{task.subset}"
    else:
        raw, source = _from_hub(task), f"hub {task.hub_id} ({task.hub_name}) @{task.hub_revision}"
    for name, columns in raw.items():
        check_split(task, name, columns["label"])
    return {name: make_split(task, columns) for name, columns in raw.items()}, source


def _wanted(task: TaskConfig, present: list[str]) -> list[str]:
    """The columns to read, all of which must be present."""
    wanted = ["idx", *task.text, "label"]
    if missing := [name for name in wanted if name not in present]:
        raise UserError(f"task {task.name}: no column {missing[0]} among {', '.join(present)}")
    return wanted


def _from_folder(task: TaskConfig, folder: Path) -> dict[str, dict[str, list[Any]]]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowInvalid

    raw = {}
    for name in SPLITS[task.subset]:
        file = folder / f"{name}.parquet"
        where = f"glue/{task.subset}/{file.name} in data.root"
        if not file.is_file():
            raise UserError(
                f"task {task.name} needs {where}, which is not there; put the official split "
                "there, or type data.root=null to read the hub"
            )
        try:
            present = parquet.read_schema(file).names
            raw[name] = parquet.read_table(file, columns=_wanted(task, present)).to_pydict()
        except ArrowInvalid as error:
            raise UserError(f"{where} is not a parquet file: {error}") from error
    return raw


def _from_hub(task: TaskConfig) -> dict[str, dict[str, list[Any]]]:
    from datasets import load_dataset

    raw = {}
    for name in SPLITS[task.subset]:
        try:
            rows = load_dataset(task.hub_id, task.hub_name, revision=task.hub_revision, split=name)
        except OSError as error:  # every way of not reaching or not finding a data set
            files = " and ".join(f"{split}.parquet" for split in SPLITS[task.subset])
            raise UserError(
                f"task {task.name}: {task.hub_id} cannot be read from the hub here; put {files} "
                f"into FOLDER/glue/{task.subset}/ and type data.root=FOLDER"
            ) from error
        raw[name] = rows.select_columns(_wanted(task, rows.column_names))[:]
    return raw


def check_split(task: TaskConfig, name: str, labels: list[float]) -> None:
    """Compares one split with the official size and label balance.

    Raises:
        UserError: they differ.
    """
    known = SPLITS[task.subset][name]
    where = f"glue/{task.subset} {name}"
    if len(labels) != known.rows:
        raise UserError(f"{where} has {len(labels)} rows; the official split has {known.rows}")
    if known.per_label is not None:
        counts = Counter(labels)
        expected = dict(enumerate(known.per_label))
        if counts != expected:
            raise UserError(f"{where} has rows per label {dict(counts)}; expected {expected}")
    if known.mean is not None:
        mean = sum(labels) / len(labels)
        if abs(mean - known.mean) > 5e-4:
            raise UserError(f"{where} has mean label {mean:.4f}; expected {known.mean:.4f}")
