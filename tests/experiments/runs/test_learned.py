"""A run whose training loss stays at that of a constant answer says so: in its result, on the terminal, in tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy
from tiny_runs import config

from analysis.reading.runs import load_runs
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.store.finished import DID_NOT_LEARN
from experiments.training.metrics import guessing_loss


def test_the_loss_of_a_constant_answer_is_the_labels_entropy_or_variance() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert guessing_loss(labels) == pytest.approx(entropy([3, 1, 2]))
    assert guessing_loss(np.array([1.0, 2.0, 4.0], dtype=np.float32)) == pytest.approx(np.var([1.0, 2.0, 4.0]))


@pytest.mark.parametrize(("rate", "learned"), [("1e-8", False), ("1e-2", True)])
def test_a_run_that_did_not_learn_is_flagged(
    rate: str, learned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "task=digits",
        "model=vit_digits",
        "data.train_items=null",
        "method=lora",
        "trainer.max_steps=60",
        "trainer.log_every=10",
    ]
    result = run(make_plan(config(*words, f"trainer.lr={rate}", f"store.root={tmp_path}")))
    assert (DID_NOT_LEARN in result["flags"]) is not learned
    assert result["data"]["guessing_loss"] == pytest.approx(np.log(5), rel=0.03)  # five digits, about as many of each
    assert (f"did not learn: its training loss ended at that of a constant answer. Change trainer.lr={rate[0]}"
            in capsys.readouterr().err) is not learned  # fmt: skip
    assert (DID_NOT_LEARN in load_runs(tmp_path)["flags"].iloc[0]) is not learned
