"""The overview of a store: states, arms, progress, failures by kind, the command that goes on, and its speed."""

from __future__ import annotations

import json
import os
import shlex
import time

import pytest
from omegaconf import OmegaConf
from tiny_runs import QUICK, command, config, quick

from analysis.reading.runs import load_runs
from elalora.errors import UserError
from experiments.__main__ import main
from experiments.runs.plan import make_plan
from experiments.store.folder import RunFolder
from experiments.store.foreign import parse_yaml
from experiments.store.lock import Busy
from experiments.store.status import _overrides, arms, overview, read_store, retry


def fake(root, number, state="running", seed=None, words=(), age=0.0, name="elalora-r4", **more):
    """A run folder as the harness leaves it."""
    seed = number if seed is None else seed
    folder = root / "cola" / f"{name}-s{seed}-{number:010x}"
    folder.mkdir(parents=True)
    status = {"state": state, "attempts": 1, "heartbeat": time.time() - age, "pid": 1, **more}
    (folder / "status.json").write_text(json.dumps(status))
    overrides = ["task=cola", "method=elalora", "budget=r4", *words, f"seed={seed}"]
    filler = "".join(f"  knob{i}: {i}\n" for i in range(60))
    words = "".join(f"- {word}\n" for word in overrides)
    (folder / "config.yaml").write_text(f"method:\n{filler}overrides:\n{words}study: null\n")
    times = [{"seconds_per_step": 0.5, "step": 9}, {"seconds_per_step": 0.25, "step": 19}]
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    if state == "done":
        (folder / "result.json").write_text("{}")
    return folder


def by_state(root):
    return {run.state: run for run in read_store(root)}


def test_every_state_is_told_apart_with_progress_speed_age_and_error(tmp_path):
    fake(tmp_path, 1, "done")
    fake(tmp_path, 2, "running", step=20, total=80, age=5)
    fake(tmp_path, 3, "running", step=20, total=80, age=4000)
    fake(tmp_path, 4, "failed", failure="nan", error="NotFinite: loss is nan at step 7")
    fake(tmp_path, 5, "preempted", failure="preempted", error="Preempted: at step 7")
    (fake(tmp_path, 6) / "status.json").write_text('{"state": "runn')
    found = by_state(tmp_path)
    assert set(found) == {"done", "running", "stale", "failed", "preempted", "unreadable"}
    running = found["running"]
    assert (running.step, running.total, running.seconds_per_step) == (20, 80, 0.25) and 5 <= running.age < 60
    assert found["failed"].failure == "nan" and found["failed"].error == "NotFinite: loss is nan at step 7"
    text = overview(read_store(tmp_path))
    assert text.splitlines()[:2] == [
        "6 runs: 1 running, 1 stale, 1 failed, 1 preempted, 1 done, 1 unreadable",
        "  cola/elalora-r4: 6 repeats, 1 running, 1 stale, 1 failed (1 nan), 1 preempted, 1 done, 1 unreadable",
    ]
    assert "step 20/80, 0.25 s/step, last seen 5 s ago" in text and "STALE: killed or hanging" in text
    assert "nan: NotFinite: loss is nan at step 7" in text


def test_a_result_makes_a_run_done_whatever_its_status_says(tmp_path):
    folder = fake(tmp_path, 1, "running", age=9999)
    (folder / "result.json").write_text("{}")
    assert read_store(tmp_path)[0].state == "done"
    (folder / "status.json").unlink()
    assert read_store(tmp_path)[0].state == "done"


def test_a_heartbeat_from_the_future_is_no_sign_of_life(tmp_path):
    fake(tmp_path, 1, "running", age=-86400)
    assert read_store(tmp_path)[0].state == "stale" and read_store(tmp_path)[0].age == 0.0


def test_arms_that_differ_in_an_override_are_apart_and_seeds_are_repeats(tmp_path):
    for number in range(6):
        fake(tmp_path, number, "done", seed=number % 3, words=[f"trainer.lr={'1e-3' if number < 3 else '2e-3'}", "x=1"])
    assert {name: len(alike) for name, alike in arms(read_store(tmp_path)).items()} == {
        "cola/elalora-r4 (trainer.lr=1e-3)": 3,
        "cola/elalora-r4 (trainer.lr=2e-3)": 3,
    }


