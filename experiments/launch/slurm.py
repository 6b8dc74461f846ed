"""Submits runs as SLURM jobs, through submitit. Running the same command again shows their state.

Nothing needs to stay alive after the submission: a job receives resolved configurations as JSON, and a file beside the
runs says which run is in which job. A job does its runs in the local launcher's workers, so that a killed worker costs
only its run. A job that is stopped by its time limit or by preemption requeues itself and resumes: finished runs are
skipped, interrupted ones continue from their checkpoints. submitit's own requeue is not used: it counts every stop of a
job of 10 minutes or less as a time-out.
"""

from __future__ import annotations

import json
import math
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
from experiments.runtime.manifest import code_now, loaded_code, warn_if_changed
from experiments.runtime.places import CHECKOUT
from experiments.runtime.signals import Preempted
from experiments.runtime.text import counted
from experiments.store.queue import last_jobs, live_jobs, note_job, output

REQUEUE = signal.SIGUSR2  # submitit has SLURM send it before the time limit
POLL_SECONDS = 5.0
ACTIVE = ("PENDING", "RUNNING", "REQUEUED")  # states that accounting may still show for a job that has ended


def run_plans(runs: Sequence[Plan], config: LauncherConfig) -> int:
    """Submits the runs that are neither done nor in the queue nor cancelled, and prints the state of all.

    Returns:
        0 if every run is done or in the queue, 1 if one failed (with `launcher.wait`: if one is not done).

    Raises:
        UserError: SLURM is missing, a launcher setting is out of range, or sbatch refused a job.
    """
    _check(config)
    plans = in_order(runs)
    queued = _queued(plans, live_jobs())
    new = _to_submit(plans, queued, config)
    for plan, reason in _reasons([plan for plan in new if plan.folder.status()]):
        print(f"{plan.label} stopped before: {reason}; submitting it again")
    for line in describe(new, config):
        print(line)
    _submit(new, config)
    if config.wait:
        while _queued(plans, live_jobs()):
            time.sleep(POLL_SECONDS)
    return _summary(plans)


def _to_submit(plans: Sequence[Plan], queued: Collection[str], config: LauncherConfig) -> list[Plan]:
    new = [plan for plan in plans if plan.finished() is None and plan.id not in queued]
    cancelled = set() if config.resubmit_cancelled else _cancelled(new)
    return [plan for plan in new if plan.id not in cancelled]


def preview(runs: Sequence[Plan], config: LauncherConfig) -> list[str]:
    """What `run_plans` would submit, and what is in the queue already; submits nothing.

    Raises:
        UserError: a launcher setting is out of range.
    """
    plans = in_order(runs)
    try:
        queued = _queued(plans, live_jobs())
    except UserError:  # no SLURM on this machine
        queued = {}
    new = _to_submit(plans, queued, config)
    left = sum(plan.finished() is None for plan in plans) - len(queued) - len(new)
    states = {"in the queue": len(queued), "cancelled (launcher.resubmit_cancelled=true submits them again)": left}
    return [*describe(new, config), *(f"{counted(n, 'run')} {state}" for state, n in states.items() if n)]


def describe(plans: Sequence[Plan], config: LauncherConfig) -> list[str]:
    """One line for each array that `run_plans` would submit for these runs.

    Raises:
        UserError: a launcher setting is out of range.
    """
    _check(config)
    lines = []
    hidden = ("setup", "additional_parameters")
    resources = " ".join(f"{name}={value}" for name, value in _resources(config).items() if name not in hidden)
    for number, layer in enumerate(dependency_layers(plans)):
        after = "" if number == 0 else ", after the array before it"
        after += f", {config.workers} at once in each" if config.workers > 1 else ""
        jobs = len(chunks(layer, config.runs_per_job))
        lines.append(f"SLURM array of {jobs} jobs for {len(layer)} runs{after}: {resources}")
    return lines


def dependency_layers(plans: Sequence[Plan]) -> list[list[Plan]]:
    """Runs that depend on none of these, then runs that depend on the first layer, and so on."""
    depth: dict[str, int] = {}
    layers: dict[int, list[Plan]] = {}
    for plan in in_order(plans):
        depth[plan.id] = max((depth[source.id] + 1 for source in plan.sources if source.id in depth), default=0)
        layers.setdefault(depth[plan.id], []).append(plan)
    return list(layers.values())


def chunks(plans: Sequence[Plan], size: int) -> list[list[Plan]]:
    """The runs of each job."""
    return [list(plans[i : i + size]) for i in range(0, len(plans), size)]


