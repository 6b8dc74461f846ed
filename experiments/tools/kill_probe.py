"""Where a run of the kill harness is, and the call at which it kills itself.

A child counts Python's call events inside each named phase, in memory that its parent reads. So a kill can be placed
between any two calls of a write, and the product needs no hook for it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from experiments.tools.kill_pairs import kill

PHASES = ("before the first step", "step", "round", "line", "checkpoint", "evaluation", "result", "status")
NAMED = ("checkpoint", "round", "evaluation", "result", "line")
SLOTS = 2 + len(PHASES)  # numbers that a process tells: its phase, its id, and the calls it made in each phase


class Probe:
    """Where the children are, told to their parent through shared memory; and the call at which one is to die.

    Args:
        target: (phase, n): die at the n-th call inside that phase. None only counts.
        victims: ranks that die together; the first of them counts the calls.
    """

    def __init__(self, target: tuple[str, int] | None = None, victims: tuple[int, ...] = (0,)) -> None:
        self.shared = mmap.mmap(-1, 2 * SLOTS * 8)
        self.target, self.victims, self.rank = target, victims, 0

    def _get(self, slot: int, rank: int) -> int:
        at = 8 * (rank * SLOTS + slot)
        return int.from_bytes(self.shared[at : at + 8], "little")

    def _set(self, slot: int, value: int) -> None:
        at = 8 * (self.rank * SLOTS + slot)
        self.shared[at : at + 8] = value.to_bytes(8, "little")

    @property
    def phase(self) -> str:
        """Where the first victim is."""
        return PHASES[self._get(0, self.victims[0])]

    def pids(self) -> list[int]:
        """The victims' processes, as far as they have begun."""
        return [pid for rank in self.victims if (pid := self._get(1, rank))]

    def calls(self) -> dict[str, int]:
        """Calls that the first victim counted inside each phase."""
        return {name: self._get(2 + number, self.victims[0]) for number, name in enumerate(PHASES)}

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Marks a phase; the innermost one counts."""
        before, profile = self._get(0, self.rank), sys.getprofile()
        number = PHASES.index(phase)

        def count(frame: Any, event: str, argument: Any) -> None:
            if event in ("call", "c_call"):
                calls = self._get(2 + number, self.rank) + 1
                self._set(2 + number, calls)
                if self.target == (phase, calls) and self.rank == self.victims[0]:
                    self.die()

        self._set(0, number)
        sys.setprofile(count if phase in NAMED else None)
        try:
            yield
        finally:
            sys.setprofile(profile)
            self._set(0, before)

    def die(self) -> None:
        """The other victim first, then this process."""
        kill([pid for pid in self.pids() if pid != os.getpid()])
        os.kill(os.getpid(), signal.SIGKILL)

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Makes a function of a module or class a phase."""
        plain: Callable = getattr(owner, name)

        def wrapped(*words: Any, **more: Any) -> Any:
            with self.inside(phase):
                return plain(*words, **more)

        setattr(owner, name, wrapped)

    def install(self) -> None:
        """Marks the phases in this process, which is a child that ends soon."""
        from experiments.runs import result as results
        from experiments.runs import run as runner
        from experiments.store.folder import RunFolder
        from experiments.training import checkpoint
        from experiments.training.evaluation import Evaluator
        from experiments.training.recorder import Recorder
        from experiments.training.trainer import Trainer

        self.rank = int(os.environ.get("RANK", "0"))
        self._set(1, os.getpid())
        self.wrap(Trainer, "_step", "step")
        self.wrap(Recorder, "round", "round")
        self.wrap(RunFolder, "append", "line")
        self.wrap(RunFolder, "beat", "status")
        self.wrap(checkpoint, "save", "checkpoint")
        self.wrap(checkpoint, "drop", "checkpoint")
        self.wrap(Evaluator, "evaluate", "evaluation")
        self.wrap(results, "export_adapter", "result")
        self.wrap(results, "store_predictions", "result")
        self.wrap(RunFolder, "write", "result")
        self.wrap(runner, "_drop_checkpoints", "result")
        if self.target and self.target[0] == "line" and self.target[1] % 2:
            self._tear_lines(self.target[1] // 8)  # a line takes a handful of calls

    def _tear_lines(self, whole: int) -> None:
        """Writes the line after `whole` lines by half and dies, as when the machine dies inside the write."""
        from experiments.store.folder import RunFolder

        owner: Any = RunFolder
        plain, left = owner.append, [whole]

        def torn(folder: Any, name: str, line: dict[str, Any]) -> None:
            left[0] -= 1
            if left[0] < 0:
                with (folder.path / name).open("ab", buffering=0) as file:
                    file.write(json.dumps(line).encode()[: 5 + left[0] % 9])
                self.die()
            plain(folder, name, line)

        owner.append = torn
        self.wrap(RunFolder, "append", "line")


def mark_rounds(method: Any, probe: Probe, steps: set[int]) -> None:
    """A round is what a method does after one of the steps after which the run without kills recorded one."""
    plain = method.after_step

    def after_step(step: int, *words: Any) -> Any:
        if step not in steps:
            return plain(step, *words)
        with probe.inside("round"):
            return plain(step, *words)

    method.after_step = after_step
