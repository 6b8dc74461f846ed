"""The user's own data: tables or folders of images, described by the task's settings alone.

    task=own task.name=reviews task.files.train=train.csv task.files.test=test.csv task.text=[review] task.label=stars

Three fixed splits are best. Without a validation split one is drawn from train by a hash of the row numbers; without a
test split validation is reported, as for GLUE. Images are bytes or paths in a table, or files in class folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import check_rows
from experiments.data.content import data_root, make_split
from experiments.data.image_files import WHOLE, class_folders, class_ids, inside, read_images
from experiments.data.tables import Columns, read_table, require_columns
from experiments.runtime.digests import sha256_of

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """The splits that task.files names, and their source.

    Raises:
        UserError: missing or unreadable files, bad rows, or class names that do not fit.
    """
    named = {name: path for name in SPLITS if (path := task.files.get(name)) is not None}
    if "train" not in named or len(named) < 2:
        raise UserError(
            f"task {task.name} needs task.files.train=PATH and task.files.test=PATH or task.files.validation=PATH"
        )
    data_root(data)  # refuses a missing folder
    raw, start = {}, 0
    for name, path in named.items():
        raw[name] = _read(task, _located(data.root, path), path)
        idx = raw[name].get("idx") if task.text[0] != "idx" else None
        count = len(raw[name]["label"])
        raw[name]["idx"] = list(range(start, start + count)) if idx is None else [_whole(v) for v in idx]
        start += count
    if task.kind in ("classification", "image"):
        _number_classes(task, raw, named)
    for name, columns in raw.items():
        check_rows(task, named[name], columns)
        _refuse_blank(task, named[name], columns)
    splits = {name: make_split(task, columns) for name, columns in raw.items()}
    if "validation" not in splits:
        splits = _with_validation(task, splits)
    return splits, "own files"


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> what it is read from: a table and the images that it names, or a folder's images; by relative name."""
    read: dict[str, dict[str, Path]] = {}
    for name, file in task.files.items():
        path = _located(root, file) if file is not None else None
        if path is not None and path.is_file():
            images = _named_images(path, task.text[0], task.sep, sha256_of(path)) if task.kind == "image" else []
            read[name] = {"": path} | {image: path.parent / image for image in images}
        elif path is not None and path.is_dir():
            read[name] = {image: path / image for images in class_folders(path, "").values() for image in images}
    return read


@cache  # called for every run of a sweep
def _named_images(table: Path, column: str, sep: str | None, _digest: str) -> list[str]:
    """The images that a column of a table names by their paths, and which exist."""
    if table.suffix == ".parquet":
        from pyarrow import parquet, types

        kind = parquet.read_schema(table).field(column).type
        if types.is_struct(kind):  # bytes, or the path of a file
            column = f"{column}.path"
        elif not types.is_string(kind) and not types.is_large_string(kind):
            return []
        cells = parquet.read_table(table, columns=[column]).column(0).to_pylist()
        cells = [cell["path"] if isinstance(cell, dict) else cell for cell in cells]
    else:
        cells = read_table(table, "", sep)[column]
    return sorted({cell for cell in cells if isinstance(cell, str) and (table.parent / cell).is_file()})


def _located(root: str | None, path: str) -> Path:
    return Path(root or "").expanduser() / Path(path).expanduser()


def _read(task: TaskConfig, path: Path, label: str) -> Columns:
    """Inputs, label, and idx if the file has one."""
    if path.is_dir():
        if task.kind != "image":
            raise UserError(f"{label} is a folder, which only task.kind=image reads; name a table")
        pairs = [(file, name) for name, files in class_folders(path, label).items() for file in files]
        return {"image": read_images(path, [file for file, _ in pairs], label), "label": [name for _, name in pairs]}
    table = read_table(path, label, task.sep)
    require_columns(label, list(table), [*task.text, task.label])
    columns = {name: table[name] for name in task.text} | {"label": table[task.label]}
    if "idx" in table:
        columns["idx"] = table["idx"]
    if task.kind == "image":
        columns["image"] = _images(path, label, columns.pop(task.text[0]))
    elif task.kind == "regression":
        columns["label"] = [_number(value) for value in columns["label"]]
    elif task.kind == "summarization":
        columns["references"] = table.get("references", [[text] for text in columns["label"]])
    return columns


def _images(file: Path, label: str, cells: Sequence[Any]) -> list[Any]:
    """Image bytes from cells of bytes, of {"bytes": ...} as the datasets library stores them, or of relative paths."""
    cells = [cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell for cell in cells]
    if not any(isinstance(cell, str) for cell in cells):
        return cells
    for row, cell in enumerate(cells, start=1):
        if not isinstance(cell, str) or not cell.strip():
            raise UserError(f"{label}: row {row} has no image; expected a path relative to {file.name}")
        inside(cell, f"{label}: row {row}")
    return read_images(file.parent, cells, label)


def _number(value: Any) -> Any:
    """The number that a text from a CSV spells; other values are left to the checks."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _whole(value: Any) -> Any:
    """The whole number that a text spells; other values unchanged."""
    spelt = value.strip() if isinstance(value, str) else ""
    return int(spelt) if WHOLE.fullmatch(spelt.removeprefix("-")) else value


def _number_classes(task: TaskConfig, raw: dict[str, Columns], named: dict[str, str]) -> None:
    """Turns class names into ids: their index in task.labels, or among the sorted names of train."""
    for columns in raw.values():
        columns["label"] = [_class_id(task.labels, value) for value in columns["label"]]
    names = [v for v in raw["train"]["label"] if isinstance(v, str)] if task.labels is None else []
    ids = class_ids(names, None, task.num_labels, named["train"]) if names else {}
    for name, columns in raw.items():
        for row, value in enumerate(columns["label"], start=1):
            if isinstance(value, str) and value not in ids:
                allowed = ", ".join(ids or task.labels or map(str, range(task.num_labels)))
                raise UserError(f"{named[name]}: row {row} has label {value!r}; allowed: {allowed}")
        columns["label"] = [ids.get(v) if isinstance(v, str) else v for v in columns["label"]]


def _class_id(labels: Sequence[str] | None, value: Any) -> Any:
    """The id of a class, or its name if the id depends on all names; None for a blank."""
    if not isinstance(value, str):
        return value
    if labels is not None and value in labels:
        return list(labels).index(value)
    return _whole(value) if value.strip() else None


def _refuse_blank(task: TaskConfig, label: str, columns: Columns) -> None:
    """Refuses items without any text, which benchmarks may have but own data should not."""
    if task.kind == "image":
        return
    for row, texts in enumerate(zip(*(columns[name] for name in task.text), strict=True), start=1):
        if not any(text.strip() for text in texts):
            raise UserError(f"{label}: row {row} has no text in {', '.join(task.text)}")


def _with_validation(task: TaskConfig, splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Moves a tenth of train to validation, stratified by class and independent of the run's seed."""
    from experiments.data.protocols import draw_rows

    train = splits["train"]
    size = round(VALIDATION_SHARE * len(train))
    if not 0 < size < len(train):
        raise UserError(
            f"task {task.name}: {len(train)} training rows are too few to draw a validation split from; "
            "set task.files.validation=PATH"
        )
    chosen = draw_rows(train, task, size, "validation")
    rest = sorted(set(range(len(train))) - set(chosen))
    return {"train": train.select(rest), "validation": train.select(chosen), "test": splits["test"]}
