"""The stock Trainer with an adapted model trains what the loop of `elalora.method` trains, decision for decision."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hf_runs import HEAD, TARGETS, arguments, bert, ela, items, moves, own_loop, stock, weights
from transformers import EarlyStoppingCallback, Trainer

from baselines.registry import method_class
from elalora import Budget, ElaLoRA, ElaLoRAConfig, UserError
from elalora.hf import adapt
from elalora.method import MethodFailure
from experiments.runtime.places import CHECKOUT

SUPPORT = CHECKOUT / "tests" / "support"


def make(name, **knobs):
    if name == "elalora":
        return ela(**knobs)
    quick = {"adalora": {"t_initial": 3, "t_final": 4, "interval": 3}, "prilora": {"every": 4}}
    quick["increlora"] = {"t_initial": 2, "interval": 2}
    cls = method_class(name)
    return cls(cls.Config(**quick.get(name, {}) | knobs), Budget(2))


def assert_same(found, expected, tolerance=1e-10):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


CASES = [
    ("elalora", {}),
    ("elalora", {"variant": "official"}),
    ("lora", {}),
    ("adalora", {}),
    ("sora", {"multiply_lr": True, "lambda1": 0.1}),
    ("prilora", {}),
    ("increlora", {}),
    ("l1ra", {"l1": 6.0}),
    ("dylora", {}),
    ("dora_dynamic", {"t_initial": 2, "t_final": 4, "interval": 2}),
]


@pytest.mark.parametrize(("name", "knobs"), CASES, ids=[f"{n}-{'-'.join(map(str, k))}" for n, k in CASES])
def test_an_epoch_in_the_trainer_equals_the_own_loop(name, knobs, tmp_path):
    ours = make(name, **knobs)
    model, losses = own_loop(ours)
    theirs = make(name, **knobs)
    trainer = stock(tmp_path, theirs)
    trainer.train()
    assert trainer.seen == pytest.approx(losses, rel=1e-10)
    assert_same(weights(trainer.model), weights(model))
    assert moves(theirs) == moves(ours) and theirs.ranks() == ours.ranks()
    if name in ("elalora", "increlora"):
        assert any(r.grown for r in theirs.rounds_seen)


def half_of_it(model_output, labels, num_items_in_batch=None):
    """A user's own loss, normalised over the whole step."""
    return torch.nn.functional.cross_entropy(model_output.logits, labels, reduction="sum") / 2 / num_items_in_batch


@pytest.mark.parametrize(
    "more", [{"label_smoothing_factor": 0.1}, {"compute_loss_func": half_of_it}], ids=["smoothing", "own loss"]
)
def test_four_micro_batches_of_two_equal_a_batch_of_eight(more, tmp_path):
    whole, parts = ela(), ela()
    one = stock(tmp_path / "one", whole, **more)
    one.train()
    four = stock(tmp_path / "four", parts, **more, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    four.train()
    assert moves(parts) == moves(whole)
    assert_same(weights(four.model), weights(one.model))
    sums = [sum(four.seen[i : i + 4]) for i in range(0, len(four.seen), 4)]
    assert sums == pytest.approx(one.seen, rel=1e-6)  # transformers smooths labels in float32


def test_a_trainer_that_divides_the_loss_itself_counts_the_penalty_once_too(tmp_path):
    trained = []
    for folder, more in (("one", {}), ("four", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})):
        model = bert()
        model.accepts_loss_kwargs = False  # BERT's loss is a mean over the micro-batch, whatever its signature says
        trainer = stock(tmp_path / folder, ela(orth_weight=1.0), model, **more)
        trainer.train()
        trained.append(weights(trainer.model))
    assert_same(trained[1], trained[0])


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tmp_path):
    for name in ("elalora", "prilora", "increlora"):
        plain, checkpointed = make(name), make(name)
        one = stock(tmp_path / "a", plain)
        one.train()
        other = stock(tmp_path / "b", checkpointed, gradient_checkpointing=True)
        other.train()
        assert other.model.is_gradient_checkpointing
        assert moves(checkpointed) == moves(plain)
        assert_same(weights(other.model), weights(one.model))


