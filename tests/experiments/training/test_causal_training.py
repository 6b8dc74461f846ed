"""Causal runs: the loss of a step against one big float64 batch, the stock Trainer, resuming, and two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from parallel_runs import configs, in_float64
from safetensors.torch import load_file
from tiny_causal import causal_task, reviews, save_tiny_causal, tiny_llama, tiny_tokenizer
from tiny_runs import config

from analysis.reading.runs import load_runs
from analysis.sections.comparison import comparison
from baselines.lora import LoRA, LoRAConfig
from elalora import Budget
from elalora.errors import UserError
from elalora.export import export_peft
from elalora.hf import adapt
from experiments.data.batches import train_batches
from experiments.data.items import make_items
from experiments.data.text_items import IGNORED
from experiments.examples import describe, examples
from experiments.runs.plan import Plan, make_plan
from experiments.runs.prepare import load, processor_of, splits_of
from experiments.runs.run import run
from experiments.runtime.places import CHECKOUT
from experiments.runtime.seeds import stream
from experiments.store.folder import RunFolder
from experiments.verify import problems

SUPPORT = CHECKOUT / "tests" / "support"
RUN = [
    "task=own_prompts", "task.name=reviews", "task.text=[text]", "task.label=label", "task.answer=options",
    "task.prompt='Review: {text} Sentiment:'", "task.options=[negative,positive]",
    "task.metrics=[accuracy,f1,token_loss,perplexity]", "model=local", "model.targets=[all]", "method=elalora",
    "method.t_initial=2",     "method.t_final=4", "method.interval=3", "trainer.max_steps=14",
    "trainer.batch_size=8", "trainer.lr=5e-3",
    "trainer.log_every=1", "task.max_length=32", "store.checkpoint_every=0", "threads=1", "trainer.batches=random",
]  # fmt: skip
SIZES = {"train": 41, "validation": 9, "test": 11}  # the last batch of an epoch has one item


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    make_folder(folder)
    return folder


def make_folder(folder: Path) -> None:
    """A tiny model in model/, and reviews of unequal lengths in CSV files."""
    save_tiny_causal(folder / "model")
    for name, count in SIZES.items():
        rows = [
            f"{'so ' * (i % 5)}{'good' if i % 2 else 'bad'} film {i},{'positive' if i % 2 else 'negative'}"
            for i in range(count)
        ]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")


def words_of(folder: Path) -> list[str]:
    return [*RUN, *(f"task.files.{name}={folder}/{name}.csv" for name in SIZES)]


def planned(model, store, *words):
    return make_plan(config(*words_of(model), f"model.path={model}/model", f"store.root={store}", *words))


def losses(folder: Path) -> list[float]:
    lines = RunFolder(folder).lines("metrics.jsonl")
    return [line["value"] for line in lines if (line["split"], line["metric"]) == ("train", "loss")]


@pytest.fixture
def doubled(monkeypatch):
    from experiments.models import load as models

    monkeypatch.setattr(models, "load_model", models.load_model)  # is put back afterwards
    in_float64()


def test_accumulation_weighs_tokens_and_not_micro_batches(model, tmp_path, doubled):
    """The mean of the micro-batches' means is another number where they have unequal numbers of label tokens."""
    words = ("task.loss=all", "trainer.batch_size=7")
    whole, parts = (planned(model, tmp_path, *words, f"trainer.micro_batch={size}") for size in ("null", "3"))
    run(whole), run(parts)
    assert losses(parts.folder.path) == pytest.approx(losses(whole.folder.path), rel=1e-9)
    assert losses(whole.folder.path)[0] == pytest.approx(first_loss(whole), rel=1e-9)
    assert losses(whole.folder.path)[0] != pytest.approx(first_loss(whole, of_means=3), rel=1e-4)


def first_loss(plan, of_means: int | None = None) -> float:
    """The loss of the first step in float64, one unpadded sequence at a time, by its definition."""
    from transformers import AutoModelForCausalLM

    from experiments.runs.prepare import splits_of

    net = AutoModelForCausalLM.from_pretrained(plan.config.model.path, dtype=torch.float64).eval()
    items, size = splits_of(plan).train.data, plan.config.trainer.batch_size
    [indices] = train_batches(items.lengths, size, stream(plan.config.seed, "data"), 0, by_length=False)[:1]
    sums = []
    for index in indices:
        batch = items.batch([index])
        ids = batch["input_ids"][batch["attention_mask"] > 0]
        labels = batch["labels"][0, : len(ids)]
        with torch.no_grad():
            logprobs = net(ids[None]).logits[0].log_softmax(-1)
        chosen = [float(-logprobs[i - 1, labels[i]]) for i in range(1, len(ids)) if labels[i] != IGNORED]
        sums.append((sum(chosen), len(chosen)))
    if of_means is None:
        return sum(loss for loss, _ in sums) / sum(count for _, count in sums)
    chunks = [sums[i : i + of_means] for i in range(0, len(sums), of_means)]
    return sum(sum(s for s, _ in chunk) / sum(n for _, n in chunk) for chunk in chunks) / len(chunks)


