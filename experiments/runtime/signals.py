"""SIGTERM, SIGUSR2 and SIGINT ask a run to stop where it loses nothing; a second one stops it at once.

What is unusual: the handler only sets a flag. The loop looks at it after every step and after every batch of an
evaluation, writes a checkpoint, and raises `Preempted`. So no signal ever lands inside a write. SLURM signals every
process of a job; a worker waits for its parent's SIGINT, so that the parent alone decides what a stop means.
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
ECHO = 2.0  # seconds: slurmstepd and srun both send the TERM of one preemption, tenths of a second apart
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: the exit code of a run that was asked to stop and goes on when it is started again


class Preempted(RuntimeError):
    """A run that stopped because it was asked to; the same command goes on from its checkpoint."""

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
    """From here on only SIGINT asks this process to stop: the one that started it hears the others."""
    for number in set(SIGNALS) - {signal.SIGINT}:
        signal.signal(number, _unheard)


def _unheard(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that a worker starts would inherit."""


@contextmanager
def listening() -> Iterator[Stop]:
    """Takes the three signals, or SIGINT alone in a worker, while inside, and puts back what handled them before.

    Outside the main thread nothing can be installed, and nothing ever asks to stop.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def asked(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.signal == name != "SIGINT" and time.monotonic() - stop.when < ECHO:
            return
        if stop.signal is not None:
            raise KeyboardInterrupt(f"{stop.signal}, then {name}")
        stop.signal, stop.when = name, time.monotonic()
        # not print: a handler may run inside another print
        os.write(2, f"elalora: {name}: stopping at the next step with a checkpoint; once more stops at once\n".encode())

    heard = [number for number in SIGNALS if signal.getsignal(number) is not _unheard]
    before = {number: signal.signal(number, asked) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
