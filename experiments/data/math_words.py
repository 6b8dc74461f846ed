"""Mathematics in words: trained on MetaMathQA's rows, answered on the test set of GSM8K or MATH.

Read from `data.root/math/`, else from the hub: MetaMathQA (meta-math/MetaMathQA) as MetaMathQA-395K.json or
train.parquet, GSM8K (openai/gsm8k, main) as gsm8k_test.jsonl or gsm8k_test.parquet, and MATH as math_test.jsonl or
math_test.parquet (EleutherAI/hendrycks_math). MetaMathQA was made from the training questions of GSM8K and MATH,
several rows from each, so its validation rows resemble rows that are trained on.

Yu et al., "MetaMath: Bootstrap Your Own Mathematical Questions for Large Language Models", ICLR 2024; Cobbe et al.,
"Training Verifiers to Solve Math Word Problems", arXiv 2110.14168; Hendrycks et al., "Measuring Mathematical Problem
Solving With the MATH Dataset", arXiv 2103.03874.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import check_count, checked_splits
from experiments.data.content import data_root
from experiments.data.hub import read_hub, read_hub_table
from experiments.data.math_answers import boxed
from experiments.data.protocols import draw
from experiments.data.tables import Columns, joined, read_table

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN = ("MetaMathQA-395K.json", "train.parquet")
ROWS = 395_000  # of MetaMathQA
ENDS = re.compile(r"The answer is: ((?:(?!The answer is: ).)+?)\.?\s*$")
WHOLE = re.compile(r"-?\d+")
VALIDATION = 500  # rows of MetaMathQA


@dataclass(frozen=True)
class TestSet:
    """A test set: its files in data.root/math/, columns, size, and its configurations on the hub."""

    files: tuple[str, str]
    columns: tuple[str, str]
    rows: int
    hub_names: tuple[str, ...]


TESTS = {
    "gsm8k": TestSet(("gsm8k_test.jsonl", "gsm8k_test.parquet"), ("question", "answer"), 1_319, ("main",)),
    "math": TestSet(
        ("math_test.jsonl", "math_test.parquet"), ("problem", "solution"), 5_000,
        ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
         "precalculus"),
    ),
}  # fmt: skip


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    r"""Train and validation of MetaMathQA and the test set, and their source.

    Accepted answers are those behind #### in GSM8K, in \\boxed{} in MATH, and behind "The answer is:" in the validation
    split, which is drawn from the rows that have one, for GSM8K a whole number. Rows to train on have their solution as
    label.

    Raises:
        UserError: a file is missing, has other columns or another number of rows, or a solution has no answer.
    """
    if task.subset not in TESTS:
        raise UserError(f"task.subset={task.subset} is no test set of mathematics; allowed: {', '.join(TESTS)}")
    train, source = _train(task, data)
    test, label = _test(task, data), f"math/{task.subset}_test"
    ask, solve = TESTS[task.subset].columns
    if task.verify:
        check_count("math/MetaMathQA", len(train["query"]), ROWS)
        check_count(label, len(test[ask]), TESTS[task.subset].rows)
    count = len(train["query"])
    endings = [ENDS.search(str(text)) for text in train["response"]]
    ended = [i for i, end in enumerate(endings) if end and (task.subset != "gsm8k" or WHOLE.fullmatch(end[1]))]
    chosen = draw(ended, [0] * len(ended), min(VALIDATION, len(ended) // 10), f"{task.subset}/validation")
    held_out = {ended[position] for position in chosen}
    rows = {"train": [i for i in range(count) if i not in held_out], "validation": sorted(held_out)}
    parts = [(name, f"math/MetaMathQA ({name})", _solutions(task, train, chosen)) for name, chosen in rows.items()]
    answers = [_answer(task, text, label, row) for row, text in enumerate(test[solve], start=1)]
    columns = {task.text[0]: test[ask], "label": answers, "references": [[answer] for answer in answers]}
    return checked_splits(task, [*parts, ("test", label, columns)]), source


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> the file in data.root that it is read from."""
    names = {"train": TRAIN, "test": TESTS[task.subset].files if task.subset in TESTS else ()}
    folder = Path(root or "", "math").expanduser()
    found = {split: [name for name in choice if (folder / name).is_file()][:1] for split, choice in names.items()}
    return {split: {name: folder / name for name in chosen} for split, chosen in found.items() if root and chosen}


def _train(task: TaskConfig, data: DataConfig) -> tuple[Columns, str]:
    """The columns of MetaMathQA, and where they and the test set come from."""
    columns = ["query", "response"]
    if (root := data_root(data)) is not None and (root / "math").is_dir():
        return read_table(_file(task, root, TRAIN), "math/MetaMathQA", columns), "local folder math"
    table, commit = read_hub_table(task, TRAIN[0], columns, _advice(task, TRAIN))
    return table, f"hub {task.hub_id} @{commit}, {task.test_hub_id} @{task.test_hub_revision}"


def _test(task: TaskConfig, data: DataConfig) -> Columns:
    test = TESTS[task.subset]
    if (root := data_root(data)) is not None and (root / "math").is_dir():
        return read_table(_file(task, root, test.files), f"math/{task.subset}_test", list(test.columns))
    tables = []
    for name in test.hub_names:
        apart = replace(task, hub_id=task.test_hub_id, hub_name=name, hub_revision=task.test_hub_revision)
        read = read_hub(apart, ["test"], list(test.columns), _advice(task, test.files), "task.test_hub_revision")
        tables.append(read[0]["test"])
    return joined(tables)


def _advice(task: TaskConfig, names: tuple[str, ...]) -> str:
    return f"put {' or '.join(names)} into FOLDER/math/ and type data.root=FOLDER"


def _file(task: TaskConfig, root: Path, names: tuple[str, ...]) -> Path:
    found = [root / "math" / name for name in names if (root / "math" / name).is_file()]
    if not found:
        raise UserError(f"task {task.name}: {_advice(task, names)}")
    return found[0]


def _solutions(task: TaskConfig, train: Columns, chosen: list[int]) -> Columns:
    responses = [train["response"][i] for i in chosen]
    answers = [[found[1] if (found := ENDS.search(str(text))) else text] for text in responses]
    return {
        "idx": chosen, task.text[0]: [train["query"][i] for i in chosen], "label": responses, "references": answers
    }  # fmt: skip


def _answer(task: TaskConfig, text: str, label: str, row: int) -> str:
    r"""The number behind #### in GSM8K, what stands in \\boxed{} in MATH."""
    if task.subset == "math":
        if (answer := boxed(str(text))) is None:
            raise UserError(f"{label}: row {row} has no answer in \\boxed{{}}")
        return answer
    solution, mark, answer = str(text).rpartition("####")
    if not mark or not answer.strip():
        raise UserError(f"{label}: row {row} has no number behind ####")
    return answer.strip().replace(",", "")
