"""The forest plot of the declared comparisons."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from analysis.sections.forest import draw_forest

FRAME = pd.DataFrame(
    {
        "arm": ["lora", "adalora", "sora"], "baseline": "elalora", "budget": "r4", "mean": [1.0, -0.5, None],
        "low": [0.5, -1.0, None], "high": [1.5, 0.0, None], "low_items": [0.25, None, None],
        "high_items": [1.75, None, None], "mean_rte": [0.75, -0.25, None], "claim": [True, False, False],
        "ink": ["#0072b2", "#00855f", ""],
    }
)  # fmt: skip


def drawn(path: Path, frame: pd.DataFrame, **more: float) -> str:
    files = draw_forest(frame, path / "forest", **more)
    assert [file.suffix for file in files] == [".png", ".svg"]
    return files[1].read_text()


def test_every_comparison_with_a_difference_is_a_line_and_claims_are_filled(tmp_path: Path) -> None:
    text = drawn(tmp_path, FRAME)
    paths = re.findall(r'<path d="[^"]*" clip-path="[^"]*" style="([^"]*)"', text)
    thick = [style for style in paths if "stroke-width: 3.5" in style]
    assert [ink in style for ink, style in zip(("#00855f", "#0072b2"), thick, strict=True)] == [True, True]
    assert sum("#0072b2" in style for style in paths) == 2  # the second is the items' interval, which one of them has
    markers = re.findall(r'<use xlink:href="#\w+" x="[\d.]+" y="[\d.]+" style="([^"]*)"', text)
    assert sum("fill: #0072b2" in style for style in markers) == 1
    assert sum("fill: #ffffff" in style for style in markers) == 1


def test_without_any_difference_nothing_is_drawn(tmp_path: Path) -> None:
    assert draw_forest(FRAME[FRAME["arm"] == "sora"], tmp_path / "forest") == []
    assert draw_forest(FRAME.drop(columns="mean"), tmp_path / "forest") == []
    assert not list(tmp_path.iterdir())


def test_the_margin_of_equivalence_is_a_band(tmp_path: Path) -> None:
    grey = "fill: #ebebeb"
    assert drawn(tmp_path, FRAME).count(grey) == 0 and drawn(tmp_path, FRAME, margin=0.5).count(grey) == 1
