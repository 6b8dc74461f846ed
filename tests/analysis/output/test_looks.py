"""One rule for the looks of arms: figures for papers and charts of the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from drawn import catch

from analysis.output.looks import FAMILIES, Look, Looks
from analysis.report import report
from analysis.sections import (
    cost_figures,
    increment_figures,
    overall_figures,
    rate_figures,
    training_figures,
)
from experiments.standins.stored_runs import result, write_run

MODULES = (cost_figures, increment_figures, overall_figures, rate_figures, training_figures)
SHOWN = {"sora": "SoRA", "lora": "LoRA", "alora": "ALoRA", "adalora": "AdaLoRA"}
LOSSES = "".join(
    json.dumps({"step": s, "split": "train", "metric": "loss", "value": 0.6 - s / 500}) + "\n" for s in range(9)
)


def write_runs(folder: Path) -> None:
    """Four methods of three families on two tasks, at three learning rates."""
    for task in "ab":
        for number, method in enumerate(SHOWN):
            for seed in range(3):
                for rate in (1e-3, 3e-3, 9e-3):
                    more = {"task": task, "identity__task": {"name": task}, "cost__peak_memory_mib": 100.0 + number}
                    more |= {"identity__trainer": {"lr": rate, "max_steps": 100}, "budget": "r4"}
                    run = write_run(folder, result(method, seed, 80.0 + number + seed / 4 + 100 * rate, **more))
                    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, LOSSES)))


def base(name: str) -> str:
    return " ".join(name.split())


def of_the_page(page: str) -> dict[str, set[str]]:
    """The colours of every arm in the page's charts."""
    found: dict[str, set[str]] = {}

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            if "colour" in value and "name" in value:
                found.setdefault(base(value["name"]), set()).add(Look(value["colour"], "", "circle").ink)
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                gather(one)

    for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S):
        gather(json.loads(text))
    return found


def of_the_figures(made: list[Any]) -> dict[str, set[str]]:
    """The colours of every arm in the legends of the figures."""
    found: dict[str, set[str]] = {}
    for legend in (legend for figure in made for legend in figure.legends):
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            line = handle[0] if isinstance(handle, tuple) else handle
            colour = line.get_color() if hasattr(line, "get_color") else line.lines[0].get_color()
            found.setdefault(base(text.get_text()), set()).add(colour)
    return found


def test_an_arm_has_the_same_colour_in_every_figure_and_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = catch(monkeypatch, *MODULES)
    write_runs(tmp_path / "runs")
    index = report([tmp_path / "runs"], tmp_path / "out", quiet=True)[0]
    page, figures = of_the_page(index.read_text(encoding="utf-8")), of_the_figures(made)
    shared = set(page) & set(figures)
    assert len(shared) >= len(SHOWN)
    assert {name: page[name] for name in shared} == {name: figures[name] for name in shared}
    assert all(len(figures[name]) == 1 for name in shared)
    arms = {name for name in figures if name.startswith(tuple(SHOWN.values()))}
    assert arms <= shared, arms - shared


def test_every_family_has_a_colour_for_paper() -> None:
    inks = {Looks().of("an arm", methods[0]).ink for methods in FAMILIES.values()}
    assert len(inks) == len(FAMILIES) and all(re.fullmatch(r"#[0-9a-f]{6}", ink) for ink in inks)


@pytest.mark.parametrize(("dash", "line"), [("", "-"), ("6 3", (0, (3.0, 1.5)))])
def test_a_dash_of_the_page_is_one_of_matplotlib(dash: str, line: Any) -> None:
    assert Look("var(--fixed-0)", dash, "circle").line == line
