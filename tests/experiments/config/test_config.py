"""Every configuration composes, agrees with its dataclass, and a wrong override leaves as one line."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

import pytest
from omegaconf import OmegaConf
from tiny_runs import ROOT, command, config

from baselines.registry import METHODS, method_class
from elalora import UserError
from experiments.runs.plan import make_plan

GROUPS = {
    path.name: sorted(f.stem for f in path.glob("*.yaml"))
    for path in sorted((ROOT / "conf").iterdir())
    if path.is_dir() and path.name != "study"  # tests/experiments/studies/test_study.py has them
}
CHOICES = [(group, name) for group, names in GROUPS.items() for name in names]
MUST = {("model", "local"): ["model.path=embedded"], ("budget", "params"): ["budget.params=330000"]}


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=[f"{g}={n}" for g, n in CHOICES])
def test_every_choice_composes_into_a_valid_plan(group, name):
    plan = make_plan(config(f"{group}={name}", *MUST.get((group, name), [])))
    assert len(plan.id) == 64 and plan.folder.path.name.endswith(plan.id[:10])


def test_every_method_has_a_file_and_every_file_a_method():
    assert set(GROUPS["method"]) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_file_shows_every_knob_with_its_default(name):
    cls = method_class(name)
    shown = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "method" / f"{name}.yaml"))
    assert shown.pop("name") == name
    defaults = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(cls.Config)}
    assert shown == defaults


@pytest.mark.parametrize("rank", [1, 3, 10, 64])
def test_any_rank_is_a_budget(rank):
    assert make_plan(config("method=lora", f"budget=r{rank}")).budget.rank == rank


def test_a_rank_beyond_the_named_ones_is_a_value():
    assert make_plan(config("budget=r1", "budget.rank=100")).identity["budget"] == "r100"


# -- identity --------------------------------------------------------------------------------------------------


def identity(*overrides):
    return make_plan(config(*overrides)).id


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "method=lora",
        "method.k=3",
        "method.variant=official",
        "budget=r8",
        "task=vader_tweets",
        "trainer.lr=2e-3",
        "trainer.precision=bf16",
        "protocol=paper_last",
        "data.train_items=100",
        "task.max_length=32",
        "model.dropout=0.0",
        "trainer.micro_batch=8",
    ],
)
def test_what_changes_numbers_changes_the_identity(change):
    assert identity(change) != identity()


@pytest.mark.parametrize(
    "change",
    ["store.root=elsewhere", "store.checkpoint_every=7", "threads=1", "tracking=wandb", "data.cache=c", "data.root=d"],
)
def test_what_changes_no_number_leaves_the_identity(change):
    assert identity(change) == identity()


def test_a_method_without_a_budget_is_one_run_for_all_budgets():
    assert identity("method=full", "budget=r2") == identity("method=full", "budget=r8")
    assert identity("budget=r2") != identity("budget=r8")


def test_the_same_weights_are_the_same_model_wherever_they_lie(tmp_path):
    import shutil

    from experiments.models.files import embedded_minilm

    shutil.copytree(embedded_minilm(), tmp_path / "copy")
    assert identity(f"model.path={tmp_path}/copy") == identity()


def test_a_hub_id_is_never_taken_for_other_weights():
    assert identity("model.path=owner/other") != identity()
    assert identity("model=minilm_hub") != identity("model=minilm_hub", "model.revision=abc")


def test_a_transplant_is_known_by_the_run_it_takes_its_ranks_from():
    plain = identity("method=svd_lora", "method.ranks_from=elalora")
    assert plain == identity("method=svd_lora", "method.ranks_from='elalora variant=paper'")
    assert plain != identity("method=svd_lora", "method.ranks_from='elalora variant=official'")
    assert plain != identity("method=svd_lora", "method.ranks_from=elalora", "seed=1")


# -- mistakes --------------------------------------------------------------------------------------------------

WRONG = {
    "method=elalorra": "method=elalorra is unknown; allowed: adalora",
    "task=rtee": "did you mean rte?",
    "budget=r0": "budget=r0 is unknown; type budget=r4 budget.rank=0; allowed: budget=r1",
    "budget=four": "budget=four is unknown",
    "budget.rank=2.5": "budget.rank=2.5 is not a",
    "budget.rank=-1": "budget.rank=-1 is not a positive integer",
    "trainer.learning_rate=1": "unknown setting 'trainer.learning_rate'; type trainer.lr=1",
    "trainer.lr=fast": "trainer.lr=fast is not a number",
    "trainer.lr=0": "trainer.lr=0.0 must be above 0",
    "trainer.precision=fp16": "trainer.precision=fp16 is unknown; allowed: fp32, bf16 (fp16 skips steps",
    "trainer.max_grad_norm=0": "trainer.max_grad_norm=0.0 must be above 0, or null",
    "trainer.weight_decay=-1": "trainer.weight_decay=-1.0 must be at least 0",
    "trainer.schedule=stairs": "trainer.schedule=stairs is unknown; allowed: linear, cosine, constant",
    "trainer.warmup=5000": "leaves no step of trainer.max_steps=100",
    "task.kind=ranking": "task.kind=ranking is unknown; allowed: classification, regression, summarization",
    "task.suite=superglue": "task.suite=superglue is unknown; allowed: glue",
    "task.group=nature": "task.group=nature is unknown; allowed: natural, specialized, structured",
    "task.normalise=mine": "task.normalise=mine is unknown; allowed: checkpoint, imagenet",
    "protocol.name=dirty": "protocol.name=dirty is unknown; allowed: clean, paper_last, paper_best, tune",
    "task.metrics=[bleu]": "bleu is unknown; allowed: accuracy",
    "model.path=owner/other": "model.path=owner/other cannot be read from the hub",
    "method.b=1 method.interval=60": "has fallen to 0 at the first round",
    "trainer.batch_size=0": "trainer.batch_size=0 must be at least 1",
    "trainer.max_steps=0": "trainer.max_steps=0 must be above 0",
    "seed=one": "seed=one is not a",
    "method.kk=3": "unknown setting 'method.kk'; available of method: D1",
    "method.k=two": "method.k",
    "method.importance=best": "method.importance=best is unknown; allowed: sensitivity_uncertainty",
    "model=local": "model.path is required",
    "protocol=dirty": "protocol=dirty is unknown; allowed: clean",
    "color=blue": "unknown setting 'color'; available: budget, data",
    "trainer.lr=[1": "'trainer.lr=[1' cannot be read as an override",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_override_is_one_clear_line_and_exit_code_2(override, monkeypatch, capsys, tmp_path):
    import run

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["run.py", *override.split(), f"store.root={tmp_path}/runs"])
    assert run.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("elalora: ") and "Traceback" not in err
    assert WRONG[override] in err
    assert not (tmp_path / "runs").exists()


def test_the_command_itself_exits_with_2_and_one_line(tmp_path):
    done = command("method.kk=3", f"store.root={tmp_path}/runs")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "did you mean method.k?" in done.stderr


def test_help_and_cfg_read_well():
    help_text = command("--help").stdout
    for word in ("python run.py -m", "budget     r1 .. r64", "seed: 0", "adalora"):
        assert word in help_text
    shown = command("--cfg", "job", "method=lora").stdout
    assert OmegaConf.create(shown).method.name == "lora"


def test_help_loads_no_heavy_library():
    code = (
        "import sys, runpy; sys.argv = ['run.py', '--help']\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tab_completion_offers_choices_and_settings():
    line = "python run.py method=el"
    done = command("-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert "method=elalora" in done.stdout


def test_an_unknown_knob_is_refused_by_the_plan_too():
    cfg = config()
    OmegaConf.set_struct(cfg, False)
    cfg.method.other = 1
    with pytest.raises(UserError, match="method.other is not a setting of method=elalora; allowed: variant"):
        make_plan(cfg)
    assert math.isfinite(cfg.trainer.lr)
