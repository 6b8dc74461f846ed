"""Recipes: each published file composes to its source's numbers, and what has no source says so."""

from __future__ import annotations

import math
import re

import pytest
from omegaconf import OmegaConf
from tiny_runs import ROOT, config

from baselines.registry import METHODS
from elalora.schedules import steps_of
from experiments.runs.plan import make_plan

FOLDER = ROOT / "conf" / "recipe"
PAIRS = sorted(
    (path.parts[-4], path.parts[-3], path.parts[-2], path.stem)
    for name in ("published", "published_script")
    for path in (FOLDER / name).glob("*/*/*.yaml")
)
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
VTAB = ("cifar100", "svhn", "eurosat", "resisc45", "retinopathy", "clevr_distance", "clevr_count")
# official sizes of train, for the number of steps
SIZES = {
    "mnli": 392_702, "sst2": 67_349, "cola": 8_551, "qnli": 104_743, "rte": 2_490, "mrpc": 3_668, "qqp": 363_846,
    "stsb": 5_749, "xsum": 204_045, "cnn_dailymail": 287_113, "commonsense_170k": 170_000, **dict.fromkeys(VTAB, 800),
}  # fmt: skip
HAVE = {  # (recipe, model, method) -> tasks; every other pair has none
    ("published", "deberta_v3_base", "elalora"): {"mnli", "sst2", "cola", "qnli", "rte", "mrpc"},
    ("published", "bart_base", "elalora"): {"xsum"},
    ("published", "vit_b16_in21k", "elalora"): set(VTAB),
    ("published", "roberta_base", "lora"): set(GLUE),
    ("published", "roberta_base", "rac_lora"): {"mrpc"},
    ("published", "roberta_base", "chain_lora"): {"mrpc"},
    ("published", "deberta_v3_base", "adalora"): set(GLUE),
    ("published", "bart_large", "adalora"): {"xsum", "cnn_dailymail"},
    ("published", "deberta_v3_base", "sora"): {"stsb", "rte"},
    ("published", "roberta_base", "dora_dynamic"): {"cola"},
    ("published", "deberta_v3_base", "increlora"): set(GLUE),
    ("published", "bart_large", "increlora"): {"xsum"},
    ("published", "roberta_base", "dylora"): set(GLUE),
    ("published", "llama3_2_3b", "lora"): {"gsm8k"},
    ("published", "llama3_2_3b", "adalora"): {"gsm8k"},
    ("published", "qwen3_0_6b", "lora"): {"gsm8k", "math"},
    ("published", "llama3_1_8b", "lora"): {"commonsense_170k"},
    ("published", "llama3_1_8b", "flexlora"): {"commonsense_170k"},
    ("published_script", "deberta_v3_base", "adalora"): set(GLUE),
    ("published_script", "bart_large", "adalora"): {"xsum"},
}
BUDGET = {"published_script": "r1"}


def composed(recipe, model, task, method, *more):
    budget = "r8" if model == "bart_large" else BUDGET.get(recipe, "r8")
    budget = "r2" if method == "increlora" else budget
    return config(f"recipe={recipe}", f"model={model}", f"task={task}", f"method={method}", f"budget={budget}", *more)


def steps(cfg):
    return math.ceil((cfg.data.train_items or SIZES[cfg.task.name]) / cfg.trainer.batch_size) * cfg.trainer.epochs


def test_these_pairs_have_a_source_and_no_others():
    found = {}
    for recipe, model, task, method in PAIRS:
        found.setdefault((recipe, model, method), set()).add(task)
    assert found == HAVE


def test_on_glue_and_deberta_these_pairs_have_none():
    here = ("published", "deberta_v3_base")
    have = {method: tasks for (*place, method), tasks in HAVE.items() if tuple(place) == here}
    none = {method: set(GLUE) - have.get(method, set()) for method in METHODS}
    assert none.pop("elalora") == {"qqp", "stsb"}
    assert none.pop("sora") == set(GLUE) - {"stsb", "rte"}
    assert none.pop("adalora") == none.pop("increlora") == set()
    assert all(tasks == set(GLUE) for tasks in none.values())


