"""Where runs are done; no part of a run's identity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LauncherConfig:
    """How runs are started.

    Attributes:
        kind: set by hydra/launcher=NAME: "basic" (one after the other, here), "local" or "slurm".
        workers: runs at once, each in a process: of hydra/launcher=local, or in one job of hydra/launcher=slurm.
        runs_per_job: runs that one job does.
        partition, account, qos, constraint, gres, gpus, cpus, mem_gb: what a job asks for; null asks for nothing.
        minutes: time limit of a job. A job that meets it is requeued and goes on, so it may be shorter than its runs.
        parallel: most jobs of an array at a time.
        signal_seconds: how long before the limit a job is told to stop.
        max_requeues: a job that was requeued this often stops.
        wait: stay until all submitted jobs have ended.
    """

    kind: str = "basic"
    workers: int = 1
    runs_per_job: int = 1
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    gpus: int | None = None
    cpus: int | None = None
    mem_gb: float | None = None
    minutes: int = 240
    parallel: int = 256
    signal_seconds: int = 120
    max_requeues: int = 50
    wait: bool = False
