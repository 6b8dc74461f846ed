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
from experiments.data import (
    class_folders,
    code_problems,
    commonsense,
    glue,
    ifeval,
    instructions,
    math_words,
    own,
    summarization,
    vtab,
)
from experiments.data.image_files import SUFFIXES
from experiments.runtime.digests import sha256_of, stamp_of, unchanged

Files = Mapping[str, Mapping[str, Path]]  # split -> relative name -> path
LOCAL = {
    "files": own.files,
    "glue": glue.files,
    "summarization": summarization.files,
    "vtab": vtab.files,
    "math": math_words.files,
    "code": code_problems.files,
    "commonsense": commonsense.files,
    "ifeval": ifeval.files,
    "instructions": instructions.files,
    "class_folders": class_folders.files,
}
# settings -> stamps of the tables, lists and folders when they were read, and the digest of each split
_planned: dict[str, tuple[dict[Path, tuple[int, ...]], dict[str, str]]] = {}


def digests(task: Any, root: str | None) -> dict[str, str | None]:
    """Checksums in place of task.files, so that a run's identity does not depend on where data lie.

    Called for every run of a sweep, so files are read once per process while tables, lists and folders stay the same;
    an image that is overwritten in place is noticed when it is read.

    Args:
        task: the task's settings.
        root: data.root.

    Returns:
        split -> sha256 of its files; the path itself where nothing exists.

    Raises:
        UserError: a file cannot be read.
    """
    stamps, known = _planned.get(_key(task, root), ({}, {}))
    if not stamps or any(stamp_of(path) != stamp for path, stamp in stamps.items()):
        known = _read(task, root, _files(task, root), fresh=False)
    return {**task.files, **known}


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
        if planned is not None:
            actual = {**task.files, **_read(task, root, files, fresh=True)}
            changed = [split for split in {**actual, **planned} if actual.get(split) != planned.get(split)]
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


def _read(task: Any, root: str | None, files: Files, fresh: bool) -> dict[str, str]:
    """The digest of each split that has files."""
    paths = {path for split in files.values() for path in split.values()}
    outer = {path for path in paths if path.suffix.lower() not in SUFFIXES} | {path.parent for path in paths}
    stamps = {path: stamp_of(path) for path in outer}
    known = {split: _digest(named, fresh) for split, named in files.items() if named}
    _planned[_key(task, root)] = stamps, known
    return known


def _key(task: Any, root: str | None) -> str:
    settings = (task.source, task.subset, task.kind, list(task.text), dict(task.files), task.verify, task.fingerprint)
    return repr((*settings, task.labels and list(task.labels), task.num_labels, root))


def _digest(files: Mapping[str, Path], fresh: bool) -> str:
    total = hashlib.sha256()
    for name, path in files.items():
        digest = bytes.fromhex(sha256_of(path, fresh)) if path.is_file() else b""  # missing: reading reports it
        total.update(f"{name}\n".encode() + digest)
    return total.hexdigest()
