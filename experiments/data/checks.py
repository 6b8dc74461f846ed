"""Checks every loaded split, whatever its source; an error names the row at fault.

Rows are counted from 1, without a header.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError, first_line
from experiments.config.task import OPTIONS, TaskConfig
from experiments.data.content import make_split
from experiments.data.pixels import as_rgb
from experiments.data.tables import Columns
from experiments.data.words import check_seen

if TYPE_CHECKING:
    from datasets import Dataset

# formats that Pillow reads without starting other programs
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
LARGEST = (2 - 2**-23) * 2.0**127  # in single precision


def check_rows(task: TaskConfig, label: str, columns: Columns) -> None:
    """Checks a split before it becomes a data set.

    Args:
        task: defines inputs and labels.
        label: how errors name the split's file.
        columns: idx, the input columns ("image" for images), label, and references for summaries.

    Raises:
        UserError: no rows, a duplicate idx, a missing input or label, an invalid label, or an image whose header cannot
            be read, or summaries that the task's metrics cannot score.
    """
    if not columns["idx"]:
        raise UserError(f"{label} has no rows; give it at least one")
    _check_idx(label, columns["idx"])
    if task.kind == "image":
        for row, image in enumerate(columns["image"], start=1):
            check_image(f"{label}: row {row}", image)
    else:
        for name in task.text:
            _refuse(label, columns[name], lambda v: not isinstance(v, str), f"has no text in column {name}")
    _check_labels(task, label, columns)


def checked_splits(task: TaskConfig, parts: Iterable[tuple[str, str, Columns]]) -> dict[str, Dataset]:
    """Checks splits and makes their data sets, one after the other.

    Args:
        task: defines inputs and labels.
        parts: (name of the split, label for errors, columns as for `check_rows`); without idx, rows are numbered over
            all splits.

    Raises:
        UserError: see `check_rows`.
    """
    splits, start = {}, 0
    for name, label, columns in parts:
        count = len(columns["label"])
        columns.setdefault("idx", list(range(start, start + count)))
        check_rows(task, label, columns)
        splits[name] = make_split(task, columns)
        start += count
    return splits


def check_count(label: str, count: int, official: int, noun: str = "rows") -> None:
    """Refuses a split that does not have the official size."""
    if count != official:
        raise UserError(
            f"{label} has {count} {noun}; the official split has {official} "
            "(for a subset or a stand-in type task.verify=false)"
        )


def _check_idx(label: str, idx: list[Any]) -> None:
    _refuse(label, idx, lambda v: type(v) is not int, "has a non-integer idx")  # True is an int too
    _refuse(label, idx, lambda v: not -(2**63) <= v < 2**63, "has an idx that does not fit into 64 bits")
    if len(set(idx)) < len(idx):
        number = next(n for n, count in Counter(idx).items() if count > 1)
        first, second = [row for row, n in enumerate(idx, start=1) if n == number][:2]
        raise UserError(f"{label}: rows {first} and {second} have the same idx {number}; it must be unique")


def _check_labels(task: TaskConfig, label: str, columns: Columns) -> None:
    labels = columns["label"]
    _refuse(label, labels, lambda v: v is None, "has no label")
    if task.kind == "summarization":
        _refuse(label, labels, lambda v: not isinstance(v, str), "has a summary that is not text")
        for row, texts in enumerate(columns["references"], start=1):
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{label}: row {row} has no references; expected a text or a list of texts")
        check_seen(label, task.metrics, columns["references"])
    elif task.options_column is not None:
        for row, (options, answer) in enumerate(zip(columns[OPTIONS], labels, strict=True), start=1):
            _check_options(f"{label}: row {row}", options, answer)
    elif task.kind == "regression":
        for row, value in enumerate(labels, start=1):
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
                raise UserError(f"{label}: row {row} has label {value}; expected a finite number")
    else:
        text = f"has label {{value}}; allowed: 0 to {task.num_labels - 1} (task.num_labels={task.num_labels})"
        _refuse(label, labels, lambda v: type(v) is not int or not 0 <= v < task.num_labels, text)


def _check_options(label: str, options: Any, answer: Any) -> None:
    texts = isinstance(options, list) and all(isinstance(text, str) and text.strip() for text in options)
    if not texts or len(options) < 2 or len(set(options)) < len(options):
        raise UserError(f"{label} has the options {options!r}; expected a list of at least two different texts")
    if type(answer) is not int or not 0 <= answer < len(options):
        raise UserError(
            f"{label} has label {answer!r}; expected one of its options ({', '.join(options)}) or its number, 0 to "
            f"{len(options) - 1}"
        )


def _refuse(label: str, values: Iterable[Any], wrong: Callable[[Any], bool], text: str) -> None:
    for row, value in enumerate(values, start=1):
        if wrong(value):
            raise UserError(f"{label}: row {row} {text.format(value=value)}")


def check_image(label: str, content: Any) -> None:
    """Checks format and size in an image's header; pixels are decoded only where they may be out of range.

    Raises:
        UserError: the image is missing, of an unknown format, or implausibly large.
    """
    from PIL import Image, UnidentifiedImageError

    if not isinstance(content, bytes):
        raise UserError(f"{label} has no image")
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.mode in ("I", "F"):
                as_rgb(image)
    except UnidentifiedImageError:
        raise UserError(f"{label} is not a readable image; allowed: {', '.join(IMAGE_FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{label} is not a readable image: {first_line(error)}") from error
