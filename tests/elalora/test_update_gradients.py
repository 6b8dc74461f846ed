"""The gradient of whole updates against autograd on the frozen weight, whose gradient it is."""

from __future__ import annotations

import pytest
import torch
from nets import Net, batch
from torch import nn
from torch.utils.checkpoint import checkpoint

from baselines.svd_lora import SVDLoRA, SVDLoRAConfig
from elalora import Budget
from elalora.update_gradients import UpdateGradients


@pytest.fixture
def adapted():
    net = Net()
    method = SVDLoRA(SVDLoRAConfig(E_start=0.5), Budget(2))
    method.attach(net, ["up", "down"], 10, keep=["head"])
    return net, method


def plain_run(net, step):
    x, y = batch(step)
    nn.functional.cross_entropy(net(x), y).backward()


def again(reentrant):
    """Backward passes that compute the layers a second time."""

    def run(net, step):
        x, y = batch(step)
        x.requires_grad_(True)
        out = checkpoint(lambda x: net(x), x, use_reentrant=reentrant)
        nn.functional.cross_entropy(out, y).backward()

    return run


@pytest.mark.parametrize("run", [plain_run, again(True), again(False)], ids=["plain", "reentrant", "not reentrant"])
def test_it_is_the_gradient_of_the_frozen_weight_summed_over_micro_batches(adapted, run):
    net, method = adapted
    gradients = UpdateGradients(method.adapters)
    for step in range(2):
        run(net, step)
    found = {name: gradients.take(name) for name in method.adapters}
    for adapter in method.adapters.values():
        adapter.base.weight.requires_grad_(True)
    for step in range(2):
        plain_run(net, step)
    for name, adapter in method.adapters.items():
        torch.testing.assert_close(found[name], adapter.base.weight.grad, rtol=0, atol=1e-13)


def test_it_forgets_what_was_taken_or_cleared_and_stops_for_good(adapted):
    net, method = adapted
    gradients = UpdateGradients(method.adapters)
    name = "layers.0.up"
    plain_run(net, 0)
    assert gradients.take(name).any() and not gradients.take(name).any()
    plain_run(net, 0)
    gradients.clear()
    assert not gradients.take(name).any()
    gradients.stop()
    plain_run(net, 0)
    assert not gradients.take(name).any() and gradients.take(name).shape == (14, 10)


def test_evaluation_collects_nothing(adapted):
    net, method = adapted
    gradients = UpdateGradients(method.adapters)
    with torch.no_grad():
        net(batch(0)[0])
    assert not gradients.take("layers.0.up").any()