def test_the_docs_list_exactly_the_pairs_that_have_a_source():
    text = (ROOT / "docs" / "studies.md").read_text()
    rows = re.findall(r"^\| `(published\w*)` \| (\w+) \| (\w+) \| ([\w, ]+) \|", text, re.M)
    listed = {tuple(pair): GLUE if tasks == "all of GLUE" else tasks.split(", ") for *pair, tasks in rows}
    assert {pair: set(tasks) for pair, tasks in listed.items()} == HAVE


@pytest.mark.parametrize(("recipe", "model", "task", "method"), PAIRS)
def test_a_published_recipe_composes_is_named_by_its_source_and_fits_its_run(recipe, model, task, method):
    path = FOLDER / recipe / model / task / f"{method}.yaml"
    cfg = composed(recipe, model, task, method)
    source = OmegaConf.load(path).recipe.source
    plan = make_plan(cfg)
    assert plan.recipe == f"{recipe} ({source})"
    assert cfg.trainer.max_steps is None and (cfg.data.train_items is None or cfg.task.kind == "causal")
    total = steps(cfg)
    assert steps_of(cfg.trainer.warmup, total, "trainer.warmup") < total
    if method in ("elalora", "adalora"):
        assert cfg.method.t_initial + cfg.method.t_final < total
    command = rf"^# python run.py.* recipe={recipe} method={method} task={task} model={model} "
    assert re.search(command, path.read_text(), re.M), "the file says how to run it"


@pytest.mark.parametrize(
    ("model", "task", "total"),
    [
        ("deberta_v3_base", "mnli", 6136),
        ("deberta_v3_base", "sst2", 21060),
        ("deberta_v3_base", "cola", 2680),
        ("deberta_v3_base", "qnli", 8185),
        ("deberta_v3_base", "rte", 1950),
        ("deberta_v3_base", "mrpc", 1160),
        ("bart_base", "xsum", 51016),
        *(("vit_b16_in21k", task, 5000) for task in VTAB),
    ],
)
def test_elaloras_recipes_have_the_number_of_steps_of_the_official_scripts(model, task, total):
    assert steps(composed("published", model, task, "elalora")) == total


def test_adaloras_table_and_script_differ_where_they_are_known_to():
    table, script = (
        {task: composed(recipe, "deberta_v3_base", task, "adalora") for task in GLUE}
        for recipe in ("published", "published_script")
    )
    assert {task for task in GLUE if table[task].trainer.lr != script[task].trainer.lr} == {"cola", "qqp", "qnli"}
    gammas = {task: (table[task].method.orth_weight, script[task].method.orth_weight) for task in GLUE}
    assert {t: g for t, g in gammas.items() if g[0] != g[1]} == {"cola": (0.5, 0.1), "stsb": (0.1, 0.3)}


@pytest.mark.parametrize("task", [*GLUE, "xsum"])
def test_increloras_recipes_have_the_values_of_the_authors_scripts(shared, task):
    """The start of growth, its interval and matrices a round suffice to reach the budget within the script's run."""
    import pandas as pd

    scripts = pd.read_csv(shared / "reference" / "published" / "increlora_scripts_hparams.csv", comment="#", dtype=str)
    name = "run_bart_xsum.sh" if task == "xsum" else f"rank=2/run_{task}.sh"
    [row] = scripts[scripts["script"] == name].to_dict("records")
    cfg = composed("published", "bart_large" if task == "xsum" else "deberta_v3_base", task, "increlora")
    found = (cfg.trainer.lr, cfg.trainer.epochs, cfg.trainer.batch_size, cfg.trainer.warmup, cfg.method.top_h)
    assert found == tuple(float(row[key]) for key in ("lr", "epochs", "batch", "warmup_steps", "top_h"))
    found = (cfg.method.alpha, cfg.method.t_initial, cfg.method.interval, cfg.method.orth_weight, cfg.task.max_length)
    assert found == tuple(float(row[key]) for key in ("alpha", "init_warmup", "interval", "reg", "max_len"))
    rounds = math.ceil(72 / cfg.method.top_h)
    assert cfg.method.t_initial + (rounds + 1) * cfg.method.interval < steps(cfg)


