"""Python problems with tests: trained on MBPP's training part, answered on the test set of MBPP or HumanEval.

From `data.root/code/` (mbpp.jsonl and HumanEval.jsonl in the official schemas, the latter also as .jsonl.gz), else from
the hub at commits that the user gives. MBPP's parts are those of its authors: problems 11 to 510 test, 511 to 600
validate, 601 to 974 train; both tasks validate on MBPP.

Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374 (HumanEval, MIT); Austin et al.,
"Program Synthesis with Large Language Models", arXiv 2108.07732 (MBPP, CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config.task import NOT_RUN, DataConfig, TaskConfig
from experiments.data.checks import check_count, checked_splits
from experiments.data.content import data_root
from experiments.data.hub import read_hub
from experiments.data.tables import Columns, joined, read_table

if TYPE_CHECKING:
    from datasets import Dataset

MBPP = ("task_id", "text", "code", "test_list", "test_setup_code")
HUMANEVAL = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
NAMES = {"mbpp": ("mbpp.jsonl",), "humaneval": ("HumanEval.jsonl", "HumanEval.jsonl.gz")}
PARTS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511)}  # of MBPP, by task_id
HUB_SPLITS = ("train", "validation", "test")
PROBLEMS = 164  # of HumanEval


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train and validation of MBPP and the test set, and their source.

    The label of a row is its published solution. Its references are that solution, the tests as a program, and for
    HumanEval the beginning of the program (`experiments.training.execution.program_of`).

    Raises:
        UserError: a file is missing, has other columns or another number of rows, or a row has no tests.
    """
    if task.subset not in NAMES:
        raise UserError(f"task.subset={task.subset} is no test set of code; allowed: {', '.join(NAMES)}")
    if len(task.text) != 1:
        raise UserError(f"task {task.name}: task.text={list(task.text)}, but its problems have one input column")
    mbpp, source = _mbpp(task, data)
    parts = {name: _mbpp_rows(task, mbpp, numbers) for name, numbers in PARTS.items()}
    if task.verify:
        for name, numbers in PARTS.items():
            check_count(f"code/mbpp ({name})", len(parts[name]["label"]), len(numbers))
    if task.subset == "humaneval":
        table, more = _humaneval(task, data)
        if task.verify:
            check_count("code/HumanEval", len(table["task_id"]), PROBLEMS)
        parts["test"], source = _humaneval_rows(task, table), source + more
    return checked_splits(task, [(name, f"code/{task.subset} ({name})", parts[name]) for name in PARTS]), source


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> the file in data.root that it is read from; all parts of MBPP are in one."""
    folder = Path(root or "", "code").expanduser()
    needed = {"train": "mbpp", **({"test": "humaneval"} if task.subset == "humaneval" else {})}
    found = {split: [name for name in NAMES[key] if (folder / name).is_file()][:1] for split, key in needed.items()}
    return {split: {name: folder / name for name in chosen} for split, chosen in found.items() if root and chosen}


def remarks(task: TaskConfig) -> list[str]:
    """What the result of a run says that generated code without running it."""
    if task.source != "code" or task.answer != "generate" or task.execute:
        return []
    return [NOT_RUN]


def _local(task: TaskConfig, data: DataConfig, key: str) -> Path | None:
    """The file in data.root, or None if there is no folder code."""
    root = data_root(data)
    if root is None or not (root / "code").is_dir():
        return None
    found = [root / "code" / name for name in NAMES[key] if (root / "code" / name).is_file()]
    if not found:
        raise UserError(f"task {task.name}: {_advice(key)}")
    return found[0]


def _advice(key: str) -> str:
    return f"put {' or '.join(NAMES[key])} into FOLDER/code/ and type data.root=FOLDER"


def _mbpp(task: TaskConfig, data: DataConfig) -> tuple[Columns, str]:
    if (file := _local(task, data, "mbpp")) is not None:
        return read_table(file, "code/mbpp", MBPP), "local folder code"
    tables, source = read_hub(task, HUB_SPLITS, MBPP, _advice("mbpp"))
    return joined([tables[name] for name in HUB_SPLITS]), source


def _humaneval(task: TaskConfig, data: DataConfig) -> tuple[Columns, str]:
    if (file := _local(task, data, "humaneval")) is not None:
        return read_table(file, "code/HumanEval", HUMANEVAL), ""
    apart = replace(task, hub_id=task.test_hub_id, hub_name="openai_humaneval", hub_revision=task.test_hub_revision)
    tables, source = read_hub(apart, ["test"], HUMANEVAL, _advice("humaneval"), "task.test_hub_revision")
    return tables["test"], f", {source}"


def _mbpp_rows(task: TaskConfig, table: Columns, numbers: Iterable[int]) -> Columns:
    """The problems with these numbers; an instruction has the tests, without which no name of a function is known."""
    chosen = {number: row for row, number in enumerate(table["task_id"])}
    rows = [chosen[number] for number in numbers if number in chosen]
    tests = [_asserts(table, row) for row in rows]
    codes = [_plain(table["code"][row]) for row in rows]
    return {
        "idx": [table["task_id"][row] for row in rows],
        task.text[0]: [
            f"{_plain(table['text'][row])}\nYour code should pass these tests:\n{asserts}"
            for row, asserts in zip(rows, tests, strict=True)
        ],
        "label": codes,
        "references": [
            [code, "\n".join(filter(None, [_plain(table["test_setup_code"][row]), asserts]))]
            for row, code, asserts in zip(rows, codes, tests, strict=True)
        ],
    }


def _asserts(table: Columns, row: int) -> str:
    asserts = table["test_list"][row]
    if not isinstance(asserts, list) or not asserts or not all(isinstance(line, str) for line in asserts):
        raise UserError(f"code/mbpp: row {row + 1} has no tests; expected a list of lines in test_list")
    return "\n".join(map(_plain, asserts))


def _humaneval_rows(task: TaskConfig, table: Columns) -> Columns:
    """Prompts are the beginnings of functions; their solutions continue them."""
    prompts, solutions = ([_plain(text) for text in table[name]] for name in ("prompt", "canonical_solution"))
    for row, (test, name) in enumerate(zip(table["test"], table["entry_point"], strict=True), start=1):
        if "def check(" not in str(test) or not str(name).isidentifier():
            raise UserError(f"code/HumanEval: row {row} has no function check in its test, or no entry_point")
    tests = zip(table["test"], table["entry_point"], strict=True)
    return {
        "idx": [10_000 + row for row in range(len(prompts))],  # beside MBPP's own numbers
        task.text[0]: [f"Complete this Python function:\n{prompt.strip()}" for prompt in prompts],
        "label": [prompt + solution for prompt, solution in zip(prompts, solutions, strict=True)],
        "references": [
            [prompt + solution, f"{_plain(test)}\ncheck({name})", prompt]
            for solution, (test, name), prompt in zip(solutions, tests, prompts, strict=True)
        ],
    }


def _plain(text: Any) -> str:
    """Text with the line ends of Python sources; the official MBPP has others."""
    return str(text or "").replace("\r\n", "\n")
