"""SD-LoRA: a LoRA of a normalised direction written out, magnitudes, frozen directions, and what official adds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from nets import Net, batch, begin_due, train
from resuming import check_resumes
from torch import nn

from baselines.sd_lora import SDLoRA, SDLoRAConfig, fit
from elalora import Budget, RowwiseAdamW
from elalora.export import export_peft
from elalora.resolve import RunSize, canonical

STEPS = 45


def sd(net=None, rank=2, increments=3, steps=STEPS, seed=0, **knobs):
    net = net or Net()
    method = SDLoRA(SDLoRAConfig(**knobs), Budget(rank))
    method.increments = increments
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return net, method


class Reference(nn.Module):
    """h = (W0 + sum of a_k B_k A_k / (|B_k| |A_k|)) x of one layer, straight from the paper."""

    def __init__(self, base, a):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(a.detach().clone())
        self.b = nn.Parameter(a.new_zeros(base.out_features, len(a)))

    def forward(self, x):
        norms = torch.linalg.matrix_norm(self.a) * torch.linalg.matrix_norm(self.b)
        update = self.b @ self.a if not self.b.any() else self.b @ self.a / norms
        return self.base(x) + x @ update.T


def test_one_task_with_a_fixed_magnitude_is_a_lora_with_a_normalised_direction():
    """Trained by torch's own AdamW with the gradient of autograd, in float64."""
    net, method = sd(increments=1)
    theirs = copy.deepcopy(Net())
    for parameter in theirs.parameters():
        parameter.requires_grad_(False)
    theirs.head.requires_grad_(True)
    for name, adapter in method.adapters.items():
        block, layer = name.rsplit(".", 1)
        parent = theirs.get_submodule(block)
        setattr(parent, layer, Reference(getattr(parent, layer), adapter.A[: adapter.rank]))
    method.magnitudes.requires_grad_(False)
    train(net, method, STEPS, lr=1e-2)
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (STEPS - step) / STEPS
        x, y = batch(step)
        nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, _ = batch(99)
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-9, atol=1e-10)
    for name, adapter in method.adapters.items():
        other = theirs.get_submodule(name)
        torch.testing.assert_close(adapter.A, other.a, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(adapter.B, other.b.T, rtol=1e-9, atol=1e-11)


def test_the_gradient_of_a_magnitude_is_the_inner_product_of_gradient_and_direction_over_all_matrices():
    net, method = sd()
    train(net, method, 40, lr=1e-2)
    x, y = batch(7)
    deltas = {}
    for name, adapter in method.adapters.items():  # the same function with dense updates, whose gradient is dL/dW
        deltas[name] = adapter.delta().requires_grad_(True)
    plain = Net()
    plain.head.load_state_dict(net.head.state_dict())
    weights = {f"{n}.weight": plain.get_submodule(n).weight.detach() + d for n, d in deltas.items()}
    loss = nn.functional.cross_entropy(torch.func.functional_call(plain, weights, (x,)), y)
    grads = dict(zip(deltas, torch.autograd.grad(loss, list(deltas.values())), strict=True))
    expected = torch.zeros(3, dtype=torch.float64)
    for name, adapter in method.adapters.items():
        starts = np.cumsum([0, *method.sizes])
        pairs = [(adapter.frozen_A[a:b], adapter.frozen_B[a:b]) for a, b in zip(starts, starts[1:], strict=False)] + [
            adapter.direction()
        ]
        for k, (a, b) in enumerate(pairs):
            direction = b.T @ a
            direction = direction / torch.linalg.matrix_norm(b) / torch.linalg.matrix_norm(a) if k < 2 else direction
            expected[k] += (grads[name] * direction).sum()
        a, b = pairs[2]  # |A| |B| of the direction that trains is 1, in two factors
        assert a.norm() * b.norm() == pytest.approx(1.0)
    ours = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), method.magnitudes)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_earlier_directions_keep_every_bit_and_have_norm_1(variant):
    net, method = sd(variant=variant)
    frozen = []

    def look(step):
        if step in (20, 44):
            frozen.append({n: (a.frozen_A[:2].clone(), a.frozen_B[:2].clone()) for n, a in method.adapters.items()})

    train(net, method, STEPS, lr=1e-2, each=look)
    for name, (a, b) in frozen[0].items():
        assert torch.equal(a, frozen[1][name][0]) and torch.equal(b, frozen[1][name][1])
        assert float(a.norm()) == pytest.approx(1.0) and float(b.norm()) == pytest.approx(1.0)
    assert method.sizes == [2, 2] and set(method.ranks().values()) == {6}


def function_around_a_switch(**knobs):
    net, method = sd(**knobs)
    x, _ = batch(3)
    outputs = []
    begin = method.begin_increment

    def look(*words):
        outputs.append(net(x).detach())
        done = begin(*words)
        outputs.append(net(x).detach())
        return done

    method.begin_increment = look
    train(net, method, STEPS, lr=1e-2)
    return net, method, outputs


def test_paper_the_function_does_not_change_where_a_task_begins_and_magnitudes_train_on():
    _, method, (a, b, c, d) = function_around_a_switch()
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(c, d, rtol=1e-12, atol=1e-12)
    assert len(set(method.magnitudes.tolist())) == 3 and 1.0 not in method.magnitudes.tolist()


def test_official_the_function_jumps_where_a_task_begins():
    _, _, (a, b, *_) = function_around_a_switch(variant="official")
    assert not torch.allclose(a, b, rtol=1e-3)