@dataclass
class Job:
    """The work of one SLURM job, whose runs are in the JSON file that `_payload` wrote. submitit pickles it."""

    path: str
    max_requeues: int
    workers: int = 1  # runs at a time

    def __call__(self) -> int:
        signal.signal(REQUEUE, _stop)
        signal.signal(signal.SIGTERM, _stop)
        loaded_code()
        payload = json.loads(Path(self.path).read_text(encoding="utf-8"))
        warn_if_changed(payload["code"], "the job was submitted")
        try:
            return Sweep([_submitted_plan(run, text) for run, text in payload["runs"].items()], self.workers).run()
        except (KeyboardInterrupt, Preempted) as stop:
            name = stop.signal if isinstance(stop, Preempted) else str(stop)
            if name != REQUEUE.name and not _in_grace():  # cancelled, or preempted by a SLURM that requeues by itself
                raise
            self._requeue()

    def _requeue(self) -> NoReturn:
        job = os.environ["SLURM_JOB_ID"]
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= self.max_requeues:
            raise UserError(f"job {job} was requeued {self.max_requeues} times, the limit of launcher.max_requeues")
        print(f"elalora: job {job} was stopped; it is requeued and will resume", file=sys.stderr, flush=True)
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
        sys.exit(1)


def _in_grace() -> bool:
    """Whether the job is in the grace time of a preemption: SLURM has sent TERM but still lists it as running.

    SLURM does not requeue a job that ends within that time. A job that is cancelled or requeued is listed as ending.
    """
    return output("squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%T", check=False).strip() == "RUNNING"


def _submitted_plan(run: str, text: str) -> Plan:
    """The plan that was submitted; refuses to do another run in its place."""
    from experiments.config.schema import RunConfig

    plan = make_plan(OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(text)))
    if plan.id != run:
        raise UserError(
            f"{plan.label} is not the run that was submitted (the code, config files or the run it depends on have "
            "changed since); cancel the job and run the command again"
        )
    return plan


def _stop(number: int, frame: object) -> None:
    for other in (REQUEUE, signal.SIGTERM):  # a second signal would interrupt the clean-up
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _submit(plans: Sequence[Plan], config: LauncherConfig) -> None:
    import submitit

    earlier: list[str] = []
    for layer in dependency_layers(plans):
        folder = _jobs_folder(layer[0])
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        executor = submitit.SlurmExecutor(folder=folder / "logs")
        # afterany, not afterok: one failed source must not hold all dependents for ever. A run whose own source is
        # missing fails with one line that names it.
        after = {"dependency": f"afterany:{':'.join(earlier)}"} if earlier else {}
        executor.update_parameters(**_resources(config), **after)
        parts = chunks(layer, config.runs_per_job)
        jobs = [Job(str(_payload(folder, part)), config.max_requeues, config.workers) for part in parts]
        try:
            submitted = executor.map_array(Job.__call__, jobs)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch refused the job: {str(error).strip().splitlines()[-1]}") from error
        for job, part in zip(submitted, parts, strict=True):
            note_job(folder.parent, job.job_id, [plan.id for plan in part], [plan.folder.path for plan in part])
        earlier = sorted({job.job_id.partition("_")[0] for job in submitted})
        print(f"submitted: job {earlier[0]}, {len(submitted)} of it; logs in {folder / 'logs'}", flush=True)


def _payload(folder: Path, plans: Sequence[Plan]) -> Path:
    """Writes the runs' ids and resolved configurations, and the commit they were submitted from."""
    path = folder / f"{plans[0].id[:10]}-{time.time_ns()}.json"
    runs = {plan.id: OmegaConf.to_yaml(plan.config, resolve=True) for plan in plans}
    path.write_text(json.dumps({"code": code_now(), "runs": runs}), encoding="utf-8")
    return path


def _resources(config: LauncherConfig) -> dict[str, Any]:
    resources = {
        "job_name": "elalora",
        "time": config.minutes,
        **{name: getattr(config, name) for name in ("partition", "account", "qos", "constraint", "gres")},
        "gpus_per_node": config.gpus,
        "cpus_per_task": config.cpus,
        "mem": None if config.mem_gb is None else f"{round(config.mem_gb * 1024)}M",
        "array_parallelism": config.parallel,
        "signal_delay_s": config.signal_seconds,
        "additional_parameters": {"requeue": True},  # after a node failure
        "setup": [f"export PYTHONPATH={CHECKOUT}${{PYTHONPATH:+:$PYTHONPATH}}"],
    }
    return {name: value for name, value in resources.items() if value is not None}


