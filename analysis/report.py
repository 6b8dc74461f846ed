"""Every table and figure of the stored runs, by one call, in one folder with a page to read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.page import Section, page
from analysis.rows import NO_BUDGET
from analysis.store import Unfinished, load_runs, select
from analysis.table import CELL, Table, comparison, shown_names, summarise
from analysis.writers import print_table, write
from elalora.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.study import Study

TUNING = "tune"  # the protocol of a study's tuning stage, which reads data that no table is about
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


@dataclass(frozen=True)
class Stored:
    """What a report is about.

    Attributes:
        runs: the chosen runs; tuning: those of a study's tuning stage where they are not among them.
        known: all runs before any filter, so that a filter makes no run missing.
        facts: lines on what was chosen; left_out: results that could not be read.
        unfinished: runs without a result; declared: the study, None for none.
        reading: the checkpoint that is read.
    """

    runs: pd.DataFrame
    tuning: pd.DataFrame
    known: pd.DataFrame
    facts: list[str]
    left_out: list[str]
    unfinished: list[Unfinished]
    declared: Study | None
    reading: str


def read_stores(
    roots: Sequence[str | Path],
    filters: Mapping[str, Sequence[str]] | None = None,
    study: str = "",
    reading: str = "last",
) -> Stored:
    """Reads and chooses runs; arguments and errors as in `report`."""
    filters = {key: list(values) for key, values in (filters or {}).items() if values}
    runs = load_runs(*roots, reading=reading)
    left_out, unfinished = list(runs.attrs["problems"]), list(runs.attrs["unfinished"])
    runs.attrs = {}  # pandas copies them at every step
    declared = None
    if study:
        from analysis.study import load_study

        declared = load_study(study, roots)
        if len(runs):
            runs, unfinished = declared.only(runs, unfinished)
    if not len(runs):
        if reading != "last" and (others := _finished(roots, declared)):
            raise UserError(
                f"none of the {others} finished runs{f' of study {study}' if study else ''} in "
                f"{', '.join(map(str, roots))} has a {reading} reading; runs with `trainer.evaluations=N` have one, "
                "where their protocol selects a checkpoint"
            )
        raise UserError(
            f"no finished run{f' of study {study}' if study else ''} in {', '.join(map(str, roots))}; "
            f"`python run.py{f' -m +study={study}' if study else ''}` makes one"
            + (f"\n{summarise([*left_out, *map(str, unfinished)])}" if left_out or unfinished else "")
        )
    chosen = select(runs, filters)
    if not len(chosen):
        asked = " ".join(f"--{key} {','.join(values)}" for key, values in filters.items())
        raise UserError(f"no finished run has {asked} at once; leave one of them out")
    facts = [f"{len(chosen)} finished runs of {', '.join(map(str, roots))}, {reading} checkpoint."]
    facts += [f"Only --study {study}."] if study else []
    facts += [f"Only --{key} {','.join(values)}." for key, values in filters.items()]
    tuning = chosen["protocol"] == TUNING
    if "protocol" in filters or tuning.all():
        tuning &= False
    if tuning.any():
        facts.append(f"{tuning.sum()} tuning runs are not shown; --protocol {TUNING} shows them.")
        facts.append(_spent(chosen[tuning]))
    kept, aside = (chosen[mask].reset_index(drop=True) for mask in (~tuning, tuning))
    return Stored(kept, aside, runs, facts, left_out, unfinished, declared, reading)


def _finished(roots: Sequence[str | Path], declared: Study | None) -> int:
    """How many runs have a last checkpoint, of the study where there is one."""
    runs = load_runs(*roots)
    return len(runs) if declared is None or not len(runs) else len(declared.only(runs, [])[0])


def _spent(tuning: pd.DataFrame) -> str:
    """What finding the settings cost: every method's runs and their hours of training."""
    by_method = tuning.groupby("method")["train_seconds"].agg(["size", "sum"])
    shares = [f"{name} {row['size']:.0f} runs, {row['sum'] / 3600:.2f} h" for name, row in by_method.iterrows()]
    return f"Tuning took {tuning['train_seconds'].sum() / 3600:.2f} hours of training: {'; '.join(shares)}."


def sections_of(stored: Stored, folder: Path | None, baseline: str = BASELINE, spread: str = "sd") -> list[Section]:
    """Every section of the report, in its order; `folder` takes the figures, None draws none."""
    from analysis import attribution, rank_study

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


def _confirmatory(runs: pd.DataFrame, unfinished: Sequence[Unfinished], declared: Study | None) -> list[Section]:
    from analysis.confirm import confirm

    if declared is None or declared.family is None:
        return []
    found = confirm(runs, declared.cells, declared.family, unfinished)
    return [Section(f"Study {declared.name}: confirmatory", {"confirmatory": found.table}, lines=found.sentences)]


def _paper(runs: pd.DataFrame) -> list[Section]:
    from analysis.ablation import ablations, published_ablations
    from analysis.paper import against_published, paper_tables

    sections = []
    tables = {f"paper_{_file([name])}": table for name, table in paper_tables(runs).items()}
    if tables:
        met = against_published(runs)
        sections.append(Section("The papers' tables", tables | ({"beside_published": met} if met else {})))
    changes = ablations(runs)
    if changes is not None:
        sections.append(Section("Ablations", {"ablations": changes} | published_ablations()))
    return sections


