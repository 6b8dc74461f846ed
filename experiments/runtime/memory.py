"""How a process uses the CPU: its threads, and the memory it keeps from one training step to the next.

By default glibc returns large freed blocks to the system, and every training step waits for thousands of pages to be
mapped and cleared again. `use_cpu` makes it keep them: the process stays at its peak memory, which the next step needs
anyway.
"""

from __future__ import annotations

import ctypes
import os
import sys

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ALL = 2**31 - 1
LARGE = 2**25  # bytes; larger blocks are still returned: kept blocks of many sizes would fragment the heap


def use_cpu(threads: int | None) -> None:
    """Sets the number of threads (None or 0: unchanged) and keeps freed memory, for the rest of the process.

    Memory is left alone on systems without glibc, and if the environment configures malloc.
    """
    if threads:
        torch.set_num_threads(threads)
    configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if configured or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(TRIM_THRESHOLD, ALL)
        mallopt(MMAP_THRESHOLD, LARGE)
