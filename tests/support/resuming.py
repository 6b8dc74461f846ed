"""Checks that a run resumed half-way in a new process equals one that never stopped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import torch
from nets import Net, train

from elalora import Method, RowwiseAdamW, Schedule
from experiments.training import checkpoint


def weights_after_a_stop(make: Callable[[Net], Method], steps: int, stop: int, lr: float = 5e-3) -> list[torch.Tensor]:
    """The trained parameters of a run of `steps` that was saved and restored after `stop` of them.

    Args:
        make: attaches a method to a net; called once for each half.
    """
    net = Net()
    method = make(net)
    optimizer, schedule = train(net, method, stop, lr=lr)
    state = copy.deepcopy(checkpoint.collect(net, method, optimizer, schedule))
    net = Net()
    method = make(net)
    optimizer = RowwiseAdamW(method.groups(net, lr, 0.0), method.directions())
    schedule = Schedule(optimizer, steps, stages=method.stages())
    values = json.loads(json.dumps({name: v for name, v in state.items() if not isinstance(v, torch.Tensor)}))
    checkpoint.check_form(values, checkpoint.collect(net, method, optimizer, schedule))
    checkpoint.restore(state, net, method, optimizer, schedule)
    train(net, method, steps - stop, lr=lr, start=stop, optimizer=optimizer)
    method.finish()
    return [p.detach() for p in net.parameters() if p.requires_grad]


def weights_without_a_stop(make: Callable[[Net], Method], steps: int, lr: float = 5e-3) -> list[torch.Tensor]:
    """The trained parameters of the same run without a stop."""
    net = Net()
    method = make(net)
    train(net, method, steps, lr=lr)
    method.finish()
    return [p.detach() for p in net.parameters() if p.requires_grad]


def check_resumes(make: Callable[[Net], Method], steps: int, stop: int) -> None:
    """Asserts that both runs have the same parameters, bit for bit."""
    whole, halves = weights_without_a_stop(make, steps), weights_after_a_stop(make, steps, stop)
    assert len(whole) == len(halves) and all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
