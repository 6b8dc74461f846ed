"""A short AdaLoRA run on the small net of `nets`."""

from __future__ import annotations

from nets import Net

from baselines.adalora import AdaLoRA, AdaLoRAConfig
from elalora import Budget


def small(total: int = 60, rank: int = 2, **knobs) -> tuple[Net, AdaLoRA]:
    """Six matrices, start 4, budget 2: warm-up 10, maskings every 7 steps, final phase from step 40 of 60."""
    net = Net()
    given = {"t_initial": 10, "t_final": 20, "interval": 7} | knobs
    method = AdaLoRA(AdaLoRAConfig(**given), Budget(rank=rank))
    method.attach(net, ["up", "down"], total, keep=["head"])
    return net, method
