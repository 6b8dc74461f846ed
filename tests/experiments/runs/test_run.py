"""Whole runs on a tiny encoder: what they leave, that they repeat, resume, and are believed only when true."""

from __future__ import annotations

import json
import statistics

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import MOVES, ROOT, command, quick

from elalora import UserError
from experiments.launch.choose import run_all
from experiments.runs.plan import make_plan
from experiments.runs.prepare import prepare, run_length
from experiments.runs.run import RunFailed, run
from experiments.runtime.seeds import stream
from experiments.store.find import find
from experiments.store.folder import RunFolder
from experiments.training import checkpoint
from experiments.training.trainer import Trainer

TIMES = {"timing.jsonl", "status.json", "manifest.json", "result.json", "config.yaml", ".lock"}


@pytest.fixture(scope="module")
def movies():
    """Skips the module where the review sentences can neither be found nor fetched."""
    from experiments.config.task import DataConfig
    from experiments.data.vader import read_sdist

    try:
        read_sdist(DataConfig())
    except UserError as error:
        pytest.skip(f"no review sentences: {error}")


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def science(result):
    """A result without what may differ between two runs of one configuration."""
    return {k: v for k, v in result.items() if k not in ("cost", "commit", "files")}


def files(folder):
    """Content of every file that must repeat bit for bit."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in TIMES
    }


@pytest.fixture(scope="module")
def elalora_run(movies, tiny_model_dir, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    plan = make_plan(quick(tiny_model_dir, store, *MOVES))
    return plan, run(plan)


def test_a_run_leaves_every_file_of_the_store(elalora_run):
    plan, _ = elalora_run
    names = {p.name for p in plan.folder.path.iterdir()}
    assert names >= {
        "config.yaml", "manifest.json", "status.json", "metrics.jsonl", "timing.jsonl", "ranks.jsonl",
        "predictions.parquet", "result.json", "adapter",
    }  # fmt: skip
    assert "checkpoint" not in names
    assert json.loads((plan.folder.path / "status.json").read_text())["state"] == "done"


def test_rate_and_gradient_norm_stand_beside_every_logged_loss(elalora_run):
    plan, _ = elalora_run
    of = {name: {} for name in ("loss", "lr", "grad_norm")}
    for line in lines(plan.folder.path, "metrics.jsonl"):
        if line["split"] == "train":
            of[line["metric"]][line["step"]] = line["value"]
    peak, total = plan.config.trainer.lr, 30
    warmup = round(plan.config.trainer.warmup * total)
    decay = {step: peak * min(step / warmup, (total - step) / (total - warmup)) for step in of["loss"]}
    assert of["lr"] == pytest.approx(decay)
    assert of["grad_norm"].keys() == of["loss"].keys() and all(norm > 0 for norm in of["grad_norm"].values())


def test_the_score_can_be_recomputed_from_the_stored_predictions(elalora_run):
    import pandas
    from sklearn.metrics import accuracy_score

    plan, result = elalora_run
    table = pandas.read_parquet(plan.folder.path / "predictions.parquet")
    assert len(table) == result["data"]["report_items"] == 1059
    expected = 100 * accuracy_score(table.label, table.prediction)
    assert result["readings"]["last"]["report"]["metrics"]["accuracy"] == pytest.approx(expected)


def test_moves_ranks_and_counts_of_a_result_follow_from_its_rounds(elalora_run):
    plan, result = elalora_run
    rounds = lines(plan.folder.path, "ranks.jsonl")
    start, moved = rounds[0], rounds[1:]
    assert start["step"] == -1 and set(start["ranks"].values()) == {4} and len(start["ranks"]) == 12
    grown = sum(len(r["grown"]) for r in moved)
    assert result["moves"]["grown"] == grown > 0
    assert result["moves"]["gross_share"] == pytest.approx(grown / 48)
    final = moved[-1]["ranks"]
    assert result["ranks"]["final"] == final
    net = 0.5 * sum(abs(final[m] / 48 - start["ranks"][m] / 48) for m in final)
    assert result["moves"]["net_share"] == pytest.approx(net)
    assert all(sum(r["ranks"].values()) == 48 for r in rounds)
    shapes = result["ranks"]["shapes"]
    params = sum(rank * (sum(shapes[m]) + 1) for m, rank in final.items())
    assert result["counts"]["final"] == {"rank_sum": 48, "params": params}
    assert result["counts"]["head_params"] == 32 * 32 + 32 + 2 * 32 + 2


def test_a_done_run_is_skipped_and_says_so(elalora_run, capsys):
    plan, result = elalora_run
    before = (plan.folder.path / "result.json").stat().st_mtime_ns
    assert run(plan) == json.loads(json.dumps(result))
    assert "done before (commit " in capsys.readouterr().out
    assert (plan.folder.path / "result.json").stat().st_mtime_ns == before


def test_a_store_named_in_also_counts_and_another_does_not(elalora_run, tiny_model_dir, tmp_path):
    plan, _ = elalora_run
    there = make_plan(quick(tiny_model_dir, tmp_path, *MOVES, f"store.also=[{plan.config.store.root}]"))
    assert there.id == plan.id and there.finished().path == plan.folder.path
    assert make_plan(quick(tiny_model_dir, tmp_path, *MOVES)).finished() is None
    assert find([str(tmp_path / "nowhere")], plan.id) is None


def test_the_stored_adapter_gives_the_stored_predictions_in_stock_peft(elalora_run, tiny_model_dir):
    import pandas
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from experiments.data import load_task

    plan, _ = elalora_run
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=2)
    model = PeftModel.from_pretrained(base, plan.folder.path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    from omegaconf import OmegaConf

    config = plan.config
    data = load_task(OmegaConf.to_object(config.task), OmegaConf.to_object(config.data))
    texts = {row["idx"]: row["text"] for row in data.splits["test"]}
    stored = pandas.read_parquet(plan.folder.path / "predictions.parquet").head(64)
    batch = tokenizer([texts[i] for i in stored.idx], truncation=True, max_length=16, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    margin = (logits.max(1).values - logits.min(1).values).double().numpy()
    assert list(logits.argmax(1)) == list(stored.prediction)
    assert abs(margin - stored.score.to_numpy()).max() < 1e-4


@pytest.mark.slow
def test_the_third_run_in_a_process_equals_the_same_run_alone(elalora_run, tiny_model_dir, tmp_path):
    plan, _ = elalora_run
    overrides = ([*MOVES, "seed=5"], ["method=lora"], MOVES)
    configs = [quick(tiny_model_dir, tmp_path, *more) for more in overrides]
    assert run_all(configs) == 0
    again = make_plan(configs[2])
    assert files(again.folder.path) == files(plan.folder.path)
    assert science(again.folder.result()) == science(plan.folder.result())


@pytest.mark.parametrize(
    "extra",
    [
        [],
        pytest.param(["trainer.micro_batch=3", "trainer.evaluations=3", "method=adalora"], marks=pytest.mark.slow),
    ],
    ids=["elalora", "accumulating adalora"],
)
def test_a_killed_run_resumes_to_the_same_files(extra, movies, tiny_model_dir, tmp_path, monkeypatch):
    """Killed between two rounds and between two log lines; every file repeats bit for bit."""
    whole = make_plan(quick(tiny_model_dir, tmp_path / "whole", *MOVES, *extra))
    run(whole)
    cut = make_plan(quick(tiny_model_dir, tmp_path / "cut", *MOVES, *extra, "store.checkpoint_every=7"))
    step = Trainer._step

    def killed(self, number):
        if number == 17:
            raise MemoryError("pretend")
        return step(self, number)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(RunFailed, match="MemoryError: pretend"):
        run(cut)
    status = cut.folder.status()
    assert status["state"] == "failed" and status["error"] == "MemoryError: pretend" and not cut.folder.done
    kept = sorted(p.name for p in (cut.folder.path / "checkpoint").glob("step-*"))
    assert kept == ["step-00000007", "step-00000014"]
    with (cut.folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "spl')  # a line that was cut off while it was written
    monkeypatch.setattr(Trainer, "_step", step)
    run(cut)
    assert cut.folder.status()["attempts"] == 2
    assert files(cut.folder.path) == files(whole.folder.path)
    assert science(cut.folder.result()) == science(whole.folder.result())


def test_a_checkpoint_is_whole_or_none(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"x": torch.full((3,), float(step)), "note": {"n": step}})
    assert checkpoint.steps(tmp_path) == [3, 2, 1]
    with (tmp_path / "step-00000003" / "tensors.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\xff\xff")
    assert checkpoint.load(tmp_path, 3) is None and checkpoint.load(tmp_path, 4) is None
    state = checkpoint.load(tmp_path, 2)
    assert state["x"].tolist() == [2, 2, 2] and state["note"] == {"n": 2}
    checkpoint.drop(tmp_path, {1})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_arms_of_a_seed_share_data_order_subset_and_head(movies, tiny_model_dir, tmp_path):
    prepared = [
        prepare(make_plan(quick(tiny_model_dir, tmp_path, *m)))
        for m in (["method=lora"], ["method=sora"], ["method=lora", "seed=1"])
    ]
    trains = [p.splits.train.data.idx.tolist() for p in prepared]
    heads = [p.model.classifier.weight for p in prepared]
    assert trains[0] == trains[1] != trains[2]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_accumulation_leaves_the_gradient_what_it_was(movies, tiny_model_dir, tmp_path):
    """One batch of 8 and micro-batches of 3, 3 and 2 train to the same weights up to rounding."""
    ends = []
    for more in ([], ["trainer.micro_batch=3"]):
        plan = make_plan(
            quick(tiny_model_dir, tmp_path, "method=lora", "model.dropout=0.0", "trainer.max_steps=12", *more)
        )
        run(plan)
        ends.append(load_file(plan.folder.path / "adapter" / "adapter_model.safetensors"))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=2e-3, atol=2e-5)


def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_setting(movies, tiny_model_dir, tmp_path):
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora", "trainer.lr=1e30", "trainer.warmup=0"))
    with pytest.raises(RunFailed, match="NotFinite: .* lower trainer.lr"):
        run(plan)
    assert plan.folder.status()["state"] == "failed" and not plan.folder.done


def test_a_bug_before_anything_is_written_still_shows_its_traceback(tiny_model_dir, tmp_path, monkeypatch, capsys):
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora"))

    def broken(_):
        raise ZeroDivisionError("pretend")

    monkeypatch.setattr("experiments.runs.run.prepare", broken)
    with pytest.raises(RunFailed, match="ZeroDivisionError: pretend"):
        run(plan)
    assert "Traceback" in capsys.readouterr().err and not plan.folder.path.exists()


def test_an_allocator_that_never_acts_fails_the_run(movies, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("elalora.ela.ElaLoRA.after_step", lambda self, *args: None)
    plan = make_plan(quick(tiny_model_dir, tmp_path, *MOVES))
    with pytest.raises(RunFailed, match="rounds were due and no rank moved"):
        run(plan)
    assert not plan.folder.done


def test_elalora_at_rank_1_is_refused_before_anything_is_loaded(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match="budget=r2"):
        make_plan(quick(tiny_model_dir, tmp_path, "budget=r1", *MOVES))


def test_one_failure_does_not_stop_the_others(movies, tiny_model_dir, tmp_path, capsys):
    bad = quick(tiny_model_dir, tmp_path, "method=lora", "trainer.lr=1e30", "trainer.warmup=0")
    wrong = quick(tiny_model_dir, tmp_path, "method=lora", "model.targets=[nothing]")
    good = quick(tiny_model_dir, tmp_path, "method=lora", "seed=3")
    assert run_all([bad, wrong, good]) == 2
    assert make_plan(good).folder.done
    err = capsys.readouterr().err
    assert "1 of 3 runs are done" in err and "'nothing' matches no linear layer; candidates:" in err


def test_modules_that_the_checkpoint_lacks_must_be_in_the_head(movies, tiny_model_dir, tmp_path):
    plan = make_plan(quick(tiny_model_dir, tmp_path, *MOVES, "model.head=[bert.pooler]"))
    with pytest.raises(UserError, match=r"no weights for classifier, .* type model.head=\[classifier"):
        run(plan)
    assert not plan.folder.path.exists()


def test_two_processes_on_one_run_one_works_and_the_other_leaves(tmp_path):
    from experiments.store.lock import Busy

    with RunFolder(tmp_path / "run").working(), pytest.raises(Busy), RunFolder(tmp_path / "run").working():
        pass


def test_the_transplant_takes_the_final_ranks_of_the_run_it_names(elalora_run, tiny_model_dir):
    plan, result = elalora_run
    store = plan.config.store.root
    knobs = "elalora t_initial=3 t_final=6 interval=4"
    base = ["method=svd_lora", f"method.ranks_from='{knobs} k=1'"]
    with pytest.raises(UserError, match="depends on run vader_movies/elalora-r4-s0"):
        run(make_plan(quick(tiny_model_dir, store, *base)))  # the run that is there has k=2
    by_id = make_plan(quick(tiny_model_dir, store, "method=svd_lora", f"method.ranks_from={plan.id}"))
    by_folder = make_plan(quick(tiny_model_dir, store, "method=svd_lora", f"method.ranks_from={plan.folder.path}"))
    by_knobs = make_plan(quick(tiny_model_dir, store, "method=svd_lora", f"method.ranks_from='{knobs}'"))
    assert by_id.id == by_folder.id == by_knobs.id
    made = run(by_folder)
    assert made["ranks"]["initial"] == made["ranks"]["final"] == result["ranks"]["final"]
    assert made["counts"]["final"]["params"] == result["counts"]["final"]["params"]
    assert made["label"] == "SVD-LoRA transplant"


def test_head_only_trains_nothing_else_and_has_no_budget(movies, tiny_model_dir, tmp_path):
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=head"))
    result = run(plan)
    assert result["budget"] is None and result["counts"]["final"]["params"] == 0
    assert set(load_file(plan.folder.path / "adapter" / "trained.safetensors")) == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip


def test_regression_and_best_checkpoint_under_paper_best(movies, tiny_model_dir, tmp_path):
    plan = make_plan(
        quick(
            tiny_model_dir,
            tmp_path,
            "task=vader_tweets",
            "protocol=paper_best",
            "trainer.evaluations=6",
            "task.max_length=16",
            *MOVES,
        )
    )
    result = run(plan)
    best = result["readings"]["best"]
    assert best["step"] > 0.75 * 30 and best["report"] == best["select"]
    assert best["count"]["rank_sum"] == 48 == sum(best["ranks"].values())
    scores = [
        (line["value"], line["step"] + 1) for line in lines(plan.folder.path, "metrics.jsonl")
        if line["split"] == "test" and line["metric"] == "pearson" and line["step"] + 1 in (25, 30)
    ]  # fmt: skip
    assert best["report"]["metrics"]["pearson"] == pytest.approx(max(scores)[0])


@pytest.mark.slow
def test_the_best_checkpoint_is_read_once_at_the_end_and_leaves_the_last_one_alone(movies, tiny_model_dir, tmp_path):
    plain = run(make_plan(quick(tiny_model_dir, tmp_path, *MOVES)))
    plan = make_plan(quick(tiny_model_dir, tmp_path, *MOVES, "trainer.evaluations=10"))
    result = run(plan)
    assert result["readings"]["last"]["report"] == plain["readings"]["last"]["report"]
    best = result["readings"]["best"]
    read = [x for x in lines(plan.folder.path, "metrics.jsonl") if x["split"] == "test" and x["metric"] == "accuracy"]
    assert [x["step"] for x in read] == [best["step"] - 1, 30]
    assert read[0]["value"] == best["report"]["metrics"]["accuracy"]


@pytest.mark.parametrize("option", ["use_dora=true", "init_lora_weights=eva"])
def test_a_stock_peft_tuner_is_an_arm(option, movies, tiny_model_dir, tmp_path):
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=peft", f"+method.options.{option}"))
    result = run(plan)
    lora = 4 * sum(sum(shape) for shape in result["ranks"]["shapes"].values())
    magnitudes = sum(shape[0] for shape in result["ranks"]["shapes"].values())
    final = result["counts"]["final"]["params"]
    if "dora" in option:
        assert final == lora + magnitudes and result["flags"][-1:] == ["off budget"]
    else:  # EVA moved ranks before the first step, by what it saw of the training batches
        assert result["counts"]["final"]["rank_sum"] <= 4 * 12 and len(set(result["ranks"]["initial"].values())) > 1
    assert result["counts"]["other_params"] == 0 and result["counts"]["head_params"] == 32 * 32 + 32 + 2 * 32 + 2


def test_run_length_is_epochs_or_steps():
    from experiments.config.schema import TrainerConfig

    assert run_length(TrainerConfig(epochs=3, batch_size=32), 100) == 12
    assert run_length(TrainerConfig(epochs=0.5, batch_size=32), 100) == 2
    assert run_length(TrainerConfig(max_steps=7, epochs=3), 100) == 7


def test_streams_of_one_seed_are_apart():
    seeds = [stream(s, n) for s in range(50) for n in ("head", "adapter", "data", "dropout:1:0")]
    assert len(set(seeds)) == 200 and stream(0, "head") == stream(0, "head")
    bits = [bin(s).count("1") for s in seeds]
    assert 28 < statistics.mean(bits) < 35


@pytest.mark.slow
def test_the_command_does_a_run_and_skips_it_the_second_time(movies, tiny_model_dir, tmp_path):
    from tiny_runs import QUICK

    words = [*QUICK, f"model.path={tiny_model_dir}", f"store.root={tmp_path}", "method=lora", "trainer.max_steps=5"]
    first = command(*words)
    assert first.returncode == 0, first.stderr
    assert "done: " in first.stdout and "test accuracy" in first.stdout
    second = command(*words)
    assert second.returncode == 0 and "done before" in second.stdout
    assert str(ROOT) not in (next(tmp_path.glob("vader_movies/*")) / "result.json").read_text()
