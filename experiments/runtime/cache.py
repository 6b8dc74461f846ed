"""Where this machine keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from elalora.errors import UserError

if TYPE_CHECKING:
    pass


def cache_dir(folder: str | None) -> Path:
    """The cache folder, made if missing: the given one, else $ELALORA_CACHE, else ~/.cache/elalora.

    Raises:
        UserError: it cannot be made, or cannot be written.
    """
    path = Path(folder or os.environ.get("ELALORA_CACHE") or "~/.cache/elalora").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"the cache folder {path} cannot be written; name another with data.cache=FOLDER")
    return path
