"""Executes the notebooks on a run store: `python -m analysis.notebooks runs --out tables/notebooks`.

The notebooks are Python files in jupytext's percent format, so that git holds no output and a diff is readable; Jupyter
with jupytext opens them as notebooks. Each is executed in a kernel of this Python, from the folder of the
checkout, and written as .html and .ipynb. A failing cell fails the command.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from elalora.errors import UserError
from experiments.runtime.pipes import as_command

HERE = Path(__file__).parent
CELL_SECONDS = 600


def available() -> list[str]:
    """Names of the notebooks."""
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def execute(name: str, stores: Sequence[str | Path], out: Path) -> list[Path]:
    """Executes one notebook.

    Args:
        name: one of `available`.
        stores: run stores that it reads.
        out: folder for NAME.html and NAME.ipynb; made when missing.

    Raises:
        UserError: the notebook does not exist, or one of its cells fails.
    """
    import jupytext  # type: ignore[import-untyped]
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbconvert import HTMLExporter

    if name not in available():
        raise UserError(f"unknown notebook {name}; available: {', '.join(available())}")
    notebook = jupytext.read(HERE / f"{name}.py")
    with tempfile.TemporaryDirectory() as private:  # nothing is left in the home folder
        changed = {
            "ELALORA_STORES": os.pathsep.join(str(Path(store).resolve()) for store in stores),
            **{name: private for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")},
        }
        environment = {**os.environ, **changed}
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(HERE.parents[1])}},
        )
        try:
            client.execute(env=environment)
        except CellExecutionError as error:
            raise UserError(f"notebook {name}: {error.ename}: {error.evalue}") from error
    out.mkdir(parents=True, exist_ok=True)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (out / f"{name}.html").write_text(page, encoding="utf-8")
    jupytext.write(notebook, out / f"{name}.ipynb")
    return [out / f"{name}.html", out / f"{name}.ipynb"]


def main(words: list[str] | None = None) -> int:
    """Exit codes: 0 all executed, 2 a cell failed or a mistake in the command."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.notebooks", description="Executes the notebooks on run stores and writes them as HTML."
    )
    parser.add_argument("stores", nargs="*", default=["runs"], metavar="STORE", help="run stores (default: runs)")
    parser.add_argument("--out", default="tables/notebooks", metavar="FOLDER", help="default: tables/notebooks")
    parser.add_argument("--only", default="", metavar="A,B", help=f"only these notebooks: {', '.join(available())}")
    args = parser.parse_intermixed_args(words)
    chosen = [part.strip() for part in args.only.split(",") if part.strip()] or available()
    for name in chosen:
        try:
            files = execute(name, args.stores, Path(args.out))
        except UserError as error:
            print(f"notebooks: {error}", file=sys.stderr)
            return 2
        print(f"{name}: {files[0]}")
    return 0


if __name__ == "__main__":
    as_command(main)
