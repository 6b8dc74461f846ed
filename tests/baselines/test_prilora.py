"""PRILoRA: ramp, input statistics and pruning, against numpy and a plain float64 loop."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Net, batch, train
from resuming import check_resumes
from torch import nn
from torch.utils.checkpoint import checkpoint

from baselines.prilora import PRILoRA, PRILoRAConfig, depths, prune_rows, ramp
from elalora import Budget, MethodFailure, RowwiseAdamW, Schedule, UserError
from experiments.runtime.places import CHECKOUT


def prilora(net, steps, rank=4, **knobs):
    method = PRILoRA(PRILoRAConfig(**knobs), Budget(rank))
    method.attach(net, ["up", "down"], steps, keep=["head"])
    return method


# -- the ramp ------------------------------------------------------------------------------------------------


def test_the_ramp_of_deberta_at_mean_rank_8_sums_to_576():
    ranks = ramp([layer for layer in range(12) for _ in range(6)], 576, 4, 12)
    assert ranks[::6] == [4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 11, 12]  # 4 + 8 l / 11, largest remainders
    assert all(ranks[i] == ranks[i - i % 6] for i in range(72)) and sum(ranks) == 576


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=14),
    mean=st.integers(1, 20),
    start=st.floats(0.1, 20),
    end=st.floats(0.1, 20),
)
def test_any_ramp_sums_to_its_budget_exactly_and_stays_near_its_quota(sizes, mean, start, end):
    layers = [layer for layer, size in enumerate(sizes) for _ in range(size)]
    total = mean * len(layers)
    ranks = ramp(layers, total, start, end)
    assert sum(ranks) == total and min(ranks) >= 1
    wish = [Fraction(start) + (Fraction(end) - Fraction(start)) * layer / max(1, len(sizes) - 1) for layer in layers]
    quota = [w * total / sum(wish) for w in wish]
    if min(quota) >= 1:
        assert all(abs(rank - q) < 1 for rank, q in zip(ranks, quota, strict=True))
        if len(set(sizes)) == 1:
            assert all(len({r for r, at in zip(ranks, layers, strict=True) if at == x}) == 1 for x in layers)
    means = [np.mean([r for r, at in zip(ranks, layers, strict=True) if at == x]) for x in range(len(sizes))]
    rising = means if end >= start else means[::-1]
    assert all(a <= b for a, b in zip(rising, rising[1:], strict=False)) or len(set(sizes)) > 1


@settings(max_examples=15, deadline=None)
@given(layers=st.integers(1, 6), params=st.integers(300, 3000), end=st.sampled_from([4.0, 8.0, 12.0]))
def test_a_parameter_budget_is_never_exceeded(layers, params, end):
    net = Net(layers=layers)
    method = PRILoRA(PRILoRAConfig(end=end), Budget(params=params))
    try:
        method.attach(net, ["up", "down"], 100)
    except UserError as error:
        assert "does not pay" in str(error) or "ramp" in str(error)
        return
    numbers = sum(a.A[: a.rank].numel() + a.B[: a.rank].numel() for a in method.adapters.values())
    assert numbers == method.count().params <= params
    method.check_budget()


def test_a_costly_top_layer_makes_the_whole_ramp_smaller():
    linears = {"layers.0.a": nn.Linear(4, 4), "layers.1.a": nn.Linear(40, 40), "layers.2.a": nn.Linear(90, 90)}
    method = PRILoRA(PRILoRAConfig(start=1.0), Budget(params=4 * (8 + 80 + 180)))
    method.mean_rank = 4
    ranks = method.initial_ranks(linears)
    assert sum(r * (m.in_features + m.out_features) for r, m in zip(ranks.values(), linears.values(), strict=True)) <= (
        4 * (8 + 80 + 180)
    )
    assert sum(ranks.values()) < 12 and list(ranks.values()) == sorted(ranks.values())


def test_layers_are_counted_in_the_models_order_with_the_decoder_on_top():
    names = ["m.encoder.layers.0.q", "m.encoder.layers.0.k", "m.encoder.layers.1.q", "m.decoder.layers.0.q", "last"]
    assert depths(names) == [0, 0, 1, 2, 3]


def test_ranks_scales_and_start_are_those_of_lora_at_the_layers_rank():
    method = prilora(Net(), 100)
    assert list(method.ranks().values()) == [2, 2, 4, 4, 6, 6]
    assert [a.scale for a in method.adapters.values()] == [16 / r for r in (2, 2, 4, 4, 6, 6)]
    for adapter in method.adapters.values():
        assert adapter.A.abs().max() <= adapter.A.shape[1] ** -0.5 and not adapter.B.any()


# -- statistics and pruning ----------------------------------------------------------------------------------


def test_training_equals_a_plain_loop_with_numpy_norms_and_pruning_by_sort():
    net, steps, every, lr = Net(), 70, 20, 1e-2
    twin = copy.deepcopy(net)
    method = prilora(net, steps, every=every, share=0.4)
    start = {n: (a.A.detach().clone(), a.B.detach().clone(), a.scale) for n, a in method.adapters.items()}
    train(net, method, steps, lr=lr, warmup=3, weight_decay=0.1)

    twin.requires_grad_(False)
    seen: dict[str, np.ndarray] = {}
    factors = {}
    for name, (a, b, scale) in start.items():
        a, b = nn.Parameter(a), nn.Parameter(b.T.clone())
        factors[name] = (a, b)

        def plus(module, args, out, a=a, b=b, scale=scale, name=name):
            seen[name] = args[0].detach().numpy()
            return out + scale * (args[0] @ a.T) @ b.T

        twin.get_submodule(name).register_forward_hook(plus)
    twin.head.requires_grad_(True)
    decay = [p for pair in factors.values() for p in pair] + [twin.head.weight]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": [twin.head.bias], "weight_decay": 0.0}], lr=lr
    )
    norms = {name: np.zeros(a.shape[1]) for name, (a, _) in factors.items()}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (step / 3 if step < 3 else (steps - step) / (steps - 3))
        x, y = batch(step)
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, (a, _) in factors.items():
            norms[name] = 0.9 * norms[name] + 0.1 * np.sqrt((seen[name] ** 2).sum(0))
            if step % every == every - 1:
                values = a.detach().numpy()  # shares memory with the parameter
                for row in values:
                    score = np.abs(row) * norms[name]
                    row[score < np.sort(score)[int(0.4 * len(row))]] = 0.0
    assert method.prunings == 3
    for name, adapter in method.adapters.items():
        a, b = factors[name]
        np.testing.assert_allclose(method.norms[name].numpy(), norms[name], rtol=1e-10)
        torch.testing.assert_close(adapter.A[: adapter.rank], a, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(adapter.B[: adapter.rank], b.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.head.weight, twin.head.weight, rtol=1e-10, atol=1e-12)


def test_each_row_loses_its_lowest_half_and_a_zeroed_entry_may_grow_again():
    net = Net()
    method = prilora(net, 45, every=40)
    zeros = []
    train(
        net, method, 45, each=lambda step: zeros.append([(a.A[: a.rank] == 0).sum(1) for a in method.adapters.values()])
    )
    for adapter, rows in zip(method.adapters.values(), zeros[39], strict=True):
        assert set(rows.tolist()) == {adapter.A.shape[1] // 2}
    assert not any(rows.any() for rows in zeros[38]) and not any(rows.any() for rows in zeros[41])


def test_ties_fall_to_the_first_features():
    rows = torch.ones(2, 5)
    prune_rows(rows, torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0]), 0.5)
    assert rows.tolist() == [[0, 1, 0, 1, 1]] * 2


class Tokens(nn.Module):
    """Blocks over (batch, tokens, width), with or without recomputation."""

    def __init__(self, recompute):
        super().__init__()
        self.net, self.recompute = Net(layers=2), recompute

    def forward(self, x):
        for layer in self.net.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        return self.net.head(x)


def watched(model, method, chunks, mask):
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in method.adapters}
    for name, adapter in method.adapters.items():
        adapter.base.register_forward_pre_hook(lambda m, args, name=name: inputs[name].append(args[0].detach()))
    for x, m in zip(chunks, mask, strict=True):
        with method.watching(m):
            loss = model(x).square().mean()
        loss.backward()
    return inputs


@pytest.mark.parametrize("recompute", [False, True])
def test_norms_cover_all_micro_batches_without_padding_and_once_under_recomputation(recompute):
    model = Tokens(recompute)
    method = PRILoRA(PRILoRAConfig(every=1), Budget(2))
    method.attach(model, ["up", "down"], 3)
    generator = torch.Generator().manual_seed(0)
    chunks = [torch.randn(n, 7, 10, generator=generator, dtype=torch.float64, requires_grad=True) for n in (3, 2)]
    mask = [
        (torch.arange(7) < torch.tensor([[7], [4], [1]])).long(),
        (torch.arange(7) < torch.tensor([[2], [6]])).long(),
    ]
    inputs = watched(model, method, chunks, mask)
    optimizer = RowwiseAdamW(method.groups(model, 0.0, 0.0), method.directions())
    model(chunks[0])  # an evaluation in between: not watched, so not counted
    method.after_step(0, optimizer, Schedule(optimizer, 3))
    assert recompute == (len(inputs["net.layers.0.up"]) > 3)  # recomputed inputs did pass through the layer
    for name, norm in method.norms.items():
        # a recomputed chunk passes twice in a row: take each chunk's first pass
        first = inputs[name][:: 2 if recompute else 1][:2]
        rows = np.concatenate(
            [x.reshape(-1, x.shape[-1])[m.reshape(-1).bool()] for x, m in zip(first, mask, strict=True)]
        )
        np.testing.assert_allclose(norm.numpy(), 0.1 * np.sqrt((rows**2).sum(0)), rtol=1e-12)


WORKER = """
import sys, torch
from torch import distributed as dist
from nets import Net, batch
from baselines.prilora import PRILoRA, PRILoRAConfig
from elalora import Budget, RowwiseAdamW, Schedule
rank, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
net = Net()
method = PRILoRA(PRILoRAConfig(every=1), Budget(3))
method.attach(net, ["up", "down"], 1, keep=["head"])
optimizer = RowwiseAdamW(method.groups(net, 0.0, 0.0), method.directions())
with method.watching(None):
    net(batch(0)[0][rank::2])