def test_bf16_autocast_trains_and_moves_ranks(tmp_path):
    exact, rounded = ela(), ela()
    one = stock(tmp_path / "a", exact, bert(torch.float32), steps=20)
    one.train()
    other = stock(tmp_path / "b", rounded, bert(torch.float32), steps=20, bf16=True)
    other.train()
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in weights(other.model).values())
    assert sum(rounded.ranks().values()) == sum(exact.ranks().values())
    assert [r.step for r in rounded.rounds_seen] == [r.step for r in exact.rounds_seen]
    # the first round sees nearly the same scores
    first, second = exact.rounds_seen[0].scores, rounded.rounds_seen[0].scores
    together = torch.stack([torch.tensor(sum(s.values(), [])) for s in (first, second)])
    assert torch.corrcoef(together)[0, 1] > 0.9
    assert abs(other.seen[-1] - one.seen[-1]) < 0.1 * abs(one.seen[-1])


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("elalora", {}),
        ("elalora", {"variant": "official"}),
        ("elalora", {"variant": "official", "D4": "image"}),
        ("adalora", {}),
        ("adalora", {"compact": True}),
        ("xgblora", {}),
        ("rac_lora", {"blocks": 4, "side": "bernoulli"}),
        ("sora", {}),
        ("prilora", {}),
        ("beamlora", {"interval": 3, "keep": 0.3}),
        ("l1ra", {"l1": 10.0}),
        ("dylora", {}),
        ("dora_dynamic", {"t_initial": 2, "t_final": 4, "interval": 2}),
    ],
    ids=str,
)
@pytest.mark.slow
def test_resuming_from_a_checkpoint_equals_no_stop(name, knobs, tmp_path):
    through = make(name, **knobs)
    whole = stock(tmp_path, through, save_strategy="steps", save_steps=7)
    whole.train()
    again = make(name, **knobs)
    resumed = stock(tmp_path, again, save_strategy="steps", save_steps=7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert resumed.seen == whole.seen[7:]
    assert_same(weights(resumed.model), weights(whole.model), 0.0)
    assert moves(again) == moves(through) and again.ranks() == through.ranks()
    assert {p.name for p in (tmp_path / "checkpoint-7").glob("elalora.*")} == {"elalora.json", "elalora.safetensors"}


def test_the_best_checkpoint_comes_back_with_its_own_ranks(tmp_path):
    method = ela()
    trainer = stock(
        tmp_path,
        method,
        save_strategy="steps",
        save_steps=5,
        eval_strategy="steps",
        eval_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="early",
        greater_is_better=True,
    )
    ranks = {}

    def evaluate(*args, **kwargs):
        ranks[trainer.state.global_step] = method.ranks()
        return {"eval_early": -trainer.state.global_step}

    trainer.evaluate = evaluate
    trainer.train()
    assert ranks[5] != ranks[14] and method.ranks() == ranks[5]
    for adapter in method.adapters.values():
        assert not adapter.A[adapter.rank :].any() and adapter.A[: adapter.rank].any(1).all()


def early(trainer, stop=None):
    """Makes the first evaluation the best one, and stops at a step, as a user's callback may."""

    def evaluate(*args, **kwargs):
        trainer.control.should_training_stop = trainer.state.global_step == stop
        return {"eval_early": -trainer.state.global_step}

    trainer.evaluate = evaluate
    return trainer


STEPS = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 5}
BEST = {"metric_for_best_model": "early", "greater_is_better": True}


def test_a_stop_before_the_final_ranks_is_refused_with_what_the_weights_are(tmp_path):
    trainer = early(stock(tmp_path, make("adalora"), **STEPS), stop=5)
    with pytest.raises(MethodFailure, match="training stopped at step 5 of 14, .* AdaLoRA were not final"):
        trainer.train()


