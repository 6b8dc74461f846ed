"""The report of one study: its own runs, its declared family, and what is still to be run."""

from __future__ import annotations

import json
import re
from functools import reduce
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.reading.runs import load_runs
from analysis.reading.study import load_study
from analysis.report import report
from elalora.errors import UserError
from experiments.config import compose
from experiments.standins.stored_runs import result, write_run
from experiments.store.finished import NAMED
from experiments.studies import expansion as study

ARMS = ("lora", "elalora")
CLAIM = "ElaLoRA (paper) scored higher than LoRA at r4 in a typical run: +2.00 points, mean over 1 task"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two arms on 6 seeds of which the last of ElaLoRA is missing, and a run that is none of it."""
    root = tmp_path / "runs"
    cells = []
    for arm in ARMS:
        for seed in range(6):
            whole = result(arm, seed, 80.0 + 2 * (arm == "elalora") + seed / 10, recipe="matched")
            if (arm, seed) != ("elalora", 5):
                write_run(root, whole)
            plan = SimpleNamespace(id=whole["id"])
            cells.append(
                SimpleNamespace(part="main", kind="confirmatory", arm=arm, task="vader_movies", budget="r4", seed=seed,
                                plan=plan)
            )  # fmt: skip
    cells.append(
        SimpleNamespace(part="later", kind="exploratory", arm="sora", task="t", budget="r4", seed=0, plan=None)
    )  # fmt: skip
    write_run(root, result("adalora", 0, 99.0))
    family = SimpleNamespace(
        part="main", contrasts=["elalora - lora"], budgets=["r4"], alpha=0.05, m=1, correction="holm", margin=None
    )
    expansion = SimpleNamespace(cells=cells, study=SimpleNamespace(family=family))

    def words_of(words: list[str]) -> list[str]:
        assert words == ["+study=small", f'store.root="{root}"', f'store.also=["{root}"]']
        return words

    monkeypatch.setattr(study, "Expansion", lambda _: expansion)
    monkeypatch.setattr(compose, "compose_run", words_of)
    return root


def text_of(files: list[Path], name: str) -> str:
    (found,) = [path for path in files if path.name == name]
    return re.sub("</?strong>", "", found.read_text())  # the page sets the first words of a sentence in bold


def test_only_the_study_s_runs_are_read_and_gaps_are_named_with_their_command(store: Path, tmp_path: Path) -> None:
    files = report([store], tmp_path / "out", study="small", with_figures=False, quiet=True)
    assert "AdaLoRA" not in text_of(files, "comparison.md")
    assert "not tested" in text_of(files, "confirmatory.md")
    page = unescape(text_of(files, "index.html"))
    assert "ElaLoRA (paper) and LoRA at r4 are not tested yet: 1 runs are missing." in page
    command = "make them with: python run.py -m +study=small 'study.only=[main]'"
    assert f"part main: 1 of 12 runs are missing (elalora 1); {command}" in page
    assert "part later: 1 of 1 runs are missing (sora 1)" in page and "better" not in page


def test_a_whole_study_is_tested_and_says_so(store: Path, tmp_path: Path) -> None:
    write_run(store, result("elalora", 5, 82.5, recipe="matched"))
    files = report([store], tmp_path / "out", study="small", with_figures=False, quiet=True)
    assert CLAIM in text_of(files, "index.html")


def test_neither_a_filter_nor_the_tuning_s_own_protocol_makes_a_run_missing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = result("lora", 9, 70.0, protocol="tune", recipe="matched")
    write_run(store, tuned)
    write_run(store, result("elalora", 5, 82.5, recipe="matched"))
    expansion = study.Expansion(None)  # type: ignore[arg-type]
    cell = SimpleNamespace(part="tuning", kind="tuning", arm="lora", task="vader_movies", budget="r4", seed=9,
                           plan=SimpleNamespace(id=tuned["id"]))  # fmt: skip
    monkeypatch.setattr(
        study, "Expansion", lambda _: SimpleNamespace(cells=[cell, *expansion.cells], study=expansion.study)
    )
    only = {"method": ["lora"]}
    files = report([store], tmp_path / "out", only, study="small", with_figures=False, quiet=True)
    page = text_of(files, "index.html")
    assert CLAIM in page
    assert "Tuning took 0.01 hours of training: lora 1 runs, 0.01 h." in page
    assert "part later: 1 of 1 runs are missing" in page and "part main:" not in page and "part tuning:" not in page
    assert "ElaLoRA" not in text_of(files, "comparison.md")


def test_a_study_without_runs_names_the_command(store: Path, tmp_path: Path) -> None:
    for path in (store / "vader_movies").glob("*lora-r4-s*/result.json"):
        if "adalora" not in str(path):
            path.unlink()
    with pytest.raises(
        UserError, match=r"no finished run of study small in .*`python run.py -m \+study=small` makes one"
    ):
        report([store], tmp_path / "out", study="small", with_figures=False, quiet=True)


@pytest.mark.full
def test_a_real_study_is_read_from_its_file_once_its_tuning_is_done(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    root.mkdir()
    for _ in range(8):  # tuning, perhaps on wider grids, then the parts
        planned: dict[str, Any] = {}
        for cell in study.expand("offline_main", [f'store.root="{root}"', "store.also=[]"]):
            if cell.plan is not None and cell.plan.finished() is None:
                planned[cell.plan.id] = cell
        if not planned:
            break
        for cell in planned.values():
            score = 80.0 + cell.seed / 10 - abs(float(cell.plan.config.trainer.lr) - 3e-3)
            whole = result(cell.arm, cell.seed, score, task=cell.task, recipe="matched")
            whole |= {"id": cell.plan.id, "identity": cell.plan.identity, "protocol": cell.plan.config.protocol.name}
            for name, place in NAMED.items():
                *path, last = place.split(".")
                whole[name] = reduce(lambda tree, key: tree.get(key, {}), path, cell.plan.identity).get(last)
            cell.plan.folder.path.mkdir(parents=True)
            (cell.plan.folder.path / "result.json").write_text(json.dumps(whole))
    found = load_study("offline_main", [root])
    assert found.family is not None and found.family.m == len(found.family.contrasts) * len(found.family.budgets)
    runs = load_runs(root)
    assert not len(found.open_runs(runs)) and set(found.cells["id"]) <= set(runs["id"])
    files = report([root], tmp_path / "out", study="offline_main", with_figures=False, quiet=True)
    assert f"m = {found.family.m} comparisons" in text_of(files, "confirmatory.md")
