"""One LoRA for each increment: merged when it is read, or orthogonal to the earlier ones; and class means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Net, batch, train
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.class_means import ClassMeans, ClassMeansConfig
from baselines.increment_pieces import OLoRA, OLoRAConfig, TaskLoRA, TaskLoRAConfig
from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, RowwiseAdamW, UserError
from elalora.chain import ChainLinear

STEPS = 30


def build(cls, config, rank=2, increments=3, steps=STEPS):
    net, method = Net(), cls(config, Budget(rank))
    method.increments = increments
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=0)
    return net, method


@pytest.mark.parametrize(("cls", "config"), [(TaskLoRA, TaskLoRAConfig()), (OLoRA, OLoRAConfig())])
def test_one_increment_is_lora_bit_for_bit(cls, config):
    net, method = build(cls, config, increments=1)
    plain, lora = build(LoRA, LoRAConfig(), increments=1)
    train(net, method, STEPS)
    train(plain, lora, STEPS)
    method.finish()
    x, _ = batch(1)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-12, atol=1e-12)
    for name, adapter in method.adapters.items():
        assert torch.equal(adapter.A, lora.adapters[name].A) and torch.equal(adapter.B, lora.adapters[name].B)


@pytest.mark.parametrize(("merge", "weight"), [("mean", 1 / 3), ("sum", 1.0)])
def test_the_merged_update_is_the_mean_or_sum_of_pieces_that_trained_alone(merge, weight):
    net, method = build(TaskLoRA, TaskLoRAConfig(merge=merge))
    alone = []
    begin = method.begin_increment

    def keep(*words):
        alone.append({n: (a.B[: a.rank] * a.scale).T @ a.A[: a.rank] for n, a in method.adapters.items()})
        x, _ = batch(2)
        frozen = Net()
        frozen.head.load_state_dict(net.head.state_dict())
        with torch.no_grad():
            for name, delta in alone[-1].items():
                frozen.get_submodule(name).weight += delta
        torch.testing.assert_close(net(x), frozen(x), rtol=1e-9, atol=1e-10)  # in training the piece is alone
        return begin(*words)

    method.begin_increment = keep
    train(net, method, STEPS, lr=1e-2)
    alone.append({n: (a.B[: a.rank] * a.scale).T @ a.A[: a.rank] for n, a in method.adapters.items()})
    method.finish()
    for name, adapter in method.adapters.items():
        expected = weight * sum(piece[name] for piece in alone)
        torch.testing.assert_close(adapter.delta(), expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "autocast"),
    [(torch.float64, False), (torch.float32, False), (torch.bfloat16, False), (torch.float32, True)],
)
@pytest.mark.parametrize("shape", [(16, 10), (4, 5, 10), (10,)], ids=str)
def test_a_merged_layer_computes_its_frozen_product_once_with_the_same_bits(kind, autocast, shape):
    net, method = build(TaskLoRA, TaskLoRAConfig())
    train(net, method, STEPS, lr=1e-2)
    method.finish()
    layer = method.adapters["layers.0.up"].eval()
    if kind != torch.float64:
        layer.float()
    layer.base.to(kind)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(kind)
    calls = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        alone = layer.base(x)
        twice = alone + layer.merged_weight * (ChainLinear.forward(layer, x) - alone)
        whole = layer(x)
        with FlopCounterMode(display=False) as counted:
            layer(x)
        layer.base.register_forward_hook(lambda *_: calls.append(1))
        layer(x)
    assert torch.equal(whole, twice) and whole.dtype == twice.dtype and len(calls) == 1
    tokens, rank = x[..., 0].numel(), layer.rank + layer.merged
    assert counted.get_total_flops() == 2 * tokens * (10 * 14 + rank * (10 + 14))


def test_the_penalty_of_o_lora_is_the_squared_overlap_with_the_rows_of_earlier_pieces():
    net, method = build(OLoRA, OLoRAConfig(orth_weight=0.3))
    assert method.penalty() is None
    rows = [{n: a.A[: a.rank].detach().clone() for n, a in method.adapters.items()}]
    begin = method.begin_increment

    def keep(*words):
        rows[-1] = {n: a.A[: a.rank].detach().clone() for n, a in method.adapters.items()}
        done = begin(*words)
        rows.append({n: a.A[: a.rank].detach().clone() for n, a in method.adapters.items()})
        return done

    method.begin_increment = keep
    train(net, method, STEPS, lr=1e-2)
    expected = 0.0
    for name, adapter in method.adapters.items():
        now = adapter.A[: adapter.rank]
        expected += sum(float((earlier[name] @ now.T).pow(2).sum()) for earlier in rows[:-1])
    assert float(method.penalty()) == pytest.approx(0.3 * expected, rel=1e-10)


def test_the_penalty_keeps_pieces_orthogonal():
    def overlap(weight):
        net, method = build(OLoRA, OLoRAConfig(orth_weight=weight), steps=90)
        train(net, method, 90, lr=2e-2)
        return sum(float((a.frozen_A[: a.merged] @ a.A[: a.rank].T).square().sum()) for a in method.adapters.values())

    assert overlap(1.0) < 0.2 * overlap(0.0)


def test_o_lora_refuses_more_directions_than_a_matrix_has():
    with pytest.raises(UserError, match="6 increments of rank 2 do not fit the 10 directions of .*: type budget=r1"):
        build(OLoRA, OLoRAConfig(), increments=6)


# -- class means -----------------------------------------------------------------------------------------------


def features(net, x):
    for layer in net.layers:
        x = layer(x)
    return x.detach()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_class_means_predict_the_nearest_mean_and_training_changes_nothing(metric):
    net, method = Net(), ClassMeans(ClassMeansConfig(metric))
    method.attach(net, [], 20, keep=["head"])
    batches = [dict(zip(("x", "labels"), batch(step, items=30), strict=True)) for step in range(4)]
    method.prepare(batches[:2])
    optimizer = RowwiseAdamW(method.groups(net, 1e-1, 0.1))
    method.begin_increment(1, 9, optimizer, batches[2:])
    train(net, method, 10, lr=1e-1)
    found = torch.cat([features(net, b["x"]) for b in batches]).numpy()
    labels = torch.cat([b["labels"] for b in batches]).numpy()
    means = np.stack([found[labels == c].mean(0) for c in range(3)])
    x, _ = batch(50, items=60)
    seen = features(net, x).numpy()
    if metric == "euclidean":
        expected = np.linalg.norm(seen[:, None] - means, axis=2).argmin(1)
    else:
        unit = means / np.linalg.norm(means, axis=1, keepdims=True)
        expected = (seen / np.linalg.norm(seen, axis=1, keepdims=True) @ unit.T).argmax(1)
    assert net(x).argmax(1).tolist() == expected.tolist()


def test_means_of_earlier_classes_are_not_changed_by_later_ones():
    net, method = Net(), ClassMeans(ClassMeansConfig())
    method.attach(net, [], 20, keep=["head"])
    x, labels = batch(0, items=60)
    method.prepare([{"x": x[labels == 0], "labels": labels[labels == 0]}])
    before = net.head.weight[0].detach().clone()
    method.begin_increment(
        1, 9, RowwiseAdamW(method.groups(net, 1e-2, 0.0)), [{"x": x[labels > 0], "labels": labels[labels > 0]}]
    )
    assert torch.equal(net.head.weight[0], before)
    assert isinstance(net.head, nn.Linear)
