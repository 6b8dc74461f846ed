"""Mirrors a run to W&B while it goes on; the files of the run store stay the truth.

What is unusual: the mirror of a run that was interrupted is not patched but made again. The lines that the store
kept from earlier attempts are read back and come first, so there is always one whole history under the run's own
id, and a later `wandb sync` makes no second copy. No failure of W&B reaches the run: it costs one warning line and
ends the mirror. Neither code, console output, command line, environment, packages nor facts about the machine
leave the process.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Literal, Protocol

from experiments.config.schema import TrackerName, TrackingConfig, TrackingMode

INIT_SECONDS = 8.0  # how long a run waits for the server before it goes on offline
COSTS = ("train_seconds", "peak_memory_mib", "adapter_bytes")
FINISH_SECONDS = 30.0  # how long the end of a run waits for uploads; what is left stays on disk


class Tracker(Protocol):
    """What the runner and the training loop tell a mirror."""

    def start(self, run_dir: Path, run_id: str, name: str, config: dict[str, Any], group: str) -> None:
        """Begins a run's mirror, with its identity as the id and its scientific configuration."""

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """Numbers of one split at a step, after their lines were written to the store."""

    def round(self, line: dict[str, Any]) -> None:
        """A line of ranks.jsonl: ranks of every matrix, what was pruned and grown."""

    def finish(self, result: dict[str, Any]) -> None:
        """The content of result.json; ends the mirror."""


class NullTracker:
    """No mirror."""

    def start(self, run_dir: Path, run_id: str, name: str, config: dict[str, Any], group: str) -> None:
        """Does nothing, as the other methods do."""

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None: ...

    def round(self, line: dict[str, Any]) -> None: ...

    def finish(self, result: dict[str, Any]) -> None: ...


def make_tracker(config: TrackingConfig) -> Tracker:
    """The mirror that was asked for; in a run of several processes only the first one has it."""
    if config.name is TrackerName.none or os.environ.get("RANK", "0") != "0":
        return NullTracker()
    return WandbTracker(config)


