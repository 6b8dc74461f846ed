"""What a sweep costs beside its runs: runs one in a temporary store and prints its times.

    python -m experiments.bench.sweep 'seed=range(8)' method=lora launcher.workers=2
    python -m experiments.tools.slurm_cluster python -m experiments.bench.sweep 'seed=range(8)' hydra/launcher=slurm

WORDS are those of run.py. A run lasts from its first step, before which manifest.json is written, to its result.json.
The time between two runs of one process is spent on launching, loading and attaching.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.bench.report import save, without_folders
from experiments.runtime.places import CHECKOUT
from experiments.runtime.signals import interrupting

Span = tuple[float, float]  # first step and end of a run, in seconds since the epoch


def spans(store: Path) -> list[list[Span]]:
    """The finished runs of each process, in order."""
    by_process: dict[int, list[Span]] = defaultdict(list)
    for result in store.glob("*/*/result.json"):
        process = json.loads((result.parent / "status.json").read_text())["pid"]
        by_process[process].append(((result.parent / "manifest.json").stat().st_mtime, result.stat().st_mtime))
    return [sorted(runs) for runs in by_process.values()]


def measured(processes: list[list[Span]]) -> dict[str, float]:
    """Runs an hour from the first step of the first run to the end of the last, and what they are counted from.

    The start of the processes is left out: a long sweep has it once.
    """
    runs = [span for process in processes for span in process]
    seconds = max(end for _, end in runs) - min(start for start, _ in runs)
    hour = 3600 * len(runs) / seconds
    return {"runs": len(runs), "processes": len(processes), "seconds": seconds, "runs_an_hour": hour}


def report(processes: list[list[Span]], began: float, ended: float) -> str:
    """The times of a sweep that took from `began` to `ended`."""
    if not processes:
        return "no run finished"
    alone = sum(end - start for runs in processes for start, end in runs)
    gaps = [after[0] - before[1] for runs in processes for before, after in pairwise(runs)]
    first = min(runs[0][0] for runs in processes) - began
    lines = [
        f"{sum(map(len, processes))} runs in {len(processes)} processes, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        f"sweep {ended - began:.1f} s, sum of its runs {alone:.1f} s, ratio {(ended - began) / alone:.2f}",
        f"{measured(processes)['runs_an_hour']:.1f} runs an hour from the first step to the last result",
        f"from the command to the first step of a process: {first:.1f} s at the earliest",
    ]
    if gaps:
        lines.append(
            f"from a run's end to the next one's first step: median {statistics.median(gaps):.2f} s, "
            f"most {max(gaps):.2f} s, n = {len(gaps)}"
        )
    return "\n".join(lines)


def hour_lines(one: dict[str, Any]) -> list[str]:
    """Runs an hour of a sweep as Markdown."""
    lines = ["| processes | runs | seconds | runs an hour |", "| ---: | ---: | ---: | ---: |"]
    counts = f"| {one['processes']} | {one['runs']} | {one['seconds']:.0f} | {one['runs_an_hour']:.1f} |"
    return [*lines, counts]


def main() -> int:
    """Returns the exit code of the sweep; 130 if a signal stopped it, which ends the sweep too."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.sweep", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="+", help="as for run.py -m, for instance 'seed=range(8)'")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the measurements as JSON")
    options = parser.parse_intermixed_args()
    words = options.words
    with interrupting(), tempfile.TemporaryDirectory() as store:
        began = time.time()
        wait = ["launcher.wait=true"] if "hydra/launcher=slurm" in words else []
        command = [sys.executable, "run.py", "-m", *words, f'store.root="{store}"', *wait]
        with subprocess.Popen(command, cwd=CHECKOUT) as sweep:
            try:
                code = sweep.wait()
            except KeyboardInterrupt:  # nothing may go on beside the next measurement
                sweep.terminate()
                sweep.wait()
                return 130
        processes = spans(Path(store))
        print(report(processes, began, time.time()))
        if processes:
            save(measured(processes) | {"words": without_folders(words)}, options.out)
    return code


if __name__ == "__main__":
    sys.exit(main())
