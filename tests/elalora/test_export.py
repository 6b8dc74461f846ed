"""A trained adapter reloads in stock PEFT with the same outputs, and merges into the weights."""

from __future__ import annotations

import json

import pytest
import torch
from encoders import TARGETS, bert
from nets import Nested, batch, train

from baselines.lora import LoRA, LoRAConfig
from baselines.registry import method_class
from elalora import Budget, ElaLoRA, ElaLoRAConfig, UserError
from elalora.attach import merge
from elalora.export import export_peft, export_trained, read_factors


def deberta(seed=0):
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=3,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        max_relative_positions=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DebertaV2ForSequenceClassification(config)


ARCHITECTURES = {
    "bert": (bert, TARGETS, ["bert.pooler", "classifier"]),
    "deberta": (
        deberta,
        [
            "query_proj",
            "key_proj",
            "value_proj",
            "attention.output.dense",
            "intermediate.dense",
            "layer.*.output.dense",
        ],
        ["pooler", "classifier"],
    ),
}


def tokens(step=0):
    g = torch.Generator().manual_seed(step)
    return {
        "input_ids": torch.randint(1, 50, (8, 12), generator=g),
        "attention_mask": torch.ones(8, 12, dtype=torch.long),
    }


def trained(name, method, steps=30):
    make, targets, head = ARCHITECTURES[name]
    model = make()
    method.attach(model, targets, steps, keep=head)
    from elalora import RowwiseAdamW, Schedule

    optimizer = RowwiseAdamW(method.groups(model, 1e-2, 0.0), method.directions())
    schedule = Schedule(optimizer, steps)
    for step in range(steps):
        batch = tokens(step)
        with method.watching(batch["attention_mask"]):
            loss = model(**batch, labels=torch.arange(8) % 3).loss
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
    method.finish()
    return model.eval(), head


def methods():
    quick = {"t_initial": 2, "t_final": 4, "interval": 3, "b": 6, "alpha": 32.0}
    yield "lora", LoRA(LoRAConfig(), Budget(4))
    yield "elalora", ElaLoRA(ElaLoRAConfig(**quick), Budget(3))
    more = {
        "svd_lora": {},
        "rac_lora": {"blocks": 3},
        "chain_lora": {"blocks": 3},
        "xgblora": {},
        "adalora": {"t_initial": 4, "t_final": 8, "interval": 3},
        "sora": {},
        "prilora": {"every": 7},
        "beamlora": {"interval": 6},
        "l1ra": {"l1": 10.0},
        "dylora": {},
        "dora_dynamic": {"t_initial": 4, "t_final": 8, "interval": 3},
    }
    for name, knobs in more.items():
        cls = method_class(name)
        yield name, cls(cls.Config(**knobs), Budget(3))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", [m for _, m in methods()], ids=[n for n, _ in methods()])
def test_stock_peft_reloads_the_adapter_with_equal_outputs(architecture, method, tmp_path):
    from peft import PeftModel

    model, head = trained(architecture, method)
    whole = head + method.trained_modules()
    folder = export_peft(method, model, tmp_path / "adapter", whole, task_type="SEQ_CLS", base="somewhere")
    fresh = ARCHITECTURES[architecture][0]()
    reloaded = PeftModel.from_pretrained(fresh, folder).eval()
    with torch.no_grad():
        ours, theirs = model(**tokens(99)).logits, reloaded(**tokens(99)).logits
        plain = ARCHITECTURES[architecture][0]().eval()(**tokens(99)).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (ours - plain).abs().max() > 0.01, "an untrained adapter would prove nothing"
    merge(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**tokens(99)).logits, ours, rtol=1e-5, atol=1e-5)
    ranks = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    assert bool(ranks) == (len(set(method.ranks().values())) > 1)


def test_a_matrix_of_rank_0_is_left_out(tmp_path):
    from peft import PeftModel

    method = LoRA(LoRAConfig(), Budget(2))
    model, head = trained("bert", method)
    gone, adapter = next(iter(method.adapters.items()))
    adapter.directions.die(0)
    adapter.directions.die(0)
    folder = export_peft(method, model, tmp_path, head)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert gone not in config["target_modules"] and len(config["target_modules"]) == 11
    reloaded = PeftModel.from_pretrained(bert(), folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(**tokens()).logits, model(**tokens()).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_any_rank_is_refused(tmp_path):
    method = LoRA(LoRAConfig(), Budget(1))
    model, head = trained("bert", method)
    for adapter in method.adapters.values():
        adapter.directions.die(0)
    with pytest.raises(UserError, match="every matrix has rank 0"):
        export_peft(method, model, tmp_path / "x", head)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("ranks", [(1, 2), (0, 2), (2, 0), (2, 1)], ids=str)
def test_of_two_names_that_end_alike_each_keeps_its_rank(ranks, tmp_path):
    from peft import PeftModel

    net, method = Nested(), LoRA(LoRAConfig(), Budget(2))
    method.attach(net, ["up", "down"], 20, keep=["head"])
    train(net, method, 20)
    for name, rank in zip(("up", "inner.up"), ranks, strict=True):
        while method.adapters[name].rank > rank:
            method.adapters[name].directions.die(0)
    x, _ = batch(3)
    trained, spare = net(x).detach(), net.spare_head.weight.clone()
    reloaded = PeftModel.from_pretrained(Nested(), export_peft(method, net, tmp_path))
    torch.testing.assert_close(reloaded(x), trained, rtol=1e-8, atol=1e-10)
    assert torch.equal(net.spare_head.weight, spare)
    adapted = {n for n, m in reloaded.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {name for name, rank in method.ranks().items() if rank}


def test_trained_parameters_are_saved_by_name(tmp_path):
    from safetensors.torch import load_file

    model = bert()
    model.bert.requires_grad_(False)
    export_trained(model, tmp_path)
    assert set(load_file(tmp_path / "trained.safetensors")) == {
        "classifier.weight",
        "classifier.bias",
    }


def test_an_adapter_has_the_permissions_of_any_new_file(tmp_path):
    method = LoRA(LoRAConfig(), Budget(2))
    model, head = trained("bert", method)
    export_peft(method, model, tmp_path / "lora", head)
    export_trained(model, tmp_path / "trained")
    (tmp_path / "any").touch()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4 and {path.stat().st_mode for path in files} == {(tmp_path / "any").stat().st_mode}


def test_an_adapter_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read .*readable copy"):
        read_factors(tmp_path)
