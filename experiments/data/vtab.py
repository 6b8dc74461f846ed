"""VTAB-1k: 19 data sets, 800 images to train, 200 to tune on, the whole test set to report.

Read from `data.root/vtab-1k/NAME/` in the layout and under the folder names of the research code bases: list files
train800.txt, val200.txt and test.txt with lines "relative/path label" beside images/; or the same three splits as
folders of class folders. There is no official hub copy. Zhai et al., "A Large-scale Study of Representation Learning
with the Visual Task Adaptation Benchmark", 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import check_count, checked_splits
from experiments.data.content import data_root
from experiments.data.image_files import class_folders, class_ids, read_images, read_list
from experiments.data.tables import Columns

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {"train": "train800", "validation": "val200", "test": "test"}
SIZES = {"train": 800, "validation": 200}


@dataclass(frozen=True)
class Known:
    """Group, number of classes, and size of the test set if it is certain."""

    group: str
    classes: int
    test: int | None


# Classes and test sizes are those that the benchmark's tests assert (google-research/task_adaptation).
# KITTI's test size is not checked: those tests say 634, the catalogue of TensorFlow Datasets says 711.
TASKS = {
    "caltech101": Known("natural", 102, 6_084),
    "cifar": Known("natural", 100, 10_000),
    "dtd": Known("natural", 47, 1_880),
    "oxford_flowers102": Known("natural", 102, 6_149),
    "oxford_iiit_pet": Known("natural", 37, 3_669),
    "svhn": Known("natural", 10, 26_032),
    "sun397": Known("natural", 397, 21_750),
    "patch_camelyon": Known("specialized", 2, 32_768),
    "eurosat": Known("specialized", 10, 5_400),
    "resisc45": Known("specialized", 45, 6_300),
    "diabetic_retinopathy": Known("specialized", 5, 42_670),
    "clevr_count": Known("structured", 8, 15_000),
    "clevr_dist": Known("structured", 6, 15_000),
    "dmlab": Known("structured", 6, 22_735),
    "kitti": Known("structured", 4, None),
    "dsprites_loc": Known("structured", 16, 73_728),
    "dsprites_ori": Known("structured", 16, 73_728),
    "smallnorb_azi": Known("structured", 18, 12_150),
    "smallnorb_ele": Known("structured", 9, 12_150),
}

# published as PNG or as arrays; the others come as JPEG from their authors or, dmlab, from the benchmark
LOSSLESS = (
    "cifar", "svhn", "patch_camelyon", "clevr_count", "clevr_dist", "kitti", "dsprites_loc", "dsprites_ori",
    "smallnorb_azi", "smallnorb_ele",
)  # fmt: skip
LOSSY = "JPEG copies"  # the flag of a result on lossy copies of these

Entries = list[tuple[str, int]]  # relative path and label


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train, validation and test of one data set, and their source.

    Raises:
        UserError: unknown subset, missing folder, unreadable image, or counts that differ from the known ones.
    """
    if task.subset not in TASKS:
        raise UserError(f"task.subset={task.subset} is not a VTAB-1k data set; type one of {', '.join(TASKS)}")
    root, below = data_root(data), f"vtab-1k/{task.subset}"
    folder = root / below if root is not None else None
    if folder is None or not folder.is_dir():
        raise UserError(
            f"task {task.name}: put train800.txt, val200.txt, test.txt and images/ into FOLDER/{below}/ "
            f"(or folders train800, val200 and test of class folders) and type data.root=FOLDER; it has no hub copy"
        )
    listed, entries = _entries(task, folder, below)
    _check_entries(task, below, entries)

    def read() -> Iterator[tuple[str, str, Columns]]:
        for name, part in entries.items():
            label = f"{below}/{SPLITS[name]}" + (".txt" if listed else "")
            images = read_images(folder, [path for path, _ in part], label)
            yield name, label, {"image": images, "label": [number for _, number in part]}

    return checked_splits(task, read()), f"local folder {below}"


def remarks(task: TaskConfig, splits: Mapping[str, Dataset]) -> list[str]:
    """Flags for results on this data: `LOSSY` where an image of a data set published without loss is a JPEG file.

    JPEG changes the pixels, most of all in the small and artificial images, so scores do not compare with those on the
    benchmark's own images.
    """
    if task.subset not in LOSSLESS:
        return []
    from pyarrow import compute

    starts = (compute.binary_slice(rows.data.column("image"), 0, 3) for rows in splits.values())
    return [LOSSY] if any(compute.any(compute.equal(start, b"\xff\xd8\xff")).as_py() for start in starts) else []


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> what it is read from in data.root: its images, and the list that has their labels."""
    folder = Path(root or "", "vtab-1k", task.subset).expanduser()
    if root is None or not folder.is_dir():
        return {}
    listed, entries = _entries(task, folder, task.subset)
    lists = {name: [f"{stem}.txt"] if listed else [] for name, stem in SPLITS.items()}
    return {name: {path: folder / path for path in [*lists[name], *(p for p, _ in entries[name])]} for name in SPLITS}


def _entries(task: TaskConfig, folder: Path, below: str) -> tuple[bool, dict[str, Entries]]:
    """Whether list files name the images, and the images and labels of each split."""
    listed = (folder / "train800.txt").is_file()
    return listed, _listed(folder, below) if listed else _foldered(task, folder, below)


def _listed(folder: Path, below: str) -> dict[str, Entries]:
    entries = {}
    for name, stem in SPLITS.items():
        file, label = folder / f"{stem}.txt", f"{below}/{stem}.txt"
        if not file.is_file():
            raise UserError(f"{label} in data.root is missing; it lists the {name} images, one line each: path label")
        entries[name] = read_list(file, label)
    return entries


def _foldered(task: TaskConfig, folder: Path, below: str) -> dict[str, Entries]:
    folders = {}
    for name, stem in SPLITS.items():
        if not (folder / stem).is_dir():
            raise UserError(f"{below} in data.root has neither train800.txt nor a folder {stem} of {name} images")
        folders[name] = class_folders(folder / stem, f"{below}/{stem}")
    ids = class_ids((c for classes in folders.values() for c in classes), task.labels, task.num_labels, below)
    return {
        name: [(f"{SPLITS[name]}/{path}", ids[c]) for c, paths in classes.items() for path in paths]
        for name, classes in folders.items()
    }


def _check_entries(task: TaskConfig, below: str, entries: dict[str, Entries]) -> None:
    """Refuses duplicate images and unexpected counts."""
    seen: dict[str, str] = {}
    for name, part in entries.items():
        for path, _ in part:
            if path in seen:
                raise UserError(f"{below}: {path} is in {SPLITS[seen[path]]} and again in {SPLITS[name]}")
            seen[path] = name
        expected = TASKS[task.subset].test if name == "test" else SIZES[name]
        if task.verify and expected is not None:
            check_count(f"{below}/{SPLITS[name]}", len(part), expected, "images")