def test_a_run_stores_options_zero_shot_scores_and_an_adapter_and_is_identified_by_its_prompt(model, tmp_path):
    plan = planned(model, tmp_path)
    result = run(plan)
    rows = pd.read_parquet(plan.folder.path / "predictions.parquet")
    assert list(rows.columns) == ["idx", "label", "prediction", "score", "right", "logprobs", "tokens", "characters"]
    assert (rows["right"] == (rows["label"] == rows["prediction"])).all()
    assert result["readings"]["last"]["report"]["metrics"]["accuracy"] == pytest.approx(100 * rows["right"].mean())
    assert result["data"]["zero_shot"].keys() == {"accuracy", "f1", "token_loss", "perplexity"}
    assert result["data"]["majority"].keys() == {"accuracy", "f1"}
    assert json.loads((plan.folder.path / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    others = {
        planned(model, tmp_path, *words).id
        for words in (
            ["task.loss=all"], ["task.truncation=drop"], ["task.option_score=token"], ["task.completion=' is {label}'"],
            ["task.options=[bad,good]"], ["task.max_length=31"], ["task.chat=true"],
        )
    }  # fmt: skip
    assert len(others | {plan.id}) == 8
    unread = ["task.parser=last_number_v1", "task.generate_length=9", "task.beams=2"]
    assert planned(model, tmp_path, *unread).id == plan.id


def test_a_run_that_resumes_equals_one_that_never_stopped_bit_for_bit(model, tmp_path, monkeypatch):
    from experiments.training.trainer import Trainer

    whole = planned(model, tmp_path / "whole", "store.checkpoint_every=4")
    run(whole)
    step_of = Trainer._step

    def dying(self, step):
        if step == 9:
            raise KeyboardInterrupt
        return step_of(self, step)

    halves = planned(model, tmp_path / "halves", "store.checkpoint_every=4")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(halves)
    run(planned(model, tmp_path / "halves", "store.checkpoint_every=4"))
    for name in ("metrics.jsonl", "ranks.jsonl"):
        assert (whole.folder.path / name).read_bytes() == (halves.folder.path / name).read_bytes()
    first, second = (load_file(plan.folder.path / "adapter" / "adapter_model.safetensors") for plan in (whole, halves))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_forgetting_is_the_rise_of_the_loss_on_every_token_of_a_fixed_text(model, tmp_path):
    """Before training it is the pretrained model's, and the text and not its place identifies the run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["the plot was so great", "a good film and an actor", "so slow"]
    file, copy = tmp_path / "general.txt", tmp_path / "copy.txt"
    file.write_text("\n\n".join(texts) + "\n\n \n\n")
    copy.write_text(file.read_text())
    plan = planned(model, tmp_path, f"forgetting={file}")
    assert plan.id == planned(model, tmp_path, f"forgetting={copy}").id != planned(model, tmp_path).id
    stored = run(plan)["data"]["forgetting"]
    net = AutoModelForCausalLM.from_pretrained(model / "model", dtype=torch.float64).eval()
    tokenizer, total, count = AutoTokenizer.from_pretrained(model / "model"), 0.0, 0
    for text in texts:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        with torch.no_grad():
            logprobs = net(ids[None]).logits[0, :-1].log_softmax(-1)
        total -= float(logprobs.gather(1, ids[1:, None]).sum())
        count += len(ids) - 1
    assert stored["before"] == pytest.approx(total / count, rel=1e-5) and stored["after"] != stored["before"]
    row = load_runs(tmp_path)
    assert row["forgetting"].tolist() == [pytest.approx(stored["after"] - stored["before"])]
    table = comparison(row)
    assert "Forgetting" in table.columns
    assert [name for name in table.frame["method"]] == ["majority", "zero_shot", "elalora"]


def test_forgetting_is_refused_where_nothing_could_be_scored(model, tmp_path):
    with pytest.raises(UserError, match="neither a text file nor a task; type the path"):
        planned(model, tmp_path, "forgetting=nowhere.txt")
    with pytest.raises(UserError, match="needs a causal task, not task=vader_movies"):
        make_plan(config("forgetting=vader_nyt"))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="has no text of two tokens"):
        run(planned(model, tmp_path, f"forgetting={tmp_path / 'empty.txt'}"))


def test_sums_are_generated_parsed_and_read_again(model, tmp_path):
    words = [word for word in RUN if word.startswith(("model", "method", "trainer", "threads", "store"))]
    words += [f"model.path={model}/model", f"store.root={tmp_path}", "data.train_items=60", "trainer.batch_size=100"]
    plan = make_plan(config("task=sums", "task.generate_length=3", "trainer.max_steps=8", *words))
    result = run(plan)
    rows = pd.read_parquet(plan.folder.path / "predictions.parquet")
    assert list(rows.columns) == ["idx", "label", "prediction", "score", "right", "parsed"] and len(rows) == 200
    metrics = result["readings"]["last"]["report"]["metrics"]
    assert metrics["parse_failures"] == pytest.approx(100 * rows["parsed"].isna().mean())
    assert metrics["accuracy"] == pytest.approx(rows["score"].mean())
    assert problems(plan.folder.path) == []
    task, wrong = examples(plan.folder.path, 3, wrong=True)
    assert len(wrong) == 3 and "generated: " in describe(task, wrong) and "accuracy 0.0" in describe(task, wrong)


def test_the_stock_trainer_has_the_same_loss_on_the_same_batches(tmp_path):
    """Also with accumulation over micro-batches of unequal numbers of label tokens."""
    from transformers import Trainer, TrainingArguments

    texts = ("a good film", "bad", "so slow, so dull, the plot", "great")
    items = make_items(reviews((1, 0, 0, 1), texts), tiny_tokenizer(), causal_task(loss="all"), str(tmp_path))
    whole = items.batch([0, 1, 2, 3])

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return {"row": i}

    seen = []
    for micro in (4, 1):
        model = tiny_llama()
        args = TrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=micro, gradient_accumulation_steps=4 // micro,
            max_steps=1, learning_rate=1e-3, report_to=[], save_strategy="no", logging_steps=1, use_cpu=True,
            remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=Rows(),
            data_collator=lambda rows: items.batch([r["row"] for r in rows]),
        )
        adapt(trainer, LoRA(LoRAConfig(), Budget(rank=2)), "all")
        trainer.train()
        seen.append(trainer.state.log_history[0]["loss"])
    with torch.no_grad():
        expected = float(tiny_llama().double()(**whole).loss)
    assert seen == pytest.approx([expected, expected], rel=1e-5)


def test_a_decoder_that_reads_its_prompt_counts_all_its_tokens_and_not_only_the_labelled():
    """OPT's layers lie under `decoder`, and PRILoRA once took the labels' mask there, as in encoder-decoders."""
    from transformers import OPTConfig, OPTForCausalLM

    from elalora.hf import _masks

    small = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = OPTForCausalLM(OPTConfig(vocab_size=30, max_position_embeddings=16, word_embed_proj_dim=16, **small))
    inputs = {"attention_mask": torch.ones(1, 4), "labels": torch.tensor([[IGNORED, IGNORED, 3, 4]])}
    mask, target = _masks(inputs, net)
    assert target is None and mask.sum() == 4


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["completion", "all"])
def test_two_processes_train_and_read_what_one_does(tmp_path, loss, doubled):
    make_folder(tmp_path)
    words = [*words_of(tmp_path), "model.head=null", "data.train_items=null", f"task.loss={loss}"]
    words = [word.replace("Review: {text} Sentiment:", "{text}:") for word in words]  # split at blanks
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
         str(SUPPORT / "parallel_process.py"), str(tmp_path), " ".join(words)],
        env=os.environ | {"PYTHONPATH": f"{SUPPORT}{os.pathsep}{CHECKOUT}"}, capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    [two] = (tmp_path / "runs" / "reviews").iterdir()
    [alone] = configs(tmp_path, [words])
    one = make_plan(alone)
    run(one)
    assert one.folder.path != two
    assert losses(one.folder.path) == pytest.approx(losses(two), rel=1e-9)
    rounds = zip(*(RunFolder(path).lines("ranks.jsonl") for path in (one.folder.path, two)), strict=True)
    assert all(first[part] == again[part] for first, again in rounds for part in ("step", "ranks", "pruned", "grown"))
    frames = [pd.read_parquet(path / "predictions.parquet") for path in (one.folder.path, two)]
    pd.testing.assert_frame_equal(*frames, rtol=1e-8)


# -- the library route, on the batches of a run -----------------------------------------------------------

STEPS, SIZE = 14, 8
SAME = ("data.train_items=40", f"trainer.max_steps={STEPS}", "trainer.warmup=2", "trainer.weight_decay=0.01")


def batches(plan: Plan) -> list[list[int]]:
    """The items of each step of the run; no epoch has a short batch, which the other trainers cannot be given."""
    lengths, seed = splits_of(plan).train.data.lengths, stream(plan.config.seed, "data")
    epochs = range(STEPS * SIZE // len(lengths) + 1)
    return [batch for epoch in epochs for batch in train_batches(lengths, SIZE, seed, epoch, False)][:STEPS]


def arguments(folder: Path) -> dict[str, Any]:
    """What TrainingArguments and SFTConfig share, as the run has it."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": SIZE, "max_steps": STEPS, "learning_rate": 5e-3,
        "weight_decay": 0.01, "warmup_steps": 2, "lr_scheduler_type": "linear", "max_grad_norm": 1.0, "report_to": [],
        "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "disable_tqdm": True,
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
    }  # fmt: skip


def compare(trainer: Any, plan: Plan, folder: Path, tolerance: float) -> None:
    """Trains with the run's own method and seeds, and compares losses, rounds, ranks and factors with the run's.

    The Trainer reports the loss with the method's penalty, which a run's metrics leave out.
    """
    method = plan.method(plan.method_config, plan.budget)
    adapt(trainer, method, "all", seed=stream(plan.config.seed, "adapter"))
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if plan.config.method.orth_weight == 0:
        assert found == pytest.approx(losses(plan.folder.path), rel=tolerance)
    result, lines = plan.folder.result(), plan.folder.lines("ranks.jsonl")
    assert method.ranks() == result["ranks"]["final"] and result["moves"]["gross_share"] > 0
    assert [line["grown"] for line in lines if line["grown"]] == [list(r.grown) for r in method.rounds_seen if r.grown]
    export_peft(method, trainer.model, folder, task_type="CAUSAL_LM")
    ours, theirs = (load_file(place / "adapter_model.safetensors") for place in (plan.folder.path / "adapter", folder))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name].double(), tensor.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("loss", "penalty"), [("completion", 0.0), ("all", 0.1)])
