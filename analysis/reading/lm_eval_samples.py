"""Items that lm-evaluation-harness answered, from the files that it writes with --log_samples.

samples_TASK_DATE.jsonl has one object for each item and filter: doc_id, doc_hash, the filter's name, and one value for
each metric named in `metrics`. doc_id and doc_hash pair the items of two models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.stats.seeds import Array
from elalora.errors import UserError, first_line

NAME = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d-]+\.\d+\.jsonl")


class Key(NamedTuple):
    """What one score of lm-evaluation-harness belongs to."""

    task: str
    filter: str
    metric: str


Item = tuple[int, str]  # doc_id and doc_hash
Samples = dict[Key, dict[Item, float]]


def read_samples(folder: Path) -> Samples:
    """The values of every item in the newest sample file of each task below a folder (lm_eval's --output_path).

    Raises:
        UserError: there is no such file, or one cannot be read.
    """
    newest: dict[str, Path] = {}
    for file in sorted(folder.rglob("samples_*.jsonl"), key=lambda file: file.name):
        if (match := NAME.fullmatch(file.name)) is not None:
            newest[match[1]] = file
    if not newest:
        raise UserError(f"{folder} has no samples_*.jsonl; run lm_eval with --output_path {folder} --log_samples")
    samples: Samples = {}
    for task, file in newest.items():
        for line in _lines(file):
            for metric in line["metrics"]:
                if isinstance(value := line.get(metric), int | float):
                    key = Key(task, str(line.get("filter", "none")), str(metric))
                    samples.setdefault(key, {})[int(line["doc_id"]), str(line["doc_hash"])] = float(value)
    return samples


def paired(arm: list[Samples], base: list[Samples], key: Key) -> tuple[Array, Array]:
    """The values of both sides on the same items in the same order: (runs, items) each.

    Raises:
        UserError: a run has other items, so that nothing pairs them.
    """
    items = sorted(base[0][key])
    for samples in (*arm, *base):
        if sorted(samples.get(key, {})) != items:
            raise UserError(
                f"{key.task}: the folders have other items of it ({key.filter}, {key.metric}); evaluate all of them "
                "with the same task, --limit and version of lm-evaluation-harness"
            )
    first, second = (np.array([[samples[key][item] for item in items] for samples in side]) for side in (arm, base))
    return first, second


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for text in file.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            line["metrics"], line["doc_id"], line["doc_hash"]
            yield line
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a sample file of lm-evaluation-harness ({first_line(error)})") from error
