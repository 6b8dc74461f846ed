"""Finds a run in several stores."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from elalora.errors import UserError
from experiments.store.compact import opened
from experiments.store.folder import RunFolder, other_schema
from experiments.store.name import short_id


def find(roots: list[str], run_id: str) -> RunFolder | None:
    """The finished run with this id in the first store that has it; None if no store has, or the id is malformed."""
    if not re.fullmatch(r"[0-9a-f]{64}", run_id):
        return None
    for root in roots:
        for path in opened(root).glob(f"*/*-{short_id(run_id)}"):
            folder = RunFolder(path)
            if folder.done and folder.result().get("id") == run_id:
                return folder
    return None


def refuse_older(roots: Iterable[str], task: str, label: str) -> None:
    """Refuses stores in which an older version did runs of this arm and seed: they would count as not done.

    Args:
        roots: the stores; task: folder below them.
        label: arm and seed, the start of a folder's name.

    Raises:
        UserError: names the run and the command that migrates its store.
    """
    for root in roots:
        folder = opened(root) / task
        names = os.listdir(folder) if folder.is_dir() else []
        for path in (folder / name for name in sorted(names) if name.startswith(f"{label}-")):
            if (schema := _older(path)) is not None:
                raise UserError(f"{path} {other_schema(schema, Path(root))}")


@cache
def _older(path: Path) -> int | None:
    return RunFolder(path).older
