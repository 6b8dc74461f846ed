"""Data sets from a hub."""

from __future__ import annotations

from collections.abc import Sequence

from elalora.errors import UserError, first_line
from experiments.config.task import TaskConfig
from experiments.data.tables import Columns, require_columns


def read_hub(task: TaskConfig, split: str, wanted: Sequence[str] | None, instead: str) -> Columns:
    """One split from the hub, or from the local cache of an earlier fetch.

    Args:
        task: names the data set, its configuration and commit.
        split: of the data set.
        wanted: columns to read; None for all.
        instead: what to put where when the hub cannot be read.

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
            f"task {task.name}: {task.hub_id} cannot be read from the hub here; {instead} ({first_line(error)})"
        ) from error
    if wanted is not None:
        require_columns(f"task {task.name}", rows.column_names, wanted)
        rows = rows.select_columns(list(wanted))
    return rows[:]
