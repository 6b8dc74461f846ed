"""The folder of stand-in models and data that the small form of a study runs on; made once, kept in the cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

VERSION = 2  # raise it when the stand-ins change


def standins() -> Path:
    """A folder with models/ and data/, made on first use: random weights, made-up rows, no number worth reporting."""
    from experiments.runtime.cache import cache_dir
    from experiments.standins.data import make_data
    from experiments.standins.models import make_models

    folder = cache_dir(None) / f"standins-{VERSION}"
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        make_models(part / "models")
        make_data(part / "data")
        try:
            part.rename(folder)  # whole or not at all
        except OSError:  # another process was first
            shutil.rmtree(part)
    return folder
