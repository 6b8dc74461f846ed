"""Heat maps of final ranks and the course of ranks over the rounds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.reading.runs import load_runs
from analysis.sections.rank_maps import courses_of, draw_rank_maps, draw_trajectories, rank_map, trajectory
from experiments.standins.stored_runs import VADER, modules, moved_run, three_seeds


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return three_seeds(tmp_path / "runs")


def test_the_rank_map_is_the_mean_over_seeds_in_reading_order(store: Path) -> None:
    runs = load_runs(store)
    ela = rank_map(runs[runs["method"] == "elalora"])
    assert list(ela.columns) == ["query", "value", "ffn in", "ffn out"] and list(ela.index) == [0, 1, 2]
    assert ela.loc[0, "ffn in"] == 2.0  # every seed lost two there
    # seeds 0, 1, 2 gained at the positions 5 and 8, 6 and 9, 7 and 10 of 4 types x 3 layers, once each
    assert ela.loc[1, "value"] == pytest.approx(4 + 1 / 3)
    assert ela.to_numpy().sum() == pytest.approx(48)


def test_matrices_that_share_a_place_keep_apart(store: Path) -> None:
    places = {"text.layers.0.fc": (0, "fc"), "image.layers.0.fc": (0, "fc"), "a": (0, "x"), "b": (0, "x")}
    runs = pd.DataFrame([{"ranks_final": dict(zip(places, (1, 2, 3, 4), strict=True)), "places": places}])
    assert rank_map(runs).loc[0].to_dict() == {"a": 3, "b": 4, "image.layers.*.fc": 2, "text.layers.*.fc": 1}


def test_the_trajectory_holds_start_every_round_and_end(store: Path) -> None:
    runs = load_runs(store)
    course = trajectory(runs[runs["method"] == "elalora"].iloc[0].to_dict())
    assert list(course.index) == [0, 20, 40, 100]
    assert course[("ffn in", 0)].tolist() == [4, 3, 2, 2]
    assert (course.sum(axis=1) == 4 * len(modules())).all()


def test_only_arms_that_moved_have_courses_and_many_seeds_are_averaged(store: Path) -> None:
    runs = load_runs(store)
    assert courses_of(runs[runs["method"] == "lora"]) == {}
    assert list(courses_of(runs[runs["method"] == "elalora"])) == ["seed 0", "seed 1", "seed 2"]
    moved_run(store, 3, 80.0)
    runs = load_runs(store)
    (name, course), *rest = courses_of(runs[runs["method"] == "elalora"]).items()
    assert name == "mean of 4 seeds" and not rest
    assert course[("ffn in", 0)].tolist() == [4, 3, 2, 2]


def test_nothing_of_a_figure_is_cut_off(store: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    runs = load_runs(store)
    ela = runs[runs["method"] == "elalora"]
    maps = {f"ElaLoRA (paper) [trainer.lr=0.00{i}, data.train_items=1600]": rank_map(ela) for i in range(4)}
    title = "A title that is as long as the names of a study, its model, its budget and its protocol make it " * 2
    draw_rank_maps(dict(list(maps.items())[:1]), 4.0, tmp_path / "one", title, VADER)
    draw_rank_maps(maps, 4.0, tmp_path / "many", title, VADER)
    draw_trajectories(courses_of(ela[:1]), tmp_path / "course", title, VADER)
    for name in ("one", "many", "course"):
        pixels = imread(tmp_path / f"{name}.png")[..., :3]  # (height, width, 3)
        assert pixels[5:-5, 5:-5].min() < 0.1
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            assert edge.min() == 1.0, f"ink at the edge of {name}"
