"""Assigns the rows of a task: which train, which select a checkpoint, and which are reported.

Tasks have three splits, or only train and validation if the official test labels are hidden (GLUE). The protocols use
them as follows:

    protocol     benchmark           trains on             selects on    reports
    clean        GLUE                train less held-out   held-out      validation, read once
    clean        VTAB-1k             train + validation    nothing       test, read once
    clean        IFEval              train + validation    nothing       test, read once
    clean        others              train                 validation    test
    paper_last   GLUE, summaries     train                 nothing       validation, as ElaLoRA's code
    paper_last   VTAB-1k             train                 nothing       test, as ElaLoRA's code
    paper_last   others              train + validation    nothing       test
    paper_best   as paper_last, but selects on the reported split (optimistic)
    tune         GLUE                train less held-out   nothing       held-out
    tune         others              train                 nothing       validation; refused for IFEval

`tune` is for runs that choose settings for `clean`: it never reads the rows that `clean` reports. On VTAB-1k it is the
procedure of the benchmark (Zhai et al. 2019): tune on 800 / 200, then train once on all 1,000.

Draws use hashes of the row numbers, so they are the same under any version of any library.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config.task import ProtocolConfig, TaskConfig, rows_as
from experiments.data.content import TaskData

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT_SHARE = 0.1
HELD_OUT_MOST = 1000
VALIDATION_SHARE = 0.1  # of a train split beside which data have no validation


@dataclass(frozen=True)
class Splits:
    """The rows of one run, and their names in tables and files."""

    train: Dataset
    select: Dataset | None  # None if no checkpoint is selected
    report: Dataset
    select_name: str | None  # "held_out" for rows of train that the clean protocol holds out
    report_name: str
    available: int = 0  # training items before a subset is drawn
    reportable: int = 0  # reported items before a subset is drawn


def apply_protocol(
    data: TaskData, protocol: ProtocolConfig, *, train_items: int | None, seed: int, eval_items: int | None = None
) -> Splits:
    """Assigns every row of a task to a part of the run.

    Args:
        data: the loaded task.
        protocol: its name, and the seed of the held-out draw, which is the same for all run seeds.
        train_items: size of a subset of the training rows; None uses all, and so does the task's own quick_items if
            there are fewer.
        seed: the run's seed, which draws the subset: the same for all arms with that seed.
        eval_items: size of the evaluated subsets, the same rows for every seed; a smaller split is taken whole.

    Raises:
        UserError: a subset is empty, or that of train is larger than train.
    """
    if eval_items is not None and eval_items < 1:
        raise UserError(f"data.eval_items={eval_items} must be at least 1; data.eval_items=null evaluates all")
    splits = _evaluated(_by_splits(data, protocol), data.config, eval_items)
    splits = replace(splits, available=len(splits.train))
    if train_items is None or train_items == data.config.quick_items and train_items > len(splits.train):
        return splits
    if not 1 <= train_items <= len(splits.train):
        raise UserError(
            f"data.train_items={train_items}, but {data.config.name} has {len(splits.train)} "
            f"training items under protocol={protocol.name}; type 1 to {len(splits.train)}, "
            "or data.train_items=null for all"
        )
    chosen = draw_rows(splits.train, data.config, train_items, f"train_items/{seed}")
    return replace(splits, train=splits.train.select(chosen))


def _evaluated(splits: Splits, task: TaskConfig, size: int | None) -> Splits:
    """The splits with at most `size` rows to select on and to report; a split that does both stays one."""
    splits = replace(splits, reportable=len(splits.report))

    def part(rows: Dataset, name: str | None) -> Dataset:
        if size is None or size >= len(rows):
            return rows
        return rows.select(draw_rows(rows, task, size, f"eval_items/{name}"))

    select = None if splits.select is None else part(splits.select, splits.select_name)
    return replace(splits, select=select, report=part(splits.report, splits.report_name))


def selects(protocol: str, suite: str, source: str) -> bool:
    """Whether a protocol selects a checkpoint, so that evaluations during training change what is reported."""
    return protocol == "paper_best" or protocol == "clean" and suite != "vtab" and source != "ifeval"


def draws_held_out(protocol: str, task: Mapping[str, Any]) -> bool:
    """Whether a part of train is held out, drawn by `protocol.split_seed`: where no split is named test."""
    with_test = (
        "summarization", "vtab", "vader", "digits", "sums", "math", "commonsense", "code", "instructions",
        "ifeval", "class_folders",
    )  # fmt: skip
    return protocol in ("clean", "tune") and task["source"] not in with_test and "test" not in task["files"]


def _by_splits(data: TaskData, protocol: ProtocolConfig) -> Splits:
    if protocol.name not in ("clean", "tune"):
        return _as_papers(data, best=protocol.name == "paper_best")
    clean = _clean(data, protocol.split_seed)
    if protocol.name == "tune":
        assert clean.select is not None and clean.select_name is not None
        if data.config.source == "ifeval":
            raise UserError(
                "protocol=tune reads validation rows, of which task=ifeval has none with rules: tune with "
                "task=alpaca_cleaned, which trains on the same rows"
            )
        return replace(clean, select=None, select_name=None, report=clean.select, report_name=clean.select_name)
    if not selects(protocol.name, data.config.suite, data.config.source):
        assert clean.select is not None
        return replace(clean, train=_joined(clean.train, clean.select), select=None, select_name=None)
    return clean


def _clean(data: TaskData, split_seed: int) -> Splits:
    """Rows to train on, to select on and to report."""
    train, (validation_name, validation) = data.splits["train"], _validation(data)
    if "test" in data.splits:
        return Splits(train, validation, data.splits["test"], validation_name, "test")
    size = min(int(HELD_OUT_SHARE * len(train)), HELD_OUT_MOST)
    held_out = draw_rows(train, data.config, size, f"held_out/{split_seed}")
    rest = sorted(set(range(len(train))) - set(held_out))
    return Splits(train.select(rest), train.select(held_out), validation, "held_out", validation_name)


def _as_papers(data: TaskData, best: bool) -> Splits:
    """All of train, and one split to select on and to report."""
    train, (name, report), suite = data.splits["train"], _validation(data), data.config.suite
    if "test" in data.splits and suite != "summarization":
        train = train if suite == "vtab" else _joined(train, report)
        report, name = data.splits["test"], "test"
    return Splits(train, report if best else None, report, name if best else None, name)


def _validation(data: TaskData) -> tuple[str, Dataset]:
    return next((name, rows) for name, rows in data.splits.items() if name.startswith("validation"))


def _joined(first: Dataset, second: Dataset) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets([first, second])


def with_validation(task: TaskConfig, splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Moves a tenth of train to validation, stratified by class and independent of the run's seed.

    Raises:
        UserError: train has too few rows.
    """
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


