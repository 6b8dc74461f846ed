"""A made-up store of 2,000 runs, to measure the report's page: `python tests/support/large_store.py FOLDER`.

It writes the store and its report into the folder, and prints the page's size and, with chromium, the time to the
first paint of its content. No test asserts on that time.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import numpy as np  # noqa: E402
from browser import Browser, installed  # noqa: E402

from analysis.report import report  # noqa: E402
from experiments.standins.stored_runs import TYPES, modules, result, write_run  # noqa: E402

TASKS = ("vader_movies", "vader_nyt", "vader_amazon", "vader_tweets")
METHODS = (
    "lora", "svd_lora", "elalora", "adalora", "sora", "increlora", "flexlora", "gora", "eva", "prilora",
)  # fmt: skip
BUDGETS = ("r2", "r4")
SEEDS = range(25)
MOVING = ("elalora", "adalora", "sora", "increlora", "flexlora")
PLACES = modules(12)


def build(root: Path, seeds: range = SEEDS) -> int:
    """Writes every method on every task, budget and seed; returns the number of runs."""
    runs = list(product(TASKS, METHODS, BUDGETS, seeds))
    rng = np.random.default_rng(0)
    for task, method, budget, seed in runs:
        rank = int(budget[1:])
        rounds = _rounds(rank, rng) if method in MOVING else []
        start = dict.fromkeys(PLACES, rank)
        final = rounds[-1]["ranks"] if rounds else start
        count = {"rank_sum": sum(final.values()), "params": sum(r * sum(_shape(n)) for n, r in final.items())}
        changes: dict[str, Any] = {
            "task": task, "budget": budget, "ranks__initial": start, "ranks__final": final,
            "ranks__places": {name: list(place) for name, place in PLACES.items()},
            "ranks__shapes": {name: list(_shape(name)) for name in PLACES},
            "counts__initial": count, "counts__peak": count, "counts__final": count,
            "cost__step_seconds_median": 0.5 + 0.02 * METHODS.index(method),
        }  # fmt: skip
        score = 80 + TASKS.index(task) + 0.2 * METHODS.index(method) + rng.normal(0, 0.8)
        folder = write_run(root, result(method, seed, round(score, 3), **changes), rounds)
        losses = 0.3 + 0.4 * np.exp(-np.arange(20) / 6) + rng.normal(0, 0.02, 20)
        lines = [
            json.dumps({"step": 9 + 10 * i, "split": "train", "metric": "loss", "value": round(loss, 4)})
            for i, loss in enumerate(losses.tolist())
        ]
        (folder / "metrics.jsonl").write_text("\n".join(lines))
    return len(runs)


def _shape(name: str) -> tuple[int, int]:
    return TYPES[PLACES[name][1]]


def _rounds(rank: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Eight rounds that each move four directions between matrices."""
    ranks, names, rounds = dict.fromkeys(PLACES, rank), list(PLACES), []
    for step in range(10, 90, 10):
        ranks, pruned, grown = dict(ranks), [], []
        for _ in range(4):
            lost, won = rng.choice(names, 2, replace=False)
            if ranks[lost]:
                ranks[lost] -= 1
                ranks[won] += 1
                pruned.append([str(lost), ranks[lost]])
                grown.append(str(won))
        rounds.append({"step": step, "ranks": ranks, "pruned": pruned, "grown": grown})
    return rounds


def first_paint(page: Path, times: int = 7) -> float:
    """Median of milliseconds from the start of loading to the first content on the screen, in new browsers."""
    code = "(performance.getEntriesByName('first-contentful-paint')[0] ?? {}).startTime ?? null"
    found = []
    for _ in range(times):
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
            Browser(page, Path(profile)) as browser,
        ):
            while (at := browser.run(code)) is None:
                time.sleep(0.05)
            found.append(float(at))
    return statistics.median(found)


def main(folder: Path) -> None:
    start = time.perf_counter()
    runs = build(folder / "runs")
    print(f"{runs} runs written in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    page = report([folder / "runs"], folder / "out", with_figures=False, quiet=True)[0]
    print(f"report in {time.perf_counter() - start:.1f} s, page of {page.stat().st_size / 1e6:.2f} MB")
    if installed():
        print(f"first paint after {first_paint(page):.0f} ms (median of 7)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
