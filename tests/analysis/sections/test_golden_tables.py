"""Every table is rebuilt byte for byte from the same runs, and a real LaTeX sets it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from golden_tables import TABLES, tables


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of this checkout, by name."""
    root = tmp_path_factory.mktemp("golden")
    return {path.name: path for path in tables(root / "runs", root / "out")}


def test_the_tables_are_those_that_are_kept(built: dict[str, Path]) -> None:
    assert sorted(built) == sorted(path.name for path in TABLES.iterdir())
    kinds = {path.rsplit(".", 1)[0] for path in built}
    assert {
        "comparison", "confirmatory", "cost", "ablations", "failures", "beside_published",
        "paper_glue_deberta_v3_base", "paper_summarization_bart_large", "paper_vtab_vit_b16_in21k",
    } <= kinds  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.name for path in TABLES.glob("*.*")))
def test_a_table_is_rebuilt_byte_for_byte(built: dict[str, Path], name: str) -> None:
    assert built[name].read_text() == (TABLES / name).read_text()


def test_the_kept_tables_are_small() -> None:
    assert sum(path.stat().st_size for path in TABLES.iterdir()) < 300_000


def test_every_latex_table_compiles(built: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    names = sorted(name for name in built if name.endswith(".tex"))
    for name in names:
        shutil.copy(built[name], tmp_path)
    body = "\n".join(rf"\input{{{name}}}\clearpage" for name in names)
    (tmp_path / "all.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{body}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout
