"""The checkpoints of one run: which are kept, and whether one is whole, this run's and complete, so that it can go on.

A checkpoint alone is not enough: the lines that the run had written by then must still be there, and so must the best
checkpoint of its time, which is read when training is over.
"""

from __future__ import annotations

import sys
from typing import Any

from elalora.errors import UserError
from elalora.method import Method, Round
from experiments.store.folder import RunFolder
from experiments.training import checkpoint

State = dict[str, Any]


class Checkpoints:
    """What one run keeps under checkpoint/, and what it finds there when it starts.

    Args:
        folder: of the run.
        run_id: written into every checkpoint, so that those of another run are refused.
        method: attached; metrics: names of the task's metrics. Both say what a checkpoint's progress looks like.
    """

    def __init__(self, folder: RunFolder, run_id: str, method: Method, metrics: list[str]) -> None:
        self.folder, self.run_id, self.method, self.metrics = folder, run_id, method, metrics
        self.path = folder.path / "checkpoint"
        self.best_path = self.path / "best"
        self._bests: list[int] = []  # best steps at the checkpoints so far

    # -- writing ---------------------------------------------------------------------------------------

    def save(self, step: int, state: State, progress: dict[str, Any]) -> None:
        """Writes everything that the rest of the run depends on, and drops what no resumed run can need."""
        checkpoint.save(self.path, step, state | {"progress": progress})
        checkpoint.drop(self.path, set(checkpoint.steps(self.path)[: checkpoint.KEPT]))
        if progress["best"] is not None:
            self._bests.append(progress["best"]["step"])
            checkpoint.drop(self.best_path, set(self._bests[-checkpoint.KEPT :]))

    def save_best(self, step: int, state: State) -> None:
        """Keeps a new best; a checkpoint that a resumed run may fall back to needs the best of its time."""
        checkpoint.save(self.best_path, step, state)
        checkpoint.drop(self.best_path, {step, *self._bests[-checkpoint.KEPT :]})

    # -- finding ---------------------------------------------------------------------------------------

    def best(self, step: int) -> State | None:
        """The best checkpoint of a step, or None where it is not there or not whole."""
        return checkpoint.load(self.best_path, step)

    def newest(self, like: dict[str, Any]) -> tuple[int, State] | None:
        """Step and state of the newest checkpoint that is whole and complete.

        Args:
            like: the progress of this run as it starts, whose form that of a checkpoint must have.

        Raises:
            UserError: one is whole and does not belong to this run.
        """
        for step in checkpoint.steps(self.path):
            state = checkpoint.load(self.path, step)
            if state is not None and self._complete(step, state, like):
                return step, state
            print(f"elalora: checkpoint step {step} is damaged; going on from the one before", file=sys.stderr)
        return None

    def go_on(self, step: int, progress: dict[str, Any]) -> list[Round]:
        """Cuts the lines back to a checkpoint; the rounds that are left."""
        best = progress["best"]
        self._bests = [] if best is None else [best["step"]]
        self.folder.cut_back(progress["lines"])
        return self._rounds(step, progress["lines"])

    def drop_left(self, step: int) -> None:
        """Removes what an abandoned attempt wrote after a step, and what it had meant to remove before."""
        kept = [s for s in checkpoint.steps(self.path) if s <= step][: checkpoint.KEPT]
        checkpoint.drop(self.path, set(kept))
        bests = {checkpoint.best_step(checkpoint.load(self.path, s)) for s in kept}
        checkpoint.drop(self.best_path, {s for s in bests if s is not None})

    def foreign(self, step: int, why: str) -> UserError:
        """What is said of a checkpoint that is whole and not this run's."""
        return UserError(
            f"{self.path} holds a checkpoint of step {step} that does not fit this run: {why}; {checkpoint.START_ANEW}"
        )

    def _complete(self, step: int, state: State, like: dict[str, Any]) -> bool:
        """Whether the lines before a checkpoint and the best checkpoint of its time are there."""
        progress = state.get("progress")
        if not isinstance(progress, dict) or "run" not in progress:
            raise self.foreign(step, "it has no progress")
        if progress["run"] != self.run_id:
            raise self.foreign(step, f"it is of the run {str(progress['run'])[:10]}")
        if not self._has_form(step, progress, like):
            raise self.foreign(step, "its progress is of another form")
        best = progress["best"]
        if best is not None and best["report"] is None and self.best(best["step"]) is None:
            return False
        try:
            return self.folder.has(progress["lines"]) and self._rounds(step, progress["lines"]) is not None
        except (ValueError, LookupError, TypeError, RecursionError):  # rounds that are none
            return False

    def _has_form(self, step: int, progress: dict[str, Any], like: dict[str, Any]) -> bool:
        try:
            best, unread = progress["best"], progress["unread"]
            like = like | {"seconds": [0.0], "unread": None if unread is None else step}
            if best is not None:
                brief = {"split": "", "metrics": dict.fromkeys(self.metrics, 0.0)}
                report = None if best["report"] is None else brief
                count = vars(self.method.count())
                like["best"] = {
                    "step": step, "select": brief, "report": report, "ranks": self.method.ranks(), "count": count,
                }  # fmt: skip
        except (KeyError, TypeError, IndexError):
            return False
        fits = checkpoint.alike(progress, like) and unread in (None, step - 1) and len(progress["seconds"]) == 2
        return fits and (best is None or 0 < best["step"] <= step)

    def _rounds(self, step: int, sizes: dict[str, int]) -> list[Round]:
        lines = self.folder.lines("ranks.jsonl", sizes["ranks.jsonl"])
        return [_round(line) for line in lines if 0 <= line["step"] < step]


def _round(line: dict[str, Any]) -> Round:
    """A round as it was before it was written."""
    return Round(**{**line, "pruned": [(name, slot) for name, slot in line["pruned"]]})
