"""RAC-LoRA and Chain of LoRA: stock PEFT with a frozen factor, closed forms of an exact block, and convergence."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn

from baselines.lora import LoRA, LoRAConfig
from baselines.rac_lora import ChainOfLoRA, ChainOfLoRAConfig, RACLoRA, RACLoRAConfig, draw_sketch
from elalora import Budget, UserError
from elalora.resolve import RunSize, canonical

STEPS = 40


def rac(net=None, rank=3, steps=STEPS, seed=0, **knobs):
    net = net or Net()
    method = RACLoRA(RACLoRAConfig(**{"blocks": 3, **knobs}), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return net, method


def projector(rows):
    """H = A^T (A A^T)^-1 A of A (r, d)."""
    return rows.T @ torch.linalg.solve(rows @ rows.T, rows)


# -- one block is Asymmetric LoRA ------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "frozen"), [("right", "lora_A"), ("left", "lora_B")])
def test_one_block_is_stock_peft_with_one_factor_frozen(side, frozen):
    from peft import LoraConfig, get_peft_model

    net = Net()
    config = LoraConfig(r=3, lora_alpha=16, target_modules=["up", "down"], modules_to_save=["head"])
    theirs = get_peft_model(copy.deepcopy(net), config).double()
    net, method = rac(net, blocks=1, side=side)
    assert method.label == "Asymmetric LoRA"
    for name, adapter in method.adapters.items():
        layer = theirs.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.data.copy_(adapter.A.data)
        layer.lora_B["default"].weight.data.copy_(adapter.B.data.T)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and frozen not in name)
    train(net, method, STEPS, lr=1e-2, warmup=5, clip=1.0, weight_decay=0.01)
    decay = [p for p in theirs.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in theirs.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 5 if t < 5 else (STEPS - t) / (STEPS - 5))
    for step in range(STEPS):
        x, y = batch(step)
        nn.functional.cross_entropy(theirs(x), y).backward()
        nn.utils.clip_grad_norm_(decay + plain, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, adapter in method.adapters.items():
        layer = theirs.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(adapter.delta(), layer.get_delta_weight("default"), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(adapter.A, layer.lora_A["default"].weight, rtol=1e-9, atol=1e-11)
    x, _ = batch(99)
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("side", ["right", "left", "bernoulli"])
def test_the_sketch_keeps_every_bit_within_a_block_is_drawn_again_in_the_next_and_holds_no_moments(side):
    net, method = rac(side=side, blocks=5)
    name, adapter = next(iter(method.adapters.items()))
    sketches = []

    def look(step):
        kept = adapter.A if method.fixed() == "A" else adapter.B
        sketches.append((method.piece, method.fixed(), kept.detach().clone()))

    optimizer, _ = train(net, method, STEPS, each=look, weight_decay=0.1)
    for (piece, _, before), (now, _, after) in zip(sketches, sketches[1:], strict=False):
        assert (
            torch.equal(before, after) if piece == now else before.shape != after.shape or not (before == after).any()
        )
    sides = {fixed for _, fixed, _ in sketches}
    assert sides == {"right": {"A"}, "left": {"B"}, "bernoulli": {"A", "B"}}[side]
    if side == "right":
        assert adapter.A not in optimizer.state and adapter.A.grad is None
        assert method.further_counts()["trained"].params == 3 * sum(out for out, _ in method.shapes().values()), name


# -- an exact block --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "shape"), [("right", (6, 5)), ("left", (6, 5)), ("right", (4, 9))])
def test_an_exact_block_moves_the_weights_by_the_projected_gradient(side, shape):
    """min over B of 1/2 ||W + B A - M||^2 leaves (W - M)(I - H); side=left leaves (I - H)(W - M)."""
    g = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False)).double()
    target = torch.randn(*shape, generator=g, dtype=torch.float64)
    before = model[0].weight.detach() - target
    method = RACLoRA(RACLoRAConfig(blocks=1, alpha=2.0, side=side, orthonormal=True), Budget(2))
    method.attach(model, ["0"], 1)
    adapter = method.adapters["0"]
    solver = torch.optim.SGD([adapter.B if side == "right" else adapter.A], lr=1.0)  # 1 / scale^2, scale = alpha / r
    residual = model(torch.eye(shape[1], dtype=torch.float64)).T - target
    (residual.square().sum() / 2).backward()
    solver.step()
    h = projector((adapter.A if side == "right" else adapter.B).detach())
    after = before + adapter.delta()
    expected = before - before @ h if side == "right" else before - h @ before
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-13)
    assert h.trace().item() == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("orthonormal", [False, True])
def test_the_projector_of_the_sketch_is_r_over_n_times_the_identity_on_average(orthonormal):
    n, rank, draws = 6, 2, 10_000
    generator = torch.Generator().manual_seed(3)
    sketches = torch.zeros(draws, rank, n, dtype=torch.float64)
    for sketch in sketches:
        draw_sketch(sketch, rank, orthonormal, generator)
    hs = sketches.mT @ torch.linalg.solve(sketches @ sketches.mT, sketches)
    error = (hs.mean(0) - rank / n * torch.eye(n)) / (hs.std(0) / math.sqrt(draws))
    assert error.abs().max() < 4  # of 21 numbers
    norms = sketches.square().sum(-1)
    if orthonormal:
        gram = sketches @ sketches.mT
        torch.testing.assert_close(gram, torch.eye(rank).expand_as(gram).double(), rtol=0, atol=1e-12)
    else:
        assert norms.mean().item() == pytest.approx(1, abs=0.02) and norms.std() > 0.3


# -- where they converge ---------------------------------------------------------------------------------------


def quadratic(make, steps, seed):
    """1/2 sum M (W W) after gradient descent of step 1 / L on a 3 x 3 weight, M being 10 once and 1 elsewhere.

    It starts from W ~ N(0, 1), and adapts by rank 1.
    """
    model = nn.Sequential(nn.Linear(3, 3, bias=False)).double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model[0].weight.data.normal_()
    weights = torch.ones(3, 3).double()
    weights[0, 0] = 10.0
    method = make()
    method.attach(model, ["0"], steps, seed=seed)
    solver = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        loss = (weights * model(torch.eye(3).double()).T.square()).sum() / 2
        if not loss.isfinite() or loss > 1e8:
            return math.inf
        loss.backward()
        solver.step()
        method.after_step(step, None, None)
        solver.zero_grad()
    return loss.item()


def test_rac_lora_converges_where_lora_and_asymmetric_lora_stall_or_diverge():
    steps, seeds = 300, range(3)

    def worst_and_best(make):
        losses = [quadratic(make, steps, seed) for seed in seeds]
        return max(losses), min(losses)

    def of(blocks):
        return RACLoRA(RACLoRAConfig(alpha=1, blocks=blocks, orthonormal=True), Budget(1))

    assert worst_and_best(lambda: of(steps))[0] < 1e-5
    assert worst_and_best(lambda: of(1))[1] > 0.01
    assert worst_and_best(lambda: LoRA(LoRAConfig(alpha=1), Budget(1)))[1] > 0.01


# -- settings --------------------------------------------------------------------------------------------------


def test_chain_of_lora_trains_both_factors_of_every_block():
    net = Net()
    method = ChainOfLoRA(ChainOfLoRAConfig(blocks=2), Budget(3))
    method.attach(net, ["up", "down"], STEPS, keep=["head"])
    cost = sum(sum(shape) for shape in method.shapes().values())
    before = {name: (a.A.detach().clone(), a.B.detach().clone()) for name, a in method.adapters.items()}
    train(net, method, 10)
    assert method.further_counts()["trained"].params == 3 * cost
    for name, adapter in method.adapters.items():
        assert not (adapter.A == before[name][0]).any() and not (adapter.B == before[name][1]).any()


def test_a_bernoulli_side_that_is_certain_is_that_side():
    size = RunSize(100, 3, 18)
    assert canonical(RACLoRAConfig(side="bernoulli", p=1.0), size) == RACLoRAConfig()
    assert canonical(RACLoRAConfig(side="bernoulli", p=0.0), size) == RACLoRAConfig(side="left")
    assert canonical(RACLoRAConfig(side="left", p=0.9, blocks=1, rewarm=True), size).p == 0.5
    _, method = rac(side="bernoulli", blocks=30, p=0.8, steps=60)
    assert 15 < method.sides.count("right") < 30


@pytest.mark.parametrize("knobs", [{"side": "bernoulli", "orthonormal": True}, {"rewarm": True}, {"side": "left"}])
@pytest.mark.parametrize("stop", [9, 27])
def test_a_run_resumes_bit_for_bit(knobs, stop):
    check_resumes(lambda net: rac(net, blocks=4, **knobs)[1], STEPS, stop)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"side": "up"}, "method.side=up is unknown; allowed: right, left, bernoulli"),
        ({"p": 1.5}, "method.p=1.5 must lie in"),
        ({"blocks": 0}, "method.blocks=0 must be above 0"),
        ({"matched": "peak"}, "method.matched=peak is unknown; allowed: trained, final"),
    ],
)
def test_impossible_settings_are_refused(knobs, said):
    with pytest.raises(UserError, match=said):
        RACLoRAConfig(**knobs)
