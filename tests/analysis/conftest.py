"""The made-up study, built once for all tests that read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from made_up import believed

from analysis.reading.runs import load_runs
from analysis.reading.stored import Stored, read_stores
from experiments.standins.study import build


@pytest.fixture(autouse=True, scope="module")
def made_up_files() -> Iterator[None]:
    """The made-up runs count, whatever lies beside them."""
    with believed():
        yield


@pytest.fixture(scope="session")
def study_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the attribution and transplant studies with known effects."""
    return build(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def study(study_root: Path) -> Stored:
    """The store as a report reads it."""
    return read_stores([study_root])


@pytest.fixture(scope="session")
def runs(study_root: Path) -> pd.DataFrame:
    """The runs of the store."""
    return load_runs(study_root)