method.after_step(0, optimizer, Schedule(optimizer, 1))
torch.save({**method.norms, **{n + ".A": a.A.data for n, a in method.adapters.items()}}, f"{out}/{rank}.pt")
dist.destroy_process_group()
"""


def one_step(net, method):
    optimizer = RowwiseAdamW(method.groups(net, 0.0, 0.0), method.directions())
    with method.watching(None):
        net(batch(0)[0])
    method.after_step(0, optimizer, Schedule(optimizer, 1))


def test_sums_of_squares_are_added_over_processes(monkeypatch):
    nets = Net(), Net()
    alone, method = (prilora(net, 1, every=1) for net in nets)
    one_step(nets[0], alone)
    # a second process that happens to see the same items doubles every sum
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    one_step(nets[1], method)
    for name, norm in method.norms.items():
        torch.testing.assert_close(norm, alone.norms[name] * 2**0.5, rtol=1e-12, atol=0)


@pytest.mark.full
def test_two_processes_see_the_norms_of_the_global_batch(tmp_path):
    root = CHECKOUT
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "support")])}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), port, str(tmp_path)], env=env) for rank in (0, 1)
    ]
    assert [w.wait(timeout=120) for w in workers] == [0, 0]
    net = Net()
    method = prilora(net, 1, rank=3, every=1)
    one_step(net, method)
    for rank in (0, 1):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, adapter in method.adapters.items():
            torch.testing.assert_close(saved[name], method.norms[name], rtol=1e-12, atol=0)
            assert torch.equal(saved[name + ".A"], adapter.A.data)


# -- the rest of the contract --------------------------------------------------------------------------------


def test_a_resumed_run_is_the_uninterrupted_one():
    check_resumes(lambda net: prilora(net, 40, every=9), 40, 22)


def test_a_forward_pass_that_was_not_watched_fails_the_run():
    net = Net()
    method = prilora(net, 5, every=2)
    optimizer = RowwiseAdamW(method.groups(net, 1e-3, 0.0), method.directions())
    with pytest.raises(MethodFailure, match="outside watching"):
        method.after_step(0, optimizer, Schedule(optimizer, 5))
    with pytest.raises(MethodFailure, match="never pruned"):
        method.finish()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"every": 200}, "longer than the run of 100 steps.*type method.every=10"),
        ({"every": 0}, "method.every=0"),
        ({"share": 1.0}, "method.share=1.0"),
        ({"start": 0.0}, "method.start=0.0"),
        ({"rank": 9}, "rank 14 is above .* 10 of 'layers.2.up' .*: lower the budget, .* method.start to method.end"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(knobs, message):
    with pytest.raises(UserError, match=message):
        prilora(Net(), 100, **knobs)


def test_it_says_that_it_is_a_reconstruction():
    assert PRILoRA.capabilities.reconstructed
