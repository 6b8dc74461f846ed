"""IFEval: prompts whose answers must follow rules that a program can check, after training on Alpaca's instructions.

ifeval_input_data.jsonl in `data.root/ifeval/`, else from the hub (google/IFEval; Zhou et al., arXiv 2311.07911,
Apache-2.0), is the test split. The rows to train on and to validate are those of `alpaca_cleaned`; no rule belongs to
them, so nothing is selected on them. The rules are those of lm-evaluation-harness, an optional package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elalora.errors import UserError
from experiments.config.task import PART, DataConfig, TaskConfig
from experiments.data import instructions
from experiments.data.checks import check_count, checked_splits
from experiments.data.content import data_root
from experiments.data.hub import read_hub_table
from experiments.data.tables import Columns, read_table

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "ifeval_input_data.jsonl"
COLUMNS = ("prompt", "instruction_id_list", "kwargs")
PROMPTS = 541


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train and validation of Alpaca, the prompts with rules as test, and their source.

    The label and only reference of a test row are its prompt and rules as JSON (`followed`).

    Raises:
        UserError: the package with the rules is missing, or a file, column or row, or a rule is unknown.
    """
    known = rules().instructions_registry.INSTRUCTION_DICT
    splits, source = instructions.load(replace(task, subset="alpaca_cleaned"), data)
    table, more = _prompts(task, data)
    if task.verify:
        check_count(FILE, len(table["prompt"]), PROMPTS)
    rows = [_rules_of(table, row, known) for row in range(len(table["prompt"]))]
    columns = {
        "idx": [PART + row for row in range(len(rows))], task.text[0]: table["prompt"], task.text[1]: [""] * len(rows),
        "label": rows, "references": [[text] for text in rows],
    }  # fmt: skip
    test = checked_splits(task, [("test", FILE, columns)])
    return {"train": splits["train"], "validation": splits["validation"], **test}, f"{source}, {more}"


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """Split -> the file in data.root that it is read from."""
    path = Path(root or "", "ifeval", FILE).expanduser()
    return instructions.files(task, root) | ({"test": {FILE: path}} if root and path.is_file() else {})


@cache
def rules() -> Any:
    """The module of lm-evaluation-harness that checks rules, ready to give the same verdicts in every process.

    Raises:
        UserError: the package is not installed, or the data by which it splits sentences are missing.
    """
    try:
        import langdetect
        import nltk
        from lm_eval.tasks.ifeval import utils
    except ImportError as error:
        raise UserError(
            f"task=ifeval takes its rules from lm-evaluation-harness ({error}): type pip install 'lm-eval[ifeval]'"
        ) from error
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise UserError(
            "task=ifeval counts sentences with NLTK's punkt_tab, which is missing: type python -m nltk.downloader "
            "punkt_tab"
        ) from error
    langdetect.DetectorFactory.seed = 0  # else a text's language is guessed at random
    return utils


def followed(rules_of: str, text: str) -> dict[str, list[bool]]:
    """Which rules of a prompt a text follows, "strict" as it is and "loose" also without its first or last line or *.

    Args:
        rules_of: the reference of a test row.
    """
    found = rules().process_results(json.loads(rules_of), [text])
    return {how: list(map(bool, found[f"inst_level_{how}_acc"])) for how in ("strict", "loose")}


def _prompts(task: TaskConfig, data: DataConfig) -> tuple[Columns, str]:
    root = data_root(data)
    if root is not None and (root / "ifeval" / FILE).is_file():
        return read_table(root / "ifeval" / FILE, f"ifeval/{FILE}", COLUMNS), "local folder ifeval"
    advice = f"put {FILE} into FOLDER/ifeval/ and type data.root=FOLDER"
    if task.test_hub_revision is None:
        raise UserError(
            f"task {task.name}: the commit of {task.test_hub_id} on the hub is not pinned; {advice}, or type "
            "task.test_hub_revision=COMMIT"
        )
    apart = replace(task, hub_id=task.test_hub_id, hub_revision=task.test_hub_revision)
    table, commit = read_hub_table(apart, FILE, COLUMNS, advice)
    return table, f"hub {task.test_hub_id} @{commit}"


def _rules_of(table: Columns, row: int, known: Mapping[str, Any]) -> str:
    """Prompt and rules of a row, in the form that `followed` reads."""
    names, settings = table["instruction_id_list"][row], table["kwargs"][row]
    if not isinstance(names, list) or not isinstance(settings, list) or not len(names) == len(settings) > 0:
        raise UserError(f"{FILE}: row {row + 1} needs as many settings in kwargs as rules in instruction_id_list")
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{FILE}: row {row + 1} has the rule {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
    return json.dumps({"key": row, "prompt": table["prompt"][row], "instruction_id_list": names, "kwargs": settings})