class WandbTracker:
    """A run in W&B, offline in the run's folder unless asked otherwise.

    Scalars are named `<split>/<metric>`, `ranks/...` for totals and `rank/<matrix>` for each matrix;
    `ranks/map` (the ranks now) and `ranks/over_time` (a table of all rounds so far) are heat maps in HTML, because a
    W&B table would leave copies in the home folder. `scores/all` is the distribution of the directions' scores.

    Args:
        config: project and mode.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self.config = config
        self.folder = Path()
        self._run: Any = None
        self._replayed = False
        self._rounds: dict[int, dict[str, int]] = {}

    def start(self, run_dir: Path, run_id: str, name: str, config: dict[str, Any], group: str) -> None:
        """Begins the mirror; without a key or a network it stays offline and says so in one line."""
        self.folder = run_dir
        self._guard(lambda: self._begin(run_id, name, config, group))

    def metrics(self, step: int, split: str, values: dict[str, float]) -> None:
        """Numbers of one split at a step."""
        self._guard(lambda: self._event(step, {f"{split}/{name}": value for name, value in values.items()}))

    def round(self, line: dict[str, Any]) -> None:
        """Ranks after a round: scalars and a map."""
        self._guard(lambda: self._event(line["step"], self._ranks(line)))

    def finish(self, result: dict[str, Any]) -> None:
        """Puts the result's figures into the run's summary and closes it."""
        self._guard(lambda: self._end(result))

    def _guard(self, action: Callable[[], None]) -> None:
        """Runs one action; the first failure of any kind is told and ends the mirror, not the run."""
        if self._run is None and self._replayed:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a mirror must never cost a run
            self._run, self._replayed = None, True
            print(f"elalora: the W&B mirror ended ({_first_line(error)}); the run goes on", file=sys.stderr)

    # -- one run -------------------------------------------------------------------------------------------

    def _begin(self, run_id: str, name: str, config: dict[str, Any], group: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        import wandb

        if wandb.run is not None:
            wandb.finish(exit_code=1)  # an earlier run of a sweep, which failed before its end
        known = {"project": self.config.project, "id": run_id, "name": name, "group": group, "config": config}
        problem = None
        if self.config.mode is TrackingMode.online and os.environ.get("WANDB_MODE") != "offline":
            problem = self._go_online(known)
            if problem is None:
                return
        shutil.rmtree(self.folder / "wandb", ignore_errors=True)  # an earlier attempt; its lines are replayed
        self._run = self._init(known, "offline", resume=None)
        if problem:
            print(f"elalora: W&B is not reached ({problem}); mirrored in {self.folder / 'wandb'}", file=sys.stderr)

    def _go_online(self, known: dict[str, Any]) -> str | None:
        """Begins an online run, or returns what is in the way; never asks for a key."""
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        try:
            if not wandb.login(prompt=False, verify=False):
                return "no API key; type: wandb login"
            self._run = self._init(known, "online", resume="allow")
        except Exception as error:  # noqa: BLE001 - told by the caller; the mirror then stays on disk
            wandb.teardown()  # else the service holds the id of the failed attempt
            return _first_line(error)
        return None

    def _init(self, known: dict[str, Any], mode: Literal["online", "offline"], resume: Literal["allow"] | None) -> Any:
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
        return wandb.init(
            **known,
            dir=str(self.folder.resolve()),
            mode=mode,
            resume=resume,
            settings=settings,
        )

    def _event(self, step: int, values: dict[str, Any]) -> None:
        if not self._replayed:
            self._replay(step)
        self._log(step, values)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        step = max(step, 0)  # the ranks before the first step are of step -1 in the store
        if step >= self._run.starting_step:  # an online run that resumes has the steps before
            self._run.log(values, step=step)

    def _replay(self, before: int | None) -> None:
        """Sends what the store kept of earlier attempts: its lines of steps before this attempt's first event."""
        self._replayed = True
        lines = [*self._stored("metrics.jsonl"), *self._stored("ranks.jsonl")]
        for line in sorted(lines, key=lambda entry: entry["step"]):
            if before is not None and line["step"] >= before:
                break
            values = self._ranks(line) if "ranks" in line else {f"{line['split']}/{line['metric']}": line["value"]}
            self._log(line["step"], values)

    def _stored(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def _ranks(self, line: dict[str, Any]) -> dict[str, Any]:
        import wandb

        ranks = line["ranks"]
        self._rounds[max(line["step"], 0)] = ranks
        values: dict[str, Any] = {f"rank/{name}": rank for name, rank in ranks.items()}
        values |= {f"ranks/{note}": count for note, count in line.get("notes", {}).items()}
        values |= {
            "ranks/sum": sum(ranks.values()),
            "ranks/pruned": len(line["pruned"]),
            "ranks/grown": len(line["grown"]),
            "ranks/map": wandb.Html(rank_map(ranks), inject=False),
            "ranks/over_time": wandb.Html(rank_table(self._rounds), inject=False),
        }
        if scores := {name: own for name, own in line.get("scores", {}).items() if own}:
            values["scores/all"] = wandb.Histogram([score for own in scores.values() for score in own])
            values |= {f"score/{name}": sum(own) / len(own) for name, own in scores.items()}
        return values

    def _end(self, result: dict[str, Any]) -> None:
        if not self._replayed:
            self._replay(None)
        final = result["counts"]["final"]
        self._run.summary.update(
            {
                "score": result["readings"]["last"]["report"]["metrics"][result["metric"]],
                "metric": result["metric"],
                "rank_sum": final["rank_sum"],
                "adapter_params": final["params"],
                "gross_share": result["moves"]["gross_share"],
                "net_share": result["moves"]["net_share"],
                "step_seconds": result["cost"]["step_seconds_median"],
                **{name: result["cost"][name] for name in COSTS if result["cost"].get(name) is not None},
            }
        )
        self._run.finish()
        self._run = None


def rank_map(ranks: dict[str, int]) -> str:
    """A heat map as an HTML table: a row per layer, a column per matrix type, darker for a higher rank."""
    from elalora.attach import place

    cells = {place(name): rank for name, rank in ranks.items()}
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    rows = {str(layer): [cells.get((layer, kind)) for kind in kinds] for layer in sorted({at for at, _ in cells})}
    return _heat("layer", kinds, rows)


def rank_table(rounds: dict[int, dict[str, int]]) -> str:
    """Ranks over time as an HTML table: a row per matrix, a column per step at which there was a round."""
    names = list(dict.fromkeys(name for ranks in rounds.values() for name in ranks))
    rows = {name: [ranks.get(name) for ranks in rounds.values()] for name in names}
    return _heat("matrix", [str(step) for step in rounds], rows)


def _heat(corner: str, columns: list[str], rows: dict[str, list[int | None]]) -> str:
    most = max((rank for row in rows.values() for rank in row if rank is not None), default=0) or 1

    def cell(rank: int | None) -> str:
        if rank is None:
            return "<td></td>"
        colour = "white" if 2 * rank > most else "black"
        return f'<td style="background:rgba(8,81,156,{rank / most:.2f});color:{colour};padding:4px 9px">{rank}</td>'

    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(f"<tr><th>{escape(name)}</th>{''.join(map(cell, row))}</tr>" for name, row in rows.items())
    return f'<table style="font:13px sans-serif;text-align:center"><tr><th>{corner}</th>{head}</tr>{body}</table>'


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
