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
        "minilm_16": "MiniLM 32 x 16 tokens",
        "minilm_32": "16 x 32",
        "minilm_64": "16 x 64",
        "minilm_128": "16 x 128",
        "deberta": "DeBERTa-v3-base 2 x 32",
        "bart": "BART-base 2 x 32",
        "vit": "ViT-B/16, one image",
    },
    "batches": {
        "deberta_batch": "DeBERTa-v3-base 8 x 128",
        "bart_batch": "BART-base 8 x 128",
        "vit_batch": "ViT-B/16, 8 images",
    },
}
PARTS = {"ratios": ratio_lines, "steps": step_lines, "start": start_lines}


def main() -> None:
    """Writes docs/performance.md."""
    argparse.ArgumentParser(prog="python -m analysis.docs_pages.performance", description=main.__doc__).parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"Written: {PAGE}")


def filled(page: str) -> str:
    """The page with every marked table made from its file."""
    return MARK.sub(lambda match: match[1] + "\n".join(_table(match[2], match[3])) + "\n" + match[4], page)


def _table(name: str, part: str) -> list[str]:
    if name in COLUMNS:
        return _summary({title: _read(file) for file, title in COLUMNS[name].items()})
    return PARTS[part](_read(name))


def _read(name: str) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    return measured


def _summary(measured: dict[str, dict[str, Any]]) -> list[str]:
    """A row per ratio that has a target, a column per shape."""
    lines = ["| | target | " + " | ".join(measured) + " |", "| --- | ---: |" + " --- |" * len(measured)]
    names = {row["what"] for shape in measured.values() for row in shape["ratios"]}
    for one, other, target in TARGETS:
        if target is not None and f"{one} / {other}" in names:
            cells = [_cell(shape, f"{one} / {other}", target) for shape in measured.values()]
            lines.append(f"| {one} / {other} | ≤ {target:.2f} | " + " | ".join(cells) + " |")
    one, other, target = MEMORY_TARGET
    sizes = [shape["bytes"][one]["total"] / shape["bytes"][other]["total"] for shape in measured.values()]
    cells = [f"{size:.3f} {'met' if size <= target else 'missed'}" for size in sizes]
    return [*lines, f"| {one} / {other}, peak bytes | ≤ {target:.2f} | " + " | ".join(cells) + " |"]


def _cell(shape: dict[str, Any], what: str, target: float) -> str:
    row = next(row for row in shape["ratios"] if row["what"] == what)
    value = Ratio(row["median"], row["low"], row["high"])
    return f"{value.median:.3f} ({value.low:.3f} to {value.high:.3f}) {verdict(value, target)}"


if __name__ == "__main__":
    main()
