"""What `python -m analysis` writes and prints, from a store written as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.report import report
from elalora.errors import UserError
from experiments.runtime.places import CHECKOUT
from experiments.standins.stored_runs import VADER, moved_run, result, three_seeds, write_run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return three_seeds(tmp_path / "runs")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """One seed of LoRA and of ElaLoRA: enough where figures are drawn, which takes long."""
    write_run(tmp_path / "runs", result("lora", 0, 80.0))
    moved_run(tmp_path / "runs", 0, 81.0)
    return tmp_path / "runs"


def test_the_report_writes_what_it_names(pair: Path, tmp_path: Path) -> None:
    files = report([pair], tmp_path / "out", quiet=True)
    where = "vader_movies-minilm-r4-clean"
    tables = ["comparison", "cost", "reviewer", f"shares_{where}", "runs"]
    drawn = ["pareto_vader_movies-minilm-clean", f"ranks_{where}", f"trajectories_{where}-elalora-paper"]
    drawn += [f"rounds_{where}-ElaLoRA_paper", f"moves_{where}-ElaLoRA_paper"]
    assert [file.name for file in files] == [
        "index.html",
        *[f"{name}.{kind}" for name in tables for kind in ("md", "csv", "tex")],
        *[f"{name}.{kind}" for name in drawn for kind in ("png", "svg")],
    ]
    assert sorted(file.name for file in files) == sorted(path.name for path in (tmp_path / "out").iterdir())
    for file in files:
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        if file.suffix == ".svg":
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
            assert all(word in file.read_text() for word in VADER.split())  # it may be broken into lines


def test_the_same_runs_give_the_same_bytes(pair: Path, tmp_path: Path) -> None:
    first, second = (report([pair], tmp_path / name, quiet=True) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_strangers_names_stay_inside_the_folder(tmp_path: Path) -> None:
    whole = result("elalora", 0, 80.0, task="../../$x$", label="../../boo", model="a/b")
    folder = tmp_path / "runs" / "t" / "r"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(whole))
    files = report([tmp_path / "runs"], tmp_path / "out", quiet=True)
    assert {file.resolve().parent for file in files} == {(tmp_path / "out").resolve()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "runs"]


def test_the_command_prints_the_table_and_the_files(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(store), "--out", str(tmp_path / "out"), "--interval", "--budget", "r4", "--method", "lora"]) == 0
    shown = capsys.readouterr().out
    assert "82.00 [77.03, 86.97]" in shown  # 4.3027 * 2 / sqrt 3 = 4.968
    files = [path for path in (tmp_path / "out").iterdir() if path.name != "index.html"]
    assert f"Written: {tmp_path / 'out' / 'index.html'}, and beside it {len(files)} files" in shown


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "nowhere is not a folder of runs"),
        (["STORE", "--task", "vader_movies", "nowhere"], "nowhere is not a folder of runs"),
        (["STORE", "--task", "cola"], "--task cola is in no finished run; stored: vader_movies"),
        (["STORE", "--baseline", "lroa"], "--baseline lroa is in no finished run; stored: elalora, lora"),
        (["STORE", "--method", "elalora", "--baseline", "lora"], "lora is in none of the chosen runs; chosen: elalora"),
        (["STORE", "--reading", "best"], "none of the 6 finished runs in "),
        (["STORE", "--reading", "best"], " has a best reading; runs with `trainer.evaluations=N` have one"),
        (["STORE", "--out", "/dev/null/x"], "cannot be written"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    store: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main([str(store) if word == "STORE" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("analysis: ") and line in error and error.count("\n") == 1


def test_a_baseline_that_nobody_named_may_be_missing_and_is_told(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(store), "--out", str(tmp_path / "out"), "--method", "elalora", "--no-figures"]) == 0
    note = "No differences: there is no run of the baseline lora here; methods: elalora."
    assert note in " ".join(capsys.readouterr().out.split())
    assert note in (tmp_path / "out" / "comparison.md").read_text()


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run in .*; `python run.py` makes one"):
        report([tmp_path])
    with pytest.raises(UserError, match=r"no finished run in .*; `python run.py` makes one"):
        report([tmp_path], reading="best")
    damaged = tmp_path / "rte" / "lora-r4-s0-0123456789"
    damaged.mkdir(parents=True)
    (damaged / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"makes one; .*lora-r4-s0-0123456789: left out, "):
        report([tmp_path])


def test_starting_up_imports_nothing_heavy() -> None:
    code = (
        "import sys, analysis.__main__, analysis.report, analysis.output.writers; "
        "heavy = {'pandas', 'matplotlib', 'scipy', 'rich', 'torch', 'numpy'}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout.strip() == "set()"


def test_reading_stores_and_importing_every_section_load_no_torch():
    names = [path.stem for path in (CHECKOUT / "analysis" / "sections").glob("*.py") if path.stem != "__init__"]
    code = f"import sys, analysis.report; from analysis.sections import {', '.join(names)}; "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CHECKOUT)
