"""The checkpoints of one run: when to write one, which to keep, and which one to resume from.

A checkpoint alone is not enough to resume from. The lines that the run had written by then must still be there, and
so must the best checkpoint of its time, which is evaluated when training is over.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any, NoReturn

from elalora.errors import UserError, first_line
from elalora.method import Method, Round
from experiments.runtime.distributed import is_main, run_everywhere, run_on_main
from experiments.runtime.signals import Preempted, Stop
from experiments.store.folder import RunFolder
from experiments.training import checkpoint
from experiments.training.progress import Progress, TrainState

Saved = dict[str, Any]  # what `checkpoint.collect` gives


class Checkpoints:
    """What one run keeps under checkpoint/.

    Args:
        folder: of the run.
        run_id: written into every checkpoint, so that those of another run are refused.
        every: steps between two checkpoints; 0 writes one only when the run is asked to stop.
    """

    def __init__(self, folder: RunFolder, run_id: str = "", every: int = 0) -> None:
        self.folder, self.run_id, self.every = folder, run_id, every
        self.path = folder.path / "checkpoint"
        self.best_path = self.path / "best"
        self.saved: int | None = None  # step of the newest checkpoint
        self._bests: list[int] = []  # best steps at the checkpoints so far

    def due(self, state: TrainState) -> bool:
        """Whether a checkpoint is to be written after the step just done."""
        return bool(self.every) and (state.step % self.every == 0 or state.step == state.total)

    def save(self, state: TrainState) -> None:
        """Writes everything the rest of the run depends on, and drops what no resumed run can need."""
        self.saved = state.step
        if not is_main():
            return
        progress = state.progress
        progress.losses, progress.lines = [float(loss) for loss in state.losses], self.folder.line_sums()
        checkpoint.save(self.path, state.step, checkpoint.collect(*state.parts) | {"progress": asdict(progress)})
        checkpoint.drop(self.path, set(checkpoint.steps(self.path)[: checkpoint.KEPT]))
        if progress.best is not None:
            self._bests.append(progress.best.step)
            checkpoint.drop(self.best_path, set(self._bests[-checkpoint.KEPT :]))

    def save_best(self, state: TrainState, step: int) -> None:
        """Writes a new best; a checkpoint that a resumed run may fall back to needs the best of its time."""
        if is_main():
            checkpoint.save(self.best_path, step, checkpoint.collect(*state.parts))
            checkpoint.drop(self.best_path, {step, *self._bests[-checkpoint.KEPT :]})

    def preempt(self, state: TrainState, stop: Stop) -> NoReturn:
        """Leaves the run where it is asked to stop, after a checkpoint unless the newest one still holds.

        Raises:
            Preempted: always.
        """
        if not state.finishing and (self.saved != state.step or state.progress.unread is not None):
            self.save(state)
        asked = stop.signal or "a signal to another process"
        raise Preempted(f"{asked} after step {state.step} of {state.total}", stop.signal)

    def best(self, step: int) -> Saved | None:
        """The best checkpoint of a step, in every process; None where it is missing or corrupt."""
        return run_on_main(lambda: checkpoint.load(self.best_path, step))

    def resume(self, state: TrainState, metrics: list[str]) -> bool:
        """Resumes from the newest valid checkpoint and truncates the logs to it; returns whether there was one.

        Args:
            state: of a run before its first step.
            metrics: names of the task's metrics.

        Raises:
            UserError: a checkpoint is intact and does not belong to this run.
        """
        newest = run_on_main(lambda: self._newest(state.method, metrics))
        if newest is not None:
            step, saved, progress = newest
            run_everywhere(lambda: self._restore(state, step, saved, progress))
            state.method.rounds_seen = run_on_main(lambda: self._truncate(step, progress))
            self.saved = step
        if is_main():
            self._drop_after(state.step)
            if newest is None:
                self.folder.cut_back({})
        return newest is not None

    def start_ranks(self, method: Method, metrics: list[str]) -> dict[str, int] | None:
        """The ranks before the first step, if there is a checkpoint to resume from.

        Raises:
            UserError: a checkpoint is intact and does not belong to this run.
        """

        def read() -> dict[str, int] | None:
            newest = self._newest(method, metrics)
            if newest is None:
                return None
            step, _, progress = newest
            ranks = self.folder.lines("ranks.jsonl", progress.lines["ranks.jsonl"].size)[0]["ranks"]
            if ranks.keys() != method.ranks().keys():
                raise self._foreign(step, "the first line of ranks.jsonl has other matrices")
            return {name: int(rank) for name, rank in ranks.items()}

        return run_on_main(read)

    def _newest(self, method: Method, metrics: list[str]) -> tuple[int, Saved, Progress] | None:
        for step in checkpoint.steps(self.path):
            saved = checkpoint.load(self.path, step)
            if saved is not None:
                progress = self._progress(saved.pop("progress", None), step, method, metrics)
                if self._complete(step, progress):
                    return step, saved, progress
            print(
                f"elalora: checkpoint at step {step} or a line before it is corrupt; falling back to the one before",
                file=sys.stderr,
            )
        return None

    def _progress(self, value: Any, step: int, method: Method, metrics: list[str]) -> Progress:
        if not isinstance(value, dict) or "run" not in value:
            raise self._foreign(step, "it has no progress")
        if value["run"] != self.run_id:
            raise self._foreign(step, f"it belongs to run {str(value['run'])[:10]}")
        try:
            return Progress.read(value, step, method, metrics)
        except (ValueError, OverflowError) as error:
            raise self._foreign(step, f"its progress is invalid ({error})") from error

    def _complete(self, step: int, progress: Progress) -> bool:
        """Whether the lines before a checkpoint and the best checkpoint of its time are there."""
        best = progress.best
        if best is not None and best.report is None and checkpoint.load(self.best_path, best.step) is None:
            return False
        try:
            return self.folder.begins_with(progress.lines) and self._rounds(step, progress) is not None
        except (ValueError, LookupError, TypeError, RecursionError):  # lines of ranks.jsonl that are no rounds
            return False

    def _restore(self, state: TrainState, step: int, saved: Saved, progress: Progress) -> None:
        fresh, best, states = checkpoint.collect(*state.parts), progress.best, [saved]
        if best is not None and best.report is None:  # restored once now: after training is too late to refuse it
            states.insert(0, self.best(best.step) or {})
        try:
            for each in states:
                checkpoint.check_form(each, fresh)
                checkpoint.restore(each, *state.parts)
        except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
            raise self._foreign(step, f"{type(error).__name__} {first_line(error)}") from error
        state.schedule.at(step)
        state.step, state.progress = step, progress

    def _truncate(self, step: int, progress: Progress) -> list[Round]:
        """Cuts the lines back to a checkpoint; returns the rounds before it."""
        self._bests = [] if progress.best is None else [progress.best.step]
        self.folder.cut_back(progress.lines)
        return self._rounds(step, progress)

    def _rounds(self, step: int, progress: Progress) -> list[Round]:
        lines = self.folder.lines("ranks.jsonl", progress.lines["ranks.jsonl"].size)
        return [Round.read(line) for line in lines if 0 <= line["step"] < step]

    def _drop_after(self, step: int) -> None:
        """Removes what an abandoned attempt wrote after a step, and what it had no time to remove."""
        keep = [s for s in checkpoint.steps(self.path) if s <= step][: checkpoint.KEPT]
        checkpoint.drop(self.path, set(keep))
        bests = {checkpoint.best_step(checkpoint.load(self.path, s)) for s in keep}
        checkpoint.drop(self.best_path, {s for s in bests if s is not None})

    def _foreign(self, step: int, why: str) -> UserError:
        return UserError(
            f"{self.path} has a checkpoint at step {step} that does not fit this run: {why}; {checkpoint.RESTART}"
        )
