"""Commonsense reasoning: one training set of eight tasks' training rows, answered on eight test sets.

The files of LLM-Adapters (Hu et al., arXiv 2304.01933; AGI-Edgerunners/LLM-Adapters, ODC-By, the sets under their own
licences) in `data.root/commonsense/`: commonsense_15k.json or commonsense_170k.json to train on, and SET/test.json for
each of `SETS`. Every row has an instruction, which lists the choices, and an answer, the word of one choice. Training
rows come from the training parts of the same eight sets, so the tests measure in-domain multi-task learning and nothing
zero-shot. BoolQ is asked without its passage. With `task.options_column` a row's options are those that its instruction
names: two to five, of one set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import digits
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import OPTIONS, PART, DataConfig, TaskConfig
from experiments.data.checks import check_count, check_rows
from experiments.data.content import data_root, make_split
from experiments.data.labels import number_options
from experiments.data.protocols import draw
from experiments.data.tables import Columns, read_table

if TYPE_CHECKING:
    from datasets import Dataset

SETS = {
    "boolq": 3_270, "piqa": 1_838, "social_i_qa": 1_954, "hellaswag": 10_042, "winogrande": 1_267, "ARC-Easy": 2_376,
    "ARC-Challenge": 1_172, "openbookqa": 500,
}  # fmt: skip
TRAIN = ("commonsense_15k", "commonsense_170k")
VALIDATION = 1_000  # rows of the training file


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train and validation from the training file, the eight test sets as one split, and their source.

    An item of the test split is numbered `PART` times the place of its set, counted from 1, plus its row.

    Raises:
        UserError: a file is missing, has other columns or another number of rows, or an answer that is no option.
    """
    if task.subset not in TRAIN or list(task.parts) != list(SETS) or not task.labels:
        raise UserError(
            f"task {task.name}: leave task.parts and task.options as they are; task.subset is one of {', '.join(TRAIN)}"
        )
    found = files(task, data.root)
    root = data_root(data)
    if missing := [name for name in _names(task) if name not in {n for split in found.values() for n in split}]:
        raise UserError(
            f"task {task.name}: commonsense/{missing[0]} is missing in data.root={root}; put the files of LLM-Adapters "
            "(ft-training_set/ and dataset/) into FOLDER/commonsense/ and type data.root=FOLDER"
        )
    train = _read(task, found["train"][f"{task.subset}.json"], f"commonsense/{task.subset}.json", 0)
    rows = range(len(train["label"]))
    held_out = draw(train["idx"], [0] * len(rows), min(VALIDATION, len(rows) // 10), f"{task.name}/validation")
    rest = sorted(set(rows) - set(held_out))
    tests = [
        _read(task, found["test"][f"{name}/test.json"], f"commonsense/{name}/test.json", place)
        for place, name in enumerate(SETS, start=1)
    ]
    if task.verify:
        for (name, rows_there), columns in zip(SETS.items(), tests, strict=True):
            check_count(f"commonsense/{name}/test.json", len(columns["label"]), rows_there)
    joined = {name: [value for columns in tests for value in columns[name]] for name in tests[0]}
    splits = {"train": _rows(train, rest), "validation": _rows(train, held_out), "test": joined}
    return {name: make_split(task, columns) for name, columns in splits.items()}, "local folder commonsense"


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> its files in data.root, by their names below commonsense/."""
    folder = Path(root or "", "commonsense").expanduser()
    there = [name for name in _names(task) if root and (folder / name).is_file()]
    found: dict[str, dict[str, Path]] = {}
    for name in there:
        found.setdefault("test" if name.endswith("test.json") else "train", {})[name] = folder / name
    return found


def _names(task: TaskConfig) -> list[str]:
    return [f"{task.subset}.json", *(f"{name}/test.json" for name in SETS)]


def _read(task: TaskConfig, file: Path, label: str, place: int) -> Columns:
    """Rows of one file, checked, with the options' numbers as labels."""
    table = read_table(file, label, ["instruction", "answer"])
    options = {option: number for number, option in enumerate(task.labels or [])}
    for row, answer in enumerate(table["answer"], start=1):
        if answer not in options:
            raise UserError(f"{label}: row {row} has the answer {answer!r}; allowed: {', '.join(options)}")
    count = len(table["answer"])
    columns = {
        "idx": [place * PART + row for row in range(count)], task.text[0]: table["instruction"],
        "label": [options[answer] for answer in table["answer"]],
    }  # fmt: skip
    if task.options_column is not None:
        rows = zip(table["instruction"], table["answer"], strict=True)
        columns |= {OPTIONS: [_named(text, answer, options) for text, answer in rows], "label": table["answer"]}
        number_options(columns)
    check_rows(task, label, columns)
    return columns


def _named(instruction: str, answer: str, options: Iterable[str]) -> list[str]:
    """The options of the answer's kind that an instruction names, in any case: "Answer1: ..." names answer1."""
    alike = [option for option in options if _kind(option) == _kind(answer)]
    return [option for option in alike if re.search(rf"\b{re.escape(option)}\b", instruction, re.IGNORECASE)]


def _kind(option: str) -> str:
    """An option without its number; "" for true and false, which have none."""
    return option.rstrip(digits) if option[-1].isdigit() else ""


def _rows(columns: Columns, chosen: Sequence[int]) -> Columns:
    return {name: [values[row] for row in chosen] for name, values in columns.items()}
