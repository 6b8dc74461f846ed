"""Measures one training step of every method, stock PEFT and full fine-tuning: time, operations and memory."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import torch

from baselines.registry import METHODS, method_class
from experiments.bench import arms
from experiments.bench.counting import counted_flops, peak_bytes
from experiments.bench.report import TARGETS, save, table
from experiments.bench.shapes import SHAPES, build, make_batch
from experiments.bench.timing import interleaved, ratio
from experiments.runtime.memory import use_cpu
from experiments.runtime.pipes import as_command

RANKED = [name for name in METHODS if method_class(name).capabilities.budget != "none"]
METHOD_PAIRS = [(name, "lora", 1.10) for name in RANKED if name != "lora"]


def main() -> None:
    """Measures one shape and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__)
    parser.add_argument("--shape", choices=[*SHAPES], default="minilm", help="architecture (default: %(default)s)")
    parser.add_argument("--length", type=int, help="tokens per text, or pixels per side of an image")
    parser.add_argument("--batch", type=int, help="items per batch")
    parser.add_argument("--rank", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--blocks", type=int, default=100, help="timed blocks of every arm (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="steps per block; 20 include a round of ElaLoRA")
    parser.add_argument("--arms", metavar="A,B", help="measure these arms only")
    parser.add_argument("--methods", action="store_true", help="every method that has ranks, beside LoRA")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers, to try a command; times mean nothing")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="10 blocks: minutes, with wide intervals")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the measurements as JSON")
    options = parser.parse_args()
    use_cpu(options.threads)
    measured = measure(options, 10 if options.quick else options.blocks)
    arguments = {name: str(value) for name, value in vars(options).items() if value is not None and name != "out"}
    save(measured | {"arguments": arguments}, options.out)
    print(table(measured))


def measure(options: argparse.Namespace, blocks: int) -> dict[str, Any]:
    """Times the steps of all arms at one shape and counts their operations and bytes.

    Returns:
        milliseconds, flops and bytes by arm, and the ratios of `TARGETS`, or of every method to LoRA.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = SHAPES[options.shape]
    batch = make_batch(shape, options.batch or shape.batch, options.length or shape.length, device)
    setting = arms.Setting(
        shape, build(shape.name, options.tiny).to(device), batch, options.rank, options.bf16, options.compile
    )
    makers, pairs = (_every_method(setting), METHOD_PAIRS) if options.methods else (_makers(setting), TARGETS)
    chosen = options.arms.split(",") if options.arms else list(makers)
    made = {name: makers[name]() for name in chosen}
    steps: dict[str, Callable[[], Any]] = {name: arm.step for name, arm in made.items()}
    if "frozen backbone" in made:
        steps["bare products"] = arms.bare_products(setting)
    seconds = interleaved(steps, blocks, options.repeats)
    if "frozen backbone" in made:
        seconds["floor"] = list(map(add, seconds["frozen backbone"], seconds["bare products"]))
    flops = {name: counted_flops(arm) for name, arm in made.items()}
    ratios = [
        {"what": f"{a} / {b}", "target": target, **ratio(seconds[a], seconds[b])._asdict()}
        | ({"flops": flops[a] / flops[b]} if a in flops and b in flops else {})
        for a, b, target in pairs
        if a in seconds and b in seconds
    ]
    return {
        "milliseconds": {name: _spread(values) for name, values in seconds.items()},
        "ratios": ratios,
        "flops": flops,
        "bytes": {name: peak_bytes(arm) for name, arm in made.items()},
    }


def _makers(setting: arms.Setting) -> dict[str, Callable[[], arms.Arm]]:
    """How to build each arm, by name."""
    start = -(-3 * setting.rank // 2)
    ours = partial(partial, arms.ours, setting)
    adalora = partial(ours, "adalora", interval=arms.INTERVAL, init_rank=start)
    return {
        "LoRA": ours("lora"),
        "SVD-LoRA": ours("svd_lora"),
        "ElaLoRA": ours("elalora", interval=arms.INTERVAL),
        "AdaLoRA": adalora(),
        "pruned AdaLoRA": adalora(final=True, compact=True),
        "LoRA at 1.5 r": ours("lora", rank=start),
        "SoRA": ours("sora"),
        "LoRA at 2 r": ours("lora", rank=2 * setting.rank),
        "PRILoRA": ours("prilora"),
        "PEFT LoRA": partial(arms.peft, setting),
        "PEFT AdaLoRA": partial(arms.peft, setting, adalora=True),
        "full fine-tuning": partial(arms.full, setting),
        "frozen backbone": partial(arms.frozen_backbone, setting),
    }


def _every_method(setting: arms.Setting) -> dict[str, Callable[[], arms.Arm]]:
    """Every method that has ranks, at its defaults and between two of its rounds."""
    return {name: partial(arms.ours, setting, name) for name in RANKED}


def _spread(seconds: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {"median": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}


if __name__ == "__main__":
    as_command(main)