def test_the_retry_command_makes_exactly_the_runs_that_stopped(tmp_path):
    root = f"store.root={tmp_path}/with space"
    plans = {seed: make_plan(config("task=cola", "method=lora", root, f"seed={seed}")) for seed in (0, 1, 2)}
    for seed, plan in plans.items():
        with pytest.raises(ZeroDivisionError), plan.folder.working():
            (plan.folder.path / "config.yaml").write_text(OmegaConf.to_yaml(plan.config, resolve=True))
            raise ZeroDivisionError
        if seed == 1:
            (plan.folder.path / "result.json").write_text("{}")
    ((command, others),) = retry(read_store(tmp_path / "with space"))
    words = shlex.split(command)
    assert not others
    assert words[:3] == ["python", "run.py", "-m"] and words[-1] == "seed=0,2"
    again = [make_plan(config(*words[3:-1], f"seed={seed}")).folder.path for seed in (0, 2)]
    assert again == [plans[0].folder.path, plans[2].folder.path]


def test_a_failure_is_stored_with_its_kind(tmp_path):
    from elalora.method import BudgetExceeded, MethodFailure, NeverActed
    from experiments.training.readout import NotFinite

    kinds = {
        NotFinite: "nan", BudgetExceeded: "budget", NeverActed: "never_acted", MethodFailure: "crash",
        MemoryError: "crash", KeyboardInterrupt: "preempted",
    }  # fmt: skip
    for number, (error, kind) in enumerate(kinds.items()):
        folder = RunFolder(tmp_path / str(number))
        with pytest.raises(error), folder.working():
            raise error("x")
        assert folder.status()["failure"] == kind


def test_what_a_stranger_wrote_into_a_status_cannot_steer_the_terminal_or_break_the_list(tmp_path):
    fake(tmp_path, 1, "failed", error="\x1b[2Jboo\x07\nsecond line", failure="crash")
    fake(tmp_path, 2, "running", step="no", total=[1], heartbeat="never")
    fake(tmp_path, 3, "running", heartbeat=float("nan"), attempts=None)
    (fake(tmp_path, 4) / "config.yaml").write_text("overrides:\n- !!python/object/apply:os.system [false]\n")
    (fake(tmp_path, 5) / "status.json").write_bytes(b"\xff\xfe" + b"[" * 100_000)
    runs = read_store(tmp_path)
    assert [run.state for run in runs] == ["failed", "stale", "unreadable", "running", "unreadable"]
    assert runs[0].error == r"\x1b[2Jboo\x07" and runs[3].overrides is None
    assert not {"\x1b", "\x07"} & set(overview(runs))


