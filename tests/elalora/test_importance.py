"""Importance, regulariser and input norms against the formulas."""

from __future__ import annotations

import pytest
import torch
from nets import Net, batch
from torch import nn
from torch.utils.checkpoint import checkpoint

from baselines.svd_lora import SVDLoRA, SVDLoRAConfig
from elalora import Budget
from elalora.adapters import InputNorm
from elalora.importance import Importance
from elalora.regulariser import orthogonality


def adapted(rank=3):
    net = Net()
    method = SVDLoRA(SVDLoRAConfig(orth_weight=0.0), Budget(rank))
    method.attach(net, ["up", "down"], 10, keep=["head"])
    for adapter in method.adapters.values():
        adapter.E.data.normal_(generator=torch.Generator().manual_seed(1))
    return net, method


def backward(net, step):
    x, y = batch(step)
    net.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()


@pytest.mark.parametrize("form", ["sensitivity_uncertainty", "sensitivity", "magnitude"])
def test_scores_equal_the_formula(form):
    net, method = adapted()
    importance = Importance(method.adapters, 0.8, 0.6, form)
    bar, unc = {}, {}
    for step in range(5):
        backward(net, step)
        importance.update()
        for name, a in method.adapters.items():
            for key, p in zip("ABE", (a.A, a.B, a.E), strict=True):
                now = (p.detach() * p.grad).abs()
                bar[name, key] = 0.8 * bar.get((name, key), 0) + 0.2 * now
                unc[name, key] = 0.6 * unc.get((name, key), 0) + 0.4 * (now - bar[name, key]).abs()
    for name, values in importance.scores().items():
        a = method.adapters[name]
        for i, value in enumerate(values):
            expected = 0.0
            for key, p in zip("ABE", (a.A, a.B, a.E), strict=True):
                element = {
                    "sensitivity_uncertainty": bar[name, key] * unc[name, key],
                    "sensitivity": bar[name, key],
                    "magnitude": p.detach().abs(),
                }[form]
                expected += float(element[i].mean())
            assert value == pytest.approx(expected, rel=1e-12)


def test_random_scores_come_from_the_generator_alone():
    _, method = adapted()
    importance = Importance(method.adapters, form="random")
    first = importance.scores(torch.Generator().manual_seed(1))
    assert first == importance.scores(torch.Generator().manual_seed(1))
    assert first != importance.scores(torch.Generator().manual_seed(2))


def test_a_newborn_starts_without_importance_and_survivors_keep_theirs():
    net, method = adapted()
    importance = Importance(method.adapters)
    backward(net, 0)
    importance.update()
    name, adapter = next(iter(method.adapters.items()))
    before = importance.scores()[name]
    adapter.directions.die(0)
    assert importance.scores()[name] == [before[2], before[1]]
    adapter.directions.be_born()
    assert importance.scores()[name] == [before[2], before[1], 0.0]


@pytest.mark.parametrize("form", ["norm", "squared"])
def test_the_regulariser_and_its_gradient_equal_the_formula_with_ragged_ranks(form):
    net, method = adapted()
    adapters = list(method.adapters.values())
    adapters[0].directions.die(1)
    adapters[3].directions.die(0)
    adapters[3].directions.die(0)
    value = orthogonality(adapters, form)
    value.backward()
    grads = [a.A.grad.clone() for a in adapters]
    net.zero_grad()
    total = 0.0
    for a in adapters:
        for factor in (a.A[: a.rank], a.B[: a.rank]):
            gap = factor @ factor.T - torch.eye(a.rank, dtype=factor.dtype)
            total = total + ((gap**2).sum().sqrt() / (2 * len(adapters)) if form == "norm" else (gap**2).sum())
    total.backward()
    torch.testing.assert_close(value, total, rtol=1e-12, atol=0)
    for a, grad in zip(adapters, grads, strict=True):
        torch.testing.assert_close(grad, a.A.grad, rtol=1e-10, atol=1e-14)


def test_orthonormal_rows_have_no_penalty_and_a_finite_gradient():
    _, method = adapted()
    for a in method.adapters.values():
        for factor in (a.A, a.B):
            factor.data.copy_(torch.linalg.qr(factor.data.T).Q.T)
    value = orthogonality(method.adapters.values())
    value.backward()
    assert value < 1e-12
    assert all(torch.isfinite(a.A.grad).all() for a in method.adapters.values())


def test_input_norms_leave_out_padding_and_are_not_counted_twice_under_checkpointing():
    layer = adapted()[1].adapters["layers.0.up"]
    layer.inputs = InputNorm(10, layer.A)
    x = torch.randn(4, 6, 10, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(4, 6)
    mask[:, 4:] = 0
    layer.inputs.watch(mask)
    out = checkpoint(layer, x, use_reentrant=False)
    layer.inputs.unwatch()
    out.sum().backward()  # runs the layer a second time
    torch.testing.assert_close(layer.inputs.take(), x.detach()[:, :4].reshape(-1, 10).norm(dim=0))
    assert not layer.inputs.take().any()


def test_relative_positions_are_no_tokens_also_where_the_batch_is_one_item():
    layer = adapted()[1].adapters["layers.0.up"]
    for items in (1, 2):
        layer.inputs = InputNorm(10, layer.A)
        x = torch.randn(items, 6, 10, dtype=torch.float64)
        mask = torch.ones(items, 6)
        mask[0, 4:] = 0
        layer.inputs.watch(mask)
        layer(x.reshape(-1, 10))  # a model that flattens its tokens
        layer(torch.randn(1, 512, 10, dtype=torch.float64))  # DeBERTa's relative positions
        layer(x)
        kept = x[mask.bool()].norm(dim=0)
        torch.testing.assert_close(layer.inputs.take(), kept * 2**0.5)