def draw_rows(rows: Dataset, task: TaskConfig, size: int, salt: str) -> list[int]:
    """Positions of a random subset in increasing order, stratified if the task has classes; see `draw`."""
    columns = rows.select_columns(["idx", "label"])[:]
    classes = columns["label"] if rows_as(task).kind in ("classification", "image") else [0] * len(rows)
    return draw(columns["idx"], classes, size, f"{task.name}/{salt}")


def draw(idx: Sequence[int], classes: Sequence[int], size: int, salt: str) -> list[int]:
    """A random subset with the class shares of the whole, up to rounding.

    Args:
        idx: numbers of the rows, (n,), distinct.
        classes: the class of every row, (n,).
        size: how many to draw, at most n.
        salt: distinguishes this draw from others.

    Returns:
        Positions in increasing order. Rows are ranked by a hash of salt and idx; rows left over by rounding down go to
        the classes with the largest remainders.
    """

    def rank(position: int) -> bytes:
        return hashlib.sha256(f"{salt}/{idx[position]}".encode()).digest()

    members: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(classes):
        members[label].append(position)
    exact = {label: size * len(rows) / len(idx) for label, rows in members.items()}
    quota = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (quota[label] - exact[label], label))
    for label in by_remainder[: size - sum(quota.values())]:
        quota[label] += 1
    return sorted(p for label, rows in members.items() for p in sorted(rows, key=rank)[: quota[label]])