def test_the_command_speaks_json_and_names_a_folder_that_is_none(tmp_path, capsys):
    fake(tmp_path, 1, "failed", failure="budget", error="BudgetExceeded: rank sum 9, allowed 8")
    assert main(["status", str(tmp_path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "failed" and row["failure"] == "budget" and row["seed"] == 1 and row["arm"] == "elalora-r4"
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_overview_of_many_runs_opens_four_files_a_run_at_most(tmp_path, monkeypatch):
    for number in range(500):
        state = "failed" if number % 10 == 0 else "done"
        fake(tmp_path, number, state, seed=number % 50, words=[f"trainer.lr={number // 50}"])
    opened, plain = [], os.open

    def counted(path, *more, **options):
        opened.append(path)
        return plain(path, *more, **options)

    monkeypatch.setattr(os, "open", counted)  # files of a store are opened by it alone
    text = overview(read_store(tmp_path))
    assert "500 runs: 50 failed, 450 done" in text
    assert 500 <= len(opened) <= 4 * 500


SHORT = ("trainer.max_steps=null", "trainer.epochs=1")  # how many steps that is, only the data knows


def test_plain_words_of_a_command_are_read_without_a_yaml_parser_and_are_what_it_reads(tmp_path, monkeypatch):
    plain = ["method=lora", "trainer.lr=5e-4", "store.root=../my-runs/a.b", "seed=07", "init_from=", "task.x=1:30"]
    others = ["'a'=b", "+study=x", "task.labels=[a,b]", "a=b # c", "a=b: c", "a=&x", "=", "é=1"]
    parsed = []
    monkeypatch.setattr("experiments.store.status.parse_yaml", lambda text: parsed.append(text) or parse_yaml(text))
    for number, words in enumerate([plain[:-1], plain, *([word] for word in others)]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(OmegaConf.to_yaml(OmegaConf.create({"seed": 1, "overrides": words, "study": None})))
        assert _overrides(path) == words
    assert len(parsed) == 1 + len(others)


@pytest.mark.slow
def test_what_only_a_worker_can_refuse_is_a_failed_run_with_its_reason(tiny_model_dir, tmp_path):
    """So that `status` and the tables know of it; the same words alone write nothing, and can be typed again."""
    words = [*QUICK, *SHORT, f"model.path={tiny_model_dir}", "threads=1"]
    swept = command("-m", *words, f"store.root={tmp_path}/runs", "method=elalora,lora")
    assert swept.returncode == 2 and "1 done, 1 failed" in swept.stdout, swept.stderr
    plan = make_plan(quick(tiny_model_dir, f"{tmp_path}/runs", *SHORT, "threads=1", "method=elalora"))
    status = plan.folder.status()
    assert (status["state"], status["failure"], status["attempts"]) == ("failed", "refused", 0)
    assert status["error"].startswith("method.interval=20 is longer than the adjustment phase")
    runs = read_store(tmp_path / "runs")
    assert f"refused: {status['error'][:60]}" in overview(runs) and status["error"] in swept.stderr
    ((again, others),) = retry(runs)
    assert others == ["store.checkpoint_every=0", f"model.path={tiny_model_dir}"]
    assert make_plan(config(*shlex.split(again)[2:], *others)).id == plan.id
    (left,) = load_runs(tmp_path / "runs").attrs["unfinished"]
    assert (left.state, left.ending) == ("refused", "") and left.error == status["error"]
    alone = command(*words, f"store.root={tmp_path}/alone", "method=elalora")
    assert alone.returncode == 2 and status["error"] in alone.stderr and not (tmp_path / "alone").exists()


def test_a_refusal_takes_nothing_from_a_run_that_is_done_or_under_way(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.working(), pytest.raises(Busy):
        RunFolder(tmp_path / "run").refuse("no", "a: 1")
    assert folder.status()["state"] == "done" and not (tmp_path / "run" / "config.yaml").exists()
    (tmp_path / "run" / "result.json").write_text("{}")
    folder.refuse("no", "a: 1")
    assert folder.status()["state"] == "done" and not (tmp_path / "run" / "config.yaml").exists()
    (tmp_path / "run" / "result.json").unlink()
    folder.refuse("no", "a: 1")
    assert folder.status()["error"] == "no" and folder.status()["attempts"] == 1
    with folder.working():
        assert folder.status()["attempts"] == 2


SCHEDULES = {
    ("method=elalora",): "method.interval=20 is longer than the adjustment phase, steps 3 to 22 of 30",
    ("method=adalora", "method.t_initial=20"): "leave no step for rounds in a run of 30",
    ("method=beamlora", "method.interval=20"): "must lie between 2 and half of the run's 30 steps",
    ("method=prilora", "method.every=31"): "method.every=31 is longer than the run of 30 steps",
    (
        "method=sora",
        "method.lambda_num=40",
        "method.max_lambda=7e-4",
    ): "method.lambda_num=40 stages do not fit 30 steps",
    (
        "method=sora",
        "method.lambda_num=5",
        "method.max_lambda=7e-4",
        "trainer.warmup=10",
    ): "trainer.warmup=10.0 leaves no step of the 4 steps of a stage",
    ("method=svd_lora", "method.D1=true"): "method.interval=20 is longer than the adjustment phase",
    ("method=peft", "method.tuner=ADALORA", "+method.options.tinit=20"): "lower method.options.tinit or",
    ("method=peft", "method.tuner=ADALORA", "+method.options.tinit=soon"): "method.options.tinit=soon",
}


@pytest.mark.parametrize("words", SCHEDULES, ids=" ".join)
def test_a_schedule_that_has_no_room_is_refused_by_the_plan(words, tmp_path):
    with pytest.raises(UserError) as refused:
        make_plan(quick("nowhere", tmp_path, *words))
    assert SCHEDULES[words] in str(refused.value)
    assert make_plan(quick("nowhere", tmp_path, *words, *SHORT[:1]))  # only the data knows how long it is
