"""The methods that tests/baselines/test_contract.py checks, each with the settings of a short run."""

from __future__ import annotations

from nets import Net, batch

from baselines.registry import method_class
from elalora import Budget

STEPS = 80
PHASES = {"t_initial": 8, "t_final": 20, "interval": 6}
METHODS = {
    "elalora": {**PHASES, "b": 3},
    "elalora official": {**PHASES, "b": 3, "variant": "official"},
    "lora": {},
    "svd_lora": {},
    "rac_lora": {"blocks": 3},
    "rac_lora bernoulli": {"blocks": 3, "side": "bernoulli", "orthonormal": True},
    "chain_lora": {"blocks": 3},
    "xgblora": {},
    "adalora": PHASES,
    "sora": {},
    "prilora": {},
    "beamlora": {},
    "flexlora": {**PHASES, "b": 2},
    "flexlora official": {**PHASES, "b": 2, "variant": "official"},
    "increlora": {"t_initial": 3, "interval": 4, "top_h": 2},
    "increlora official": {"t_initial": 3, "interval": 4, "top_h": 2, "variant": "official"},
    "alora": {},
    "grower:Grower": {},
    "dora_dynamic": {**PHASES},
    "dora_dynamic official": {**PHASES, "variant": "official"},
    "l1ra": {"l1": 1.25},
    "l1ra official": {"l1": 1.25, "variant": "official"},
    "dylora": {},
    "dylora official": {"variant": "official"},
    "gelora": {},
    "gora": {},
    "eva": {},
    "gora official": {"variant": "official"},
    "sd_lora": {},
    "sd_lora official": {"variant": "official"},
    "sd_lora rr": {"reduce": "rr", "mu": 1, "nu": 2},
    "sd_lora kd": {"reduce": "kd", "tau": 0.9},
    "o_lora": {},
    "task_lora": {},
    "full": {},
    "head": {},
    "bitfit": {},
}
RANK = 3
INCREMENTS = {"sd_lora": 3, "o_lora": 3, "task_lora": 3}  # of methods that are made for sequences; others train on


def build(name, seed=0, net=None, steps=STEPS, knobs=None):
    cls = method_class(name.split()[0])
    budget = Budget(RANK) if cls.capabilities.budget != "none" else None
    method = cls(cls.Config(**(METHODS[name] if knobs is None else knobs)), budget)
    method.increments = INCREMENTS.get(name.split()[0], 1)
    net = net or Net()
    net = method.attach(net, ["up", "down"], steps, keep=["head"], seed=seed)
    if method.batches_wanted:
        x, labels = batch(900)
        method.prepare([{"x": x.to(net.head.weight.dtype), "labels": labels}])
    return net, method
