"""SIGTERM, SIGUSR2, SIGHUP and SIGINT stop a run or a sweep with a checkpoint; a second one stops it at once.

The handler only sets a flag. The training loop checks it after every step and every batch of an evaluation, writes a
checkpoint and raises `Preempted`, so a signal never interrupts a write. While data and model are loaded there is
nothing to keep, and the first signal ends the loading (`Stop.at_once`). SLURM signals every process of a job; workers
ignore these signals and wait for their parent's SIGINT, so that only the parent decides when to stop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of prctl(2)
ECHO = 2.0  # seconds in which a repeated signal is the same one: slurmstepd and srun both send one preemption's TERM
EXIT_RESUMABLE = 75  # EX_TEMPFAIL: the run was interrupted, and the same command resumes it


class Preempted(RuntimeError):
    """A run was stopped by a signal; the same command resumes it from its checkpoint."""

    failure = "preempted"

    def __init__(self, message: str, signal: str | None = None) -> None:
        super().__init__(message)
        self.signal = signal


class _Ended(KeyboardInterrupt):
    """Leaves `Stop.at_once`; no library catches a KeyboardInterrupt."""


@dataclass
class Stop:
    """Whether this process was asked to stop, by which signal, and when (time.monotonic)."""

    signal: str | None = None
    when: float = 0.0
    ends: bool = False  # whether the first signal ends what runs

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """The first signal leaves this block, wherever it is; it must keep nothing that a next run relies on."""
        try:
            self.ends = True
            yield
            self.ends = False
        except _Ended:
            pass
        finally:
            self.ends = False

    def asked(self, number: int) -> bool:
        """Notes a signal; returns False for the echo of the first one.

        Raises:
            KeyboardInterrupt: it is a second signal.
        """
        name = signal.Signals(number).name
        if self.signal == name != "SIGINT" and time.monotonic() - self.when < ECHO:
            return False
        if self.signal is not None:
            raise KeyboardInterrupt(f"{self.signal}, then {name}")
        self.signal, self.when = name, time.monotonic()
        return True


def obey_the_parent() -> None:
    """From here on only SIGINT stops this process; its parent handles the other signals, and its death is a SIGINT."""
    for number in set(SIGNALS) - {signal.SIGINT}:
        signal.signal(number, _ignore)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))


def _ignore(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that a worker starts would inherit."""


@contextmanager
def listening() -> Iterator[Stop]:
    """Handles the signals, or SIGINT alone in a worker, by setting `Stop`, which the training loop looks at."""

    def request(stop: Stop, number: int) -> None:
        if stop.ends:
            raise _Ended
        line = f"elalora: {stop.signal}: stopping at the next step with a checkpoint; again stops at once\n"
        os.write(2, line.encode())  # not print: a handler may run inside another print

    with _handling(request) as stop:
        yield stop


@contextmanager
def interrupting() -> Iterator[Stop]:
    """Raises KeyboardInterrupt with the name of the first signal, and again for a second one."""

    def interrupt(stop: Stop, number: int) -> None:
        raise KeyboardInterrupt(stop.signal)

    with _handling(interrupt) as stop:
        yield stop


@contextmanager
def _handling(first: Callable[[Stop, int], None]) -> Iterator[Stop]:
    """Calls `first` at the first signal, and restores the previous handlers at the end.

    Outside the main thread no handler can be installed, and the returned `Stop` is never set.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.asked(number):
            first(stop, number)

    before = {number: signal.signal(number, handle) for number in SIGNALS if not _left_alone(number)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _left_alone(number: int) -> bool:
    """Signals that the parent handles, and a hang-up that nohup ignores."""
    handler = signal.getsignal(number)
    return handler is _ignore or number == signal.SIGHUP and handler is signal.SIG_IGN
