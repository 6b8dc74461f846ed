"""Runs as SLURM jobs, through submitit: submitted and left; the same command again shows how they stand.

What is unusual: nothing needs to stay alive after the submission. A job is handed resolved configurations as JSON,
so neither an edited config file nor a dead submitting process changes it, and which run is in which job stands in
one file beside the runs. A job does its runs in the local launcher's workers, so that a killed one costs its run only.
A job that is told to stop, by its time limit or by preemption, requeues itself and goes on where its runs are: finished
ones are skipped and the interrupted ones resume from their checkpoints. submitit's own requeue is not used: it counts
every stop of a job of 10 minutes or less as a time-out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf

from elalora.errors import UserError
from experiments.config.schema import LauncherConfig
from experiments.launch.local import Sweep
from experiments.runs.plan import Plan, in_order, make_plan
from experiments.runtime.manifest import code_now, say_if_changed
from experiments.runtime.places import CHECKOUT
from experiments.runtime.signals import Preempted

REQUEUE = signal.SIGUSR2  # what submitit lets SLURM send before the time limit
LIVE = 5.0  # seconds between two looks at the queue
ACTIVE = ("PENDING", "RUNNING", "REQUEUED")  # accounting may lag behind the queue


def run_plans(given: Sequence[Plan], config: LauncherConfig) -> int:
    """Submits what is neither done nor in the queue, and says how all runs stand.

    Returns:
        0 when every run is done or in the queue, 1 when one failed (with `launcher.wait`: when one is not done).

    Raises:
        UserError: no SLURM here, a launcher setting out of range, or sbatch refused a job.
    """
    _check(config)
    plans = in_order(given)
    queued = _queued(plans, _live())
    new = [plan for plan in plans if plan.finished() is None and plan.id not in queued]
    for plan, reason in _reasons([plan for plan in new if plan.folder.status()]):
        print(f"{plan.label} stopped before: {reason}; it is submitted again")
    for line in describe(new, config):
        print(line)
    _submit(new, config)
    if config.wait:
        while _queued(plans, _live()):
            time.sleep(LIVE)
    return _summary(plans)


def describe(plans: Sequence[Plan], config: LauncherConfig) -> list[str]:
    """One line for each array that `run_plans` would submit for these runs.

    Raises:
        UserError: a launcher setting is out of range.
    """
    _check(config)
    lines = []
    for number, level in enumerate(levels(plans)):
        jobs = chunks(level, config.runs_per_job)
        asks = {k: v for k, v in _resources(config).items() if k not in ("setup", "additional_parameters")}
        after = "" if number == 0 else ", after the array before it"
        after += f", {config.workers} at once in each" if config.workers > 1 else ""
        words = " ".join(f"{name}={value}" for name, value in asks.items())
        lines.append(f"SLURM array of {len(jobs)} jobs for {len(level)} runs{after}: {words}")
    return lines


def levels(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Runs without sources among these, then those whose sources are among the first, and so on."""
    depth: dict[str, int] = {}
    out: list[list[Plan]] = []
    for plan in in_order(plans):
        depth[plan.id] = max((depth[source.id] + 1 for source in plan.sources if source.id in depth), default=0)
        out += [[] for _ in range(depth[plan.id] + 1 - len(out))]
        out[depth[plan.id]].append(plan)
    return out


def chunks(plans: Sequence[Plan], size: int) -> list[list[Plan]]:
    """The runs of each job."""
    return [list(plans[i : i + size]) for i in range(0, len(plans), size)]


