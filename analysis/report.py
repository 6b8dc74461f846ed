"""Every table and figure of the stored runs, by one call, in one folder with a page to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.output.page import page
from analysis.output.section import Section
from analysis.output.table import summarise
from analysis.output.writers import print_table, write
from analysis.reading.stored import Stored, read_stores
from analysis.sections.comparison import comparison
from analysis.sections.confirmatory import _confirmatory
from analysis.sections.cost import _cost
from analysis.sections.endings import _endings
from analysis.sections.items import _items
from analysis.sections.overall import _overall
from analysis.sections.papers import _paper
from analysis.sections.rank_maps import figures
from elalora.errors import UserError

if TYPE_CHECKING:
    pass

BASELINE = "lora"  # where none is named
MOST_WARNINGS = 30


def report(
    roots: Sequence[str | Path],
    out: str | Path = "tables",
    filters: Mapping[str, Sequence[str]] | None = None,
    *,
    study: str = "",
    baseline: str = "",
    spread: str = "sd",
    reading: str = "last",
    with_figures: bool = True,
    quiet: bool = False,
) -> list[Path]:
    """Reads the stores and writes every table, every figure and index.html.

    Args:
        roots: run stores.
        out: folder for the files; made when missing, files of the same name are replaced.
        filters: lists of wanted values by "method", "task", "budget", "protocol"; missing or empty means all.
        study: a file of conf/study: only its runs, and its confirmatory table.
        baseline: the method that differences are taken to; empty is lora, where there are runs of it.
        spread: "sd" or "interval".
        reading: "last" or "best".
        with_figures: False leaves the figures out, which take most of the time.
        quiet: writes the files and prints nothing.

    Returns:
        The files: the page, then tables, then figures.

    Raises:
        UserError: a root is no folder, a filter matches nothing, no chosen run is of the named baseline, or no run is
            finished.
    """
    stored = read_stores(roots, filters, study, reading)
    if baseline and baseline not in set(stored.runs["method"]):
        elsewhere = baseline in set(stored.known["method"])
        methods = ", ".join(sorted(set((stored.runs if elsewhere else stored.known)["method"])))
        raise UserError(
            f"--baseline {baseline} is in "
            + (f"none of the chosen runs; chosen: {methods}" if elsewhere else f"no finished run; stored: {methods}")
        )
    baseline = baseline or BASELINE
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = sections_of(stored, folder if with_figures else None, baseline, spread)
        files = [file for s in sections for name, t in s.tables.items() for file in write(t, folder, name)]
        files += [path.with_suffix(kind) for s in sections for path in s.figures for kind in (".png", ".svg")]
        warnings = [*stored.left_out, *map(str, stored.unfinished)]
        more = [f"and {len(warnings) - MOST_WARNINGS} more"] if len(warnings) > MOST_WARNINGS else []
        index = folder / "index.html"
        text = page("elalora: results", stored.facts, sections, warnings[:MOST_WARNINGS] + more)
        index.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); type --out FOLDER") from error
    if not quiet:
        _tell(stored, sections)
        print(f"\nWritten: {index}, and beside it {len(files)} files: tables as .md, .csv, .tex; figures as .png, .svg")
    return [index, *files]


def _tell(stored: Stored, sections: Sequence[Section]) -> None:
    """The comparison and every sentence, on the terminal."""
    print_table(next(section.tables["comparison"] for section in sections if "comparison" in section.tables))
    for line in [*stored.facts, *(line for section in sections for line in section.lines)]:
        print(f"\n{line}")
    open_runs = [str(run) for run in stored.unfinished]
    for heading, lines in (("Left out", stored.left_out), ("Without a result", open_runs)):
        if lines:
            print(f"\n{heading}:\n{summarise(lines)}")


def sections_of(stored: Stored, folder: Path | None, baseline: str = BASELINE, spread: str = "sd") -> list[Section]:
    """Every section of the report, in its order; `folder` takes the figures, None draws none."""
    from analysis.sections import attribution, rank_study

    runs, table = stored.runs, comparison(stored.runs, baseline, spread)
    return [
        *_confirmatory(stored.known, stored.unfinished, stored.declared),
        Section("Comparison", {"comparison": table}),
        *_paper(runs),
        *_overall(runs, table, baseline, folder),
        *(_items(runs, baseline) if stored.reading == "last" else []),
        *_cost(runs, table, folder),
        *([Section("Ranks", figures=figures(runs, folder))] if folder is not None else []),
        *rank_study.sections(runs, folder),
        *attribution.sections(runs, folder),
        *_endings(stored),
    ]
