"""One section of a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from analysis.output.chart import Chart
from analysis.output.table import Table


@dataclass
class Section:
    """One part of the report.

    Attributes:
        title: its heading.
        tables: by the name of their files.
        figures: paths of .svg files and their captions.
        charts: drawn by the page; their files are pictures of the same for papers.
        lines: sentences above the tables.
        lead: a chart beside these sentences.
        card: the name of a table below that chart.
    """

    title: str
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[Path, str] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    lead: Chart | None = None
    card: str = ""

    def drawn(self) -> dict[Path, str]:
        """Every figure of the section, those of its charts too."""
        charts = [*([self.lead] if self.lead else []), *self.charts]
        return {path: words for chart in charts for path, words in chart.files.items()} | self.figures
