"""Fills the tables of docs/performance.md from measurements: `python -m analysis.docs_pages.performance`.

A table stands between `<!-- from NAME: PART -->` and `<!-- end -->`, where docs/performance/NAME.json is a file that
`experiments.bench` wrote. A test checks that the page agrees with the files.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from experiments.bench.report import MEMORY_TARGET, TARGETS, ratio_lines, step_lines
from experiments.bench.startup import start_lines
from experiments.bench.timing import Ratio, verdict
from experiments.runtime.places import CHECKOUT

PAGE, MEASURED = CHECKOUT / "docs/performance.md", CHECKOUT / "docs/performance"
MARK = re.compile(r"(<!-- from ([\w.-]+): (\w+) -->\n).*?(<!-- end -->)", re.S)
COLUMNS = {  # of the summary tables: title by file
    "shapes": {
        "minilm_16": "MiniLM 32 x 16 tokens", "minilm_32": "16 x 32", "minilm_64": "16 x 64", "minilm_128": "16 x 128",
        "deberta": "DeBERTa-v3-base 2 x 32", "bart": "BART-base 2 x 32", "vit": "ViT-B/16, one image",
    },
    "batches": {
        "deberta_batch": "DeBERTa-v3-base 8 x 128", "bart_batch": "BART-base 8 x 128",
        "vit_batch": "ViT-B/16, 8 images",
    },
}  # fmt: skip
PARTS = {"ratios": ratio_lines, "steps": step_lines, "start": start_lines}


def main() -> None:
    """Writes docs/performance.md."""
    argparse.ArgumentParser(prog="python -m analysis.docs_pages.performance", description=main.__doc__).parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Written: {PAGE}")


def filled(page: str) -> str:
    """The page with every marked table made from its file."""

    def table(match: re.Match[str]) -> str:
        start, name, part, end = match.groups()
        lines = _summary(COLUMNS[name]) if name in COLUMNS else PARTS[part](_read(name))
        return start + "\n".join(lines) + "\n" + end

    return MARK.sub(table, page)


def _read(name: str) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    return measured


def _summary(columns: dict[str, str]) -> list[str]:
    """A row per ratio that has a target, a column per shape."""
    lines = ["| | target | " + " | ".join(columns.values()) + " |", "| --- | ---: |" + " --- |" * len(columns)]
    shapes = [_read(file) for file in columns]
    ratios = [{r["what"]: Ratio(r["median"], r["low"], r["high"]) for r in shape["ratios"]} for shape in shapes]
    for one, other, target in TARGETS:
        what = f"{one} / {other}"
        if target is not None and any(what in of_shape for of_shape in ratios):
            values = [of_shape[what] for of_shape in ratios]
            cells = [f"{v.median:.3f} ({v.low:.3f} to {v.high:.3f}) {verdict(v, target)}" for v in values]
            lines.append(f"| {what} | ≤ {target:.2f} | " + " | ".join(cells) + " |")
    one, other, target = MEMORY_TARGET
    sizes = [shape["bytes"][one]["total"] / shape["bytes"][other]["total"] for shape in shapes]
    cells = [f"{size:.3f} {'met' if size <= target else 'missed'}" for size in sizes]
    return [*lines, f"| {one} / {other}, peak bytes | ≤ {target:.2f} | " + " | ".join(cells) + " |"]


if __name__ == "__main__":
    main()
