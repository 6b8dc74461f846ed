"""AdaLoRA against stock PEFT over a whole schedule, its variants, and what masking does and does not do."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from nets import Net, batch, train
from torch import Tensor, nn

from baselines.adalora import AdaLoRA, AdaLoRAConfig, Masking, highest, plan_masking
from elalora import Budget, MethodFailure, RowwiseAdamW, Schedule, UserError
from elalora.budget import Count
from elalora.method import BudgetExceeded

torch.set_num_threads(1)
TARGETS = ["q", "up", "down"]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


# -- the proof: the same training, once by stock PEFT and once by ours --------------------------------------


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


@pytest.mark.parametrize("variant", ["peft", "official", "paper"])
def test_without_the_regulariser_every_variant_trains_masks_and_finishes(variant):
    net, method = small(variant=variant, orth_weight=0.0)
    assert method.penalty() is None
    train(net, method, method.total_steps)
    method.finish()
    assert sum(method.ranks().values()) <= method.budget_use()[1] and any(r.pruned for r in method.rounds_seen)


# -- schedule and variants -----------------------------------------------------------------------------------


def test_the_budget_falls_by_the_corrected_cubic_formula():
    plan = Masking(total=100, start=10, final=30, interval=8)
    # by hand, from 60 to 40: 40 + 20 (1 - (t - 10) / 60)^3, rounded down
    assert [plan.budget(t, 60, 40) for t in (0, 10, 16, 40, 64, 70, 99)] == [60, 60, 54, 42, 40, 40, 40]
    printed = 40 + 20 * (1 - (10 - 10 - 30) / 60) ** 3
    assert printed > 60  # what the paper's numerator would give at t_i


def test_official_sets_the_final_pattern_one_step_later_unless_the_interval_divides():
    regular = [16, 24, 32, 40, 48, 56, 64]
    assert Masking(100, 10, 30, 8, forced=True).rounds() == [*regular, 70]
    assert Masking(100, 10, 30, 8, forced=False).rounds() == [*regular, 71]
    assert Masking(100, 10, 28, 8, forced=True).rounds() == [*regular, 72]
    assert Masking(100, 10, 28, 8, forced=False).rounds() == [*regular, 72]


def small(total: int = 60, rank: int = 2, **knobs) -> tuple[Net, AdaLoRA]:
    """Six matrices, start 4, budget 2: warm-up 10, maskings every 7 steps, final phase from step 40 of 60."""
    net = Net()
    given = {"t_initial": 10, "t_final": 20, "interval": 7} | knobs
    method = AdaLoRA(AdaLoRAConfig(**given), Budget(rank=rank))
    method.attach(net, ["up", "down"], total, keep=["head"])
    return net, method


def masked_values(method: AdaLoRA) -> list[float]:
    """|E| of every direction that the last masking did not keep."""
    return [
        abs(value.item())
        for name, adapter in method.adapters.items()
        for value, kept in zip(adapter.E, method.kept[name], strict=True)
        if not kept
    ]


def test_official_masks_every_step_of_the_final_phase_by_an_importance_that_never_changes():
    net, method = small(variant="official")
    largest: dict[int, float] = {}

    def look(step: int) -> None:
        if step >= 40:
            largest[step] = max(masked_values(method))
        if step > 40:
            scores = [s for row in method.importance.scores().values() for s in row]
            threshold = torch.kthvalue(torch.tensor(scores, dtype=torch.float64), 24 - 12)[0]
            assert [s > threshold for s in scores] == [k for row in method.kept.values() for k in row]

    train(net, method, 60, each=look)
    # 40 is not a multiple of 7, so at step 40 nothing is masked; stock PEFT would
    assert largest.pop(40) > 0 and not any(largest.values())


def test_peft_masks_every_step_from_the_start_of_the_final_phase():
    net, method = small()
    largest: dict[int, float] = {}
    train(net, method, 60, each=lambda step: largest.update({step: max(masked_values(method), default=0.0)}))
    assert largest[38] > 0 and not any(value for step, value in largest.items() if step >= 40)


def test_paper_reads_weight_and_gradient_at_the_same_point():
    for variant, moved in (("paper", False), ("peft", True), ("official", True)):
        net, method = small(variant=variant)
        train(net, method, 1)
        # E is 0 before the first step and not after it
        assert any(bool(method.importance.smooth[a.E].any()) for a in method.adapters.values()) is moved


def test_paper_keeps_exactly_the_budget_where_ties_cost_the_codes_directions():
    for variant, left in (("paper", 12), ("peft", 0), ("official", 0)):
        _, method = small(variant=variant)
        method.importance.scores = lambda method=method: {n: [1.0] * 4 for n in method.adapters}
        moved = method._round(40)
        assert sum(moved.ranks.values()) == left and moved.notes == {"budget": 12, "tied": 12 - left}


def test_the_scale_is_alpha_over_the_initial_rank_for_the_whole_run():
    for variant, scale in (("paper", 16 / 4), ("peft", 16 / (4 + 1e-5)), ("official", 16 / (4 + 1e-5))):
        net, method = small(variant=variant)
        train(net, method, 60)
        method.finish()
        assert {a.scale for a in method.adapters.values()} == {scale}


def test_the_threshold_is_the_kth_smallest_score_and_nothing_is_masked_where_all_may_stay():
    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 9, 40):
        scores = torch.rand(n, generator=g, dtype=torch.float64)
        for allowed in range(n):
            kept, threshold = highest(scores.tolist(), [1] * n, allowed)
            assert threshold == torch.kthvalue(scores, n - allowed)[0].item()
            assert kept == (scores > threshold).tolist() and sum(kept) == allowed
        assert highest(scores.tolist(), [1] * n, n) == ([True] * n, None)


# -- masking and removal -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "start"), [(1, 2), (2, 4), (3, 5), (4, 6), (5, 8), (8, 12)])
def test_the_start_is_the_published_one_or_one_and_a_half_times_the_budget(target, start):
    net = Net(width=13)
    method = AdaLoRA(AdaLoRAConfig(), Budget(rank=target))
    method.attach(net, ["up", "down"], 100)
    assert set(method.ranks().values()) == {start}
    assert method.count() == Count(6 * start, 6 * start * (13 + 14 + 1))


def test_masking_is_not_death():
    """A masked singular value is 0, its moments and vectors stay, and the next step moves it again."""
    net, method = small()
    optimizer, schedule = train(net, method, 14)
    adapters = list(method.adapters.values())
    x, y = batch(14)
    (nn.functional.cross_entropy(net(x), y) + method.penalty()).backward()
    method.gradients_ready(14)
    optimizer.step()
    before = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for a in adapters for p in a.factors()}
    vectors = {p: p.detach().clone() for a in adapters for p in (a.A, a.B)}
    moved = method.after_step(14, optimizer, schedule)
    assert moved is not None and moved.pruned
    for p, state in before.items():
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state.items())
    assert all(torch.equal(p, vector) for p, vector in vectors.items())
    for name, slot in moved.pruned:
        value = method.adapters[name].E
        assert value[slot] == 0 and optimizer.state[value]["exp_avg"][slot] != 0
    optimizer.zero_grad()
    train(net, method, 1, start=15, optimizer=optimizer)
    assert all(method.adapters[name].E[slot] != 0 for name, slot in moved.pruned)


def test_rounds_tell_what_was_masked_and_what_came_back():
    net, method = small(interval=3)
    g = torch.Generator().manual_seed(0)
    method.importance.scores = lambda: {n: torch.rand(4, generator=g).tolist() for n in method.adapters}
    ranks = method.ranks()
    train(net, method, 60)
    assert [r.step for r in method.rounds_seen] == method.phases.rounds()
    for moved in method.rounds_seen:
        lost = [name for name, _ in moved.pruned]
        assert moved.ranks == {n: r - lost.count(n) + moved.grown.count(n) for n, r in ranks.items()}
        assert sum(moved.ranks.values()) == moved.notes["budget"]
        ranks = moved.ranks
    assert any(r.grown for r in method.rounds_seen) and method.ranks() == ranks


def test_the_end_removes_masked_directions_and_leaves_outputs_unchanged():
    net, method = small()
    train(net, method, 60)
    x, _ = batch(7)
    before, ranks, factors = net(x), method.ranks(), method.lora_factors()
    assert sum(a.rank for a in method.adapters.values()) == 24 and sum(ranks.values()) == 12
    method.finish()
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-12)
    assert {n: a.rank for n, a in method.adapters.items()} == method.ranks() == ranks
    assert method.count() == Count(12, 12 * (10 + 14 + 1))
    for name, (a, b) in factors.items():
        assert a.shape[0] == b.shape[1] == ranks[name]
        new_a, new_b = method.lora_factors()[name]
        torch.testing.assert_close(b @ a, new_b @ new_a, rtol=0, atol=1e-12)


def test_compaction_leaves_outputs_unchanged_and_shrinks_the_adapter():
    x, _ = batch(7)
    outputs = []
    for compact in (False, True):
        net, method = small(compact=compact)
        train(net, method, 41)  # up to the step that makes the pattern final
        assert sum(a.rank for a in method.adapters.values()) == (12 if compact else 24)
        outputs.append((net(x).detach(), method.ranks()))
    torch.testing.assert_close(outputs[0][0], outputs[1][0], rtol=0, atol=1e-12)
    assert outputs[0][1] == outputs[1][1]


def test_compaction_acts_on_training_through_the_regulariser_only():
    x, _ = batch(7)
    for weight, same in ((0.0, True), (0.1, False)):
        outputs = []
        for compact in (False, True):
            net, method = small(compact=compact, orth_weight=weight)
            train(net, method, 60)
            method.finish()
            outputs.append(net(x).detach())
        assert torch.allclose(*outputs, rtol=0, atol=1e-10) is same


def test_a_matrix_may_end_without_any_direction():
    net, method = small(compact=True)
    empty = "layers.1.up"
    scores = method.importance.scores
    method.importance.scores = lambda: scores() | {empty: [-1.0] * 4}
    train(net, method, 60)
    method.finish()
    assert method.ranks()[empty] == 0 and method.lora_factors()[empty][0].shape == (0, 10)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_budget_of_parameters_is_kept_wherever_the_ranks_go():
    net = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 10)).double()
    method = AdaLoRA(AdaLoRAConfig(t_initial=10, t_final=20, interval=7), Budget(params=500))
    method.attach(net, ["0", "2", "4"], 60)
    assert method.ranks() == {"0": 6, "2": 6, "4": 6}  # 500 // (21 + 51 + 51) = 4
    train(net, method, 60)
    method.finish()
    assert 500 - 51 < method.count().params <= 500


# -- the rest of the interface -------------------------------------------------------------------------------


def trained_values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_two_runs_are_equal_bit_for_bit():
    runs = []
    for _ in range(2):
        net, method = small()
        train(net, method, 60)
        runs.append(trained_values(net))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("variant", "compact", "at"),
    [("peft", False, 25), ("peft", True, 50), ("official", False, 41), ("official", True, 40), ("paper", False, 50)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(variant, compact, at):
    net, method = small(variant=variant, compact=compact)
    train(net, method, 60)
    method.finish()

    first_net, first = small(variant=variant, compact=compact)
    optimizer, _ = train(first_net, first, at)
    state = first.state_dict()
    rest = json.loads(json.dumps({k: v for k, v in state.items() if not isinstance(v, Tensor)}))
    state = {k: v.clone() for k, v in state.items() if isinstance(v, Tensor)} | rest

    second_net, second = small(variant=variant, compact=compact)
    second.load_state_dict(state)
    second_net.load_state_dict(first_net.state_dict())
    again = RowwiseAdamW(second.groups(second_net, 5e-3, 0.0), second.directions())
    again.load_state_dict(optimizer.state_dict())
    train(second_net, second, 60 - at, start=at, optimizer=again)
    second.finish()
    assert all(torch.equal(a, b) for a, b in zip(trained_values(net), trained_values(second_net), strict=True))
    assert second.ranks() == method.ranks()


@pytest.mark.parametrize("total", [20, 100, 600, 5000])
def test_default_phases_scale_with_the_run(total):
    plan = plan_masking(total, None, None, None)
    assert (plan.start, plan.final) == (round(0.13 * total), round(0.47 * total))
    assert plan.interval == max(1, total // 600) and len(plan.rounds()) >= 5


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"init_rank": 2}, "method.init_rank=2 must be above the final rank 2"),
        ({"init_rank": 11}, r"min\(d_in, d_out\) = 10 .* method.init_rank=10"),
        ({"t_initial": 40}, "leave no step for rounds"),
        ({"interval": 41}, r"no multiple between steps 10 and 40.*method.interval=10"),
        ({"interval": 0}, "method.interval=0 must be at least 1"),
        ({"t_final": 0}, "method.t_final=1 or more"),
        ({"t_final": 1, "variant": "official", "interval": 10}, "method.t_final=2 or more"),
        ({"t_final": 1.5}, "method.t_final=1.5"),
        ({"variant": "stock"}, "allowed: peft, official, paper"),
        ({"orth_form": "l1"}, "allowed: norm, squared"),
        ({"beta1": 1.0}, r"method.beta1=1.0 must lie in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused_with_what_to_type(knobs, message):
    with pytest.raises(UserError, match=message):
        small(**knobs)


def test_a_run_whose_allocator_was_never_called_fails():
    _, method = small()
    with pytest.raises(MethodFailure, match="the final pattern was never set"):
        method.finish()


def test_no_rank_counts_before_the_pattern_is_final():
    """Between maskings the regrown singular values still compute, so a reading there is of a model above its budget."""
    method = AdaLoRA(AdaLoRAConfig(t_initial=4, t_final=8, interval=4), Budget(2))
    net = method.attach(Net(), ["up", "down"], 40, keep=["head"])
    outcomes = {}

    def look(step):
        try:
            method.check_budget()
            outcomes[step] = True
        except BudgetExceeded:
            outcomes[step] = False

    train(net, method, 40, each=look)
    assert [step for step, within in outcomes.items() if within] == [step for step in range(40) if step >= 32]
