"""The notebooks run from top to bottom on a store with known effects, and git holds no output of them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_runs import QUICK, ROOT

from analysis.notebooks.__main__ import HERE, available, execute, main
from elalora.errors import UserError
from experiments.standins.study import build

pytestmark = pytest.mark.xdist_group(
    "kernels"
)  # two that start at once may choose the same port, and one never answers


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("notebooks"))


def page(name: str, root: Path, out: Path) -> str:
    files = execute(name, [root], out)
    assert [file.suffix for file in files] == [".html", ".ipynb"]
    return re.sub(r"<[^>]+>", "", files[0].read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_attribution_notebook_reads_out_the_effects(root: Path, tmp_path: Path):
    text = page("attribution", root, tmp_path)
    assert "135 finished runs" in text and "no gaps" in text
    assert "raised the score by 2.0" in text and "lowered the score by 0.6" in text


@pytest.mark.parametrize(
    ("name", "words"), [("own_method", "9 paired seeds: mean difference +"), ("paper_tables", "Comparison")]
)
@pytest.mark.slow
def test_a_notebook_of_tables_runs(name: str, words: str, root: Path, tmp_path: Path):
    assert words in page(name, root, tmp_path)


@pytest.mark.slow
def test_the_notebook_that_teaches_says_what_it_shows(root: Path, tmp_path: Path):
    """Pairs vary less than runs; a null keeps its level; seeds_needed reaches 80 %; seeds agree where made to."""
    text = page("how_to_read", root, tmp_path)

    def number(pattern: str) -> float:
        return float(re.search(pattern, text)[1])

    assert number(r"Spread of the differences: ([\d.]+) points") < number(r"without pairing ([\d.]+)\.")
    assert 3.0 < number(r"Of equal methods, ([\d.]+) %") < 6.5  # exact p: at most 5, up to four standard errors
    assert number(r"(\d+) seeds for 80 % power") in range(13, 18)  # effect / sd = 0.8
    assert number(r"Agreement of seeds ([\d.-]+);") > number(r"200 shuffles, the largest: ([\d.-]+)")


@pytest.fixture
def few(root: Path, tmp_path: Path) -> Path:
    """Two seeds of the scored arm, the fixed one and the transplant: every table of the rank study, few figures."""
    for path in root.rglob("result.json"):
        result = json.loads(path.read_text())
        method = result["identity"]["method"]
        switched = method.get("D1") or method.get("D2") or method.get("shuffle") or method.get("importance") == "random"
        if result["seed"] < 2 and result["method"] != "lora" and not switched:
            shutil.copytree(path.parent, tmp_path / "few" / result["task"] / path.parent.name)
    return tmp_path / "few"


@pytest.mark.slow
def test_the_rank_study_runs(few: Path, tmp_path: Path):
    text = page("rank_study", few, tmp_path)
    assert "6 finished runs" in text
    for words in ("Agreement of final ranks over seeds", "Rank against contribution", "Layout or dynamics", "Moves of"):
        assert words in text


@pytest.mark.full
def test_the_rank_study_runs_on_the_whole_store(root: Path, tmp_path: Path):
    assert "Rank against contribution" in page("rank_study", root, tmp_path)


def test_the_notebooks_are_text_without_outputs():
    assert available() == ["attribution", "how_to_read", "own_method", "paper_tables", "rank_study"]
    for name in available():
        text = (HERE / f"{name}.py").read_text(encoding="utf-8")
        assert "formats: ipynb,py:percent" in text and "# %% [markdown]" in text
    assert not list(HERE.glob("*.ipynb"))


@pytest.mark.slow
def test_a_failing_cell_is_one_line_and_a_failed_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path / "none"), "--only", "attribution", "--out", str(tmp_path)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("notebooks:")]
    assert "attribution" in line and "is not a folder of runs" in line
    with pytest.raises(UserError, match="notebook nothing"):
        execute("nothing", [tmp_path], tmp_path)


CELLS = """
from experiments.config.compose import compose_run
from experiments.runs.plan import make_plan
from experiments.runs.run import run
run(make_plan(compose_run([*{words}, "seed=0"])))
---
!{python} run.py -m {typed} seed=1,2
---
!{python} run.py {typed} seed=3 > {folder}/log 2>&1
---
!{python} -m analysis {folder}/runs --out {folder}/tables --no-figures
"""


@pytest.mark.slow
def test_progress_in_a_notebook_and_in_its_log_file_is_a_few_plain_lines(tiny_model_dir: Path, tmp_path: Path):
    """A `!` command has a terminal there, and FORCE_COLOR is set: a redrawn line would fill the notebook."""
    words = [*QUICK, "method=lora", f"model.path={tiny_model_dir}", f"store.root={tmp_path}/runs"]
    typed = " ".join(f"'{word}'" for word in words)
    cells = CELLS.format(words=words, typed=typed, python=sys.executable, folder=tmp_path).split("---")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = []
    for cell in notebook.cells:
        texts = [output["text"] for output in cell.outputs if output.output_type == "stream"]
        shown.append("".join(texts).replace("\r\n", "\n"))
        assert all(output.output_type in ("stream", "execute_result") for output in cell.outputs)
    shown.append((tmp_path / "log").read_text())
    run, sweep, nothing, tables, log = shown
    for text in shown:
        assert not {"\x1b", "\r"} & set(text), text
    for text in (run, log):
        first = f"vader_movies/lora-r4-s{0 if text is run else 3}: 30 steps, 120 of "
        assert text.startswith(first) and "training items" in text.splitlines()[0]
        assert "trained at step 30" in text and "done: " in text and len(text.splitlines()) <= 6, text
    assert nothing == "" and "4 finished runs" in tables
    assert "[1/2 done" in sweep and "2 done, 0 failed" in sweep and len(sweep.splitlines()) <= 6, sweep
