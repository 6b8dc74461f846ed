"""Every benchmark that is at hand trains and evaluates with every method, on its real data: `make smoke`.

A run is 60 steps on 64 items, so its loss must fall; what it stored is then made again from its adapter by stock PEFT.
The model is MiniLM-L6 with its real weights, for summaries and images a small random stand-in.
"""

from __future__ import annotations

import json

import pandas
import pytest
import torch
from omegaconf import OmegaConf
from tiny_runs import config

from experiments.data import load_task
from experiments.data.items import make_items
from experiments.data.protocols import apply_protocol
from experiments.models.fit import fit
from experiments.models.load import HEADED, load_model, load_processor
from experiments.runs.plan import make_plan
from experiments.runs.prepare import prepare
from experiments.runs.run import run
from experiments.standins.folder import standins
from experiments.training.readout import make_readout

TASKS = {
    "cola": ["task.max_length=24"],
    "rte": ["task.max_length=48"],
    "mrpc": ["task.max_length=48"],
    "stsb": ["task.max_length=32"],
    "sst2": ["task.max_length=24"],
    "wnli": ["task.max_length=48"],
    "scitldr": ["task.max_length=64", "task.target_length=24", "task.generate_length=8", "task.beams=2"],
    "own_images": [],
}
METHODS = {
    "elalora": ["method=elalora"],
    "elalora_official": ["method=elalora", "method.variant=official"],
    "lora": ["method=lora"],
    "svd_lora": ["method=svd_lora"],
    "rac_lora": ["method=rac_lora", "method.blocks=3"],
    "xgblora": ["method=xgblora"],
    "chain_lora": ["method=chain_lora", "method.blocks=3"],
    "adalora": ["method=adalora"],
    "sora": ["method=sora"],
    "prilora": ["method=prilora", "method.every=20"],
    "beamlora": ["method=beamlora"],
    "dora_dynamic": ["method=dora_dynamic"],
    "l1ra": ["method=l1ra", "method.l1=3"],
    "alora": ["method=alora", "method.rounds=2"],
    "increlora": ["method=increlora"],
    "dylora": ["method=dylora"],
    "dora": ["method=peft", "+method.options.use_dora=true"],
    "full": ["method=full"],
    "head": ["method=head"],
    "bitfit": ["method=bitfit"],
}
STANDINS = {"scitldr": "bart", "own_images": "vit"}
# Learning rates at which 60 steps lower the loss by a tenth, on MiniLM and on a random stand-in.
RATES = {"full": (3e-4, 1e-3), "head": (2e-2, 2e-2), "bitfit": (2e-2, 5e-3), "xgblora": (5e-4, 2e-3)}
OTHER_RATES = (5e-3, 2e-2)
QUICK = {("own_images", "elalora")}
SLOW = {("cola", "elalora"), ("stsb", "adalora"), ("scitldr", "elalora")}
COMMON = [
    "trainer.max_steps=60",
    "trainer.batch_size=16",
    "trainer.log_every=5",
    "data.train_items=64",
    "store.checkpoint_every=0",
    "protocol=clean",
]


def model_words(task, method):
    """MiniLM for texts, a random stand-in of the other architectures, and the rate for it."""
    on_minilm, on_standin = RATES.get(method, OTHER_RATES)
    if (standin := STANDINS.get(task)) is None:
        return ["model=minilm", f"trainer.lr={on_minilm}"]
    return ["model=local", f"model.path={standins()}/models/{standin}", f"trainer.lr={on_standin}"]


def cases():
    for task in TASKS:
        for method in METHODS:
            if task == "scitldr" and method == "head":
                continue  # BART has no head of its own there
            case = (task, method)
            marks = [] if case in QUICK else pytest.mark.slow if case in SLOW else pytest.mark.full
            yield pytest.param(task, method, id=f"{task}-{method}", marks=marks)


@pytest.fixture(scope="module")
def few_items():
    """The reported split cut to its first 48 items, in every run of this file: evaluation is not what is tried here."""
    import experiments.data.protocols as protocols

    whole = protocols._by_splits
    patch = pytest.MonkeyPatch()

    def short(data, protocol):
        from dataclasses import replace

        splits = whole(data, protocol)
        first = range(min(48, len(splits.report)))
        select = splits.select and splits.select.select(range(min(48, len(splits.select))))
        return replace(splits, report=splits.report.select(first), select=select)

    patch.setattr(protocols, "_by_splits", short)
    yield
    patch.undo()


def read_again(plan):
    """Predictions of the reported split by stock PEFT, or by the stored parameters of a method without that form."""
    task = OmegaConf.to_object(plan.config.task)
    processor = load_processor(plan.config.model, task)
    folder = plan.folder.path / "adapter"
    network: torch.nn.Module
    if (folder / "trained.safetensors").is_file():
        from safetensors.torch import load_file

        network = prepare(plan).model  # as before its first step
        missing, unexpected = network.load_state_dict(load_file(folder / "trained.safetensors"), strict=False)
        assert not unexpected
    else:
        from peft import PeftModel

        network, _, _ = load_model(plan.config.model, task, seed=123)  # another head: the stored one must replace it
        fit(plan.config.model, task, network, processor)
        network = PeftModel.from_pretrained(network, folder)
    data = load_task(task, OmegaConf.to_object(plan.config.data))
    splits = apply_protocol(data, OmegaConf.to_object(plan.config.protocol), train_items=None, seed=0)
    items = make_items(splits.report, processor, task, None)
    readout = make_readout(task, processor, network)
    with torch.inference_mode():
        return sorted(readout.read(network.eval(), items, range(len(items)), items.batch(range(len(items)))))


@pytest.mark.parametrize(("task", "method"), list(cases()))
def test_it_trains_moves_and_its_adapter_gives_the_stored_predictions(task, method, shared, few_items, tmp_path):
    words = [*COMMON, f"task={task}", *TASKS[task], *model_words(task, method), *METHODS[method]]
    plan = make_plan(config(*words, f"data.root={shared}/data", f"store.root={tmp_path}"))
    result = run(plan)
    lines = [json.loads(line) for line in (plan.folder.path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["value"] for line in lines if line["metric"] == "loss" and line["split"] == "train"]
    assert min(losses[-3:]) < 0.9 * losses[0], losses
    if plan.method.capabilities.adaptive:
        assert result["moves"]["pruned"] + result["moves"]["grown"] > 0
    stored = pandas.read_parquet(plan.folder.path / "predictions.parquet").sort_values("idx")
    again = read_again(plan)
    assert HEADED[plan.config.task.kind] and [row[0] for row in again] == list(stored["idx"])
    if plan.config.task.kind == "summarization":
        same = [row[2] == text for row, text in zip(again, stored["prediction"], strict=True)]
        assert sum(same) >= 0.95 * len(same)  # a beam may turn at a tie
    else:
        torch.testing.assert_close(
            torch.tensor([row[3] for row in again], dtype=torch.float64),
            torch.tensor(stored["score"].to_numpy()),
            rtol=1e-3,
            atol=1e-3,
        )
