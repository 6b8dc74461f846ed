"""Image benchmarks of class-incremental learning: ImageNet-R, ImageNet-A, DomainNet and the whole CIFAR-100.

Read from `data.root/NAME/` in the layout of the research code bases, train/CLASS/IMAGE and test/CLASS/IMAGE, or from
train.parquet and test.parquet there, or from the hub where the task names a data set on it. ImageNet-R, ImageNet-A and
DomainNet have no official split for this use, so numbers and classes are checked, and the images of train and test
together. A tenth of train, drawn by a hash, is the validation split: settings never see test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import check_count, checked_splits
from experiments.data.content import data_root
from experiments.data.hub import local_files, read_official
from experiments.data.image_files import class_folders, class_ids, read_images
from experiments.data.protocols import with_validation
from experiments.data.tables import Columns

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Known:
    """Classes and images; the images of train where its split is official."""

    classes: int
    images: int
    train: int | None = None


BENCHMARKS = {
    "imagenet-r": Known(200, 30_000),
    "imagenet-a": Known(200, 7_500),
    "domainnet": Known(345, 586_575),
    "cifar100": Known(100, 60_000, 50_000),
}


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train, validation and test of one benchmark, and their source.

    Raises:
        UserError: unknown subset, missing data, unreadable images, or other numbers than the known ones.
    """
    if task.subset not in BENCHMARKS:
        raise UserError(f"task.subset={task.subset} is not an image benchmark; type one of {', '.join(BENCHMARKS)}")
    root = data_root(data)
    folder = None if root is None else root / task.subset
    if folder is not None and all((folder / name).is_dir() for name in SPLITS):
        parts, source = _foldered(task, folder), f"local folder {task.subset}"
    else:
        parts, source = _tables(task, data)
    splits = checked_splits(task, parts)
    _check(task, {name: len(rows) for name, rows in splits.items()})
    return with_validation(task, splits), source


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> what it is read from in data.root: images of class folders, or tables."""
    folder = Path(root or "", task.subset).expanduser()
    if root is not None and all((folder / name).is_dir() for name in SPLITS):
        found = {name: class_folders(folder / name, name) for name in SPLITS}
        return {
            name: {path: folder / name / path for paths in classes.values() for path in paths}
            for name, classes in found.items()
        }
    return local_files(root, task.subset, SPLITS)


def _foldered(task: TaskConfig, folder: Path) -> Iterator[tuple[str, str, Columns]]:
    classes = {name: class_folders(folder / name, f"{task.subset}/{name}") for name in SPLITS}
    ids = class_ids((c for found in classes.values() for c in found), task.labels, task.num_labels, task.subset)
    for name, found in classes.items():
        pairs = [(path, ids[c]) for c, paths in found.items() for path in paths]
        label = f"{task.subset}/{name}"
        images = read_images(folder / name, [path for path, _ in pairs], label)
        yield name, label, {"image": images, "label": [number for _, number in pairs]}


def _tables(task: TaskConfig, data: DataConfig) -> tuple[Iterator[tuple[str, str, Columns]], str]:
    column = task.text[0]
    tables, source = read_official(task, data, task.subset, SPLITS, [column, task.label])

    def parts() -> Iterator[tuple[str, str, Columns]]:
        for name, table in tables.items():
            images = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in table[column]]
            yield name, f"{task.subset}/{name}", {"image": images, "label": table[task.label]}

    return parts(), source


def _check(task: TaskConfig, counts: dict[str, int]) -> None:
    """Refuses numbers of classes and images that are not the known ones, unless task.verify=false."""
    known = BENCHMARKS[task.subset]
    if not task.verify:
        return
    check_count(f"{task.subset}: task.num_labels", task.num_labels, known.classes, "classes")
    check_count(f"{task.subset}: train and test together", sum(counts.values()), known.images, "images")
    if known.train is not None:
        check_count(f"{task.subset}/train", counts["train"], known.train, "images")
