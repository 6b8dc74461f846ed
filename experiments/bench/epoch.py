"""What the harness adds to training, and what its batches save: `python -m experiments.bench.epoch WORDS ...`

    python -m experiments.bench.epoch task=rte method=lora                      a whole run against its bare steps
    python -m experiments.bench.epoch task=rte method=lora --padded 256         our batches against padded ones
    python -m experiments.bench.epoch task=rte method=lora --padded 0 --epochs 3 --blocks 5     and their scores

The words are those of run.py. A run goes from its configuration to its result: data, model, one epoch, evaluations,
checkpoints, export. Its bare steps are forward, backward, clipping, optimizer and hooks on the same batches, made
beforehand. Padded batches are drawn in random order and filled to one length, as the official scripts do; 0 fills them
to their longest item only, which gives the same scores sooner, because what is padded is masked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule, steps_of
from experiments.bench.arms import Loop
from experiments.bench.timing import one_thread, ratio
from experiments.runtime.memory import use_cpu

PLACES = ("data.root=", "store.root=")  # of this machine only
EPOCH = ["trainer=standard"]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.epoch", description="A whole epoch.")
    parser.add_argument("words", nargs="*", help="as for run.py")
    parser.add_argument("--blocks", type=int, default=5, help="whole runs, or with --padded seeds")
    parser.add_argument("--padded", type=int, help="tokens of every item; 0: of the longest in its batch")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    use_cpu(options.threads)
    words = [*EPOCH, f"trainer.epochs={options.epochs}", f"threads={options.threads}", *options.words]
    if options.padded is not None:
        longest = _plan(words).config.task.max_length
        if 0 < options.padded < longest:
            parser.error(f"--padded {options.padded} would cut items; type --padded {longest} or task.max_length=...")
        found = batching(words, options.padded, options.blocks)
    else:
        found = end_to_end(words, options.blocks)
    from experiments.bench.report import machine

    found |= {"machine": machine(), "words": [word for word in words if not word.startswith(PLACES)]}
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k not in ("machine", "words")}, indent=1))


# -- a run against its steps ---------------------------------------------------------------------------------


def end_to_end(words: Sequence[str], blocks: int) -> dict[str, Any]:
    """Seconds of a whole run over those of its bare steps.

    Returns:
        ratio (median, low, high), seconds of both in every block, and the parts that the last run recorded itself.
    """
    from experiments.runs.run import run

    whole, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        run(_plan([*words, "trainer.max_steps=1", f"store.root={folder}/first"]))  # imports, tokenised data
        for block in range(blocks):
            plan = _plan([*words, f"store.root={folder}/{block}"])
            whole.append(_timed(partial(run, plan)))
            bare.append(_bare(_plan([*words, f"store.root={folder}/bare"])))
        result = plan.finished().result()
    return {
        "what": "a run of one epoch / its bare steps",
        "target": 1.10,
        **ratio(whole, bare)._asdict(),
        "seconds": {"run": whole, "bare steps": bare},
        "recorded": result["cost"],
    }


def _bare(plan: Any) -> float:
    """Seconds of the steps of one epoch, with their batches ready."""
    run = _Run(plan)
    batches = [run.train.data.batch(indices) for indices in run.order(shuffled=False)]

    def all_steps() -> None:
        for batch in batches:
            run.loop.step(batch)

    return _timed(all_steps)


# -- our batches against padded ones -------------------------------------------------------------------------


def batching(words: Sequence[str], length: int, seeds: int) -> dict[str, Any]:
    """Training with our batches and with batches padded to `length`, in turn by tenths of an epoch, for some seeds.

    Returns:
        ratio of the tenths' seconds (median, low, high), seconds of both over all seeds, and both scores per seed, with
        the mean of their differences and its 95 % interval (Student's; None for one seed).
    """
    ours: list[float] = []
    padded: list[float] = []
    scores = []
    for seed in range(seeds):
        first, second = (_Run(_plan([*words, f"seed={seed}"])) for _ in range(2))
        for epoch in range(int(first.config.trainer.epochs)):
            pairs = zip(
                _tenths(first.order(shuffled=False, epoch=epoch)),
                _tenths(second.order(shuffled=True, epoch=epoch)),
                strict=True,
            )
            for mine, theirs in pairs:
                ours.append(_timed(partial(first.train_on, mine)))
                padded.append(_timed(partial(second.train_on, theirs, length)))
        scores.append((first.score(), second.score()))
        print(f"seed {seed}: {scores[-1][0]:.2f} with our batches, {scores[-1][1]:.2f} padded", file=sys.stderr)
    return {
        "what": f"an epoch with our batches / {f'padded to {length}' if length else 'in random order'}",
        "target": 0.45 if length else None,
        **ratio(ours, padded)._asdict(),
        "seconds of all epochs": {"ours": sum(ours), "padded": sum(padded)},
        "scores": {"ours": [one for one, _ in scores], "padded": [two for _, two in scores]},
        "difference of scores": _mean_difference([one - two for one, two in scores]),
    }


def _mean_difference(differences: list[float]) -> dict[str, float | None]:
    low = high = None
    if len(differences) > 1:
        from scipy.stats import ttest_1samp

        low, high = (float(edge) for edge in ttest_1samp(differences, 0).confidence_interval())
    return {"mean": statistics.mean(differences), "low": low, "high": high}


def _tenths(order: list[list[int]]) -> list[list[list[int]]]:
    edges = [round(i * len(order) / 10) for i in range(11)]
    return [order[a:b] for a, b in pairwise(edges)]


class _Run:
    """A run's model, data and optimizer, and the plain loop over them."""

    def __init__(self, plan: Any) -> None:
        from experiments.runs.prepare import prepare
        from experiments.training.readout import make_readout

        _, _, processor, self.train, self.select, self.report, self.model, self.method = prepare(plan)
        self.config, self.seed = plan.config, plan.config.seed
        self.readout = make_readout(plan.config.task, processor, self.model)
        trainer, total = self.config.trainer, self.method.total_steps
        groups = self.method.groups(self.model, trainer.lr, trainer.weight_decay)
        optimizer = RowwiseAdamW(groups, self.method.directions())
        schedule = Schedule(optimizer, total, steps_of(trainer.warmup, total, "trainer.warmup"), trainer.schedule)
        self.loop = Loop(self.method, self.model, optimizer, schedule, trainer.max_grad_norm)
        self.model.train()
        torch.manual_seed(self.seed)

    def order(self, shuffled: bool, epoch: int = 0) -> list[list[int]]:
        """Batches of an epoch: the harness's, or items in random order."""
        from experiments.data.batches import train_batches
        from experiments.runtime.seeds import stream

        lengths = self.train.data.lengths
        return train_batches(
            lengths * 0 if shuffled else lengths, self.config.trainer.batch_size, stream(self.seed, "data"), epoch
        )

    def train_on(self, part: list[list[int]], length: int | None = None) -> None:
        """Makes the batches and steps on them."""
        for indices in part:
            batch = self.train.data.batch(indices)
            self.loop.step(batch if length is None else _filled(batch, length))

    def score(self) -> float:
        """The task's first metric on the split that tables report."""
        from experiments.data.batches import eval_batches

        self.model.eval()
        data, rows = self.report.data, []
        with torch.inference_mode():
            for indices in eval_batches(data.lengths, 64):
                rows += self.readout.read(self.model, data, indices, data.batch(indices))
        scores, _ = self.readout.score(sorted(rows, key=lambda row: row[0]))
        return float(scores[self.readout.metrics[0]])


def _filled(batch: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """A batch of texts with at least `length` tokens: what is added is masked, so its id does not matter."""
    return {
        name: nn.functional.pad(t, (0, max(0, length - t.shape[1]))) if name != "labels" else t
        for name, t in batch.items()
    }


def _plan(words: Sequence[str]) -> Any:
    from experiments.config.compose import compose_run
    from experiments.runs.plan import make_plan

    return make_plan(compose_run(words))


def _timed(work: Callable[[], Any]) -> float:
    clock = time.process_time if one_thread() else time.perf_counter
    began = clock()
    work()
    return clock() - began


if __name__ == "__main__":
    main()
