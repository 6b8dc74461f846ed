"""SIGTERM, SIGUSR2 and SIGINT stop a run with a checkpoint; a second one stops it at once.

The handler only sets a flag. The training loop checks it after every step and every batch of an evaluation, writes a
checkpoint and raises `Preempted`, so a signal never interrupts a write. SLURM signals every process of a job; workers
ignore these signals and wait for their parent's SIGINT, so that only the parent decides when to stop.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
ECHO = 2.0  # seconds in which a repeated signal is the same one: slurmstepd and srun both send one preemption's TERM
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: the run was interrupted, and the same command resumes it


class Preempted(RuntimeError):
    """A run was stopped by a signal; the same command resumes it from its checkpoint."""

    failure = "preempted"

    def __init__(self, message: str, signal: str | None = None) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass
class Stop:
    """Whether this process was asked to stop, by which signal, and when (time.monotonic)."""

    signal: str | None = None
    when: float = 0.0


def obey_the_parent() -> None:
    """From here on only SIGINT stops this process; its parent handles the other signals."""
    for number in set(SIGNALS) - {signal.SIGINT}:
        signal.signal(number, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that a worker starts would inherit."""


@contextmanager
def listening() -> Iterator[Stop]:
    """Handles the three signals, or SIGINT alone in a worker, and restores the previous handlers at the end.

    Outside the main thread no handler can be installed, and the returned `Stop` is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.signal == name != "SIGINT" and time.monotonic() - stop.when < ECHO:
            return
        if stop.signal is not None:
            raise KeyboardInterrupt(f"{stop.signal}, then {name}")
        stop.signal, stop.when = name, time.monotonic()
        line = f"elalora: {name}: stopping at the next step with a checkpoint; again stops at once\n"
        os.write(2, line.encode())  # not print: a handler may run inside another print

    handled = [number for number in SIGNALS if signal.getsignal(number) is not _ignore]
    before = {number: signal.signal(number, request) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
