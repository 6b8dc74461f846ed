"""One section of a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from analysis.output.table import Table


@dataclass
class Section:
    """One part of the report.

    Attributes:
        title: its heading.
        tables: by the name of their files.
        figures: paths of .svg files and their captions.
        lines: sentences above the tables.
        lead: a figure beside these sentences, as path and caption.
    """

    title: str
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[Path, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    lead: tuple[Path, str] | None = None

    def drawn(self) -> dict[Path, str]:
        """Every figure of the section."""
        return dict([self.lead] if self.lead else []) | self.figures
