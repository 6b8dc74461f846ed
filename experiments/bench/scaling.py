"""How a step grows with the number of matrices, rank, width and batch, and a command with the number of runs.

    python -m experiments.bench.scaling --out FILE

A random encoder of 6 layers, 384 wide, 16 tokens, batch 8 and rank 8 on all 36 matrices; one of these changes at a
time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import torch

from experiments.bench import arms
from experiments.bench.memory import counted
from experiments.bench.shapes import PER_LAYER, Shape, make_batch
from experiments.bench.timing import interleaved
from experiments.runtime.memory import use_cpu
from experiments.runtime.places import CHECKOUT

BASE = {"matrices": 36, "rank": 8, "width": 384, "batch": 8}
AXES = {
    "matrices": [6, 12, 18, 24, 30, 36],
    "rank": [2, 4, 8, 16, 32, 64],
    "width": [128, 256, 384, 512, 768],
    "batch": [1, 2, 4, 8, 16, 32],
}
RUNS = [1, 10, 100, 300]
LAYERS, TOKENS = 6, 16


def main() -> None:
    """Measures every axis and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.scaling", description="How a step grows.")
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    use_cpu(options.threads)
    from experiments.bench.report import machine

    found = {
        "base": BASE,
        "axes": {axis: [point(BASE | {axis: value}, options.blocks) for value in AXES[axis]] for axis in AXES},
        "runs": [planning(number) for number in RUNS],
        "machine": machine(),
    }
    text = json.dumps(found, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


def point(size: dict[str, int], blocks: int) -> dict[str, Any]:
    """Median milliseconds and counted bytes of a step at one size, by arm."""
    kinds = PER_LAYER[: size["matrices"] // LAYERS]
    shape = Shape("encoder", kinds, size["matrices"], ["bert.pooler", "classifier"], size["batch"], TOKENS)
    setting = arms.Setting(
        shape, _encoder(size["width"]), make_batch(shape, size["batch"], TOKENS, "cpu"), size["rank"]
    )
    made = {
        "LoRA": arms.ours(setting, "lora"),
        "ElaLoRA": arms.ours(setting, "elalora", interval=arms.INTERVAL),
        "frozen backbone": arms.head_only(setting, to_input=True),
    }
    seconds = interleaved({name: arm.step for name, arm in made.items()}, blocks)
    return {
        "size": size,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "bytes": {name: counted(arm)["total"] for name, arm in made.items()},
    }


def _encoder(width: int) -> torch.nn.Module:
    import transformers

    tf: Any = transformers
    torch.manual_seed(0)
    config = tf.BertConfig(
        hidden_size=width, num_hidden_layers=LAYERS, num_attention_heads=width // 32, intermediate_size=4 * width
    )
    return tf.BertForSequenceClassification(config).train()


def planning(runs: int) -> dict[str, float]:
    """CPU seconds of `run.py -m ... --plan` over so many members: composing, checking and naming them all."""
    words = [sys.executable, "run.py", "-m", f"seed=range({runs})", "--plan"]
    before = getrusage(RUSAGE_CHILDREN)
    _quiet(words)
    after = getrusage(RUSAGE_CHILDREN)
    return {"runs": runs, "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def _quiet(words: Sequence[str]) -> None:
    subprocess.run(words, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