def _jobs_folder(plan: Plan) -> Path:
    return (Path(plan.config.store.root) / ".slurm").absolute()


def _queued(plans: Sequence[Plan], live: Collection[str]) -> dict[str, str]:
    """The jobs of the runs that are waiting or running, by run id."""
    jobs = _jobs(plans)
    return {plan.id: job for plan in plans if (job := jobs.get(plan.id, "")) in live and plan.finished() is None}


def _jobs(plans: Sequence[Plan]) -> dict[str, str]:
    """The last job that each run was submitted in, by run id."""
    stores = {Path(plan.config.store.root) for plan in plans}
    return {run: job for store in stores for run, job in last_jobs(store, "runs").items()}


def _cancelled(plans: Sequence[Plan]) -> set[str]:
    """Ids of the runs whose last job a person cancelled, as far as the cluster keeps accounting."""
    jobs = _jobs(plans)
    ends = _accounting({jobs[plan.id] for plan in plans if plan.id in jobs})
    return {plan.id for plan in plans if " CANCELLED" in ends.get(jobs.get(plan.id, ""), "")}


def _summary(plans: Sequence[Plan]) -> int:
    live = live_jobs()
    queued = _queued(plans, live)
    left = [plan for plan in plans if plan.finished() is None]
    lost = [plan for plan in left if plan.id not in queued]
    cancelled = _cancelled(lost)
    for plan, reason in _reasons(lost):
        word = "was cancelled" if plan.id in cancelled else "failed"
        print(f"elalora: {plan.label} {word}: {reason} (see {plan.folder.path})", file=sys.stderr)
    for job in sorted(set(queued.values())):
        if "held" in live.get(job, "").lower():  # only a person can release it
            print(f"elalora: job {job} is held ({live[job]}); type scontrol release {job}", file=sys.stderr)
    failed = len(lost) - len(cancelled)
    line = f"{len(plans) - len(left)} of {len(plans)} runs done, {len(queued)} in the queue, {failed} failed"
    print(line + (f", {len(cancelled)} cancelled" if cancelled else ""))
    if cancelled:
        print("cancelled runs are not submitted again; to do so add launcher.resubmit_cancelled=true")
    if len(left) > len(cancelled):
        print("run the same command again to see their state and to resubmit what failed; with --plan only to look")
    return 1 if lost else 0


def _reasons(plans: Sequence[Plan]) -> Iterator[tuple[Plan, str]]:
    """Each run with its own error; if it could not write one, with what SLURM says about its job."""
    jobs = _jobs(plans)
    ends = _accounting({jobs[plan.id] for plan in plans if plan.id in jobs})
    for plan in plans:
        status, end = plan.folder.status(), ends.get(jobs.get(plan.id, ""))
        line = status.get("error") or "the SLURM job ended without writing a status"
        yield plan, line if status.get("state") == "failed" or end is None else f"{line} (SLURM: {end})"


def _accounting(jobs: Collection[str]) -> dict[str, str]:
    """How each job ended, from `sacct` (OUT_OF_MEMORY, NODE_FAIL, ...); empty without accounting."""
    if not jobs:
        return {}
    arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    try:
        lines = output("sacct", "-n", "-X", "-P", "-o", "JobID,State,ExitCode", "-j", arrays).splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split("|") for line in lines]
    return {job: f"job {job} {state}, exit code {code}" for job, state, code in rows if state not in ACTIVE}


def _check(config: LauncherConfig) -> None:
    for name in ("runs_per_job", "workers", "minutes", "parallel"):
        if getattr(config, name) < 1:
            raise UserError(f"launcher.{name}={getattr(config, name)} must be at least 1")
    if config.mem_gb is not None and not 0 < config.mem_gb < math.inf:
        raise UserError(f"launcher.mem_gb={config.mem_gb} must be above 0 and finite, or null")
    if config.workers > config.runs_per_job:
        raise UserError(
            f"launcher.workers={config.workers} is more than the runs of a job (launcher.runs_per_job="
            f"{config.runs_per_job}); type for instance launcher.runs_per_job={2 * config.workers}"
        )
    if config.signal_seconds >= 60 * config.minutes:
        line = f"launcher.signal_seconds={config.signal_seconds} leaves no time of launcher.minutes={config.minutes}"
        raise UserError(line)