def test_the_stock_trainer_gives_the_numbers_of_a_run_on_the_same_batches(model, tmp_path, loss, penalty, doubled):
    from transformers import Trainer, TrainingArguments

    plan = planned(model, tmp_path / "runs", *SAME, f"task.loss={loss}", f"method.orth_weight={penalty}")
    run(plan)
    items, order = splits_of(plan).train.data, [i for batch in batches(plan) for i in batch]

    class Steps(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, place: int) -> dict[str, int]:
            return {"item": order[place]}

    args = TrainingArguments(**arguments(tmp_path / "out"), remove_unused_columns=False)
    trainer = Trainer(
        model=load(plan).network,
        args=args,
        train_dataset=Steps(),
        data_collator=lambda rows: items.batch([r["item"] for r in rows]),
    )
    compare(trainer, plan, tmp_path / "adapter", 1e-5)  # the model's own loss is in float32


@pytest.mark.slow
def test_trls_sft_trainer_gives_the_numbers_of_a_run_on_the_same_batches(model, tmp_path):
    """Pre-tokenised rows with the completion's mask, in the run's order."""
    trl = pytest.importorskip("trl", reason="needs trl (pip install trl), which is not in the lock")
    plan = planned(model, tmp_path / "runs", *SAME, "method.orth_weight=0")
    run(plan)
    items, order = splits_of(plan).train.data, [i for batch in batches(plan) for i in batch]
    rows = []
    for i in order:
        ids = items.batch([i])["input_ids"][0, : items.lengths[i]].tolist()  # without padding
        rows.append({"input_ids": ids, "completion_mask": [int(place >= items.starts[i]) for place in range(len(ids))]})
    args = trl.SFTConfig(**arguments(tmp_path / "out"), max_length=None, completion_only_loss=True, packing=False,
                         gradient_checkpointing=False, bf16=False)  # fmt: skip
    data, tokenizer = Dataset.from_list(rows), processor_of(plan)
    trainer = trl.SFTTrainer(load(plan).network, args=args, train_dataset=data, processing_class=tokenizer)
    compare(trainer, plan, tmp_path / "adapter", 1e-4)
