"""Seconds of processor that commands over many runs take: a plan, a store's status, and its tables.

    python -m experiments.bench.waiting --runs 1000

Each command runs once in its own process. The stores hold the runs of analysis/measured, again and again under other
names of tasks, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from experiments.bench.report import save
from experiments.runtime.places import CHECKOUT
from experiments.store.compact import opened
from experiments.store.finished import id_of

SWEEP = [
    "method=lora,elalora,svd_lora,adalora,sora,prilora,beamlora,flexlora", "budget=r2,r4,r6,r8",
    "task=cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte", "seed=range(10)", "recipe=matched", "model=deberta_v3_base",
]  # fmt: skip
PLANNED, PLAN_TARGET = 2560, 15.0
TABLES_TARGET = {1000: 4.0, 10_000: 20.0}
STATUS_TARGET = {20_000: 5.0}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.waiting", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="runs in the store (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the measurements as JSON")
    options = parser.parse_args()
    measured = measure(options.runs)
    save(measured, options.out)
    print("\n".join(waiting_lines(measured)))


def measure(runs: int) -> dict[str, Any]:
    """Seconds and target of each command, by what it does."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "runs")
        many_runs(store, runs)
        plan = ["run.py", "-m", *SWEEP, f"store.root={folder}/none", "--plan"]
        return {
            f"plan {PLANNED:,} runs": {"seconds": seconds_of(plan), "target": PLAN_TARGET},
            f"status of {runs:,} runs": {
                "seconds": seconds_of(["-m", "experiments", "status", str(store)]), "target": STATUS_TARGET.get(runs)
            },
            f"tables of {runs:,} runs": {
                "seconds": seconds_of(["-m", "analysis", str(store), "--no-figures", "--out", f"{folder}/tables"]),
                "target": TABLES_TARGET.get(runs),
            },
        }  # fmt: skip


def many_runs(store: Path, number: int) -> None:
    """Makes a store of this many finished runs, which differ from real ones in the task's name and the id only.

    They are copies of the first study's runs, whatever other studies the repository keeps, so that times compare.
    """
    stored = sorted(opened(CHECKOUT / "analysis" / "measured").glob("vader_*/*/result.json"))
    results = ((path, json.loads(path.read_text(encoding="utf-8"))) for path in stored)
    sources = [path.parent for path, result in results if "batches" not in result["identity"]["trainer"]]  # older
    pairs = ((source, copy) for copy in count() for source in sources)
    for source, copy in islice(pairs, number):
        result = json.loads((source / "result.json").read_text(encoding="utf-8"))
        result["task"] = result["identity"]["task"]["name"] = f"{result['task']}_{copy}"
        result["id"] = id_of(result["identity"])
        folder = store / result["task"] / f"{source.name.rpartition('-')[0]}-{result['id'][:10]}"
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.is_file() and file.name != "result.json":
                shutil.copy(file, folder)
        (folder / "result.json").write_text(json.dumps(result, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def seconds_of(words: Sequence[str]) -> float:
    """Seconds of processor of a Python command, with those of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def waiting_lines(measured: dict[str, Any]) -> list[str]:
    """Seconds, target and verdict of each command as Markdown."""
    lines = ["| command | seconds of processor | target | |", "| --- | ---: | ---: | --- |"]
    for name, row in measured.items():
        if name == "machine":
            continue
        target = row["target"]
        goal, met = ("", "") if target is None else (f"≤ {target:g}", "met" if row["seconds"] <= target else "missed")
        lines.append(f"| {name} | {row['seconds']:.1f} | {goal} | {met} |")
    return lines


if __name__ == "__main__":
    main()
