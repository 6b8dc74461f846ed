"""The benchmark's arithmetic and its arms; nothing here looks at seconds."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.registry import method_class
from elalora.budget import Budget
from elalora.ela import ElaLoRAConfig
from experiments.bench import arms
from experiments.bench.__main__ import RANKED
from experiments.bench.counting import counted_flops, peak_bytes
from experiments.bench.epoch import end_to_end
from experiments.bench.report import ratio_lines, table
from experiments.bench.shapes import SHAPES, Shape, make_batch, twin
from experiments.bench.startup import start_lines, until_first_step
from experiments.bench.tables import large_table, stage_lines
from experiments.bench.timing import Ratio, interleaved, ratio, verdict


def test_a_ratio_is_the_median_of_paired_blocks_with_an_interval_around_it():
    base = torch.linspace(1, 2, 101).tolist()
    found = ratio([1.1 * b for b in base], base)
    assert found == pytest.approx((1.1, 1.1, 1.1))
    noisy = ratio([b * (1.1 if i % 2 else 0.9) for i, b in enumerate(base)], base)
    assert noisy.low == pytest.approx(0.9) and noisy.high == pytest.approx(1.1)


def test_a_target_is_met_missed_or_unresolved():
    assert verdict(Ratio(0.9, 0.88, 0.94), 0.95) == "met"
    assert verdict(Ratio(1.0, 0.96, 1.2), 0.95) == "missed"
    assert verdict(Ratio(0.94, 0.9, 0.97), 0.95) == "unresolved"


def test_a_single_pair_decides_nothing():
    row = {"what": "a / b", "target": 0.8, **ratio([1.0], [2.0])._asdict()}
    assert ratio_lines({"ratios": [row]})[2:] == ["| a / b | 0.500 | one pair |  | ≤ 0.80 | unresolved |"]
    assert ratio_lines({"ratios": [row | {"target": None}]})[2:] == ["| a / b | 0.500 | one pair |  |  |  |"]


def test_every_arm_is_called_as_often_and_in_every_position():
    calls = []
    interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, blocks=3, repeats=1, warmup=0)
    blocks = [calls[i : i + 3] for i in (0, 3, 6)]
    assert [sorted(b) for b in blocks] == [list("abc")] * 3
    assert {b[0] for b in blocks} == set("abc")


@pytest.fixture
def setting():
    from encoders import TARGETS, bert

    shape = Shape("tiny", TARGETS, 12, ["bert.pooler", "classifier"], 2, 6)
    batch = make_batch(shape, 2, 6, "cpu")
    batch["input_ids"] %= 50
    return arms.Setting(shape, bert(), batch, rank=2)


def test_arms_share_the_frozen_weights_and_nothing_that_trains(setting):
    one, two = twin(setting.model, setting.shape), twin(setting.model, setting.shape)
    first, second = dict(one.named_parameters()), dict(two.named_parameters())
    for name, parameter in first.items():
        assert (parameter is second[name]) == (not name.startswith(("bert.pooler", "classifier"))), name


@pytest.mark.parametrize("name", ["lora", "svd_lora", "elalora", "adalora", "sora", "prilora"])
def test_a_step_of_ours_trains_adapters_and_head_only(setting, name):
    arm = arms.ours(setting, name)
    before = {n: p.detach().clone() for n, p in arm.model.named_parameters()}
    arm.step()
    moved = {n for n, p in arm.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(dict(arm.model.named_parameters())[n].requires_grad for n in moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKED)
def test_every_method_that_has_ranks_takes_a_step_of_the_benchmark(setting, name):
    if name == "gelora":  # its estimate needs ten distinct items
        setting.batch = make_batch(setting.shape, 12, 6, "cpu")
        setting.batch["input_ids"] %= 50
    test_a_step_of_ours_trains_adapters_and_head_only(setting, name)


@pytest.mark.parametrize("adalora", [False, True])
def test_a_step_of_stock_peft_adapts_the_same_matrices(setting, adalora):
    theirs, mine = arms.peft(setting, adalora), arms.ours(setting, "lora")
    theirs.step()
    adapted = {n for n, m in theirs.model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
    ours = {n for n, m in mine.model.named_modules() if hasattr(m, "directions")}
    assert {n.removeprefix("base_model.model.") for n in adapted} == ours and len(ours) == 12


def test_the_floor_sends_gradients_through_the_frozen_backbone_and_multiplies_as_an_adapter_does(setting):
    arm = arms.frozen_backbone(setting)
    seen = []
    arm.model.bert.encoder.layer[0].register_full_backward_hook(lambda m, given, out: seen.append(given[0].shape))
    arm.step()
    assert seen
    arms.bare_products(setting)()


def test_bytes_are_counted_and_a_shorter_batch_needs_less(setting):
    arm = arms.ours(setting, "lora")
    arm.step()
    long = peak_bytes(arm)
    assert peak_bytes(arm) == long
    setting.batch = {k: v[:, :3] if v.ndim == 2 else v for k, v in setting.batch.items()}
    short = peak_bytes(arm)
    trained = sum(p.numel() for p in arm.model.parameters() if p.requires_grad)
    assert long["step"] >= 4 * trained and long["state"] >= 8 * trained
    assert long["total"] == sum(v for k, v in long.items() if k != "total")
    assert short["step"] < long["step"]


def test_the_peak_of_a_step_is_the_most_that_it_holds_at_one_time():
    """Two tensors of 4 MB at once and a third afterwards, beside what is there before and stays."""
    layer, count = nn.Linear(1, 1), 1_000_000

    def step() -> None:
        both = [torch.zeros(count), torch.zeros(count)]
        del both
        torch.zeros(count)

    found = peak_bytes(arms.Arm(step, layer, lambda: [layer.weight.detach()]))
    assert found == {"parameters": 8, "state": 4, "step": 8 * count, "total": 8 * count + 12}


def test_a_free_slot_costs_its_weights_and_gradients_and_nothing_else(setting):
    made = [arms.ours(setting, "elalora", capacity=slots) for slots in (3, 9)]
    for arm in made:
        arm.step()
    few, many = (peak_bytes(arm) for arm in made)
    factors = [p for name, p in made[1].model.named_parameters() if name.endswith((".A", ".B", ".E"))]
    free = sum(6 * p[0].numel() * p.element_size() for p in factors)
    assert many["parameters"] - few["parameters"] == free and many["state"] == few["state"]
    assert 0 <= many["step"] - few["step"] <= 1.05 * free  # the gradients, where the peak is after them


def test_the_table_names_ratio_target_and_verdict():
    row = {"what": "a / b", "target": 0.95, "median": 0.9, "low": 0.88, "high": 0.92}
    spread = {"median": 2.0, "low": 1.0, "high": 3.0}
    shown = table({"ratios": [row], "milliseconds": {"a": spread}, "bytes": {}})
    assert "| a / b | 0.900 | 0.880 to 0.920 |  | ≤ 0.95 | met |" in shown


def test_every_shape_names_matrices_that_are_counted():
    assert {s.matrices for s in SHAPES.values()} == {36, 72, 96, 60, 210, 112}


def test_operations_are_those_of_stock_peft_and_grow_with_the_rank(setting):
    one = counted_flops(arms.ours(setting, "lora"))
    assert one == counted_flops(arms.peft(setting))
    two, three = (counted_flops(arms.ours(setting, "lora", rank=rank)) for rank in (4, 6))
    assert three - two == two - one > 0


def test_pruned_adalora_multiplies_as_lora_at_its_final_rank_does(setting):
    arm = arms.ours(setting, "adalora", interval=arms.INTERVAL, init_rank=3, final=True, compact=True, orth_weight=0.0)
    before = counted_flops(arms.ours(setting, "adalora", interval=arms.INTERVAL, init_rank=3, orth_weight=0.0))
    for _ in range(3):
        arm.step()
    assert sum(m.rank for m in arm.model.modules() if hasattr(m, "directions")) == 2 * setting.shape.matrices
    assert counted_flops(arm) < before


class ReadBacks(TorchDispatchMode):
    """Counts tensors whose value is read by the host, each a synchronisation on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["elalora", "adalora", "sora", "prilora"])
