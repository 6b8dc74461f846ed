"""Small data sets that tests write to disk, and the configuration that reads them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
from omegaconf import OmegaConf
from PIL import Image

from experiments.config.task import DataConfig, TaskConfig
from experiments.data import TaskData, load_task
from experiments.runtime.places import CHECKOUT

CONF = CHECKOUT / "conf" / "task"


def task_config(name: str, **change: Any) -> TaskConfig:
    """A task of conf/task/ with some settings changed."""
    raw = OmegaConf.merge(OmegaConf.structured(TaskConfig), OmegaConf.load(CONF / f"{name}.yaml"), change)
    config = OmegaConf.to_object(raw)
    assert isinstance(config, TaskConfig)
    return config


def load(name: str, root: Path | None, **change: Any) -> TaskData:
    """The data of a task below a folder."""
    return load_task(task_config(name, **change), DataConfig(root=None if root is None else str(root)))


def write_parquet(file: Path, **columns: Any) -> Path:
    """A parquet file with these columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), file)
    return file


def png(level: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    """A grey image's file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(buffer, format="PNG")
    return buffer.getvalue()


def image_lists(folder: Path, rows: dict[str, list[tuple[str, int]]]) -> Path:
    """A VTAB-1k folder: list files, and an image for every name in them."""
    for stem, entries in rows.items():
        for number, (path, _) in enumerate(entries):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(png(number))
        (folder / f"{stem}.txt").write_text("".join(f"{path} {label}\n" for path, label in entries))
    return folder


def write_csv(file: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    """A CSV file with a header."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSON Lines file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def own(root: Path, train: str = "train.csv", test: str = "train.csv", name: str = "own", **change: Any) -> Any:
    """The user's own data below a folder, from a task config and file names alone."""
    files = {"train": train, "validation": None, "test": test} | change.pop("files", {})
    return load(name, root, files=files, **change)
