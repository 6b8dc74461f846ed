"""Mirrors a run to a tracker during training; the run store stays the record.

After an interruption the lines that the store kept from earlier attempts are logged first, so that a mirror has the
whole history. No failure of a tracker reaches the run: it prints one warning and ends the mirror. Of W&B, code, console
output, command line, environment, packages and facts about the machine never leave the process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from elalora.errors import UserError, first_line
from experiments.config.schema import TrackerName, TrackingConfig, TrackingMode

INIT_SECONDS = 8.0  # how long a run waits for the server before it stays offline
COSTS = ("train_seconds", "peak_memory_mib", "adapter_bytes")
FINISH_SECONDS = 30.0  # how long the end of a run waits for uploads; the rest stays on disk


class Tracker:
    """A mirror that the runner and the training loop report to; this base class mirrors nothing."""

    def start(self, run_dir: Path, run_id: str, name: str, config: dict[str, Any], group: str) -> None:
        """Starts the mirror of a run under its id, with its scientific configuration."""

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """Logs metrics of one split at a step, after their lines were written to the store."""

    def round(self, line: dict[str, Any]) -> None:
        """Logs a line of ranks.jsonl: the ranks of every matrix, directions pruned and grown."""

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the main figures of result.json into the summary and ends the mirror."""


def make_tracker(config: TrackingConfig) -> Tracker:
    """The configured mirror; in a distributed run only the main process has one."""
    if config.name is TrackerName.none or os.environ.get("RANK", "0") != "0":
        return Tracker()
    return WandbTracker(config) if config.name is TrackerName.wandb else AccelerateTracker(config)


def check_installed(config: TrackingConfig) -> None:
    """Refuses a tracker whose package is missing.

    Raises:
        UserError: names the command that installs it.
    """
    if config.name is not TrackerName.none and find_spec(config.name.value) is None:
        raise UserError(f"tracking={config.name} needs a package; type pip install {config.name}")


def _guarded(action: Callable[..., None]) -> Callable[..., None]:
    """Makes the first failure of any kind print one line and end the mirror, not the run."""

    @wraps(action)
    def guarded(self: Mirror, *args: Any) -> None:
        if self._run is None and self._replayed:
            return
        try:
            action(self, *args)
        except Exception as error:  # noqa: BLE001 - a mirror must never cost a run
            self._run, self._replayed = None, True
            print(
                f"elalora: {self.title} logging stopped ({first_line(error)}); training continues",
                file=sys.stderr,
            )

    return guarded


class Mirror(Tracker):
    """What every mirror shares: scalars by step, and the history of earlier attempts before the first of them.

    Scalars are named `<split>/<metric>`, `rank/<matrix>` for each matrix and `ranks/...` for totals of a round.

    Args:
        config: tracker, project and mode.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self.config = config
        self.title = "W&B" if config.name is TrackerName.wandb else str(config.name)
        self.folder = Path()
        self._run: Any = None
        self._replayed = False

    @_guarded
    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        self._log(step, {f"{split}/{name}": value for name, value in values.items()})

    @_guarded
    def round(self, line: dict[str, Any]) -> None:
        self._log(line["step"], self._ranks(line))

    @_guarded
    def finish(self, result: dict[str, Any]) -> None:
        if not self._replayed:
            self._replay(None)
        final, cost = result["counts"]["final"], result["cost"]
        summary = {
            "score": result["readings"]["last"]["report"]["metrics"][result["metric"]],
            "rank_sum": final["rank_sum"],
            "adapter_params": final["params"],
            "gross_share": result["moves"]["gross_share"],
            "net_share": result["moves"]["net_share"],
            "step_seconds": cost["step_seconds_median"],
            **{name: cost[name] for name in COSTS if cost.get(name) is not None},
        }
        self._close(summary, result)
        self._run = None

    def _log(self, step: int, values: dict[str, Any]) -> None:
        if not self._replayed:
            self._replay(step)
        self._send(max(step, 0), values)  # the store has the ranks before the first step at step -1

    def _send(self, step: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=step)

    def _close(self, summary: dict[str, Any], result: dict[str, Any]) -> None:
        raise NotImplementedError

    def _replay(self, before: int | None) -> None:
        """Logs the stored lines of earlier attempts, up to the step of this attempt's first event."""
        self._replayed = True
        files = [self.folder / name for name in ("metrics.jsonl", "ranks.jsonl")]
        texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
        lines = [json.loads(line) for text in texts for line in text.splitlines()]
        for line in sorted(lines, key=lambda entry: entry["step"]):
            if before is not None and line["step"] >= before:
                break
            values = self._ranks(line) if "ranks" in line else {f"{line['split']}/{line['metric']}": line["value"]}
            self._log(line["step"], values)

    def _ranks(self, line: dict[str, Any]) -> dict[str, Any]:
        ranks = line["ranks"]
        values: dict[str, Any] = {f"rank/{name}": rank for name, rank in ranks.items()}
        values |= {f"ranks/{note}": count for note, count in line.get("notes", {}).items()}
        counts = {"sum": sum(ranks.values()), "pruned": len(line["pruned"]), "grown": len(line["grown"])}
        return values | {f"ranks/{name}": count for name, count in counts.items()}


