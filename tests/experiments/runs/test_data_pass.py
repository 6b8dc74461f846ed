"""Runs whose method reads training batches before the first step."""

from __future__ import annotations

import json

import pytest
from tiny_runs import quick

from baselines.gelora import GeLoRA
from elalora import UserError
from experiments.runs.plan import make_plan
from experiments.runs.run import RunFailed, run
from experiments.training.trainer import Trainer

TIMED = {"timing.jsonl", "status.json", "manifest.json", "result.json", "config.yaml", ".lock"}


def lines(plan, name):
    return [json.loads(line) for line in (plan.folder.path / name).read_text().splitlines()]


def files(plan):
    return {p.name: p.read_bytes() for p in sorted(plan.folder.path.rglob("*")) if p.is_file() and p.name not in TIMED}


@pytest.fixture(scope="module")
def whole(tiny_model_dir, tmp_path_factory):
    try:
        plan = make_plan(quick(tiny_model_dir, tmp_path_factory.mktemp("whole"), "method=gelora", "method.samples=100"))
        return plan, run(plan)
    except UserError as error:
        pytest.skip(f"no review sentences: {error}")


def test_ranks_and_the_cost_of_finding_them_are_stored(whole):
    plan, result = whole
    start = lines(plan, "ranks.jsonl")[0]
    assert start["step"] == -1 and start["ranks"] == result["ranks"]["initial"] == result["ranks"]["final"]
    assert start["scores"].keys() == start["ranks"].keys() and sum(start["ranks"].values()) == 48
    cost, first = result["cost"], lines(plan, "timing.jsonl")[0]
    assert first == {"step": -1, **{k: v for k, v in cost.items() if k.startswith("data_pass_")}}
    assert cost["data_pass_batches"] == 13 and cost["data_pass_items"] == 104  # of 8 items; 100 sequences were wanted
    assert 0 < cost["data_pass_seconds"] < cost["train_seconds"]
    assert "ranks from 100 sequences" in result["flags"]


def test_a_run_that_resumes_reads_no_data_again_and_ends_the_same(whole, tiny_model_dir, tmp_path, monkeypatch):
    plan, result = whole
    words = ("method=gelora", "method.samples=100", "store.checkpoint_every=7")
    cut = make_plan(quick(tiny_model_dir, tmp_path, *words))
    step, measure, passes = Trainer._step, GeLoRA.measure, []

    def killed(self, number):
        if number == 17:
            raise MemoryError("pretend")
        return step(self, number)

    monkeypatch.setattr(GeLoRA, "measure", lambda self, batches: passes.append(1) or measure(self, batches))
    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(RunFailed, match="pretend"):
        run(cut)
    monkeypatch.setattr(Trainer, "_step", step)
    again = run(cut)
    assert len(passes) == 1 and files(cut) == files(plan)
    assert again["flags"] == result["flags"] and again["cost"]["data_pass_items"] == 104


def test_data_come_from_the_training_split_in_the_order_of_training(whole, tiny_model_dir, tmp_path, monkeypatch):
    read, trained = [], []
    batch = Trainer._batch

    def noted(self, indices):
        (trained if self.__dict__.get("model") is not None else read).append(tuple(indices))
        return batch(self, indices)

    monkeypatch.setattr(Trainer, "_batch", noted)
    run(make_plan(quick(tiny_model_dir, tmp_path, "method=gelora", "method.samples=100", "trainer.max_steps=20")))
    assert read == trained[: len(read)] and len(read) == 13


def test_no_item_is_read_twice(whole, tiny_model_dir, tmp_path):
    result = run(make_plan(quick(tiny_model_dir, tmp_path, "method=gelora", "trainer.max_steps=18")))
    assert result["cost"]["data_pass_items"] == 120 == result["data"]["train_items"]  # 2,000 wanted
    assert "ranks from 120 sequences" in result["flags"]


def test_an_arm_that_takes_its_ranks_from_data_pairs_with_the_others(whole, tiny_model_dir, tmp_path):
    """Same head, subset and order of batches as LoRA, and LoRA's adapter where the ranks are equal."""
    from experiments.runs.prepare import prepare

    given, plain = (
        prepare(make_plan(quick(tiny_model_dir, tmp_path, f"method={name}"))) for name in ("gelora", "lora")
    )
    assert given.splits.train.data.idx.tolist() == plain.splits.train.data.idx.tolist()
    assert given.model.classifier.weight.equal(plain.model.classifier.weight)
    given.method.prepare(iter(()), plain.method.ranks())
    assert given.method.count() == plain.method.count()


def test_a_cost_table_shows_the_pass(whole):
    from analysis.reading.runs import load_runs
    from analysis.sections.comparison import comparison
    from analysis.sections.cost import cost_table

    plan, _ = whole
    runs = load_runs(plan.folder.path.parents[1])
    note = cost_table(comparison(runs)).notes[-1]
    assert "Training time includes what these methods read" in note and "GeLoRA† " in note
