"""Runs generated code against its tests, one program at a time in a process of its own with limits.

Nothing here is called unless a user asks for it (`task.execute=true`, `python -m experiments pass_at_1 --execute`). The
limits keep an honest mistake from hurting: a loop without an end, all memory, a full disk. They are no jail: a program
can read and delete what its user can. Run it in a container that holds nothing of value.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elalora.errors import UserError

CHILD = Path(__file__).with_name("execution_child.py")
POLL = 0.005  # seconds between two looks at a process


@dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
        seconds: CPU time; wall: seconds by the clock, for programs that sleep.
        memory: bytes of address space; file_size: bytes of each file that it writes.
    """

    seconds: int = 10
    wall: float = 30.0
    memory: int = 2**30
    file_size: int = 2**20


def require_linux() -> None:
    """Refuses other systems, on which not every limit holds.

    Raises:
        UserError: this is not Linux.
    """
    if sys.platform != "linux":
        raise UserError(f"generated code is run on Linux only, whose limits hold; this is {sys.platform}")


def program_of(code: str, accepted: Sequence[str]) -> str:
    """A whole program: what stands before the code, the code, and its tests.

    Args:
        code: read from generated text.
        accepted: an item's references: the published solution, the tests, and the beginning of the program if it has
            one. HumanEval's beginning is a function of only a docstring, which is whole by itself, so the code may
            continue that function or define it again.
    """
    _, tests, *beginning = accepted
    return "\n".join([*beginning, code, tests, ""])


def passes(program: str, limits: Limits | None = None) -> bool:
    """Whether a program runs to its end, in an empty temporary folder, without environment, input or output.

    Its end is reported by a random token, so an early exit with status 0 does not pass. All processes of its session
    are killed afterwards. As root, the number of processes is not limited by the kernel.

    Raises:
        RuntimeError: the limits could not be set, so nothing was run.
        UserError: this is not Linux.
    """
    require_linux()
    limits = limits or Limits()
    token = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory(prefix="elalora-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as report,
    ):
        given.write(f"{token}\n{program}".encode("utf-8", errors="replace"))
        given.seek(0)
        words = map(str, (limits.seconds, limits.memory, limits.file_size))
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(CHILD), *words], stdin=given, stdout=report,
            stderr=subprocess.DEVNULL, cwd=folder, env={}, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process.pid, limits.wall)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # not yet reaped, so the number is still its own
            process.wait()
        report.seek(0)
        said = report.read(200).decode("utf-8", errors="replace")
    if not said.startswith("ready\n"):
        raise RuntimeError("generated code was not run, because the limits of its process could not be set")
    return said == f"ready\n{token}"


def _wait(pid: int, seconds: float) -> None:
    """Returns when the process has ended, without reaping it, or when the time is over."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < end:
        time.sleep(POLL)
