"""What makes large models fit: frozen weights in bfloat16 or quantised, and layers that run again. Same training."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import SMALL, random_model, save_tokenizer
from hf_runs import ela
from tiny_runs import quick
from transformers import LlamaConfig, LlamaForCausalLM

from elalora import RowwiseAdamW, UserError
from elalora.attach import put
from elalora.merging import _dequantised, is_quantised
from experiments.config.schema import ModelConfig
from experiments.config.task import TaskConfig
from experiments.models.load import load_model
from experiments.runs.plan import make_plan
from experiments.runs.prepare import attach, checkpoint_layers, load, prepare
from experiments.runs.run import run

WIDE = SMALL | {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 1, "initializer_range": 0.1}
MOVES = {
    "elalora": ["method.t_initial=3", "method.t_final=3", "method.interval=2"],
    "prilora": ["method.every=4"],
    "lora": [],
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save_tokenizer(folder, pad_token="<pad>", eos_token="</s>")
    random_model(LlamaForCausalLM, LlamaConfig(**WIDE)).save_pretrained(folder)
    return folder


def planned(llama, store, method="elalora", *words):
    more = ["model.head=null", f"method={method}", "budget=r3", "trainer.max_steps=12", "trainer.log_every=1"]
    return make_plan(quick(llama, store, *more, *MOVES.get(method, []), *words))


def lines(plan, name):
    path = plan.folder.path / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def losses(plan):
    return [line["value"] for line in lines(plan, "metrics.jsonl") if line["metric"] == "loss"]


@pytest.mark.parametrize("method", ["elalora", pytest.param("prilora", marks=pytest.mark.slow)])
def test_layers_that_run_again_change_no_loss_no_rank_and_no_statistic(method, llama, tmp_path):
    plain = planned(llama, tmp_path / "plain", method)
    again = planned(llama, tmp_path / "again", method, "trainer.gradient_checkpointing=true")
    assert plain.id != again.id and "gradient_checkpointing" not in plain.identity["trainer"]
    ended = [run(plan) for plan in (plain, again)]
    assert len(losses(plain)) == 12 and losses(plain) == losses(again)
    assert lines(plain, "ranks.jsonl") == lines(again, "ranks.jsonl")
    assert ended[0]["readings"] == ended[1]["readings"]
    assert (
        ended[0]["files"]["adapter/adapter_model.safetensors"] == ended[1]["files"]["adapter/adapter_model.safetensors"]
    )
    assert method == "prilora" or ended[0]["moves"]["gross_share"] > 0


def test_layers_do_run_again_and_statistics_do_not_count_it(llama, tmp_path):
    plan = planned(llama, tmp_path, "prilora")
    sums = []
    for again in (False, True):
        loaded = load(plan)
        model, method = attach(plan, loaded.network, loaded.head, 96)
        if again:
            checkpoint_layers(model)
        calls = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        ids = torch.arange(4, 24).view(2, 10)
        with method.watching(torch.ones_like(ids)):
            loss = model.train()(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.tensor([0, 1])).loss
        loss.backward()
        sums.append({name: adapter.inputs.take() for name, adapter in method.adapters.items()})
        assert len(calls) == 1 + again and len(sums[-1]) == 14
    for name, norms in sums[0].items():
        assert norms.any() and torch.equal(norms, sums[1][name])


def test_an_architecture_that_cannot_run_layers_again_is_refused_in_one_line():
    with pytest.raises(UserError, match="gradient_checkpointing=true: Linear has none in transformers; leave it out"):
        checkpoint_layers(torch.nn.Linear(2, 2))


def test_frozen_bfloat16_weights_leave_all_that_trains_in_float32_and_ranks_move(llama, tmp_path):
    whole, half = (planned(llama, tmp_path / d, "elalora", *w) for d, w in [("a", []), ("b", ["model.dtype=bfloat16"])])
    assert "dtype" not in whole.identity["model"] and half.identity["model"]["dtype"] == "bfloat16"
    model = prepare(half).model
    kinds = {p.requires_grad: set() for p in model.parameters()}
    for parameter in model.parameters():
        kinds[parameter.requires_grad].add(parameter.dtype)
    assert kinds == {True: {torch.float32}, False: {torch.bfloat16}}
    results = [run(plan) for plan in (whole, half)]
    assert losses(half) == pytest.approx(losses(whole), rel=0.03)
    first, second = (lines(plan, "ranks.jsonl") for plan in (whole, half))
    assert len(first) == len(second) > 1 and results[1]["moves"]["gross_share"] > 0
    assert [len(line["grown"]) for line in first] == [len(line["grown"]) for line in second]


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_a_method_that_would_train_bfloat16_weights_is_refused(method, tiny_model_dir, tmp_path):
    words = [f"method={method}", "model.dtype=bfloat16", "budget=r3"]
    with pytest.raises(UserError, match=f"method={method} trains .* in bfloat16, .* type model.dtype=float32"):
        prepare(make_plan(quick(tiny_model_dir, tmp_path, *words)))


@pytest.mark.parametrize("plugin", ["FSDP", "DEEPSPEED"])
def test_a_launch_that_would_split_the_model_is_refused_in_one_line(plugin, llama, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    with pytest.raises(UserError, match=f"accelerate was started with {plugin}, .*: launch without it, and let"):
        prepare(planned(llama, tmp_path))


def loaded(llama, **more):
    task = TaskConfig(name="t", source="files", subset="t", text=["text"], max_length=16, num_labels=2)
    return load_model(ModelConfig(name="llama", path=str(llama), **more), task, seed=0)


def trained(network, head):
    """Losses and moves of 14 steps."""
    method = ela(t_initial=2, t_final=3, interval=3)
    model = method.attach(network, ["q_proj", "v_proj", "down_proj"], 14, head).train()
    optimizer, seen = RowwiseAdamW(method.groups(model, 2e-2, 0.0), method.directions()), []
    g = torch.Generator().manual_seed(3)
    for step in range(14):
        ids = torch.randint(3, 30, (8, 12), generator=g)
        penalty, loss = method.penalty(), model(input_ids=ids, labels=(ids[:, 0] > 15).long()).loss
        (loss + penalty).backward()
        method.gradients_ready(step)
        optimizer.step()
        method.after_step(step, optimizer, None)
        optimizer.zero_grad()
        seen.append(loss.item())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    return seen, method.rounds_seen


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_scores_and_moves_on_quantised_weights_are_those_on_the_dequantised_ones(kind, llama):
    pytest.importorskip("bitsandbytes")
    network, head, _ = loaded(llama, quantization=kind)
    layers = {name: module for name, module in network.named_modules() if is_quantised(module)}
    assert len(layers) == 14 and head == ["score"] and type(network.score) is torch.nn.Linear
    plain, _, _ = loaded(llama)
    with torch.no_grad():
        for name, module in layers.items():
            put(plain, name, _dequantised(module, torch.float32))
    (losses, rounds), (expected, same) = trained(network, head), trained(plain, head)
    # int8 rounds the inputs too
    assert losses == pytest.approx(expected, rel=1e-4 if kind == "nf4" else 2e-2)
    assert rounds and [sorted(r.grown) for r in rounds] == [sorted(r.grown) for r in same]
    for name, scores in rounds[0].scores.items():
        assert scores == pytest.approx(same[0].scores[name], rel=1e-2 if kind == "nf4" else 0.3), name


def test_quantisation_without_its_package_is_refused_in_one_line(llama, monkeypatch):
    monkeypatch.setattr("experiments.models.precision.find_spec", lambda name: None)
    with pytest.raises(UserError, match="model.quantization=nf4 needs bitsandbytes; type pip install"):
        loaded(llama, quantization="nf4")