def test_adaptivity_reads_nothing_back_between_its_rounds(setting, name, monkeypatch):
    monkeypatch.setattr(arms.RowwiseAdamW, "step", lambda self: None)  # reads its step counters, which live on the host
    found = {}
    for arm_name in ("lora", name):
        arm = arms.ours(setting, arm_name, **({"interval": 1000} if arm_name in ("elalora", "adalora") else {}))
        for _ in range(2):
            arm.step()
        with ReadBacks() as seen:
            arm.step()
        found[arm_name] = seen.count
    assert found[name] == found["lora"]


@pytest.mark.parametrize("first", [True, False])
def test_the_gradients_of_the_regulariser_are_added_in_place_where_it_comes_first(setting, first):
    method = method_class("elalora")(ElaLoRAConfig(interval=1000), Budget(3))
    model = method.attach(twin(setting.model, setting.shape), setting.shape.targets, 10_000, keep=setting.shape.head)
    factors = [p for adapter in method.adapters.values() for p in (adapter.A, adapter.B)]
    early = method.penalty() if first else None
    loss = model(**setting.batch).loss
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        (loss + (method.penalty() if early is None else early)).backward()
    shapes = [list(p.shape) for p in factors]
    new = [event for event in seen.events() if event.name == "aten::add" and event.input_shapes[0] in shapes]
    assert len(new) == (0 if first else len(factors))


