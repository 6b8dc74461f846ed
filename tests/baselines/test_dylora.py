"""DyLoRA: LoRA bit for bit with b fixed, and a plain float64 reference for what moves at each step."""

from __future__ import annotations

import pytest
import torch
from nets import Nested, Net, batch, train
from resuming import check_resumes
from torch import nn

from baselines.dylora import DyLoRA, DyLoRAConfig
from baselines.lora import LoRA, LoRAConfig
from elalora import Budget, MethodFailure, UserError
from elalora.export import export_peft

STEPS = 40
RANK = 4


def dylora(net=None, rank=RANK, seed=0, **knobs):
    net = net or Net()
    method = DyLoRA(DyLoRAConfig(**knobs), Budget(rank))
    method.attach(net, ["up", "down"], STEPS, keep=["head"], seed=seed)
    return net, method


def drawn(method, net, steps=STEPS, **options):
    """The b of every step of a run, which is trained on the way."""
    seen = [method.drawn]
    train(net, method, steps, each=lambda step: seen.append(method.drawn), **options)
    return seen[:-1]


# -- one rank at a time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("b", [1, 3, RANK])
def test_with_b_fixed_and_all_ranks_trained_it_is_lora_of_that_rank_bit_for_bit(b, variant):
    net, method = dylora(fixed=b, frozen=False, variant=variant)
    other = Net()
    lora = LoRA(LoRAConfig(), Budget(b))
    lora.attach(other, ["up", "down"], STEPS, keep=["head"], seed=0)
    for mine, theirs in zip(method.adapters.values(), lora.adapters.values(), strict=True):
        if b == RANK:
            assert torch.equal(mine.A, theirs.A)
        theirs.A.data.copy_(mine.A.data[:b])
    clip = 0.5 if b == RANK else None  # the norm of a gradient that is padded with 0 differs in the last bit
    train(net, method, STEPS, weight_decay=0.1, clip=clip, warmup=3)
    train(other, lora, STEPS, weight_decay=0.1, clip=clip, warmup=3)
    method.finish()
    for mine, theirs in zip(method.adapters.values(), lora.adapters.values(), strict=True):
        assert torch.equal(mine.delta(), theirs.delta())
    assert torch.equal(net.head.weight, other.head.weight) and method.ranks() == lora.ranks()


@pytest.mark.parametrize("b", range(1, RANK + 1))
@pytest.mark.parametrize("frozen", [True, False])
def test_outputs_and_gradients_at_b_are_those_of_the_cut_matrices(b, frozen):
    net, method = dylora(frozen=frozen)
    g = torch.Generator().manual_seed(3)
    for adapter in method.adapters.values():
        adapter.B.data.copy_(torch.randn(adapter.B.shape, generator=g, dtype=torch.float64))
    method._use(b)
    x, y = batch(0)
    nn.functional.cross_entropy(net(x), y).backward()
    plain, leaves = Net(), {}
    for name, adapter in method.adapters.items():
        leaves[name] = [factor.detach()[:b].clone().requires_grad_() for factor in (adapter.A, adapter.B)]

    def call(x):
        for i in range(3):
            hidden = x
            for leaf in ("up", "down"):
                layer, (a, rows) = plain.get_submodule(f"layers.{i}.{leaf}"), leaves[f"layers.{i}.{leaf}"]
                hidden = layer(hidden) + 16 / b * (hidden @ a.T) @ rows
                hidden = torch.tanh(hidden) if leaf == "up" else hidden
            x = x + hidden
        return plain.head(x)

    loss = nn.functional.cross_entropy(call(x), y)
    loss.backward()
    torch.testing.assert_close(net(x), call(x), rtol=1e-12, atol=1e-12)
    for name, adapter in method.adapters.items():
        for factor, leaf in zip((adapter.A, adapter.B), leaves[name], strict=True):
            first = b - 1 if frozen else 0
            torch.testing.assert_close(factor.grad[first:b], leaf.grad[first:b], rtol=1e-10, atol=1e-13)
            assert not factor.grad[:first].any() and not factor.grad[b:].any()


