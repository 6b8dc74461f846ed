"""Tables as Markdown, CSV, LaTeX and on the terminal: every cell is escaped, and a real LaTeX sets them."""

from __future__ import annotations

import shutil
import subprocess
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from analysis.output.figure import file_name
from analysis.output.table import Table, leaders
from analysis.output.writers import latex, print_table, to_csv, to_latex, to_markdown
from analysis.reading.runs import load_runs
from analysis.sections.comparison import comparison
from experiments.standins.stored_runs import VADER, result, three_seeds, write_run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return three_seeds(tmp_path / "runs")


def test_every_markdown_row_has_as_many_cells_as_the_header(store: Path) -> None:
    write_run(store, result("lora", 0, 70.0, label="a|b_c*", identity__method__alpha=1.0))
    lines = [line for line in to_markdown(comparison(load_runs(store))).splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert r"a\|b\_c\*" in "".join(lines)


def test_csv_holds_the_unrounded_numbers(store: Path) -> None:
    frame = pd.read_csv(StringIO(to_csv(comparison(load_runs(store)))))
    assert frame[frame["method"] == "elalora"]["score_sd"].item() == pytest.approx(3**0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("plain", "escaped"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        ("81.62 ± 0.18", r"81.62 $\pm$ 0.18"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("[0.1]", "{[}0.1]"),
        ('say "x"', "say ''x''"),
        ("Dürr 日本 ≈", "Dürr ?? ?"),
    ],
)
def test_latex_is_escaped(plain: str, escaped: str) -> None:
    assert latex(plain) == escaped


def test_the_latex_table_compiles(store: Path, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    write_run(store, result("prilora", 0, 81.0, label=r"[x] \input{y} ^~#$ *日本"))
    (tmp_path / "table.tex").write_text(to_latex(comparison(load_runs(store))))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table.tex}\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout


def test_the_terminal_shows_names_as_they_are(store: Path) -> None:
    from rich.console import Console

    write_run(store, result("svd_lora", 0, 81.0, label="[red]boo[/red]"))
    console = Console(file=StringIO(), width=140)
    print_table(comparison(load_runs(store)), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]boo[/red]" in shown and "82.00 ± 2.00" in shown and VADER in shown


def test_file_names_hold_nothing_but_harmless_characters() -> None:
    assert file_name(["../../etc", "a b/c", "", "r4"]) == "etc-a_b_c-r4"
    assert "/" not in file_name(["日本", "/"]) and file_name(["日本"]) == "x"


def test_latex_sets_the_best_mean_bold_the_second_underlined_and_the_deviation_as_an_index() -> None:
    cells = ["81.00 ± 2.00", "82.50 ± 1.00‡", "−1.25", "80.00"]
    ahead = leaders(["r4", "r4", None, "r4"], [81.0, 82.5, 99.0, 80.0], 0)
    table = Table("A caption.", ["Score"], [[cell] for cell in cells], [], pd.DataFrame(), ahead)
    text = to_latex(table)
    assert r"\underline{81.00}$_{\pm 2.00}$ \\" in text and r"\textbf{82.50}$_{\pm 1.00}$$\ddagger$ \\" in text
    assert r"$-$1.25 \\" in text and "\n80.00" in text and "Neither is a test" in text


def test_equal_means_are_equally_bold_and_one_arm_leads_nothing() -> None:
    assert leaders(["a", "a", "a"], [80.001, 80.0, 79.0], 3) == {(0, 3): 1, (1, 3): 1, (2, 3): 2}
    assert leaders(["a", "b"], [80.0, 81.0], 3) == {} and leaders(["a", "a"], [80.0, 81.0], 3) == {(1, 3): 1}
