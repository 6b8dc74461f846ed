"""What a run cost, as result.json has it: time, memory, operations, tokens and sizes."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from elalora.errors import first_line
from experiments.data.batches import train_batches
from experiments.data.increments import data_seed
from experiments.runs.plan import Plan
from experiments.runtime.distributed import print_once
from experiments.runtime.flops import CPU_ATTENTION, counting
from experiments.training.evaluation import to_device

if TYPE_CHECKING:
    from experiments.training.progress import Prepared, TrainState


def cost_of(plan: Plan, prepared: Prepared, state: TrainState) -> dict[str, Any]:
    """The cost of a run after training (docs/store.md); what does not apply is None.

    Args:
        plan: of the run; prepared: what it trained.
        state: after training.
    """
    seconds = state.progress.seconds
    return {
        "step_seconds_median": statistics.median(state.step_seconds) if state.step_seconds else None,
        "train_seconds": seconds[0],
        **_data_pass(plan),
        "eval_seconds": seconds[1],
        "peak_memory_mib": _peak_memory(),
        "adapter_bytes": _size(plan.folder.path / "adapter"),
        "optimizer_bytes": optimizer_bytes(state.optimizer),
        "train_tokens": _tokens(plan, prepared),
        "step_flops": _step_flops_or_none(plan, prepared),
    }


def _data_pass(plan: Plan) -> dict[str, Any]:
    """What the method read before the first step, and the seconds of the training time that this took."""
    first = next(iter(plan.folder.lines("timing.jsonl")), {})
    return {name: value for name, value in first.items() if name.startswith("data_pass_")}


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that the optimizer keeps beside the parameters: moments and step counters."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def tokens_trained(lengths: np.ndarray, batch_size: int, seed: int, steps: int, by_length: bool) -> int:
    """Tokens of the inputs of all training steps, padding not counted; an item counts each time it is seen.

    Args:
        lengths: tokens of every item, (n,).
        batch_size, seed, by_length: of the order of items (`train_batches`).
        steps: of the run.
    """
    per_epoch = -(-len(lengths) // batch_size)
    epochs, rest = divmod(steps, per_epoch)
    last = train_batches(lengths, batch_size, seed, epochs, by_length)[:rest]
    return epochs * int(lengths.sum()) + sum(int(lengths[batch].sum()) for batch in last)


def _tokens(plan: Plan, prepared: Prepared) -> int | None:
    config, lengths = plan.config, np.asarray(prepared.splits.train.data.lengths)
    if config.task.kind == "image":
        return None
    size, by_length = config.trainer.batch_size, config.trainer.batches == "length"
    return sum(
        tokens_trained(lengths[part.items], size, data_seed(config.seed, number), part.end - part.start, by_length)
        for number, part in enumerate(prepared.sequence.parts)
    )


def _step_flops_or_none(plan: Plan, prepared: Prepared) -> int | None:
    """`step_flops`; None where torch cannot count an operation of the model, which must not cost a trained run."""
    try:
        return step_flops(plan, prepared)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        print_once(f"elalora: the operations of a step were not counted: {first_line(error)}", error=True)
        prepared.model.zero_grad(set_to_none=True)
        return None


def step_flops(plan: Plan, prepared: Prepared) -> int:
    """Operations of the forward and backward pass of the run's first batch, with the ranks at the end.

    The batch is the same for all arms of a seed. Neither parameters nor random states change.
    """
    config, items, accelerator = plan.config.trainer, prepared.splits.train.data, prepared.accelerator
    lengths, by_length = np.asarray(items.lengths), config.batches == "length"
    first = prepared.sequence.batches(lengths, config.batch_size, plan.config.seed, 0, 0, by_length)[0]
    size = config.micro_batch or math.ceil(len(first) / accelerator.num_processes)
    model = prepared.model.eval()
    with counting(CPU_ATTENTION) as counter:
        for i in range(0, len(first), size):
            penalty = prepared.method.penalty() if i == 0 else None
            with accelerator.autocast():
                loss = model(**to_device(items.batch(first[i : i + size]), accelerator.device)).loss
            (loss if penalty is None else loss + penalty).backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def _peak_memory() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
