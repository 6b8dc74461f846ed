"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.bench.report import TARGETS, machine, table
from experiments.bench.shapes import SHAPES
from experiments.bench.timing import interleaved, ratio
from experiments.runtime.memory import use_cpu
from experiments.runtime.pipes import as_command


def main() -> None:
    """Measures one shape and prints or writes what was found."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description="What adaptivity costs.")
    parser.add_argument("--shape", choices=[*SHAPES, "optimizer"], default="minilm")
    parser.add_argument("--length", type=int, help="tokens, or the side of an image")
    parser.add_argument("--batch", type=int, help="items")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1, help="steps in a block; 20 hold a round of ElaLoRA's")
    parser.add_argument("--arms", help="only these, separated by commas")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="10 blocks: minutes, wide intervals")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    use_cpu(options.threads)
    blocks = 10 if options.quick else options.blocks
    found = _optimizer(blocks) if options.shape == "optimizer" else measure(options, blocks)
    found |= {
        "machine": machine(),
        "arguments": {k: str(v) for k, v in vars(options).items() if v is not None and k != "out"},
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found) if "ratios" in found else json.dumps(found, indent=1))


def measure(options: argparse.Namespace, blocks: int) -> dict[str, Any]:
    """Steps of all arms at one shape, their ratios and their counted memory."""
    from experiments.bench import arms
    from experiments.bench.flops import counted_flops
    from experiments.bench.memory import counted
    from experiments.bench.shapes import build, make_batch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = SHAPES[options.shape]
    batch = make_batch(shape, options.batch or shape.batch, options.length or shape.length, device)
    model = build(shape.name).to(device)
    setting = arms.Setting(shape, model, batch, options.rank, options.bf16, options.compile)
    r = options.rank
    makers: dict[str, Callable[[], arms.Arm]] = {
        "LoRA": lambda: arms.ours(setting, "lora"),
        "SVD-LoRA": lambda: arms.ours(setting, "svd_lora"),
        "ElaLoRA": lambda: arms.ours(setting, "elalora", interval=arms.INTERVAL),
        "AdaLoRA": lambda: arms.ours(setting, "adalora", interval=arms.INTERVAL, init_rank=-(-3 * r // 2)),
        "pruned AdaLoRA": lambda: arms.ours(
            setting, "adalora", interval=arms.INTERVAL, init_rank=-(-3 * r // 2), final=True, compact=True
        ),
        "LoRA at 1.5 r": lambda: arms.ours(setting, "lora", rank=-(-3 * r // 2)),
        "SoRA": lambda: arms.ours(setting, "sora"),
        "LoRA at 2 r": lambda: arms.ours(setting, "lora", rank=2 * r),
        "PRILoRA": lambda: arms.ours(setting, "prilora"),
        "PEFT LoRA": lambda: arms.peft(setting),
        "PEFT AdaLoRA": lambda: arms.peft(setting, adalora=True),
        "full fine-tuning": lambda: arms.full(setting),
        "frozen backbone": lambda: arms.head_only(setting, to_input=True),
    }
    chosen = options.arms.split(",") if options.arms else list(makers)
    made = {name: makers[name]() for name in chosen}
    steps: dict[str, Callable[[], Any]] = {name: arm.step for name, arm in made.items()}
    if "frozen backbone" in made:
        steps["bare products"] = arms.bare_products(setting)
    seconds = interleaved(steps, blocks, options.repeats)
    if "frozen backbone" in made:
        pairs = zip(seconds["frozen backbone"], seconds["bare products"], strict=True)
        seconds["floor"] = [a + b for a, b in pairs]
    flops = {name: counted_flops(arm) for name, arm in made.items()}
    ratios = [
        {"what": f"{a} / {b}", "target": target, **ratio(seconds[a], seconds[b])._asdict()}
        | ({"flops": flops[a] / flops[b]} if a in flops and b in flops else {})
        for a, b, target in TARGETS
        if a in seconds and b in seconds
    ]
    return {
        "milliseconds": {name: _spread(values) for name, values in seconds.items()},
        "ratios": ratios,
        "flops": flops,
        "bytes": {name: counted(arm) for name, arm in made.items()},
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return {"median": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}


def _optimizer(blocks: int) -> dict[str, Any]:
    from experiments.bench.optimizer import SHAPES as MATRICES
    from experiments.bench.optimizer import optimizers

    return {"optimizers": [optimizers(shape, rank, blocks, 5) for shape in MATRICES for rank in (4, 8)]}


if __name__ == "__main__":
    as_command(main)
