"""What a run cost, against counts by hand and torch's own AdamW."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Net
from tiny_runs import quick

from baselines.lora import LoRA, LoRAConfig
from elalora import Budget
from elalora.optim import RowwiseAdamW
from experiments.data.batches import train_batches
from experiments.runs.cost import optimizer_bytes, tokens_trained
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.runtime.flops import CPU_ATTENTION, counting


def test_the_optimizers_state_is_two_moments_of_every_trained_number_and_the_counters():
    net = Net()
    method = LoRA(LoRAConfig(), Budget(3))
    method.attach(net, ["up", "down"], 10, keep=["head"])
    optimizer = RowwiseAdamW(method.groups(net, 1e-3, 0.0), method.directions())
    assert optimizer_bytes(optimizer) == 0
    trained = [p for p in net.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.ones_like(p)
    optimizer.step()
    moments = 2 * sum(p.numel() * p.element_size() for p in trained)
    counters = optimizer_bytes(optimizer) - moments
    rows = sum(3 for _ in method.adapter_parameters()) + sum(1 for _ in net.head.parameters())
    assert counters in (4 * rows, 8 * rows)  # one counter for each direction, or parameter of the head


@pytest.mark.parametrize(("steps", "by_length"), [(3, False), (7, False), (23, True), (8, True)])
def test_tokens_are_those_of_every_item_of_every_step(steps, by_length):
    lengths = np.random.default_rng(0).integers(3, 60, 31)
    seen = 0
    for step in range(steps):
        epoch, position = divmod(step, 8)
        seen += sum(lengths[i] for i in train_batches(lengths, 4, 5, epoch, by_length)[position])
    assert tokens_trained(lengths, 4, 5, steps, by_length) == seen


def test_a_result_has_the_operations_of_its_first_batch_and_counting_changes_nothing(tiny_model_dir, tmp_path):
    costs = {}
    for budget in ("r1", "r3"):
        plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora", "task=vader_tweets_binary", f"budget={budget}"))
        costs[budget] = run(plan)["cost"]
    # a rank costs 2 (d_in + d_out) operations a token forward and, for its factors and their input, twice as many
    # backward; the padded tokens are the same in both runs
    per_rank = sum(2 * (a + b) for a, b in [(32, 32)] * 4 + [(32, 64)] * 2) * 2
    more = (costs["r3"]["step_flops"] - costs["r1"]["step_flops"]) / 2 / per_rank
    assert 2 * 8 * 8 <= more <= 3 * 8 * 16  # 8 items of 8 to 16 tokens
    assert costs["r1"]["train_tokens"] == costs["r3"]["train_tokens"] > 30 * 8
    assert costs["r3"]["optimizer_bytes"] > costs["r1"]["optimizer_bytes"]


def test_attention_on_a_cpu_counts_as_its_products_do():
    q, k, v = (torch.randn(2, 4, 8, 16, requires_grad=True) for _ in range(3))
    with counting(CPU_ATTENTION) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    product = 2 * 2 * 4 * 8 * 8 * 16  # q k^T, and as many for the weighted sum of v
    assert counter.get_total_flops() == 2 * product + 5 * product  # backward: scores again, dP, dV, dQ, dK


def test_a_run_is_kept_where_torch_cannot_count_an_operation(tiny_model_dir, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("shapes are incompatible")

    monkeypatch.setattr("experiments.runs.cost.counting", refuse)
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora", "task=vader_tweets_binary", "budget=r1"))
    assert run(plan)["cost"]["step_flops"] is None
    assert "were not counted: shapes are incompatible" in capsys.readouterr().err
