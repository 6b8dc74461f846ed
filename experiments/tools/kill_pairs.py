"""Two forked processes that do one run under torchrun's own agent, for the kill harness.

torchrun starts its workers from the command line, which costs every attempt the imports of both. Its agent can also
fork them, and reacts in the same way when one of them dies.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.training.progress import Prepared


def in_pair(work: Callable[[], None]) -> int:
    """Does `work` in two forked processes with RANK and WORLD_SIZE set.

    Returns:
        0, or the exit code of the process that ended first of those that failed, minus the signal that killed it.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex, max_restarts=0, monitor_interval=0.02, start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, work)()
    except ChildFailedError as error:
        return min(error.failures.values(), key=lambda failure: failure.timestamp).exitcode
    return 0


def pair_ready(prepared: Prepared) -> Prepared:
    """What was loaded before the fork, with an accelerator that knows of both processes."""
    from accelerate import Accelerator

    return replace(prepared, accelerator=Accelerator(cpu=True))


def reconnect() -> None:
    """Connects the two processes; the one they were forked from was alone."""
    from accelerate.state import AcceleratorState

    from experiments.runtime.distributed import connect

    AcceleratorState._reset_state(True)
    connect()


def kill(pids: list[int]) -> None:
    """Kills processes by handles, so that a number that was given away again is never hit."""
    for handle in [_handle(pid) for pid in pids]:
        if handle is not None:
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(handle)


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def wait_for(ready: Callable[[], bool], child: int) -> None:
    """Waits until something is so, or the child has ended."""
    while not ready() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)
