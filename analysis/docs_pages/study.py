"""The pages of studies, from templates and the stored runs: `python -m analysis.docs_pages.study`.

A template holds the prose and no number. Tables, figures and the sentences of the tests are filled in where the
template names them, so no page can disagree with the runs; a test makes them again and compares.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.docs_pages import study_facts
from analysis.docs_pages.methods_text import methods
from analysis.output.section import Section
from analysis.output.table import Table
from analysis.output.writers import to_markdown
from analysis.reading.arms import with_names
from analysis.reading.stored import Stored, read_stores
from analysis.report import sections_of
from elalora.errors import UserError
from experiments.runtime.pipes import as_command
from experiments.runtime.places import CHECKOUT
from experiments.studies.rules import TUNING_PART

STORE = "analysis/measured"
PAGE, TABLES, CONTROL = "docs/study.md", "docs/study/tables.md", "docs/study/control.md"
RATES, LAYOUTS = "docs/study/rates.md", "docs/study/layouts.md"
FIELD, SECOND = "docs/study/field.md", "docs/reports/study-2.md"
TEMPLATES = {  # of each page
    PAGE: "analysis/docs_pages/study.template.md",
    TABLES: "analysis/docs_pages/study_tables.template.md",
    CONTROL: "analysis/docs_pages/study_control.template.md",
    RATES: "analysis/docs_pages/study_rates.template.md",
    LAYOUTS: "analysis/docs_pages/study_layouts.template.md",
    FIELD: "analysis/docs_pages/study_field.template.md",
    SECOND: "analysis/docs_pages/study_2.template.md",
}
IMAGES = "img/study"  # in docs


class Wanted(NamedTuple):
    """What the pages take from a study: the method to compare against, "" for the default, and which sections."""

    baseline: str = ""
    sections: tuple[str, ...] = ()  # modules of analysis.sections, all if empty
    together: tuple[str, ...] = ()  # studies whose runs are read as one; empty for the study of this name


STUDIES = {
    "offline_main": Wanted("elalora"),
    "attribution": Wanted(),
    "planted": Wanted("svd_lora"),
    "lr_curve": Wanted("lora", ("rate_curves",)),
    "layouts": Wanted("lora", ("rank_maps",)),
    "offline_family": Wanted("lora", ("comparison", "cost")),
    "moving_main": Wanted("svd_lora", ("confirmatory", "reviewer", "rank_maps", "rank_study", "rate_curves")),
    "moving_long": Wanted("svd_lora"),
    "moving_digits": Wanted("svd_lora", ("confirmatory",)),
    "moving": Wanted("svd_lora", ("lengths",), ("moving_main", "moving_long")),
}
FACTS: dict[str, Callable[..., str]] = {
    "tuning": study_facts.tuning,
    "lead": study_facts.lead,
    "losses": study_facts.losses,
    "arms": study_facts.arms,
    "methods": methods,
}
MARK = re.compile(r"^\{(\w+) (\w+)(?: ([^}|]+?))?(?:\|([^}]*))?\}$", re.M)


class Material:
    """Tables, figures and sentences of the studies, each made once.

    Args:
        stores: run stores.
        folder: for the figures; None draws none.
    """

    def __init__(self, stores: Sequence[str | Path], folder: Path | None) -> None:
        self.folder = folder
        self._stored: dict[str, Stored] = {}
        self._sections: dict[str, list[Section]] = {}
        self._stores = stores

    def stored(self, study: str) -> Stored:
        if study not in STUDIES:
            raise UserError(f"study {study} is not on the page; allowed: {', '.join(STUDIES)}")
        if study not in self._stored:
            wanted = STUDIES[study]
            if wanted.together:
                self._stored[study] = _as_one([self.stored(name) for name in wanted.together])
            else:
                self._stored[study] = read_stores(self._stores, study=study, baseline=wanted.baseline)
        return self._stored[study]

    def sections(self, study: str) -> list[Section]:
        stored = self.stored(study)
        if study not in self._sections:
            place = None if self.folder is None else self.folder / study
            if place is not None:
                place.mkdir()
            self._sections[study] = sections_of(stored, place, STUDIES[study].sections)
        return self._sections[study]

    def table(self, study: str, name: str) -> Table:
        tables = {key: table for section in self.sections(study) for key, table in section.tables.items()}
        if name not in tables:
            raise UserError(f"study {study} has no table {name}; it has {', '.join(tables)}")
        return tables[name]

    def lines(self, study: str, words: str) -> list[str]:
        """The sentences of the sections that have these words in their titles."""
        matching = [section for section in self.sections(study) if words.lower() in section.title.lower()]
        if not matching:
            titles = ", ".join(section.title for section in self.sections(study))
            raise UserError(f"study {study} has no section '{words}'; it has {titles}")
        return [line for section in matching for line in section.lines]


def _as_one(studies: Sequence[Stored]) -> Stored:
    """The runs of several studies, none of which is declared for all of them."""
    runs = with_names(pd.concat([stored.runs for stored in studies], ignore_index=True))
    tuning, known = (
        pd.concat([getattr(stored, part) for stored in studies], ignore_index=True) for part in ("tuning", "known")
    )
    return dataclasses.replace(studies[0], runs=runs, tuning=tuning, known=known, declared=None)


def fill(template: str, material: Material, images: Path | None = None, page: str = PAGE) -> str:
    """The page: every mark in the template replaced.

    Marks stand alone on a line: {table STUDY NAME}, or {rows STUDY NAME} and {notes STUDY NAME} for its parts,
    {lines STUDY SECTION}, {figure STUDY STEM|caption}, {runs STUDY}, and {NAME STUDY} for the names in `FACTS`,
    {arms STUDY BASE} with the arm that the others are compared with.

    Args:
        template: the text.
        material: of the studies.
        images: folder that takes the figures; None only names them.
        page: the template's, whose links to figures start in its folder.

    Raises:
        UserError: a mark names something that does not exist.
    """

    def put(mark: re.Match[str]) -> str:
        kind, study, name, caption = mark.groups()
        if kind == "table":
            return to_markdown(material.table(study, name)).rstrip()
        if kind in ("rows", "notes"):
            return to_markdown(material.table(study, name)).rstrip().split("\n\n")[{"rows": 1, "notes": 2}[kind]]
        if kind == "lines":
            return "\n".join(f"- {line}" for line in material.lines(study, name))
        if kind in FACTS:
            return FACTS[kind](material.stored(study), *([name] if name else []))
        if kind == "runs":
            return _runs(material.stored(study))
        if kind == "figure":
            return f"![{caption}]({'../' * (page.count('/') - 1)}{_figure(material, study, name, images)})"
        raise UserError(
            f"{mark[0]}: unknown mark; allowed: table, rows, notes, lines, figure, runs, {', '.join(FACTS)}"
        )

    return MARK.sub(put, template)


def _figure(material: Material, study: str, stem: str, images: Path | None) -> str:
    """The place of a figure in docs, which is copied there."""
    file = f"{study}_{stem}.png"
    if images is not None and material.folder is not None:
        material.sections(study)
        drawn = material.folder / study / f"{stem}.png"
        if not drawn.is_file():
            stems = sorted(path.stem for path in drawn.parent.glob("*.png"))
            raise UserError(f"study {study} drew no {stem}; it drew {', '.join(stems)}")
        images.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(drawn, images / file)
    return f"{IMAGES}/{file}"


def _runs(stored: Stored) -> str:
    """Number of runs and tasks, and the runs that are missing."""
    tasks, tuned_on = (", ".join(sorted(set(runs["task"]))) for runs in (stored.runs, stored.tuning))
    tuned = f", and {len(stored.tuning)} tuning runs" if len(stored.tuning) else ""
    lines = [f"- {len(stored.runs)} runs on {tasks}{tuned}{f' on {tuned_on}' if tuned_on not in ('', tasks) else ''}."]
    assert stored.declared is not None
    missing = stored.declared.open_runs(stored.known)
    of_tuning = missing[missing["part"] == TUNING_PART]
    if len(of_tuning):
        gone, planned = of_tuning["missing"].sum(), of_tuning["planned"].sum()
        arms = ", ".join(dict.fromkeys(of_tuning["arm"]))
        lines.append(f"- Tuning: {gone} of the {planned} runs of {arms} are missing.")
    alike = missing[missing["part"] != TUNING_PART].groupby(["part", "missing", "planned"], sort=False)["arm"].agg(list)
    for (part, gone, planned), arms in alike.items():
        lines.append(f"- Part {part}: {gone} of {planned} runs of each of these arms are missing: {', '.join(arms)}.")
    return "\n".join(lines)


def write_pages(stores: Sequence[str | Path], root: Path = CHECKOUT) -> list[Path]:
    """Writes the pages and their figures.

    Args:
        stores: run stores.
        root: the checkout.

    Returns:
        Paths of the pages.
    """
    with tempfile.TemporaryDirectory() as folder:
        material = Material(stores, Path(folder))
        images = (root / PAGE).parent / IMAGES
        texts = {
            root / page: fill((root / template).read_text(encoding="utf-8"), material, images, page)
            for page, template in TEMPLATES.items()
        }
    for page, text in texts.items():
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
    return list(texts)


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0 written, 2 a mistake in the command."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.docs_pages.study",
        description=f"Writes {', '.join(TEMPLATES)} from stored runs.",
    )
    parser.add_argument("stores", nargs="*", default=[STORE], metavar="STORE", help=f"run stores (default {STORE})")
    try:
        print(*write_pages(parser.parse_intermixed_args(words).stores), sep="\n")
    except UserError as error:
        print(f"study_page: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    as_command(main)
