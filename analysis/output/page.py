"""The report as one page that needs no network, no server and no build.

A run store may come from a stranger: the template escapes every text, figures are embedded as images (in which no
script can run), data stand in elements that no browser runs, and the page's own policy lets a browser run only the
scripts whose digests it names, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.output.section import Section
from analysis.output.table import Table
from analysis.output.writers import LEADERS, LEFT

HERE = Path(__file__).parent
MARKS = "‡†§"  # in a cell and at the start of the notes that explain it
MOST_PLACES = 6  # named in front of one note
HEADLINE = 220  # characters at most of the part of a sentence that is set in bold
SETTING = " Setting: "  # where the details of a sentence begin, which the page folds
LIBRARY = ("vendor/d3.min.js", "vendor/plot.umd.min.js")  # as published (NOTICE)
CHOICES = ("Method", "Task", "Budget", "Protocol", "Model")  # columns that get a filter


def page(title: str, facts: Sequence[str], sections: Sequence[Section], warnings: Sequence[str] = ()) -> str:
    """The whole page as text.

    Args:
        title: its heading.
        facts: lines below it.
        sections: in their order; empty ones are left out.
        warnings: what was left out or did not finish.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "flat": lambda text: " ".join(text.split()),
        "breakable": lambda text: escape(text).replace("_", Markup("_<wbr>")),
        "marks": _marks,
        "gathered": gathered,
        "split_at": _split_at,
        "verdict": _verdict,
        "base64": lambda path: _base64(path.read_bytes()),
    }
    sections = [s for s in sections if s.tables or s.figures or s.lines or s.charts]
    charted = any(section.charts or section.lead for section in sections)
    names = [*(LIBRARY if charted else ()), "page.js", *(["charts.js"] if charted else ())]
    style, *scripts = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", *names))
    digests = " ".join(f"'sha256-{_base64(hashlib.sha256(script.encode()).digest())}'" for script in scripts)
    return environment.get_template("page.html").render(
        title=title, facts=facts, sections=sections, warnings=warnings, choices=_choices(sections), left=LEFT,
        leaders=LEADERS, style=style, scripts=scripts,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {digests}; "
        "base-uri 'none'; form-action 'none'",
    )  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """A sign in the cells of a table, and the notes that a click on it shows."""

    number: int
    notes: list[str]


def _marks(table: Table) -> dict[str, Mark]:
    """The signs that notes of this table explain."""
    of = {sign: [note for note in table.notes if note.startswith(sign)] for sign in MARKS}
    return {sign: Mark(number, notes) for number, (sign, notes) in enumerate(of.items()) if notes}


def gathered(notes: Sequence[str]) -> list[str]:
    """The notes, with one for all places of which the same is true: "cola, r2; rte, r2: one seed is missing"."""
    places: dict[str, list[str]] = {}
    for note in notes:
        place, colon, text = note.partition(": ")
        places.setdefault(text if colon else note, []).append(place if colon else "")
    lines = []
    for text, at in places.items():
        more = f" and {len(at) - MOST_PLACES} more" if len(at) > MOST_PLACES else ""
        where = "; ".join(dict.fromkeys(at[:MOST_PLACES])) + more
        lines.append(f"{where}: {text}" if where else text)
    return lines


def _split_at(text: str, marks: Collection[str]) -> list[str]:
    """The text in pieces, every mark a piece of its own."""
    return [part for part in re.split(f"([{''.join(marks)}])", text) if part] if marks else [text]


def _verdict(line: str) -> tuple[str, str, str]:
    """What a sentence says, up to its first colon ("" where it has no such part), its figures, and its details."""
    line, setting, details = line.partition(SETTING)
    details = f"{setting.strip()} {details}" if setting else ""
    head, colon, rest = line.partition(": ")
    return (head + colon.strip(), rest, details) if colon and len(head) <= HEADLINE else ("", line, details)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _choices(sections: Sequence[Section]) -> dict[str, list[str]]:
    """The distinct values of every column that gets a filter."""
    values: dict[str, set[str]] = {}
    for table in (table for section in sections for table in section.tables.values()):
        for name in CHOICES:
            if name in table.columns:
                at = table.columns.index(name)
                values.setdefault(name, set()).update(row[at] for row in table.rows if row[at])
    return {name: sorted(distinct) for name, distinct in values.items()}