@pytest.mark.parametrize("task", ["rte", "mrpc", "stsb"])
def test_loras_small_tasks_start_from_its_mnli_run_with_that_tasks_own_recipe(task):
    plan = make_plan(composed("published", "roberta_base", task, "lora", "seed=3"))
    source = plan.source("init_from").plan
    assert (source.config.task.name, source.config.seed) == ("mnli", 3)
    assert (source.config.trainer.epochs, source.config.trainer.lr, source.config.trainer.batch_size) == (30, 5e-4, 128)
    assert source.config.init_from is None and plan.identity["init_from"] == source.id
    own = make_plan(composed("published", "roberta_base", task, "lora", "seed=3", "init_from=null"))
    assert own.sources == () and own.id != plan.id


def test_a_setting_on_the_command_line_wins_over_the_recipe_and_is_named():
    cfg = composed("published", "deberta_v3_base", "rte", "elalora", "trainer.lr=1e-3", "method.k=3", "seed=4")
    plan = make_plan(cfg)
    assert (cfg.trainer.lr, cfg.method.k, cfg.trainer.epochs) == (1e-3, 3, 50)
    assert plan.recipe == "published (official ElaLoRA script for rte; method.k changed; trainer.lr changed)"


def test_a_pair_without_a_source_takes_the_common_settings_and_says_so():
    cfg = config("recipe=published", "method=beamlora", "task=rte")
    assert make_plan(cfg).recipe == "published: none for this pair, common settings"
    common = config("recipe=matched", "method=beamlora", "task=rte")
    assert cfg.trainer == common.trainer and make_plan(cfg).id == make_plan(common).id


def test_no_recipe_leaves_the_settings_as_they_are():
    plan = make_plan(config("trainer=standard", "trainer.lr=0.5"))
    assert plan.recipe == "none" and plan.config.trainer.lr == 0.5 and plan.config.trainer.epochs == 3


@pytest.mark.slow
def test_matched_differs_between_arms_in_nothing_but_the_centre_of_their_family():
    configs = {m: config("recipe=matched", f"method={m}") for m in METHODS}
    trainers = {m: OmegaConf.to_container(cfg.trainer, resolve=True) for m, cfg in configs.items()}
    rates = {m: trainer.pop("lr") for m, trainer in trainers.items()}
    assert all(trainer == trainers["lora"] for trainer in trainers.values())
    families = {}
    for method, rate in rates.items():
        families.setdefault(configs[method].recipe.family, set()).add(rate)
        assert make_plan(configs[method]).recipe == "matched"
    assert all(len(rates) == 1 for rates in families.values())
    assert set(families) == {"lora", "svd", "head", "full"}


def test_a_method_of_ones_own_has_the_family_of_lora():
    cfg = config("recipe=matched", "method.name=mine.methods:Mine")
    assert cfg.trainer.lr == config("recipe=matched", "method=lora").trainer.lr


@pytest.mark.parametrize("recipe", ["matched", "published", "published_script"])
def test_a_recipe_takes_random_batches_and_no_recipe_batches_by_length(recipe):
    assert config(f"recipe={recipe}", "method=adalora", "task=rte").trainer.batches == "random"
    assert config("method=adalora", "task=rte").trainer.batches == "length"


def test_the_recipes_of_pefts_comparison_have_the_settings_of_its_results(shared):
    """Steps, batch, rate, decay, targets and commit, from the results themselves."""
    import pandas as pd

    results = pd.read_csv(shared / "reference" / "published" / "peft_metamathqa.csv").set_index("experiment")
    for method, name in (("lora", "lora/llama-3.2-3B-rank32"), ("adalora", "adalora/llama-3.2-3B-rank32")):
        cfg, row = composed("published", "llama3_2_3b", "gsm8k", method), results.loc[name]
        assert (steps(cfg), cfg.trainer.batch_size, cfg.trainer.lr) == (row.max_steps, row.batch_size, row.lr)
        assert f'"weight_decay": {cfg.trainer.weight_decay}' in row.optimizer_kwargs
        assert (cfg.trainer.schedule, cfg.model.dtype) == (row["lr_scheduler"], row["dtype"])
        assert "+".join(cfg.model.targets) == row.targets and cfg.method.alpha == row.alpha
        assert (cfg.model.path, cfg.model.revision) == (row.model_id, row.model_sha)
        assert (cfg.task.hub_revision, cfg.task.test_hub_revision) == (row.metamath_sha, row.gsm8k_sha)
    assert cfg.method.init_rank == 64
