"""Writes a table as Markdown, CSV, LaTeX and to the terminal; every cell is escaped for the place it goes to."""

from __future__ import annotations

import re
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.output.table import Table
from experiments.runtime.display import as_terminal

if TYPE_CHECKING:
    from rich.console import Console

FORMULA = re.compile(r"(?![-+][\d.e+ -]*\Z)\s*[-=+@\uff1d\uff0b\uff0d\uff20]")  # but not numbers

LEFT = (
    "Task", "Protocol", "Model", "Recipe", "Budget", "Metric", "Method", "Flags", "Arm", "Source", "Difference",
    "Change", "State", "Run", "Command", "Place",
)  # fmt: skip
LEADERS = "Bold: the highest mean of its place; underlined: the second. Neither is a test."
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": r"$-$", "→": r"$\to$", "Δ": r"$\Delta$",
    "§": r"\S{}", "†": r"$\dagger$", "‡": r"$\ddagger$", "–": "--",
    "[": "{[}", "*": "{*}",  # either would be an argument of the line end before it
}  # fmt: skip


def to_markdown(table: Table) -> str:
    """A pipe table between its caption and its notes."""
    rule = ["---" if name in LEFT else "---:" for name in table.columns]
    lines = [table.columns, rule, *table.rows]
    body = "\n".join("| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines)
    notes = "\n".join(f"- {_markdown(note)}" for note in table.notes)
    return f"{_markdown(table.caption)}\n\n{body}\n\n{notes}\n"


def _markdown(text: str) -> str:
    flat = " ".join(text.split())
    for mark in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        flat = flat.replace(mark, "\\" + mark)
    return flat


def to_latex(table: Table) -> str:
    r"""A `table` float in booktabs style, for \input into a paper that loads booktabs and graphicx."""
    form = "".join("l" if name in LEFT else "r" for name in table.columns)

    def line(cells: list[str]) -> str:
        return " & ".join(cells) + r" \\"

    rows = "".join(
        line([_value(cell, table.leaders.get((i, j), 0)) for j, cell in enumerate(row)]) + "\n"
        for i, row in enumerate(table.rows)
    )
    notes = "\n".join(latex(note) + r"\par" for note in [*table.notes, *([LEADERS] if table.leaders else [])])
    return rf"""% needs \usepackage{{booktabs,graphicx}}
\begin{{table}}[t]
\centering
\caption{{{latex(table.caption)}}}
\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{%
\begin{{tabular}}{{{form}}}
\toprule
{line([latex(column) for column in table.columns])}
\midrule
{rows}\bottomrule
\end{{tabular}}}}
\par\smallskip\raggedright\footnotesize {notes}
\end{{table}}
"""


def _value(cell: str, leader: int) -> str:
    """A cell in the papers' layout: the standard deviation as an index, the best mean bold, the second underlined."""
    mean = re.fullmatch(r"([+−\d.,]+)( ± ([\d.]+))?(.*)", cell, re.DOTALL)
    if mean is None or not (leader or mean[2]):
        return latex(cell)
    number, spread = latex(mean[1]), rf"$_{{\pm {mean[3]}}}$" if mean[2] else ""
    styles = {1: rf"\textbf{{{number}}}", 2: rf"\underline{{{number}}}"}
    rest = latex(mean[4])
    return styles.get(leader, number) + spread + (" " if mean[4].startswith(" ") else "") + rest


def latex(text: str) -> str:
    """Plain text as LaTeX that any engine compiles; characters it could not set become a question mark."""

    def plain(c: str) -> str:
        known = c.isascii() or "À" <= c <= "ÿ"
        return c if known else unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or "?"

    return "".join(LATEX.get(c) or plain(c) for c in " ".join(text.split()))


def to_csv(table: Table) -> str:
    """All numbers of the table, not rounded, with the source of the data in every row.

    A spreadsheet would compute a text that begins like a formula; an apostrophe before it shows it as text.
    """
    return table.frame.map(_inert).rename(columns=_inert).to_csv(index=False)


def _inert(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and FORMULA.match(value) else value


def print_table(table: Table, console: Console | None = None) -> None:
    """Shows the table in the terminal, with its notes below."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Rich
    from rich.text import Text

    console = console or Console(force_terminal=as_terminal(sys.stdout), force_jupyter=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    shown = Rich(box=box.SIMPLE_HEAD, title=Text(table.caption), title_justify="left", pad_edge=False)
    for name in table.columns:
        shown.add_column(Text(name), justify="left" if name in LEFT else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    console.print(shown)
    for note in table.notes:
        console.print(Text(note), style="dim", soft_wrap=False)


def write(table: Table, folder: Path, name: str) -> list[Path]:
    """Writes NAME.md, NAME.csv and NAME.tex."""
    paths = []
    for suffix, text in (("md", to_markdown(table)), ("csv", to_csv(table)), ("tex", to_latex(table))):
        paths.append(folder / f"{name}.{suffix}")
        paths[-1].write_text(text, encoding="utf-8")
    return paths
