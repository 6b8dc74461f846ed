"""Every path of a run on a device without float64, as Apple's GPUs are, gives what the CPU gives.

The device is a stand-in (`fake_device`): it shows where float64 is made and where tensors of two devices meet. What a
real GPU rounds differently, and which operations torch lacks there, it cannot show.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace

import pandas
import pytest
import torch
from fake_device import DEVICE, NoFloat64, fake_device
from tiny_runs import config
from torch import nn

import experiments.standins.data as made_up
from baselines.lora import LoRA, LoRAConfig
from elalora import Budget
from elalora.adapters import LowRankLinear
from elalora.attach import merge
from experiments.contribution import read, rebuild
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.standins.models import make_models

MODELS = {"sst2": "bert", "stsb": "bert", "scitldr": "bart", "svhn": "vit"}
LENGTHS = {"scitldr": ["task.target_length=8", "task.generate_length=3", "task.beams=2"]}
MOVES = ["method.t_initial=1", "method.t_final=1", "method.interval=2"]
RUNS = {
    "classes": ["task=sst2", "method=elalora", *MOVES, "store.checkpoint_every=2"],
    "values": ["task=stsb", "method=adalora", "method.t_initial=1", "method.t_final=2", "method.interval=1"],
    "summaries": ["task=scitldr", "method=elalora", *MOVES, "method.variant=official"],
    "images": ["task=svhn", "method=sora", "protocol=tune"],
    "micro-batches": ["task=sst2", "method=lora", "trainer.micro_batch=3"],
    "qr": ["task=sst2", "method=elalora", *MOVES, "method.new_direction=qr"],
    **{name: ["task=sst2", f"method={name}"] for name in ("svd_lora", "full", "head", "bitfit")},
    "prilora": ["task=sst2", "method=prilora", "method.every=2"],
    "beamlora": ["task=sst2", "method=beamlora", "method.keep=0.3"],
    "increlora": ["task=sst2", "method=increlora", "method.t_initial=0", "method.interval=1"],
    "alora": ["task=sst2", "method=alora", "method.t_initial=1", "method.rounds=2", "method.dev_items=4"],
    "DoRA": ["task=sst2", "method=peft", "+method.options.use_dora=true"],
}
QUICK = ("classes", "images")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apple")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made_up, "TEXT_ROWS", {"train": 16, "validation": 6, "test": 6})
        patch.setattr(made_up, "IMAGE_ROWS", {"train": 16, "validation": 6, "test": 6})
        for task in ("sst2", "stsb"):
            made_up._glue(folder / "data" / "glue" / task, task, 0)
        made_up._summaries(folder / "data" / "summarization" / "scitldr_a", "scitldr_a", 0)
        made_up._images(folder / "data" / "vtab-1k" / "svhn", "svhn", 0)
    return make_models(folder / "models").parent


def plan_of(places, store, *words):
    task = next(word.removeprefix("task=") for word in words if word.startswith("task="))
    lengths = [] if task == "svhn" else ["task.max_length=16"]
    return make_plan(config(
        "protocol=clean", *words, *lengths, *LENGTHS.get(task, []), "model=local",
        f"model.path={places}/models/{MODELS[task]}", "model.attention=eager", f"data.root={places}/data",
        "task.verify=false", "trainer=quick", "data.train_items=null", "trainer.max_steps=5", "trainer.batch_size=8",
        "trainer.evaluations=1", "trainer.log_every=1", "trainer.lr=2e-2", f"store.root={store}", "budget=r2",
    ))  # fmt: skip


def content(plan):
    """Losses, rounds, predictions and export of a finished run."""
    folder = plan.folder.path
    keep = ("step", "name", "value", "ranks", "split")
    rows = [
        {k: v for k, v in json.loads(line).items() if k in keep}
        for name in ("metrics.jsonl", "ranks.jsonl") if (folder / name).is_file()
        for line in (folder / name).read_text().splitlines()
    ]  # fmt: skip
    return rows, repr(pandas.read_parquet(folder / "predictions.parquet").to_dict("list"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RUNS]
)
def test_a_run_gives_what_it_gives_on_the_cpu(name, places, tmp_path):
    here, there = (plan_of(places, tmp_path / store, *RUNS[name]) for store in ("cpu", "device"))
    run(here)
    with fake_device():
        run(there)
    assert content(there) == content(here)
    assert any(row.get("value") for row in content(here)[0])


@pytest.mark.slow
def test_a_run_that_starts_from_another_ones_update_and_its_contributions(places, tmp_path):
    words = RUNS["svd_lora"]
    first = plan_of(places, tmp_path, "seed=1", *words)
    run(first)
    results = []
    for store in ("cpu", "device"):
        plan = plan_of(places, tmp_path / store, *words, f"init_from={first.folder.path}")
        with fake_device() if store == "device" else nullcontext():
            run(plan)
        results.append(content(plan))
    assert results[0] == results[1]
    rebuilt = rebuild(plan.folder.path)
    loss = read(rebuilt).loss
    with fake_device():
        rebuilt.model.to(DEVICE)
        batches = [(weight, {k: v.to(DEVICE) for k, v in batch.items()}) for weight, batch in rebuilt.batches]
        assert read(replace(rebuilt, batches=batches)).loss == loss


class Doubled(nn.Linear):
    """A subclass whose merge is checked in float64."""


def test_a_subclass_is_merged_on_the_device():
    model = nn.Sequential(Doubled(6, 5))

    method = LoRA(LoRAConfig(), Budget(2))
    with fake_device():
        method.attach(model.to(DEVICE), ["0"], 5)
        with torch.no_grad():
            model[0].B.add_(0.1)
        assert isinstance(model[0], LowRankLinear)
        x = torch.randn(3, 6).to(DEVICE)
        before = model(x).cpu()
        merge(model)
        torch.testing.assert_close(model(x).cpu(), before)
        assert isinstance(model[0], Doubled)


def test_the_stand_in_refuses_what_such_a_device_refuses():
    with fake_device():
        x = torch.ones(3).to(DEVICE)
        assert x.device == DEVICE and (x + 1).sum().item() == 6.0
        for make in (x.double, lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE), lambda: x.to(torch.float64)):
            with pytest.raises(NoFloat64, match="no torch.float64"):
                make()
        assert x.cpu().double().dtype == torch.float64
        with pytest.raises(RuntimeError, match="one of the CPU"):
            x + torch.ones(3)
