"""The cache folder of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from elalora.errors import UserError


def cache_dir(folder: str | None) -> Path:
    """The cache folder, created if missing: the given one, else $ELALORA_CACHE, else ~/.cache/elalora.

    Raises:
        UserError: it cannot be created or written.
    """
    path = Path(folder or os.environ.get("ELALORA_CACHE") or "~/.cache/elalora").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"the cache folder {path} cannot be written; choose another with data.cache=FOLDER")
    return path
