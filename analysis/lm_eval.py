"""Two models item by item on the tasks of lm-evaluation-harness: `python -m analysis.lm_eval`.

    python -m analysis.lm_eval --arm ARM0 ARM1 --base BASE0 BASE1

Each folder is what lm_eval wrote to --output_path for one run, in the same order of seeds on both sides. The table says
whether the trained models differ on these items; many items make any p small, so it supports no claim about methods.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.table import Table, signed, signed_range
from analysis.output.writers import to_markdown
from analysis.reading.lm_eval_samples import Key, Samples, paired, read_samples
from analysis.stats.items import mcnemar_by_seed, two_way_bootstrap
from elalora.errors import UserError
from experiments.runtime.pipes import as_command


def compare(arm: Sequence[Path], base: Sequence[Path]) -> Table:
    """The paired table over every task, filter and metric that both sides have.

    Args:
        arm, base: folders of runs, paired by their order.

    Raises:
        UserError: the numbers of folders differ, a folder has no samples, or the items differ.
    """
    if len(arm) != len(base) or not arm:
        raise UserError(f"--arm names {len(arm)} folders and --base {len(base)}; name one of each for every seed")
    first, second = ([read_samples(folder) for folder in side] for side in (arm, base))
    keys = [key for key in second[0] if any(key in samples for samples in first)]
    if not keys:
        raise UserError(f"{arm[0]} and {base[0]} have no task in common")
    records = [_record(key, first, second) for key in sorted(keys)]
    columns = ["Task", "Filter", "Metric", "Items", "Arm", "Base", "Difference", "McNemar p"]
    text = [
        [r["task"], r["filter"], r["metric"], str(r["items"]), f"{r['arm']:.2f}", f"{r['base']:.2f}", r["text"], r["p"]]
        for r in records
    ]
    notes = [
        "Means over runs and items, times 100. The interval draws runs and items (two runs or more). McNemar's exact p "
        "is that of each pair of runs, where values are right or wrong. The table supports no claim about methods."
    ]
    frame = pd.DataFrame(records).drop(columns="text")
    return Table("Items of lm-evaluation-harness, paired.", columns, text, notes, frame)


def _record(key: Key, first: list[Samples], second: list[Samples]) -> dict[str, Any]:
    arm, base = paired(first, second, key)
    difference = 100 * (arm - base)
    text = signed(float(difference.mean()))
    if min(difference.shape) >= 2:
        _, (low, high) = two_way_bootstrap(difference, np.random.default_rng(0))
        text += signed_range(low, high)
    binary = all(np.isin(values, (0.0, 1.0)).all() for values in (arm, base))
    tests = mcnemar_by_seed(arm == 1.0, base == 1.0) if binary else []
    return {
        **key._asdict(), "items": arm.shape[1], "arm": 100 * arm.mean(), "base": 100 * base.mean(),
        "difference": float(difference.mean()), "text": text, "p": ", ".join(f"{test.p:.2g}" for test in tests),
    }  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m analysis.lm_eval",
        description="Compares two models item by item on tasks of lm-evaluation-harness.",
    )
    made.add_argument("--arm", type=Path, nargs="+", required=True, metavar="FOLDER", help="lm_eval's --output_path")
    made.add_argument(
        "--base", type=Path, nargs="+", required=True, metavar="FOLDER", help="of what it is compared with"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        table = compare(args.arm, args.base)
    except UserError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    print(to_markdown(table), end="")
    return 0


if __name__ == "__main__":
    as_command(main)
