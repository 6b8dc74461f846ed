"""What the harness adds to training: seconds of a whole run over the seconds of its bare steps.

    python -m experiments.bench.epoch task=rte method=lora

WORDS are those of run.py. A run goes from its configuration to its result: data, model, one epoch, evaluations,
checkpoints, export. Its bare steps are forward, backward, clipping, optimizer and the method's hooks, on the same
batches, prepared in advance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule, steps_of
from experiments.bench.arms import Loop
from experiments.bench.report import save, without_folders
from experiments.bench.timing import ratio, seconds_of
from experiments.config.compose import compose_run
from experiments.config.explain import in_one_line
from experiments.config.schema import BatchOrder
from experiments.data.batches import train_batches
from experiments.runs.plan import Plan, make_plan
from experiments.runtime.memory import use_cpu
from experiments.runtime.seeds import stream


def main() -> None:
    """Measures and prints the ratio."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.epoch", description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="as for run.py")
    parser.add_argument("--blocks", type=int, default=5, help="runs to measure (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the measurements as JSON")
    options = parser.parse_intermixed_args()
    use_cpu(options.threads)
    words = ["trainer=standard", f"trainer.epochs={options.epochs}", f"threads={options.threads}", *options.words]
    with in_one_line(words):
        measured = end_to_end(words, options.blocks)
    save(measured | {"words": without_folders(words)}, options.out)
    print(json.dumps(measured, indent=1))


def end_to_end(words: Sequence[str], blocks: int) -> dict[str, Any]:
    """Seconds of a whole run over those of its bare steps.

    Returns:
        ratio (median, low, high), seconds of both in every block, and the costs that the last run recorded.
    """
    from experiments.runs.run import run

    whole, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(compose_run([*words, "trainer.max_steps=1", f"store.root={folder}/first"]))
        run(plan)  # imports, tokenised data
        for block in range(blocks):
            plan = make_plan(compose_run([*words, f"store.root={folder}/{block}"]))
            whole.append(seconds_of(partial(run, plan)))
            bare.append(seconds_of(bare_steps(plan)))
        finished = plan.finished()
        assert finished is not None
        recorded = finished.result()["cost"]
    return {
        "what": "a run of one epoch / its bare steps",
        "target": 1.10,
        **ratio(whole, bare)._asdict(),
        "seconds": {"run": whole, "bare steps": bare},
        "recorded": recorded,
    }


def bare_steps(plan: Plan) -> Callable[[], None]:
    """Prepares the batches of one epoch; the returned call runs their steps and nothing else."""
    from experiments.runs.prepare import prepare

    prepared = prepare(plan)
    model, method, items = prepared.model, prepared.method, prepared.splits.train.data
    trainer, total = plan.config.trainer, method.total_steps
    optimizer = RowwiseAdamW(method.groups(model, trainer.lr, trainer.weight_decay), method.directions())
    schedule = Schedule(optimizer, total, steps_of(trainer.warmup, total, "trainer.warmup"), trainer.schedule)
    loop = Loop(method, model, optimizer, schedule, trainer.max_grad_norm)
    order = train_batches(
        items.lengths, trainer.batch_size, stream(plan.config.seed, "data"), 0, trainer.batches == BatchOrder.length
    )
    model.train()
    torch.manual_seed(plan.config.seed)
    batches = [items.batch(indices) for indices in order]

    def steps() -> None:
        for batch in batches:
            loop.step(batch)

    return steps


if __name__ == "__main__":
    main()
