"""Small runs in float64, for one process and for two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tiny_runs import quick

# 41 items in batches of 8: the last batch of an epoch has one item, and the second process an empty share
WORDS = [
    "threads=1", "model.dropout=0", "data.train_items=41", "trainer.max_steps=14", "trainer.evaluations=2",
    "trainer.log_every=3", "trainer.micro_batch=3", "store.checkpoint_every=4",
]  # fmt: skip
MOVES = "method.t_initial=2 method.t_final=4 method.interval=3"
PARTS = "task.increments=2 trainer.evaluations=0"  # the two classes, one after the other
METHODS = {
    "lora": "",
    "svd_lora": "",
    "rac_lora": "method.blocks=4 method.side=bernoulli",
    "chain_lora": "method.blocks=4",
    "xgblora": "",
    "elalora": MOVES,
    "elalora_official": f"{MOVES} method.variant=official",
    "sd_lora": PARTS,
    "sd_lora_official": f"{PARTS} method.variant=official",
    "o_lora": PARTS,
    "task_lora": PARTS,
    "class_means": PARTS,
    "adalora": "method.t_initial=2 method.t_final=4 method.interval=2",
    "sora": "",
    "prilora": "method.every=5",
    "beamlora": "",
    "flexlora": f"{MOVES} method.b=2 method.fall=constant",
    "dora_dynamic": "method.t_initial=2 method.t_final=4 method.interval=2",
    "l1ra": "method.l1=1.5 method.gate_lr=0.1",
    "alora": "method.rounds=3 method.interval=3 method.dev_items=12",
    "increlora": "method.t_initial=1 method.interval=2",
    "dylora": "",
    "gelora": "method.samples=100",
    "gora": "method.batches=5",
    "eva": "",
    "full": "",
    "head": "",
    "bitfit": "",
    "peft": "+method.options.use_dora=true",
}


def words_of(name: str) -> str:
    return f"method={name.partition('_official')[0]} {METHODS[name]}"


def configs(folder: Path, runs: Sequence[Sequence[str]]) -> list[DictConfig]:
    return [quick(folder / "model", folder / "runs", *WORDS, *words) for words in runs]


def in_float64() -> None:
    """Makes every model that is loaded from now on one of float64."""
    from experiments.models import load as models

    load = models.load_model

    def double(*given: Any) -> Any:
        loaded = load(*given)
        return loaded._replace(network=loaded.network.double())

    models.load_model = double
