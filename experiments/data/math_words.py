"""Grade-school mathematics: trained on MetaMathQA's rows, answered on GSM8K's test set.

Read from `data.root/math/`: MetaMathQA (the hub's meta-math/MetaMathQA) as MetaMathQA-395K.json or train.parquet, and
the test split of GSM8K (openai/gsm8k, main) as gsm8k_test.jsonl or gsm8k_test.parquet. MetaMathQA was made from the
training questions of GSM8K and MATH, several rows from each, so its validation rows resemble rows that are trained on.

Yu et al., "MetaMath: Bootstrap Your Own Mathematical Questions for Large Language Models", ICLR 2024; Cobbe et al.,
"Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import check_count, checked_splits
from experiments.data.content import data_root
from experiments.data.protocols import draw
from experiments.data.tables import Columns, read_table

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN = ("MetaMathQA-395K.json", "train.parquet")
TEST = ("gsm8k_test.jsonl", "gsm8k_test.parquet")
SIZES = {"train": 395_000, "test": 1_319}
WHOLE = re.compile(r"The answer is: (-?\d+)\.?\s*$")
VALIDATION = 500  # rows of MetaMathQA


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train and validation of MetaMathQA and the test set of GSM8K, and their source.

    Accepted answers are the numbers behind #### in the test set, and those behind "The answer is:" in the validation
    split, which is drawn from the rows with a whole number there. Rows to train on have their solution as label.

    Raises:
        UserError: a file is missing, has other columns or another number of rows, or a solution has no number.
    """
    root = data_root(data)
    train = read_table(_file(task, root, TRAIN), "math/MetaMathQA", ["query", "response"])
    test = read_table(_file(task, root, TEST), "math/gsm8k_test", ["question", "answer"])
    if task.verify:
        check_count("math/MetaMathQA", len(train["query"]), SIZES["train"])
        check_count("math/gsm8k_test", len(test["question"]), SIZES["test"])
    count = len(train["query"])
    whole = [i for i, text in enumerate(train["response"]) if WHOLE.search(str(text))]
    chosen = draw(whole, [0] * len(whole), min(VALIDATION, len(whole) // 10), f"{task.subset}/validation")
    held_out = {whole[position] for position in chosen}
    rows = {"train": [i for i in range(count) if i not in held_out], "validation": sorted(held_out)}
    parts = [(name, f"math/MetaMathQA ({name})", _solutions(task, train, chosen)) for name, chosen in rows.items()]
    answers = [_number(text, row) for row, text in enumerate(test["answer"], start=1)]
    columns = {task.text[0]: test["question"], "label": answers, "references": [[answer] for answer in answers]}
    return checked_splits(task, [*parts, ("test", "math/gsm8k_test", columns)]), "local folder math"


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> the file in data.root that it is read from."""
    folder = Path(root or "", "math").expanduser()
    names = {"train": TRAIN, "test": TEST}
    found = {split: [name for name in choice if (folder / name).is_file()][:1] for split, choice in names.items()}
    return {split: {name: folder / name for name in chosen} for split, chosen in found.items() if root and chosen}


def _file(task: TaskConfig, root: Path | None, names: tuple[str, ...]) -> Path:
    found = [root / "math" / name for name in names if root is not None and (root / "math" / name).is_file()]
    if not found:
        raise UserError(
            f"task {task.name}: put {' or '.join(names)} into FOLDER/math/ and type data.root=FOLDER; the hub is not "
            "read for it"
        )
    return found[0]


def _solutions(task: TaskConfig, train: Columns, chosen: list[int]) -> Columns:
    responses = [train["response"][i] for i in chosen]
    answers = [[found[1] if (found := WHOLE.search(str(text))) else text] for text in responses]
    return {
        "idx": chosen, task.text[0]: [train["query"][i] for i in chosen], "label": responses, "references": answers
    }  # fmt: skip


def _number(text: str, row: int) -> str:
    solution, mark, answer = str(text).rpartition("####")
    if not mark or not answer.strip():
        raise UserError(f"math/gsm8k_test: row {row} has no number behind ####")
    return answer.strip().replace(",", "")
