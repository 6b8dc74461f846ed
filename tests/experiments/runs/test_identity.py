"""One computation has one identity, and different computations have different ones."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from tiny_runs import config

from baselines.registry import METHODS, method_class
from elalora.budget import Budget
from elalora.resolve import RunSize, canonical, resolve
from experiments.config.task import ProtocolConfig, TaskConfig
from experiments.data.content import TaskData
from experiments.data.protocols import apply_protocol, draws_held_out, selects
from experiments.runs import identity
from experiments.runs.plan import make_plan


def plan(words: str):
    return make_plan(config(*words.split()))


# each pair computes the same: the trainer's default is 100 steps, the budget's r4, weight decay 0
SAME = {
    "a switch as the variant has it": ("method.D1=false method.D2=false method.D8=false", ""),
    "official switches": (
        "method.variant=official method.D1=true method.D12=true method.D15=true method.D2=true",
        "method.variant=official",
    ),
    "the form of D4 where D4 is set": ("method.variant=official method.D4=image method.D4_form=image",
                                       "method.variant=official method.D4=image"),
    "D4_form in the paper's variant": ("method.D4_form=image", ""),
    "D4 as text without weight decay": ("method.D4=text", ""),
    "lengths in steps": ("method.t_initial=10 method.t_final=0.25 method.interval=20", ""),
    "moves of the first round": ("method.b=8", ""),
    "capacity": ("method.capacity=12", ""),
    "the form of a regulariser of weight 0": ("method.orth_weight=0 method.orth_form=squared", "method.orth_weight=0"),
    "decays that random importance does not use": ("method.importance=random method.beta1=0.5 method.D15=true",
                                                   "method.importance=random"),
    "rounds of a fixed rank without side effects": ("method=svd_lora method.interval=7 method.b=3", "method=svd_lora"),
    "AdaLoRA's defaults": ("method=adalora method.init_rank=6 method.interval=1 method.t_initial=13", "method=adalora"),
    "SoRA's defaults": ("method=sora method.r_max=8 method.S1=false method.lambda1=0 method.report_every=5",
                        "method=sora"),
    "SoRA's stages where there is one": ("method=sora method.max_lambda=1e-3 method.stage_share=0.1 method.S3=true",
                                         "method=sora"),
    "SoRA's gates at the common rate": ("method=sora trainer.lr=3e-3 method.gate_lr=3e-3",
                                       "method=sora trainer.lr=3e-3"),
    "BeamLoRA's switches as the variant has them": ("method=beamlora method.variant=official method.B2=true",
                                                    "method=beamlora method.variant=official"),
    "the time of a copy that is not used": ("method=beamlora method.historical=false method.B5=true",
                                            "method=beamlora method.historical=false"),
    "E as it always was": ("method.E_rate=1 method.E_start=-0.0", ""),
    "BeamLoRA's defaults": ("method=beamlora method.alpha=8 method.interval=8 method.end=67", "method=beamlora"),
    "dynamic-rank DoRA's defaults": ("method=dora_dynamic method.init_rank=6 method.interval=1 method.t_initial=15 "
                                     "method.t_final=0.5 method.M5=false", "method=dora_dynamic"),
    "L1RA's defaults": ("method=l1ra method.l1=0.5 method.interval=10 method.capacity=12", "method=l1ra"),
    "a penalty of gates that do not move": ("method=l1ra method.gate_lr=0 method.l1=3", "method=l1ra method.gate_lr=0"),
    "a side of RAC-LoRA that is certain": ("method=rac_lora method.side=bernoulli method.p=1", "method=rac_lora"),
    "a schedule for each of one block": ("method=chain_lora method.blocks=1 method.rewarm=true",
                                         "method=chain_lora method.blocks=1"),
    "boosters that the budget counts": ("method=xgblora method.boosters=7", "method=xgblora"),
    "PRILoRA's ramp": ("method=prilora method.start=2 method.end=6", "method=prilora"),
    "a method by its class": ("method=lora method.name=baselines.lora:LoRA", "method=lora"),
    "spelling of numbers": ("trainer.lr=0.0030 trainer.weight_decay=-0.0", "trainer.lr=3e-3"),
    "untyped numbers": ("method=peft +method.options.lora_alpha=16.0", "method=peft +method.options.lora_alpha=16"),
    "epochs beside steps": ("trainer.epochs=9", ""),
    "epochs that are as many steps": ("data.train_items=800 trainer.max_steps=null trainer.epochs=4",
                                      "data.train_items=800"),
    "a warm-up in steps": ("trainer.warmup=6", ""),
    "a batch that fits one forward pass": ("trainer.micro_batch=32", ""),
    "clipping at infinity": ("trainer.max_grad_norm=inf", "trainer.max_grad_norm=null"),
    "the order of items as it always was": ("trainer.batches=length", ""),
    "logging": ("trainer.log_every=3", ""),
    "evaluations that select nothing": ("protocol=paper_last trainer.evaluations=4", "protocol=paper_last"),
    "targets by their patterns": (
        "model.targets=[key,query,value,attention.output.dense,layer.*.output.dense,intermediate.dense]", ""),
    "targets by another name": ("model.targets=[all]", ""),
    "the expected number of matrices": ("model.matrices=null", ""),
    "a citation": ("task.citation=elsewhere", ""),
    "generation of a classifier": ("task.beams=7 task.target_length=9", ""),
    "a draw that is not made": ("protocol.split_seed=1", ""),
}  # fmt: skip

OTHER = {
    "a switch": ("method.D1=true", ""),
    "the rate of E": ("method.E_rate=2", ""),
    "the start of E": ("method=adalora method.E_start=0.1", "method=adalora"),
    "boosters that the setting counts": ("method=xgblora method.matched=trained method.boosters=7",
                                         "method=xgblora method.matched=trained"),
    "a sketch of RAC-LoRA": ("method=rac_lora method.orthonormal=true", "method=rac_lora"),
    "a switch of BeamLoRA": ("method=beamlora method.B2=true", "method=beamlora"),
    "a switch against the variant": ("method.variant=official method.D1=false", "method.variant=official"),
    "D4 as text with weight decay": ("method.D4=text trainer.weight_decay=0.1", "trainer.weight_decay=0.1"),
    "epochs of a split that may be smaller": ("task=wnli trainer.max_steps=null trainer.epochs=2", "task=wnli"),
    "items in random order": ("trainer.batches=random", ""),
    "other steps": ("trainer.max_steps=101", ""),
    "a warm-up of other steps": ("trainer.warmup=7", ""),
    "micro-batches, which change rounding": ("trainer.micro_batch=16", ""),
    "evaluations that select": ("trainer.evaluations=4", ""),
    "targets": ("model.targets=[attention] model.matrices=null", ""),
    "patterns of another architecture": ("model.targets=[q_proj,v_proj] model.matrices=null", "model.targets=[qv]"),
    "a draw that is made": ("task=cola protocol.split_seed=1", "task=cola"),
    "generation of summaries": ("task=xsum model=bart_base task.beams=7", "task=xsum model=bart_base"),
    "rounds of a fixed rank that time D1": ("method=svd_lora method.D1=true method.interval=9",
                                            "method=svd_lora method.D1=true"),
}  # fmt: skip


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_one_computation_has_one_identity(pair: tuple[str, str]) -> None:
    first, second = map(plan, pair)
    assert first.identity == second.identity
    assert (first.id, first.folder.path.name, first.method_config) == (
        second.id, second.folder.path.name, second.method_config,
    )  # fmt: skip


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_another_computation_has_another_identity(pair: tuple[str, str]) -> None:
    assert plan(pair[0]).id != plan(pair[1]).id


@pytest.mark.parametrize("method", ["elalora", "svd_lora", "adalora", "beamlora"])
def test_a_setting_that_came_after_stored_runs_is_no_part_of_their_identity(method: str) -> None:
    stored = plan(f"method={method}").identity["method"]
    added = [f.name for f in fields(method_class(method).Config) if f.metadata.get("added")]
    assert added and not set(added) & set(stored)
    assert plan("method.E_rate=2").identity["method"]["E_rate"] == 2.0


def test_a_revision_of_one_variant_leaves_the_runs_of_the_others() -> None:
    paper, official = (plan(f"method=beamlora method.variant={name}").identity for name in ("paper", "official"))
    assert (paper["numerics"]["method"], official["numerics"]["method"]) == (1, 2)


@pytest.mark.parametrize("method", METHODS)
def test_an_identity_is_its_own_canonical_form(method: str) -> None:
    stored = plan(f"method={method}").identity
    assert identity.canonical(stored, "embedded") == stored


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_written_as_defaults(method: str) -> None:
    config_class = method_class(method).Config
    assert canonical(config_class(), RunSize(1000, 4, 144, 1e-3, 0.0)) == config_class()


WITHOUT_TARGETS = ("peft", "full", "head", "bitfit", "class_means")


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WITHOUT_TARGETS])
def test_what_attach_reads_is_what_the_identity_resolved(method: str) -> None:
    """A run trains with the settings that its identity was made from, and more only where less was known."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 32)

    torch.manual_seed(0)
    cls = method_class(method)
    planned = resolve(cls.Config(), RunSize(200, 4, 8))
    attached = cls(cls.Config(), Budget(4))
    attached.attach(Net(), ["a", "b"], total_steps=200)
    assert {f.name: getattr(attached.config, f.name) for f in fields(planned)} == vars(planned)


@pytest.mark.parametrize("suite", ["glue", "vader", "vtab", "summarization", "own"])
@pytest.mark.parametrize("name", ["clean", "paper_last", "paper_best", "tune"])
def test_what_a_protocol_selects_and_draws_is_known_before_data_are_loaded(name: str, suite: str) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"idx": list(range(40)), "label": [0, 1] * 20})
    parts = ["train", "validation"] if suite in ("glue", "own") else ["train", "validation", "test"]
    source = {"own": "files"}.get(suite, suite)
    files = {part: "x" for part in parts} if suite == "own" else {}
    task = TaskConfig(name="t", source=source, subset="t", suite=suite, files=files)
    data = TaskData(task, dict.fromkeys(parts, rows), "0", source, True)

    def made(split_seed: int):
        return apply_protocol(data, ProtocolConfig(name, split_seed), train_items=None, seed=0)

    assert (made(0).select is not None) == selects(name, suite, source)
    drawn = made(0).train["idx"] != made(1).train["idx"]
    assert drawn == draws_held_out(name, vars(task))


def test_a_stored_identity_is_json() -> None:
    assert math.isfinite(plan("trainer.max_grad_norm=inf").identity["trainer"]["max_grad_norm"] or 0.0)
