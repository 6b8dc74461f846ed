"""Every table and figure of the stored runs, by one call, in one folder with a page to read them.

The runs may be a stranger's: a section that fails becomes a line that says why, and the others are written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from analysis.output.page import page
from analysis.output.section import Section
from analysis.output.table import summarise
from analysis.output.writers import print_table, write
from analysis.reading.runs import quick_texts
from analysis.reading.stored import Stored, read_stores
from elalora.errors import UserError
from experiments.runtime.text import clean

MOST_WARNINGS = 30  # on the page


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
        baseline: the method to compare against; empty means lora, if there are runs of it.
        spread: "sd" or "interval".
        reading: "last" or "best", the checkpoint whose scores are shown.
        with_figures: False skips the figures, which take most of the time.
        quiet: print nothing.

    Returns:
        The files: the page, then tables, then figures.

    Raises:
        UserError: a root is not a folder, a filter matches nothing, no chosen run is of the named baseline, or no run
            is finished.
    """
    return write_sections(read_stores(roots, filters, study, reading, baseline, spread), out, with_figures, quiet)


@quick_texts()
def write_sections(
    stored: Stored, out: str | Path = "tables", with_figures: bool = True, quiet: bool = False
) -> list[Path]:
    """Writes what `report` writes, from runs that are read; `stored.failed` then has the sections that are missing."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = sections_of(stored, folder if with_figures else None)
        files = [file for s in sections for name, table in s.tables.items() for file in write(table, folder, name)]
        files += [path.with_suffix(kind) for s in sections for path in s.drawn() for kind in (".png", ".svg")]
        warnings = [*stored.failed, *stored.left_out, *map(str, stored.unfinished)]
        more = [f"and {len(warnings) - MOST_WARNINGS} more"] if len(warnings) > MOST_WARNINGS else []
        index = folder / "index.html"
        text = page("elalora: results", stored.facts, sections, warnings[:MOST_WARNINGS] + more)
        index.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); type --out FOLDER") from error
    if not quiet:
        _print(stored, sections)
        kinds = "tables as .md, .csv, .tex" + ("; figures as .png, .svg" if with_figures else "")
        print(f"\nWritten: {index}, and beside it {len(files)} files: {kinds}")
    return [index, *files]


def sections_of(stored: Stored, folder: Path | None, only: Collection[str] = ()) -> list[Section]:
    """Every section of the report, in the order of the page.

    Args:
        stored: from `read_stores`.
        folder: for the figures; None draws none.
        only: names of the modules in `analysis.sections` to take; all if empty.
    """
    from analysis.sections import (
        ablations,
        attribution,
        comparison,
        confirmatory,
        cost,
        endings,
        increments,
        items,
        lengths,
        overall,
        papers,
        planted,
        rank_maps,
        rank_study,
        ranks_read,
        rate_curves,
        reviewer,
        run_list,
        training,
    )  # fmt: skip

    subjects = [
        confirmatory, comparison, increments, papers, ablations, overall, items, cost, reviewer, training, rate_curves,
        lengths, rank_maps, ranks_read, planted, rank_study, attribution, endings, run_list,
    ]  # fmt: skip
    wanted = [subject for subject in subjects if not only or subject.__name__.rpartition(".")[2] in only]
    return [section for subject in wanted for section in _guarded(subject, stored, folder)]


def _guarded(subject: ModuleType, stored: Stored, folder: Path | None) -> list[Section]:
    """The sections of one subject; a line in `stored.failed` if they fail, whatever the reason but the disk."""
    try:
        return list(subject.sections(stored, folder))
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged run must not cost the rest of the report
        name = subject.__name__.rpartition(".")[2]
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        stored.failed.append(clean(f"section {name}: left out, {reason}", 500))
        return []


def _print(stored: Stored, sections: Sequence[Section]) -> None:
    """The comparison and every sentence, on the terminal."""
    for table in [section.tables["comparison"] for section in sections if "comparison" in section.tables]:
        print_table(table)
    for line in [*stored.facts, *(line for section in sections for line in section.lines)]:
        print(f"\n{line}")
    open_runs = [str(run) for run in stored.unfinished]
    groups = {"Sections that failed": stored.failed, "Left out": stored.left_out, "Without a result": open_runs}
    for heading, lines in groups.items():
        if lines:
            print(f"\n{heading}:\n{summarise(lines)}")
