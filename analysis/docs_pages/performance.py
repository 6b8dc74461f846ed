"""Tables and figure of docs/performance.md, from the JSON beside it: `python -m analysis.docs_pages.performance`.

A table stands between `<!-- from NAME: PART -->` and `<!-- end -->`, where docs/performance/NAME.json is what
`experiments.bench` wrote; a test makes the page again.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from analysis.output.figure import new_figure, save_figure
from experiments.bench.report import MEMORY_TARGET, TARGETS, ratio_lines, step_lines
from experiments.bench.startup import start_lines
from experiments.bench.timing import Ratio, verdict
from experiments.runtime.places import CHECKOUT

PAGE, MEASURED, FIGURE = CHECKOUT / "docs/performance.md", CHECKOUT / "docs/performance", CHECKOUT / "docs/img/scaling"
MARK = re.compile(r"(<!-- from ([\w.-]+): (\w+) -->\n).*?(<!-- end -->)", re.S)
COLUMNS = {  # of the tables of targets
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
LABELS = {
    "matrices": "adapted matrices",
    "rank": "rank",
    "width": "width of the model",
    "batch": "batch (items of 16 tokens)",
}
STYLES = {"LoRA": ("#0072B2", "o", "-"), "ElaLoRA": ("#D55E00", "s", "--"), "frozen backbone": ("#555555", "^", ":")}


def main() -> None:
    """Writes the page and the figure."""
    argparse.ArgumentParser(prog="python -m analysis.docs_pages.performance", description=main.__doc__).parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    _, vector = draw_scaling(_read("scaling"), FIGURE)
    vector.unlink()  # the page shows the other one
    print(f"Written: {PAGE}")


def filled(page: str) -> str:
    """The page with every marked table made from its file."""
    return MARK.sub(lambda found: found[1] + _part(found[2], found[3]) + "\n" + found[4], page)


def _part(name: str, part: str) -> str:
    if name in COLUMNS:
        return "\n".join(_summary({title: _read(file) for file, title in COLUMNS[name].items()}))
    parts = {
        "ratios": ratio_lines,
        "steps": step_lines,
        "runs": _run_lines,
        "start": start_lines,
        "scores": _score_lines,
        "optimizers": _optimizer_lines,
    }
    return "\n".join(parts[part](_read(name)))


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _summary(measured: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each ratio with a target that was measured, a column for each shape."""
    lines = ["| | target | " + " | ".join(measured) + " |", "| --- | ---: |" + " --- |" * len(measured)]
    known = {row["what"] for found in measured.values() for row in found["ratios"]}
    for one, other, target in TARGETS:
        if target is not None and f"{one} / {other}" in known:
            cells = [_cell(found, f"{one} / {other}", target) for found in measured.values()]
            lines.append(f"| {one} / {other} | ≤ {target:.2f} | " + " | ".join(cells) + " |")
    one, other, target = MEMORY_TARGET
    sizes = [found["bytes"][one]["total"] / found["bytes"][other]["total"] for found in measured.values()]
    cells = [f"{size:.3f} {'met' if size <= target else 'missed'}" for size in sizes]
    return [*lines, f"| {one} / {other}, peak bytes | ≤ {target:.2f} | " + " | ".join(cells) + " |"]


def _cell(found: dict[str, Any], what: str, target: float) -> str:
    row = next(row for row in found["ratios"] if row["what"] == what)
    value = Ratio(row["median"], row["low"], row["high"])
    return f"{value.median:.3f} ({value.low:.3f} to {value.high:.3f}) {verdict(value, target)}"


def _score_lines(found: dict[str, Any]) -> list[str]:
    """Both scores of every seed, and their mean difference."""
    ours, padded, gap = found["scores"]["ours"], found["scores"]["padded"], found["difference of scores"]
    rows = [f"| {seed} | {one:.2f} | {two:.2f} |" for seed, (one, two) in enumerate(zip(ours, padded, strict=True))]
    mean = f"{gap['mean']:+.2f} ({gap['low']:+.2f} to {gap['high']:+.2f})".replace("-", "−")
    return [
        "| seed | our batches | random order |",
        "| ---: | ---: | ---: |",
        *rows,
        "",
        f"Mean difference {mean} points.",
    ]


def _optimizer_lines(found: dict[str, Any]) -> list[str]:
    """The row-wise AdamW beside torch's, a row for each model and rank."""
    rows = [
        f"| {one['shape']} | {one['rank']} | {ours['median']:.3f} | {ours['low']:.3f} to {ours['high']:.3f} |"
        for one in found["optimizers"]
        for ours in [one["rowwise / torch foreach"]]
    ]
    return ["| matrices of | rank | row-wise / torch foreach | 95 % interval |", "| --- | ---: | ---: | --- |", *rows]


def _run_lines(found: dict[str, Any]) -> list[str]:
    rows = [
        f"| {row['runs']:,} | {row['seconds']:.1f} | {1e3 * row['seconds'] / row['runs']:.0f} |"
        for row in found["runs"]
    ]
    return ["| runs | CPU seconds | ms a run |", "| ---: | ---: | ---: |", *rows]


def draw_scaling(found: dict[str, Any], path: Path) -> list[Path]:
    """Two rows of panels, milliseconds and MiB of a step, a panel for each size that was changed."""
    figure = new_figure(11, 5.6)
    axes = figure.subplots(2, len(found["axes"]), sharex="col", squeeze=False)
    for column, (axis, points) in enumerate(found["axes"].items()):
        at = [point["size"][axis] for point in points]
        for name, (colour, marker, line) in STYLES.items():
            style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "label": name}
            axes[0, column].plot(at, [point["milliseconds"][name] for point in points], **style)
            axes[1, column].plot(at, [point["bytes"][name] / 2**20 for point in points], **style)
        axes[1, column].set_xlabel(LABELS[axis])
        for row in (0, 1):
            axes[row, column].set_ylim(0, 1.08 * max(line.get_ydata().max() for line in axes[row, column].lines))
            axes[row, column].grid(alpha=0.3)
    axes[0, 0].set_ylabel("ms a step")
    axes[1, 0].set_ylabel("MiB of a step, counted")
    axes[0, 0].legend(fontsize=8, frameon=False)
    base = ", ".join(f"{key} {value}" for key, value in found["base"].items())
    host = found["machine"]["host"]
    remark = f"else: {base}; random encoder of 6 layers, 16 tokens, one thread of {host['cpu']}. "
    return save_figure(figure, path, "A training step against what makes it larger", "random tokens", remark)


if __name__ == "__main__":
    main()
