"""Difference against length of training: who is compared, by how much, and the figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import catch, cut_off
from scipy.stats import t

from analysis.reading.runs import load_runs
from analysis.reading.stored import read_stores
from analysis.report import report
from analysis.sections import length_figures
from analysis.sections.lengths import lengths, sections
from experiments.standins.stored_runs import result, write_run

GAPS = {100: (1.0, 2.0, 3.0), 500: (-1.0, 0.5, -0.7)}  # of ElaLoRA to SVD-LoRA by seed


def put(root: Path, method: str, seed: int, score: float, steps: int, rate: float = 0.001, **changes: Any) -> None:
    trainer = {"lr": rate, "max_steps": steps}
    write_run(root, result(method, seed, score, steps=steps, identity__trainer=trainer, **changes))


def at_budget(budget: str) -> dict[str, Any]:
    return {"budget": budget, "identity__budget": budget}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """ElaLoRA and SVD-LoRA at two lengths at r4, at one of them at r2; AdaLoRA at one length."""
    root = tmp_path / "runs"
    for steps, gaps in GAPS.items():
        for seed, gap in enumerate(gaps):
            put(root, "svd_lora", seed, 80.0 + seed, steps, 0.003)
            put(root, "elalora", seed, 80.0 + seed + gap, steps, 0.003 if steps == 100 else 0.001)
    for seed in range(3):
        put(root, "svd_lora", seed, 70.0, 100, **at_budget("r2"))
        put(root, "elalora", seed, 70.5, 100, **at_budget("r2"))
        put(root, "adalora", seed, 79.0, 100)
    return root


def test_an_arm_is_compared_with_the_baseline_of_its_seed_budget_and_length(store: Path) -> None:
    frame = lengths(load_runs(store), "svd_lora")
    assert list(zip(frame["budget"], frame["steps"], strict=True)) == [("r2", 100), ("r4", 100), ("r4", 500)]
    assert set(frame["method"]) == {"elalora"}  # AdaLoRA ran at one length
    for steps, gaps in GAPS.items():
        row = frame[(frame["budget"] == "r4") & (frame["steps"] == steps)].iloc[0]
        half = t.ppf(0.975, 2) * np.std(gaps, ddof=1) / np.sqrt(3)
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(
            (np.mean(gaps), np.mean(gaps) - half, np.mean(gaps) + half)
        )
    assert list(frame["rate"]) == [0.001, 0.003, 0.001] and list(frame["rate_base"]) == [0.001, 0.003, 0.003]


def test_ranks_that_another_run_gave_are_an_arm_and_no_baseline(store: Path) -> None:
    for steps in GAPS:
        method = {"name": "svd_lora", "alpha": 16.0, "ranks_from": "elalora"}
        for seed in range(3):
            put(store, "svd_lora", seed, 81.5 + seed, steps, 0.003, identity__method=method, label="transplant")
    frame = lengths(load_runs(store), "svd_lora")
    given = frame[frame["name"] == "transplant"]
    assert list(given["mean"]) == pytest.approx([1.5, 1.5])
    assert list(frame[frame["method"] == "elalora"]["n"]) == [3, 3, 3]


def test_several_rates_of_an_arm_at_a_length_are_no_difference(store: Path) -> None:
    put(store, "elalora", 0, 85.0, 500, 0.009)
    assert lengths(load_runs(store), "svd_lora").empty
    assert sections(read_stores([store], baseline="svd_lora"), None) == []


def test_runs_of_other_settings_are_not_compared(tmp_path: Path) -> None:
    for steps in (100, 500):
        put(tmp_path, "svd_lora", 0, 80.0, steps)
        put(tmp_path, "elalora", 0, 81.0, steps, identity__data={"train_items": 50})
    assert lengths(load_runs(tmp_path), "svd_lora").empty


def test_two_seeds_have_a_mean_and_no_interval(tmp_path: Path) -> None:
    for steps in (100, 500):
        for seed in range(2):
            put(tmp_path, "svd_lora", seed, 80.0, steps)
            put(tmp_path, "elalora", seed, 81.0 + seed, steps)
    (section,) = sections(read_stores([tmp_path], baseline="svd_lora"), None)
    assert section.tables["lengths"].rows[0][4:10] == ["ElaLoRA (paper)", "100", "2", "81.50", "80.00", "+1.50"]


def test_the_figure_has_a_panel_for_each_budget_and_a_tick_for_each_length(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = catch(monkeypatch, length_figures)
    (section,) = sections(read_stores([store], baseline="svd_lora"), tmp_path)
    (figure,) = made
    assert [axis.get_title() for axis in figure.axes] == ["r2", "r4"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["100", "500"]
    assert cut_off(figure) == []
    (chart,) = section.charts
    (panel,) = [panel for panel in chart.data["panels"] if panel["y"].endswith("r4")]
    (line,) = panel["series"]
    assert line["x"] == [100, 500] and line["seeds"]["seed 1"] == pytest.approx([2.0, 0.5])


def test_the_report_has_the_table_and_the_picture(store: Path, tmp_path: Path) -> None:
    files = {path.name for path in report([store], tmp_path / "out", baseline="svd_lora", quiet=True)}
    assert {"lengths.md", "lengths.csv", "lengths.tex", "lengths_vader_movies-minilm-clean.svg"} <= files
