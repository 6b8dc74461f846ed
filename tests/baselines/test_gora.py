"""GoRA: the gradient, the importance, the allocation, and which way the start goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nets import Net, batch, kwargs, train
from torch import nn

from baselines import gora
from baselines.gora import GoRA, GoRAConfig, fit, mean_gradients
from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, UserError
from elalora.attach import find_linears


def batches(n=6):
    net = Net()
    return [kwargs(*batch(step), like=net.head.weight) for step in range(n)]


def attached(budget=None, net=None, **settings):
    net, method = net or Net(), GoRA(GoRAConfig(batches=6, **settings), budget or Budget(3))
    method.attach(net, ["up", "down"], 20, keep=["head"], seed=4)
    return net, method


def prepared(**settings):
    net, method = attached(**settings)
    method.prepare(batches())
    return net, method


def mean_loss(net):
    with torch.no_grad():
        return torch.stack([net(**b).loss for b in batches()]).mean().item()


def true_gradients(net):
    """Autograd's mean gradients, with weights that require them."""
    net.requires_grad_(True)
    torch.stack([net(**b).loss for b in batches()]).mean().backward()
    return {name: linear.weight.grad for name, linear in find_linears(net, ["up", "down"]).items()}


def test_the_gradient_of_frozen_weights_is_that_of_finite_differences():
    net = Net().requires_grad_(False)
    layers = find_linears(net, ["up", "down"])
    gradients = mean_gradients(net, layers, batches())
    for name, (i, j) in (("layers.0.up", (3, 2)), ("layers.1.down", (0, 13)), ("layers.2.up", (7, 9))):
        weight, h = layers[name].weight, 1e-6
        losses = []
        for sign in (1, -1):
            weight[i, j] += sign * h
            losses.append(mean_loss(net))
            weight[i, j] -= sign * h
        assert gradients[name][i, j].item() == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-5, abs=1e-9)
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


def test_gradients_of_a_transformer_with_padding_are_autograds():
    from encoders import TARGETS, bert

    torch.manual_seed(0)
    ids = torch.randint(1, 50, (6, 8))
    mask = (torch.arange(8) < torch.tensor([[3], [8], [5], [8], [2], [7]])).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0, 1, 1, 0])}
    model = bert().double().eval()
    model(**inputs).loss.backward()
    layers = find_linears(model, TARGETS, outside=["bert.pooler", "classifier"])
    expected = {name: layer.weight.grad.clone() for name, layer in layers.items()}
    model.zero_grad()
    model.requires_grad_(False)
    for name, found in mean_gradients(model, layers, [inputs]).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_ranks_follow_from_the_importance_and_have_the_budgets_sum(variant):
    _, method = prepared(variant=variant)
    reference = Net()
    gradients = true_gradients(reference)
    weights = {name: linear.weight.detach() for name, linear in find_linears(reference, ["up", "down"]).items()}
    importance = {name: np.abs(weights[name].numpy() * g.numpy()).mean() for name, g in gradients.items()}
    assert method.start_scores == pytest.approx(importance, rel=1e-10)
    ranks = method.ranks()
    assert sum(ranks.values()) == 3 * len(ranks) and len(set(ranks.values())) > 1
    f = {"paper": np.sqrt, "official": lambda d: d}[variant]
    wishes = np.array([importance[name] / f(sum(weights[name].shape)) for name in ranks])
    free = np.array([1 < rank < 12 for rank in ranks.values()])
    left = 18 - sum(rank for rank, is_free in zip(ranks.values(), free, strict=True) if not is_free)
    quotas = wishes * left / wishes[free].sum()
    assert np.abs(np.array(list(ranks.values())) - quotas)[free].max() < 1


def test_equal_importance_gives_every_matrix_the_same_rank_and_gamma_0_is_rank_stabilised_lora(monkeypatch):
    def even(model, layers, given):
        return {name: 1 / layer.weight.detach() for name, layer in layers.items()}

    monkeypatch.setattr(gora, "mean_gradients", even)
    net, method = prepared(gamma=0.0)
    assert set(method.ranks().values()) == {3}
    plain, lora = Net(), LoRA(LoRAConfig(rslora=True), Budget(3))
    lora.attach(plain, ["up", "down"], 20, keep=["head"], seed=4)
    train(net, method, 20)
    train(plain, lora, 20)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(("variant", "sign"), [("paper", -1), ("official", 1)])
def test_the_update_starts_as_the_least_squares_fit_of_a_step_along_the_gradient(variant, sign):
    _, method = prepared(variant=variant)
    for name, gradient in true_gradients(Net()).items():
        adapter = method.adapters[name]
        a = adapter.A.detach().numpy()
        r, d_in = a.shape
        step = sign * 0.05 * np.sqrt(d_in / r) * gradient.numpy()
        b = np.linalg.lstsq(a.T, step.T, rcond=None)[0].T  # min || b a - step ||
        np.testing.assert_allclose(adapter.delta().numpy(), b @ a, rtol=1e-8, atol=1e-14)


def test_the_papers_start_lowers_the_loss_and_the_official_one_raises_it():
    before = mean_loss(Net())
    for gamma in (1e-3, 1e-2, 5e-2):
        down, up = (mean_loss(prepared(variant=v, gamma=gamma)[0]) for v in ("paper", "official"))
        assert down < before < up, gamma
    assert mean_loss(prepared(variant="official", uphill=False)[0]) < before < mean_loss(prepared(uphill=True)[0])


def test_the_start_has_about_the_length_of_the_step():
    g = torch.Generator().manual_seed(0)
    gradient, a = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((64, 128), (8, 128)))
    start = 0.05 * (128 / 8) ** 0.5 * fit(gradient, a) @ a
    assert start.norm() / (0.05 * gradient.norm()) == pytest.approx(1.0, abs=0.05)
    cosine = nn.functional.cosine_similarity(start.flatten(), gradient.flatten(), dim=0)
    assert cosine == pytest.approx((8 / 128) ** 0.5, abs=0.02)


def test_ranks_stay_within_their_bounds():
    _, method = prepared(r_min=2, r_max=4)
    assert set(method.ranks().values()) <= {2, 3, 4} and sum(method.ranks().values()) == 18
    with pytest.raises(UserError, match=r"leave no ranks with the mean 3 of the budget: type method.r_min=3"):
        attached(r_min=4)
    with pytest.raises(UserError, match=r"r_min=5 is above method.r_max=4"):
        GoRAConfig(r_min=5, r_max=4)


def test_gradients_are_released_and_the_head_starts_without_one():
    net, method = prepared()
    assert not method.gradients and net.head.weight.grad is None
