"""Reads data sets from the hub."""

from __future__ import annotations

from collections.abc import Sequence

from elalora.errors import UserError, first_line
from experiments.config.task import TaskConfig
from experiments.data.tables import Columns, require_columns


def read_hub(task: TaskConfig, split: str, columns: Sequence[str] | None, instead: str) -> Columns:
    """One split from the hub, or from the local cache of an earlier download.

    Args:
        task: names the data set, its configuration and commit.
        split: name of the split.
        columns: to read; None reads all.
        instead: what the user can do if the hub cannot be read.

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
