"""Finds a run in several stores."""

from __future__ import annotations

import re

from experiments.store.compact import opened
from experiments.store.folder import RunFolder
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
