"""Writes what happens in training to the run's files, its live display and its mirror."""

from __future__ import annotations

import math
from typing import Any

from elalora.method import Round
from experiments.runtime.display import RunDisplay
from experiments.runtime.distributed import is_main
from experiments.store.folder import RunFolder
from experiments.training.progress import DataPass, TrainState
from experiments.training.tracking import Tracker


class Recorder:
    """Where a run's numbers go; only the first of several processes writes files.

    Args:
        folder: the run's, held by this process (`RunFolder.working`).
        display: shows progress.
        tracker: mirrors what the files receive.
    """

    def __init__(self, folder: RunFolder, display: RunDisplay, tracker: Tracker) -> None:
        self.folder, self.display, self.tracker = folder, display, tracker
        self._loss = math.nan

    def start(self, ranks: dict[str, int], scores: dict[str, float]) -> None:
        """Writes the ranks before the first step, with what they follow from if the data gave them."""
        line: dict[str, Any] = {"step": -1, "ranks": ranks, "pruned": [], "grown": []}
        if scores:
            line["scores"] = {name: [score] for name, score in scores.items()}
        self._line("ranks.jsonl", line)

    def data_pass(self, done: DataPass) -> None:
        """Writes what a pass over training batches before the first step took."""
        named = {f"data_pass_{name}": value for name, value in done._asdict().items()}
        self._line("timing.jsonl", {"step": -1, **named})

    def round(self, moved: Round) -> None:
        """Writes one change of ranks."""
        self._line("ranks.jsonl", vars(moved))
        self.tracker.round(vars(moved))

    def scores(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes metrics of a split after a step."""
        for name, value in values.items():
            self._line("metrics.jsonl", {"step": step, "split": split, "metric": name, "value": value})
        self.tracker.metrics(step, split, values)

    def training(self, state: TrainState, values: dict[str, float], seconds_per_step: float) -> None:
        """Writes the loss and what belongs to it, and the mean step time since the last call, with a heartbeat.

        Args:
            state: after the step.
            values: "loss", the mean since the last call; "lr" of the first parameter group and "grad_norm", before
                clipping, of this step.
            seconds_per_step: mean since the last call.
        """
        step, self._loss = state.step - 1, values["loss"]
        self.scores(step, "train", values)
        self._line("timing.jsonl", {"step": step, "seconds_per_step": seconds_per_step})
        if is_main():
            self.folder.progress(state.step, state.total)
        self.show(state, step)

    def show(self, state: TrainState, step: int, metrics: str | None = None) -> None:
        """Updates the display after a step."""
        self.display.update(step + 1, state.method.phase(step), self._loss, state.progress.moved, metrics)

    def heartbeat(self, step: int, total: int) -> None:
        """Notes in status.json that the run is alive."""
        if is_main():
            self.folder.beat("running", step=step, total=total)

    def _line(self, name: str, line: dict[str, Any]) -> None:
        if is_main():
            self.folder.append(name, line)