@dataclass
class Job:
    """What one SLURM job does: its runs, so many at once. submitit pickles it.

    Attributes:
        path: a JSON file with the runs' ids and resolved configurations, and the commit they were submitted from.
        max_requeues: how often it may requeue itself; workers: processes at a time.
    """

    path: str
    max_requeues: int
    workers: int = 1

    def __call__(self) -> int:
        signal.signal(REQUEUE, _stop)
        signal.signal(signal.SIGTERM, _stop)
        given = json.loads(Path(self.path).read_text(encoding="utf-8"))
        say_if_changed(given["code"], "the job was submitted")
        try:
            return Sweep([_same(run, text) for run, text in given["runs"].items()], self.workers).run()
        except (KeyboardInterrupt, Preempted) as stop:
            name = stop.signal if isinstance(stop, Preempted) else str(stop)
            if name != REQUEUE.name and not _in_grace():  # cancelled, or preempted by a SLURM that requeues by itself
                raise
            self._requeue()

    def _requeue(self) -> NoReturn:
        job = os.environ["SLURM_JOB_ID"]
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= self.max_requeues:
            raise UserError(f"job {job} was requeued {self.max_requeues} times; launcher.max_requeues allows no more")
        print(f"elalora: job {job} was told to stop; it is requeued and goes on", file=sys.stderr, flush=True)
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        sys.exit(1)


def _in_grace() -> bool:
    """Whether SLURM, having sent TERM, lets the job run on, as in the grace time of a preemption.

    A job that ends in that time is over for SLURM and is not requeued. One that is cancelled or requeued is ending.
    """
    ask = ["squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%T"]
    return subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False).stdout.strip() == "RUNNING"


def _same(run: str, text: str) -> Plan:
    """The plan that was submitted, and no other."""
    from experiments.config.schema import RunConfig

    plan = make_plan(OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(text)))
    if plan.id != run:
        raise UserError(
            f"{plan.label} is another run than was submitted (code, config files or its source's have changed since); "
            "cancel the job and type the command again"
        )
    return plan


