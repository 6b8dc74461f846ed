"""`python -m analysis`: every table and figure again, from the stored runs."""

from __future__ import annotations

import argparse
import sys

from elalora.errors import UserError
from experiments.runtime.pipes import as_command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    given = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Reads run stores; writes every table (Markdown, CSV, LaTeX), every figure and index.html.",
        epilog="example: python -m analysis runs ../cluster/runs --task vader_movies --budget r2,r4 --interval",
    )
    given.add_argument("stores", nargs="*", default=["runs"], metavar="STORE", help="folders of runs (default: runs)")
    given.add_argument("--out", default="tables", metavar="FOLDER", help="where the files go (default: tables)")
    for name in ("method", "task", "budget", "protocol"):
        given.add_argument(f"--{name}", default="", metavar="A,B", help=f"only these (one {name} or several)")
    given.add_argument("--study", default="", metavar="NAME", help="only the runs of conf/study/NAME, with its tests")
    given.add_argument("--baseline", default="", metavar="METHOD", help="differences are to it (default: lora)")
    given.add_argument("--interval", action="store_true", help="t intervals in place of standard deviations")
    given.add_argument("--reading", choices=("last", "best"), default="last", help="which checkpoint is read")
    given.add_argument("--no-figures", action="store_true", help="tables and page only, in a fraction of the time")
    return given


def main(words: list[str] | None = None) -> int:
    """Exit codes: 0 written, 2 a mistake in what was asked for."""
    asked = parser().parse_args(words)
    from analysis.report import report

    wanted = {name: _list(getattr(asked, name)) for name in ("method", "task", "budget", "protocol")}
    try:
        report(
            asked.stores,
            asked.out,
            wanted,
            study=asked.study,
            baseline=asked.baseline,
            spread="interval" if asked.interval else "sd",
            reading=asked.reading,
            with_figures=not asked.no_figures,
        )
    except UserError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    return 0


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    as_command(main)
