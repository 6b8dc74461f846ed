"""Reads official data sets: parquet files in data.root, or else the hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from elalora.errors import UserError, first_line
from experiments.config.task import DataConfig, TaskConfig
from experiments.data.content import data_root
from experiments.data.shards import numbered, official_tables
from experiments.data.tables import Columns, joined, read_parquet, require_columns


def read_official(
    task: TaskConfig, data: DataConfig, below: str, splits: Iterable[str], columns: Sequence[str] | None = None
) -> tuple[dict[str, Columns], str]:
    """The splits of a data set by name, and their source.

    Args:
        task: names the data set on the hub; without a hub_id it must be in data.root.
        data: where to look first.
        below: the data set's folder in data.root; each split is SPLIT.parquet, or shards named as on the hub.
        splits, columns: names of those to read; None reads all columns.

    Raises:
        UserError: data are missing, cannot be read, or lack a column.
    """
    root, splits = data_root(data), list(splits)
    if root is not None and (root / below).is_dir():
        tables = {}
        for name in splits:
            label, files = f"{below}/{name}.parquet in data.root", official_tables(root / below, name)
            if not files:
                raise UserError(
                    f"{label} is missing; put the official split there, or type data.root=null to read the hub"
                )
            parts = [read_parquet(file, f"{below}/{file.name} in data.root", columns) for file in files]
            tables[name] = joined(parts)
        return tables, f"local folder {below}"
    instead = f"put {' and '.join(f'{name}.parquet' for name in splits)} into FOLDER/{below}/ and type data.root=FOLDER"
    if task.hub_id is None:
        raise UserError(f"task {task.name}: no folder {below} in data.root={data.root}; {instead}")
    source = f"hub {task.hub_id} ({task.hub_name or 'default'}) @{task.hub_revision}"
    return {name: read_hub(task, name, columns, instead) for name in splits}, source


def local_files(root: str | None, below: str, splits: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Split -> its parquet file or files in data.root, where there are some."""
    folder = Path(root or "", below).expanduser()
    found = {name: official_tables(folder, name) for name in splits} if root else {}
    return {name: numbered(files) for name, files in found.items() if files}


def read_hub(task: TaskConfig, split: str, columns: Sequence[str] | None, instead: str) -> Columns:
    """One split from the hub, or from the local cache of an earlier download; errors suggest `instead` to the user.

    Raises:
        UserError: no commit is pinned, or the hub cannot be read.
    """
    from datasets import load_dataset

    if task.hub_revision is None:
        raise UserError(
            f"task {task.name}: the commit of {task.hub_id} on the hub is not pinned; {instead}, or type "
            "task.hub_revision=COMMIT (task.hub_revision=refs/convert/parquet follows the hub's own parquet copy)"
        )
    try:
        rows = load_dataset(task.hub_id, task.hub_name, revision=task.hub_revision, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # unreachable, unknown to an offline cache, a dataset script
        raise UserError(
            f"task {task.name}: {task.hub_id} cannot be read from the hub; {instead} ({first_line(error)})"
        ) from error
    if columns is not None:
        require_columns(f"task {task.name}", rows.column_names, columns)
        rows = rows.select_columns(list(columns))
    return rows[:]
