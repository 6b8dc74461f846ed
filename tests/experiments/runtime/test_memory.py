"""Memory that a process keeps; pages are counted, no clock is read."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

COUNT = """
import ctypes, resource, sys
from experiments.runtime.memory import use_cpu

if sys.argv[1] == "keep":
    use_cpu(1)
libc, size = ctypes.CDLL(None), 2**21
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(ctypes.c_size_t(size)) for _ in range(40)]
    for block in blocks:
        libc.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([faults() for _ in range(4)][-1])
"""


def pages(what: str, **more: str) -> int:
    """Page faults of the fourth use of the same 80 MiB."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, what], env=clean | more, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc: nothing is set"
)
@pytest.mark.slow
def test_a_process_keeps_the_memory_it_freed_unless_the_environment_says_how_malloc_works():
    lost = pages("lose")
    assert lost > 10_000
    assert pages("keep") < lost / 10
    assert pages("keep", MALLOC_TRIM_THRESHOLD_="131072") > lost / 2
