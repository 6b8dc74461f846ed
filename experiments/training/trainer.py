"""The training loop of every method; `run` and `_step` read like the algorithm box of the paper.

A step is a pure function of the seed and the step number: its batch comes from the epoch's seeded order, and dropout is
reseeded at every step. A run that resumes, or that is the third in a process, therefore computes exactly what it would
compute alone. The global batch is formed first and then split over processes and micro-batches, so neither changes
the gradient. The gradients of all processes travel in one message after the backward pass, with the loss and any
request to stop: adapters are small, and a penalty outside the forward pass or a matrix of rank 0 would break
DistributedDataParallel's hooks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elalora.method import Round
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule, steps_of
from experiments.config.schema import BatchOrder, TrainerConfig
from experiments.data.text_items import IGNORED
from experiments.runtime.distributed import average_gradients
from experiments.runtime.seeds import stream
from experiments.runtime.signals import Stop
from experiments.training.evaluation import Evaluator, to_device
from experiments.training.progress import DataPass, Prepared, Progress, TrainState
from experiments.training.readout import NotFinite
from experiments.training.recorder import Recorder
from experiments.training.resume import Checkpoints


class Trainer:
    """Trains one prepared run.

    Args:
        prepared: model, method, data and device.
        config: the trainer's settings.
        seed: of the run.
        recorder: receives losses, scores and rank changes.
        checkpoints: of the run.
        stop: set by a signal; looked at after every step and every batch of an evaluation.
    """

    def __init__(
        self, prepared: Prepared, config: TrainerConfig, seed: int, recorder: Recorder, checkpoints: Checkpoints,
        stop: Stop | None = None,
    ) -> None:  # fmt: skip
        self.config, self.seed, self.method = config, seed, prepared.method
        self.accelerator, self.data = prepared.accelerator, prepared.splits.train.data
        self.recorder, self.checkpoints, self.stop = recorder, checkpoints, stop or Stop()
        self.increments = prepared.sequence
        self._epoch: tuple[tuple[int, int], list[list[int]]] | None = None
        self._has_encoder = bool(getattr(getattr(prepared.model, "config", None), "is_encoder_decoder", False))
        model = prepared.model.to(self.accelerator.device)
        self.data_pass: DataPass | None = None
        self.state = self._start(model, prepared.readout.metrics)
        self.model = self.accelerator.prepare_model(model, evaluation_mode=True)  # mixed precision only, no DDP
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.evaluator = Evaluator(
            prepared, self.model, self.state, config.batch_size, recorder, checkpoints, self.stop
        )
        self._loss_type = torch.promote_types(self.parameters[0].dtype, torch.float32)
        self._rate = config.lr
        self._norm: Tensor | None = None  # of the last step's gradient before clipping; None where nothing is clipped
        self._stop_asked: Tensor | None = None  # above 0 where any process was asked to stop before the last step

    def _start(self, model: nn.Module, metrics: list[str]) -> TrainState:
        """The state before the first step."""
        method, config, total = self.method, self.config, self.method.total_steps
        if method.batches_wanted:
            ranks = self.checkpoints.start_ranks(method, metrics) if method.capabilities.ranked else None
            self.data_pass = self._prepare(ranks)
        optimizer = RowwiseAdamW(method.groups(model, config.lr, config.weight_decay), method.directions())
        stages = joint_stages(method.stages(), self.increments.stages)
        warmup = steps_of(config.warmup, min(stages), "trainer.warmup")
        schedule = Schedule(optimizer, total, warmup, config.schedule, stages)
        progress = Progress(self.checkpoints.run_id, initial=method.count(), peak=method.count())
        progress.seconds[0] += self.data_pass.seconds if self.data_pass else 0.0
        return TrainState(model, method, optimizer, schedule, progress, total, method.ranks())

    def _prepare(self, ranks: dict[str, int] | None) -> DataPass:
        """Lets the method read the batches of the first epoch, unless an earlier attempt found these ranks."""
        sizes: list[int] = []
        began = time.perf_counter()
        self.method.prepare(self._first_epoch(0, sizes), ranks)
        return DataPass(time.perf_counter() - began, len(sizes), sum(sizes))

    def _first_epoch(self, number: int, sizes: list[int] | None = None) -> Iterator[dict[str, Tensor]]:
        """The batches of the first epoch of an increment that the run will train on; their sizes go to `sizes`."""
        for items in self._epoch_of(number, 0)[: self.increments.stages[number]]:  # an item seen twice is two points
            if sizes is not None:
                sizes.append(len(items))
            yield self._batch(items)

    def resume(self) -> None:
        """Resumes from the newest valid checkpoint, or writes the ranks at the start where there is none."""
        if self.checkpoints.resume(self.state, self.evaluator.readout.metrics):
            kind, device = self._loss_type, self.accelerator.device
            self.state.losses = [torch.tensor(v, dtype=kind, device=device) for v in self.state.progress.losses]
            return
        if self.method.capabilities.ranked:
            self.recorder.start(self.method.ranks(), self.method.start_scores)
        if self.data_pass is not None:
            self.recorder.data_pass(self.data_pass)

    def run(self) -> None:
        """Trains from where `resume` left it to the end.

        Raises:
            Preempted: asked to stop; a checkpoint was written.
        """
        state, evaluator = self.state, self.evaluator
        evaluator.read_untrained()
        self.model.train()
        due = evaluator.steps(self.config.evaluations)
        if state.progress.unread is not None:
            self._read(state.progress.unread)
        for step in range(state.step, state.total):
            began = time.perf_counter()
            state.losses.append(self._step(step))
            if self._logged(step) and self.accelerator.device.type == "cuda":
                torch.cuda.synchronize()  # so that step times measure the work, not the launch
            state.step_seconds.append(time.perf_counter() - began)
            state.progress.seconds[0] += state.step_seconds[-1]
            state.step = step + 1
            self._log(step)
            if step + 1 in due or self.increments.ends_before(step + 1):
                self._read(step)
            if self._must_stop(step):
                self.checkpoints.preempt(state, self.stop)
            if self.checkpoints.due(state):
                self.checkpoints.save(state)
        state.finishing = True
        evaluator.read_best()
        self.method.finish()

    def _read(self, step: int) -> None:
        """Reads what is due after a step: the selection split, or an increment that ended, after which the next begins.

        A run that is stopped while it reads resumes here.
        """
        if not self.increments.ends_before(step + 1):
            self.evaluator.choose(step)
            return
        number = self.increments.at(step)
        self.evaluator.read_increment(number, step)
        self._record(self.method.begin_increment(number + 1, step, self.state.optimizer, self._first_epoch(number + 1)))

    def _step(self, step: int) -> Tensor:
        """One optimizer step: forward, backward, clip, method, optimizer, schedule, method."""
        optimizer, schedule = self.state.optimizer, self.state.schedule
        torch.manual_seed(stream(self.seed, f"dropout:{step}:{self.accelerator.process_index}"))
        loss = self._average(self._backward(step))
        limit = self.config.max_grad_norm
        self._norm = None if limit is None else nn.utils.clip_grad_norm_(self.parameters, limit)
        self._refuse_not_finite(step, loss, self._norm)
        self._rate = float(optimizer.param_groups[0]["lr"])
        self.method.gradients_ready(step)
        optimizer.step()
        schedule.at(step + 1)
        self._record(self.method.after_step(step, optimizer, schedule))
        optimizer.zero_grad(set_to_none=True)
        return loss

    def _record(self, moved: Round | None) -> None:
        """Writes a change of ranks, if there was one, and counts it."""
        if moved is not None:
            progress = self.state.progress
            progress.moved += len(moved.grown) or len(moved.pruned)
            progress.peak = max(progress.peak, self.method.count(), key=lambda c: (c.params, c.rank_sum))
            self.recorder.round(moved)

    def _backward(self, step: int) -> Tensor:
        """Accumulates the gradient of the global batch's mean loss plus the method's penalty; returns the loss, ()."""
        indices = self._items(step)
        share = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.config.micro_batch or max(1, len(share))
        chunks = [share[i : i + size] for i in range(0, len(share), size)] or [indices[:1]]
        total = torch.zeros((), dtype=self._loss_type, device=self.accelerator.device)
        for number, chunk in enumerate(chunks):
            # the loss is a mean over the chunk; the weight makes the sum over chunks that of the global batch, and
            # gradients are averaged over processes
            share_of_batch = self.data.weight(chunk) * self.accelerator.num_processes / self.data.weight(indices)
            weight = share_of_batch if share else 0.0
            # before the forward pass, so that its gradients are made last and added to the others in place
            penalty = self.method.penalty() if number == len(chunks) - 1 else None
            batch = self._batch(chunk)
            # a process without a share runs one item, which the method does not see
            with self.method.watching(*self._masks(batch)) if share else nullcontext():
                loss = self._loss(batch, step) * weight
            total += loss.detach()
            self.accelerator.backward(loss if penalty is None else loss + penalty)
        return total

    def _loss(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """The model's own loss, (), or in a sequence the cross-entropy over the outputs of the step's increment."""
        outputs = self.increments.parts[self.increments.at(step)].outputs
        if outputs is None:
            return self.model(**batch).loss
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        chosen = torch.tensor(outputs, device=batch["labels"].device)
        return F.cross_entropy(self.model(**inputs).logits[:, chosen], torch.searchsorted(chosen, batch["labels"]))

    def _average(self, loss: Tensor) -> Tensor:
        """Averages gradients and loss over the processes, and shares whether one was asked to stop."""
        if self.accelerator.num_processes > 1:
            grads = [p.grad for p in self.parameters if p.grad is not None]
            loss, self._stop_asked = average_gradients(grads, loss, self.stop.signal is not None)
        return loss

    def _refuse_not_finite(self, step: int, loss: Tensor, norm: Tensor | None) -> None:
        """Checks every step on the CPU, where it is free, and with each logged loss elsewhere."""
        if self.accelerator.device.type != "cpu" and not self._logged(step):
            return
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if value is not None and not torch.isfinite(value):
                raise NotFinite(f"{name} is {value.item()} at step {step}; lower trainer.lr ({self.config.lr})")

    def _items(self, step: int) -> list[int]:
        """Item numbers of a step's global batch."""
        number, epoch, position = self.increments.place(step, self.config.batch_size)
        return self._epoch_of(number, epoch)[position]

    def _epoch_of(self, number: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch of an increment."""
        if self._epoch is None or self._epoch[0] != (number, epoch):
            size, by_length = self.config.batch_size, self.config.batches == BatchOrder.length
            lengths = np.asarray(self.data.lengths)
            batches = self.increments.batches(lengths, size, self.seed, number, epoch, by_length)
            self._epoch = ((number, epoch), batches)
        return self._epoch[1]

    def _batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return to_device(self.data.batch(indices), self.accelerator.device)

    def _masks(self, batch: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Masks of the input's and, with an encoder, the decoder input's tokens: 0 at padding, (b, length)."""
        labels = batch["labels"]
        return batch.get("attention_mask"), labels != IGNORED if self._has_encoder and labels.ndim == 2 else None

    def _log(self, step: int) -> None:
        """Every `log_every` steps: the mean training loss since the last line, this step's rate and gradient norm."""
        if not self._logged(step):
            return
        losses = self.state.losses
        seconds = self.state.step_seconds[-len(losses) :]
        values = {"loss": float(torch.stack(losses).mean()), "lr": self._rate}
        if self._norm is not None:
            values["grad_norm"] = float(self._norm)
        losses.clear()
        self.recorder.training(self.state, values, sum(seconds) / max(1, len(seconds)))

    def _logged(self, step: int) -> bool:
        return (step + 1) % self.config.log_every == 0 or step + 1 == self.state.total

    def _must_stop(self, step: int) -> bool:
        """Whether a signal asked to stop; several processes learn of each other's signals with the last gradients."""
        if self._stop_asked is None:
            return self.stop.signal is not None
        return (self.accelerator.device.type == "cpu" or self._logged(step)) and bool(self._stop_asked > 0)


def joint_stages(*stages: Sequence[int]) -> tuple[int, ...]:
    """The stages between all ends of several divisions of one run."""
    ends = sorted({end for division in stages for end in accumulate(division)})
    return tuple(b - a for a, b in pairwise([0, *ends]))
