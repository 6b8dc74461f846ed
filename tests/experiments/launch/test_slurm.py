"""Sweeps on a real SLURM: submitted and left, killed, told to stop and requeued."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tiny_runs import MOVES, QUICK, ROOT, command, quick

from elalora.errors import UserError
from experiments.config.schema import LauncherConfig
from experiments.launch import slurm as slurm_launcher
from experiments.launch.slurm import chunks, dependency_layers, describe, preview, run_plans
from experiments.runs.plan import make_plan
from experiments.runtime.manifest import Code
from experiments.store.queue import jobs_file, note_job
from experiments.store.status import overview, read_store
from experiments.tools.slurm_cluster import cluster, kill_node, missing


def needs_slurm(test):
    """Marks a test that needs a cluster; one cluster serves them all."""
    skip = pytest.mark.skipif(missing() is not None, reason=str(missing()))
    return pytest.mark.slow(pytest.mark.xdist_group("slurm")(skip(test)))


LINES = ("metrics.jsonl", "ranks.jsonl")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of a running cluster's clients."""
    # a short path: the name of a socket has at most 107 characters
    with cluster(tmp_path_factory.mktemp("s") / "c") as env:
        yield {**env, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def words(model, store, *more):
    return [
        "-m",
        "hydra/launcher=slurm",
        *QUICK,
        f"model.path={model}",
        f"store.root={store}",
        "launcher.cpus=1",
        "launcher.minutes=30",
        "threads=1",
        *more,
    ]


def collect(given, env, seconds=300):
    """The same command again until nothing is in the queue; the last answer."""
    end = time.monotonic() + seconds
    while True:
        done = command(*given, env=env)
        if ", 0 in the queue" in done.stdout or time.monotonic() > end:
            return done
        time.sleep(1)


def until(ready, seconds=300):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.05)


