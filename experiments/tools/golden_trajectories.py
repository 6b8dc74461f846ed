"""Golden trajectories: 20 steps in float64 of every method, and of the common trainer, written to tests/golden.

A finished run is found by the identity of its configuration, so its numbers must not change while the identity stays.
When they change on purpose, raise `numerics` of the method, or its variant's entry in `revised` (or TRAINER_NUMERICS
in experiments/runs/plan.py), and write the new trajectories:

    python -m experiments.tools.golden_trajectories
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from experiments.runtime.places import CHECKOUT

GOLDEN = CHECKOUT / "tests" / "golden"
sys.path.append(str(CHECKOUT / "tests" / "support"))  # nets and encoders: the small networks of the tests

STEPS = 20
PHASES: dict[str, Any] = {"t_initial": 2, "t_final": 4, "interval": 3}
METHODS: dict[str, dict[str, Any]] = {
    "elalora": {**PHASES, "b": 3},
    "elalora-official": {**PHASES, "b": 3, "variant": "official"},
    "lora": {},
    "svd_lora": {},
    "rac_lora": {"blocks": 3},
    "rac_lora-bernoulli": {"blocks": 3, "side": "bernoulli", "orthonormal": True, "rewarm": True},
    "chain_lora": {"blocks": 3},
    "xgblora": {},
    "adalora": PHASES,
    "adalora-official": {**PHASES, "variant": "official"},
    "adalora-paper": {**PHASES, "variant": "paper"},
    "sora": {},
    "sora-official": {"variant": "official"},
    "prilora": {"every": 5},
    "beamlora": {},
    "beamlora-official": {"variant": "official", "keep": 0.7, "interval": 4},
    "flexlora": {**PHASES, "b": 2},
    "flexlora-official": {**PHASES, "b": 2, "variant": "official"},
    "dora_dynamic": PHASES,
    "dora_dynamic-official": {**PHASES, "variant": "official"},
    "l1ra": {"l1": 3.75},
    "l1ra-official": {"l1": 3.75, "variant": "official"},
    "alora": {},
    "increlora": {"t_initial": 2, "interval": 3, "top_h": 3},
    "increlora-official": {"t_initial": 2, "interval": 3, "top_h": 3, "variant": "official"},
    "dylora": {},
    "dylora-official": {"variant": "official"},
    "gelora": {},
    "gelora-own": {"ranks": "own"},
    "gora": {},
    "eva": {},
    "gora-official": {"variant": "official"},
    "sd_lora": {},
    "sd_lora-official": {"variant": "official"},
    "o_lora": {},
    "task_lora": {},
    "full": {},
    "head": {},
    "bitfit": {},
}


def trajectory(name: str) -> dict[str, Any]:
    """Numerics revision, the loss of each step before it, and the ranks after it."""
    from nets import Net, batch, train
    from torch import nn

    from baselines.increment_pieces import IncrementPieces
    from baselines.registry import method_class
    from elalora import Budget

    cls = method_class(name.split("-")[0])
    budget = Budget(3) if cls.capabilities.budget != "none" else None
    method = cls(cls.Config(**METHODS[name]), budget)
    method.increments = 3 if issubclass(cls, IncrementPieces) else 1
    net = Net()
    method.attach(net, ["up", "down"], STEPS, keep=["head"], seed=0)
    if method.batches_wanted:
        x, labels = batch(900)
        method.prepare([{"x": x, "labels": labels}])
    losses, ranks = [], []

    def look(step: int) -> None:
        x, y = batch(step)
        losses.append(nn.functional.cross_entropy(net(x), y).item())
        ranks.append(list(method.ranks().values()))

    train(net, method, STEPS, lr=1e-2, warmup=3, clip=1.0, each=look)
    return {"numerics": cls.revision(method.config), "losses": losses, "ranks": ranks}


def trainer_trajectory() -> dict[str, Any]:
    """The common trainer on random tokens: accumulation, clipping, dropout, evaluation and its batches."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from encoders import TARGETS, bert

    from elalora import Budget, ElaLoRA, ElaLoRAConfig
    from experiments.config.schema import TrainerConfig
    from experiments.config.task import TaskConfig
    from experiments.runs.plan import TRAINER_NUMERICS
    from experiments.store.folder import RunFolder
    from experiments.training.progress import Prepared, Split, Splits
    from experiments.training.readout import make_readout
    from experiments.training.recorder import Recorder
    from experiments.training.resume import Checkpoints
    from experiments.training.trainer import Trainer

    AcceleratorState._reset_state(True)
    model = bert().double()
    method = ElaLoRA(ElaLoRAConfig(**PHASES, b=3), Budget(3))
    method.attach(model, TARGETS, STEPS, keep=["bert.pooler", "classifier"], seed=0)
    config = TrainerConfig(max_steps=STEPS, batch_size=8, micro_batch=3, lr=5e-3, log_every=1, evaluations=2)
    task = TaskConfig(name="tokens", source="vader", subset="movies", num_labels=3, metrics=["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        with run.working():
            train, select, report = (Split(n, _tokens(s)) for s, n in enumerate(("train", "validation", "test")))
            splits = Splits(train, select, report)
            readout = make_readout(task, None, model)
            prepared = Prepared(Accelerator(cpu=True), None, splits, readout, model, method)
            silent: Any = _Silent()
            trainer = Trainer(prepared, config, 0, Recorder(run, silent, silent), Checkpoints(run))
            trainer.resume()
            trainer.run()
            lines = run.lines("metrics.jsonl")
            losses = [line["value"] for line in lines if line["metric"] not in ("lr", "grad_norm")]
            ranks = [list(line["ranks"].values()) for line in run.lines("ranks.jsonl")]
    return {"numerics": TRAINER_NUMERICS, "losses": losses, "ranks": ranks}


class _Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *words, **more: None


def _tokens(seed: int) -> Any:
    from experiments.data.text_items import Padding, Ragged, TextItems

    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (60,), generator=g)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    tokens = torch.randint(1, 50, (int(offsets[-1]),), generator=g, dtype=torch.int32)
    labels = torch.randint(0, 3, (60,), generator=g)
    padding = Padding(token=0, token_type=0, side="right")
    return TextItems(Ragged(tokens, offsets), torch.arange(60), labels, 0, 0, cached=False, padding=padding)


def make(name: str) -> dict[str, Any]:
    """One trajectory by its file's name."""
    return trainer_trajectory() if name == "trainer" else trajectory(name)


def main() -> None:
    """Writes every trajectory to tests/golden."""
    argparse.ArgumentParser(description="Writes the golden trajectories to tests/golden.").parse_args()
    for name in [*METHODS, "trainer"]:
        path = GOLDEN / f"{name}.json"
        path.write_text(json.dumps(make(name)) + "\n", encoding="utf-8")
        print(path.name)


if __name__ == "__main__":
    main()