def test_L_D1_drops_the_magnitudes_and_the_paper_keeps_them():
    for dropped in (True, False):
        net, method = sd(L_D1=dropped, start=0.7)
        kept = []
        begin = method.begin_increment

        def look(*words, method=method, begin=begin, kept=kept):
            before = method.magnitudes.detach().clone()
            done = begin(*words)
            kept.append((before, method.magnitudes.detach().clone()))
            return done

        method.begin_increment = look
        train(net, method, STEPS, lr=1e-2)
        for task, (before, after) in enumerate(kept, start=1):
            assert after[task:].tolist() == [pytest.approx(0.7)] * (3 - task)
            assert torch.equal(before[:task], after[:task]) != dropped


def test_without_rescaling_the_magnitudes_of_earlier_directions_keep_every_bit():
    net, method = sd(rescale=False)
    seen = []
    train(net, method, STEPS, lr=1e-2, each=lambda step: seen.append(method.magnitudes.detach().clone()))
    assert torch.equal(seen[15][:1], seen[-1][:1]) and torch.equal(seen[30][:2], seen[-1][:2])
    assert not torch.equal(seen[0][:1], seen[14][:1]) and not torch.equal(seen[31][2:], seen[-1][2:])


def test_sgd_steps_are_those_of_torch_with_momentum():
    net, method = sd(increments=1, sgd=True)
    twin, other = sd(increments=1)
    reference = torch.optim.SGD(other.trained_parameters, lr=0.05, momentum=0.9)
    train(net, method, 20, lr=0.05)
    for step in range(20):
        for group in reference.param_groups:
            group["lr"] = 0.05 * (STEPS - step) / STEPS
        x, y = batch(step)
        nn.functional.cross_entropy(twin(x), y).backward()
        reference.step()
        reference.zero_grad()
    for ours, theirs in zip(method.trained_parameters, other.trained_parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_rr_lowers_the_rank_of_later_tasks_as_10_8_and_6():
    _, method = sd(rank=10, increments=10, steps=100, reduce="rr")
    assert [method.rank_of(task) for task in range(10)] == [10] * 4 + [8] * 4 + [6] * 2
    net, method = sd(net=Net(width=40, inner=40), rank=10, increments=3, steps=30, reduce="rr", mu=1, nu=2)
    optimizer = RowwiseAdamW(method.groups(net, 1e-2, 0.0), method.directions())
    for number in (1, 2):
        method.begin_increment(number, 10 * number - 1, optimizer, [])
    assert method.sizes == [10, 8] and set(method.ranks().values()) == {24}


def dense(a, b):
    return (b.T @ a).double().numpy().ravel()


def test_the_fit_of_a_new_direction_is_numpys_least_squares_on_the_dense_directions():
    net, method = sd(increments=4, steps=60)
    train(net, method, 60, lr=1e-2)
    adapters = list(method.adapters.values())
    starts = np.cumsum([0, *method.sizes])
    old = [
        np.concatenate([dense(a.frozen_A[i:j], a.frozen_B[i:j]) for a in adapters])
        for i, j in zip(starts, starts[1:], strict=False)
    ]
    new = np.concatenate([dense(*a.direction()) for a in adapters])
    expected, left, _, _ = np.linalg.lstsq(np.stack(old, 1), new, rcond=None)
    coefficients, residual = fit(adapters)
    np.testing.assert_allclose(coefficients, expected, rtol=1e-8)
    assert residual == pytest.approx(float(left[0]) / len(adapters), rel=1e-8)


def test_kd_drops_a_direction_that_old_ones_explain_and_the_function_stays():
    net, method = sd(reduce="kd", increments=3)
    train(net, method, 25, lr=1e-2)  # in the second task, with one direction frozen
    for adapter in method.adapters.values():  # the new direction becomes 0.5 times the old one
        adapter.A.data[:2] = adapter.frozen_A[:2]
        adapter.B.data[:2] = 0.5 * adapter.frozen_B[:2]
    x, _ = batch(5)
    before, magnitudes = net(x).detach(), method.magnitudes.detach().clone()
    optimizer = RowwiseAdamW(method.groups(net, 1e-2, 0.0), method.directions())
    begin_due(method, 29, optimizer)
    assert method.sizes == [2] and set(method.ranks().values()) == {4}
    assert method.magnitudes.tolist()[0] == pytest.approx(magnitudes[:2].sum().item())
    torch.testing.assert_close(net(x), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "knobs", [{}, {"variant": "official"}, {"reduce": "rr", "mu": 1}, {"reduce": "kd", "tau": 0.9}]
)
def test_a_run_resumes_in_the_middle_of_a_task_bit_for_bit(knobs):
    def make(net):
        return sd(net, **knobs)[1]

    check_resumes(make, STEPS, 22)


def test_stock_peft_computes_the_same_with_more_directions_than_a_matrix_has(tmp_path):
    from peft import PeftModel

    net, method = sd(rank=5, increments=4)
    train(net, method, STEPS, lr=1e-2)
    method.finish()
    x, _ = batch(7)
    theirs = PeftModel.from_pretrained(Net(), export_peft(method, net, tmp_path))
    torch.testing.assert_close(theirs(x), net(x), rtol=1e-8, atol=1e-10)


def test_settings_of_a_variant_are_its_switches_and_equal_ones_have_one_spelling():
    size = RunSize(100, 4)
    official = SDLoRAConfig(variant="official").resolved(size)
    assert (official.start, official.normalise, official.sgd, official.L_D1) == (0.8, False, True, True)
    spelt = SDLoRAConfig(start=1.0, normalise=True, sgd=False, L_D1=False, tau=0.5, mu=2)
    assert canonical(spelt, size) == SDLoRAConfig()