@pytest.mark.parametrize(
    ("more", "delay"),
    [
        ({}, 11),
        ({"eval_steps": 0.2, "save_steps": 0.2}, 11),
        ({"num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}, 2),
    ],
    ids=["steps", "shares", "epochs"],
)
def test_a_best_checkpoint_before_adalora_s_final_ranks_is_refused_before_step_0(more, delay, tmp_path):
    t_final = 4 if delay == 11 else 10
    settings = STEPS | BEST | {"load_best_model_at_end": True} | more
    trainer = early(stock(tmp_path / "a", make("adalora", t_final=t_final), **settings))
    with pytest.raises(UserError, match=rf"load_best_model_at_end=True .* AdaLoRA .* set eval_delay={delay} "):
        trainer.train()
    assert not trainer.seen
    method = make("adalora", t_final=t_final)
    early(stock(tmp_path / "b", method, **settings, eval_delay=delay)).train()
    assert sum(method.ranks().values()) <= 2 * len(method.ranks())


def test_early_stopping_that_adalora_could_not_survive_is_refused_before_step_0(tmp_path):
    trainer = early(stock(tmp_path, make("adalora"), **STEPS | BEST))
    trainer.add_callback(EarlyStoppingCallback())
    with pytest.raises(UserError, match="EarlyStoppingCallback .* set eval_delay=11 "):
        trainer.train()


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_stop_between_the_rounds_is_said_in_the_result(rounds, tmp_path, capsys):
    method = ela()
    trainer = stock(tmp_path, method, eval_strategy="steps", eval_steps=1)
    due = method.phases.rounds()
    stop = due[0] + rounds
    output = early(trainer, stop).train()
    assert output.metrics["rounds"] == len(method.rounds_seen) == rounds
    assert output.metrics["rounds_due"] == len(due) > rounds
    said = capsys.readouterr().out
    assert f"step {stop} of 14, after {rounds} of {len(due)} rounds of ElaLoRA" in said
    assert ("its ranks never changed" in said) is (rounds == 0)


def test_a_method_that_was_never_called_still_fails_when_training_stops_early(tmp_path):
    method = ela()
    trainer = early(stock(tmp_path, method, **STEPS), stop=10)
    method.after_step = lambda *args: None
    with pytest.raises(MethodFailure):
        trainer.train()


def test_elalora_at_rank_1_is_refused_at_the_start(tmp_path):
    trainer = Trainer(model=bert(), args=arguments(tmp_path), train_dataset=items(8 * 14))
    kinds = [type(module) for module in trainer.model.modules()]
    with pytest.raises(UserError, match="budget=r2"):
        adapt(trainer, ElaLoRA(ela().config, Budget(1)), TARGETS, HEAD)
    assert [type(module) for module in trainer.model.modules()] == kinds
    with pytest.raises(UserError, match="budget=r2"):
        ElaLoRA(ElaLoRAConfig(variant="official"), Budget(1)).check_length(1000)
    with pytest.raises(UserError, match="budget=r2"):  # as few parameters
        adapt(trainer, ElaLoRA(ela().config, Budget(params=300)), TARGETS, HEAD)
    ElaLoRA(ElaLoRAConfig(), Budget(2)).check_length(1000)


def test_evaluation_neither_adds_the_penalty_nor_looks_at_inputs(tmp_path):
    method = ela(orth_weight=100.0)
    trainer = stock(tmp_path, method)
    batch = trainer.data_collator(items(8))
    trainer.model.eval()
    assert float(trainer.compute_loss(trainer.model, dict(batch))) < 2
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    assert float(trainer.compute_loss(trainer.model, dict(batch))) > 20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fp16": True}, "set bf16=True"),
        ({"auto_find_batch_size": True}, "set per_device_train_batch_size"),
        ({"optim": "adafactor"}, "leave optim at its default"),
        ({"lr_scheduler_type": "greedy"}, "use linear or cosine"),
    ],
    ids=str,
)
def test_settings_that_would_train_something_else_are_refused(settings, says, tmp_path):
    args = arguments(tmp_path)
    for name, value in settings.items():
        setattr(args, name, value)
    trainer = Trainer(model=bert(), args=arguments(tmp_path), train_dataset=items(16))
    trainer.args = args
    with pytest.raises(UserError, match=says):
        adapt(trainer, ela(), TARGETS, HEAD)


