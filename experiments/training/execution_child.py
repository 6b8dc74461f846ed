"""The child process of `experiments.training.execution`, started as a script: limits itself, then runs a program.

Arguments are the limits in CPU seconds, bytes of memory and bytes of a file. Standard input has a token in its first
line and the program behind it. The report on standard output is "ready" once the limits hold, and the token once the
program has run to its end without an exception.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from types import ModuleType

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000  # flags of unshare(2)


def limit(seconds: int, memory: int, file_size: int) -> None:
    """Sets the limits of this process and its children, and leaves the network where the kernel lets it."""
    ctypes.CDLL(None).unshare(NEW_USER | NEW_NETWORK)  # fails, and changes nothing, in containers that forbid it
    wanted = {
        resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NPROC: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 64,
    }  # fmt: skip
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def main() -> None:
    """Runs the program; leaves without the token if it raises."""
    token, _, program = sys.stdin.buffer.read().decode("utf-8").partition("\n")
    report, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    limit(*map(int, sys.argv[1:]))
    sys.argv[1:] = []
    os.write(report, b"ready\n")
    module = sys.modules["completion"] = ModuleType("completion")  # dataclasses look their module up
    exec(compile(program, "completion", "exec"), module.__dict__)
    os.write(report, token.encode())
    os._exit(0)  # without the program's exit handlers


if __name__ == "__main__":
    main()
