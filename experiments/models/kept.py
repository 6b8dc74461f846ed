"""Model folders that this machine makes once and keeps in its cache, with the checksums of their files."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from elalora.errors import UserError
from experiments.models.files import digests
from experiments.runtime.files import new_folder

DIGESTS = "digests.json"


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made if it is missing or damaged.

    Processes that want the same folder wait for the one that makes it. Where the file system has no locks each makes
    it, and the first one's is kept.

    Args:
        folder: in the cache.
        make: writes a model into the empty folder that it is given.
    """
    if _whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        if _locked(lock):
            for left in folder.parent.glob(f".{folder.name}.*/"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        if not _whole(folder):
            with new_folder(folder) as part:
                make(part)
                (part / DIGESTS).write_text(json.dumps(digests(part)) + "\n", encoding="utf-8")
                if not _whole(folder):  # else another process has made it, and may be reading it
                    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _locked(file: TextIO) -> bool:
    """Waits for the lock; False where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _whole(folder: Path) -> bool:
    """Whether all files are those that were written."""
    try:
        return bool(json.loads((folder / DIGESTS).read_text(encoding="utf-8")) == digests(folder))
    except (OSError, ValueError, UserError):
        return False
