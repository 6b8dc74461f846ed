"""Learning curves, stability and rate curves of made-up stores whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from analysis.reading import curves
from analysis.reading.stored import read_stores
from analysis.report import report
from analysis.sections import rate_curves, training
from experiments.standins.stored_runs import result, write_run
from experiments.store.foreign import read_text

STEADY = [0.68, 0.60, 0.50, 0.40, 0.35, 0.30, 0.28, 0.25, 0.22, 0.20]
WILD = [0.68, 0.95, 1.20, 0.90, 0.60, 0.50, 0.40, 0.35, 0.30, 0.28]


def logged(root: Path, method: str, seed: int, score: float, losses: list[float], scores: tuple = (), **more) -> Path:
    """A finished run with a training loss for every ten steps, and held-out scores at (step, score)."""
    folder = write_run(root, result(method, seed, score, **more))
    lines = [
        {"step": 9 + 10 * i, "split": "train", "metric": "loss", "value": loss} for i, loss in enumerate(losses)
    ] + [{"step": step, "split": "validation", "metric": "accuracy", "value": value} for step, value in scores]
    lines += [{"step": 99, "split": "test", "metric": "accuracy", "value": score}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """LoRA is steady on both seeds, SVD-LoRA trains above guessing on one of them."""
    for seed in (0, 1):
        logged(tmp_path / "runs", "lora", seed, 80 + seed, STEADY, scores=((49, 70.0), (99, 80.0)))
        logged(tmp_path / "runs", "svd_lora", seed, 79 + seed, WILD if seed else STEADY)
    return tmp_path / "runs"


def test_all_sections_together_read_the_losses_of_a_run_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(curves, "read_text", lambda path: opened.append(path) or read_text(path))
    stored = read_stores([store])
    for _ in range(2):
        training.sections(stored, None)
        rate_curves.sections(stored, None)
    assert len(opened) == len(set(opened)) == 4
    logged(store, "lora", 0, 80, WILD)
    assert curves.load_curve(stored.runs.iloc[0]).loss[1] == (19, WILD[1])  # a file that changed is read again


def test_the_table_counts_unstable_runs_and_the_steps_above_guessing(store: Path) -> None:
    (section,) = training.sections(read_stores([store]), None)
    frame = section.tables["training"].frame.set_index("method")
    assert frame["unstable"].to_dict() == {"lora": 0, "svd_lora": 1}
    # 0.95, 1.20 and 0.90 of ten entries, in one of two runs; the guessing loss of these results is 0.693
    assert frame.loc["svd_lora", "above"] == pytest.approx(0.15) and frame.loc["lora", "above"] == 0
    assert frame.loc["svd_lora", "rise"] == pytest.approx(1.20 - 0.68) and frame.loc["lora", "last"] == 0.20
    rows = {row[4]: row for row in section.tables["training"].rows}
    assert rows["SVD-LoRA"][-2] == "1 of 2" and rows["LoRA"][-2] == ""


@pytest.mark.parametrize(("kind", "above"), [("regression", 0.0), ("classification", 0.3)])
def test_only_a_regression_descends_from_far_above_guessing(tmp_path: Path, kind: str, above: float) -> None:
    task = {"name": "stsb", "kind": kind}
    logged(tmp_path, "lora", 0, 80.0, [2.0, 1.5, 0.9, *STEADY[:7]], task="stsb", identity__task=task)
    (section,) = training.sections(read_stores([tmp_path]), None)
    table = section.tables["training"]
    assert table.frame["above"].tolist() == pytest.approx([above])
    assert any("A regression's first descent" in note for note in table.notes) == (kind == "regression")


def test_entries_of_the_warm_up_are_left_out(tmp_path: Path) -> None:
    logged(tmp_path, "svd_lora", 0, 79, WILD, identity__trainer={"lr": 0.003, "max_steps": 100, "warmup": 40.0})
    (section,) = training.sections(read_stores([tmp_path]), None)
    assert section.tables["training"].frame["above"].tolist() == [0.0]


def test_learning_curves_are_drawn_and_held_out_scores_are_not_those_of_the_report(store: Path, tmp_path: Path) -> None:
    files = {path.name for path in report([store], tmp_path / "out", quiet=True)}
    assert {"training.md", "training_vader_movies-minilm-r4-clean.png"} <= files
    lora = read_stores([store]).runs.iloc[0].to_dict()
    assert training.load_curve(lora).scores == [(49, 70.0), (99, 80.0)]


def test_runs_without_logged_losses_have_no_section(tmp_path: Path) -> None:
    write_run(tmp_path, result("lora", 0, 80.0))
    assert training.sections(read_stores([tmp_path]), None) == []


def test_too_many_arms_for_one_figure_are_named(tmp_path: Path) -> None:
    for k in range(13):
        logged(tmp_path / "runs", "lora", 0, 80, STEADY, identity__trainer={"lr": 1e-3 * (k + 1), "max_steps": 100})
    (section,) = training.sections(read_stores([tmp_path / "runs"]), tmp_path)
    assert "13 arms are more than the 12" in section.lines[0] and not section.charts


def curve(
    root: Path, scores: dict[float, tuple[float, ...]], losses: dict[float, list[float]] | None = None,
    method: str = "lora", **settings: object,
) -> None:  # fmt: skip
    for rate, values in scores.items():
        for seed, score in enumerate(values):
            trainer = {"lr": rate, "max_steps": 100, **settings}
            logged(root, method, seed, score, (losses or {}).get(rate, STEADY), identity__trainer=trainer)


@pytest.mark.parametrize(
    ("scores", "wild", "verdict"),
    [
        ({1e-3: (78.0, 79.0), 3e-3: (80.0, 81.0), 9e-3: (60.0, 55.0)}, None, "usable"),
        ({1e-3: (70.0, 71.0), 3e-3: (75.0, 76.0), 9e-3: (80.0, 81.0)}, None, "best at the edge: extend the grid"),
        ({1e-3: (78.0, 79.0), 3e-3: (80.0, 81.0), 9e-3: (60.0, 55.0)}, 3e-3, "best where most runs are unstable"),
    ],
)
def test_a_best_rate_at_an_edge_or_in_the_unstable_region_is_not_usable(
    scores: dict, wild: float | None, verdict: str, tmp_path: Path
) -> None:
    curve(tmp_path, scores, {} if wild is None else {wild: WILD})
    (section,) = rate_curves.sections(read_stores([tmp_path]), None)
    row = section.tables["rates"].frame.iloc[0]
    assert row["verdict"].startswith(verdict) and row["n"] == 2 and row["rates"] == 3
    stable = max(set(scores) - {wild}, key=lambda rate: sum(scores[rate]))
    assert (row["stable"], row["stable_score"]) == (stable, fmean(scores[stable]))


def test_of_two_best_rates_that_are_stable_one_is_named(tmp_path: Path) -> None:
    curve(tmp_path, {1e-3: (78.0, 79.0), 2e-3: (80.1, 80.2), 4e-3: (80.2, 80.1), 9e-3: (60.0, 60.0)})
    (section,) = rate_curves.sections(read_stores([tmp_path]), None)
    row = section.tables["rates"].frame.iloc[0]
    assert row["best"] == row["stable"] and row["score"] == row["stable_score"]


def test_a_rate_that_lacks_a_seed_is_left_out_and_named(tmp_path: Path) -> None:
    curve(tmp_path, {1e-3: (78.0, 79.0), 2e-3: (80.0, 81.0), 4e-3: (79.0, 79.0), 9e-3: (60.0,)})
    (section,) = rate_curves.sections(read_stores([tmp_path]), None)
    table = section.tables["rates"]
    assert table.frame["highest"].tolist() == [4e-3] and any(
        "LoRA lacks seeds at 0.009" in note for note in table.notes
    )


def test_arms_at_one_or_two_rates_have_no_curve(store: Path) -> None:
    assert rate_curves.sections(read_stores([store]), None) == []


def test_a_curve_is_drawn_for_every_cell(tmp_path: Path) -> None:
    curve(tmp_path / "runs", {1e-3: (78.0, 79.0), 3e-3: (80.0, 81.0), 9e-3: (60.0, 55.0)})
    (section,) = rate_curves.sections(read_stores([tmp_path / "runs"]), tmp_path)
    (chart,) = section.charts
    (figure,) = chart.files
    assert figure.exists() and figure.name == "rates_vader_movies-minilm-r4-clean.svg"


def test_two_warm_ups_have_a_panel_each_in_which_a_method_looks_alike(tmp_path: Path) -> None:
    scores = {1e-3: (78.0, 79.0), 3e-3: (80.0, 81.0), 9e-3: (60.0, 55.0)}
    for method in ("lora", "svd_lora"):
        for warmup in (0.06, 0.3):
            curve(tmp_path / "runs", scores, method=method, warmup=warmup)
    (section,) = rate_curves.sections(read_stores([tmp_path / "runs"]), tmp_path)
    panels = section.charts[0].data["panels"]
    assert [panel["y"].partition(", ")[2] for panel in panels] == ["trainer.warmup=0.06", "trainer.warmup=0.3"]
    assert [[one["name"] for one in panel["series"]] for panel in panels] == [["LoRA", "SVD-LoRA"]] * 2
    first, second = ([(one["colour"], one["dash"]) for one in panel["series"]] for panel in panels)
    assert first == second and len(set(first)) == 2


def test_a_setting_of_a_single_arm_has_no_panel(tmp_path: Path) -> None:
    scores = {1e-3: (78.0, 79.0), 3e-3: (80.0, 81.0), 9e-3: (60.0, 55.0)}
    curve(tmp_path / "runs", scores, warmup=0.06)
    curve(tmp_path / "runs", scores, warmup=0.3)
    (section,) = rate_curves.sections(read_stores([tmp_path / "runs"]), None)
    (panel,) = section.charts[0].data["panels"]
    assert [one["name"] for one in panel["series"]] == ["LoRA [trainer.warmup=0.06]", "LoRA [trainer.warmup=0.3]"]
