"""Instructions with inputs and outputs in the Alpaca layout, without a test set of their own.

alpaca_data_cleaned.json in `data.root/alpaca/`, else from the hub (yahma/alpaca-cleaned; Taori et al., 2023). Papers
train on it and answer IFEval (`experiments.data.ifeval`); here held-out rows are scored token by token.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from elalora.errors import UserError
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.checks import checked_splits
from experiments.data.content import data_root
from experiments.data.hub import read_hub_table
from experiments.data.protocols import draw
from experiments.data.tables import read_table

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "alpaca_data_cleaned.json"
HELD_OUT = 500  # rows each of validation and test


def load(task: TaskConfig, data: DataConfig) -> tuple[dict[str, Dataset], str]:
    """Train, validation and test, drawn from one file by a hash of the rows' numbers, and their source.

    Raises:
        UserError: the file is missing, or lacks a column.
    """
    columns, root = ["instruction", "input", "output"], data_root(data)
    if list(task.text) != columns[:2]:
        raise UserError(f"task {task.name}: leave task.text={columns[:2]} as it is; the templates may change")
    if root is not None and (root / "alpaca" / FILE).is_file():
        table, source = read_table(root / "alpaca" / FILE, f"alpaca/{FILE}", columns), "local folder alpaca"
    else:
        table, commit = read_hub_table(task, FILE, columns, f"put {FILE} into FOLDER/alpaca/ and type data.root=FOLDER")
        source = f"hub {task.hub_id} @{commit}"
    kept = [row for row, output in enumerate(table["output"]) if str(output).strip()]
    size = min(HELD_OUT, len(kept) // 10)
    chosen = draw(kept, [0] * len(kept), 2 * size, f"{task.subset}/held out")
    held_out = [kept[place] for place in chosen]
    rows = {
        "train": sorted(set(kept) - set(held_out)), "validation": held_out[::2], "test": held_out[1::2]
    }  # fmt: skip
    parts = []
    for name, numbers in rows.items():
        picked = {column: [table[column][row] for row in numbers] for column in columns}
        labels = picked.pop("output")
        parts.append(
            (name, f"{FILE} ({name})", {"idx": numbers, **picked, "label": labels, "references": [[x] for x in labels]})
        )
    return checked_splits(task, parts), source


def files(task: TaskConfig, root: str | None) -> dict[str, dict[str, Path]]:
    """The file in data.root that every split is read from."""
    path = Path(root or "", "alpaca", FILE).expanduser()
    return {"train": {FILE: path}} if root and path.is_file() else {}
