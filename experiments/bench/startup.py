"""Seconds that `run.py --help` takes, and seconds from a command to its run's first step, with warm caches.

    python -m experiments.bench.startup WORDS ...

WORDS are those of run.py. The first step has ended when metrics.jsonl has its first line.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.bench.report import save
from experiments.runtime.places import CHECKOUT

SHORT = ["threads=1", "trainer.max_steps=2", "trainer.log_every=1", "data.train_items=64"]
TARGETS = {"help": 1.5, "first step": 8.0}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.startup", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="as for run.py (default: method=lora)")
    parser.add_argument("--times", type=int, default=5, help="measurements of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the measurements as JSON")
    options = parser.parse_intermixed_args()
    words = options.words or ["method=lora"]
    waits = {"help": until_help, "first step": lambda: until_first_step(words)}
    seconds = {name: [wait() for _ in range(options.times + 1)][1:] for name, wait in waits.items()}  # first: cold
    measured = {"seconds": seconds, "targets": TARGETS, "words": words}
    save(measured, options.out)
    print("\n".join(start_lines(measured)))


def until_help() -> float:
    """Seconds that `run.py --help` takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "run.py", "--help"], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def until_first_step(words: list[str]) -> float:
    """Seconds from the start of a run's process to its first line of metrics.jsonl.

    Raises:
        RuntimeError: the run ended before its first step.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", *SHORT, *words, f"store.root={folder}"]
        began = time.perf_counter()
        with subprocess.Popen(
            command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            while not (started := any(Path(folder).glob("*/*/metrics.jsonl"))) and run.poll() is None:
                time.sleep(0.01)
            seconds = time.perf_counter() - began
            errors = run.communicate()[1]
        if not started:
            raise RuntimeError(f"{' '.join(command)} ended before its first step: {errors}")
    return seconds


def start_lines(measured: dict[str, Any]) -> list[str]:
    """Medians, ranges and verdicts as Markdown."""
    lines = ["| until | seconds, median (least to most) | target | |", "| --- | --- | ---: | --- |"]
    for name, values in measured["seconds"].items():
        middle, target = statistics.median(values), measured["targets"][name]
        duration = f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
        lines.append(f"| {name} | {duration} | ≤ {target:g} | {'met' if middle <= target else 'missed'} |")
    return lines


if __name__ == "__main__":
    main()