def _stop(number: int, frame: object) -> None:
    for further in (REQUEUE, signal.SIGTERM):  # one stop is enough: the next one would hit the clean-up
        signal.signal(further, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _submit(plans: Sequence[Plan], config: LauncherConfig) -> None:
    import submitit

    before: list[str] = []
    for level in levels(plans):
        folder = _jobs_folder(level[0])
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(folder=folder / "logs")
        # afterany, not afterok: one failed source must not hold the dependents of all others for ever. A run
        # whose own source is missing fails with one line that names it.
        after = {"dependency": f"afterany:{':'.join(before)}"} if before else {}
        executor.update_parameters(**_resources(config), **after)
        parts = chunks(level, config.runs_per_job)
        jobs = [Job(str(_payload(folder, part)), config.max_requeues, config.workers) for part in parts]
        try:
            submitted = executor.map_array(Job.__call__, jobs)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch refused the job: {str(error).strip().splitlines()[-1]}") from error
        with (folder / "jobs.jsonl").open("a", encoding="utf-8") as file:
            for job, part in zip(submitted, parts, strict=True):
                file.write(json.dumps({"job": job.job_id, "runs": [plan.id for plan in part]}) + "\n")
        before = sorted({job.job_id.partition("_")[0] for job in submitted})
        print(f"submitted: job {before[0]}, {len(submitted)} of it; logs in {folder / 'logs'}", flush=True)


def _payload(folder: Path, plans: Sequence[Plan]) -> Path:
    path = folder / f"{plans[0].id[:10]}-{time.time_ns()}.json"
    runs = {plan.id: OmegaConf.to_yaml(plan.config, resolve=True) for plan in plans}
    path.write_text(json.dumps({"code": code_now(), "runs": runs}), encoding="utf-8")
    return path


def _resources(config: LauncherConfig) -> dict[str, Any]:
    asked = {
        "job_name": "elalora",
        "time": config.minutes,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "constraint": config.constraint,
        "gres": config.gres,
        "gpus_per_node": config.gpus,
        "cpus_per_task": config.cpus,
        "mem": None if config.mem_gb is None else f"{round(config.mem_gb * 1024)}M",
        "array_parallelism": config.parallel,
        "signal_delay_s": config.signal_seconds,
        "additional_parameters": {"requeue": True},  # after a node failure
        "setup": [f"export PYTHONPATH={CHECKOUT}${{PYTHONPATH:+:$PYTHONPATH}}"],
    }
    return {name: value for name, value in asked.items() if value is not None}


def _jobs_folder(plan: Plan) -> Path:
    return (Path(plan.config.store.root) / ".slurm").absolute()


def _queued(plans: Sequence[Plan], live: Collection[str]) -> dict[str, str]:
    """The job of each of these runs that is not done and whose job is alive."""
    jobs = _jobs(plans)
    return {plan.id: job for plan in plans if (job := jobs.get(plan.id, "")) in live and plan.finished() is None}


def _live() -> dict[str, str]:
    """Every job that waits or runs, with what it waits for."""
    ask = ["squeue", "-h", "-r", "-o", "%i|%r"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        line = "hydra/launcher=slurm needs SLURM's commands (squeue, sbatch); none is on this machine"
        raise UserError(line) from None
    except subprocess.SubprocessError as error:
        raise UserError(f"squeue does not answer: {getattr(error, 'stderr', None) or error}".strip()) from error
    return dict(line.split("|", 1) for line in done.stdout.splitlines())


def _jobs(plans: Sequence[Plan]) -> dict[str, str]:
    """The last job that each of these runs was submitted in."""
    found: dict[str, str] = {}
    for folder in {_jobs_folder(plan) for plan in plans}:
        path = folder / "jobs.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            entry = json.loads(line)
            found |= dict.fromkeys(entry["runs"], entry["job"])
    return found


def _summary(plans: Sequence[Plan]) -> int:
    live = _live()
    queued = _queued(plans, live)
    left = [plan for plan in plans if plan.finished() is None]
    lost = [plan for plan in left if plan.id not in queued]
    for plan, reason in _reasons(lost):
        print(f"elalora: {plan.label} failed: {reason} (see {plan.folder.path})", file=sys.stderr)
    for job in sorted(set(queued.values())):
        if "held" in live.get(job, "").lower():  # nothing starts it again but a person
            print(f"elalora: job {job} is held ({live[job]}); to go on type scontrol release {job}", file=sys.stderr)
    print(f"{len(plans) - len(left)} of {len(plans)} runs done, {len(queued)} in the queue, {len(lost)} failed")
    if left:
        print("the same command again shows how they stand and submits what failed")
    return 1 if lost else 0


def _reasons(plans: Sequence[Plan]) -> Iterator[tuple[Plan, str]]:
    """Each run with what it wrote of its end; where it could not, with what SLURM says of its job."""
    jobs = _jobs(plans)
    told = _accounting({jobs[plan.id] for plan in plans if plan.id in jobs})
    for plan in plans:
        status, said = plan.folder.status(), told.get(jobs.get(plan.id, ""))
        line = status.get("error") or "its job ended without a word"
        yield plan, line if status.get("state") == "failed" or said is None else f"{line} (SLURM: {said})"


def _accounting(jobs: Collection[str]) -> dict[str, str]:
    """How each of these jobs ended, as `sacct` has it (OUT_OF_MEMORY, NODE_FAIL, ...); nothing without accounting."""
    if not jobs:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    ask = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode", "-j", arrays]
    try:
        lines = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split("|") for line in lines]
    return {job: f"job {job} {state}, exit code {code}" for job, state, code in rows if state not in ACTIVE}


def _check(config: LauncherConfig) -> None:
    for name in ("runs_per_job", "workers", "minutes", "parallel"):
        if getattr(config, name) < 1:
            raise UserError(f"launcher.{name}={getattr(config, name)} must be at least 1")
    if config.workers > config.runs_per_job:
        raise UserError(
            f"launcher.workers={config.workers} at once are more than a job has (launcher.runs_per_job="
            f"{config.runs_per_job}); type for instance launcher.runs_per_job={2 * config.workers}"
        )
    if config.signal_seconds >= 60 * config.minutes:
        raise UserError(
            f"launcher.signal_seconds={config.signal_seconds} leaves nothing of launcher.minutes={config.minutes}"
        )
