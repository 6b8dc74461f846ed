"""How a process uses the CPU: its threads, and memory that it keeps from one training step to the next.

What is unusual: glibc gives large freed blocks back to the system, and a training step then waits for the same pages,
thousands of them, to be handed out and cleared again. Told to keep them, a process stays at its peak, which it comes
back to a moment later anyway.
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ALL = 2**31 - 1
LARGE = 2**25  # bytes; larger blocks still come and go, as they are kept less well where sizes differ


def use_cpu(threads: int | None) -> None:
    """Sets the threads (None or 0: as they are) and keeps freed memory, for the rest of the process."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed; elsewhere, and where the environment sets malloc itself, does nothing."""
    chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if not sys.platform.startswith("linux") or chosen:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, ALL)
        mallopt(MMAP_THRESHOLD, LARGE)
