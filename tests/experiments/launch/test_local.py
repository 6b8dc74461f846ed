"""Sweeps in worker processes on this machine: equal to runs alone, and a death costs one run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from tiny_runs import MOVES, QUICK, ROOT, command, config, quick

from experiments.config.schema import LauncherConfig
from experiments.launch import local
from experiments.runs.plan import make_plan
from experiments.runs.run import run
from experiments.runtime.manifest import Code
from experiments.runtime.signals import Preempted, interrupting

FILES = ("metrics.jsonl", "ranks.jsonl", "predictions.parquet", "adapter/adapter_model.safetensors")

KNOBS = "elalora t_initial=3 t_final=6 interval=4"
UNCLIPPED = ("trainer.max_grad_norm=null",)


def words(model, store, *more):
    return ["-m", *QUICK, f"model.path={model}", f"store.root={store}", "threads=1", *more]


def signalled(given, victim, how, file="timing.jsonl", limit=90):
    """Exit code and output of a sweep that gets a signal once a run has a file; SIGKILL goes to that run's worker."""
    process = subprocess.Popen([sys.executable, "run.py", *given], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + limit
    while not (victim.folder.path / file).exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.005)
    os.kill(victim.folder.status()["pid"] if how == signal.SIGKILL else process.pid, how)
    said, _ = process.communicate(timeout=limit)
    return process.returncode, said


@pytest.mark.slow
def test_four_runs_in_two_workers_equal_the_runs_alone(tiny_model_dir, tmp_path):
    swept = command(*words(tiny_model_dir, tmp_path / "a", *MOVES, "seed=range(4)", "launcher.workers=2"))
    assert swept.returncode == 0, swept.stderr
    assert "4 done, 0 failed, 0 done before" in swept.stdout and ": 4 repeats" in swept.stdout
    for seed in (2, 3):
        more = [*MOVES, f"seed={seed}", "threads=1"]
        there = make_plan(quick(tiny_model_dir, tmp_path / "a", *more)).folder.path
        alone = make_plan(quick(tiny_model_dir, tmp_path / "b", *more))
        run(alone)
        for name in FILES:
            assert (there / name).read_bytes() == (alone.folder.path / name).read_bytes(), name