class WandbTracker(Mirror):
    """Mirrors a run to W&B, into the run's folder unless the mode is online.

    Beside the scalars of `Mirror`, `scores/all` is the distribution of the directions' scores.
    """

    @_guarded
    def start(self, run_dir: Path, run_id: str, name: str, config: dict[str, Any], group: str) -> None:
        """Starts the mirror; without a key or a network it stays offline and prints one line."""
        self.folder = run_dir
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=1)  # an earlier run of a sweep, which failed
        identity = {"project": self.config.project, "id": run_id, "name": name, "group": group, "config": config}
        problem = None
        if self.config.mode is TrackingMode.online and os.environ.get("WANDB_MODE") != "offline":
            problem = self._go_online(identity)
            if problem is None:
                return
        shutil.rmtree(self.folder / "wandb", ignore_errors=True)  # an earlier attempt, whose lines are replayed
        self._run = self._init(identity, "offline", resume=None)
        if problem:
            print(f"elalora: W&B cannot be reached ({problem}); logging to {self.folder / 'wandb'}", file=sys.stderr)

    def _go_online(self, identity: dict[str, Any]) -> str | None:
        """Starts an online run, or returns the problem; never prompts for a key."""
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        try:
            if not wandb.login(prompt=False, verify=False):
                return "no API key; type: wandb login"
            self._run = self._init(identity, "online", resume="allow")
        except Exception as error:  # noqa: BLE001 - the caller reports it and stays offline
            wandb.teardown()  # else the service keeps the id of the failed attempt
            return first_line(error)
        return None

    def _init(
        self, identity: dict[str, Any], mode: Literal["online", "offline"], resume: Literal["allow"] | None
    ) -> Any:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            use_dot_wandb=False,
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="",
            program="",
            x_executable="",
        )
        folder = str(self.folder.resolve())
        return wandb.init(**identity, dir=folder, mode=mode, resume=resume, settings=settings)

    def _send(self, step: int, values: dict[str, Any]) -> None:
        if step >= self._run.starting_step:  # a resumed online run already has the earlier steps
            self._run.log(values, step=step)

    def _ranks(self, line: dict[str, Any]) -> dict[str, Any]:
        import wandb

        values = super()._ranks(line)
        if scores := [score for matrix in line.get("scores", {}).values() for score in matrix]:
            values["scores/all"] = wandb.Histogram(scores)
        return values

    def _close(self, summary: dict[str, Any], result: dict[str, Any]) -> None:
        self._run.summary.update(summary | {"metric": result["metric"]})
        self._run.finish()


class AccelerateTracker(Mirror):
    """Mirrors a run to TensorBoard, Trackio or MLflow, through Accelerate's classes for them.

    TensorBoard's files lie in the run's folder and are made again when a run resumes. Trackio and MLflow keep theirs
    where these programs are configured to; there a run that resumes begins a second entry, with the whole history.
    """

    @_guarded
    def start(self, run_dir: Path, run_id: str, name: str, config: dict[str, Any], group: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.folder, kind = run_dir, self.config.name
        shutil.rmtree(run_dir / TrackerName.tensorboard, ignore_errors=True)  # an earlier attempt, replayed below
        arguments = {
            TrackerName.tensorboard: {"run_name": str(kind), "logging_dir": str(run_dir)},
            TrackerName.trackio: {"run_name": self.config.project, "name": name},
            TrackerName.mlflow: {"experiment_name": self.config.project, "run_name": name},
        }[kind]
        self._run = LOGGER_TYPE_TO_CLASS[kind.value](**arguments)
        self._run.start()
        if kind is not TrackerName.tensorboard:  # which would make a run of its own for it
            self._run.store_init_configuration({"id": run_id, "task": group, "configuration": json.dumps(config)})

    def _close(self, summary: dict[str, Any], result: dict[str, Any]) -> None:
        self._run.log({f"summary/{name}": value for name, value in summary.items()}, step=result["steps"])
        self._run.finish()
