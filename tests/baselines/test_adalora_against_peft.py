"""AdaLoRA's variant peft is stock PEFT over a whole schedule."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from baselines.adalora import AdaLoRA, AdaLoRAConfig
from elalora import Budget, RowwiseAdamW, Schedule

torch.set_num_threads(1)
TARGETS = ["q", "up", "down"]


class Layer(nn.Module):
    """One attention head and a feed-forward part; q, up and down differ in shape."""

    def __init__(self, width: int, head: int, inner: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(width, head), nn.Linear(width, head), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(self.k.out_features)).softmax(-1)
        x = x + weights @ self.v(x)
        return x + self.down(torch.tanh(self.up(x)))


class Transformer(nn.Module):
    """Four layers of different inner width; returns an object with the loss, as stock PEFT expects it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(Layer(32, 16, 40 + 8 * i) for i in range(4))
            self.head = nn.Linear(32, 3)
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> SimpleNamespace:
        for layer in self.layers:
            x = layer(x)
        return SimpleNamespace(loss=nn.functional.cross_entropy(self.head(x.mean(1)), y))


def sequences(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(8, 5, 32, generator=g, dtype=torch.float64)
    return x, (x[:, :, 0].mean(1) > 0).long() + (x[:, 0, 1] > 0.3).long()


STEPS, LR, DECAY, CLIP, WARMUP = 300, 5e-3, 0.01, 0.5, 20
PHASES = {"t_initial": 40, "t_final": 67, "interval": 5}  # T - t_f = 233 is not a multiple of 5


def train_peft(
    start: dict[str, tuple[Tensor, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    gamma: float,
    value: float,
    own: float,
) -> SimpleNamespace:
    """Stock AdaLoraModel, torch's AdamW and update_and_allocate, with copies of our initial factors.

    PEFT is given the model in float32 and the whole is cast afterwards, without loss: in a model of another type
    its cast turns `ranknum`, the constant under the scale, into a parameter that trains.
    """
    import peft

    config = peft.AdaLoraConfig(
        target_modules=TARGETS,
        init_r=6,
        target_r=4,
        lora_alpha=16,
        tinit=PHASES["t_initial"],
        tfinal=PHASES["t_final"],
        deltaT=PHASES["interval"],
        total_step=STEPS,
        orth_reg_weight=gamma,
    )
    model = peft.get_peft_model(Transformer().float(), config).double()
    model.get_base_model().head.requires_grad_(True)
    layers = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, peft.tuners.adalora.SVDLinear)}
    assert list(layers) == list(start)
    for name, (a, b) in start.items():
        layers[name].lora_A["default"].data.copy_(a)
        layers[name].lora_B["default"].data.copy_(b.T)
        layers[name].lora_E["default"].data.fill_(value)
    thresholds: list[float] = []
    kthvalue = torch.kthvalue

    def recorded(*args, **kwargs):
        found = kthvalue(*args, **kwargs)
        thresholds.append(found[0].item())
        return found

    monkeypatch.setattr(torch, "kthvalue", recorded)
    trained = [p for p in model.parameters() if p.requires_grad]
    values = {id(layer.lora_E["default"]) for layer in layers.values()}
    groups = [{"params": [p for p in trained if (id(p) in values) == of_e]} for of_e in (False, True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    factor = Schedule(SimpleNamespace(param_groups=[{"lr": LR}]), STEPS, WARMUP).factor
    allocator = model.base_model.rankallocator
    seen = SimpleNamespace(layers=layers, thresholds=thresholds, patterns={}, importance={}, losses=[])
    for step in range(STEPS):
        for group, multiple in zip(optimizer.param_groups, (1.0, own), strict=True):
            group["lr"] = LR * multiple * factor(step)
        loss = model.base_model(*sequences(step)).loss  # adds the penalty; a PeftModel without task type does not
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        before = len(thresholds)
        if step == STEPS - PHASES["t_final"]:
            seen.importance = dict(allocator.exp_avg_ipt), dict(allocator.exp_avg_unc)
        model.base_model.update_and_allocate(step)
        if len(thresholds) > before:
            pattern = model.peft_config["default"].rank_pattern
            seen.patterns[step] = {n: pattern[f"{n}.lora_E.default"] for n in layers}
        optimizer.zero_grad()
        seen.losses.append(loss.item())
    return seen


def train_ours(method: AdaLoRA, net: Transformer) -> SimpleNamespace:
    """The loop of `elalora.method` on the same batches."""
    groups = method.groups(net, LR, DECAY)
    for group in groups:
        group["weight_decay"] = DECAY  # torch's AdamW above decays everything
    optimizer = RowwiseAdamW(groups, method.directions())
    schedule = Schedule(optimizer, STEPS, WARMUP)
    trained = [p for p in net.parameters() if p.requires_grad]
    seen = SimpleNamespace(thresholds=[], patterns={}, rounds=[], losses=[])
    for step in range(STEPS):
        loss, penalty = net(*sequences(step)).loss, method.penalty()
        loss = loss if penalty is None else loss + penalty
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        moved = method.after_step(step, optimizer, schedule)
        if moved is not None:
            seen.thresholds.append(method.threshold)
            seen.patterns[step] = {n: list(kept) for n, kept in method.kept.items()}
            seen.rounds.append(moved)
        optimizer.zero_grad()
        seen.losses.append(loss.item())
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("gamma", "value", "factor"), [(0.1, 0.0, 1.0), (0.0, 0.0, 1.0), (0.1, 0.2, 4.0)])
def test_variant_peft_is_stock_peft_over_a_whole_schedule(gamma, value, factor, monkeypatch):
    net = Transformer()
    method = AdaLoRA(AdaLoRAConfig(**PHASES, orth_weight=gamma, E_start=value, E_rate=factor), Budget(rank=4))
    method.attach(net, TARGETS, STEPS, keep=["head"])
    start = {n: (a.A.detach().clone(), a.B.detach().clone()) for n, a in method.adapters.items()}
    theirs = train_peft(start, monkeypatch, gamma, value, factor)
    ours = train_ours(method, net)

    # the schedule is a real one
    assert len(ours.rounds) >= 20
    assert sum(len(r.grown) for r in ours.rounds) >= 1
    final = method.ranks()
    assert sum(final.values()) == 4 * 12 and len(set(final.values())) > 2

    # masks, thresholds, importance, weights and ranks are the same
    assert ours.patterns == theirs.patterns
    assert_close(torch.tensor(ours.thresholds).double(), torch.tensor(theirs.thresholds).double(), relative=True)
    assert_close(torch.tensor(ours.losses), torch.tensor(theirs.losses))
    for name, adapter in method.adapters.items():
        layer = theirs.layers[name]
        for kind, mine in (("A", adapter.A), ("B", adapter.B), ("E", adapter.E)):
            assert_close(mine, as_rows(getattr(layer, f"lora_{kind}")["default"], kind))
            averages = (method.importance.smooth, method.importance.uncertainty)
            for ours_, theirs_ in zip(averages, theirs.importance, strict=True):
                assert_close(ours_[mine], as_rows(theirs_[f"{name}.lora_{kind}.default"], kind), relative=True)
        assert final[name] == sum(theirs.patterns[max(theirs.patterns)][name])


def as_rows(tensor: Tensor, kind: str) -> Tensor:
    """PEFT's tensor with one row per direction, as ours."""
    return {"A": tensor, "B": tensor.T, "E": tensor.flatten()}[kind]


def assert_close(mine: Tensor, other: Tensor, relative: bool = False) -> None:
    """Equal to 1e-10; `relative`, for quantities far below 1: also to 1e-9 of the largest entry."""
    assert mine.shape == other.shape
    gap, largest = (mine - other).abs().max().item(), other.abs().max().item()
    assert gap <= 1e-10 and (not relative or gap <= 1e-9 * largest)
