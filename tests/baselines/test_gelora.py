"""GeLoRA: TwoNN on known manifolds, the rule from dimensions to ranks, and the hidden states it reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from nets import Net, batch, kwargs
from torch import nn

from baselines.gelora import GeLoRA, GeLoRAConfig, hidden_states, own_rank, two_nn
from elalora import Budget, UserError
from elalora.names import layer_of

# mean of five seeds on cubes, measured apart from this code: n -> {dimension: estimate of "mle"}
BIAS = {2_000: {1: 1.00, 2: 1.99, 5: 4.61, 10: 8.58, 20: 15.3}, 200: {1: 1.04, 2: 1.82, 5: 4.51, 10: 8.00, 20: 13.6}}


def cube(n, d, seed, width=64):
    """Points of [0, 1]^d in a random d-dimensional subspace of R^64."""
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.normal(size=(width, d)))[0]
    return torch.from_numpy(rng.random((n, d)) @ frame.T)


def brute_force(points, estimator):
    """TwoNN by all pairs in numpy."""
    x = points.numpy()
    d = np.sort(np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)), axis=1)
    mu = np.sort(d[:, 2] / d[:, 1])
    n = len(mu)
    if estimator == "mle":
        return (n - 1) / np.log(mu).sum()
    keep = int(0.9 * n)
    return np.linalg.lstsq(np.log(mu[:keep, None]), -np.log(1 - np.arange(1, keep + 1) / n), rcond=None)[0][0]


@pytest.mark.parametrize(("n", "seeds"), [(200, 5), (2_000, 2)])
def test_dimensions_of_cubes_lie_in_the_known_bands(n, seeds):
    for d, expected in BIAS[n].items():
        mle = np.mean([two_nn(cube(n, d, seed), "mle") for seed in range(seeds)])
        assert mle == pytest.approx(expected, rel=0.12 if n == 200 else 0.06), d
        fit = np.mean([two_nn(cube(n, d, seed), "fit") for seed in range(seeds)])
        assert abs(fit - mle) < (0.4 if n > 200 else 1.5), d


@pytest.mark.parametrize("estimator", ["fit", "mle"])
def test_it_equals_a_brute_force_computation(estimator):
    for seed in range(3):
        points = cube(150, 4, seed)
        assert two_nn(points, estimator) == pytest.approx(brute_force(points, estimator), rel=1e-10)


def test_it_agrees_with_scikit_dimension():
    skdim = pytest.importorskip("skdim", reason="scikit-dimension is not installed")
    for d in (1, 3, 8):
        points = cube(300, d, d)
        assert two_nn(points) == pytest.approx(skdim.id.TwoNN().fit_transform(points.numpy()), rel=0.03)


@pytest.mark.parametrize("estimator", ["fit", "mle"])
def test_rotation_scale_and_translation_change_nothing(estimator):
    points = cube(200, 3, 0)
    turn = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    for moved in (points @ turn, points * 1e4, points + 3.0, points[torch.randperm(200)]):
        assert two_nn(moved, estimator) == pytest.approx(two_nn(points, estimator), rel=1e-8)


def test_of_points_that_coincide_one_counts():
    points = cube(200, 3, 0)
    twice = torch.cat([points, points[:50], points[:10] + 1e-9])  # the last differ by rounding only
    assert two_nn(twice) == pytest.approx(two_nn(points), rel=1e-12)
    with pytest.raises(UserError, match="of 1 distinct points cannot be estimated"):
        two_nn(torch.ones(50, 3))


def test_ranks_follow_the_growth_of_the_dimension():
    dimensions = (3, 5, 4, 9)
    assert [own_rank(b - a) for a, b in zip(dimensions, dimensions[1:], strict=False)] == [3, 1, 6]
    assert own_rank(0.2) == 2 and own_rank(-7.5) == 1
    assert layer_of("bert.encoder.layer.3.attention.self.query") == "bert.encoder.layer.3"
    assert layer_of("up") == "up"


def attached(**settings):
    net, method = Net(), GeLoRA(GeLoRAConfig(**settings), Budget(3))
    method.attach(net, ["up", "down"], 40, keep=["head"])
    return net, method


def batches(n=40):
    net = Net()
    return [kwargs(*batch(step), like=net.head.weight) for step in range(n)]


def test_own_ranks_are_the_formula_on_the_states_of_the_network():
    net, method = attached(ranks="own")
    method.prepare(batches())
    state, expected = torch.cat([b["x"] for b in batches()]), []
    for layer in Net().layers:
        after = layer(state).detach()
        growth = brute_force(after, "fit") - brute_force(state, "fit")
        expected += [max(math.ceil(growth), 0) + 1] * 2
        state = after
    assert list(method.ranks().values()) == expected and method.points == 640
    assert ("off budget" in method.remarks()) == (abs(sum(expected) / 18 - 1) > 0.1)
    method.check_budget()


def test_matched_ranks_have_the_budgets_sum_and_the_order_of_the_growth():
    _, method = attached()
    method.prepare(batches())
    ranks = method.ranks()
    assert sum(ranks.values()) == 3 * len(ranks) and method.remarks() == ["ranks from 640 sequences"]
    scores = method.start_scores
    for one in ranks:
        assert all(ranks[one] >= ranks[two] - 1 for two in ranks if scores[one] >= scores[two])
    assert {a.scale for a in method.adapters.values()} == {16.0 / 3}


def test_no_more_sequences_are_read_than_asked_for():
    _, method = attached(samples=100)
    read = []
    method.prepare(read.append(1) or b for b in batches())
    assert len(read) == 7 and method.points == 100


class Tokens(nn.Module):
    """Two blocks on (batch, tokens, width), the second called with a keyword."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Step(), Step()])

    def forward(self, x, attention_mask):
        return self.blocks[1](hidden_states=self.blocks[0](x)[0])


class Step(nn.Module):
    def forward(self, hidden_states):
        return (hidden_states + 1.0, None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_enters_no_vector(side):
    x = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]] if side == "right" else [[0, 1, 1], [1, 1, 1]])
    inputs = [{"x": x, "attention_mask": mask}]
    rows = x[0, :2] if side == "right" else x[0, 1:]
    for pooling in ("mean", "first"):
        expected = torch.stack([rows.mean(0), x[1].mean(0)] if pooling == "mean" else [rows[0], x[1, 0]])
        states = hidden_states(Tokens(), ["blocks.0", "blocks.1"], inputs, GeLoRAConfig(pooling=pooling))
        for block in (0, 1):
            before, after = states[f"blocks.{block}"]
            torch.testing.assert_close(before, expected + block)
            torch.testing.assert_close(after, expected + block + 1)
