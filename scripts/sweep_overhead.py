"""Does a sweep in a store of its own and says what it cost beside its runs.

    python scripts/sweep_overhead.py 'seed=range(8)' method=lora launcher.workers=2
    python tests/support/slurm_cluster.py python scripts/sweep_overhead.py 'seed=range(8)' \
        hydra/launcher=slurm launcher.cpus=1

A run lasts from its first step, before which manifest.json is written, to its result.json. What lies between two runs
of one process is the launcher's: handing out, loading, attaching.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def spans(store: Path) -> list[list[tuple[float, float]]]:
    """First step and end of every finished run, in seconds since the epoch: a list for each process, in their order."""
    by_process: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for result in store.glob("*/*/result.json"):
        process = json.loads((result.parent / "status.json").read_text())["pid"]
        by_process[process].append(((result.parent / "manifest.json").stat().st_mtime, result.stat().st_mtime))
    return [sorted(runs) for runs in by_process.values()]


def report(runs: list[list[tuple[float, float]]], began: float, ended: float) -> str:
    """The times of a sweep that took from `began` to `ended`."""
    if not runs:
        return "no run ended"
    alone = sum(end - start for process in runs for start, end in process)
    gaps = [after[0] - before[1] for process in runs for before, after in zip(process, process[1:], strict=False)]
    firsts = sorted(process[0][0] - began for process in runs)
    lines = [
        f"{sum(map(len, runs))} runs in {len(runs)} processes, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        f"sweep {ended - began:.1f} s, sum of its runs {alone:.1f} s, ratio {(ended - began) / alone:.2f}",
        f"from the command to the first step of a process: {firsts[0]:.1f} s at the earliest",
    ]
    if gaps:
        lines.append(f"from a run's end to the next one's first step: median {statistics.median(gaps):.2f} s, "
                     f"most {max(gaps):.2f} s, n = {len(gaps)}")  # fmt: skip
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Exit code of the sweep."""
    with tempfile.TemporaryDirectory() as store:
        began = time.time()
        command = [sys.executable, "run.py", "-m", *words, f'store.root="{store}"']
        wait = ["launcher.wait=true"] if "hydra/launcher=slurm" in words else []
        code = subprocess.call([*command, *wait], cwd=ROOT)
        print(report(spans(Path(store)), began, time.time()))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
