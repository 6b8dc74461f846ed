"""Stock PEFT tuners behind the common interface, on a tiny BERT from its configuration."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.adalora import AdaLoRA, AdaLoRAConfig
from baselines.lora import LoRA, LoRAConfig
from baselines.peft_tuner import PeftTuner, PeftTunerConfig
from elalora import Budget, Method, MethodFailure, RowwiseAdamW, Schedule, UserError
from elalora.export import export_peft

peft = pytest.importorskip("peft", reason="peft is an optional extra")
torch.set_num_threads(1)

TARGETS = ["query", "value", "intermediate.dense", "layer.*.output.dense"]
KEEP = ["bert.pooler", "classifier"]
N_MATRICES, N = 8, 4
WIDTHS = [64, 64, 96, 96] * 2  # d_in + d_out
LORA_PARAMS = N * sum(WIDTHS)


def bert(dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.2,
        )
        return BertForSequenceClassification(config).to(dtype)


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(50, (32, 8), generator=g)
    mask = torch.ones_like(ids)
    mask[:8, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": (ids[:, 0] > 25).long()}


def attached(tuner: str = "LORA", rank_key: str | None = None, **options: Any) -> tuple[nn.Module, PeftTuner]:
    model, method = bert(), PeftTuner(PeftTunerConfig(tuner, options, rank_key), Budget(rank=N))
    assert method.attach(model, TARGETS, 20, KEEP) is model
    method.prepare([batch()])
    return model, method


def train(model: nn.Module, method: Method, steps: int = 20, lr: float = 1e-2, start: int = 0, optimizer=None):
    optimizer = optimizer or RowwiseAdamW(method.groups(model, lr, 0.0), method.directions())
    for group in optimizer.param_groups:
        group["lr"] = lr
    schedule = Schedule(optimizer, 20)
    schedule.at(start)
    losses = []
    for step in range(start, start + steps):
        loss, penalty = model(**batch()).loss, method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        method.after_step(step, optimizer, schedule)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optimizer


ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LORA", {}),
    "dora": ("LORA", {"use_dora": True}),
    "rslora": ("LORA", {"use_rslora": True}),
    "pissa": ("LORA", {"init_lora_weights": "pissa"}),
    "eva": ("LORA", {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
    "vera": ("VERA", {"r": 64}),
    "adalora": ("ADALORA", {"orth_reg_weight": 0.1}),
    "loha": ("LOHA", {}),
    "ia3": ("IA3", {}),
}
# whether the parameters are LoRA's at the same budget
MATCHED = {"lora": True, "rslora": True, "pissa": True}


@pytest.mark.parametrize("arm", ARMS)
def test_a_tuner_trains_with_its_head_and_is_counted_as_peft_counts(arm):
    tuner, options = ARMS[arm]
    model, method = attached(tuner, **options)
    start = method.count()
    head = {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith(tuple(KEEP))}
    assert head and all(p.requires_grad for n, p in model.named_parameters() if n in head)
    trained, _ = method.peft_model.get_nb_trainable_parameters()
    assert start.params == trained - sum(p.numel() for p in head.values())
    if arm != "eva":
        assert start.params == peft_alone(tuner, options)
    losses, _ = train(model, method)
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(p, head[n]) for n, p in model.named_parameters() if n in head and p.ndim > 1)
    method.finish()
    if arm not in ("eva", "adalora"):
        assert method.matched is MATCHED.get(arm, False)


def peft_alone(tuner: str, options: dict[str, Any]) -> int:
    """Trainable parameters of a model that PEFT alone has wrapped."""
    options = dict(options)
    if tuner == "ADALORA":
        options |= {"init_r": 6, "target_r": N, "total_step": 20, "tinit": 3, "tfinal": 9}
    elif tuner != "IA3":
        options = {"r": N} | options
    names = [n for n, m in bert().named_modules() if isinstance(m, nn.Linear) and "encoder" in n]
    chosen = [n for n in names if n.endswith(("query", "value")) or ".attention." not in n]
    config = peft.get_peft_config({"peft_type": tuner, "target_modules": chosen, **options})
    return peft.get_peft_model(bert(), config).get_nb_trainable_parameters()[0]


def test_lora_is_the_lora_of_this_library():
    model, method = attached(lora_alpha=16)
    other, ours = bert(), LoRA(LoRAConfig(), Budget(rank=N))
    ours.attach(other, TARGETS, 20, KEEP)
    assert set(ours.adapters) == set(method.matrices) and len(method.matrices) == N_MATRICES
    assert ours.count() == method.count() and ours.shapes() == method.shapes() and ours.ranks() == method.ranks()
    for name, adapter in ours.adapters.items():
        adapter.A.data.copy_(model.get_submodule(name).lora_A["default"].weight)
    a, _ = train(model.double(), method)
    b, _ = train(other.double(), ours)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_adalora_as_peft_has_it_equals_ours():
    """Penalty, allocator and schedule of the injected tuner, through the same loop."""
    model, method = attached("ADALORA", lora_alpha=16, orth_reg_weight=0.1)
    other, ours = bert(), AdaLoRA(AdaLoRAConfig(), Budget(rank=N))
    ours.attach(other, TARGETS, 20, KEEP)
    for name, adapter in ours.adapters.items():
        layer = model.get_submodule(name)
        adapter.A.data.copy_(layer.lora_A["default"])
        adapter.B.data.copy_(layer.lora_B["default"].T)
    for net in (model, other):
        net.double()
    for p in list(ours.importance.smooth):
        for table in (ours.importance.smooth, ours.importance.uncertainty):
            table[p] = table[p].double()
    a, _ = train(model, method)
    b, _ = train(other, ours)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert [r.step for r in method.rounds_seen] == ours.phases.rounds()
    assert [(r.ranks, r.pruned, r.grown) for r in method.rounds_seen] == [
        (r.ranks, r.pruned, r.grown) for r in ours.rounds_seen
    ]
    method.finish()
    ours.finish()
    assert method.count() == ours.count() and method.count().rank_sum == N * N_MATRICES
    for name, (a0, b0) in ours.lora_factors().items():
        a1, b1 = method.lora_factors()[name]
        torch.testing.assert_close(b1 @ a1, b0 @ a0, rtol=1e-8, atol=1e-10)


def test_eva_redistributes_ranks_from_data_within_the_budget():
    model, method = attached("LORA", init_lora_weights="eva", eva_config={"rho": 2.0})
    ranks = method.ranks()
    assert len(ranks) == N_MATRICES and len(set(ranks.values())) > 1
    assert sum(ranks.values()) <= N * N_MATRICES and max(ranks.values()) <= 2 * N
    assert method.count().params == sum(r * sum(method.shapes()[n]) for n, r in ranks.items())
    again = attached("LORA", init_lora_weights="eva", eva_config={"rho": 2.0})[1]
    assert again.ranks() == ranks


def test_eva_without_data_is_refused():
    model, method = bert(), PeftTuner(PeftTunerConfig("LORA", {"init_lora_weights": "eva"}), Budget(rank=N))
    method.attach(model, TARGETS, 20, KEEP)
    assert method.batches_wanted
    with pytest.raises(MethodFailure, match="prepare"):
        method.groups(model, 1e-2, 0.0)
    tiny = {k: v[:1, :3] if v.ndim > 1 else v[:1] for k, v in batch().items()}
    with pytest.raises(UserError, match=r"at least r \* rho = 8 tokens"):
        method.prepare([tiny])


@pytest.mark.parametrize("arm", ["lora", "rslora", "pissa", "eva", "adalora"])
def test_factors_and_the_exported_adapter_give_the_same_outputs_over_the_given_weights(arm, tmp_path):
    tuner, options = ARMS[arm]
    model, method = attached(tuner, **options)
    train(model, method, 20)
    method.finish()
    model.eval()
    inputs = {k: v for k, v in batch().items() if k != "labels"}
    expected = model(**inputs).logits
    plain = bert().eval()
    folder = export_peft(method, model, tmp_path / "adapter", KEEP)
    loaded = peft.PeftModel.from_pretrained(plain, folder).eval()
    torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-4, atol=2e-5)


def test_what_is_no_lora_says_so():
    for tuner, options, reason in (("LORA", {"use_dora": True}, "use_dora"), ("VERA", {}, "tuner VERA")):
        _, method = attached(tuner, **options)
        assert not method.capabilities.exports_lora
        with pytest.raises(UserError, match=f"{reason} cannot be written as fixed-rank LoRA"):
            method.lora_factors()


def test_the_model_is_the_same_at_the_start():
    expected = bert().eval()(**batch()).logits
    for tuner, options in (ARMS["lora"], ARMS["dora"], ARMS["pissa"], ARMS["adalora"]):
        model, _ = attached(tuner, **options)
        torch.testing.assert_close(model.eval()(**batch()).logits, expected, rtol=1e-4, atol=2e-5)


def test_two_runs_are_equal_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model, method = attached()
        assert torch.equal(torch.rand(1), expected)
        runs.append(train(model, method)[0])
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("arm", "at"), [("adalora", 7), ("adalora", 15), ("eva", 10), ("pissa", 10)])
def test_a_resumed_run_equals_an_uninterrupted_one(arm, at):
    tuner, options = ARMS[arm]
    whole, _ = train(*attached(tuner, **options))
    model, method = attached(tuner, **options)
    _, optimizer = train(model, method, at)
    state = method.state_dict()
    plain = json.loads(json.dumps({k: v for k, v in state.items() if not isinstance(v, Tensor)}))
    state = plain | {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)}
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    model, method = attached(tuner, **options)
    method.load_state_dict(state)
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.data.copy_(trained[name])
    again = RowwiseAdamW(method.groups(model, 1e-2, 0.0), method.directions())
    again.load_state_dict(optimizer.state_dict())
    assert train(model, method, 20 - at, start=at, optimizer=again)[0] == whole[at:]


def test_adalora_that_was_never_allocated_fails():
    _, method = attached("ADALORA")
    with pytest.raises(MethodFailure, match="never masked"):
        method.finish()


def test_a_rank_of_ones_own_is_no_budget_and_not_matched():
    _, method = attached("LORA", r=8)
    assert method.capabilities.budget == "none" and not method.matched
    assert method.count().params == 2 * LORA_PARAMS
    _, method = attached("LORA")
    assert method.capabilities.budget == "constant" and method.count().params == LORA_PARAMS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PeftTunerConfig("LORAX"), "method.tuner=LORAX is unknown .* allowed: ADALORA, .*LORA"),
        (PeftTunerConfig("PROMPT_TUNING"), "adapts no layers"),
        (PeftTunerConfig("LORA", {"user_dora": True}), "method.options.user_dora is not an option .* use_dora"),
        (PeftTunerConfig("LORA", {"task_type": "SEQ_CLS"}), "method.options.task_type is not an option"),
        (PeftTunerConfig("LORA", {}, "rank"), "method.rank_key=rank is not an option .* lora_alpha"),
        (PeftTunerConfig("ADALORA", {"tinit": 19}), "method.options.tinit"),
        (PeftTunerConfig("OFT"), "method.tuner=OFT refuses"),
        (PeftTunerConfig("LORA", {"init_lora_weights": "corda"}), "refuses method.options.init_lora_weights=corda"),
    ],
)
def test_wrong_settings_are_refused_and_leave_the_model_as_it_was(config, message):
    model = bert()
    before = {n: (id(p), p.requires_grad) for n, p in model.named_parameters()}
    with pytest.raises(UserError, match=message):
        PeftTuner(config, Budget(rank=N)).attach(model, TARGETS, 20, KEEP)
    assert {n: (id(p), p.requires_grad) for n, p in model.named_parameters()} == before
