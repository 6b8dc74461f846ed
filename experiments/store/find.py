"""Finds a run in several stores."""

from __future__ import annotations

import re

from experiments.store.compact import opened
from experiments.store.folder import RunFolder


def find(roots: list[str], run_id: str) -> RunFolder | None:
    """The folder of a run's id in the first store that has a result for it; None also for what is no id."""
    if not re.fullmatch(r"[0-9a-f]{64}", run_id):
        return None
    for root in roots:
        for path in opened(root).glob(f"*/*-{run_id[:10]}"):
            folder = RunFolder(path)
            if folder.done and folder.result().get("id") == run_id:
                return folder
    return None
