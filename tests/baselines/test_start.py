"""Starting an adapter from another run's update: the output is the base's plus that update, for every method."""

from __future__ import annotations

import pytest
import torch
from contract import METHODS, RANK, build
from nets import Net, batch, train
from torch import nn

from baselines.registry import method_class
from elalora import LowRankMethod, UserError
from elalora.chain import ChainMethod
from elalora.export import export_peft, read_factors
from elalora.measured import MeasuredRanks
from experiments.config.task import DataConfig

CLASSES = {name: method_class(name.split()[0]) for name in METHODS}
CHAINS = [name for name, cls in CLASSES.items() if issubclass(cls, ChainMethod)]
MEASURED = [name for name, cls in CLASSES.items() if issubclass(cls, MeasuredRanks)]  # refuse: ranks come from data
LOW_RANK = [n for n, cls in CLASSES.items() if issubclass(cls, LowRankMethod) and n not in [*CHAINS, *MEASURED]]


def source(net, rank, seed=5):
    """Random factors of every adapted matrix, one of them of rank 0 left out."""
    g = torch.Generator().manual_seed(seed)
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear) and n != "head"}
    layers.pop("layers.0.up")

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {n: (draw(rank, m.in_features), draw(m.out_features, rank)) for n, m in layers.items()}


def with_update(net, factors):
    """The same network with the update added to its plain weights."""
    other = Net()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        for name, (a, b) in factors.items():
            other.get_submodule(name).weight.add_(b @ a)
    return other


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", LOW_RANK)
def test_the_start_equals_the_base_plus_the_sources_update(name, rank):
    net = Net()
    factors = source(net, rank)
    x, _ = batch(3)
    expected = with_update(net, factors)(x)
    capabilities = method_class(name.split()[0]).capabilities
    if name == "prilora" or capabilities.budget == "growing":  # some matrices start below the mean rank
        factors = {n: (a[:1], b[:, :1]) for n, (a, b) in factors.items()}
        expected = with_update(net, factors)(x)
    net, method = build(name, net=net)
    method.start_from(factors)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-11)
    for key, (a, b) in factors.items():
        mine = method.adapters[key].delta()
        torch.testing.assert_close(mine, b @ a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["elalora", "svd_lora", "adalora"])
def test_singular_vectors_start_orthonormal_and_singular_values_are_those_of_the_update(name):
    net = Net()
    factors = source(net, 2)
    net, method = build(name, net=net)
    method.start_from(factors)
    for key, (a, b) in factors.items():
        adapter = method.adapters[key]
        for rows in (adapter.A[:2], adapter.B[:2]):
            torch.testing.assert_close(rows @ rows.T, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-12)
        expected = torch.linalg.svdvals(b @ a)[:2]
        torch.testing.assert_close(adapter.E[:2] * adapter.scale, expected, rtol=1e-10, atol=0)
        assert not adapter.E[2 : adapter.rank].any()


@pytest.mark.parametrize("name", ["lora", "elalora", "beamlora", "dora_dynamic", "l1ra", "dylora"])
def test_a_started_adapter_trains_on(name):
    net = Net()
    factors = source(net, 1)
    net, method = build(name, net=net)
    method.start_from({n: (a * 0.1, b * 0.1) for n, (a, b) in factors.items()})
    x, y = batch(500, items=200)
    before = nn.functional.cross_entropy(net(x), y).item()
    train(net, method, 80)
    method.finish()
    assert nn.functional.cross_entropy(net(x), y).item() < 0.9 * before


def test_an_exported_adapter_is_what_a_run_starts_from(tmp_path):
    net, method = build("lora")
    train(net, method, 10)
    x, _ = batch(7)
    folder = export_peft(method, net, tmp_path / "adapter")
    fresh, other = build("svd_lora", seed=1)
    other.start_from(read_factors(folder))
    fresh.head.load_state_dict(net.head.state_dict())
    torch.testing.assert_close(fresh(x), net(x), rtol=0, atol=1e-11)


def test_what_does_not_fit_is_refused_and_nothing_is_changed():
    net, method = build("lora")
    good = source(Net(), 1)
    a, b = good["layers.1.up"]
    wrong = {
        "rank 4 at 'layers.1.up', .* starts there with 3": ("layers.1.up", a.repeat(4, 1), b.repeat(1, 4)),
        "has another shape at 'layers.1.up'": ("layers.1.up", a[:, :-1], b),
        "has a matrix 'layers.9.up', which this run does not adapt": ("layers.9.up", a, b),
    }
    for message, (name, x, y) in wrong.items():
        with pytest.raises(UserError, match=message):
            method.start_from({**good, name: (x, y)})
        assert all(not adapter.B.any() for adapter in method.adapters.values())
    assert RANK == 3


@pytest.mark.parametrize("name", ["full", "head", "bitfit", *MEASURED])
def test_a_method_that_cannot_start_from_an_adapter_says_so(name):
    _, method = build(name)
    with pytest.raises(UserError, match=f"method={name.split()[0]} cannot start from another run's adapter"):
        method.start_from({})


def test_a_folder_without_an_adapter_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="has no LoRA adapter to start from"):
        read_factors(tmp_path)


# -- init_from --------------------------------------------------------------------------------------------------


def test_a_run_starts_from_the_run_that_its_own_command_makes_on_another_task(tiny_model_dir, tmp_path):
    from tiny_runs import quick

    from experiments.data.vader import read_sdist
    from experiments.runs.plan import make_plan
    from experiments.runs.prepare import prepare
    from experiments.runs.run import run

    try:
        read_sdist(DataConfig())
    except UserError as error:
        pytest.skip(f"no review sentences: {error}")
    words = ["method=svd_lora", "trainer.max_steps=12"]
    plan = make_plan(quick(tiny_model_dir, tmp_path, *words, "init_from='task=vader_tweets_binary'"))
    source = plan.source("init_from").plan
    assert source.id == make_plan(quick(tiny_model_dir, tmp_path, *words, "task=vader_tweets_binary")).id
    assert plan.identity["init_from"] == source.id
    with pytest.raises(UserError, match="depends on run vader_tweets_binary/svd_lora-r4-s0"):
        run(plan)
    run(source)
    method = prepare(plan).method
    for name, (a, b) in read_factors(source.folder.path / "adapter").items():
        assert b.any()
        torch.testing.assert_close(method.adapters[name].delta(), b @ a, rtol=1e-4, atol=1e-7)
    assert run(plan)["recipe"] == "none"
    by_id = make_plan(quick(tiny_model_dir, tmp_path, *words, f"init_from={source.id}"))
    by_folder = make_plan(quick(tiny_model_dir, tmp_path, *words, f"init_from={source.folder.path}"))
    assert by_id.id == by_folder.id == plan.id
    with pytest.raises(UserError, match="that run has budget r4, this one has r2"):
        make_plan(quick(tiny_model_dir, tmp_path, *words, f"init_from={source.id}", "budget=r2"))


@pytest.mark.parametrize("name", CHAINS)
def test_a_sum_of_pieces_starts_from_no_other_run(name):
    factors = source(Net(), 1)
    _, method = build(name)
    with pytest.raises(UserError, match=f"method={method.name} cannot start from another run's adapter"):
        method.start_from(factors)
