"""A run whose training loss stays at that of a constant answer says so: in its result, on the terminal, in tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy
from tiny_runs import quick

from analysis.reading.runs import load_runs
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.store.finished import DID_NOT_LEARN
from experiments.training.metrics import guessing_loss
from experiments.training.stability import UNSTABLE


def test_the_loss_of_a_constant_answer_is_the_labels_entropy_or_variance() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert guessing_loss(labels) == pytest.approx(entropy([3, 1, 2]))
    assert guessing_loss(np.array([1.0, 2.0, 4.0], dtype=np.float32)) == pytest.approx(np.var([1.0, 2.0, 4.0]))


def words_of(tmp_path: Path) -> list[str]:
    """A task that a model learns in a few steps, and a method that trains all of it."""
    for split in ("train", "validation", "test"):
        rows = [f"{'a good film' if i % 2 else 'a bad one'},{i % 2}" for i in range(60)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    files = ",".join(f"{split}:'{tmp_path}/{split}.csv'" for split in ("train", "validation", "test"))
    return [
        "task=own",
        f"task.files={{{files}}}",
        "task.text=[text]",
        "data.train_items=null",
        "method=full",
        "trainer.max_steps=80",
    ]


@pytest.mark.parametrize(("rate", "learned"), [("1e-8", False), ("1e-2", True)])
def test_a_run_that_did_not_learn_is_flagged(
    rate: str, learned: bool, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words_of(tmp_path), f"trainer.lr={rate}"]
    result = run(make_plan(quick(tiny_model_dir, tmp_path / "runs", *words)))
    assert (DID_NOT_LEARN in result["flags"]) is not learned and UNSTABLE not in result["flags"]
    assert result["data"]["guessing_loss"] == pytest.approx(np.log(2))
    said = f"loss ended at that of a constant answer. Train longer, or change trainer.lr={rate[0]}"
    assert (said in capsys.readouterr().err) is not learned
    assert (DID_NOT_LEARN in load_runs(tmp_path / "runs")["flags"].iloc[0]) is not learned


def test_the_first_descent_of_a_regression_is_not_instability(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = list(zip(range(9, 80, 10), [1.0, 0.8, 0.7, 0.5, 0.1, 0.1, 0.1, 0.1], strict=True))  # of guessing: 0.25
    monkeypatch.setattr("experiments.runs.result.logged_losses", lambda lines: losses)
    words = [*words_of(tmp_path), "task.kind=regression", "task.num_labels=1", "task.metrics=[pearson,spearman]"]
    result = run(make_plan(quick(tiny_model_dir, tmp_path / "runs", *words, "trainer.lr=1e-3")))
    assert result["data"]["guessing_loss"] == pytest.approx(0.25) and UNSTABLE not in result["flags"]


def test_a_run_that_trained_above_guessing_and_still_learned_is_flagged_as_unstable(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = list(zip(range(9, 80, 10), [0.7, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1], strict=True))
    monkeypatch.setattr("experiments.runs.result.logged_losses", lambda lines: losses)
    result = run(make_plan(quick(tiny_model_dir, tmp_path / "runs", *words_of(tmp_path), "trainer.lr=1e-2")))
    assert UNSTABLE in result["flags"] and DID_NOT_LEARN not in result["flags"]
    assert "was unstable" in (said := capsys.readouterr().err) and "Lower trainer.lr=0.01" in said
