"""`python -m analysis commons`: one page over contributed stores, in which only comparable runs stand side by side.

Contributions are folders that `python -m experiments submit` wrote; each is checked again, and one with a problem is
left out with its lines. Runs are comparable where data, model, protocol and every setting but the method, its budget,
learning rate and weight decay are equal (`analysis.sections.arms.place_of`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.output.page import page
from analysis.output.section import Section
from analysis.output.writers import write
from analysis.reading.stored import read_stores
from analysis.sections import comparison
from analysis.sections.grid import grid
from analysis.sections.reported import reported
from elalora.errors import UserError
from experiments.runtime.text import clean, counted
from experiments.submit import RECORD, check


def commons(root: Path, out: Path) -> tuple[list[Path], list[str]]:
    """Writes the page and its tables.

    Args:
        root: a folder with a folder for each contribution, or one contribution.
        out: folder for the files.

    Returns:
        The files, and a line for everything that was left out.

    Raises:
        UserError: no contribution, none without a problem, or a folder that cannot be written.
    """
    found = sorted(path.parent for pattern in (RECORD, f"*/{RECORD}") for path in root.glob(pattern))
    if not found:
        raise UserError(f"{root} has no contribution; python -m experiments submit STORE --out {root}/NAME writes one")
    problems = {folder: check(folder) for folder in found}
    lines = [clean(line) for lines in problems.values() for line in lines]
    good = [folder for folder, wrong in problems.items() if not wrong]
    if not good:
        raise UserError(f"no contribution in {root} is without a problem: {lines[0]}")
    stored = read_stores(good)
    facts = [
        f"{counted(len(good), 'contribution')}: {', '.join(folder.name for folder in good)}.",
        f"{counted(len(stored.runs), 'finished run')} and {counted(len(stored.tuning), 'tuning run')}.",
    ]
    sections = [
        Section("Methods by budget", {"commons": grid(stored)}),
        Section("Every arm", {"comparison": comparison.compared(stored)}),
        Section("Reported, not ours", reported()),
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        index = out / "index.html"
        left_out = [*lines, *stored.left_out, *map(str, stored.unfinished)]
        index.write_text(page("elalora: the commons", facts, sections, left_out), encoding="utf-8")
        tables = {name: table for section in sections for name, table in section.tables.items()}
        files = [file for name, table in tables.items() for file in write(table, out, name)]
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); type --out FOLDER") from error
    return [index, *files], left_out


def main(words: Sequence[str]) -> int:
    """Returns the exit code: 0 written, 1 written without a contribution that has a problem, 2 a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m analysis commons", description="One page over contributed stores.")
    where = "a folder with contributions (default: commons)"
    parser.add_argument("root", nargs="?", type=Path, default=Path("commons"), metavar="FOLDER", help=where)
    out = Path("tables/commons")
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="default: tables/commons")
    args = parser.parse_args(words)
    try:
        files, left_out = commons(args.root, args.out)
    except UserError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    for line in left_out:
        print(f"analysis: left out: {line}", file=sys.stderr)
    print(f"Written: {files[0]}, and beside it {len(files) - 1} files")
    return int(bool(left_out))