SMALL = ["task=vader_movies", "method=lora", "data.train_items=40", "task.max_length=16", "trainer.batch_size=8"]


@pytest.mark.slow
def test_a_whole_run_is_paired_with_the_steps_it_took(tiny_model_dir):
    model = ["model=local", f"model.path={tiny_model_dir}"]
    measured = end_to_end(["trainer=standard", "trainer.epochs=1", *SMALL, *model], blocks=2)
    assert len(measured["seconds"]["run"]) == len(measured["seconds"]["bare steps"]) == 2
    assert measured["median"] > 1  # the steps are a part of the run


@pytest.mark.slow
def test_the_start_of_a_run_is_its_first_line_and_a_run_that_ends_before_says_why(tiny_model_dir):
    assert until_first_step([*SMALL, "model=local", f"model.path={tiny_model_dir}"]) > 0
    with pytest.raises(RuntimeError, match="no_such_task is unknown"):
        until_first_step(["task=no_such_task"])


def test_starts_are_medians_with_a_verdict():
    found = {
        "seconds": {"help": [0.3, 0.5, 0.4], "first step": [9.0, 8.5, 8.1]},
        "targets": {"help": 1.5, "first step": 8.0},
    }
    assert start_lines(found)[2:] == [
        "| help | 0.40 (0.30 to 0.50) | ≤ 1.5 | met |",
        "| first step | 8.50 (8.10 to 9.00) | ≤ 8 | missed |",
    ]


def test_a_large_table_is_read_tokenised_and_read_from_the_cache_beside_the_library():
    measured = large_table(items=60, blocks=2)
    assert list(measured["seconds"]) == ["read and check", "tokenise and cache", "cached"]
    assert measured["items"] == 60 and measured["tokens"] > 60 * 10
    assert [row["what"] for row in measured["ratios"]] == ["tokenise and cache / datasets.map"]
    assert measured["mebibytes"]["start"] <= measured["mebibytes"]["cached"]


def test_the_stages_of_a_large_table_have_rates_and_memory_beyond_the_start():
    found = {"items": 1000, "seconds": {"read": 0.5}, "mebibytes": {"start": 300.0, "read": 310.4}}
    assert stage_lines(found)[0].startswith("| 1,000 pairs |")
    assert stage_lines(found)[2:] == ["| read | 0.5 | 2,000 | 10 |"]
