"""docs/img/family.svg, every method by what it does with ranks: `python -m analysis.docs_pages.family`.

A panel has the course of a method's rank sum against the budget, which follows from its declared capabilities; tests
draw the picture again and hold that every method with ranks has a panel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from baselines.registry import method_class
from experiments.runtime.pipes import as_command
from experiments.runtime.places import CHECKOUT

PICTURE = "docs/img/family.svg"
NO_RANKS = ("peft", "full", "head", "bitfit", "class_means")  # PEFT's tuners are many; the others have no ranks
# by row: methods, each with what decides where its ranks are
FAMILY: dict[str, dict[str, str]] = {
    "fixed for the whole run": {
        "lora": "the same everywhere", "svd_lora": "the same, or a pattern", "prilora": "depth",
        "beamlora": "softmax of gates", "dylora": "nested, drawn by step",
    },
    "set once, before training": {
        "gelora": "intrinsic dimension", "gora": "gradient of weights", "eva": "variance of inputs",
    },
    "pruned and grown while training": {
        "elalora": "sensitivity", "flexlora": "spectral entropy", "alora": "ablation on a batch", "l1ra": "L1 gates",
    },
    "only pruned, or only grown": {
        "adalora": "sensitivity", "dora_dynamic": "share of the update", "sora": "L1 gates",
        "increlora": "gradient of the update",
    },
    "added one after another": {
        "rac_lora": "random sketches", "chain_lora": "merged LoRAs", "xgblora": "random layers",
    },
    "one for each part of a sequence": {
        "sd_lora": "magnitudes train on", "o_lora": "orthogonal", "task_lora": "merged when read",
    },
}  # fmt: skip
NAMES = {
    "lora": "LoRA", "svd_lora": "SVD-LoRA", "prilora": "PRILoRA", "beamlora": "BeamLoRA", "dylora": "DyLoRA",
    "gelora": "GeLoRA", "gora": "GoRA", "eva": "EVA", "elalora": "ElaLoRA", "flexlora": "FlexLoRA", "alora": "ALoRA",
    "l1ra": "L1RA", "adalora": "AdaLoRA", "dora_dynamic": "dynamic DoRA", "sora": "SoRA", "increlora": "IncreLoRA",
    "rac_lora": "RAC-LoRA", "chain_lora": "Chain of LoRA", "xgblora": "XGBLoRA",
    "sd_lora": "SD-LoRA", "o_lora": "O-LoRA", "task_lora": "LoRA per task",
}  # fmt: skip
COURSES = {  # points of the rank sum: share of the run, multiple of the budget
    "constant": ((0, 1), (1, 1)),
    "at_most": ((0, 1), (0.35, 1), (0.35, 0.94), (0.7, 0.94), (0.7, 0.9), (1, 0.9)),
    "final": ((0, 1.5), (0.2, 1.5), (0.35, 1.25), (0.5, 1.1), (0.7, 1), (1, 1)),
    "growing": ((0, 0.25), (0.2, 0.25), (0.2, 0.5), (0.4, 0.5), (0.4, 0.75), (0.6, 0.75), (0.6, 1), (1, 1)),
    "soft": ((0, 2), (0.25, 1.6), (0.5, 1.25), (0.75, 1.1), (1, 1.05)),
    "trained": ((0, 1), (0.33, 1), (0.33, 1.45), (0.66, 1.45), (0.66, 1.9), (1, 1.9)),  # the sum of all pieces
    "none": ((0, 1), (1, 1)),
}
WIDTH, HEIGHT, PLOT = 168, 104, 46  # of a panel, and of the curve in it
LEFT, HEAD = 16, 30
START = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">
<title>Every method by what it does with ranks; the curve is its rank sum against the budget (dashed)</title>
<style>
  text {{ font-family: Helvetica, Arial, sans-serif; fill: #1f2937 }}
  .row {{ font-size: 15px; font-weight: bold; fill: #4b5563 }}
  .name {{ font-size: 15px; font-weight: bold }}
  .by {{ font-size: 11.5px; fill: #6b7280 }}
  .panel {{ fill: #ffffff; stroke: #d1d5db }}
  .budget {{ stroke: #9ca3af; stroke-dasharray: 4 3 }}
  .sum {{ fill: none; stroke: #4f46e5; stroke-width: 2.2; stroke-linejoin: round }}
  .move {{ fill: #d55e00 }}
</style>
<rect width="{width}" height="{height}" fill="#f9fafb"/>"""


def draw() -> str:
    """The picture as SVG: a row for each kind, a panel for each method."""
    width = 2 * LEFT + max(map(len, FAMILY.values())) * (WIDTH + 10)
    height = len(FAMILY) * (HEIGHT + HEAD + 12) + 40
    lines = [START.format(width=width, height=height)]
    for row, (title, methods) in enumerate(FAMILY.items()):
        top = row * (HEIGHT + HEAD + 12) + 22
        lines.append(f'<text class="row" x="{LEFT}" y="{top + 4}">{title}</text>')
        for column, (name, by) in enumerate(methods.items()):
            lines += _panel(name, by, LEFT + column * (WIDTH + 10), top + 14)
    foot = "Curve: rank sum over the run; dashed: the budget. Dots: rounds that replace directions. †: reconstructed."
    lines.append(f'<text class="by" x="{LEFT}" y="{height - 12}">{foot}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _panel(name: str, by: str, x: float, y: float) -> Iterator[str]:
    can = method_class(name).capabilities
    floor = y + HEIGHT - 10

    def at(share: float, multiple: float) -> tuple[float, float]:
        return x + 10 + share * (WIDTH - 20), floor - multiple * PLOT / 2

    yield f'<rect class="panel" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
    yield f'<text class="name" x="{x + 10}" y="{y + 20}">{NAMES[name]}{"†" if can.reconstructed else ""}</text>'
    yield f'<text class="by" x="{x + 10}" y="{y + 36}">{by}</text>'
    (left, level), (right, _) = at(0, 1), at(1, 1)
    yield f'<line class="budget" x1="{left:g}" y1="{level:g}" x2="{right:g}" y2="{level:g}"/>'
    way = " L".join(f"{px:g} {py:g}" for px, py in (at(*point) for point in COURSES[can.budget]))
    yield f'<path class="sum" d="M{way}"/>'
    if can.adaptive and can.budget in ("constant", "at_most"):
        yield from (
            f'<circle class="move" cx="{at(share, 1)[0]:g}" cy="{at(share, 1)[1]:g}" r="3"/>'
            for share in (0.2, 0.35, 0.5, 0.65)
        )


def main(words: list[str] | None = None) -> int:
    """Writes the picture."""
    about = "Draws every method by what it does with ranks."
    argparse.ArgumentParser(prog="python -m analysis.docs_pages.family", description=about).parse_args(words)
    (CHECKOUT / PICTURE).write_text(draw(), encoding="utf-8")
    print(f"Written: {PICTURE}")
    return 0


if __name__ == "__main__":
    as_command(main)
