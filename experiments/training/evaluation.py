"""Evaluates splits during and after training, and chooses the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from elalora.method import Method, MethodFailure
from experiments.data.batches import eval_batches
from experiments.runtime.distributed import gather
from experiments.runtime.signals import Stop
from experiments.store.finished import BEFORE, ZERO_SHOT, increment_split
from experiments.training import checkpoint
from experiments.training.progress import Best, Prepared, Reading, Scores, Split, TrainState
from experiments.training.readout import Classes, Readout, Row
from experiments.training.recorder import Recorder
from experiments.training.resume import Checkpoints

HEARTBEAT_SECONDS = 60  # between two heartbeats of a long evaluation
GENERAL_BATCH = 4  # long texts, all of whose logits exist at once
BEST_WINDOW = 0.25  # last part of a run from which the best checkpoint of any arm may come


class Evaluator:
    """The evaluations of one run.

    Args:
        prepared: gives splits, readout and processes.
        model: the one to call; its weights are those of `state`.
        state: the run's; it receives the readings.
        batch_size: of training; an evaluation takes twice as many items.
        recorder: receives the scores.
        checkpoints: where the best weights go.
        stop: looked at after every batch.
    """

    def __init__(
        self, prepared: Prepared, model: nn.Module, state: TrainState, batch_size: int,
        recorder: Recorder, checkpoints: Checkpoints, stop: Stop,
    ) -> None:  # fmt: skip
        self.accelerator, self.splits, self.readout = prepared.accelerator, prepared.splits, prepared.readout
        self.zero_shot, self.general = prepared.zero_shot, prepared.general
        self.increments = prepared.sequence
        self.model, self.state, self.batch_size = model, state, batch_size
        self.recorder, self.checkpoints, self.stop = recorder, checkpoints, stop

    def evaluate(
        self, split: Split, step: int, name: str | None = None, readout: Readout | None = None, size: int | None = None,
        items: np.ndarray | None = None,
    ) -> Reading:  # fmt: skip
        """Scores a split with the current weights; every process returns the same rows in the same order.

        Args:
            split: what is scored; step: the last one that was done.
            name: under which the scores are recorded; None takes the split's.
            readout: None takes the task's; size: of a batch, None takes twice that of training.
            items: positions of those that are scored, in increasing order; None for all.
        """
        began = time.perf_counter()
        self.model.eval()
        readout = readout or self.readout
        shares = gather(list(self._predict(split, step, readout, size or 2 * self.batch_size, items)))
        rows = sorted((row for share in shares for row in share), key=lambda row: row[0])
        self.model.train()
        self.state.progress.seconds[1] += time.perf_counter() - began
        metrics, collapsed = readout.score(rows)
        self.recorder.scores(step, name or split.name, metrics)
        return Reading(Scores(split.name, metrics), collapsed, rows)

    def _predict(self, split: Split, step: int, readout: Readout, size: int, items: np.ndarray | None) -> Iterator[Row]:
        """Rows of this process's share; one process alone may be stopped between two batches."""
        data, beaten = split.data, time.monotonic()
        items = np.arange(len(data)) if items is None else items
        batches = [items[batch].tolist() for batch in eval_batches(np.asarray(data.lengths)[items], size)]
        share = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        with torch.inference_mode():
            for number, indices in enumerate(share):
                # no other process waits for this one, and a checkpoint has this step or can be written
                saved = not self.state.finishing or self.checkpoints.saved == self.state.total
                if self.stop.signal is not None and self.accelerator.num_processes == 1 and saved:
                    self.checkpoints.preempt(self.state, self.stop)
                self.recorder.display.reading(split.name, number, len(share))
                if time.monotonic() - beaten > HEARTBEAT_SECONDS:
                    beaten = time.monotonic()
                    self.recorder.heartbeat(min(step + 1, self.state.total), self.state.total)
                batch = to_device(data.batch(indices), self.accelerator.device)
                yield from readout.read(self.model, data, indices, batch)

    def read_untrained(self) -> None:
        """Scores the reported split before the first step, where a model answers untrained, and the general text."""
        if self.state.step > 0:
            return
        self._read_general(-1)
        if self.increments.domains:
            self._by_increment(self.evaluate(self.splits.report, -1, BEFORE).rows, len(self.increments.parts) - 1, -1)
        if self.zero_shot:
            scores = self.evaluate(self.splits.report, -1, ZERO_SHOT).scores
            self.recorder.show(
                self.state, -1, f"{ZERO_SHOT} {self.readout.metrics[0]} {scores.metrics[self.readout.metrics[0]]:.1f}"
            )

    def _read_general(self, step: int) -> None:
        if self.general is not None:
            split, readout = self.general
            self.evaluate(split, step, readout=readout, size=GENERAL_BATCH)

    def steps(self, evaluations: int) -> set[int]:
        """The numbers of steps done at which the selection split is evaluated."""
        count = evaluations if self.splits.select is not None else 0
        return {round(self.state.total * (i + 1) / count) for i in range(count)}

    def choose(self, step: int) -> None:
        """Evaluates the selection split; a new best inside the common window is saved, to be evaluated at the end."""
        state, select = self.state, self.splits.select
        assert select is not None
        state.progress.unread = step
        scores = self.evaluate(select, step).scores
        primary = self.readout.metrics[0]
        self.recorder.show(state, step, f"{select.name} {primary} {scores.metrics[primary]:.1f}")
        if step + 1 >= state.total * (1 - BEST_WINDOW) and within_budget(state.method):
            best = state.progress.best
            if best is None or scores.metrics[primary] > best.select.metrics[primary]:
                report = scores if self.splits.report.name == scores.split else None
                state.progress.best = Best(step + 1, scores, report, state.method.ranks(), state.method.count())
                self.checkpoints.save_best(state, step + 1)
        state.progress.unread = None

    def read_increment(self, number: int, step: int) -> None:
        """Scores the reported items of every increment so far, after the step that ended one; of domains, all."""
        self.state.progress.unread = step
        report, part = self.splits.report, self.increments.parts[number]
        readout = cast(Classes, self.readout).among_classes(part.seen)
        items = self.increments.read_after(number)
        reading = self.evaluate(report, step, f"{report.name} seen", readout, items=items)
        self._by_increment(reading.rows, number, step)
        primary = reading.scores.metrics[self.readout.metrics[0]]
        self.recorder.show(self.state, step, f"increment {number + 1} {primary:.1f}")
        self.state.progress.unread = None

    def _by_increment(self, rows: Sequence[Row], number: int, step: int) -> None:
        """Records the accuracy on the reported items of each increment that was read, after one of them."""
        by_idx = {row[0]: row for row in rows}
        idx, last = self.splits.report.data.idx, len(self.increments.parts) if self.increments.domains else number + 1
        for other in range(last):
            own = [by_idx[int(idx[position])] for position in self.increments.reported(other)]
            right = 100 * float(np.mean([row[1] == row[2] for row in own]))
            self.recorder.scores(step, increment_split(other), {"accuracy": right})

    def read_best(self) -> None:
        """Evaluates the reported split once with the best weights, and puts the last ones back."""
        best = self.state.progress.best
        if best is None or best.report is not None:
            return
        saved = self.checkpoints.best(best.step)
        if saved is None:
            raise RuntimeError("the best checkpoint is corrupt; run the same command again to resume from before it")
        last = {k: v.clone() if isinstance(v, Tensor) else v for k, v in checkpoint.collect(*self.state.parts).items()}
        checkpoint.restore(saved, *self.state.parts)
        best.report = self.evaluate(self.splits.report, best.step - 1).scores
        checkpoint.restore(last, *self.state.parts)

    def read_last(self) -> None:
        """Evaluates the last checkpoint: general text, the reported split at all trained ranks, and another split."""
        self._read_general(self.state.total)
        select, report = self.splits.select, self.splits.report
        self.state.report = self.evaluate(report, self.state.total)
        if self.increments.report_groups is not None:
            self._by_increment(self.state.report.rows, len(self.increments.parts) - 1, self.state.total)
        if select is not None and select.name != report.name:
            self.state.select = self.evaluate(select, self.state.total)
        for rank in self.state.method.reading_ranks:
            with self.state.method.read_at(rank):
                reading = self.evaluate(report, self.state.total, f"{report.name} at rank {rank}")
            self.state.by_rank[rank] = reading.scores.metrics


def within_budget(method: Method) -> bool:
    """Whether the method now is what its budget allows, so that this step may be chosen as the best."""
    if "off budget" in method.remarks():
        return False
    if method.capabilities.budget == "soft":
        return True
    try:
        method.check_budget()
    except MethodFailure:
        return False
    return True


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
