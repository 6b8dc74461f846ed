"""EVA: PEFT's components and ranks in this project's adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoders import TARGETS, bert
from scipy.linalg import subspace_angles

from baselines.eva import EVA, EVAConfig, _rows
from baselines.peft_tuner import PeftTuner, PeftTunerConfig
from elalora import Budget, UserError
from elalora.export import export_peft

peft = pytest.importorskip("peft", reason="peft is an optional extra")
N, KEEP = 3, ["bert.pooler", "classifier"]


def inputs(n=4):
    g = torch.Generator().manual_seed(1)
    out = []
    for _ in range(n):
        ids = torch.randint(1, 50, (16, 8), generator=g)
        mask = torch.ones_like(ids)
        mask[:4, 6:] = 0
        out.append({"input_ids": ids, "attention_mask": mask, "labels": (ids[:, 0] > 25).long()})
    return out


def prepared(**settings):
    model, method = bert(), EVA(EVAConfig(**settings), Budget(N))
    method.attach(model, TARGETS, 20, KEEP)
    method.prepare(inputs())
    return model, method


@pytest.fixture(scope="module")
def eva():
    return prepared()


def test_ranks_and_start_are_those_of_pefts_own_adapters(eva):
    _, method = eva
    options = {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "lora_alpha": 16}
    stock = PeftTuner(PeftTunerConfig("LORA", options), Budget(N))
    stock.attach(bert(), TARGETS, 20, KEEP)
    stock.prepare(inputs())
    assert method.ranks() == stock.ranks()
    factors, scales = stock.lora_factors(), {a.scale for a in method.adapters.values()}
    for name, (a, b) in method.lora_factors().items():
        torch.testing.assert_close(a, factors[name][0], rtol=0, atol=1e-5)
        assert not b.any() and not factors[name][1].any()
    assert scales == {16 / N} == {layer.scaling["default"] for layer in stock._layers().values()}


def test_the_rank_sum_is_the_budgets_and_no_matrix_has_more_than_rho_n(eva):
    _, method = eva
    ranks = method.ranks()
    assert sum(ranks.values()) == N * len(ranks) and len(set(ranks.values())) > 1
    assert max(ranks.values()) <= 2 * N
    method.check_budget()


def test_rho_1_gives_every_matrix_the_same_rank():
    assert set(prepared(rho=1.0)[1].ranks().values()) == {N}


def test_a_spans_the_principal_components_of_the_inputs(eva):
    """Numpy's SVD of the centred inputs of the first layer, whose tokens that are padding do not count."""
    _, method = eva
    seen, plain = [], bert().eval()
    name = next(iter(method.adapters))
    plain.get_submodule(name).register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    for batch in inputs():
        plain(**batch)
    rows = (
        torch.cat([x[batch["attention_mask"].bool()] for x, batch in zip(seen, inputs(), strict=True)]).double().numpy()
    )
    _, _, right = np.linalg.svd(rows - rows.mean(0))
    a = method.adapters[name].A.detach().double().numpy()[: method.adapters[name].rank]
    assert subspace_angles(a.T, right[: len(a)].T).max() < 0.2  # tau is 0.99, an angle of 0.14
    np.testing.assert_allclose(a @ a.T, np.eye(len(a)), atol=1e-4)


def test_the_model_starts_unchanged_and_a_matrix_may_have_no_rank(eva, tmp_path):
    model, method = eva
    batch = {k: v for k, v in inputs(1)[0].items() if k != "labels"}
    torch.testing.assert_close(model.eval()(**batch).logits, bert().eval()(**batch).logits)
    again = EVA(EVAConfig(), Budget(N))
    model = again.attach(bert(), TARGETS, 20, KEEP)
    ranks = method.ranks()
    first = next(iter(ranks))
    again.prepare(iter(()), {**ranks, first: 0})
    for adapter in again.adapters.values():
        torch.nn.init.normal_(adapter.A[: adapter.rank]), torch.nn.init.normal_(adapter.B[: adapter.rank])
    reloaded = peft.PeftModel.from_pretrained(bert(), export_peft(again, model, tmp_path)).eval()
    torch.testing.assert_close(reloaded(**batch).logits, model.eval()(**batch).logits, rtol=1e-4, atol=1e-5)
    assert again.adapters[first].rank == 0


def test_padding_targets_and_relative_positions_are_told_apart():
    x = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    labels = torch.tensor([[-100, 5, -100], [-100, -100, 7]])
    assert len(_rows(x, {"attention_mask": mask}, "encoder.q")) == 5
    assert _rows((x,), {"attention_mask": mask, "labels": labels}, "layers.0.q")[:, 0].tolist() == [4.0, 20.0]
    assert len(_rows(x, {"attention_mask": torch.ones(2, 7), "labels": labels}, "model.decoder.layers.0.q")) == 2
    assert len(_rows(torch.ones(1, 6, 4), {"attention_mask": mask}, "encoder.q")) == 0
    assert len(_rows(torch.ones(2, 5, 4), {"pixel_values": torch.ones(2, 3, 8, 8)}, "q")) == 10


@pytest.mark.parametrize("more", [0, 60, 500])
def test_a_budget_in_parameters_pays_for_its_ranks_and_not_for_one_more(eva, more, monkeypatch):
    """Against PEFT's layout with one rank more, whatever way the sum was found."""
    _, plain = eva
    costs = {name: adapter.cost for name, adapter in plain.adapters.items()}
    params = sum(rank * costs[name] for name, rank in plain.ranks().items()) + more
    prices, found = {}, EVA._found

    def seen(self, batches, total):
        layout = found(self, batches, total)
        prices[total] = sum(len(rows) * costs[name] for name, rows in layout.items())
        return layout

    monkeypatch.setattr(EVA, "_found", seen)
    method = EVA(EVAConfig(), Budget(params=params))
    method.attach(bert(), TARGETS, 20, KEEP)
    method.prepare(inputs())
    total = sum(method.ranks().values())
    assert total >= N * len(costs)
    assert method.count().params == prices[total] <= params < prices[total + 1]
    method.check_budget()


def test_what_peft_cannot_do_is_refused_in_one_line():
    method = EVA(EVAConfig(), Budget(N))
    method.attach(bert(), TARGETS, 20, KEEP)
    tiny = {k: v[:1, :3] if v.ndim > 1 else v[:1] for k, v in inputs(1)[0].items()}
    with pytest.raises(UserError, match=r"at least rho N = 6 tokens, the largest of 1 has 3"):
        method.prepare([tiny])
