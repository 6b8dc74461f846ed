"""The local files that a task is read from, and their digests: part of a run's identity, compared again when read.

Own files always have digests. A benchmark in data.root has them unless its content is compared with an official
fingerprint, which is the same from every source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elalora.errors import UserError
from experiments.data import glue, own, summarization, vtab
from experiments.runtime.digests import sha256_of, unchanged

Files = Mapping[str, Mapping[str, Path]]  # split -> relative name -> path
LOCAL = {"files": own.files, "glue": glue.files, "summarization": summarization.files, "vtab": vtab.files}


def digests(task: Any, root: str | None, fresh: bool = False) -> dict[str, str | None]:
    """Checksums in place of task.files, so that a run's identity does not depend on where data lie.

    Args:
        task: the task's settings.
        root: data.root.
        fresh: read every file, also one that looks as it did when this process read it.

    Returns:
        split -> sha256 of its files; the path itself where nothing exists.

    Raises:
        UserError: a file cannot be read.
    """
    return {**task.files, **{split: _digest(files, fresh) for split, files in _files(task, root).items() if files}}


@contextmanager
def reading(task: Any, root: str | None, planned: Mapping[str, str | None] | None) -> Iterator[None]:
    """Refuses local files that differ from the plan, before or after what is read inside.

    Args:
        task: the task's settings.
        root: data.root.
        planned: `digests` when the run was planned; None reads what is there.

    Raises:
        UserError: naming the split whose files changed.
    """
    files = _files(task, root)
    with unchanged([path for split in files.values() for path in split.values()], f"task {task.name}"):
        actual = digests(task, root, fresh=True) if planned is not None else {}
        changed = [split for split in {**actual, **(planned or {})} if actual.get(split) != (planned or {}).get(split)]
        if changed:
            raise UserError(
                f"task {task.name}: the files of {', '.join(changed)} changed after the run was planned; put the "
                "planned ones back, or run the command again with the new ones"
            )
        yield


def _files(task: Any, root: str | None) -> Files:
    """The files of each split; none where they cannot be listed, which loading reports."""
    if task.source not in LOCAL or (task.source != "files" and task.verify and task.fingerprint):
        return {}
    try:
        return LOCAL[task.source](task, root)
    except (UserError, OSError, ValueError, KeyError):
        return {}


def _digest(files: Mapping[str, Path], fresh: bool) -> str:
    total = hashlib.sha256()
    for name, path in files.items():
        total.update(f"{name}\n".encode() + bytes.fromhex(sha256_of(path, fresh)))
    return total.hexdigest()