def _overall(runs: pd.DataFrame, compared: Table, baseline: str, folder: Path | None) -> list[Section]:
    """The table over all tasks, and diagram and profiles of every place that allows them; no folder draws nothing."""
    from analysis.overall import overall, places

    table = overall(runs, baseline)
    if table is None:
        return []
    section = Section("Over all tasks", {"overall": table})
    if folder is not None:
        from analysis import overall_figures as drawing

        for place in places(runs):
            stem, where = _file(place.key.values()), place.where()
            if reason := drawing.why_not_ranks(place):
                section.lines.append(reason)
            else:
                title = f"Mean ranks over {len(place.tasks())} tasks: {where}"
                section.figures[drawing.draw_ranks(place, folder / f"mean_ranks_{stem}", title)[-1]] = title
            if reason := drawing.why_not_profiles(place):
                section.lines.append(reason)
            else:
                title = f"Performance profiles over {len(place.tasks())} tasks: {where}"
                path = folder / f"profiles_{stem}"
                section.figures[drawing.draw_profiles(place, baseline, path, title, _looks(compared))[-1]] = title
    return [section]


def _items(runs: pd.DataFrame, baseline: str) -> list[Section]:
    from analysis.item_tests import item_tests

    table, lines = item_tests(runs, baseline)
    return [Section("Single items", {"items": table} if table is not None else {}, lines=lines)]


def _cost(runs: pd.DataFrame, table: Table, folder: Path | None) -> list[Section]:
    """The table of costs, and score against each of them, by task and over a suite; no folder draws nothing."""
    from analysis.cost import cost_table, points_of, suite_points

    drawn: dict[Path, str] = {}

    if folder is not None:
        from analysis.cost_figures import draw_pareto
        from analysis.figures import source_of

        for place, arms, tasks, off in suite_points(runs):
            title = f"Mean score against cost: {_words(place)}"
            data = source_of(sorted(set(runs["citation"][runs["task"].isin(tasks)]) - {""}))
            paths = draw_pareto(arms, folder / f"pareto_mean_{_file(place.values())}", title, data, _looks(table))
            caption = f"{title}. Tasks: {', '.join(tasks)}"
            caption += f". Off the budget and left out: {', '.join(off)}" if off else ""
            drawn |= {svg: caption for svg in paths if svg.suffix == ".svg"}
        for place, arms in points_of(table):
            title = f"Score against cost: {_words(place)}"
            data = str(arms["citation"].iloc[0])
            paths = draw_pareto(arms, folder / f"pareto_{_file(place.values())}", title, data, _looks(table))
            drawn |= {svg: title for svg in paths if svg.suffix == ".svg"}
    return [Section("Cost", {"cost": cost_table(table)}, drawn)]


def _looks(compared: Table) -> dict[str, int]:
    """Numbers of the arms in the order of the comparison table, for one look in all figures."""
    from analysis.cost_figures import styles

    return styles(compared.frame["shown"][compared.frame["method"] != "majority"])


def _words(place: Mapping[str, str]) -> str:
    return ", ".join(part for part in place.values() if part)


def _endings(stored: Stored) -> list[Section]:
    from analysis.confirm import failures

    declared = stored.declared
    ended = failures(stored.runs, stored.unfinished, None if declared is None else declared.cells)
    lines = [] if declared is None else declared.gaps(stored.known)
    return [Section("How the runs ended", {"failures": ended} if ended is not None else {}, lines=lines)]


def figures(runs: pd.DataFrame, folder: Path) -> dict[Path, str]:
    """A heat map of final ranks per task and budget, and the course of the ranks of every arm that moved any.

    Returns:
        Captions by the path of the .svg; a .png stands beside it.
    """
    from analysis.figures import courses_of, draw_rank_maps, draw_trajectories, rank_map

    ranked = runs.assign(shown=shown_names(runs))
    ranked = ranked[[bool(ranks) for ranks in ranked["ranks_final"]]]
    drawn: dict[Path, str] = {}
    for _, cell in ranked.groupby(CELL, sort=False):
        first = cell.iloc[0]
        stem = [first[key] for key in ("task", "model", "budget", "protocol", "recipe")]
        where = f"{first['task']}, {first['model']}, {first['budget']}, {first['protocol']}"
        arms = {name: arm.sort_values("seed") for name, arm in cell.groupby("shown")}
        maps = _joined({name: rank_map(arm) for name, arm in arms.items()})
        title = f"Final ranks: {where}" + _mean_over(map(len, arms.values()))
        path = folder / f"ranks_{_file(stem)}"
        drawn[draw_rank_maps(maps, _centre(cell), path, title, first["citation"])[-1]] = title
        for name, arm in arms.items():
            courses = courses_of(arm)
            if courses:
                path = folder / f"trajectories_{_file([*stem, _arm(name, arm)])}"
                title = f"Ranks of {name}: {where}"
                drawn[draw_trajectories(courses, path, title, first["citation"])[-1]] = title
    return drawn


def _mean_over(seeds: Iterable[int]) -> str:
    """How many seeds the panels are means over; nothing for one."""
    counts = sorted(set(seeds))
    if counts == [1]:
        return ""
    return f", mean over {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''} seeds"


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


def _file(parts: Iterable[str]) -> str:
    """A file name from free text."""
    from analysis.figures import names

    return names(list(parts))
