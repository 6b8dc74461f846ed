"""The plain script that a run is timed against has the same items and matrices; nothing looks at seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from elalora.errors import UserError
from experiments.bench import plain_script
from experiments.bench.whole import ARMS, COMMON, main, measure, specification
from experiments.config.compose import compose_run
from experiments.runs.plan import make_plan
from experiments.runs.prepare import prepare
from experiments.standins.folder import standins

SMALL = [*COMMON, "data.train_items=24", "data.eval_items=16", "threads=1", "model=local"]
KINDS = {
    "bert": ["task=vader_movies", "task.max_length=16"],
    "llama": ["task=vader_movies_prompt", "task.max_length=400"],
}  # fmt: skip


def planned(kind, folder):
    words = [*SMALL, *KINDS[kind], f"model.path={standins()}/models/{kind}", f"store.root={folder}/runs"]
    return make_plan(compose_run(words))


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_reads_the_items_and_adapts_the_matrices_of_the_run(kind, tmp_path):
    from transformers import AutoTokenizer

    plan = planned(kind, tmp_path)
    prepared, spec = prepare(plan), specification(plan, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    encode = plain_script.prompts if spec["causal"] else plain_script.sentences
    lines = [json.loads(line) for line in Path(spec["files"]["train"]).read_text(encoding="utf-8").splitlines()]
    encoded = encode(tokenizer, spec, {name: [line[name] for line in lines] for name in lines[0]})
    items = prepared.splits.train.data
    batch = items.batch(range(len(items)))
    lengths = batch["attention_mask"].sum(1).tolist()

    def rows(name):
        return [row[:length].tolist() for row, length in zip(batch[name], lengths, strict=True)]

    assert rows("input_ids") == encoded["input_ids"]
    assert (rows("labels") if spec["causal"] else batch["labels"].tolist()) == encoded["labels"]
    adapted = plain_script.adapted(spec)
    trained = sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name)
    assert trained == prepared.method.count().params
    assert spec["steps"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_trains_scores_and_saves(kind, tmp_path):
    spec = specification(planned(kind, tmp_path), tmp_path)
    threads = torch.get_num_threads()
    plain_script.main(spec)
    torch.set_num_threads(threads)
    assert 0 <= json.loads((tmp_path / "score.json").read_text())["accuracy"] <= 1
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_a_task_that_the_script_cannot_do_is_refused(tmp_path):
    words = [*COMMON, "task=stsb", "model=local", f"model.path={standins()}/models/bert", f"store.root={tmp_path}/runs"]
    with pytest.raises(UserError, match="task=stsb is neither a classification nor prompts"):
        specification(make_plan(compose_run(words)), tmp_path)


def test_a_part_of_an_epoch_is_refused_in_one_line(monkeypatch):
    words = ["task=vader_movies", "model=local", f"model.path={standins()}/models/bert", "trainer.max_steps=1"]
    monkeypatch.setattr("sys.argv", ["whole", *words])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match="trainer.max_steps=1: one epoch is compared; data.train_items=N makes it"):
        main()
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_run_and_a_script_are_timed_in_both_orders_of_the_items():
    words = [*SMALL, *KINDS["bert"], f"model.path={standins()}/models/bert"]
    found = measure(words, blocks=1)
    assert [row["target"] for row in found["ratios"]] == [0.80, None]
    for order in ("length", "random"):
        assert set(found["seconds"][order]) == set(found["accuracy"][order]) == set(ARMS)
        assert all(len(values) == 1 and 0 <= values[0] <= 100 for values in found["accuracy"][order].values())
    assert set(measure(words, 1, ["length"])["seconds"]) == {"length"}
