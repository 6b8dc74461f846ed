"""The report as one page that needs no network, no server and no build.

What is unusual: a run store may come from a stranger, so every text is escaped, figures are embedded as images (in
which no script can run), and the page's own policy lets a browser run nothing but the one script that is known by its
digest and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from analysis.output.section import Section
from analysis.output.table import Table
from analysis.output.writers import LEFT

HERE = Path(__file__).parent
CHOICES = ("Method", "Task", "Budget", "Protocol", "Model")


def page(title: str, facts: Sequence[str], sections: Sequence[Section], warnings: Sequence[str] = ()) -> str:
    """The whole page as text.

    Args:
        title: its heading.
        facts: lines below it.
        sections: in their order; empty ones are left out.
        warnings: what was left out or did not finish.
    """
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    kept = [s for s in sections if s.tables or s.figures or s.lines]
    links = "".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(kept))
    warned = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>",
        f"<h1>{escape(title)}</h1>",
        "".join(f"<p>{escape(fact)}</p>" for fact in facts),
        f'<details class="warn" open><summary>Left out or without a result</summary><ul>{warned}</ul></details>'
        if warned
        else "",
        f'<div class="bar"><nav>{links}</nav><label>Rows with <input id="search" type="search" size="24"></label>',
        _choices(kept),
        '<button id="clear" type="button">show all</button></div>',
        *[_section(i, section) for i, section in enumerate(kept)],
        f"<script>{script}</script>\n</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _choices(sections: Sequence[Section]) -> str:
    found: dict[str, dict[str, None]] = {}
    for section in sections:
        for table in section.tables.values():
            for name in CHOICES:
                if name in table.columns:
                    at = table.columns.index(name)
                    found.setdefault(name, {}).update(dict.fromkeys(row[at] for row in table.rows if row[at]))
    parts = []
    for name, values in found.items():
        options = "".join(f'<option value="{escape(" ".join(v.split()))}">{escape(v)}</option>' for v in sorted(values))
        parts.append(
            f'<label>{escape(name)} <select data-column="{escape(name)}"><option value="">all</option>{options}'
            "</select></label>"
        )
    return "".join(parts)


def _section(number: int, section: Section) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in section.lines)
    tables = "".join(_table(f"t{number}-{i}", name, t) for i, (name, t) in enumerate(section.tables.items()))
    figures = "".join(_figure(path, caption) for path, caption in section.figures.items())
    return f'<section id="s{number}"><h2>{escape(section.title)}</h2>{lines}{tables}{figures}</section>'


def _table(identity: str, name: str, table: Table) -> str:
    left = [' class="left"' if column in LEFT else "" for column in table.columns]
    heads = "".join(
        f'<th scope="col"{side}><button type="button">{escape(column)}</button></th>'
        for column, side in zip(table.columns, left, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td{side}>{escape(' '.join(cell.split()))}</td>" for cell, side in zip(row, left, strict=True))
        + "</tr>"
        for row in table.rows
    )
    files = " · ".join(f'<a href="{escape(name)}.{kind}">{word}</a>' for kind, word in FILES.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<h3>{escape(table.caption)}</h3><div class="scroll"><table id="{identity}"><thead><tr>{heads}</tr></thead>'
        f'<tbody>\n{rows}\n</tbody></table></div><p class="files"><span class="count" data-count="{identity}"></span> '
        f"· {files}</p>" + (f"<details open><summary>Notes</summary><ul>{notes}</ul></details>" if notes else "")
    )


FILES = {"md": "Markdown", "csv": "CSV", "tex": "LaTeX"}


def _figure(path: Path, caption: str) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    buttons = "".join(
        f'<button type="button" data-zoom="{what}" aria-label="{label}">{sign}</button>'
        for what, label, sign in (("in", "zoom in", "+"), ("out", "zoom out", "−"), ("reset", "whole figure", "1:1"))
    )
    files = " · ".join(f'<a href="{escape(path.stem)}.{kind}">{kind.upper()}</a>' for kind in ("svg", "png"))
    return (
        f'<figure><figcaption>{escape(caption)} <span class="zoom">{buttons}</span> <span class="files">{files}</span>'
        f'</figcaption><div class="view"><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{image}">'
        "</div></figure>"
    )