# -- what a step moves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_paper_moves_the_drawn_ranks_only_and_official_all_that_were_ever_drawn(frozen):
    for variant in ("paper", "official"):
        net, method = dylora(variant=variant, frozen=frozen)
        states = [[a.B.detach().clone() for a in method.adapters.values()]]
        bs = [method.drawn]

        def look(step, method=method, states=states, bs=bs):
            states.append([a.B.detach().clone() for a in method.adapters.values()])
            bs.append(method.drawn)

        train(net, method, STEPS, each=look)
        ever = set()
        for b, before, after in zip(bs, states, states[1:], strict=False):
            now = {b - 1} if frozen else set(range(b))
            ever |= now
            moved = [(x != y).any(1) for x, y in zip(before, after, strict=True)]
            rows = set(torch.stack(moved).any(0).nonzero().flatten().tolist())
            assert rows == (now if variant == "paper" else ever)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_whole_run_is_that_of_a_plain_loop_with_torchs_adamw(variant, frozen):
    net, method = dylora(variant=variant, frozen=frozen)
    plain, parts = Net(), {}
    for name, adapter in method.adapters.items():
        plain.get_submodule(name).requires_grad_(False)
        split = variant == "paper"  # a parameter, and so an optimizer, for each rank, or one for all
        parts[name] = [
            [nn.Parameter(row.clone()) for row in factor.detach().split(1 if split else RANK)]
            for factor in (adapter.A, adapter.B)
        ]
    bs = drawn(method, net, lr=1e-2, weight_decay=0.1)
    assert len(set(bs)) == RANK

    def optimizer_of(parameters, decay):
        return torch.optim.AdamW([{"params": parameters, "weight_decay": decay}], lr=1e-2)

    by_rank = [[p[i] for pair in parts.values() for p in pair] for i in range(RANK if variant == "paper" else 1)]
    optimizers = [optimizer_of(parameters, 0.1) for parameters in by_rank]
    heads = [optimizer_of([plain.head.weight], 0.1), optimizer_of([plain.head.bias], 0.0)]

    def used(pieces, b):
        whole = torch.cat(pieces)
        return torch.cat([whole[: b - 1].detach(), whole[b - 1 : b]]) if frozen else whole[:b]

    for step, b in enumerate(bs):
        x, y = batch(step)
        for i in range(3):
            hidden = x
            for leaf in ("up", "down"):
                a, rows = (used(pieces, b) for pieces in parts[f"layers.{i}.{leaf}"])
                hidden = plain.get_submodule(f"layers.{i}.{leaf}")(hidden) + 16 / b * (hidden @ a.T) @ rows
                hidden = torch.tanh(hidden) if leaf == "up" else hidden
            x = x + hidden
        nn.functional.cross_entropy(plain.head(x), y).backward()
        stepping = optimizers
        if variant == "paper":
            stepping = optimizers[b - 1 : b] if frozen else optimizers[:b]
        for optimizer in (*stepping, *heads):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / STEPS)
            optimizer.step()
        for optimizer in (*optimizers, *heads):
            optimizer.zero_grad()
    for name, adapter in method.adapters.items():
        for factor, pieces in zip((adapter.A, adapter.B), parts[name], strict=True):
            torch.testing.assert_close(factor.detach(), torch.cat(pieces).detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(net.head.weight, plain.head.weight, rtol=0, atol=1e-11)


# -- draws and readings ----------------------------------------------------------------------------------------


def test_every_rank_is_drawn_equally_often_and_by_the_seed_alone():
    _, method = dylora()
    counts = torch.bincount(torch.tensor([method._draw() for _ in range(4000)]), minlength=RANK + 1)[1:]
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_square < 16.3  # 0.1 % of uniform draws of 4 ranks exceed it
    first, other = (drawn(method, net) for net, method in (dylora(seed=1), dylora(seed=1)))
    net, third = dylora(seed=2)
    assert first == other != drawn(third, net)


@pytest.mark.parametrize("b", range(1, RANK + 1))
def test_the_adapter_exported_at_b_is_the_model_read_at_b_in_stock_peft(b, tmp_path):
    from peft import PeftModel

    net, method = dylora(Nested())
    train(net, method, STEPS)
    method.finish()
    net.eval()
    x, _ = batch(7)
    whole = net(x).detach()
    with method.read_at(b):
        read = net(x).detach()
        assert set(method.ranks().values()) == {b}
        folder = export_peft(method, net, tmp_path)
    assert torch.equal(net(x), whole) and (b == RANK) == torch.equal(read, whole)
    reloaded = PeftModel.from_pretrained(Nested(), folder).eval()
    torch.testing.assert_close(reloaded(x), read, rtol=1e-8, atol=1e-10)


def test_evaluation_between_steps_reads_at_the_budgets_rank():
    net, method = dylora()
    train(net, method, 10)
    x, _ = batch(0)
    outputs = []
    for b in (1, RANK):
        method._use(b)
        outputs.append((net.train()(x).detach(), net.eval()(x).detach()))
    assert torch.equal(outputs[0][1], outputs[1][1]) and not torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[1][0], outputs[1][1])


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_run_resumes_bit_for_bit(variant):
    check_resumes(lambda net: dylora(net, variant=variant)[1], STEPS, 17)


def test_a_run_without_draws_fails_and_a_fixed_rank_above_the_budget_is_refused():
    with pytest.raises(MethodFailure, match="no rank was drawn"):
        dylora()[1].finish()
    with pytest.raises(UserError, match=r"method\.fixed=5 must be at most the budget's rank 4"):
        dylora(fixed=5)
