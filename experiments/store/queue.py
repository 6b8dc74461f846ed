"""Which runs of a store are in SLURM's queue: the jobs that were noted beside the runs, and what squeue says now."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from elalora.errors import UserError
from experiments.store.foreign import DAMAGE, read_text
from experiments.store.name import RunName


def jobs_file(store: Path) -> Path:
    """Where submitted jobs are noted, one JSON object a line."""
    return store / ".slurm" / "jobs.jsonl"


def note_job(store: Path, job: str, runs: Sequence[str], folders: Sequence[Path]) -> None:
    """Notes a submitted job: its runs' ids, and their folders, which may not exist yet."""
    line = {"job": job, "runs": list(runs), "folders": [f"{path.parent.name}/{path.name}" for path in folders]}
    with jobs_file(store).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def last_jobs(store: Path, key: str) -> dict[str, str]:
    """The last job of each run, by the run's id (`key`: "runs") or its folder ("folders")."""
    return {run: line["job"] for line in _noted(store) for run in line.get(key, ())}


def _noted(store: Path) -> Iterator[dict[str, Any]]:
    try:
        text = read_text(jobs_file(store))
    except DAMAGE:
        return
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            lists = [entry[key] for key in ("runs", "folders") if key in entry]
            if isinstance(entry["job"], str) and all(isinstance(run, str) for runs in lists for run in runs):
                yield entry
        except (*DAMAGE, KeyError, TypeError):
            continue


def live_jobs() -> dict[str, str]:
    """Every job in the queue, with the reason why it waits.

    Raises:
        UserError: SLURM is missing or does not answer.
    """
    try:
        return dict(line.split("|", 1) for line in output("squeue", "-h", "-r", "-o", "%i|%r").splitlines())
    except FileNotFoundError:
        line = "hydra/launcher=slurm needs SLURM's commands (squeue, sbatch), which this machine does not have"
        raise UserError(line) from None
    except subprocess.SubprocessError as error:
        raise UserError(f"squeue failed: {getattr(error, 'stderr', None) or error}".strip()) from error


def output(*command: str, check: bool = True) -> str:
    """What one of SLURM's commands prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=check).stdout


def queued_folders(store: Path) -> dict[Path, str]:
    """The runs of a store that are in the queue, with job and reason, by folder; empty without SLURM."""
    jobs = last_jobs(store, "folders")
    try:
        live = live_jobs() if jobs else {}
    except UserError:
        return {}
    paths = {folder: store / folder for folder in jobs if folder.count("/") == 1 and ".." not in folder}
    return {
        path: f"job {jobs[folder]} ({live[jobs[folder]]})"
        for folder, path in paths.items()
        if jobs[folder] in live and RunName.parse(path) is not None
    }
