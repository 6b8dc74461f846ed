"""Image benchmarks in class folders or tables: rows, splits and the known numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets_on_disk import load, task_config, write_parquet

from elalora import UserError
from experiments.config.increments import parts_of
from experiments.config.task import ProtocolConfig
from experiments.data.class_folders import BENCHMARKS, _check
from experiments.data.digits import png
from experiments.data.protocols import apply_protocol

NAMES = {"imagenet_r": 10, "imagenet_a": 10, "domainnet": 5, "cifar100_full": 10}
TWO = dict(num_labels=2, increments=2, verify=False)


def image(value: int) -> bytes:
    return png(np.full((4, 4, 3), value, dtype=np.uint8))


def folders(root: Path, name: str, train: int = 20, test: int = 3) -> Path:
    for split, count in (("train", train), ("test", test)):
        for number, cls in enumerate(("cat", "dog")):
            place = root / name / split / cls
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i:03d}.png").write_bytes(image(100 * number + i))
    return root


def test_class_folders_become_splits_with_a_tenth_of_train_held_out(tmp_path: Path):
    data = load("imagenet_r", folders(tmp_path, "imagenet-r"), **TWO)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 36, "validation": 4, "test": 6}
    assert sorted(data.splits["validation"]["label"]) == [0, 0, 1, 1]
    assert data.splits["test"]["label"][:] == [0] * 3 + [1] * 3 and data.splits["test"]["image"][0] == image(0)
    clean = apply_protocol(data, ProtocolConfig(name="clean"), train_items=None, seed=0)
    assert (clean.select_name, clean.report_name) == ("validation", "test")


def test_tables_of_images_are_the_same_data(tmp_path: Path):
    for split, count in (("train", 20), ("test", 3)):
        labels = [number for number in (0, 1) for _ in range(count)]
        cells = [{"bytes": image(100 * n + i), "path": None} for n in (0, 1) for i in range(count)]
        write_parquet(tmp_path / "a" / "cifar100" / f"{split}.parquet", img=cells, fine_label=labels)
    tables = load("cifar100_full", tmp_path / "a", **TWO)
    plain = load("cifar100_full", folders(tmp_path / "b", "cifar100"), **TWO)
    assert tables.fingerprint == plain.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_known_and_its_default_parts_share_out_its_classes(name: str):
    task = task_config(name)
    known = BENCHMARKS[task.subset]
    assert task.num_labels == known.classes
    assert len(parts_of(task, list(range(task.num_labels)))) == NAMES[name]


def test_numbers_that_are_not_the_known_ones_are_refused(tmp_path: Path):
    folders(tmp_path, "imagenet-a")
    with pytest.raises(UserError, match="imagenet-a has 2 classes .*task.num_labels=200"):
        load("imagenet_a", tmp_path)
    task = task_config("cifar100_full")
    with pytest.raises(UserError, match="train and test together has 59999 images; the official split has 60000"):
        _check(task, {"train": 50_000, "test": 9_999})
    with pytest.raises(UserError, match="cifar100/train has 40000 images; the official split has 50000"):
        _check(task, {"train": 40_000, "test": 20_000})
    _check(task, {"train": 50_000, "test": 10_000})


def test_missing_data_say_where_they_belong(tmp_path: Path):
    with pytest.raises(UserError, match="task imagenet_r: no folder imagenet-r in data.root="):
        load("imagenet_r", tmp_path)
    with pytest.raises(UserError, match="is not an image benchmark; type one of imagenet-r"):
        load("imagenet_r", tmp_path, subset="imagenet-v")
