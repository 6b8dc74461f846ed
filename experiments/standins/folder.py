"""The folder of stand-in models and data that smoke runs use; made once, kept in the cache."""

from __future__ import annotations

from pathlib import Path

VERSION = 4  # raise when the stand-ins change


def standins() -> Path:
    """A folder with models/ (random weights) and data/ (made-up rows), created on first use."""
    from experiments.runtime.cache import cache_dir
    from experiments.runtime.files import new_folder
    from experiments.standins.data import make_data
    from experiments.standins.models import make_models

    folder = cache_dir(None) / f"standins-{VERSION}"
    if not folder.is_dir():
        with new_folder(folder) as part:
            make_models(part / "models")
            make_data(part / "data")
    return folder
