"""How often a report reads the files of its runs."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from analysis.report import report
from experiments.runtime.places import CHECKOUT
from experiments.store import foreign
from experiments.store.compact import opened


@pytest.fixture(autouse=True, scope="module")
def made_up_files() -> None:
    """These runs are not made up: their files are read and checked."""


@pytest.mark.slow
def test_a_report_opens_every_file_of_a_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = opened(CHECKOUT / "analysis" / "measured") / "vader_movies"
    for folder in sorted(measured.glob("elalora-r4-*"))[:4]:
        shutil.copytree(folder, tmp_path / "runs" / "vader_movies" / folder.name)
    counts: Counter[Path] = Counter()
    plainly = foreign.open_regular

    def counted(path: Path) -> AbstractContextManager[BinaryIO]:
        counts[path] += 1
        return plainly(path)

    monkeypatch.setattr(foreign, "open_regular", counted)
    report([tmp_path / "runs"], tmp_path / "out", with_figures=False, quiet=True)
    assert {path.name for path in counts} >= {"result.json", "predictions.parquet", "metrics.jsonl", "ranks.jsonl"}
    assert set(counts.values()) == {1}
