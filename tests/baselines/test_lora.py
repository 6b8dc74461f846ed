"""LoRA and SVD-LoRA: against stock PEFT, and the controls that SVD-LoRA is for."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import Net, batch, train
from torch import nn

from baselines.fixed_ranks import shuffled
from baselines.lora import LoRA, LoRAConfig
from baselines.svd_lora import SVDLoRA, SVDLoRAConfig
from elalora import Budget, ElaLoRA, ElaLoRAConfig, UserError
from elalora.optim import RowwiseAdamW


def peft_twin(net, rslora=False, rank=3):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=16,
        target_modules=["up", "down"],
        modules_to_save=["head"],
        use_rslora=rslora,
        lora_dropout=0.0,
    )
    model = get_peft_model(net, config)
    return model.double()


def copy_factors(method, model):
    for name, adapter in method.adapters.items():
        theirs = model.get_submodule(f"base_model.model.{name}")
        theirs.lora_A["default"].weight.data.copy_(adapter.A.data)
        theirs.lora_B["default"].weight.data.copy_(adapter.B.data.T)


@pytest.mark.parametrize("rslora", [False, True])
def test_outputs_and_gradients_equal_stock_peft(rslora):
    net = Net()
    theirs = peft_twin(copy.deepcopy(net), rslora)
    method = LoRA(LoRAConfig(rslora=rslora), Budget(3))
    method.attach(net, ["up", "down"], 50, keep=["head"])
    for adapter in method.adapters.values():
        adapter.B.data.normal_(generator=torch.Generator().manual_seed(3))
    copy_factors(method, theirs)
    x, y = batch(0)
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-12, atol=1e-13)
    nn.functional.cross_entropy(net(x), y).backward()
    nn.functional.cross_entropy(theirs(x), y).backward()
    for name, adapter in method.adapters.items():
        module = theirs.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(adapter.A.grad, module.lora_A["default"].weight.grad, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(adapter.B.grad, module.lora_B["default"].weight.grad.T, rtol=1e-10, atol=1e-13)


def test_fifty_training_steps_equal_stock_peft():
    net = Net()
    theirs = peft_twin(copy.deepcopy(net))
    method = LoRA(LoRAConfig(), Budget(3))
    method.attach(net, ["up", "down"], 50, keep=["head"])
    copy_factors(method, theirs)
    train(net, method, 50, lr=1e-2, warmup=5, clip=1.0, weight_decay=0.01)
    decay = [p for p in theirs.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in theirs.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=1e-2
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 5 if t < 5 else (50 - t) / 45)
    for step in range(50):
        x, y = batch(step)
        nn.functional.cross_entropy(theirs(x), y).backward()
        nn.utils.clip_grad_norm_(decay + plain, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, adapter in method.adapters.items():
        module = theirs.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(adapter.delta(), module.get_delta_weight("default"), rtol=1e-9, atol=1e-11)
    x, _ = batch(99)
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-9, atol=1e-10)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    net = Net()
    method = LoRA(LoRAConfig(dropout=0.5), Budget(3))
    method.attach(net, ["up", "down"], 10, keep=["head"])
    for adapter in method.adapters.values():
        adapter.B.data.fill_(0.3)
    x, _ = batch(0)
    net.eval()
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))
    with pytest.raises(UserError, match="method.dropout=1.0"):
        LoRAConfig(dropout=1.0)


def test_the_start_is_that_of_the_authors_library():
    net = Net(width=60, inner=80)
    method = LoRA(LoRAConfig(), Budget(8))
    method.attach(net, ["up", "down"], 10)
    for adapter in method.adapters.values():
        bound = adapter.A.shape[1] ** -0.5
        assert adapter.A.abs().max() <= bound and adapter.A.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not adapter.B.any()


# -- SVD-LoRA ------------------------------------------------------------------------------------------------


def svd(net, steps=120, rank=3, pattern=None, seed=0, **knobs):
    times = {"t_initial": 10, "t_final": 20, "interval": 8, "b": 3}
    method = SVDLoRA(SVDLoRAConfig(**{**times, **knobs}), Budget(rank))
    method.pattern = pattern
    method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    return method


@pytest.mark.parametrize("knobs", [{}, {"E_rate": 3.0, "E_start": 0.4}], ids=str)
def test_svd_lora_is_elalora_that_never_moves(knobs):
    first, second = Net(), Net()
    fixed = svd(first, seed=4, **knobs)
    frozen = ElaLoRA(ElaLoRAConfig(t_initial=10, t_final=20, interval=8, b=0, **knobs), Budget(3))
    frozen.attach(second, ["up", "down"], 120, keep=["head"], seed=4)
    train(first, fixed, 40)
    train(second, frozen, 40)
    for a, b in zip(fixed.adapters.values(), frozen.adapters.values(), strict=True):
        assert torch.equal(a.delta(), b.delta())


@pytest.mark.parametrize("effect", ["D1", "D2", "D4"])
def test_side_effects_strike_at_the_steps_of_elaloras_rounds(effect):
    net = Net()
    method = svd(net, **{effect: "image" if effect == "D4" else True})
    optimizer = RowwiseAdamW(method.groups(net, 5e-3, 0.3), method.directions())
    seen = []

    def look(step):
        ages = [float(s["step"].max()) for s in optimizer.state.values()]
        seen.append((not ages, optimizer.param_groups[0]["lr"] == 5e-3, optimizer.param_groups[0]["weight_decay"]))

    train(net, method, 120, optimizer=optimizer, warmup=60, each=look)
    rounds = method.phases.rounds()
    assert rounds[0] == 18 and len(rounds) > 5
    if effect == "D1":
        assert [t for t, s in enumerate(seen) if s[0]] == rounds
    elif effect == "D2":
        assert [s[1] for s in seen[:18]] == [False] * 18 and all(s[1] for s in seen[18:])
    else:
        assert {s[2] for s in seen[:18]} == {0.3} and {s[2] for s in seen[18:]} == {0.01}


def test_the_transplant_has_the_pattern_it_was_given_and_the_budgets_scale():
    pattern = {
        f"layers.{i}.{k}": r
        for (i, k), r in zip([(i, k) for i in range(3) for k in ("up", "down")], [1, 5, 2, 4, 3, 3], strict=True)
    }
    method = svd(Net(), ranks_from="somewhere", pattern=pattern)
    assert method.ranks() == pattern
    assert {a.scale for a in method.adapters.values()} == {16 / 3}


def test_a_transplant_of_uneven_ranks_trains_and_its_regulariser_is_the_mean_over_its_matrices():
    pattern = {f"layers.{i}.{k}": 1 + i + 2 * (k == "up") for i in range(3) for k in ("up", "down")}
    net = Net()
    method = svd(net, ranks_from="somewhere", pattern=pattern)
    norms = [
        torch.linalg.matrix_norm(f @ f.T - torch.eye(len(f), dtype=f.dtype))
        for a in method.adapters.values()
        for f in (a.A.detach(), a.B.detach())
    ]
    expected = 0.1 * torch.stack(norms).mean()
    torch.testing.assert_close(method.penalty().detach(), expected, rtol=1e-12, atol=0)
    before = method.adapters["layers.0.up"].A.detach().clone()
    train(net, method, 20)
    assert method.ranks() == pattern and not torch.equal(before, method.adapters["layers.0.up"].A)


def test_the_shuffle_permutes_within_each_matrix_type_only():
    pattern = {f"layers.{i}.{k}": 10 * (k == "up") + i for i in range(6) for k in ("up", "down")}
    ranks = shuffled(pattern, torch.Generator().manual_seed(0))
    for kind in ("up", "down"):
        names = [n for n in pattern if n.endswith(kind)]
        assert sorted(ranks[n] for n in names) == sorted(pattern[n] for n in names)
    assert ranks != pattern
    assert shuffled(pattern, torch.Generator().manual_seed(0)) == ranks


@pytest.mark.parametrize("pattern", [None, {"layers.0.up": 3}])
def test_a_pattern_of_other_matrices_is_refused(pattern):
    with pytest.raises(UserError, match="does not name the same matrices"):
        svd(Net(), ranks_from="somewhere", pattern=pattern)


def test_a_shuffle_without_a_pattern_is_refused():
    with pytest.raises(UserError, match="method.ranks_from=elalora"):
        SVDLoRAConfig(shuffle=True)
