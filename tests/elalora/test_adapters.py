"""The written-out backward pass of an adapted layer against autograd's own, and when it steps aside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from elalora.adapters import LowRankLinear, LowRankProduct
from elalora.directions import Directions

SIZES = {"d_in": 7, "d_out": 9, "tokens": 11}


def parts(r: int, capacity: int, singular: bool, bias: bool, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(3)

    def drawn(*size: int):
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    x, weight = drawn(SIZES["tokens"], SIZES["d_in"]), drawn(SIZES["d_out"], SIZES["d_in"])
    a, b, e = drawn(capacity, SIZES["d_in"]), drawn(capacity, SIZES["d_out"]), drawn(capacity)
    for tensor in (a, b, e):
        tensor[r:] = 0
    return x, weight, drawn(SIZES["d_out"]) if bias else None, a, b, e if singular else None


def formula(x, weight, bias, a, b, e, r, scale):
    """Straight from y = W0 x + b0 + scale B diag(E) A x, by autograd."""
    middle = x @ a[:r].T
    return x @ weight.T + (0 if bias is None else bias) + scale * (middle if e is None else middle * e[:r]) @ b[:r]


@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("r", "capacity"), [(3, 3), (2, 5), (0, 4)])
def test_values_and_gradients_are_those_of_the_formula(singular, bias, r, capacity):
    x, weight, shift, a, b, e = parts(r, capacity, singular, bias)
    leaves = [t for t in (x, a, b, e) if t is not None]
    found, expected = [], []
    for function, into in ((LowRankProduct.apply, found), (formula, expected)):
        for leaf in leaves:
            leaf.requires_grad_(True).grad = None
        out = function(x, weight, shift, a, b, e, r, 0.7)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        into += [out.detach(), *(leaf.grad for leaf in leaves)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_are_finite_differences():
    x, weight, bias, a, b, e = parts(2, 4, True, True)
    inputs = [t.requires_grad_(True) for t in (x, a, b, e)]
    assert torch.autograd.gradcheck(
        lambda x, a, b, e: LowRankProduct.apply(x, weight, bias, a, b, e, 2, 1.3), inputs, eps=1e-6, atol=1e-7
    )


def test_nothing_is_computed_for_an_input_or_factor_that_does_not_train():
    x, weight, bias, a, b, e = parts(2, 2, True, True)
    b.requires_grad_(True)
    LowRankProduct.apply(x, weight, bias, a, b, e, 2, 1.0).sum().backward()
    assert b.grad is not None and x.grad is None and a.grad is None and e.grad is None


def layer(dropout: float = 0.0) -> LowRankLinear:
    torch.manual_seed(0)
    base = nn.Linear(SIZES["d_in"], SIZES["d_out"]).requires_grad_(False)
    adapter = LowRankLinear(base, Directions(4, 2), 0.5, True, dropout)
    with torch.no_grad():
        for factor in adapter.factors():
            factor[:2].normal_()
    return adapter


def counting(monkeypatch):
    calls = []
    apply = LowRankProduct.apply
    monkeypatch.setattr(LowRankProduct, "apply", lambda *given: calls.append(1) or apply(*given))
    return calls


def test_a_frozen_layer_that_somebody_hooks_trains_or_replaces_is_called_itself(monkeypatch):
    calls = counting(monkeypatch)
    x = torch.randn(3, SIZES["d_in"])
    plain = layer()
    expected = plain(x)
    assert len(calls) == 1
    hooked, training, other = copy.deepcopy(plain), copy.deepcopy(plain), copy.deepcopy(plain)
    seen = []
    hooked.base.register_forward_pre_hook(lambda module, given: seen.append(given))
    training.base.weight.requires_grad_(True)

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    other.base.__class__ = Doubled
    torch.testing.assert_close(hooked(x), expected)
    torch.testing.assert_close(training(x), expected)
    torch.testing.assert_close(other(x), expected + F.linear(x, plain.base.weight, plain.base.bias))
    training(x).sum().backward()
    assert seen and training.base.weight.grad is not None and len(calls) == 1


def test_dropout_acts_on_the_update_only(monkeypatch):
    calls = counting(monkeypatch)
    adapter, x = layer(dropout=0.5), torch.randn(50, SIZES["d_in"])
    torch.manual_seed(5)
    found = adapter(x)
    torch.manual_seed(5)
    expected = F.linear(x, adapter.base.weight, adapter.base.bias) + F.dropout(x, 0.5) @ adapter.delta().T
    torch.testing.assert_close(found, expected)
    assert not calls and not torch.equal(found, adapter.eval()(x)) and len(calls) == 1


def test_bf16_autocast_rounds_as_the_layers_own_products_do():
    adapter = layer()
    generic = copy.deepcopy(adapter)
    generic.base.register_forward_pre_hook(lambda module, given: None)  # takes the other path
    x = torch.randn(64, SIZES["d_in"])
    results = []
    for one in (adapter, generic):
        leaf = x.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            out = one(leaf)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        results.append([out.float(), leaf.grad, *(f.grad for f in one.factors())])
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=3e-2, atol=3e-2 * theirs.abs().max().item())


def saved_bytes(module, x) -> int:
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}
    alive = []

    def pack(tensor):
        alive.append(tensor)
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    return sum(kept.values())


def test_only_the_input_and_the_small_product_are_kept_for_backward():
    adapter, x = layer(), torch.randn(SIZES["tokens"], SIZES["d_in"], requires_grad=True)
    assert saved_bytes(adapter, x) == 4 * SIZES["tokens"] * (SIZES["d_in"] + adapter.rank)
    with torch.autocast("cpu", torch.bfloat16):  # no cast copy of the frozen weight
        assert saved_bytes(adapter, x) == 2 * SIZES["tokens"] * (SIZES["d_in"] + adapter.rank)


@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # the fused product, and the one that autograd differentiates
def test_beside_bfloat16_weights_the_update_and_its_gradients_are_computed_in_float32(dropout):
    g = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(24, 16).requires_grad_(False).bfloat16()
    adapter = LowRankLinear(base, Directions(6, 4), 0.5, True, dropout).train()
    for parameter in adapter.factors():
        parameter.data[:4] = torch.randn(parameter[:4].shape, generator=g)
    x = torch.randn(5, 24, generator=g).bfloat16().requires_grad_()
    weights = torch.randn(5, 16, generator=g).bfloat16()
    out = adapter(x)
    out.backward(weights)
    a, b, e = (p.detach()[:4].double().requires_grad_() for p in adapter.factors())
    wide = x.detach().double().requires_grad_()
    update = (wide @ a.T * e * 0.5) @ b
    update.backward(weights.double())
    assert out.dtype == torch.bfloat16
    for parameter, expected in zip(adapter.factors(), (a, b, e), strict=True):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad[:4].double(), expected.grad, rtol=1e-5, atol=1e-5)
    frozen = torch.nn.functional.linear(x.detach(), base.weight, base.bias)
    torch.testing.assert_close(out.detach(), frozen + update.detach().bfloat16(), rtol=0, atol=0)
