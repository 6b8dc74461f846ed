"""The digits of scikit-learn's set as an image task, 5 to 9 or all; the model was pretrained on 0 to 4."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.content import make_split

if TYPE_CHECKING:
    from datasets import Dataset

CLASSES = {"digits": range(5, 10), "all": range(10)}
TRAIN_SHARE, VALIDATION_SHARE = 0.2, 0.2  # the rest is test


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train, validation and test, drawn by a hash of the row numbers.

    Raises:
        UserError: unknown subset.
    """
    if task.subset not in CLASSES:
        raise UserError(f"task.subset={task.subset} is not a part of the digits; type one of {', '.join(CLASSES)}")
    classes = CLASSES[task.subset]
    images, labels = digits(classes)
    order = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"elalora-digits/{i}".encode()).digest())
    first, second = int(TRAIN_SHARE * len(order)), int((TRAIN_SHARE + VALIDATION_SHARE) * len(order))
    parts = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
    splits = {}
    for name, rows in parts.items():
        rows.sort()
        columns = {"idx": rows, "image": [png(images[i]) for i in rows], "label": labels[rows].tolist()}
        splits[name] = make_split(task, columns)
    return splits, f"scikit-learn's digits, {classes.start} to {classes[-1]}"


def png(pixels: np.ndarray) -> bytes:
    """The PNG file of an image, (height, width) or (height, width, 3) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def digits(classes: range) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 8, 8) of grey values 0..255 and labels (n,) counted from the first class, in the set's order."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, list(classes))
    grey = np.rint(images[chosen].reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    return grey, labels[chosen] - classes.start
