"""`python -m experiments verify`: reads every file of finished runs and names what does not fit together.

A run's result.json has size and SHA-256 of its files. Readers of a store check ids, ranges, counts and sizes each time;
this command also reads the files, and computes the score again from the predictions.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError, first_line
from experiments.config.task import PART
from experiments.runtime.text import clean, counted
from experiments.store.compact import opened
from experiments.store.finished import changed_files
from experiments.store.folder import RunFolder
from experiments.store.foreign import DAMAGE, read_table, read_text

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

TOLERANCE = 1e-6  # points; other versions of a metric's library may differ in the last digits


def verify(root: Path) -> tuple[int, list[str]]:
    """Reads every finished run of a store.

    Returns:
        The number of finished runs, and a line for every problem.

    Raises:
        UserError: `root` is not a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder of runs; type python -m experiments verify FOLDER")
    folders = sorted(path.parent for path in opened(root).glob("*/*/result.json"))
    return len(folders), [f"{folder}: {line}" for folder in folders for line in problems(folder)]


def problems(folder: Path) -> list[str]:
    """What is wrong with one finished run, in lines; empty if nothing is."""
    try:
        result = RunFolder(folder).result()
        if not result.get("files"):
            return ["no checksums: an older version or another program wrote its result"]
        lines = [f"{name} was changed after the run was done" for name in changed_files(folder, result)]
        check_score(folder, result)
        check_best(folder, result)
    except UserError as error:
        return [str(error)]
    except DAMAGE as error:
        return [first_line(error)]
    return lines


def check_score(folder: Path, result: dict[str, Any]) -> pyarrow.Table:
    """Computes the scores of the last checkpoint again from predictions.parquet; of summaries, the primary one.

    Returns:
        The items that it read: idx, label, prediction, score.

    Raises:
        ValueError: one is not the stored score, or the number of items is another.
    """
    import pyarrow

    from experiments.training.metrics import METRICS

    metric, stored = result["metric"], result["readings"]["last"]["report"]["metrics"]
    try:
        items = read_table(folder / "predictions.parquet", ["idx", "label", "prediction", "score"])
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"predictions.parquet cannot be read ({first_line(error)})") from error
    if len(items) != result["data"]["report_items"]:
        raise ValueError(f"predictions.parquet has {len(items)} items, its result {result['data']['report_items']}")
    if metric == "token_accuracy":
        again = {metric: 100 * float(items["prediction"].to_numpy().sum() / items["label"].to_numpy().sum())}
    elif metric in METRICS and not pyarrow.types.is_list(items.schema.field("label").type):
        labels, predictions = (items[name].to_numpy() for name in ("label", "prediction"))
        again = scores_again([name for name in stored if name in METRICS], labels, predictions)
    else:  # of generated texts, every item's score is the primary metric
        again = {metric: _mean_of_parts(items, result["identity"]["task"])}
    for name, value in again.items():
        if not abs(value - stored[name]) <= TOLERANCE:
            raise ValueError(f"its {name} is {stored[name]:.2f}, its predictions give {value:.2f}")
    return items


def _mean_of_parts(items: Any, task: dict[str, Any]) -> float:
    """The mean score, where the split joins several test sets that of their means."""
    import numpy as np

    scores = items["score"].to_numpy()
    places = items["idx"].to_numpy() // PART if task.get("parts") else np.zeros(len(scores))
    return float(np.mean([scores[places == place].mean() for place in np.unique(places)]))


def check_best(folder: Path, result: dict[str, Any]) -> None:
    """Compares the scores of the best checkpoint, whose predictions are not stored, with the lines of metrics.jsonl.

    Raises:
        ValueError: one is not the line's.
    """
    best = result["readings"]["best"]
    if best is None:
        return
    lines = [json.loads(line) for line in read_text(folder / "metrics.jsonl").splitlines()]
    at = (best["step"] - 1, best["report"]["split"])
    written = {line["metric"]: line["value"] for line in lines if (line["step"], line["split"]) == at}
    for name, value in best["report"]["metrics"].items():
        if written.get(name) != value:
            raise ValueError(f"its best {name} is {value}, metrics.jsonl has {written.get(name, 'none')} at that step")


def scores_again(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Metrics in points, as `experiments.training.metrics.compute` gives them, to about 1e-12.

    Where labels and predictions are 0 and 1, counts give them: tables check every run, and scikit-learn takes 2 ms for
    F1 or Matthews correlation, most of it to look at its arguments.
    """
    from experiments.training.metrics import compute

    quick: dict[str, float] = {}
    if len(labels) and all(((values == 0) | (values == 1)).all() for values in (labels, predictions)):
        sums = (labels.sum(), predictions.sum(), (labels * predictions).sum())
        n, true, said, both = len(labels), *map(float, sums)
        quick["accuracy"] = 100 * (n - true - said + 2 * both) / n
        quick["f1"] = 200 * both / (true + said) if true + said else 0.0  # 2 TP / (2 TP + FP + FN)
        spread = true * (n - true) * said * (n - said)
        quick["mcc"] = 100 * (n * both - true * said) / math.sqrt(spread) if spread else 0.0
    if slow := [name for name in names if name not in quick]:
        quick |= compute(slow, labels, predictions)[0]
    return {name: quick[name] for name in names}


def add_to(commands: Any) -> None:
    """Adds `verify` to the command line."""
    parser: argparse.ArgumentParser = commands.add_parser("verify", help="check every file of finished runs")
    parser.add_argument("stores", nargs="*", default=["runs"], metavar="STORE", help="run stores (default: runs)")
    parser.set_defaults(command=lambda args: show(args.stores))


def show(stores: Sequence[str]) -> int:
    """Prints problems and a summary; returns 1 if there is a problem, else 0."""
    failed = 0
    for store in stores:
        count, lines = verify(Path(store))
        wrong = {line.partition(": ")[0] for line in lines}
        print("\n".join([*map(clean, lines), f"{store}: {counted(count, 'finished run')}, {len(wrong)} with problems"]))
        failed |= bool(lines)
    return failed
