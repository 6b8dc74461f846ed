"""Every table and figure of the stored runs, by one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.rows import NO_BUDGET
from analysis.store import load_runs, select
from analysis.table import CELL, comparison, shown_names, summarise
from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def report(
    roots: Sequence[str | Path],
    out: str | Path = "tables",
    filters: Mapping[str, Sequence[str]] | None = None,
    *,
    baseline: str = "lora",
    spread: str = "sd",
    reading: str = "last",
    quiet: bool = False,
) -> list[Path]:
    """Reads the stores and writes comparison.{md,csv,tex} and the figures of ranks.

    Args:
        roots: run stores.
        out: folder for the files; made when missing, files of the same name are replaced.
        filters: lists of wanted values by "method", "task", "budget", "protocol"; missing or empty means all.
        baseline: the method that differences are taken to.
        spread: "sd" or "interval".
        reading: "last" or "best".
        quiet: writes the files and prints nothing.

    Returns:
        The files, tables first.

    Raises:
        UserError: a root is no folder, a filter matches nothing, or no run is finished.
    """
    runs = load_runs(*roots, reading=reading)
    left_out, unfinished = runs.attrs["problems"], runs.attrs["unfinished"]
    if not len(runs):
        raise UserError(
            f"no finished run in {', '.join(map(str, roots))}; `python run.py` makes one"
            + (f"\n{summarise([*left_out, *unfinished])}" if left_out or unfinished else "")
        )
    chosen = select(runs, filters or {})
    if not len(chosen):
        asked = " ".join(f"--{key} {','.join(values)}" for key, values in (filters or {}).items() if values)
        raise UserError(f"no finished run has {asked} at once; leave one of them out")
    table = comparison(chosen, baseline, spread)
    from analysis.writers import print_table, write

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = write(table, folder, "comparison") + figures(chosen, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); type --out FOLDER") from error
    if not quiet:
        print_table(table)
        for heading, lines in (("Left out", left_out), ("Without a result", unfinished)):
            if lines:
                print(f"\n{heading}:\n{summarise(lines)}")
        print("\nWritten:\n" + "\n".join(f"  {file}" for file in files))
    return files


def figures(runs: pd.DataFrame, folder: Path) -> list[Path]:
    """A heat map of final ranks per task and budget, and the course of the ranks of every arm that moved any."""
    from analysis.figures import courses_of, draw_rank_maps, draw_trajectories, names, rank_map

    ranked = runs.assign(shown=shown_names(runs))
    ranked = ranked[[bool(ranks) for ranks in ranked["ranks_final"]]]
    files: list[Path] = []
    for _, cell in ranked.groupby(CELL, sort=False):
        first = cell.iloc[0]
        stem = [first[key] for key in ("task", "model", "budget", "protocol", "recipe")]
        where = f"{first['task']}, {first['model']}, {first['budget']}, {first['protocol']}"
        arms = {name: arm.sort_values("seed") for name, arm in cell.groupby("shown")}
        maps = _joined({name: rank_map(arm) for name, arm in arms.items()})
        title = f"Final ranks: {where}" + (", mean over seeds" if len(cell) > len(arms) else "")
        files += draw_rank_maps(maps, _centre(cell), folder / f"ranks_{names(stem)}", title, first["citation"])
        for name, arm in arms.items():
            courses = courses_of(arm)
            if courses:
                path = folder / f"trajectories_{names([*stem, _arm(name, arm)])}"
                files += draw_trajectories(courses, path, f"Ranks of {name}: {where}", first["citation"])
    return files


def _joined(maps: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Arms with one and the same rank everywhere share a panel, at the end; it has nothing more to show."""
    moved = {name: ranks for name, ranks in maps.items() if ranks.stack().nunique() > 1}
    flat: dict[float, list[str]] = {}
    for name, ranks in maps.items():
        if name not in moved:
            flat.setdefault(float(ranks.stack().iloc[0]), []).append(name)
    return moved | {", ".join(names): maps[names[0]] for names in flat.values()}


def _arm(name: str, arm: pd.DataFrame) -> str:
    """A short name for a file; arms that share a name are told apart by their settings' digest."""
    first = arm.iloc[0]
    plain = "-".join(part for part in (first["label"], first["variant"]) if part)
    return f"{plain}-{first['arm']}" if "[" in name else plain


def _centre(cell: pd.DataFrame) -> float:
    """The mean rank that the budget asks for; for a budget in parameters, the mean of what was reached."""
    budget = str(cell["budget"].iloc[0])
    if budget != NO_BUDGET and budget[1:].isdigit():
        return float(budget[1:])
    return float(sum(cell["rank_sum_final"]) / sum(map(len, cell["ranks_final"])))
