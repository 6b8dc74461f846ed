"""The one loop that trains every method; it reads like the algorithm box of the paper.

What is unusual: a step is a pure function of the seed and the step number. Its batch comes from the epoch's seeded
order, and the dropout stream is seeded anew at every step, so a run that resumes, or that is the third in a
process, computes exactly what it would have computed alone. The global batch is formed first and then split
over processes and micro-batches, so both leave the gradient what it was. The gradients of all processes travel in one
message after the backward pass, with the loss and the wish to stop: adapters are small, and a penalty outside the
forward pass or a matrix without ranks would confuse hooks on parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from elalora.budget import Count
from elalora.method import Method, Round
from elalora.optim import RowwiseAdamW
from elalora.schedules import Schedule, steps_of
from experiments.config.schema import TrainerConfig
from experiments.data.batches import eval_batches, train_batches
from experiments.data.text_items import IGNORED
from experiments.runtime.distributed import average_gradients, gather, run_everywhere, run_on_main
from experiments.runtime.seeds import stream
from experiments.runtime.signals import Preempted, Stop
from experiments.store.folder import RunFolder
from experiments.training import checkpoint
from experiments.training.outcome import Mirror, Outcome, Reading, Split, Watcher
from experiments.training.readout import NotFinite, Readout, Row
from experiments.training.resume import Checkpoints

BEAT_SECONDS = 60  # a long evaluation says that it is alive
PREPARE_BATCHES = 8  # training batches that a data-driven start is given
BEST_WINDOW = 0.25  # last part of a run from which the best checkpoint of any arm may come


def run_length(config: TrainerConfig, items: int) -> int:
    """Optimizer steps T of a run over this many items."""
    if config.max_steps is not None:
        return config.max_steps
    return max(1, math.ceil(config.epochs * math.ceil(items / config.batch_size)))


class Trainer:
    """One run's training.

    Args:
        config: the trainer's settings; seed: the run's.
        readout: how the task's outputs are read and scored.
        method: attached to `model`.
        model: with adapters in place.
        train, select: training items, and the split that chooses (None: nothing is chosen).
        report: the split that is reported.
        folder: where lines and checkpoints go.
        accelerator: device, precision and processes.
        checkpoint_every: steps between two checkpoints; 0 writes one only when the run is asked to stop.
        run_id: written into checkpoints, so that those of another run are refused.
        stop: set by a signal, looked at after every step and every batch of an evaluation.
    """

    def __init__(
        self,
        config: TrainerConfig,
        readout: Readout,
        seed: int,
        method: Method,
        model: nn.Module,
        train: Split,
        select: Split | None,
        report: Split,
        folder: RunFolder,
        accelerator: Accelerator,
        watcher: Watcher,
        mirror: Mirror,
        checkpoint_every: int = 0,
        run_id: str = "",
        stop: Stop | None = None,
    ) -> None:
        self.config, self.readout, self.seed, self.method = config, readout, seed, method
        self.train_split, self.select, self.report = train, select, report
        self.folder, self.accelerator, self.watcher, self.mirror = folder, accelerator, watcher, mirror
        self.checkpoint_every, self.stop = checkpoint_every, stop or Stop()
        self.checkpoints = Checkpoints(folder, run_id, method, readout.metrics)
        self.total = run_length(config, len(train.data))
        self.bare = model.to(accelerator.device)
        self._shown_loss = math.nan
        self._epoch: tuple[int, list[list[int]]] | None = None
        self._pending: list[Tensor] = []  # losses since the last line of metrics.jsonl
        if method.batches_wanted:
            first = [self._batch(step) for step in range(min(self.total, PREPARE_BATCHES))]
            method.prepare([self._to_device(train.data.batch(indices)) for indices in first])
        self.optimizer = RowwiseAdamW(method.groups(model, config.lr, config.weight_decay), method.directions())
        shortest = min(method.stages())
        warmup = steps_of(config.warmup, shortest, "trainer.warmup")
        self.schedule = Schedule(self.optimizer, self.total, warmup, config.schedule, method.stages())
        self.model = accelerator.prepare_model(model, evaluation_mode=True)  # precision only: gradients are ours
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.outcome = Outcome(initial=method.count(), peak=method.count())
        self.moved = 0
        self._steps = 0  # done so far
        self._unread: int | None = None  # step after which the selection split is to be read and was not yet
        self._finishing = False  # the weights are no longer those of a checkpoint
        self._saved: int | None = None  # step of the newest checkpoint
        self._loss_type = torch.promote_types(self.parameters[0].dtype, torch.float32)
        self._wished: Tensor | None = None  # above 0 where a process was asked to stop before the last step

    # -- the algorithm ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Trains from where `resume` left it to the end.

        Raises:
            Preempted: asked to stop; a checkpoint is there.
        """
        self.model.train()
        due = self._evaluation_steps()
        if self._unread is not None:
            self._choose(self._unread)
        for step in range(self._steps, self.total):
            began = time.perf_counter()
            self._pending.append(self._step(step))
            if self._logged(step):
                self._wait()
            self.outcome.step_seconds.append(time.perf_counter() - began)
            self.outcome.train_seconds += self.outcome.step_seconds[-1]
            self._steps = step + 1
            self._log(step, self._pending)
            if step + 1 in due:
                self._choose(step)
            if self._asked(step):
                self._preempt()
            if self.checkpoint_every and ((step + 1) % self.checkpoint_every == 0 or step + 1 == self.total):
                self._checkpoint()
        self._finishing = True
        self._read_best()
        self.method.finish()
        return self.outcome

    def _asked(self, step: int) -> bool:
        """Whether a signal asked to stop; several processes know it of each other from their last message."""
        if self._wished is None:
            return self.stop.signal is not None
        return (self.accelerator.device.type == "cpu" or self._logged(step)) and bool(self._wished > 0)

    def _preempt(self) -> None:
        """Writes a checkpoint where the weights still are those of one, and leaves."""
        if not self._finishing and (self._saved != self._steps or self._unread is not None):
            self._checkpoint()
        asked = self.stop.signal or "a signal to another process"
        raise Preempted(f"{asked} after step {self._steps} of {self.total}", self.stop.signal)

    def _logged(self, step: int) -> bool:
        return (step + 1) % self.config.log_every == 0 or step + 1 == self.total

    def _wait(self) -> None:
        """Lets a GPU finish, so that the steps' mean time is that of the work and not of its submission."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()

    def _step(self, step: int) -> Tensor:
        """Forward, backward, clip, method, optimizer, schedule, method: one optimizer step."""
        torch.manual_seed(stream(self.seed, f"dropout:{step}:{self.accelerator.process_index}"))
        loss = self._of_all(self._gradients(step))
        norm = self._clip()
        self._refuse_not_finite(step, loss, norm)
        self.method.gradients_ready(step)
        self.optimizer.step()
        self.schedule.at(step + 1)
        moved = self.method.after_step(step, self.optimizer, self.schedule)
        self.optimizer.zero_grad(set_to_none=True)
        if moved is not None:
            self._record_round(moved)
        return loss

    def _gradients(self, step: int) -> Tensor:
        """Accumulates the gradient of the global batch's mean loss plus the method's penalty."""
        indices = self._batch(step)
        share = indices[self.accelerator.process_index :: self.accelerator.num_processes]
        size = self.config.micro_batch or max(1, len(share))
        chunks = [share[i : i + size] for i in range(0, len(share), size)] or [indices[:1]]
        total = torch.zeros((), dtype=self._loss_type, device=self.accelerator.device)
        weigh = self.train_split.data.weight
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            # the loss is a mean over the chunk; the weight makes the sum over chunks that of the global batch, and
            # gradients are averaged over processes
            weight = weigh(chunk) * self.accelerator.num_processes / weigh(indices) if share else 0.0
            # before the forward pass, so that its gradients are made last and added to the others in place
            penalty = self.method.penalty() if last else None
            loss = self._forward(chunk, watch=bool(share)) * weight
            total += loss.detach()
            self.accelerator.backward(loss if penalty is None else loss + penalty)
        return total

    def _of_all(self, loss: Tensor) -> Tensor:
        """Gradients and loss as means over the processes, which also hear whether one was asked to stop."""
        if self.accelerator.num_processes > 1:
            grads = [p.grad for p in self.parameters if p.grad is not None]
            loss, self._wished = average_gradients(grads, loss, self.stop.signal is not None)
        return loss

    def _forward(self, indices: Sequence[int], watch: bool) -> Tensor:
        """The mean loss of some items; a process without a share lends one item, and nothing looks at it."""
        batch = self._to_device(self.train_split.data.batch(indices))
        with self.method.watching(*_masks(batch)) if watch else nullcontext():
            return self.model(**batch).loss

    def _clip(self) -> Tensor | None:
        if self.config.max_grad_norm is None:
            return None
        return nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)

    def _refuse_not_finite(self, step: int, loss: Tensor, norm: Tensor | None) -> None:
        """Looks every step on the CPU, where it is free, and with each logged loss elsewhere."""
        if self.accelerator.device.type != "cpu" and not self._logged(step):
            return
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if value is not None and not torch.isfinite(value):
                raise NotFinite(f"{name} is {value.item()} at step {step}; lower trainer.lr ({self.config.lr})")

    # -- data ------------------------------------------------------------------------------------------

    def _batch(self, step: int) -> list[int]:
        """Item numbers of a step's global batch."""
        per_epoch = math.ceil(len(self.train_split.data) / self.config.batch_size)
        epoch, position = divmod(step, per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            lengths = self.train_split.data.lengths
            seed = stream(self.seed, "data")
            self._epoch = (epoch, train_batches(lengths, self.config.batch_size, seed, epoch))
        return self._epoch[1][position]

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    # -- evaluation ------------------------------------------------------------------------------------

    def evaluate(self, split: Split, step: int) -> Reading:
        """Reads a split with the weights as they are; the same rows in the same order in every process."""
        began = time.perf_counter()
        self.model.eval()
        shares = gather(list(self._predict(split, step)))
        rows = sorted((row for share in shares for row in share), key=lambda row: row[0])
        self.model.train()
        self.outcome.eval_seconds += time.perf_counter() - began
        scores, collapsed = self.readout.score(rows)
        for name, value in scores.items():
            self._line("metrics.jsonl", {"step": step, "split": split.name, "metric": name, "value": value})
        self.mirror.metrics(step, split.name, scores)
        return Reading(split.name, step, scores, collapsed, rows)

    def _predict(self, split: Split, step: int) -> Iterator[Row]:
        """Rows of this process's share; one process alone may be stopped between two batches."""
        data, beaten = split.data, time.monotonic()
        batches = eval_batches(data.lengths, 2 * self.config.batch_size)
        share = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        with torch.inference_mode():
            for number, indices in enumerate(share):
                if self.stop.signal is not None and self._may_leave():
                    self._preempt()
                self.watcher.reading(split.name, number, len(share))
                if time.monotonic() - beaten > BEAT_SECONDS and self.accelerator.is_main_process:
                    beaten = time.monotonic()
                    self.folder.beat("running", step=min(step + 1, self.total), total=self.total)
                yield from self.readout.read(self.model, data, indices, self._to_device(data.batch(indices)))

    def _may_leave(self) -> bool:
        """Whether an evaluation may be left: it is one process's own, and a checkpoint holds or can hold this step."""
        return self.accelerator.num_processes == 1 and (not self._finishing or self._saved == self.total)

    def _evaluation_steps(self) -> set[int]:
        count = self.config.evaluations if self.select is not None else 0
        return {round(self.total * (i + 1) / count) for i in range(count)}

    def _choose(self, step: int) -> None:
        """Reads the selection split; a new best inside the common window is kept, to be read at the end."""
        assert self.select is not None
        self._unread = step
        chosen = self.evaluate(self.select, step)
        primary = self.readout.metrics[0]
        shown = f"{self.select.name} {primary} {chosen.metrics[primary]:.1f}"
        self.watcher.update(step + 1, self.method.phase(step), self._shown_loss, self.moved, shown)
        if step + 1 >= self.total * (1 - BEST_WINDOW) and self._within_budget():
            self._keep_better(step, chosen)
        self._unread = None

    def _keep_better(self, step: int, chosen: Reading) -> None:
        best, primary = self.outcome.best, self.readout.metrics[0]
        if best is not None and chosen.metrics[primary] <= best["select"]["metrics"][primary]:
            return
        count = self.method.count()
        self.outcome.best = {
            "step": step + 1,
            "select": _brief(chosen),
            "report": _brief(chosen) if self.select is not None and self.report.name == self.select.name else None,
            "ranks": self.method.ranks(),
            "count": {"rank_sum": count.rank_sum, "params": count.params},
        }
        if self.accelerator.is_main_process:
            self.checkpoints.save_best(step + 1, self._state())

    def _read_best(self) -> None:
        """Reads the reported split once with the chosen weights, and puts the last ones back."""
        best = self.outcome.best
        if best is None or best["report"] is not None:
            return
        found = run_on_main(lambda: self.checkpoints.best(best["step"]))
        if found is None:
            raise RuntimeError("the best checkpoint is damaged; the same command goes on from before it")
        last = {k: v.clone() if isinstance(v, Tensor) else v for k, v in self._state().items()}
        checkpoint.restore(found, self.bare, self.method, self.optimizer, self.schedule)
        best["report"] = _brief(self.evaluate(self.report, best["step"] - 1))
        checkpoint.restore(last, self.bare, self.method, self.optimizer, self.schedule)

    def _within_budget(self) -> bool:
        if "off budget" in self.method.remarks():
            return False
        check = getattr(self.method, "check_budget", None)
        if check is None or self.method.capabilities.budget == "soft":
            return True
        try:
            check()
        except RuntimeError:
            return False
        return True

    # -- records ---------------------------------------------------------------------------------------

    def _start_lines(self) -> None:
        """Writes the ranks before the first step."""
        if self.method.capabilities.ranked:
            self._line("ranks.jsonl", {"step": -1, "ranks": self.method.ranks(), "pruned": [], "grown": []})

    def _record_round(self, moved: Round) -> None:
        self.moved += len(moved.grown) or len(moved.pruned)
        now = self.method.count()
        self.outcome.peak = max(self.outcome.peak, now, key=lambda c: (c.params, c.rank_sum))
        line = {
            "step": moved.step,
            "ranks": moved.ranks,
            "pruned": [list(entry) for entry in moved.pruned],
            "grown": moved.grown,
            "scores": moved.scores,
            "notes": moved.notes,
        }
        self._line("ranks.jsonl", line)
        self.mirror.round(line)

    def _log(self, step: int, losses: list[Tensor]) -> None:
        """Every `log_every` steps: the mean training loss since the last line, in order of the steps."""
        if not self._logged(step):
            return
        loss = float(torch.stack(losses).mean())
        recent = self.outcome.step_seconds[-len(losses) :]
        losses.clear()
        self._line("metrics.jsonl", {"step": step, "split": "train", "metric": "loss", "value": loss})
        self._line("timing.jsonl", {"step": step, "seconds_per_step": sum(recent) / max(1, len(recent))})
        self._shown_loss = loss
        self.mirror.metrics(step, "train", {"loss": loss})
        if self.accelerator.is_main_process:
            self.folder.progress(step + 1, self.total)
        self.watcher.update(step + 1, self.method.phase(step), loss, self.moved)

    def _line(self, name: str, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.folder.append(name, line)

    # -- checkpoints -----------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Writes everything that the rest of the run depends on."""
        self._saved = self._steps
        if self.accelerator.is_main_process:
            self.checkpoints.save(self._steps, self._state(), self._progress())

    def _progress(self) -> dict[str, Any]:
        return {
            "run": self.checkpoints.run_id,
            "lines": self.folder.sizes(),
            "moved": self.moved,
            "initial": vars(self.outcome.initial),
            "peak": vars(self.outcome.peak),
            "best": self.outcome.best,
            "unread": self._unread,
            "seconds": [self.outcome.train_seconds, self.outcome.eval_seconds],
            "losses": [float(loss) for loss in self._pending],
        }

    def _state(self) -> dict[str, Any]:
        return checkpoint.collect(self.bare, self.method, self.optimizer, self.schedule)

    def resume(self) -> None:
        """Takes up the newest checkpoint that is whole and cuts the lines back to it; without one, starts anew.

        Raises:
            UserError: a checkpoint is whole and does not belong to this run.
        """
        found = run_on_main(lambda: self.checkpoints.newest(self._progress()))
        if found is not None:
            step, state = found
            run_everywhere(lambda: self._take_up(step, state))
            self.method.rounds_seen = run_on_main(lambda: self.checkpoints.go_on(step, state["progress"]))
        if self.accelerator.is_main_process:
            self.checkpoints.drop_left(self._steps)
        if self._saved is None:
            if self.accelerator.is_main_process:
                self.folder.cut_back({})
            self._start_lines()

    def _take_up(self, step: int, state: dict[str, Any]) -> None:
        progress, saved = state["progress"], {name: value for name, value in state.items() if name != "progress"}
        best = progress["best"]
        try:
            fresh = self._state()
            if best is not None and best["report"] is None:  # it is read when training is over: too late for a line
                chosen: dict[str, Any] | None = run_on_main(lambda: self.checkpoints.best(best["step"]))
                self._put_back(chosen or {}, fresh)
            self._put_back(saved, fresh)
        except (LookupError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError) as error:
            raise self.checkpoints.foreign(step, f"{type(error).__name__} {error}".splitlines()[0]) from error
        self.moved, self._unread, self.outcome.best = progress["moved"], progress["unread"], best
        self.outcome.initial, self.outcome.peak = Count(**progress["initial"]), Count(**progress["peak"])
        self.outcome.train_seconds, self.outcome.eval_seconds = progress["seconds"]
        losses, device = progress["losses"], self.accelerator.device
        self._pending = [torch.tensor(loss, dtype=self._loss_type, device=device) for loss in losses]
        self.schedule.at(step)
        self._steps = self._saved = step

    def _put_back(self, state: dict[str, Any], fresh: dict[str, Any]) -> None:
        checkpoint.check_form(state, fresh)
        checkpoint.restore(state, self.bare, self.method, self.optimizer, self.schedule)


def _masks(batch: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Which tokens of the input, and of the decoder's input, are no padding; both (b, length) or None."""
    labels = batch["labels"]
    return batch.get("attention_mask"), labels != IGNORED if labels.ndim == 2 else None


def _brief(reading: Reading) -> dict[str, Any]:
    return {"split": reading.split, "metrics": reading.metrics}