@pytest.mark.slow
def test_the_third_run_of_a_worker_equals_that_run_in_a_process_of_its_own(tiny_model_dir, tmp_path):
    """After full fine-tuning, which changes every weight, and after another task."""
    wanted = [*MOVES, "seed=5", "threads=1"]
    before = [["method=full", "threads=1"], ["method=lora", "task=vader_tweets", "threads=1"]]
    plans = [make_plan(quick(tiny_model_dir, tmp_path / "a", *more)) for more in [*before, wanted]]
    assert local.run_plans(plans, LauncherConfig(workers=1)) == 0
    alone = command(*QUICK, f"model.path={tiny_model_dir}", f"store.root={tmp_path / 'b'}", *wanted)
    assert alone.returncode == 0, alone.stderr
    there, own = plans[2].folder.path, make_plan(quick(tiny_model_dir, tmp_path / "b", *wanted)).folder.path
    for name in FILES:
        assert (there / name).read_bytes() == (own / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_worker_fails_its_run_only_and_the_same_command_does_that_one(tiny_model_dir, tmp_path):
    given = words(tiny_model_dir, tmp_path, "method=lora", "trainer.max_steps=300", "seed=range(3)")
    victim = make_plan(quick(tiny_model_dir, tmp_path, "method=lora", "trainer.max_steps=300", "seed=1", "threads=1"))
    code, said = signalled(given, victim, signal.SIGKILL)
    assert code == 1 and "2 done, 1 failed, 0 done before" in said
    status = victim.folder.status()
    assert (status["state"], status["failure"], status["error"]) == ("failed", "crash", "killed by signal 9")
    again = command(*given)
    assert again.returncode == 0 and "1 done, 0 failed, 2 done before" in again.stdout, again.stderr


def gone(pid, seconds=60):
    """Whether a process ends within some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # it ended, and nobody asked for its exit code
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_sweep_killed_from_outside_leaves_no_worker_and_no_scratch_folder(tiny_model_dir, tmp_path):
    """The workers stop with a checkpoint when their parent dies."""
    more = ("method=lora", "trainer.max_steps=3000", "seed=range(2)", "launcher.workers=1", "store.checkpoint_every=0")
    plan = make_plan(quick(tiny_model_dir, tmp_path, *more[:2], "seed=0", "threads=1"))
    (tmp_path / "scratch").mkdir()
    given = [sys.executable, "run.py", *words(tiny_model_dir, tmp_path, *more)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    process = subprocess.Popen(given, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment)
    end = time.monotonic() + 90
    while not (plan.folder.path / "timing.jsonl").exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.005)
    worker = plan.folder.status()["pid"]
    process.kill()
    process.wait()
    assert gone(worker) and plan.folder.status()["state"] == "preempted"
    assert list(plan.folder.path.glob("checkpoint/step-*")) and not list((tmp_path / "scratch").glob("elalora-*"))


def test_a_second_signal_within_two_seconds_does_not_count_for_a_sweep_either(monkeypatch):
    clock = iter([100.0, 101.9, 102.1])
    monkeypatch.setattr("experiments.runtime.signals.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM, then SIGTERM"), interrupting():
        with pytest.raises(KeyboardInterrupt, match="^SIGTERM$"):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hang_up_stops_a_sweep_unless_nohup_started_it(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with nullcontext() if ignored else pytest.raises(KeyboardInterrupt, match="SIGHUP"), interrupting():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP], ids=lambda number: number.name)
def test_a_sweep_asked_to_stop_leaves_a_checkpoint_and_no_worker(number, tiny_model_dir, tmp_path):
    more = ("method=lora", "trainer.max_steps=3000", "seed=range(2)", "launcher.workers=2")
    plan = make_plan(quick(tiny_model_dir, tmp_path, *more[:2], "seed=0", "threads=1"))
    code, said = signalled(words(tiny_model_dir, tmp_path, *more), plan, number)
    assert code == 75 and "0 done, 0 failed" in said and gone(plan.folder.status()["pid"], 1)
    assert plan.folder.status()["state"] == "preempted" and list(plan.folder.path.glob("checkpoint/step-*"))


@pytest.mark.slow
def test_a_plan_and_a_sweep_in_one_process_which_is_refused_leave_nothing(tmp_path):
    planned = command("-m", "method=lora,head", f"store.root={tmp_path / 'runs'}", "--plan")
    assert planned.returncode == 0 and "0 of 2 done" in planned.stdout and not list(tmp_path.iterdir())
    done = command("-m", "method=lora,head", "hydra/launcher=basic", f"store.root={tmp_path / 'runs'}")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("elalora: hydra/launcher=basic would do")
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_the_live_line_says_how_far_the_runs_under_way_are(tmp_path):
    from experiments.launch.local import Sweep, Worker

    plan = make_plan(config(f"store.root={tmp_path}"))
    sweep = Sweep([plan], 1, workers=[Worker(None, None, plan)])
    assert sweep._steps() == plan.label
    plan.folder.path.mkdir(parents=True)
    plan.folder.progress(40, 100)
    assert sweep._steps() == f"{plan.label} 40/100"


def test_runs_that_failed_alike_are_one_line(tmp_path, capsys):
    plans = [make_plan(config(f"store.root={tmp_path}", f"seed={seed}")) for seed in range(4)]
    sweep = local.Sweep(plans, 1)
    sweep.failed = {plan.id: (2, "no column 'x'") for plan in plans[:3]} | {plans[3].id: (1, "killed by signal 9")}
    sweep._summary()
    first, second = capsys.readouterr().err.splitlines()
    assert f"{plans[0].label} and 2 more runs failed: no column 'x' (see {plans[0].folder.path})" in first
    assert f"{plans[3].label} failed: killed by signal 9" in second


@pytest.mark.slow
def test_a_member_that_fails_stops_no_other_and_the_sweep_says_what_to_type(tiny_model_dir, tmp_path):
    more = ("method=lora", "trainer.max_grad_norm=null", "trainer.lr=1e30,1e-3,2e-3", "launcher.workers=2")
    swept = command(*words(tiny_model_dir, tmp_path, *more))
    assert swept.returncode == 1 and "2 done, 1 failed, 0 done before" in swept.stdout
    assert "NotFinite: " in swept.stderr and "Traceback" not in swept.stderr
    (again,) = [line for line in swept.stdout.splitlines() if line.startswith("again: ")]
    assert ("1e+30" in again or "1e30" in again) and "trainer.lr=1e-3" not in again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "line"),
    [(RuntimeError("boom"), "RuntimeError: boom"), (Preempted("SIGTERM before the first step", "SIGTERM"), "SIGTERM")],
)
def test_a_failure_names_run_and_folder_once(error, line, tiny_model_dir, tmp_path, monkeypatch):
    def fails(plan):
        raise error

    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora"))
    monkeypatch.setattr("experiments.runs.run.prepare", fails)
    code, said = local._do(plan)
    assert code == 1 and line in said and plan.label not in said and "(see" not in said


@pytest.mark.slow
def test_a_run_waits_for_its_source_and_fails_with_it(tiny_model_dir, tmp_path, capsys):
    source = make_plan(quick(tiny_model_dir, tmp_path, *MOVES, "threads=1"))
    after = make_plan(quick(tiny_model_dir, tmp_path, "method=svd_lora", f"method.ranks_from='{KNOBS}'", "threads=1"))
    wrong = make_plan(quick(tiny_model_dir, tmp_path, *MOVES, "threads=1", "trainer.lr=1e30", *UNCLIPPED))
    lost = make_plan(
        quick(tiny_model_dir, tmp_path, "method=svd_lora", f"method.ranks_from='{KNOBS} trainer.lr=1e30'", *UNCLIPPED)
    )
    assert [plan.sources[0].id for plan in (after, lost)] == [source.id, wrong.id]
    assert local.run_plans([after, lost, source, wrong], LauncherConfig(workers=2)) == 1
    results = [plan.folder.result() for plan in (source, after)]
    assert results[0]["ranks"]["final"] == results[1]["ranks"]["initial"]
    assert not lost.folder.path.exists() and "depends on failed (method.ranks_from" in capsys.readouterr().err


@pytest.mark.full
def test_forty_runs_lose_only_the_one_that_is_killed(tiny_model_dir, tmp_path):
    more = ("method=lora", "seed=range(40)", "launcher.workers=2")
    victim = make_plan(quick(tiny_model_dir, tmp_path, "method=lora", "seed=17", "threads=1"))
    given = words(tiny_model_dir, tmp_path, *more)
    code, said = signalled(given, victim, signal.SIGKILL, "status.json", limit=600)
    assert code == 1 and "39 done, 1 failed, 0 done before" in said
    again = command(*given)
    assert again.returncode == 0 and "1 done, 0 failed, 39 done before" in again.stdout, again.stderr


class Pipe:
    """A worker's end of its pipe, with what the sweep would send."""

    def __init__(self, *plans):
        self.plans, self.answers, self.send = list(plans), [], lambda answer: self.answers.append(answer)

    def recv(self):
        if not self.plans:
            raise EOFError
        return self.plans.pop(0)


@pytest.mark.parametrize(("now", "said"), [
    (("a" * 40, False), None),
    (("b" * 40, False), "the code is bbbbbbbbbb, the sweep was started from aaaaaaaaaa"),
    (("a" * 40, True), "the code is aaaaaaaaaa with changes, the sweep was started from aaaaaaaaaa"),
])  # fmt: skip
def test_a_worker_of_other_code_than_the_sweep_s_says_so_at_its_start_and_in_each_run_s_log(
    now, said, tiny_model_dir, tmp_path, monkeypatch, capsys
):
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora"))
    handed = []

    def start(threads, code):
        handed.append(code)
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.runtime.manifest.code_of", lambda folder: Code("a" * 40, False))
    monkeypatch.setattr(local, "_start", start)
    with pytest.raises(Preempted):
        local.Sweep([plan], 1).run()
    capsys.readouterr()
    monkeypatch.setattr("experiments.runtime.manifest.code_of", lambda folder: Code(*now))
    for owner, name in ((local.os, "setsid"), (local, "obey_the_parent")):  # both are for a whole process
        monkeypatch.setattr(owner, name, lambda *given: None)
    monkeypatch.setattr(local, "_logged", lambda path: nullcontext())
    monkeypatch.setattr(local, "_do", lambda plan: (0, "done"))
    pipe = Pipe(plan, plan)
    local._work(pipe, 1, handed[0])
    assert pipe.answers == [(0, "done")] * 2
    assert capsys.readouterr().err.splitlines() == ([] if said is None else [f"elalora: {said}"] * 3)


@pytest.mark.slow
def test_two_sweeps_with_common_members_at_once_do_every_run_once_and_as_alone(tiny_model_dir, tmp_path):
    """Seeds 0 to 2 and 1 to 3 on one store: the sweep that finds a run under way leaves it to the other."""
    store, together = tmp_path / "together", []
    for seeds in ("0,1,2", "1,2,3"):
        given = words(tiny_model_dir, store, *MOVES, f"seed={seeds}")
        together.append(
            subprocess.Popen(
                [sys.executable, "run.py", *given],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=300)[0] for process in together]
    for seeds, process in zip(("0,1,2", "1,2,3"), together, strict=True):
        if process.returncode:  # it met a run that the other was doing; the same command finds it done
            assert "is being worked on by another process" in "".join(said), said
            again = command(*words(tiny_model_dir, store, *MOVES, f"seed={seeds}"))
            assert again.returncode == 0 and "3 done before" in again.stdout, again.stderr
    done = [line for text in said for line in text.splitlines() if "done: " in line]
    plans = [make_plan(quick(tiny_model_dir, store, *MOVES, f"seed={seed}", "threads=1")) for seed in range(4)]
    assert len(list(store.glob("vader_movies/*/result.json"))) == 4, done
    for plan in plans:
        status = plan.folder.status()
        assert (status["state"], status["attempts"]) == ("done", 1)
        alone = make_plan(quick(tiny_model_dir, tmp_path / "alone", *MOVES, f"seed={plan.config.seed}", "threads=1"))
        run(alone)
        for name in FILES:
            assert (plan.folder.path / name).read_bytes() == (alone.folder.path / name).read_bytes(), name