@needs_slurm
def test_an_array_of_six_is_collected_after_its_submitting_process_was_killed(slurm, tiny_model_dir, tmp_path):
    given = words(tiny_model_dir, tmp_path, "trainer.max_steps=3", "seed=range(6)", "method=lora")
    process = subprocess.Popen(
        [sys.executable, "run.py", *given, "launcher.wait=true"],
        cwd=ROOT,
        env=slurm,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = next(line for line in process.stdout if line.startswith("submitted:"))
    process.kill()
    process.wait()
    assert re.match(r"submitted: job \d+, 6 of it", said)
    assert not list(tmp_path.glob("*/*/result.json"))
    done = collect(given, slurm)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 runs done, 0 in the queue, 0 failed" in done.stdout
    assert len((tmp_path / ".slurm" / "jobs.jsonl").read_text().splitlines()) == 6  # and none was submitted twice


def times_of(result):
    """When a run wrote its first file and its last."""
    return (result.parent / "manifest.json").stat().st_mtime, result.stat().st_mtime


@needs_slurm
def test_two_workers_do_two_runs_of_a_job_at_once(slurm, tiny_model_dir, tmp_path):
    more = ["trainer.max_steps=200", "seed=range(4)", "method=lora", "launcher.runs_per_job=4", "launcher.workers=2"]
    given = words(tiny_model_dir, tmp_path, *more, "launcher.wait=true")
    done = command(*given, env=slurm)
    assert "SLURM array of 1 jobs for 4 runs, 2 at once in each: " in done.stdout, done.stderr
    assert "4 of 4 runs done" in done.stdout, done.stderr
    spans = [times_of(path) for path in tmp_path.glob("*/*/result.json")]
    assert max(sum(start <= began < end for start, end in spans) for began, _ in spans) == 2
    assert len({json.loads(path.read_text())["pid"] for path in tmp_path.glob("*/*/status.json")}) == 2


@needs_slurm
def test_a_killed_run_costs_its_job_no_other_and_the_same_command_does_what_is_missing(slurm, tiny_model_dir, tmp_path):
    """The first run of a job of three; and of another job its own process, so that nothing is written of its end."""
    more = ["trainer.max_steps=400", "method=lora"]
    given = words(tiny_model_dir, tmp_path, *more, "seed=range(5)", "launcher.runs_per_job=3")
    assert command(*given, env=slurm).returncode == 0
    killed, lost = (make_plan(quick(tiny_model_dir, tmp_path, *more, f"seed={seed}", "threads=1")) for seed in (0, 3))
    for plan in (killed, lost):
        until((plan.folder.path / "timing.jsonl").exists)
        worker = psutil.Process(plan.folder.status()["pid"])
        for process in (worker,) if plan is killed else (worker.parent(), worker):
            process.kill()
    until(lambda: not subprocess.check_output(["squeue", "-h"], env=slurm).strip())
    sacct = ["sacct", "-n", "-X", "-P", "-o", "State"]
    until(lambda: b"RUNNING" not in subprocess.check_output(sacct, env=slurm))
    assert len(list(tmp_path.glob("*/*/result.json"))) == 2
    done = command(*given, env=slurm)
    assert f"{killed.label} stopped before: killed by signal 9" in done.stdout, done.stdout
    told = r"the SLURM job ended without writing a status \(SLURM: job \d+_1 FAILED, exit code \d+:\d+\)"
    assert re.search(f"{re.escape(lost.label)} stopped before: {told}", done.stdout), done.stdout
    assert "SLURM array of 1 jobs for 3 runs" in done.stdout
    done = collect(given, slurm)
    assert done.returncode == 0 and "5 of 5 runs done" in done.stdout, done.stderr


def preempt(env, grace):
    """A job of a higher partition that needs the whole node, so that SLURM preempts what runs there."""
    subprocess.run(["scontrol", "update", "PartitionName=main", f"GraceTime={grace}"], env=env, check=True)
    urgent = ["sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=true"]
    subprocess.run(urgent, env=env, check=True)


@needs_slurm
def test_a_job_stopped_three_times_in_its_second_run_goes_on_and_ends_bit_identical(slurm, tiny_model_dir, tmp_path):
    """By the signal before a time limit; preempted at once, where SLURM requeues; and preempted with a grace time."""
    more = ["method=elalora", "trainer.max_steps=1500", "store.checkpoint_every=50"]
    given = words(tiny_model_dir, tmp_path / "slurm", *more, "seed=0,1", "launcher.runs_per_job=2")
    assert command(*given, env=slurm).returncode == 0
    second = make_plan(quick(tiny_model_dir, tmp_path / "slurm", *more, "seed=1", "threads=1"))

    def trains(attempt):
        status = second.folder.status()
        return status.get("attempts") == attempt and status.get("step", 0) > 60

    until(lambda: trains(1))
    job = subprocess.check_output(["squeue", "-h", "-o", "%i"], env=slurm, text=True).strip()
    subprocess.run(["scancel", "--signal=USR2", job], env=slurm, check=True)
    for attempt, grace in ((2, 0), (3, 60)):
        until(lambda attempt=attempt: trains(attempt))
        preempt(slurm, grace)
    done = collect(given, slurm)
    assert done.returncode == 0 and "2 of 2 runs done" in done.stdout, done.stdout + done.stderr
    assert second.folder.status()["attempts"] == 4
    logs = [*(tmp_path / "slurm" / ".slurm" / "logs").glob("*.err"), *(tmp_path / "slurm" / ".logs").iterdir()]
    said = "".join(path.read_text() for path in logs)
    assert said.count("it is requeued and will resume") == 2  # and once SLURM did it
    assert "Interrupt" not in said  # TERM comes twice, from slurmstepd and srun, and to every process
    alone = command(*QUICK, f"model.path={tiny_model_dir}", f"store.root={tmp_path / 'alone'}", *more, "seed=1",
                    "threads=1", env=slurm)  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    undisturbed = make_plan(quick(tiny_model_dir, tmp_path / "alone", *more, "seed=1", "threads=1"))
    for name in (*LINES, "predictions.parquet", "adapter/adapter_model.safetensors"):
        assert (second.folder.path / name).read_bytes() == (undisturbed.folder.path / name).read_bytes(), name


@needs_slurm
def test_a_transplant_starts_when_its_source_is_done(slurm, tiny_model_dir, tmp_path, monkeypatch, capfd):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    short = ["trainer.max_steps=20", "threads=1", *MOVES]
    source = make_plan(quick(tiny_model_dir, tmp_path, "method=elalora", *short))
    taking = make_plan(
        quick(tiny_model_dir, tmp_path, "method=svd_lora", f"method.ranks_from='elalora {' '.join(MOVES)}'", *short[:2])
    )
    assert taking.sources[0].id == source.id
    config = LauncherConfig(kind="slurm", cpus=1, minutes=5, wait=True)
    assert run_plans([taking, source], config) == 0, capfd.readouterr()
    assert "2 of 2 runs done" in capfd.readouterr().out
    assert taking.folder.result()["ranks"]["final"] == source.folder.result()["ranks"]["final"]


@pytest.mark.full
@needs_slurm
def test_a_job_whose_node_dies_goes_on_when_the_node_is_back_and_ends_bit_identical(slurm, tiny_model_dir, tmp_path):
    """SLURM itself requeues it: the node is marked down, comes back, and the same job takes up its checkpoint."""
    conf = Path(slurm["SLURM_CONF"])
    conf.write_text(conf.read_text().replace("SlurmdTimeout=30", "SlurmdTimeout=6"))
    subprocess.run(["scontrol", "reconfigure"], env=slurm, check=True)
    more = ["method=elalora", "trainer.max_steps=600", "store.checkpoint_every=50"]
    given = words(tiny_model_dir, tmp_path / "slurm", *more)
    assert command(*given, env=slurm).returncode == 0
    plan = make_plan(quick(tiny_model_dir, tmp_path / "slurm", *more, "threads=1"))
    until(lambda: plan.folder.status().get("step", 0) > 60)
    kill_node(slurm)
    state = ["sinfo", "-h", "-o", "%t"]
    until(lambda: b"down" in subprocess.check_output(state, env=slurm))
    assert plan.folder.status()["state"] == "running"  # nothing was left that could write
    with (tmp_path / "slurmd.out").open("wb") as log:
        subprocess.Popen(["slurmd", "-D"], env=slurm, stdout=log, stderr=log, start_new_session=True)
    try:
        done = collect(given, slurm)
    finally:
        conf.write_text(conf.read_text().replace("SlurmdTimeout=6", "SlurmdTimeout=30"))
        subprocess.run(["scontrol", "reconfigure"], env=slurm, check=True)
    assert done.returncode == 0 and "1 of 1 runs done" in done.stdout, done.stdout + done.stderr
    assert plan.folder.status()["attempts"] == 2
    assert len((tmp_path / "slurm" / ".slurm" / "jobs.jsonl").read_text().splitlines()) == 1  # none was submitted again
    alone = quick(tiny_model_dir, tmp_path / "alone", *more, "threads=1")
    assert command(*alone.overrides, env=slurm).returncode == 0
    undisturbed = make_plan(alone)
    for name in (*LINES, "predictions.parquet", "adapter/adapter_model.safetensors"):
        assert (plan.folder.path / name).read_bytes() == (undisturbed.folder.path / name).read_bytes(), name


@pytest.mark.full
@needs_slurm
def test_forty_runs_lose_only_the_one_that_is_killed(slurm, tiny_model_dir, tmp_path):
    """Four in each job; the killed one is the second of its job."""
    given = words(tiny_model_dir, tmp_path, "method=lora", "seed=range(40)", "launcher.runs_per_job=4")
    victim = make_plan(quick(tiny_model_dir, tmp_path, "method=lora", "seed=17", "threads=1"))
    assert "SLURM array of 10 jobs for 40 runs" in command(*given, env=slurm).stdout
    until(lambda: "pid" in victim.folder.status(), 3000)
    os.kill(victim.folder.status()["pid"], signal.SIGKILL)
    until(lambda: not subprocess.check_output(["squeue", "-h"], env=slurm).strip(), 3000)
    assert len(list(tmp_path.glob("*/*/result.json"))) == 39
    again = command(*given, env=slurm)
    assert f"{victim.label} stopped before" in again.stdout and "SLURM array of 1 jobs for 1 runs" in again.stdout
    assert "39 of 40 runs done, 1 in the queue, 0 failed" in again.stdout
    assert "40 of 40 runs done" in collect(given, slurm).stdout


def test_a_transplant_is_submitted_after_its_source(tiny_model_dir, tmp_path):
    long = "trainer.max_steps=400"
    source = make_plan(quick(tiny_model_dir, tmp_path, "method=elalora", long))
    dependent = make_plan(quick(tiny_model_dir, tmp_path, "method=svd_lora", "method.ranks_from=elalora", long))
    other = make_plan(quick(tiny_model_dir, tmp_path, "method=lora"))
    assert dependency_layers([dependent, other, source]) == [[source, other], [dependent]]
    lines = describe([dependent, other, source], LauncherConfig(kind="slurm", partition="gpu", gpus=1))
    assert lines[0].startswith("SLURM array of 2 jobs for 2 runs: ") and "partition=gpu" in lines[0]
    assert lines[1].startswith("SLURM array of 1 jobs for 1 runs, after the array before it: ")
    wrong = LauncherConfig(kind="slurm", workers=4)
    with pytest.raises(UserError, match="launcher.workers=4 is more than .* type for instance .*_per_job=8"):
        describe([source], wrong)


@pytest.mark.parametrize(("now", "said"), [
    (("a" * 40, False), None),
    (("b" * 40, False), "the code is bbbbbbbbbb, the job was submitted from aaaaaaaaaa"),
    (("a" * 40, True), "the code is aaaaaaaaaa with changes, the job was submitted from aaaaaaaaaa"),
    ((None, None), "the code is unknown, the job was submitted from aaaaaaaaaa"),
])  # fmt: skip
def test_a_job_of_other_code_than_it_was_submitted_from_says_so_and_does_its_runs(
    now, said, tiny_model_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(slurm_launcher.signal, "signal", lambda number, handler: None)  # it is for a whole process
    plan = make_plan(quick(tiny_model_dir, tmp_path, "method=lora"))
    done = []
    monkeypatch.setattr(slurm_launcher.Sweep, "run", lambda sweep: done.extend(sweep.plans) or 0)
    monkeypatch.setattr("experiments.runtime.manifest.code_of", lambda folder: Code("a" * 40, False))
    path = slurm_launcher._payload(tmp_path, [plan])
    monkeypatch.setattr("experiments.runtime.manifest.code_of", lambda folder: Code(*now))
    assert slurm_launcher.Job(str(path), 0)() == 0
    assert capsys.readouterr().err.strip() == (f"elalora: {said}" if said else "")
    assert [one.id for one in done] == [plan.id]


def test_accounting_is_quoted_where_a_run_could_not_write_its_end(tiny_model_dir, tmp_path, monkeypatch):
    plans = [make_plan(quick(tiny_model_dir, tmp_path, "method=lora", f"seed={seed}")) for seed in range(4)]
    states = [{"state": "running"}, {"state": "failed", "error": "NotFinite: loss"}, {}, {"state": "running"}]
    (tmp_path / ".slurm").mkdir()
    jobs = [{"job": job, "runs": [plan.id]} for job, plan in zip(("5_0", "7_1", "7_2", "9"), plans, strict=True)]
    again = {"job": "7_0", "runs": [plans[0].id]}  # its last job counts
    (tmp_path / ".slurm" / "jobs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [*jobs, again]))
    for plan, state in zip(plans, states, strict=True):
        plan.folder.path.mkdir(parents=True)
        plan.folder.write("status.json", state)
    rows = "7_0|OUT_OF_MEMORY|0:125\n7_1|FAILED|1:0\n7_2|CANCELLED by 0|0:0\n9|RUNNING|0:0\n"
    asked = []
    monkeypatch.setattr(
        slurm_launcher.subprocess, "run", lambda words, **more: asked.append(words) or SimpleNamespace(stdout=rows)
    )
    nothing = "the SLURM job ended without writing a status"
    assert [line for _, line in slurm_launcher._reasons(plans)] == [
        f"{nothing} (SLURM: job 7_0 OUT_OF_MEMORY, exit code 0:125)",
        "NotFinite: loss",
        f"{nothing} (SLURM: job 7_2 CANCELLED by 0, exit code 0:0)",
        nothing,
    ]
    assert asked[0][-1] == "7,9"
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    assert [line for _, line in slurm_launcher._reasons(plans)] == [nothing, "NotFinite: loss", nothing, nothing]


@pytest.fixture
def asked(tiny_model_dir, tmp_path, monkeypatch):
    """Three runs whose jobs SLURM lists: one waits, one was cancelled, one failed; what is submitted is noted."""
    plans = [make_plan(quick(tiny_model_dir, tmp_path, "method=lora", f"seed={seed}")) for seed in range(3)]
    (tmp_path / ".slurm").mkdir()
    for number, plan in enumerate(plans):
        note_job(tmp_path, f"5_{number}", [plan.id], [plan.folder.path])
    rows = {"squeue": "5_0|Resources\n", "sacct": "5_1|CANCELLED by 0|0:0\n5_2|FAILED|1:0\n"}
    monkeypatch.setattr(
        slurm_launcher.subprocess, "run", lambda words, **more: SimpleNamespace(stdout=rows.get(words[0], ""))
    )
    submitted = []
    monkeypatch.setattr(slurm_launcher, "_submit", lambda new, config: submitted.extend(new))
    return plans, submitted


def test_a_run_that_was_cancelled_on_purpose_is_not_submitted_again(asked, capsys):
    plans, submitted = asked
    assert run_plans(plans, LauncherConfig(kind="slurm")) == 1
    assert submitted == [plans[2]]
    said = capsys.readouterr()
    assert f"{plans[1].label} was cancelled: " in said.err and "0 of 3 runs done, 1 in the queue, 1 failed" in said.out
    assert "add launcher.resubmit_cancelled=true" in said.out
    submitted.clear()
    run_plans(plans, LauncherConfig(kind="slurm", resubmit_cancelled=True))
    assert submitted == plans[1:]


def test_a_plan_says_what_is_queued_and_cancelled_and_submits_nothing(asked):
    plans, submitted = asked
    lines = preview(plans, LauncherConfig(kind="slurm"))
    assert lines[0].startswith("SLURM array of 1 jobs for 1 runs") and lines[1] == "1 run in the queue"
    assert lines[2].startswith("1 run cancelled (launcher.resubmit_cancelled=true") and not submitted


def test_status_shows_a_run_that_waits_in_the_queue_before_it_has_a_folder(asked, tmp_path):
    plans, _ = asked
    (run,) = read_store(tmp_path)
    assert (run.state, run.path, run.job) == ("queued", str(plans[0].folder.path), "job 5_0 (Resources)")
    text = overview([run])
    assert "1 run: 1 queued" in text and f"in the queue:\n  {run.path}  job 5_0 (Resources)" in text
    plans[0].folder.path.mkdir(parents=True)
    plans[0].folder.write("status.json", {"state": "preempted"})
    assert [run.state for run in read_store(tmp_path)] == ["queued"]
    plans[0].folder.write("status.json", {"state": "running", "heartbeat": time.time()})
    assert [run.state for run in read_store(tmp_path)] == ["running"]


def test_jobs_of_another_persons_store_name_no_folder_outside_it(tmp_path, monkeypatch):
    (tmp_path / "runs" / ".slurm").mkdir(parents=True)
    lines = [{"job": "5_0", "folders": ["../lora-r4-s0-0123456789", "/etc", "a/b/c"]}, {"job": 3}, [], {"folders": 1}]
    jobs_file(tmp_path / "runs").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{")
    monkeypatch.setattr(slurm_launcher.subprocess, "run", lambda words, **more: SimpleNamespace(stdout="5_0|x\n"))
    assert read_store(tmp_path / "runs") == []


@needs_slurm
def test_a_job_may_take_most_of_the_machines_memory(slurm, tiny_model_dir, tmp_path):
    given = words(tiny_model_dir, tmp_path, "method=lora", "trainer.max_steps=3", "launcher.mem_gb=4.5")
    done = command(*given, "launcher.wait=true", env=slurm)
    assert done.returncode == 0 and "1 of 1 runs done" in done.stdout, done.stderr


def test_a_job_that_slurm_holds_is_named_with_what_to_type(tiny_model_dir, tmp_path, monkeypatch, capsys):
    plans = [make_plan(quick(tiny_model_dir, tmp_path, "method=lora", f"seed={seed}")) for seed in range(3)]
    (tmp_path / ".slurm").mkdir()
    jobs = [{"job": job, "runs": [plan.id]} for job, plan in zip(("5_0", "5_1", "5_2"), plans, strict=True)]
    (tmp_path / ".slurm" / "jobs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in jobs))
    rows = "5_0|None\n5_1|launch failed requeued held\n5_2|Resources\n77|JobHeldUser\n"
    answer = SimpleNamespace(stdout=rows)
    monkeypatch.setattr(slurm_launcher.subprocess, "run", lambda words, **more: answer)
    assert slurm_launcher._summary(plans) == 0
    said = capsys.readouterr()
    assert said.err == ("elalora: job 5_1 is held (launch failed requeued held); type scontrol release 5_1\n")
    assert "0 of 3 runs done, 3 in the queue, 0 failed" in said.out


def test_runs_per_job_covers_every_run_once():
    assert chunks(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_machine_without_slurm_says_so_in_one_line(tiny_model_dir, tmp_path):
    done = command(*words(tiny_model_dir, tmp_path, "method=lora"), env={"PATH": "/nowhere"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("elalora: hydra/launcher=slurm needs SLURM's commands (squeue, sbatch)")
    assert not (tmp_path / ".slurm").exists()