def test_a_schedule_of_several_stages_is_refused(tmp_path):
    with pytest.raises(UserError, match="SoRA trains in 3 stages .* set lambda_num=1"):
        stock(tmp_path, make("sora", lambda_num=3, max_lambda=1e-2))


def test_a_trainer_is_adapted_once_and_trained_once(tmp_path):
    trainer = stock(tmp_path, ela())
    with pytest.raises(UserError, match="already has an optimizer"):
        adapt(trainer, ela(), TARGETS, HEAD)
    trainer.train()
    with pytest.raises(UserError, match="new model, method and Trainer"):
        trainer.train()


def test_a_length_changed_after_adapting_is_refused(tmp_path):
    trainer = stock(tmp_path, ela())
    trainer.args.num_train_epochs = 2
    with pytest.raises(UserError, match="planned for 14 steps and the Trainer runs 28"):
        trainer.train()


def test_a_foreign_checkpoint_is_refused(tmp_path):
    stock(tmp_path, ela(), save_strategy="steps", save_steps=7, save_only_model=True).train()
    with pytest.raises(UserError, match="no optimizer.pt: .*save_only_model must be False"):
        stock(tmp_path, ela()).train(resume_from_checkpoint=True)
    for path in tmp_path.glob("checkpoint-*/elalora.json"):
        path.unlink()
    with pytest.raises(UserError, match="no elalora.json"):
        stock(tmp_path, ela()).train(resume_from_checkpoint=True)
    for path in tmp_path.glob("checkpoint-*"):
        (path / "elalora.json").write_text(json.dumps({"method": "elalora"}))
        (path / "optimizer.pt").touch()
    with pytest.raises(UserError, match="written by another version"):
        stock(tmp_path, ela()).train(resume_from_checkpoint=True)
    other = tmp_path / "lora"
    stock(other, make("lora"), save_strategy="steps", save_steps=7).train()
    with pytest.raises(UserError, match="written by method lora, this one is elalora"):
        stock(other, ela()).train(resume_from_checkpoint=str(other / "checkpoint-7"))


@pytest.mark.slow
def test_two_processes_decide_alike_and_equal_one_with_the_same_global_batch(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    environment = os.environ | {"PYTHONPATH": f"{SUPPORT}{os.pathsep}{CHECKOUT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(SUPPORT / "hf_process.py"), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    method = ela()
    model = bert()
    model.accepts_loss_kwargs = False
    trainer = stock(tmp_path / "one", method, model)
    trainer.train()
    decided = [json.loads((tmp_path / f"moves-{rank}.json").read_text()) for rank in range(2)]
    assert decided[0] == decided[1] == json.loads(json.dumps(moves(method)))
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in range(2))
    assert_same(second, first, 0.0)
    assert_same(first, weights(trainer.model))


@pytest.mark.parametrize(("targets", "count"), [("paper", 12), (["attention"], 8), ("qv", 4), (["query"], 2)])
def test_a_named_set_adapts_the_layers_of_the_architecture_and_patterns_still_do(targets, count, tmp_path):
    trainer = Trainer(model=bert(), args=arguments(tmp_path), train_dataset=items(8 * 14))
    method = adapt(trainer, ela(), targets, HEAD)
    assert len(method.ranks()) == count
    assert all("attention" in name for name in method.ranks()) is (targets != "paper")


def test_a_set_that_does_not_fit_is_refused_and_the_model_is_as_it_was(tmp_path):
    def refused(model, targets, keep=HEAD):
        kinds = [type(module) for module in model.modules()]
        trainer = Trainer(model=model, args=arguments(tmp_path), train_dataset=items(8 * 14))
        with pytest.raises(UserError) as error:
            adapt(trainer, ela(), targets, keep)
        assert [type(module) for module in model.modules()] == kinds
        return str(error.value)

    assert "match 6 layers instead of 12" in refused(bert(), "paper", [*HEAD, "bert.encoder.layer.0"])
    model = bert()
    model.config.model_type = "nobody"
    assert "nobody has no named sets" in refused(model, "paper")
    assert "Linear has no named sets" in refused(torch.nn.Linear(2, 2), "qv", ())
