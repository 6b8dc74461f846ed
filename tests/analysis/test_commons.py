"""The page over contributed stores compares what is comparable, and shows other projects' results as theirs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny_runs import MOVES, quick

from analysis.__main__ import main
from analysis.sections.published_numbers import FOLDER
from analysis.sections.reported import REPORTED, reported
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.submit import RECORD, submit

NAMES = ("lr_matters_qwen3_metamath.csv", "peft_metamathqa.csv")
BY = {
    "first": [["method=lora"], ["method=lora", "seed=1"]],
    "second": [["method=elalora", *MOVES], ["method=elalora", *MOVES, "seed=1", "trainer.lr=6e-3"]],
    "third": [["method=lora", "trainer.max_steps=20"]],
}  # the runs of each contribution


@pytest.fixture(scope="module")
def commons(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commons")
    for name, runs in BY.items():
        for words in runs:
            run(make_plan(quick(tiny_model_dir, root / "runs" / name, *words)))
        assert submit([str(root / "runs" / name)], root / "commons" / name) == []
    return root / "commons"


def rows(folder: Path) -> list[list[str]]:
    lines = (folder / "commons.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| vader")]


@pytest.mark.slow
def test_runs_of_two_contributions_meet_where_only_method_and_rate_differ(commons: Path, tmp_path: Path):
    assert main(["commons", str(commons), "--out", str(tmp_path)]) == 0
    places: dict[str, set[str]] = {}
    for place, method, *_ in rows(tmp_path):
        places.setdefault(place, set()).add(method.split()[0])
    assert sorted(places.values(), key=len) == [{"LoRA"}, {"LoRA", "ElaLoRA"}]
    [alone] = [row for row in rows(tmp_path) if "20 steps" in row[0]]
    assert alone[-1] == "no partner yet"
    moved = [row for row in rows(tmp_path) if row[1].startswith("ElaLoRA")]
    assert len(moved) == 2 and all("Δ" in row[2] for row in moved)  # two rates are two arms, each paired by its seed
    page = (tmp_path / "index.html").read_text()
    assert "3 contributions: first, second, third" in page and "Reported, not ours" in page


@pytest.mark.slow
def test_a_contribution_with_a_problem_is_left_out_and_named(commons: Path, tmp_path: Path, capsys):
    folder = tmp_path / "commons"
    for name in BY:
        (folder / name).mkdir(parents=True)
        for path in (commons / name).iterdir():
            (folder / name / path.name).write_bytes(path.read_bytes())
    (folder / "second" / RECORD).write_text("{}")
    assert main(["commons", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "second: contribution.json is not the record" in capsys.readouterr().err
    assert {row[1].split()[0] for row in rows(tmp_path / "out")} == {"LoRA"}


def test_without_a_contribution_the_command_says_how_one_is_made(tmp_path: Path, capsys):
    assert main(["commons", str(tmp_path)]) == 2
    assert "python -m experiments submit STORE --out" in capsys.readouterr().err


def test_reported_results_are_the_files_numbers_and_named_as_reported():
    tables = reported()
    assert all(table.notes[0] == REPORTED for table in tables.values())
    curves, runs = (list(csv.DictReader((FOLDER / name).open())) for name in NAMES)
    best = max(float(row["mean"]) for row in curves if (row["task"], row["method"]) == ("gsm8k", "LoRA"))
    [row] = [row for row in tables["reported_learning_rates"].rows if row[:2] == ["gsm8k", "LoRA"]]
    assert row[2].startswith(f"{best:.2f} ±")
    highest = max(float(row["test_accuracy"]) for row in runs)
    assert tables["reported_peft"].rows[0][4] == f"{100 * highest:.2f}"
