"""Seconds until something happens: `python -m experiments.bench.startup WORDS ...`

The clock's seconds from the start of a process to the end of `run.py --help`, and to a run's first line in
metrics.jsonl, after its first step. Caches are warm, because one run of each goes before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.runtime.places import CHECKOUT

FEW = ["threads=1", "trainer.max_steps=2", "trainer.log_every=1", "data.train_items=64"]
TARGETS = {"help": 1.5, "first step": 8.0}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.startup", description="Seconds to the start.")
    parser.add_argument("words", nargs="*", help="as for run.py; method=lora by itself")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    words = options.words or ["method=lora"]
    ways = {"help": until_help, "first step": lambda: until_first_step(words)}
    seconds = {name: [way() for _ in range(options.times + 1)][1:] for name, way in ways.items()}
    from experiments.bench.report import machine

    found: dict[str, Any] = {"seconds": seconds, "targets": TARGETS, "words": words, "machine": machine()}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(start_lines(found)))


def until_help() -> float:
    """Seconds that `run.py --help` takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "run.py", "--help"], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def until_first_step(words: list[str]) -> float:
    """Seconds from the start of a run's process to its first line of metrics.jsonl.

    Raises:
        RuntimeError: the run ended without one.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", *FEW, *words, f"store.root={folder}"]
        began = time.perf_counter()
        with subprocess.Popen(
            command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as run:
            while not (there := any(Path(folder).glob("*/*/metrics.jsonl"))) and run.poll() is None:
                time.sleep(0.01)
            seconds = time.perf_counter() - began
            said = run.communicate()[1]
        if not there:
            raise RuntimeError(f"{' '.join(command)} ended before its first step: {said}")
    return seconds


def start_lines(found: dict[str, Any]) -> list[str]:
    """The medians as Markdown, with the verdict."""
    lines = ["| until | seconds, median (least to most) | target | |", "| --- | --- | ---: | --- |"]
    for name, values in found["seconds"].items():
        middle, target = statistics.median(values), found["targets"][name]
        took = f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
        lines.append(f"| {name} | {took} | ≤ {target:g} | {'met' if middle <= target else 'missed'} |")
    return lines


if __name__ == "__main__":
    main()
