"""Runs of a sequence from the command to result.json, their identity, and what is refused before they start."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
from tiny_runs import config

from elalora import UserError
from experiments.data import load_task
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.standins.folder import standins

QUICK = [
    "task=digits_all", "model=local", "model.head=[classifier]", "trainer.max_steps=20", "trainer.batch_size=16",
    "store.checkpoint_every=0", "trainer.lr=5e-3", "method=lora",
]  # fmt: skip


def plan(*words, store="/tmp/none"):
    return make_plan(config(*QUICK, f"model.path={standins()}/models/vit", f"store.root={store}", *words))


def predictions(folder):
    return parquet.read_table(folder / "predictions.parquet").to_pydict()


@pytest.mark.slow
def test_joint_training_is_the_ordinary_run_and_a_sequence_stores_its_readings(tmp_path):
    """One part is the ordinary run with its readings beside; five parts have a matrix whose last row is the score."""
    plain, one = plan(store=tmp_path), plan("task.increments=1", store=tmp_path)
    assert plain.id != one.id
    first, second = run(plain), run(one)
    assert predictions(plain.folder.path) == predictions(one.folder.path)
    assert first["readings"] == second["readings"] and "increments" not in first
    assert second["increments"]["matrix"] == [[second["readings"]["last"]["report"]["metrics"]["accuracy"]]]

    five = plan("task.increments=5", "seed=1", store=tmp_path)
    result = json.loads((run(five) and five.folder.path / "result.json").read_text())
    parts = result["increments"]
    assert sorted(c for group in parts["groups"] for c in group) == list(range(10)) and parts["kind"] == "classes"
    assert parts["ends"] == [4, 8, 12, 16, 20] and sum(parts["report_items"]) == result["data"]["report_items"]
    assert [[cell is not None for cell in row] for row in parts["matrix"]] == np.tri(5, dtype=bool).tolist()
    rows = predictions(five.folder.path)
    label, guess = np.array(rows["label"]), np.array(rows["prediction"])
    for group, read in zip(parts["groups"], parts["matrix"][-1], strict=True):
        assert read == pytest.approx(100 * float((label == guess)[np.isin(label, group)].mean()))
    assert parts["seen"][-1] == pytest.approx(result["readings"]["last"]["report"]["metrics"]["accuracy"])


def test_increments_that_are_the_same_have_one_id_and_unset_ones_none():
    def spelt(*words):
        return plan(*words).id

    assert spelt("task.increments=5") == spelt("task.increments=[2,2,2,2,2]")
    assert spelt("task.increments=5") == spelt("task.increments=5", "task.increment_loss=current")
    assert spelt("task.increments=10") == spelt("task.increments=10", "task.increment_loss=seen")
    listed = "task.increments=[[0,1],[2,3],[4,5],[6,7],[8,9]]"
    assert spelt("task.increments=5", "task.class_order=label") == spelt(listed) != spelt("task.increments=5")
    assert spelt() == spelt("task.class_order=label") == spelt("task.increment_loss=seen")
    assert spelt("task.increments=5") != spelt("task.increments=5", "task.increment_loss=seen")
    assert "increments" not in plan().identity["task"] and "domains" not in plan().identity["task"]


def test_a_warm_up_in_shares_of_a_part_is_not_one_in_steps():
    """Of 100 steps in 5 parts, 0.1 is 2 steps of each part, and 10 steps are 10."""
    words = ["task.increments=5", "trainer.max_steps=100"]
    assert plan(*words, "trainer.warmup=0.1").id != plan(*words, "trainer.warmup=10").id
    assert (
        plan("trainer.max_steps=100", "trainer.warmup=0.1").id == plan("trainer.max_steps=100", "trainer.warmup=10").id
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["task.increments=5", "trainer.evaluations=2"],
            "trainer.evaluations=2: a sequence of increments is read when",
        ),
        (["task.increments=10", "trainer.max_steps=9"], "trainer.max_steps=9 is below the 10 increments of the task"),
        (
            ["task.increments=3"],
            "task.increments=3 does not divide the 10 classes of task=digits_all; allowed: 1, 2, 5",
        ),
        (
            ["task=vader_tweets", "task.increments=2"],
            "task.increments needs a task with classes; task=vader_tweets has kind regression",
        ),
        (["task.increments=10", "task.increment_loss=current"], "an increment has one class, over which the loss is"),
    ],
)
def test_what_cannot_be_a_sequence_is_refused_before_anything_loads(words, message):
    with pytest.raises(UserError, match=message):
        plan(*words)


def test_the_domains_of_vader_are_its_four_sets_with_rows_that_stay_apart():
    from omegaconf import OmegaConf

    chosen = config("task=vader_domains", "model=minilm")
    data = load_task(OmegaConf.to_object(chosen.task), OmegaConf.to_object(chosen.data))
    single = config("task=vader_tweets_binary", "model=minilm")
    tweets = load_task(OmegaConf.to_object(single.task), OmegaConf.to_object(single.data))
    for name, rows in data.splits.items():
        domain = np.array(rows["domain"][:])
        assert set(domain) == {0, 1, 2, 3} and len(set(rows["idx"][:])) == len(rows)
        own = [rows["text"][i] for i in np.flatnonzero(domain == 3)]
        assert own == tweets.splits[name]["text"][:]
