"""Shows a few items of a finished run with the model's predictions: a list of texts, or a grid of images.

    python -m experiments examples RUN [--count 8] [--wrong] [--out FILE]

Reads the run's predictions and loads its data again, without training or changing the run's folder.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError, first_line
from experiments.config.schema import ModelConfig
from experiments.config.task import DataConfig, ProtocolConfig, TaskConfig, check_task
from experiments.data.content import inputs
from experiments.runtime.text import clean
from experiments.store.foreign import DAMAGE, read_table, read_yaml

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = 4  # images side by side
CLIP = 300  # characters shown of a text


def add_to(commands: Any) -> None:
    """Adds `examples` to the command line."""
    parser = commands.add_parser("examples", help="show a few items of a finished run with the model's predictions")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--count", type=int, default=8, metavar="N", help="number of items (default: %(default)s)")
    parser.add_argument("--wrong", action="store_true", help="only items with a wrong prediction")
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG file for images (default: examples.png)")
    parser.add_argument("--data-root", metavar="FOLDER", help="data.root, if the data have moved since the run")
    parser.set_defaults(command=show)


def show(args: argparse.Namespace) -> int:
    """Prints the items, or writes them as a picture; returns the exit code."""
    try:
        task, rows = examples(args.run, args.count, args.wrong, args.data_root)
        if task.kind == "image":
            path = args.out or Path("examples.png")
            draw(task, rows, path)
            print(path)
        else:
            print(describe(task, rows))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{args.run}: its predictions do not fit its task ({first_line(error)})") from error
    return 0


def examples(
    run: Path, count: int, wrong: bool = False, data_root: str | None = None
) -> tuple[TaskConfig, list[dict[str, Any]]]:
    """Items of the reported split with their inputs, drawn by a hash of their numbers.

    Args:
        run: folder of a finished run.
        count: maximum number of items.
        wrong: only items whose prediction differs from the label, or whose generated text scores below 100.
        data_root: replaces the run's data.root.

    Returns:
        The task, and for each item idx, label, prediction, score and the task's input columns.

    Raises:
        UserError: the folder is not that of a finished run, or its data have changed.
    """
    task, rows = _report_split(run, data_root)
    predictions = _predictions(run)
    if wrong:
        generated = predictions["label"].dtype.kind == "O"  # accepted answers, and a text
        right = predictions["score"] == 100 if generated else predictions["label"] == predictions["prediction"]
        predictions = predictions[~right]
    order = sorted(predictions.to_dict("records"), key=lambda row: hashlib.sha256(str(row["idx"]).encode()).digest())
    positions = {idx: position for position, idx in enumerate(rows["idx"])}
    chosen = order[: max(0, count)]
    if lost := [row["idx"] for row in chosen if row["idx"] not in positions]:
        raise UserError(f"{run}: item {lost[0]} is not in the data, which have changed since the run")
    return task, [row | {name: rows[positions[row["idx"]]][name] for name in inputs(task)} for row in chosen]


def _report_split(run: Path, data_root: str | None) -> tuple[TaskConfig, Any]:
    from experiments.config.stored import from_store
    from experiments.data import load_task
    from experiments.data.protocols import apply_protocol

    path = run / "config.yaml"
    try:
        config = read_yaml(path)
        parts = [config[name] for name in ("task", "data", "protocol")]
    except OSError as error:
        raise UserError(f"{run} is not the folder of a run: it has no config.yaml") from error
    except DAMAGE as error:
        raise UserError(f"{path} is not that of a run ({first_line(error)})") from error
    task, data = from_store(TaskConfig, parts[0], path), from_store(DataConfig, parts[1], path)
    protocol = from_store(ProtocolConfig, parts[2], path)
    check_task(task)
    data.root, data.cache = data_root or data.root, None
    loaded = load_task(task, data)
    if task.teacher.pattern is not None:
        from experiments.models.teacher import taught

        loaded = taught(loaded, data, from_store(ModelConfig, config["model"], path))
    splits = apply_protocol(loaded, protocol, train_items=None, seed=0)
    return task, splits.report


def _predictions(run: Path) -> pd.DataFrame:
    import pyarrow as pa

    try:
        return read_table(run / "predictions.parquet", ["idx", "label", "prediction", "score"]).to_pandas()
    except FileNotFoundError as error:
        raise UserError(f"{run} has no predictions.parquet; finish the run first") from error
    except (*DAMAGE, pa.ArrowException) as error:
        raise UserError(f"{run}/predictions.parquet cannot be read ({first_line(error)}); run it again") from error


def describe(task: TaskConfig, rows: list[dict[str, Any]]) -> str:
    """The items as text."""
    blocks = []
    for row in rows:
        lines = [clean(f"item {row['idx']}  {_verdict(task, row)}")]
        inputs = [(name, row[name]) for name in task.text]
        if _is_text(row):
            inputs += [("reference", " | ".join(row["label"])), ("generated", row["prediction"])]
        for name, text in inputs:
            lines.append(textwrap.indent(textwrap.fill(f"{clean(name)}: {clean(text, CLIP)}", 116), "  "))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _is_text(row: dict[str, Any]) -> bool:
    """Whether an item's label is a list of texts."""
    return not isinstance(row["label"], int | float)


def _verdict(task: TaskConfig, row: dict[str, Any]) -> str:
    if task.kind == "causal" and task.answer == "tokens":
        return f"{row['prediction']} of {row['label']} tokens right, loss {row['score']:.2f}"
    if _is_text(row):
        return f"{task.metrics[0]} {row['score']:.1f}"
    if task.kind == "regression":
        return f"label {row['label']:.2f}, prediction {row['prediction']:.2f}"
    right = "right" if row["label"] == row["prediction"] else "WRONG"
    return f"{right}: label {row['label']}, prediction {row['prediction']} (margin {row['score']:.2f})"


def draw(task: TaskConfig, rows: list[dict[str, Any]], path: Path) -> None:
    """Writes a grid of images with their predictions; wrong ones have a cross and the label."""
    import matplotlib
    from matplotlib.text import Text
    from PIL import Image

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = max(1, -(-len(rows) // COLUMNS))
    figure, axes = pyplot.subplots(lines, COLUMNS, figsize=(2.2 * COLUMNS, 2.6 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, rows, strict=False):
        with Image.open(io.BytesIO(row["image"])) as image:
            axis.imshow(image.convert("RGB"), interpolation="nearest")
        right = row["label"] == row["prediction"]
        axis.set_title(f"{'✓' if right else '✗'} {_name(task, row['prediction'])}", fontsize=9)
        if not right:
            axis.text(
                0.5, -0.04, f"label {_name(task, row['label'])}", transform=axis.transAxes, ha="center", va="top",
                fontsize=8,
            )  # fmt: skip
    figure.suptitle(f"{task.name}: predictions", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a name with dollar signs is no formula
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _name(task: TaskConfig, label: int) -> str:
    return clean(task.labels[label] if task.labels else str(label), CLIP)
